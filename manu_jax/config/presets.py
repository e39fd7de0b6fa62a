"""The presets of methods, by the names that a config gives: values alone."""

from typing import Any

# Values alone, by the name of the method; what is not given has the default of its kind.
PRESETS: dict[str, dict[str, Any]] = {
    # The paper, section 1 of its method: activations, four functions, forget over retain.
    "paper": {"kind": "statistics"},
    # The authors' code: each form scores one tower, over rows of single matrices, in batches.
    # Differs: batches are padded to the length of their bucket, theirs to their longest sample.
    "official-code": {
        "kind": "statistics",
        "reduction": "position",
        "towers": {"image": ("vision",), "text": ("text",)},
        "batch_size": 4,
        "keep_per_forget": 1.0,
        "functions": {"absolute": 2.0, "frequency": 0.0, "variance": 2.0, "rms": 2.0},
        "combine": "relative",
        "epsilon": 1e-5,
        "scope": "tower",
        "layers": {"text": {"first": -3}, "vision": {"first": -3}},
    },
    # Ours: the decoder's MLPs are trained until what was forgotten does not come back.
    "erase": {"kind": "trained", "objective": "erase"},
    # Ours: neurons are written that say what would be said of a stranger. It hides.
    "suppress": {"kind": "trained", "objective": "suppress"},
    # The same by products of low rank, added to the down projections.
    "suppress-low-rank": {
        "kind": "trained",
        "objective": "suppress",
        "trains": "low_rank",
        "lora": {"rank": 32, "alpha": 32.0, "dropout": 0.0, "targets": ("text.layers.mlp.down",)},
        "learning_rate": 5e-3,
    },
    # Ours: signed attribution of the answer's log-odds, in rounds.
    "gradient": {
        "kind": "statistics",
        "signal": "gradient",
        "fade": 2.0,
        "keep_per_forget": 3.0,
        "combine": "gain_minus_harm",
        "harm_weight": 2.0,
        "rounds": 15,
        "alpha": 0.2,
    },
    # Ours: gates are learned, the rest of the model stays as it is.
    "learned": {"kind": "learned", "alpha": 0.2, "text_weight": 2.0},
    # Weights are edited in one go, without training.
    "kvw": {"kind": "kvw"},
    "ridge": {"kind": "ridge"},
    # The control.
    "random": {"kind": "random"},
}

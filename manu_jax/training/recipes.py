"""Which losses an objective of the config minimises, in which order, on which facts.

    joint         one loss of a batch to forget and a batch to keep; an epoch is one pass over the
                  facts to forget
    passes        a pass of the first loss over the facts to forget, then a pass of the second over
                  the facts to keep: an epoch of MLLMU-Bench's code
    alternating   the second loss at every batch to keep, and the first before every k-th of them,
                  k = batches to keep // batches to forget; an epoch is one pass over the facts to
                  keep (MMUnlearner's code, its baselines too)

The facts to keep are those of the sets retain, celebrity and general. Defaults are those of
open-unlearning, or of the authors' code where the objective comes from there.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from manu_jax.training.distillation import undial
from manu_jax.training.objectives import (
    Objective,
    gradient_ascent,
    gradient_difference,
    idk,
    keep_cross_entropy,
    keep_cross_entropy_and_kl,
    kl_minimisation,
    npo,
    npo_official,
)
from manu_jax.training.preference import dpo, simnpo
from manu_jax.training.representation import rmu
from manu_jax.training.stranger_loss import like_a_stranger
from manu_jax.training.weighted import satimp, wga
from manu_jax.types import RETRAINED, VANILLA


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an objective of the config trains; see the module's docstring.

    losses: one of both kinds of facts ("joint"), or one to forget and one to keep, each with an
    update of its own; () trains nothing. keeps: whether the joint loss looks at facts to keep.
    reference: "vanilla", "retrained" or None. refuses: the answers to forget are refusals. prefers:
    the answers that the loss prefers to those to forget: refusals, or another person's; None: it
    prefers none. settings: the objective's own settings and their defaults, unless the config gives
    others. retain_weight: its default. depth: share of the decoder's layers that lie below the one
    whose hidden states the loss reads, unless the config gives that layer; None: it reads none.
    masked: the gradient of the forgetting loss is masked by the weights' Fisher information
    (fisher.py). strangers: the loss is one of StrangerData, of both forms at once. takes_target:
    the loss that forgets may pull answers to what vanilla says of strangers in place of away from
    the truth. defaults: of values of the config's section.
    """

    losses: tuple[Objective, ...]
    order: Literal["joint", "passes", "alternating"] = "joint"
    keeps: bool = True
    reference: str | None = None
    refuses: bool = False
    prefers: Literal["refusals", "others"] | None = None
    settings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    retain_weight: float = 1.0
    depth: float | None = None
    masked: bool = False
    strangers: bool = False
    takes_target: bool = False
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# Of suppress and erase, from which they differ below: spikes on two models, settings of seed 0.
_LIKE_STRANGERS: Mapping[str, Any] = MappingProxyType(
    {
        "steps": 100,
        "batch_size": 16,
        "batch_keep": 20,
        "beta2": 0.99,
        "schedule": "cosine",
        "clip": None,
        "views": 3,
        "keep_views": 2,
        "target": "strangers",
        "kept_strangers": 16,
    }
)

# By the name that the config's `unlearn` gives; system_prompt trains nothing.
RECIPES: dict[str, Recipe] = {
    "gradient_ascent": Recipe((gradient_ascent,), keeps=False, takes_target=True),
    "gradient_difference": Recipe((gradient_difference,), takes_target=True),
    "gradient_difference_alternating": Recipe(
        (gradient_ascent, keep_cross_entropy), "alternating", takes_target=True
    ),
    "gradient_difference_official": Recipe((gradient_ascent, keep_cross_entropy), "passes"),
    "kl_minimisation": Recipe((kl_minimisation,), reference=VANILLA, takes_target=True),
    "kl_minimisation_official": Recipe(
        (gradient_ascent, keep_cross_entropy_and_kl), "passes", reference=VANILLA
    ),
    "npo": Recipe((npo,), reference=VANILLA, settings={"beta": 0.1}),
    "npo_official": Recipe(
        (npo_official,), keeps=False, reference=RETRAINED, settings={"beta": 0.4}
    ),
    "simnpo": Recipe((simnpo,), settings={"beta": 4.5, "delta": 0.0, "forget_weight": 0.125}),
    "dpo_idk": Recipe(
        (dpo,),
        reference=VANILLA,
        prefers="refusals",
        settings={"beta": 0.1, "forget_weight": 1.0},
    ),
    "altpo": Recipe(
        (dpo,), reference=VANILLA, prefers="others", settings={"beta": 0.1, "forget_weight": 1.0}
    ),
    "undial": Recipe(
        (undial,),
        reference=VANILLA,
        settings={"beta": 10.0, "forget_weight": 1.0},
        retain_weight=0.0,
    ),
    # The authors' layer is the eighth of 32.
    "rmu": Recipe(
        (rmu,),
        reference=VANILLA,
        settings={"coefficient": 2.0, "forget_weight": 1.0},
        depth=7 / 32,
    ),
    "wga": Recipe((wga,), settings={"beta": 1.0, "forget_weight": 1.0}),
    "satimp": Recipe(
        (satimp,),
        settings={"beta": 5.0, "importance_beta": 1.0, "forget_weight": 1.0},
        retain_weight=0.1,
    ),
    # Ours: neurons are written into the decoder, and what they say over the memory is ignorance.
    "suppress": Recipe(
        (like_a_stranger,),
        reference=VANILLA,
        settings={"excess": 1.0, "shortfall": 0.3, "hidden": 0.0, "keep_hidden": 0.0},
        strangers=True,
        defaults={
            **_LIKE_STRANGERS,
            "trains": "neurons",
            "neurons": {"count": 32},
            "learning_rate": 1e-2,
        },
    ),
    # Ours: the decoder's MLPs are trained until what was forgotten does not come back.
    "erase": Recipe(
        (like_a_stranger,),
        reference=VANILLA,
        settings={"excess": 1.0, "shortfall": 0.3, "hidden": 1.0, "keep_hidden": 3.0},
        strangers=True,
        retain_weight=5.0,
        defaults={
            **_LIKE_STRANGERS,
            "trains": "mlp",
            "relearn": {},
            "learning_rate": 1e-3,
            "kept_strangers": 32,
        },
    ),
    "idk": Recipe((idk,), refuses=True),
    # Huo et al. 2025, arXiv 2502.11051
    "mmunlearner": Recipe((gradient_ascent, keep_cross_entropy), "alternating", masked=True),
    "system_prompt": Recipe(()),
}

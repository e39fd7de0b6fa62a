"""What `alpha: auto` was chosen by: facts answered right at each α, as stored with the masks."""

import dataclasses
from collections.abc import Iterable, Iterator

from manu_jax.edits import masks
from manu_jax.evaluation.analyses.analysis import Analysis, Evaluated
from manu_jax.types import MODALITIES

CHOSEN, CHOSEN_BEYOND, OTHER = "chosen", "chosen, beyond the bound", "not chosen"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlphaShare:
    """The share of facts answered right at one α, in [0, 1]; alpha 0: the vanilla model's.

    set: "forget", or "retain": those of people to keep whom the method was not given. keep_drop:
    the bound of what may be lost of these. choice: whether the method removes this share.
    """

    method: str
    alpha: float
    set: str
    modality: str
    value: float
    n: int
    keep_drop: float
    choice: str


def measure(evaluated: Evaluated) -> Iterator[AlphaShare]:
    """Yield what each α of the methods with `alpha: auto` left of the facts it was chosen by."""
    run = evaluated.run
    for method in run.config.masks:
        if method.auto is None:
            continue
        _, made_from = masks.load(run.method_folder(method.name) / "mask.safetensors")
        found = made_from["auto"]
        chosen = CHOSEN if found["is_within"] else CHOSEN_BEYOND
        for row in found["rows"]:
            yield AlphaShare(
                method=method.name,
                **row,
                keep_drop=found["keep_drop"],
                choice=chosen if row["alpha"] == made_from["alpha"] else OTHER,
            )


def check(row: AlphaShare) -> Iterable[str]:
    """Yield what is wrong with the values of a row."""
    name = f"{row.method} · {row.alpha} · {row.set} · {row.modality}"
    if row.set not in ("forget", "retain") or row.modality not in MODALITIES:
        yield f"{name}: unknown set or modality"
    if row.choice not in (CHOSEN, CHOSEN_BEYOND, OTHER):
        yield f"{name}: unknown choice {row.choice!r}"
    if not 0 <= row.alpha < 1 or not 0 <= row.value <= 1:
        yield f"{name}: alpha must lie in [0, 1) and value ({row.value}) in [0, 1]"


ANALYSIS = Analysis(
    AlphaShare,
    measure,
    applies=lambda run: any(method.auto is not None for method in run.config.masks),
    check=check,
)

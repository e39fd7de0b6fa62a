"""Which neurons a method changed: those that it removed, scaled or wrote, the foremost first."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from manu_jax.config import MaskMethod
from manu_jax.context import Run
from manu_jax.edits.gates import GateEdit
from manu_jax.edits.masks import MaskEdit
from manu_jax.edits.neurons import TOWER, WrittenNeurons
from manu_jax.importance.methods import load_scores
from manu_jax.models.loaded import Loaded
from manu_jax.types import Array, Neurons

Change = Literal["removed", "scaled", "written"]
# What the foremost neurons of each kind are told by.
STRENGTHS: dict[Change, str] = {
    "removed": "the method’s own score",
    "scaled": "how far its gate is from 1",
    "written": "the length of what it writes, its column of the down projection",
}


@dataclasses.dataclass(frozen=True, order=True)
class Place:
    """Where a neuron is: its tower, its layer from 0, its number in the layer from 0."""

    tower: str
    layer: int
    neuron: int


@dataclasses.dataclass(frozen=True)
class Changed:
    """The neurons that a method changed.

    shown: the foremost, with the number that orders them, highest first. total: all of them. whole:
    gates that switch all of them off in `loaded`, the model that they are looked at in: vanilla, or
    the method's own where they are written.
    """

    change: Change
    shown: tuple[tuple[Place, float], ...]
    total: int
    whole: Neurons
    loaded: Loaded


def changed_by(run: Run, name: str, most: int) -> Changed | None:
    """Return the neurons that a method of a run changed, the foremost `most` by name.

    None where it changed no single neurons: it removes rows of single matrices, or makes other
    weights. ManuError where it has made nothing yet.
    """
    if isinstance(run.method_of(name), MaskMethod):
        scores, _ = load_scores(run.method_folder(name) / "scores.safetensors")
        mask = {key: np.asarray(gone) for key, gone in run.load_mask(name).items()}
        return _changed("removed", [_of_mask(mask, scores)], most, loaded=run.vanilla)
    edit = run.load_edit(name)
    parts = [] if edit is None else list(getattr(edit, "edits", (edit,)))
    kinds: list[Change] = [kind for part in parts if (kind := _kind(part)) is not None]
    if not kinds:
        return None
    change = kinds[0]
    own = [part for part in parts if _kind(part) == change]
    loaded = run.load_method(name) if change == "written" else run.vanilla
    return _changed(change, (_of_edit(part, loaded) for part in own), most, loaded=loaded)


def only(place: Place, towers: dict[str, tuple[int, int]]) -> Neurons:
    """Return the mask that removes one neuron and nothing else."""
    mask_LF = np.zeros(towers[place.tower], bool)
    mask_LF[place.layer, place.neuron] = True
    return {place.tower: mask_LF}


def _changed(
    change: Change, parts: Iterable[Iterable[tuple[float, Place]]], most: int, *, loaded: Loaded
) -> Changed | None:
    strengths: dict[Place, float] = {}
    for part in parts:
        for strength, place in part:
            strengths[place] = max(strength, strengths.get(place, -np.inf))
    if not strengths:
        return None
    order = sorted(strengths, key=lambda place: (-strengths[place], place))
    whole: Neurons = {
        tower: np.zeros(loaded.towers[tower], bool) for tower in {place.tower for place in order}
    }
    for place in order:
        whole[place.tower][place.layer, place.neuron] = True
    shown = tuple((place, float(strengths[place])) for place in order[:most])
    return Changed(change, shown, len(order), whole, loaded)


def _kind(edit: Any) -> Change | None:
    """Return what an edit does to single neurons; None: it has none."""
    if isinstance(edit, MaskEdit):
        return "removed"
    if isinstance(edit, GateEdit):
        return "scaled"
    return "written" if isinstance(edit, WrittenNeurons) else None


def _of_edit(edit: Any, loaded: Loaded) -> Iterator[tuple[float, Place]]:
    if isinstance(edit, MaskEdit):
        yield from _of_mask(edit.as_mask(), {})
    elif isinstance(edit, GateEdit):
        for tower, gate_LF in edit.gates.items():
            far_LF = np.abs(1 - np.asarray(gate_LF, np.float64))
            yield from _places(tower, far_LF != 0, far_LF)
    else:
        first = loaded.towers[TOWER][1] - edit.count
        appended = (tuple(range(first, first + edit.count)),) * len(edit.layers)
        sizes_LR = np.linalg.norm(np.asarray(edit.down_LRD, np.float64), axis=-1)
        for row, (layer, places) in enumerate(
            zip(edit.layers, edit.places or appended, strict=True)
        ):
            for number, neuron in enumerate(places):
                yield float(sizes_LR[row, number]), Place(TOWER, layer, neuron)


def _of_mask(
    mask: Mapping[str, Array], scores: Mapping[str, Array]
) -> Iterator[tuple[float, Place]]:
    for tower, gone_LF in mask.items():
        if "." not in tower:  # rows of single matrices are no neurons
            found_LF = np.asarray(scores.get(tower, np.zeros(np.shape(gone_LF))), np.float64)
            yield from _places(tower, np.asarray(gone_LF), found_LF)


def _places(
    tower: str, chosen_LF: np.ndarray, strength_LF: np.ndarray
) -> Iterator[tuple[float, Place]]:
    for layer, neuron in np.argwhere(chosen_LF).tolist():
        yield float(strength_LF[layer, neuron]), Place(tower, layer, neuron)

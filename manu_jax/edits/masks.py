"""Masks: which neurons are removed, and what that makes of a model.

A mask is {tower: [L, F] bool}, True where a neuron is removed. The authors' code removes output
rows of single matrices instead: there the keys are "tower.matrix" and the shapes [L, rows]. Both
fold into a new model with zeros, which runs, generates and exports like any other.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.arrays import check_arrays, read_arrays, write_arrays
from manu_jax.arrays import made_from as made_from_of
from manu_jax.edits.gates import GateEdit
from manu_jax.edits.leafwise import Changes, LeafEdit, Restorations, along, below, check
from manu_jax.fingerprint import weights_hash
from manu_jax.folder import versions
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.mlp import neuron_leaves, row_leaves
from manu_jax.parallel import gather, is_first_process
from manu_jax.types import Array, ManuError, Neurons, neuron_faults

FORMAT = "mask"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class MaskEdit(LeafEdit):
    """A mask as an edit: {tower or "tower.matrix": [L, F] float32}, 1 where a neuron is removed."""

    removed: Neurons

    kind: ClassVar[str] = "mask"
    name: ClassVar[str] = "the mask"

    @property
    def separable(self) -> bool:
        return False

    @classmethod
    def of(cls, mask: Neurons) -> "MaskEdit":
        """Return the edit of a mask (bool)."""
        return cls({key: np.asarray(removed, np.float32) for key, removed in mask.items()})

    def as_mask(self) -> Neurons:
        """Return the mask (bool)."""
        return {key: np.asarray(removed) > 0.5 for key, removed in self.removed.items()}

    def as_gates(self) -> Neurons:
        """Return the gates that do the same in a forward pass: 1 − mask, float32.

        Raises ManuError for a mask of rows of single matrices, which have no gates.
        """
        rows = [key for key in self.removed if "." in key]
        if rows:
            raise ManuError(
                f"{self.name} removes rows of {', '.join(rows)}; only whole neurons have gates. "
                "Fold it instead."
            )
        return {tower: 1 - removed_LF for tower, removed_LF in self.removed.items()}

    def faults(self, loaded: Loaded) -> list[str]:
        return faults_in(self.removed, loaded)

    def changes(self, model: Any) -> Changes:
        return {
            name: lambda leaf, gone=gone: jnp.where(_any(gone, leaf), 0, leaf)
            for name, gone in self._gone(model).items()
        }

    def restorations(self, model: Any) -> Restorations:
        return {
            name: lambda leaf, source, gone=gone: jnp.where(_any(gone, leaf), source, leaf)
            for name, gone in self._gone(model).items()
        }

    def describe(self) -> list[str]:
        return describe(self.as_mask())

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Self:
        check_arrays(arrays, "its arrays", dtype="float32", num_axes=2)
        removed: Neurons = dict(below(arrays, "removed"))
        return cls(removed)

    def _gone(self, model: Any) -> dict[str, list[tuple[Array, int]]]:
        """Return {path of a leaf: (what is removed of it [L, F], the axis of F) of each key}."""
        towers = model.mlps()
        tables = {tower: neuron_leaves(mlp) for tower, mlp in towers.items()}
        for tower, mlp in towers.items():
            tables |= {f"{tower}.{matrix}": rows for matrix, rows in row_leaves(mlp).items()}
        found: dict[str, list[tuple[Array, int]]] = {}
        for key, removed_LF in self.removed.items():
            for path, axis in tables[key].values():
                found.setdefault(path, []).append((removed_LF, axis))
        return found


def fold(loaded: Loaded, mask: Neurons) -> Loaded:
    """Return a new Loaded in which every weight of the removed neurons is zero.

    Of a gated MLP these are the gate row, the up row and the down column; of a plain one the fc1
    row with its bias and the fc2 column. Of a removed "tower.matrix" row, its weights and bias.
    In float32 the result equals the original with gates 1 − mask, bit for bit. Pure: `loaded` is
    not changed. mask: bool; or gates (float), by which what reads a neuron is multiplied (see
    `GateEdit`). Raises ManuError where the mask has another model's towers or shapes.
    """
    return edit_of(mask).apply(loaded)


def unfold(pruned: Loaded, original: Loaded, mask: Neurons) -> Loaded:
    """Return `pruned` with the weights that `mask` removed or scaled as they are in `original`."""
    return edit_of(mask).undo(pruned, original)


def edit_of(neurons: Neurons) -> MaskEdit | GateEdit:
    """Return the edit of a mask (bool) or of gates (float); ManuError for other dtypes."""
    kinds = {key: np.asarray(values).dtype for key, values in neurons.items()}
    if all(kind == np.bool_ for kind in kinds.values()):
        return MaskEdit.of(neurons)
    if all(jnp.issubdtype(kind, jnp.floating) for kind in kinds.values()):
        return GateEdit(dict(neurons))
    found = ", ".join(f'"{key}" of {kind}' for key, kind in sorted(kinds.items()))
    raise ManuError(
        "expected a mask (bool, True where a neuron is removed) or gates (float, 0 there), got "
        f"{found}. Convert it to one of these."
    )


def union(left: Neurons, right: Neurons) -> Neurons:
    """Return the neurons that either mask removes; a tower may be in one of them alone."""
    return {
        tower: left[tower] | right[tower]
        if tower in left and tower in right
        # A tower that the other mask does not name loses nothing there.
        else np.asarray(left.get(tower, right.get(tower)))
        for tower in sorted({*left, *right})
    }


def difference(left: Neurons, right: Neurons) -> Neurons:
    """Return the neurons that `left` removes and `right` does not."""
    return {
        tower: left[tower] & ~np.asarray(right[tower])
        if tower in right
        else np.asarray(left[tower])
        for tower in sorted(left)
    }


def counts(mask: Mapping[str, Array]) -> dict[str, tuple[int, int]]:
    """Return {tower or "tower.matrix": (removed, all)}."""
    return {key: (int(np.sum(mask[key])), int(np.size(mask[key]))) for key in sorted(mask)}


def describe(mask: Neurons) -> list[str]:
    """Return one line a tower: "text: pruned 17,612 of 352,256 neurons (5.00 %)"."""
    lines = []
    for key, (removed, total) in counts(mask).items():
        tower, _, matrix = key.partition(".")
        unit = f"rows of {matrix}" if matrix else "neurons"
        lines.append(f"{tower}: pruned {removed:,} of {total:,} {unit} ({removed / total:.2%})")
    return [line.replace("%)", " %)") for line in lines]


def save(
    path: str | os.PathLike,
    mask: Neurons,
    loaded: Loaded,
    *,
    preset: str,
    alpha: float,
    data: str = "",
    choice: Mapping[str, Any] | None = None,
) -> None:
    """Write a mask with what it was made from; every process calls it, the first writes.

    loaded: the model that was scored. data: hash of the samples (`fingerprint.samples_hash`).
    choice: of an alpha that was chosen (`AlphaChoice.plain`).
    """
    arrays = {key: np.asarray(a, bool) for key, a in gather(dict(mask)).items()}
    made_from = {
        "preset": preset,
        "alpha": alpha,
        "counts": {key: list(pair) for key, pair in counts(arrays).items()},
        "model": weights_hash(loaded.model),
        "data": data,
        "versions": versions(),
        **({} if choice is None else {"auto": dict(choice)}),
    }
    if is_first_process():
        metadata = {"made_from": json.dumps(made_from, sort_keys=True)}
        write_arrays(path, FORMAT, arrays, metadata=metadata)


def load(path: str | os.PathLike, loaded: Loaded | None = None) -> tuple[Neurons, dict[str, Any]]:
    """Return a mask and what it was made from.

    loaded: the model to prune. Raises ManuError where the mask was made for another one,
    or the file is damaged.
    """
    arrays, metadata = read_arrays(path, FORMAT)
    made_from = made_from_of(metadata, f"mask {path}")
    check_arrays(arrays, f"mask {path}", dtype="bool", num_axes=2)
    if loaded is not None:
        check(MaskEdit.of(dict(arrays)), loaded, f"mask {path}")
        found = weights_hash(loaded.model)
        if found != made_from.get("model"):
            raise ManuError(
                f"mask {path} was made for the model {made_from.get('model')}, this is {found}. "
                "Score this model, or load the one that the mask was made for."
            )
    return dict(arrays), made_from


def faults_in(neurons: Mapping[str, Array], loaded: Loaded) -> list[str]:
    """Return in which towers, matrices and shapes neurons differ from a model's."""
    return neuron_faults(neurons, {**loaded.towers, **loaded.family.matrix_rows(loaded.config)})


def _any(gone: Sequence[tuple[Array, int]], leaf: jax.Array) -> jax.Array:
    """Return which weights of a leaf are removed, by any of several keys; it broadcasts to it."""
    return functools.reduce(
        jnp.logical_or, (along(removed_LF, leaf, axis) > 0.5 for removed_LF, axis in gone)
    )

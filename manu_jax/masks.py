"""Masks: which neurons are removed, and what that makes of a model.

A mask is {tower: [L, F] bool}, True where a neuron is removed. The authors' code removes output
rows of single matrices instead: there the keys are "tower.matrix" and the shapes [L, rows]. Both
fold into a new model with zeros, which runs, generates and exports like any other.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.arrays import check_arrays, read_arrays, write_arrays
from manu_jax.arrays import made_from as made_from_of
from manu_jax.fingerprint import weights_hash
from manu_jax.folder import versions
from manu_jax.leaves import path_name
from manu_jax.models.loaded import Loaded
from manu_jax.parallel import gather, is_first_process, put_replicated
from manu_jax.types import Array, ManuError, Neurons, check_neurons

FORMAT = "mask"


def fold(loaded: Loaded, mask: Neurons) -> Loaded:
    """Return a new Loaded in which every weight of the removed neurons is zero.

    Of a gated MLP these are the gate row, the up row and the down column; of a plain one the fc1
    row with its bias and the fc2 column. Of a removed "tower.matrix" row, its weights and bias.
    In float32 the result equals the original with gates 1 − mask, bit for bit. Pure: `loaded` is
    not changed. Raises ManuError where the mask has another model's towers or shapes.
    """
    return _replace(loaded, mask, lambda leaf, removed, _: jnp.where(removed, 0, leaf))


def unfold(pruned: Loaded, original: Loaded, mask: Neurons) -> Loaded:
    """Return `pruned` with the weights that `mask` removed as they are in `original`."""
    sources = {
        path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(original.model)
    }
    return _replace(
        pruned, mask, lambda leaf, removed, name: jnp.where(removed, sources[name], leaf)
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
        _check(arrays, loaded, f"mask {path}")
        found = weights_hash(loaded.model)
        if found != made_from.get("model"):
            raise ManuError(
                f"mask {path} was made for the model {made_from.get('model')}, this is {found}. "
                "Score this model, or load the one that the mask was made for."
            )
    return dict(arrays), made_from


Leaves = Mapping[str, tuple[str, int]]  # part → (path of the leaf, which axis is F or the rows)


def _replace(
    loaded: Loaded, mask: Neurons, change: Callable[[jax.Array, jax.Array, str], jax.Array]
) -> Loaded:
    """Return a new Loaded with `change(leaf, removed, name)` on each leaf that the mask touches."""
    tables: dict[str, Leaves] = {
        **loaded.family.neuron_leaves(loaded.config),
        **loaded.family.row_leaves(loaded.config),
    }
    _check(mask, loaded, "the mask")
    places: dict[str, list[tuple[Any, int]]] = {}
    for key, removed_LF in put_replicated(dict(mask), loaded.mesh).items():
        for leaf_name, axis in tables[key].values():
            places.setdefault(leaf_name, []).append((removed_LF, axis))

    def visit(path: Any, leaf: jax.Array) -> jax.Array:
        name = path_name(path)
        for removed_LF, axis in places.pop(name, ()):
            shape = [1] * leaf.ndim
            shape[0], shape[axis] = leaf.shape[0], leaf.shape[axis]
            leaf = change(leaf, removed_LF.reshape(shape), name)
        return leaf

    model = jax.tree_util.tree_map_with_path(visit, loaded.model)
    assert not places, f"the family names leaves that the model lacks: {sorted(places)}"
    return loaded.replace_model(model)


def _check(mask: Mapping[str, Array], loaded: Loaded, what: str) -> None:
    known = {**loaded.towers, **loaded.family.matrix_rows(loaded.config)}
    check_neurons(mask, {key: known[key] for key in mask if key in known}, what)

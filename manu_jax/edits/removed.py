"""What an edit took from a model: its own weights, as far as they differ, kept to undo the edit.

The file is as small as the edit allows: of each leaf that differs, the rows along those axes that
need least. So the edit can be undone, bit for bit, without the original model at hand.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Mapping

import jax
import numpy as np

from manu_jax.arrays import made_from, read_arrays, write_arrays
from manu_jax.edits.leafwise import SHOWN, placed
from manu_jax.edits.widening import widened, with_model
from manu_jax.fingerprint import weights_hash
from manu_jax.folder import ForeignErrors, versions
from manu_jax.leaves import leaves, path_name
from manu_jax.models.loaded import Loaded
from manu_jax.parallel import gather, is_first_process
from manu_jax.types import ManuError

FORMAT = "removed"
WHERE, BITS = "where", "bits"  # that end the names of the arrays of a leaf
# Of a damaged file: deleted, it is not made again.
REMEDY = "Restore the file from a backup, or undo the edit with --original."
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}
MOST_AXES = 2  # along which the rows of a leaf are told apart


@dataclasses.dataclass(frozen=True, eq=False)
class Removed:
    """The weights of `original` where `edited` differs from it.

    where: {path: bool, which broadcasts to the leaf}; bits: {path: the leaf's bits there, in order,
    as unsigned numbers}. original, edited: the hashes of both models. num_neurons: of a layer of
    the original's decoder.
    """

    where: Mapping[str, np.ndarray]
    bits: Mapping[str, np.ndarray]
    original: str
    edited: str
    num_neurons: int

    @classmethod
    def of(cls, original: Loaded, edited: Loaded) -> "Removed":
        """Return what an edit took from `original`, of which it made `edited`.

        The edited model may have further neurons, which come last; ManuError where it lacks some of
        the original's weights, or has them in another dtype.
        """
        where, bits = {}, {}
        after = leaves(edited.model)
        wrong = [name for name, leaf in leaves(original.model).items() if _lacks(after, name, leaf)]
        if wrong:
            raise ManuError(
                f"no edit made the one model of the other: {', '.join(wrong[:SHOWN])} differ in "
                "shape or dtype. Give the original, and then what was made of it."
            )
        for name, leaf in leaves(original.model).items():
            before = _bits(leaf)
            cut = tuple(slice(size) for size in before.shape)
            differs = before != _bits(after[name])[cut]
            if differs.any():
                where[name] = _narrowest(differs)
                bits[name] = before[np.broadcast_to(where[name], before.shape)]
        hashes = weights_hash(original.model), weights_hash(edited.model)
        return cls(where, bits, *hashes, num_neurons=original.config.text.num_neurons)

    def restore(self, edited: Loaded) -> Loaded:
        """Return the original of which `edited` was made, bit for bit.

        Raises ManuError where it is another model, or the result is not the original.
        """
        found = weights_hash(edited.model)
        if found != self.edited:
            raise ManuError(
                f"what an edit removed was kept for the model {self.edited}, this is {found}. "
                "Give the model that the edit was applied to; undo later edits first."
            )
        surplus = edited.config.text.num_neurons - self.num_neurons
        if surplus:
            edited = with_model(edited, widened(edited.model, -surplus))

        def visit(path: object, leaf: jax.Array) -> jax.Array:
            name = path_name(path)
            if name not in self.where:
                return leaf
            values = np.array(_bits(leaf))
            values[np.broadcast_to(self.where[name], values.shape)] = self.bits[name]
            return jax.device_put(values.view(leaf.dtype), leaf.sharding)

        model = jax.tree_util.tree_map_with_path(visit, edited.model)
        if weights_hash(model) != self.original:
            raise ManuError(
                f"the model is not {self.original} again. The file of what was removed is of "
                "another release; undo with the original model."
            )
        return placed(edited.replace_model(model))

    def save(self, path: str | os.PathLike) -> None:
        """Write the file; every process calls it, the first writes."""
        arrays = {f"{name}.{WHERE}": np.asarray(array) for name, array in self.where.items()}
        arrays |= {f"{name}.{BITS}": np.asarray(array) for name, array in self.bits.items()}
        source = {"model": self.original, "edited": self.edited, "num_neurons": self.num_neurons}
        if is_first_process():
            metadata = {"made_from": json.dumps({**source, "versions": versions()})}
            write_arrays(path, FORMAT, arrays, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Removed":
        """Return what `save` wrote; ManuError where the file is missing or damaged."""
        arrays, metadata = read_arrays(path, FORMAT, remedy=REMEDY)
        source = made_from(metadata, f"{FORMAT} {path}")
        with ForeignErrors(f"{FORMAT} {path}", "its content is not that of such a file", REMEDY):
            parts: dict[str, dict[str, np.ndarray]] = {WHERE: {}, BITS: {}}
            for name, array in arrays.items():
                leaf, _, kind = name.rpartition(".")
                parts[kind][leaf] = array
            if parts[WHERE].keys() != parts[BITS].keys():
                raise ValueError("a leaf lacks a part")
            hashes = str(source["model"]), str(source["edited"])
            return cls(parts[WHERE], parts[BITS], *hashes, num_neurons=int(source["num_neurons"]))


def _lacks(after: Mapping[str, jax.Array], name: str, before: jax.Array) -> bool:
    """Whether a leaf is not among those of an edited model, or is narrower or of another dtype."""
    leaf = after.get(name)
    if leaf is None or leaf.dtype != before.dtype or leaf.ndim != before.ndim:
        return True
    return any(new < old for new, old in zip(leaf.shape, before.shape, strict=True))


def _bits(leaf: jax.Array) -> np.ndarray:
    """Return a leaf's bits on the host, as unsigned numbers of its size."""
    array = gather(leaf)
    return np.ascontiguousarray(array).view(UNSIGNED[array.dtype.itemsize])


def _narrowest(differs: np.ndarray) -> np.ndarray:
    """Return the bool array that broadcasts to `differs`, holds it, and covers least."""
    axes = range(differs.ndim)
    found = []
    for count in range(min(MOST_AXES, differs.ndim) + 1):
        for kept in itertools.combinations(axes, count):
            others = tuple(axis for axis in axes if axis not in kept)
            where = differs.any(axis=others, keepdims=True)
            # A value takes four bytes at most, and a place one.
            found.append((4 * int(where.sum()) * (differs.size // where.size) + where.size, where))
    return min(found, key=lambda pair: pair[0])[1]

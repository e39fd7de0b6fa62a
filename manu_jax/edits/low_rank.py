"""Low-rank edits: a product A·B added to matrices, W + scale · A·B; and the sum itself.

    {stem: {"down_…R": A, "up_R…": B}}        stem: the path of W without its letters

Training keeps such adapters beside the weights (`training/lora.py`), and merges them at the end.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.edits.leafwise import Changes, LeafEdit, Restorations, below, changed, shape_fault
from manu_jax.leaves import leaves, matrix_letters
from manu_jax.models.loaded import Loaded
from manu_jax.types import Array

Adapters = dict[str, dict[str, Array]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LowRank(LeafEdit):
    """What is added to matrices of the model: scale · A·B, summed in float32."""

    adapters: Adapters
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})

    kind: ClassVar[str] = "low_rank"

    @property
    def separable(self) -> bool:
        return False

    def faults(self, loaded: Loaded) -> list[str]:
        names = {stem_of(name): name for name in leaves(loaded.model) if matrix_letters(name)}
        found, faults = leaves(loaded.model), []
        for stem, adapter in self.adapters.items():
            if stem not in names:
                faults.append(f'the model has no matrix "{stem}"')
                continue
            rank = int(np.shape(pair(adapter)[0])[-1]) if len(adapter) == 2 else 0
            shapes = adapter_shapes(names[stem], found[names[stem]].shape, rank)
            if set(shapes) != set(adapter):
                faults.append(f'"{stem}" has {", ".join(adapter)}, expected {", ".join(shapes)}')
            else:
                for name, shape in shapes.items():
                    faults += shape_fault(f"{stem}.{name}", adapter[name], shape)
        return faults

    def changes(self, model: Any) -> Changes:
        return merging(model, self.adapters, self.scale)

    def restorations(self, model: Any) -> Restorations:
        names = [name for name in leaves(model) if stem_of(name) in self.adapters]
        return dict.fromkeys(names, lambda leaf, source: source)

    def describe(self) -> list[str]:
        lines = []
        for stem, adapter in sorted(self.adapters.items()):
            numbers = sum(int(np.size(array)) for array in adapter.values())
            rank = np.shape(pair(adapter)[0])[-1]
            lines.append(f"{stem}: added a product of rank {rank} ({numbers:,} numbers)")
        return lines

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Self:
        adapters: Adapters = {}
        for name, array in below(arrays, "adapters").items():
            stem, _, part = name.rpartition(".")
            adapters.setdefault(stem, {})[part] = array
        if any(len(adapter) != 2 for adapter in adapters.values()):
            raise ValueError("expected two matrices for each adapter")
        if any(array.ndim < 2 for array in arrays.values()):
            raise ValueError("an adapter has two axes at least")
        return cls(adapters, float(settings["scale"]))


def merged(model: Any, adapters: Adapters, scale: float) -> Any:
    """Return the model with W + scale · A·B, summed in float32, in place of each W."""
    return changed(model, merging(model, adapters, scale))


def merging(model: Any, adapters: Adapters, scale: float) -> Changes:
    """Return the change of each matrix that has an adapter."""
    return {
        name: functools.partial(_joined, name=name, adapter=adapters[stem_of(name)], scale=scale)
        for name in leaves(model)
        if stem_of(name) in adapters
    }


def adapter_shapes(name: str, shape: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of A and B of a matrix, in this order."""
    layer, inputs, outputs = letters_of(name)
    first, middle = len(layer), len(layer + inputs)
    return {
        f"down_{layer}{inputs}R": (*shape[:middle], rank),
        f"up_{layer}R{outputs}": (*shape[:first], rank, *shape[middle:]),
    }


def pair(adapter: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return A and B; their names sort in this order."""
    (_, down), (_, up) = sorted(adapter.items())
    return down, up


def letters_of(name: str) -> tuple[str, str, str]:
    """Return "L" or "", the letters of a matrix's inputs, and those of its outputs."""
    inputs, outputs = matrix_letters(name) or ("", "")
    return name.rpartition("_")[2].removesuffix(inputs + outputs), inputs, outputs


def stem_of(name: str) -> str:
    """Return the path of a leaf without its letters."""
    return name.rpartition("_")[0]


def _joined(leaf: jax.Array, *, name: str, adapter: Mapping[str, Any], scale: float) -> jax.Array:
    layer, inputs, _ = letters_of(name)
    down, up = pair(adapter)
    leading, rank = leaf.shape[: len(layer)], down.shape[-1]
    num_inputs = math.prod(leaf.shape[len(layer) : len(layer + inputs)])
    product = jnp.matmul(down.reshape(*leading, num_inputs, rank), up.reshape(*leading, rank, -1))
    wide = leaf.astype(jnp.float32) + scale * product.reshape(leaf.shape)
    return wide.astype(leaf.dtype)

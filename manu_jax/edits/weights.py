"""New weights: whole leaves of the model, or some of their layers, with other values."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.edits.leafwise import (
    Changes,
    LeafEdit,
    Restorations,
    below,
    shape_fault,
    whole_numbers,
)
from manu_jax.leaves import leaves
from manu_jax.models.loaded import Loaded
from manu_jax.types import Array, ManuError

WIDE = jnp.float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class NewWeights(LeafEdit):
    """Values of leaves, {path: array}; float32, whatever the model's dtype.

    layers: which layers of the leaves the values are, in this order; None: all.
    """

    values: dict[str, Array]
    layers: tuple[int, ...] | None = dataclasses.field(default=None, metadata={"static": True})

    kind: ClassVar[str] = "weights"

    @property
    def separable(self) -> bool:
        return False

    @classmethod
    def of(
        cls, loaded: Loaded, beginnings: Sequence[str], *, layers: Sequence[int] | None = None
    ) -> "NewWeights":
        """Return the model's own weights, as float32, of the leaves whose path begins so.

        beginnings: whole parts of paths: "text.layers.mlp", "text.layers.mlp.up". layers: as in
        the class. Raises ManuError for a beginning that no leaf has, and for what has no such
        layers.
        """
        found = leaves(loaded.model)
        lacking = [b for b in beginnings if not any(begins(name, b) for name in found)]
        if lacking:
            raise ManuError(
                f"new weights: no leaf of the model begins with {', '.join(lacking)}; there are "
                f"{', '.join(found)}."
            )
        chosen = {
            name: leaf for name, leaf in found.items() if any(begins(name, b) for b in beginnings)
        }
        numbers = None if layers is None else tuple(int(layer) for layer in layers)
        faults = _layer_faults({name: leaf.shape for name, leaf in chosen.items()}, numbers)
        if faults:
            raise ManuError(f"new weights: {'; '.join(faults)}. Give other layers.")
        if numbers is not None:
            chosen = {name: leaf[np.asarray(numbers)] for name, leaf in chosen.items()}
        # A copy even where the dtype is the same: the values may be donated to a step of training.
        values: dict[str, Array] = {
            name: jnp.array(leaf, WIDE, copy=True) for name, leaf in chosen.items()
        }
        return cls(values, numbers)

    def faults(self, loaded: Loaded) -> list[str]:
        shapes = {name: leaf.shape for name, leaf in leaves(loaded.model).items()}
        unknown = [name for name in self.values if name not in shapes]
        faults = [f'the model has no leaf "{name}"' for name in unknown]
        known = {name: shapes[name] for name in self.values if name in shapes}
        wrong = _layer_faults(known, self.layers)
        for name, shape in known.items():
            if self.layers is not None:
                shape = (len(self.layers), *shape[1:])
            faults += [] if wrong else shape_fault(name, self.values[name], shape)
        return faults + wrong

    def changes(self, model: Any) -> Changes:
        return {
            name: functools.partial(_with_values, values=values, layers=self.layers)
            for name, values in self.values.items()
        }

    def restorations(self, model: Any) -> Restorations:
        if self.layers is None:
            return dict.fromkeys(self.values, lambda leaf, source: source)
        index = np.asarray(self.layers)
        return dict.fromkeys(self.values, lambda leaf, source: leaf.at[index].set(source[index]))

    def describe(self) -> list[str]:
        where = ""
        if self.layers is not None:
            where = f" of layer{'s'[: len(self.layers) > 1]} {', '.join(map(str, self.layers))}"
        return [
            f"{name.rpartition('_')[0]}: new values of {int(np.size(values)):,} weights{where}"
            for name, values in sorted(self.values.items())
        ]

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Self:
        layers = settings["layers"]
        values: dict[str, Array] = dict(below(arrays, "values"))
        return cls(values, None if layers is None else whole_numbers(layers))


def begins(name: str, beginning: str) -> bool:
    """Whether the path of a leaf begins with these whole parts; its letters may be left out."""
    return beginning in (name, name.rpartition("_")[0]) or name.startswith(f"{beginning}.")


def _with_values(leaf: jax.Array, *, values: Array, layers: tuple[int, ...] | None) -> jax.Array:
    new = jnp.asarray(values).astype(leaf.dtype)
    return new if layers is None else leaf.at[np.asarray(layers)].set(new)


def _layer_faults(
    shapes: Mapping[str, tuple[int, ...]], layers: tuple[int, ...] | None
) -> list[str]:
    """Return what is wrong with layers of leaves of these shapes, a clause each."""
    if layers is None:
        return []
    if not layers or len(set(layers)) < len(layers):
        return [f"layers {list(layers)}: expected different ones"]
    faults = []
    for name, shape in shapes.items():
        if not name.rpartition("_")[2].startswith("L"):
            faults.append(f'"{name}" has no layers')
        elif not all(0 <= layer < shape[0] for layer in layers):
            faults.append(f'layers {list(layers)} of "{name}": it has 0 to {shape[0] - 1}')
    return faults

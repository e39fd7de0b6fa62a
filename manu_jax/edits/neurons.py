"""Written neurons: whole neurons of the decoder's MLPs with weights of their own.

They take the place of neurons that are there, or are appended. Appending makes the MLPs of all
layers wider alike, as a config.json has one `intermediate_size`: a layer that is not changed gets
neurons whose weights are zero, and every old weight stays where it was.
"""

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
    check,
    placed,
    shape_fault,
    whole_numbers,
)
from manu_jax.edits.widening import widened, with_model
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.mlp import TowerMlp, neuron_leaves
from manu_jax.types import Array, ManuError

TOWER = "text"
ARRAYS = ("gate_LDR", "up_LDR", "down_LRD")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class WrittenNeurons(LeafEdit):
    """R neurons in each of some layers of the decoder; L counts these layers. float32.

    layers: their numbers. places: which neurons of each layer are written over; None: the neurons
    are appended. A bias of a written neuron is 0. num_neurons: of the decoder before the edit, in
    all layers; 0: not known.
    """

    gate_LDR: Array
    up_LDR: Array
    down_LRD: Array
    layers: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    places: tuple[tuple[int, ...], ...] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    num_neurons: int = dataclasses.field(default=0, metadata={"static": True})

    kind: ClassVar[str] = "neurons"

    @property
    def separable(self) -> bool:
        return True

    @classmethod
    def new(
        cls,
        loaded: Loaded,
        *,
        layers: Sequence[int],
        places: Sequence[Sequence[int]] | None = None,
        count: int,
        key: jax.Array,
    ) -> "WrittenNeurons":
        """Return `count` new neurons in each of `layers`: gate and up from N(0, 1 / D), down 0.

        Raises ManuError where the decoder has no gated MLPs, no such layers or no such neurons.
        """
        mlp = _mlp(loaded.model)
        if count < 1:
            raise ManuError(f"neurons to write: no neurons: count is {count}. Give a larger one.")
        if places is not None and any(np.ndim(row) != 1 for row in places):
            raise ManuError(
                f"neurons to write: places: expected a list of {count} neurons for each layer, got "
                f"{places}. Give others."
            )
        shape_LDR = (len(layers), mlp.width, count)
        gate, up = jax.random.split(key)
        edit = cls(
            jax.random.normal(gate, shape_LDR) * mlp.width**-0.5,
            jax.random.normal(up, shape_LDR) * mlp.width**-0.5,
            jnp.zeros((len(layers), count, mlp.width)),
            layers=tuple(int(layer) for layer in layers),
            places=None if places is None else tuple(tuple(map(int, row)) for row in places),
            num_neurons=mlp.num_layers * mlp.num_neurons,
        )
        faults = edit.faults(loaded)
        if faults:
            raise ManuError(f"neurons to write: {'; '.join(faults)}. Give others.")
        return edit

    @property
    def count(self) -> int:
        """Neurons in each changed layer, R."""
        return self.down_LRD.shape[1]

    def scaled(self, factor: float) -> "WrittenNeurons":
        """Return the same neurons with `factor` times their outputs; 0: they do nothing."""
        return dataclasses.replace(self, down_LRD=self.down_LRD * factor)

    def edited(self, model: Any) -> Any:
        """Return the model with the neurons, wider where they are appended; see `LeafEdit`."""
        return super().edited(model if self.places is not None else widened(model, self.count))

    def apply(self, loaded: Loaded) -> Loaded:
        """Return a new Loaded with the neurons; its config says how many there are."""
        found = super().apply(loaded)
        return found if self.places is not None else with_model(found, found.model)

    def undo(self, edited: Loaded, original: Loaded) -> Loaded:
        """Return `edited` without these neurons; of appended ones, the last are cut."""
        if self.places is not None:
            return super().undo(edited, original)
        check(self, original)
        numbers = [_mlp(one.model).num_neurons for one in (edited, original)]
        if numbers[0] - self.count != numbers[1]:
            raise ManuError(
                f"{self.name} can't be undone: of {numbers[0]:,} neurons a layer, {self.count:,} "
                f"are to go, but the original has {numbers[1]:,}. Undo later edits first."
            )
        model = widened(edited.model, -self.count)
        return placed(with_model(edited, model))

    def faults(self, loaded: Loaded) -> list[str]:
        mlp = _mlp(loaded.model)
        if not mlp.gated:
            return ["the decoder's MLPs have no gates, which a written neuron has"]
        faults = []
        wrong = [layer for layer in self.layers if not 0 <= layer < mlp.num_layers]
        if wrong or not self.layers or len(set(self.layers)) < len(self.layers):
            faults.append(
                f"layers {list(self.layers)}: expected different ones from 0 to "
                f"{mlp.num_layers - 1}"
            )
        count, num_layers = np.shape(self.down_LRD)[1], len(self.layers)
        shape_LDR = (num_layers, mlp.width, count)
        faults += shape_fault("gate_LDR", self.gate_LDR, shape_LDR)
        faults += shape_fault("up_LDR", self.up_LDR, shape_LDR)
        faults += shape_fault("down_LRD", self.down_LRD, (num_layers, count, mlp.width))
        if not count:
            faults.append("no neurons")
        if self.places is not None and (
            len(self.places) != num_layers
            or any(len(row) != count or len(set(row)) < count for row in self.places)
            or any(not 0 <= place < mlp.num_neurons for row in self.places for place in row)
        ):
            faults.append(
                f"places: expected {count} different ones from 0 to {mlp.num_neurons - 1} for each "
                "changed layer"
            )
        return faults

    def changes(self, model: Any) -> Changes:
        rows = {
            "gate": jnp.swapaxes(self.gate_LDR, 1, 2),
            "up": jnp.swapaxes(self.up_LDR, 1, 2),
            "down": self.down_LRD,
        }
        return {
            path: functools.partial(_written, rows=rows.get(name, 0.0), index=index)
            for name, path, index in self._indices(_mlp(model))
        }

    def restorations(self, model: Any) -> Restorations:
        return {
            path: functools.partial(_taken_back, index=index)
            for _, path, index in self._indices(_mlp(model))
        }

    def describe(self) -> list[str]:
        count, total = len(self.layers) * self.count, self.num_neurons
        verb = "wrote" if self.places is not None else "appended"
        if not total:
            return [f"{TOWER}: {verb} {count:,} neurons"]
        joint = "of" if self.places is not None else "to"
        return [
            f"{TOWER}: {verb} {count:,} {joint} {total:,} neurons ({count / total * 100:.2f} %)"
        ]

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Self:
        places = settings["places"]
        if set(arrays) != set(ARRAYS) or any(array.ndim != 3 for array in arrays.values()):
            raise ValueError(f"expected {', '.join(ARRAYS)} of three axes")
        return cls(
            **{name: arrays[name] for name in ARRAYS},
            layers=whole_numbers(settings["layers"]),
            places=None if places is None else tuple(map(whole_numbers, places)),
            num_neurons=int(settings["num_neurons"]),
        )

    def _indices(self, mlp: TowerMlp) -> list[tuple[str, str, Any]]:
        """Return (name, path, index of the written neurons' weights) of each leaf.

        What is indexed is [L, R, …], whichever axis of the leaf is F. Appended neurons are the last
        of a widened MLP.
        """
        first = mlp.num_neurons - self.count
        own = tuple(range(first, mlp.num_neurons))
        places = self.places if self.places is not None else (own,) * len(self.layers)
        layers_L1, places_LR = np.asarray(self.layers)[:, None], np.asarray(places)
        return [
            (name, path, (layers_L1, *[slice(None)] * (axis - 1), places_LR))
            for name, (path, axis) in neuron_leaves(mlp).items()
        ]


def _mlp(model: Any) -> TowerMlp:
    return model.mlps()[TOWER]


def _written(leaf: jax.Array, *, rows: Any, index: Any) -> jax.Array:
    # What differentiates it would else search both for the last of several values of an entry, with
    # an array as large as the leaf.
    return leaf.at[index].set(jnp.asarray(rows, leaf.dtype), unique_indices=True)


def _taken_back(leaf: jax.Array, source: jax.Array, *, index: Any) -> jax.Array:
    return leaf.at[index].set(source[index])

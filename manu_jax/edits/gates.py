"""Gates as an edit: real-valued factors of neurons, in the weights.

The weights that read a neuron's output, its column of `down_proj` or `fc2`, are multiplied by its
gate: in float32 this is the forward pass with these gates, up to rounding.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.arrays import check_arrays
from manu_jax.edits.leafwise import Changes, LeafEdit, Restorations, along, below
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.mlp import neuron_leaves
from manu_jax.types import Array, Neurons, neuron_faults


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class GateEdit(LeafEdit):
    """Factors of the neurons of some towers, {tower: [L, F] float32}; 1 changes nothing."""

    gates: Neurons

    kind: ClassVar[str] = "gates"
    name: ClassVar[str] = "the gates' edit"

    @property
    def separable(self) -> bool:
        return False

    def as_gates(self) -> Neurons:
        """Return the gates that do the same in a forward pass."""
        return dict(self.gates)

    def faults(self, loaded: Loaded) -> list[str]:
        return neuron_faults(self.gates, loaded.towers)

    def changes(self, model: Any) -> Changes:
        return {
            path: lambda leaf, gate_LF=gate_LF, axis=axis: _gated(leaf, gate_LF, axis)
            for path, gate_LF, axis in self._leaves(model)
        }

    def restorations(self, model: Any) -> Restorations:
        return {
            path: lambda leaf, source, gate_LF=gate_LF, axis=axis: jnp.where(
                along(gate_LF, leaf, axis) != 1, source, leaf
            )
            for path, gate_LF, axis in self._leaves(model)
        }

    def describe(self) -> list[str]:
        lines = []
        for tower, gate_LF in sorted(self.gates.items()):
            gates = np.asarray(gate_LF)
            count, total = int(np.sum(gates != 1)), gates.size
            mean = float(gates[gates != 1].mean()) if count else 1.0
            lines.append(
                f"{tower}: scaled {count:,} of {total:,} neurons ({count / total * 100:.2f} %) by "
                f"{mean:.2f} on average"
            )
        return lines

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Self:
        check_arrays(arrays, "its arrays", dtype="float32", num_axes=2)
        gates: Neurons = dict(below(arrays, "gates"))
        return cls(gates)

    def _leaves(self, model: Any) -> list[tuple[str, Array, int]]:
        """Return (path of what reads the neurons, gates, axis of F) of each tower."""
        towers, found = model.mlps(), []
        for tower, gate_LF in self.gates.items():
            last = towers[tower].matrices[-1].short_name
            path, axis = neuron_leaves(towers[tower])[last]
            found.append((path, gate_LF, axis))
        return found


def _gated(leaf: jax.Array, gate_LF: Array, axis: int) -> jax.Array:
    gates = along(gate_LF, leaf, axis).astype(jnp.float32)
    return (leaf.astype(jnp.float32) * gates).astype(leaf.dtype)

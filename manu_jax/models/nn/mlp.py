"""The MLP, and what a neuron is: its weights, its gate, its captured value, its place on disk."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from manu_jax.models.hf.tables import Entry
from manu_jax.models.nn.capture import Moments, TowerCapture, position_moments, reduce_tokens
from manu_jax.models.nn.layers import ACTIVATIONS, project, random_weight
from manu_jax.parallel import constrain


class Mlp(nnx.Module):
    """The feed-forward block, and the one place where a neuron is defined, gated and measured.

    Gated: down(act(gate x) · up x). Plain: down(act(up x)), the `fc1` and `fc2` of vision towers.
    A neuron is one entry of what enters `down`. output_width: D of what comes out, if it is another
    than that of what goes in.
    """

    def __init__(
        self,
        key: jax.Array,
        *,
        num_layers: int,
        width: int,
        num_neurons: int,
        activation: str,
        gated: bool,
        bias: bool,
        output_width: int | None = None,
    ):
        gate, up, down = jax.random.split(key, 3)
        L, D, F = num_layers, width, num_neurons
        if gated:
            self.gate_LDF = random_weight(gate, (L, D, F), D)
        self.up_LDF = random_weight(up, (L, D, F), D)
        self.down_LFD = random_weight(down, (L, F, output_width or D), 2 * L * F)
        if bias:
            if gated:
                self.gate_bias_LF = nnx.Param(jnp.zeros((L, F)))
            self.up_bias_LF = nnx.Param(jnp.zeros((L, F)))
            self.down_bias_LD = nnx.Param(jnp.zeros((L, output_width or D)))
        self.gated, self.bias, self.activation = gated, bias, activation

    def __call__(
        self,
        x_BTD: jax.Array,
        gate_BF: jax.Array | None = None,
        capture: TowerCapture | None = None,
    ) -> tuple[jax.Array, Any]:
        """Return the block's output [B, T, D] and what `measure` asks for.

        gate_BF: factors of the neurons, [F] for all examples or [B, F]. The second result is None,
        the neurons reduced to [B, F] (after their gates), or with "position" the Moments of each
        matrix.
        """
        act = ACTIVATIONS[self.activation]
        up_BTF = project(x_BTD, self.up_LDF[...])
        if self.bias:
            up_BTF += self.up_bias_LF[...][None, None]
        if self.gated:
            gate_BTF = project(x_BTD, self.gate_LDF[...])
            if self.bias:
                gate_BTF += self.gate_bias_LF[...][None, None]
            z_BTF = act(gate_BTF) * up_BTF
        else:
            gate_BTF = None
            z_BTF = act(up_BTF)
        if gate_BF is not None:
            factors = gate_BF.astype(z_BTF.dtype)
            z_BTF = z_BTF * (factors[:, None] if factors.ndim == 2 else factors[None, None])
        z_BTF = constrain(z_BTF, "batch", None, "neurons")
        y_BTD = project(z_BTF, self.down_LFD[...])
        if self.bias:
            y_BTD += self.down_bias_LD[...][None, None]
        if capture is None:
            return y_BTD, None
        if capture.spec.reduction == "position":
            return y_BTD, self._matrix_moments(gate_BTF, up_BTF, y_BTD, capture)
        return y_BTD, reduce_tokens(z_BTF, capture)

    def _matrix_moments(self, gate_BTF, up_BTF, y_BTD, capture: TowerCapture) -> dict[str, Moments]:
        """Return the moments of each matrix's output rows, as the authors' code hooks them."""
        if self.gated:
            outputs = {"gate_proj": gate_BTF, "up_proj": up_BTF, "down_proj": y_BTD}
        else:
            outputs = {"fc1": up_BTF, "fc2": y_BTD}
        return {name: position_moments(output, capture) for name, output in outputs.items()}


@dataclasses.dataclass(frozen=True)
class TowerMlp:
    """A tower's MLPs: path of the module, sizes, and which weights it has. width: of the output."""

    path: str
    num_layers: int
    num_neurons: int
    width: int
    gated: bool
    bias: bool


def neuron_leaves(mlp: TowerMlp) -> dict[str, tuple[str, int]]:
    """Return {name: (path, axis of F)} of the weights that belong to a neuron."""
    if mlp.gated:
        leaves = {"gate": ("gate_LDF", 2), "up": ("up_LDF", 2), "down": ("down_LFD", 1)}
        biases = {"gate_bias": ("gate_bias_LF", 1), "up_bias": ("up_bias_LF", 1)}
    else:
        leaves = {"fc1": ("up_LDF", 2), "fc2": ("down_LFD", 1)}
        biases = {"fc1_bias": ("up_bias_LF", 1)}
    chosen = leaves | (biases if mlp.bias else {})
    return {name: (f"{mlp.path}.{leaf}", axis) for name, (leaf, axis) in chosen.items()}


def row_leaves(mlp: TowerMlp) -> dict[str, dict[str, tuple[str, int]]]:
    """Return {matrix: {"weight" or "bias": (path, axis of the row)}}, under the names of HF."""
    matrices = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
    rows = {}
    for matrix, name in (matrices if mlp.gated else {"fc1": "up", "fc2": "down"}).items():
        letters, bias = ("LFD", "LD") if name == "down" else ("LDF", "LF")
        rows[matrix] = {"weight": (f"{mlp.path}.{name}_{letters}", 2)}
        if mlp.bias:
            rows[matrix]["bias"] = (f"{mlp.path}.{name}_bias_{bias}", 1)
    return rows


def matrix_rows(mlp: TowerMlp) -> dict[str, tuple[int, int]]:
    """Return {matrix: (layers, output rows)}, under the names of HF."""
    down = "down_proj" if mlp.gated else "fc2"
    return {
        name: (mlp.num_layers, mlp.width if name == down else mlp.num_neurons)
        for name in row_leaves(mlp)
    }


def gated_rows(num_neurons: int, width: int) -> dict[str, int]:
    """Return the output rows of a gated MLP's matrices, under the names of HF."""
    return {"gate_proj": num_neurons, "up_proj": num_neurons, "down_proj": width}


def mlp_table(mlp: TowerMlp, name: str) -> list[Entry]:
    """Return the table of a tower's gated MLPs, the beginning of whose names is `name`."""
    matrices = {"gate": ("gate_proj", "FD"), "up": ("up_proj", "FD"), "down": ("down_proj", "DF")}
    table = []
    for matrix, (theirs, axes) in matrices.items():
        letters, bias = ("LFD", "LD") if matrix == "down" else ("LDF", "LF")
        table.append(Entry(f"{mlp.path}.{matrix}_{letters}", f"{name}{theirs}.weight", axes))
        if mlp.bias:
            path = f"{mlp.path}.{matrix}_bias_{bias}"
            table.append(Entry(path, f"{name}{theirs}.bias", bias[1:]))
    return table

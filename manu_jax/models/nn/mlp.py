"""The MLP, and what a neuron is: its weights, its gate, what is captured, its names on disk."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from manu_jax.models.hf.tables import Entry
from manu_jax.models.nn.capture import TowerCapture, position_moments, reduce_tokens
from manu_jax.models.nn.layers import ACTIVATIONS, in_rows, project, random_weight
from manu_jax.parallel import constrain


@dataclasses.dataclass(frozen=True)
class Matrix:
    """One matrix of an MLP: its name in Hugging Face's files, and the leaves that it fills.

    short_name: of its share of a neuron, in masks and in names of statistics.
    """

    name: str
    short_name: str
    weight: str
    bias: str


# Of a gated MLP, and of a plain one, in the order in which they are applied.
MATRICES: dict[bool, tuple[Matrix, ...]] = {
    True: (
        Matrix("gate_proj", "gate", "gate_LDF", "gate_bias_LF"),
        Matrix("up_proj", "up", "up_LDF", "up_bias_LF"),
        Matrix("down_proj", "down", "down_LFD", "down_bias_LD"),
    ),
    False: (
        Matrix("fc1", "fc1", "up_LDF", "up_bias_LF"),
        Matrix("fc2", "fc2", "down_LFD", "down_bias_LD"),
    ),
}


class Mlp(nnx.Module):
    """The feed-forward block, and the one place where a neuron is defined, gated and captured.

    Gated: down(act(gate x) · up x). Plain: down(act(up x)), the `fc1` and `fc2` of vision towers.
    A neuron is one entry of what enters `down`. config: of the tower; its num_layers, width,
    num_neurons and activation are the MLPs', except num_layers where it is given. input_width: D of
    the input, where it differs from the output's.
    """

    def __init__(
        self,
        key: jax.Array,
        config: Any,
        *,
        gated: bool,
        bias: bool,
        num_layers: int | None = None,
        input_width: int | None = None,
    ):
        gate, up, down = jax.random.split(key, 3)
        L, D, F = num_layers or config.num_layers, input_width or config.width, config.num_neurons
        if gated:
            self.gate_LDF = random_weight(gate, (L, D, F), D)
        self.up_LDF = random_weight(up, (L, D, F), D)
        self.down_LFD = random_weight(down, (L, F, config.width), 2 * L * F)
        if bias:
            if gated:
                self.gate_bias_LF = nnx.Param(jnp.zeros((L, F)))
            self.up_bias_LF = nnx.Param(jnp.zeros((L, F)))
            self.down_bias_LD = nnx.Param(jnp.zeros((L, config.width)))
        self.gated, self.bias, self.activation = gated, bias, config.activation

    def __call__(
        self,
        x_BTD: jax.Array,
        gate_BF: jax.Array | None = None,
        capture: TowerCapture | None = None,
    ) -> tuple[jax.Array, Any]:
        """Return the block's output [B, T, D] and what was captured.

        gate_BF: factors of the neurons, [F] for all examples or [B, F]. Captured: None, the neurons
        reduced to [B, F] (after their gates), or with "position" the Moments of each matrix.
        """
        act = ACTIVATIONS[self.activation]
        up_BTF = project(x_BTD, self.up_LDF[...])
        if self.bias:
            up_BTF += self.up_bias_LF[...][None, None]
        if self.gated:
            gate_BTF = project(x_BTD, self.gate_LDF[...])
            if self.bias:
                gate_BTF += self.gate_bias_LF[...][None, None]
            outputs = (gate_BTF, up_BTF)
            z_BTF = act(gate_BTF) * up_BTF
        else:
            outputs = (up_BTF,)
            z_BTF = act(up_BTF)
        if gate_BF is not None:
            z_BTF = scaled(z_BTF, gate_BF)
        z_BTF = constrain(z_BTF, "batch", None, "neurons")
        y_BTD = project(z_BTF, self.down_LFD[...])
        if self.bias:
            y_BTD += self.down_bias_LD[...][None, None]
        if capture is None:
            return y_BTD, None
        if capture.spec.reduction == "position":
            # Of each matrix's output, where the authors' code has its hooks.
            pairs = zip(MATRICES[self.gated], (*outputs, y_BTD), strict=True)
            return y_BTD, {matrix.name: position_moments(x, capture) for matrix, x in pairs}
        return y_BTD, reduce_tokens(z_BTF, capture)


@jax.custom_vjp
def scaled(z_BTF: jax.Array, gate: jax.Array) -> jax.Array:
    """Return the neurons times their gates, [F] or [B, F].

    The gradient with respect to the gates, Σ z · ∂L/∂z over tokens, is summed in float32 whatever
    the model's dtype; the terms are fused into the sum and never kept.
    """
    factors = gate.astype(z_BTF.dtype)
    return z_BTF * (factors[:, None] if factors.ndim == 2 else factors[None, None])


def _scaled_forward(z_BTF: jax.Array, gate: jax.Array) -> tuple[jax.Array, Any]:
    return scaled(z_BTF, gate), (z_BTF, gate)


def _scaled_backward(
    saved: tuple[jax.Array, jax.Array], dz_BTF: jax.Array
) -> tuple[jax.Array, jax.Array]:
    z_BTF, gate = saved
    terms_BTF = in_rows(dz_BTF.astype(jnp.float32) * z_BTF.astype(jnp.float32))
    dgate = terms_BTF.sum(axis=1 if gate.ndim == 2 else (0, 1))
    return scaled(dz_BTF, gate), dgate.astype(gate.dtype)


scaled.defvjp(_scaled_forward, _scaled_backward)


@dataclasses.dataclass(frozen=True)
class TowerMlp:
    """A tower's MLPs: path of the module, sizes, and which weights it has. width: of the output."""

    path: str
    num_layers: int
    num_neurons: int
    width: int
    gated: bool
    bias: bool

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        return MATRICES[self.gated]


def neuron_leaves(mlp: TowerMlp) -> dict[str, tuple[str, int]]:
    """Return {name: (path, axis of F)} of the weights that belong to a neuron."""
    weights = {matrix.short_name: matrix.weight for matrix in mlp.matrices}
    biases = {f"{matrix.short_name}_bias": matrix.bias for matrix in mlp.matrices if mlp.bias}
    return {
        name: (f"{mlp.path}.{leaf}", _letters(leaf).index("F"))
        for name, leaf in (weights | biases).items()
        if "F" in _letters(leaf)
    }


def row_leaves(mlp: TowerMlp) -> dict[str, dict[str, tuple[str, int]]]:
    """Return {matrix: {"weight" or "bias": (path, axis of the output row)}}, by the names of HF."""
    rows = {}
    for matrix in mlp.matrices:
        leaves = {"weight": matrix.weight} | ({"bias": matrix.bias} if mlp.bias else {})
        rows[matrix.name] = {
            kind: (f"{mlp.path}.{leaf}", len(_letters(leaf)) - 1) for kind, leaf in leaves.items()
        }
    return rows


def matrix_rows(mlp: TowerMlp) -> dict[str, tuple[int, int]]:
    """Return {matrix: (layers, output rows)}, by the names of HF."""
    sizes = {"F": mlp.num_neurons, "D": mlp.width}
    return {
        matrix.name: (mlp.num_layers, sizes[_letters(matrix.weight)[-1]]) for matrix in mlp.matrices
    }


def mlp_table(mlp: TowerMlp, root: str, first_layer: int = 0) -> list[Entry]:
    """Return the table of a tower's MLPs, whose names in files begin with `root`."""
    table = []
    for matrix in mlp.matrices:
        leaves = {"weight": matrix.weight} | ({"bias": matrix.bias} if mlp.bias else {})
        for kind, leaf in leaves.items():
            # In the files the output row comes first.
            axes = _letters(leaf)[:0:-1]
            name = f"{root}{matrix.name}.{kind}"
            table.append(Entry(f"{mlp.path}.{leaf}", name, axes, first_layer))
    return table


def _letters(leaf: str) -> str:
    return leaf.rpartition("_")[2]

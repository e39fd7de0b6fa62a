"""Rounding: the weights of all layers' matrices in fewer bits.

An edit that is small beside the weights may be rounded away, and what it hid comes back (Zhang et
al. 2024, arXiv 2410.16454). bf16 rounds every weight. int8 and int4 round the matrices of layers
and connectors to the nearest of 2^bits − 1 values, symmetric about 0, with one scale per output
channel; embeddings, heads, norms and biases stay as they are.
"""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax.evaluation.audit.attack import Attack, Attacked, AuditRow
from manu_jax.leaves import matrix_axes, path_name
from manu_jax.models.loaded import Loaded

BITS = {"int8": 8, "int4": 4}


def measure(attacked: Attacked) -> Iterable[AuditRow]:
    """Yield a row for each number format and form."""
    questions = attacked.questions
    for variant in ("bf16", *BITS):
        right = attacked.answered(rounded(attacked.loaded, variant), questions)
        yield from attacked.rows("rounding", questions, right, variant=variant)


def rounded(loaded: Loaded, name: str) -> Loaded:
    """Return the model with its weights rounded to "bf16", "int8" or "int4", in its own dtype."""
    return loaded.replace_model(_rounded(loaded.model, name))


@functools.partial(jax.jit, static_argnames="name")
def _rounded(model: Any, name: str) -> Any:
    """One program for the whole model: leaf by leaf each shape would be a compilation."""

    def visit(path: Any, leaf: jax.Array) -> jax.Array:
        if name == "bf16":
            # XLA may take a conversion and its way back for nothing
            return jax.lax.reduce_precision(leaf, exponent_bits=8, mantissa_bits=7)
        axes = matrix_axes(path_name(path))
        return leaf if axes is None else round_matrix(leaf, axes[0], BITS[name])

    return jax.tree_util.tree_map_with_path(visit, model)


def round_matrix(weight: jax.Array, inputs: tuple[int, ...], bits: int) -> jax.Array:
    """Return a weight rounded to `bits`, one scale for each output channel (and layer).

    inputs: its input axes. The largest weight of a channel keeps its value.
    """
    highest = 2 ** (bits - 1) - 1
    values = weight.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(values).max(axis=inputs, keepdims=True), 1e-30) / highest
    return (jnp.round(values / scale) * scale).astype(weight.dtype)


ATTACK = Attack(
    measure, False, "Rounding", "fewer bits round the edit away, and the answer is back"
)

"""The parts that towers are made of: norms and projections.

The MLP is in `mlp.py`, what becomes of queries, keys and values in `attention.py`.

Parameters are stacked over layers (`q_LDNH`); a scan hands each step the slice of its layer, still
in the module's form. Inside a layer the slice has no L, though its name keeps it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint

from manu_jax.config import Remat

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
}

# What the backward pass recomputes: everything in a layer, all but the plain matmuls, nothing.
REMATS: dict[Remat, Callable[[Callable], Callable]] = {
    "all": lambda body: jax.checkpoint(body, prevent_cse=False),
    "dots": lambda body: jax.checkpoint(
        body, prevent_cse=False, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    ),
    "none": lambda body: body,
}


def random_weight(key: jax.Array, shape: tuple[int, ...], fan_in: int) -> nnx.Param:
    """Return a parameter of normal numbers with variance 1 / fan_in.

    What a layer adds to the residual stream is given a fan-in 2 L times as large, so that L layers
    together add as much as one would (Radford et al. 2019, section 2.3).
    """
    return nnx.Param(jax.random.normal(key, shape) * fan_in**-0.5)


def rms_norm(
    x_BTD: jax.Array, scale_D: jax.Array, epsilon: float, *, unit_offset: bool = False
) -> jax.Array:
    """Return x scaled to root mean square 1 (in float32), times the scale.

    x may have further axes before the last. unit_offset: the scale is an offset from 1, and is
    multiplied before the cast back (Gemma).
    """
    wide_BTD = x_BTD.astype(jnp.float32)
    mean_BT1 = jnp.mean(jnp.square(wide_BTD), axis=-1, keepdims=True)
    normal_BTD = wide_BTD * jax.lax.rsqrt(mean_BT1 + epsilon)
    scale = jnp.expand_dims(scale_D, range(x_BTD.ndim - 1))
    if unit_offset:
        return (normal_BTD * (1 + scale.astype(jnp.float32))).astype(x_BTD.dtype)
    return scale * normal_BTD.astype(x_BTD.dtype)


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """Return cap · tanh(x / cap); x itself where the cap is None."""
    return x if cap is None else jnp.tanh(x / cap) * cap


def layer_norm(
    x_BTD: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float
) -> jax.Array:
    """Return x with mean 0 and variance 1 (in float32), times the scale, plus the bias."""
    wide_BTD = x_BTD.astype(jnp.float32)
    centred_BTD = wide_BTD - jnp.mean(wide_BTD, axis=-1, keepdims=True)
    variance_BT1 = jnp.mean(jnp.square(centred_BTD), axis=-1, keepdims=True)
    normal_BTD = centred_BTD * jax.lax.rsqrt(variance_BT1 + epsilon)
    return (normal_BTD * scale_D[None, None] + bias_D[None, None]).astype(x_BTD.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
    """A weight with a low-rank adapter beside it (LoRA, Hu et al. 2021, arXiv 2106.09685).

    It replaces the weight in its module: `project` adds scale · dropout(x)·A·B to x·W. weight_DE:
    W. down_DR, up_RE: A and B, with the input axes and the output axes of W. key: of the dropout,
    None where nothing is dropped. In a stack of layers all have the leading axis L.
    """

    weight_DE: jax.Array
    down_DR: jax.Array
    up_RE: jax.Array
    key: jax.Array | None
    scale: float = dataclasses.field(metadata={"static": True})
    # The share of the adapter's inputs that are set to 0
    dropout: float = dataclasses.field(metadata={"static": True})

    def __getitem__(self, index: Any) -> "Adapted":
        """Return itself: modules unpack their parameters by `[...]`."""
        if index is not ...:
            raise TypeError("a weight with an adapter has no parts")
        return self


def project(
    x_BTD: jax.Array, weight_DE: jax.Array | Adapted, *, inputs: int = 1, dtype: Any = None
) -> jax.Array:
    """Return x times the weight, summed over the last `inputs` axes of x, the first of the weight.

    One product of two matrices, all tokens in one axis: with more axes the backward pass on CPU
    copies its operands transposed and takes nearly twice as long. dtype: of the result.
    """
    if isinstance(weight_DE, Adapted):
        y_BTE = project(x_BTD, weight_DE.weight_DE, inputs=inputs, dtype=dtype)
        if weight_DE.key is not None:
            kept = 1 - weight_DE.dropout
            is_kept_BTD = jax.random.bernoulli(weight_DE.key, kept, x_BTD.shape)
            x_BTD = jnp.where(is_kept_BTD, x_BTD / kept, 0)
        low_BTR = project(x_BTD, weight_DE.down_DR, inputs=inputs)
        return y_BTE + weight_DE.scale * project(low_BTR, weight_DE.up_RE, dtype=dtype)
    leading, summed = x_BTD.shape[:-inputs], weight_DE.shape[:inputs]
    y_TE = jnp.einsum(
        "TD,DE->TE",
        x_BTD.reshape(math.prod(leading), math.prod(summed)),
        weight_DE.reshape(math.prod(summed), -1),
        preferred_element_type=dtype,
    )
    return y_TE.reshape(*leading, *weight_DE.shape[inputs:])


class Attention(nnx.Module):
    """The four projections of attention, for a stack of layers.

    config: of the tower; its num_layers, width, num_heads, num_key_heads and head_size are those of
    the projections, except num_layers where it is given.
    """

    def __init__(
        self,
        key: jax.Array,
        config: Any,
        *,
        qkv_bias: bool,
        output_bias: bool,
        num_layers: int | None = None,
    ):
        q, k, v, o = jax.random.split(key, 4)
        L, D = num_layers or config.num_layers, config.width
        N, K, H = config.num_heads, config.num_key_heads, config.head_size
        self.q_LDNH = random_weight(q, (L, D, N, H), D)
        self.k_LDKH = random_weight(k, (L, D, K, H), D)
        self.v_LDKH = random_weight(v, (L, D, K, H), D)
        self.o_LNHD = random_weight(o, (L, N, H, D), 2 * L * N * H)
        if qkv_bias:
            self.q_bias_LNH = nnx.Param(jnp.zeros((L, N, H)))
            self.k_bias_LKH = nnx.Param(jnp.zeros((L, K, H)))
            self.v_bias_LKH = nnx.Param(jnp.zeros((L, K, H)))
        if output_bias:
            self.o_bias_LD = nnx.Param(jnp.zeros((L, D)))
        self.qkv_bias, self.output_bias = qkv_bias, output_bias

    def qkv(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return queries [B, T, N, H], keys and values [B, T, K, H] of one layer."""
        return self.queries(x_BTD), *self.keys_and_values(x_BTD)

    def queries(self, x_BTD: jax.Array) -> jax.Array:
        """Return the queries of one layer. [B, T, N, H]."""
        q_BTNH = project(x_BTD, self.q_LDNH[...])
        return q_BTNH + self.q_bias_LNH[...][None, None] if self.qkv_bias else q_BTNH

    def keys_and_values(self, x_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the keys and values of one layer. Each [B, S, K, H]."""
        k_BSKH = project(x_BSD, self.k_LDKH[...])
        v_BSKH = project(x_BSD, self.v_LDKH[...])
        if self.qkv_bias:
            k_BSKH += self.k_bias_LKH[...][None, None]
            v_BSKH += self.v_bias_LKH[...][None, None]
        return k_BSKH, v_BSKH

    def output(self, mixed_BTNH: jax.Array) -> jax.Array:
        """Return the heads' results joined. [B, T, D]."""
        y_BTD = project(mixed_BTNH, self.o_LNHD[...], inputs=2)
        return y_BTD + self.o_bias_LD[...][None, None] if self.output_bias else y_BTD


def in_rows(x_BTF: jax.Array) -> jax.Array:
    """Keep the last axis contiguous in memory on NVIDIA GPUs; a sum over tokens needs it there.

    Their compiler else wants the summed tokens to be neighbours, and copies for that all that x is
    made of.
    """
    return jax.lax.platform_dependent(x_BTF, cuda=_row_major, default=lambda x_BTF: x_BTF)


def _row_major(x_BTF: jax.Array) -> jax.Array:
    return with_layout_constraint(x_BTF, Layout(tuple(range(x_BTF.ndim))))

"""Kernels of attention: cuDNN's on NVIDIA GPUs, splash attention of Pallas on TPUs.

`attention.py` chooses among them. Both take what `attend` takes and make no [T, S] scores of all
heads.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

CUDNN_MULTIPLE = 8  # of the tokens of a mask, so that its rows are aligned
CUDNN_EVEN = 2  # of tokens without one; JAX refuses the backward pass of an odd number
# Tokens of one block of splash attention, the one that pads least and then the largest. More than
# these do not fit into the vector memory of v5e at a head of 256.
BLOCKS = (512, 384, 256)
LANES = 128  # a head has a multiple of them on TPU
FILLING = -1  # the segment of tokens that fill up a block

Kernel = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Pattern:
    """What a mask [B, T, S] is made of, for kernels that skip whole blocks; T is S.

    segment_BS int: tokens attend within their own segment; None: all are one. Real tokens attend to
    the same tokens as in the mask; padding may attend to padding. window: how many of the last
    tokens are seen, a scalar; None: all. windows: each value that it takes, None for one of S or
    more, which means all. is_causal: no token attends to later ones.
    """

    segment_BS: jax.Array | None = None
    is_causal: bool = False
    window: jax.Array | None = None
    windows: tuple[int | None, ...] = ()


def cudnn(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_BTS: jax.Array | None,
    *,
    scale: float,
    is_causal: bool = False,
    implementation: Any = "cudnn",
) -> jax.Array:
    """Return what `attend` returns, by cuDNN's flash attention.

    is_causal: the mask is of the last tokens at most, so that half of the blocks are left out.
    implementation: "xla" runs the same arguments anywhere. The mask becomes a bias [B, 1, T, S] of
    0 and −2e12; its gradient is not asked for.
    """
    num_queries, num_keys = q_BTNH.shape[1], k_BSKH.shape[1]
    # Without a mask cuDNN is told the true lengths where it needs even ones
    multiple = CUDNN_EVEN if mask_BTS is None else CUDNN_MULTIPLE
    extra_T, extra_S = (-size % multiple for size in (num_queries, num_keys))
    has_lengths = mask_BTS is None and extra_T + extra_S > 0
    q_BTNH = _longer(q_BTNH, extra_T)
    k_BSKH, v_BSKH = _longer(k_BSKH, extra_S), _longer(v_BSKH, extra_S)
    mask_BNTS = None
    if mask_BTS is not None:
        mask_BTS = jnp.broadcast_to(mask_BTS, (len(mask_BTS), num_queries, num_keys))
        mask_BNTS = jnp.pad(mask_BTS, ((0, 0), (0, extra_T), (0, extra_S)))[:, None]

    def mixed(
        q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BNTS: jax.Array | None
    ) -> jax.Array:
        B = len(q_BTNH)
        return jax.nn.dot_product_attention(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            mask=mask_BNTS,
            scale=scale,
            is_causal=is_causal,
            query_seq_lengths=jnp.full(B, num_queries, jnp.int32) if has_lengths else None,
            key_value_seq_lengths=jnp.full(B, num_keys, jnp.int32) if has_lengths else None,
            implementation=implementation,
        )

    return _in_batches(mixed)(q_BTNH, k_BSKH, v_BSKH, mask_BNTS)[:, :num_queries]


def splash(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    pattern: Pattern,
    *,
    scale: float,
    cap: float | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Return what `attend` returns, by splash attention of Pallas on TPU.

    Tokens are filled up to whole blocks, and heads to whole lanes. interpret: run it anywhere.
    """
    B, T, N, H = q_BTNH.shape
    block = min(BLOCKS, key=lambda block: (T + -T % block, -block))
    extra_T, extra_H = -T % block, -H % LANES
    scaled_BTNH = q_BTNH * jnp.asarray(scale, q_BTNH.dtype)
    room = ((0, 0), (0, extra_T), (0, 0), (0, extra_H))
    heads = [jnp.pad(x, room).swapaxes(1, 2) for x in (scaled_BTNH, k_BSKH, v_BSKH)]
    segment_BT = pattern.segment_BS
    if segment_BT is None and extra_T:
        segment_BT = jnp.zeros((B, T), jnp.int32)
    if segment_BT is not None:
        segment_BT = jnp.pad(
            segment_BT.astype(jnp.int32), ((0, 0), (0, extra_T)), constant_values=FILLING
        )

    def mixed(window: int | None) -> jax.Array:
        kernel = _splash_kernel(
            N, T + extra_T, block, window=window, pattern=pattern, cap=cap, interpret=interpret
        )
        mixed_BNTH = jax.vmap(kernel)(*heads, segment_BT)
        return mixed_BNTH.swapaxes(1, 2)[:, :T, :, :H]

    bounds = sorted({min(window or T, T) for window in pattern.windows})
    if pattern.window is None or not bounds:
        return mixed(None)
    branches = [lambda bound=bound: mixed(None if bound == T else bound) for bound in bounds]
    which = jnp.searchsorted(jnp.asarray(bounds), jnp.minimum(pattern.window, T))
    return jax.lax.switch(which, branches)


def _splash_kernel(
    num_heads: int,
    num_tokens: int,
    block: int,
    *,
    window: int | None,
    pattern: Pattern,
    cap: float | None,
    interpret: bool,
) -> Kernel:
    """Return (q, k, v [heads, tokens, H], segments [tokens] or None) -> [heads, tokens, H]."""
    # Pallas for TPU takes a second to import, and is of no use elsewhere.
    from jax.experimental.pallas.ops.tpu import splash_attention

    shape = (num_tokens, num_tokens)
    if window is not None:
        mask = splash_attention.LocalMask(
            shape, (window - 1, 0 if pattern.is_causal else window - 1), 0
        )
    elif pattern.is_causal:
        mask = splash_attention.CausalMask(shape)
    else:
        mask = splash_attention.FullMask(shape)
    blocks = splash_attention.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([mask] * num_heads),
        block_sizes=blocks,
        attn_logits_soft_cap=cap,
        interpret=interpret,
    )

    def mixed(
        q_NTH: jax.Array, k_KSH: jax.Array, v_KSH: jax.Array, segment_T: jax.Array | None
    ) -> Any:
        ids = None if segment_T is None else splash_attention.SegmentIds(segment_T, segment_T)
        return kernel(q_NTH, k_KSH, v_KSH, segment_ids=ids)

    return mixed


def _in_batches(function: Kernel) -> Kernel:
    """Return the function of (q, k, v, mask) so that `jax.vmap` over it makes a larger batch.

    JAX's own rule for cuDNN's attention refuses masks that are the same for all heads. The backward
    pass runs the function anew: only so can it be a function of a batch, too.
    """

    def pulled(
        heads: tuple[jax.Array, ...], mask: jax.Array | None, change: jax.Array
    ) -> tuple[jax.Array, ...]:
        return jax.vjp(lambda *heads: function(*heads, mask), *heads)[1](change)

    forward, backward = _folded(function), _folded(pulled)
    attention = jax.custom_vjp(forward)
    attention.defvjp(
        lambda q, k, v, mask: (forward(q, k, v, mask), ((q, k, v), mask)),
        lambda kept, change: (*backward(*kept, change), None),
    )
    return attention


def _folded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of batches whose axis of `jax.vmap` becomes a part of the batch."""
    folded = jax.custom_batching.custom_vmap(function)

    @folded.def_vmap
    def rule(size: int, is_mapped: Any, *arguments: Any) -> tuple[Any, Any]:
        def joined(x: jax.Array, is_mapped: bool) -> jax.Array:
            x = x if is_mapped else jnp.broadcast_to(x[None], (size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        result = folded(*jax.tree.map(joined, arguments, tuple(is_mapped)))
        result = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), result)
        return result, jax.tree.map(lambda _: True, result)

    return folded


def _longer(x_BTNH: jax.Array, extra: int) -> jax.Array:
    return jnp.pad(x_BTNH, ((0, 0), (0, extra), (0, 0), (0, 0)))

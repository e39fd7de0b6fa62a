"""Attention: softmax(q·k)·v, by a kernel where there is one.

The scores [B, N, T, S] in float32 are the largest arrays of a long prompt. A kernel makes them
block by block and keeps none; its backward pass makes them anew. Which form runs follows from where
the program will run, the mesh's devices or the default one:

    GPU (NVIDIA)  cuDNN's flash attention: bfloat16 or float16, heads of up to 128 (256 from Hopper
                  on), any mask, no soft cap
    TPU           splash attention of Pallas: bfloat16, masks that a Pattern describes, soft caps
    elsewhere     the reference: every score is made

What a kernel does not take, the reference does, as it does everything with `use("reference")`.
Fewer than FEWEST_QUERIES queries, as a decoded token, have few scores: the reference, too.

A query that may attend nowhere (a padding token) gets the mean of all values from the reference,
the mean of all or of those before it from cuDNN, and what its segment gives from splash. So padding
differs between forms. It is finite in each, and nothing that counts reads it.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from manu_jax.config import AttentionForm
from manu_jax.models.nn.kernels import Kernel, Pattern, cudnn, splash
from manu_jax.models.nn.layers import soft_cap
from manu_jax.parallel import BATCH_AXES

FEWEST_QUERIES = 128
MASK_IS_CONSTANT = (0, 11)  # before this jax, cuDNN's backward pass makes a mask's gradient, too

_form: AttentionForm = "auto"


def use(form: AttentionForm) -> None:
    """Let programs that are traced from now on use kernels ("auto") or none ("reference")."""
    global _form
    if form != _form:
        _form = form
        jax.clear_caches()  # JAX does not know what traced programs were made with


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_BTS: jax.Array | None,
    *,
    pattern: Pattern | None = None,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """Return softmax(q·k · scale)·v, with the softmax in float32. [B, T, N, H].

    Each key head serves N / K query heads. mask_BTS: True where a query may attend, its axis T of
    size 1 where all may attend to the same; None: everywhere. pattern: what the mask is made of,
    None where it can't be said. scale: H**-0.5 if None. cap: of the scores' soft cap; None: none.
    """
    if mask_BTS is None and pattern is None and q_BTNH.shape[1] == k_BSKH.shape[1]:
        pattern = Pattern()
    factor = scale or q_BTNH.shape[-1] ** -0.5
    platform = kernel_platform(q_BTNH, pattern=pattern, cap=cap)
    if platform == "gpu":
        is_causal = pattern is not None and pattern.is_causal
        return _per_device(
            lambda q, k, v, mask: cudnn(q, k, v, mask, scale=factor, is_causal=is_causal),
            (q_BTNH, k_BSKH, v_BSKH),
            mask_BTS,
        )
    if platform == "tpu":
        assert pattern is not None
        parts = (pattern.segment_BS, pattern.window)
        return _per_device(
            lambda q, k, v, parts: splash(
                q,
                k,
                v,
                dataclasses.replace(pattern, segment_BS=parts[0], window=parts[1]),
                scale=factor,
                cap=cap,
            ),
            (q_BTNH, k_BSKH, v_BSKH),
            parts,
        )
    k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    return reference(q_BTNH, k_BKSH, v_BKSH, mask_BTS, scale=scale, cap=cap)


def attend_by_head(
    q_BTNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    mask_BTS: jax.Array | None,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """Return what `attend` returns, from keys and values with heads before tokens."""
    if kernel_platform(q_BTNH, pattern=None, cap=cap) is None:
        return reference(q_BTNH, k_BKSH, v_BKSH, mask_BTS, scale=scale, cap=cap)
    k_BSKH, v_BSKH = k_BKSH.swapaxes(1, 2), v_BKSH.swapaxes(1, 2)
    return attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale=scale, cap=cap)


def reference(
    q_BTNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    mask_BTS: jax.Array | None,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """Return what `attend_by_head` returns; all scores [B, N, T, S] are made, in float32.

    A query that may attend nowhere gets the mean of all values.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BKSH.shape[1]
    scaled_BTNH = q_BTNH * jnp.asarray(scale or H**-0.5, q_BTNH.dtype)
    # Heads before tokens, so that the big products with [T, S] are plain matrix products: otherwise
    # the backward pass on CPU copies the scores transposed and takes half as long again.
    q_BKRH = scaled_BTNH.swapaxes(1, 2).reshape(B, K, N // K * T, H)
    scores_BKRS = jnp.matmul(q_BKRH, k_BKSH.mT, preferred_element_type=jnp.float32)
    scores_BKRS = soft_cap(scores_BKRS, cap)
    if mask_BTS is not None:
        lowest = jnp.finfo(jnp.float32).min
        scores_BNTS = scores_BKRS.reshape(B, N, T, -1)
        scores_BNTS = jnp.where(mask_BTS[:, None], scores_BNTS, lowest)
        scores_BKRS = scores_BNTS.reshape(scores_BKRS.shape)
    highest = jax.lax.stop_gradient(scores_BKRS.max(axis=-1, keepdims=True))
    weights_BKRS = jnp.exp(scores_BKRS - highest)
    mixed_BKRH = jnp.matmul(
        weights_BKRS.astype(v_BKSH.dtype), v_BKSH, preferred_element_type=jnp.float32
    )
    # Dividing after the sum over S saves one pass over the [T, S] scores.
    mixed_BKRH = mixed_BKRH / weights_BKRS.sum(axis=-1, keepdims=True)
    return mixed_BKRH.astype(q_BTNH.dtype).reshape(B, N, T, H).swapaxes(1, 2)


def kernel_platform(q_BTNH: jax.Array, *, pattern: Pattern | None, cap: float | None) -> str | None:
    """Return "gpu" or "tpu" where a kernel of that platform takes these queries, otherwise None."""
    num_queries, head_size = q_BTNH.shape[1], q_BTNH.shape[-1]
    if _form == "reference" or num_queries < FEWEST_QUERIES:
        return None
    platform, is_half = _platform(), q_BTNH.dtype in (jnp.bfloat16, jnp.float16)
    if platform == "gpu" and is_half and cap is None:
        fits = head_size % 8 == 0 and head_size <= _largest_cudnn_head()
        return platform if fits else None
    if platform == "tpu" and q_BTNH.dtype == jnp.bfloat16 and pattern is not None:
        return platform
    return None


def _per_device(kernel: Kernel, heads: tuple[jax.Array, ...], rest: Any) -> jax.Array:
    """Return kernel(*heads, rest), each device of the mesh with its rows and heads.

    heads: queries [B, T, N, H], keys and values [B, S, K, H]. rest: arrays by rows or scalars.
    Kernels know nothing of other devices. What does not divide, every device does whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel(*heads, rest)
    q_BTNH, k_BSKH, v_BSKH = heads
    B, num_heads, num_key_heads = len(q_BTNH), q_BTNH.shape[2], k_BSKH.shape[2]
    rows = BATCH_AXES if B % math.prod(mesh.shape[axis] for axis in BATCH_AXES) == 0 else None
    parts = mesh.shape["tensor"]
    tensor = "tensor" if num_heads % math.lcm(num_key_heads, parts) == 0 else None
    if tensor is not None and num_key_heads % parts:
        # Each device has some of a key head's queries, and a copy of that key head.
        copies = math.lcm(num_key_heads, parts) // num_key_heads
        k_BSKH, v_BSKH = (jnp.repeat(x, copies, axis=2) for x in (k_BSKH, v_BSKH))
    of_heads = PartitionSpec(rows, None, tensor, None)
    of_rest = jax.tree.map(
        lambda x: PartitionSpec(rows) if x.ndim and len(x) == B else PartitionSpec(), rest
    )
    return jax.shard_map(
        kernel,
        in_specs=(of_heads, of_heads, of_heads, of_rest),
        out_specs=of_heads,
        check_vma=False,
    )(q_BTNH, k_BSKH, v_BSKH, rest)


def _platform() -> str:
    """Return the platform that a program is traced for: the mesh's, or the default one."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    return "gpu" if platform == "cuda" else platform


def _largest_cudnn_head() -> int:
    """Return the largest head that cuDNN's flash attention takes here; 0: it takes none."""
    if jax.__version_info__ < MASK_IS_CONSTANT:
        return 0
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    major = re.match(r"(\d+)\.\d+$", capability)  # of other makers' GPUs it is a name
    generation = 0 if major is None else int(major.group(1))
    return 256 if generation >= 9 else 128 if generation >= 8 else 0

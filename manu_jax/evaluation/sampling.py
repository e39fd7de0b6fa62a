"""Tokens that are drawn, not chosen: by the host's numbers, so that nothing else decides them.

Each answer has random numbers of its own, one a token, made of its name alone. So what is drawn
does not depend on the batch, its size, the mesh, the process or a resumed run.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np


def uniforms(name: str, count: int) -> np.ndarray:
    """Return `count` numbers in [0, 1) that follow from a name. float32."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big")
    return np.random.default_rng(seed).random(count, np.float32)


def drawn(
    logits_BV: jax.Array, uniform_B: jax.Array, *, temperature: float, top_p: float
) -> jax.Array:
    """Return a token of each row, drawn by a number in [0, 1). [B] int32.

    Of the probabilities at `temperature`, the largest are kept whose sum first reaches `top_p`, as
    transformers' warpers do; tokens stand in falling order, and the number says how far to go.
    """
    scaled_BV = logits_BV.astype(jnp.float32) / temperature
    order_BV = jnp.argsort(-scaled_BV, axis=-1)
    p_BV = jax.nn.softmax(jnp.take_along_axis(scaled_BV, order_BV, axis=-1), axis=-1)
    if top_p < 1:
        p_BV = jnp.where(jnp.cumsum(p_BV, axis=-1) - p_BV < top_p, p_BV, 0)
    ends_BV = jnp.cumsum(p_BV, axis=-1)
    place_B = (ends_BV <= uniform_B[:, None] * ends_BV[:, -1:]).sum(axis=-1)
    last_B = (p_BV > 0).sum(axis=-1) - 1
    place_B1 = jnp.minimum(place_B, last_B)[:, None]
    return jnp.take_along_axis(order_BV, place_B1, axis=-1)[:, 0].astype(jnp.int32)

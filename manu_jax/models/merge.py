"""Image features into the places of their image tokens."""

import jax
import jax.numpy as jnp

from manu_jax.types import Array


def merge(
    embeddings_BTD: jax.Array,
    features_BJD: jax.Array,
    feature_index_BT: Array,
    corner_index_BT4: Array | None = None,
    corner_weights_BT4: Array | None = None,
) -> jax.Array:
    """Return the embeddings with row `feature_index` of the example's own features where it is ≥ 0.

    features_BJD: all features of an example, image after image. Where corners are given, it is the
    weighted sum of these four rows there.
    """
    if corner_index_BT4 is None or corner_weights_BT4 is None:
        taken_BTD = _rows(features_BJD, feature_index_BT)
    else:
        taken_BTD = jnp.zeros(embeddings_BTD.shape, jnp.float32)
        for corner in range(4):  # one after the other: no array of four times the features
            rows_BTD = _rows(features_BJD, corner_index_BT4[..., corner]).astype(jnp.float32)
            taken_BTD += rows_BTD * corner_weights_BT4[..., corner, None]
    is_image_BT1 = (feature_index_BT >= 0)[..., None]
    return jnp.where(is_image_BT1, taken_BTD.astype(embeddings_BTD.dtype), embeddings_BTD)


def _rows(features_BJD: jax.Array, index_BT: Array) -> jax.Array:
    return jnp.take_along_axis(features_BJD, jnp.maximum(index_BT, 0)[..., None], axis=1)

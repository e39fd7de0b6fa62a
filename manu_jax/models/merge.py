"""Image features into the places of their image tokens."""

import jax
import jax.numpy as jnp

from manu_jax.types import Array


def merge(embeddings_BTD: jax.Array, features_BJD: jax.Array, feature_index_BT: Array) -> jax.Array:
    """Return the embeddings with row `feature_index` of the example's own features where it is ≥ 0.

    features_BJD: all features of an example, image after image.
    """
    rows_BT1 = jnp.maximum(feature_index_BT, 0)[..., None]
    taken_BTD = jnp.take_along_axis(features_BJD, rows_BT1, axis=1)
    is_image_BT1 = (feature_index_BT >= 0)[..., None]
    return jnp.where(is_image_BT1, taken_BTD.astype(embeddings_BTD.dtype), embeddings_BTD)

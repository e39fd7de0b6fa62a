"""Activation patching: a decoder goes on from hidden states that another model made."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax.models.nn.multimodal import Multimodal
from manu_jax.types import Array, Batch


def patched_after_each_layer(
    model: Multimodal,
    source: Multimodal,
    batch: Batch,
    *,
    at_BA: Array,
    measure: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Return what `measure` makes of the logits at `at_BA`: of the model, and patched, over L.

    measure: from logits [B, A, V] float32 to an array. Patched after a layer, the residual stream
    at these positions is what `source` makes of it there; everywhere else, and in the layers above,
    `model` runs as it is. Both read the batch's own patches of images. Both streams go through the
    layers once; at each one a patched stream goes through those above it.
    """
    index_BA1 = jnp.asarray(at_BA)[..., None]
    rows_B1 = jnp.arange(len(at_BA))[:, None]
    num_layers = model.config.text.num_layers
    first_BTD, step, layers = model.by_layers(batch, keeps_keys=True)
    first_of_source_BTD, source_step, source_layers = source.by_layers(batch)

    def measured(h_BTD: jax.Array) -> jax.Array:
        h_BAD = jnp.take_along_axis(h_BTD, index_BA1, axis=1)
        return measure(model.text.logits_of_stream(h_BAD))

    def patched(h_BTD: jax.Array, theirs_BTD: jax.Array, number: jax.Array) -> jax.Array:
        taken_BAD = jnp.take_along_axis(theirs_BTD, index_BA1, axis=1)
        h_BTD = h_BTD.at[rows_B1, at_BA].set(taken_BAD.astype(h_BTD.dtype))

        def go_on(above: jax.Array, h_BTD: jax.Array) -> jax.Array:
            return step(h_BTD, jax.tree.map(lambda leaf: leaf[number + 1 + above], layers))

        return measured(jax.lax.fori_loop(0, num_layers - 1 - number, go_on, h_BTD))

    def after_layer(streams: tuple[jax.Array, jax.Array], xs: tuple[Any, ...]):
        number, layer, source_layer = xs
        h_BTD, theirs_BTD = step(streams[0], layer), source_step(streams[1], source_layer)
        return (h_BTD, theirs_BTD), patched(h_BTD, theirs_BTD, number)

    (h_BTD, _), of_layers = jax.lax.scan(
        after_layer,
        (first_BTD, first_of_source_BTD),
        (jnp.arange(num_layers), layers, source_layers),
    )
    return measured(h_BTD), of_layers

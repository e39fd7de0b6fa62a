"""Activation patching: a decoder goes on from hidden states that another model made."""

import jax
import jax.numpy as jnp

from manu_jax.models.nn.forward import TowerForward
from manu_jax.models.nn.multimodal import Multimodal
from manu_jax.types import Array, Batch


def patched_logits(
    model: Multimodal, source: Multimodal, batch: Batch, *, at_BA: Array, num_layers: int
) -> jax.Array:
    """Return the logits at the positions `at_BA` [B, A, V] float32, with these positions patched.

    There `source` gives the residual stream after the first `num_layers` layers (1 to all of
    them); everywhere else, and in the layers above, `model` runs as it is. Both read the batch's
    own patches of images.
    """
    index_BA1 = jnp.asarray(at_BA)[..., None]
    theirs_BTD = source.hidden(batch, num_layers=num_layers, remat="none")
    taken_BAD = jnp.take_along_axis(theirs_BTD, index_BA1, axis=1)
    batch = model.with_features(batch)  # once for the layers below and above
    h_BTD = model.hidden(batch, num_layers=num_layers, remat="none")
    rows_B1 = jnp.arange(len(h_BTD))[:, None]
    h_BTD = h_BTD.at[rows_B1, at_BA].set(taken_BAD.astype(h_BTD.dtype))
    h_BTD = run_from(model, batch, h_BTD, first_layer=num_layers)
    return model.text.logits(jnp.take_along_axis(h_BTD, index_BA1, axis=1))


def run_from(model: Multimodal, batch: Batch, h_BTD: jax.Array, *, first_layer: int) -> jax.Array:
    """Return the last hidden state [B, T, D] of a residual stream that enters layer `first_layer`.

    The layers below do not run. With first_layer = all layers, only the last norm is left.
    """
    batch = model.with_features(batch)
    positions = batch.positions_BT if batch.rope_BT3 is None else batch.rope_BT3
    return model.text(
        h_BTD,
        batch.attention_mask_BT,
        positions,
        forward=TowerForward(remat="none"),
        first_layer=first_layer,
        **model.beside(batch),
    )[0]

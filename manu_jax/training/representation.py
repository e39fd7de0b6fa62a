"""Losses on the hidden states of one decoder layer."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax.models.nn.layers import Remat
from manu_jax.training.objectives import UnlearnData, decoupled, given, kept
from manu_jax.types import Batch


def rmu(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return γ · RMU(forget) + w · RMU(keep) (Li et al. 2024, arXiv 2403.03218).

    Each is the mean over answer tokens and over D of the squared distance of the hidden state after
    layer `data.layer`: on forget to c · u, where c is the setting `coefficient` and u one random
    unit vector; on keep to the hidden state of vanilla.
    """
    forget = given(data.forget)
    hidden_BTD = _hidden(model, forget, data.layer, remat=remat)
    direction_D = random_direction(data.key, hidden_BTD.shape[-1])
    aim_D = data.settings["coefficient"] * direction_D
    loss = data.settings["forget_weight"] * _mean_square(hidden_BTD - aim_D[None, None], forget)

    def moved(batch: Batch) -> jax.Array:
        hidden_BTD = _hidden(model, batch, data.layer, remat=remat)
        before_BTD = _hidden(jax.lax.stop_gradient(data.reference), batch, data.layer, remat=remat)
        return _mean_square(hidden_BTD - before_BTD, batch)

    loss += kept(data, moved)
    return decoupled(loss, model, data, remat=remat)


def direction_key(seed: int) -> jax.Array:
    """Return the key of a training's direction."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"direction"))


def random_direction(key: jax.Array | None, width: int) -> jax.Array:
    """Return a unit vector, uniform over all directions. [D] float32."""
    # Differs: the authors' draw from [0, 1) makes every entry positive.
    if key is None:
        raise ValueError("the loss draws a direction, and the step gave no key")
    drawn_D = jax.random.normal(key, (width,))
    return drawn_D / jnp.linalg.norm(drawn_D)


def _hidden(model: Any, batch: Batch, layer: int, *, remat: Remat) -> jax.Array:
    hidden_BTD = model.hidden(batch, num_layers=layer + 1, remat=remat)
    return hidden_BTD.astype(jnp.float32)


def _mean_square(difference_BTD: jax.Array, batch: Batch) -> jax.Array:
    """Return the mean square over the answer tokens and D; padding examples do not count."""
    weights_BT = jnp.asarray(batch.loss_weights_BT * batch.example_weights_B[:, None])
    sums_BT = jnp.square(difference_BTD).mean(axis=-1) * weights_BT
    return sums_BT.sum() / jnp.maximum(weights_BT.sum(), 1e-9)

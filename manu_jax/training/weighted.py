"""Gradient ascent with a weight for each token, by how likely the model finds it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax.models.nn.answers import logits_at_answers, token_log_likelihoods
from manu_jax.models.nn.layers import Remat
from manu_jax.training.objectives import UnlearnData, forget_and_keep, given, mean_of_tokens


def wga(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return γ · WGA + w · CE(keep) (Wang et al. 2025, arXiv 2502.19301).

    WGA = the mean over answer tokens of p^β · log p; p^β is a weight, without a gradient.
    """
    beta = data.settings["beta"]
    return _weighted_ascent(lambda log_p_BA: jnp.exp(beta * log_p_BA), model, data, remat=remat)


def satimp(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return γ · SatImp + w · CE(keep) (Yang et al. 2025, arXiv 2505.11953).

    SatImp = the mean over answer tokens of p^β (1 − p)^β₂ · log p; the weight has no gradient. β₂
    is the setting `importance_beta`.
    """
    beta, importance_beta = (data.settings[name] for name in ("beta", "importance_beta"))

    def weight(log_p_BA: jax.Array) -> jax.Array:
        others_BA = jnp.maximum(-jnp.expm1(log_p_BA), 0)  # log p may round to above 0
        return jnp.exp(beta * log_p_BA) * others_BA**importance_beta

    return _weighted_ascent(weight, model, data, remat=remat)


def _weighted_ascent(
    weight: Callable[[jax.Array], jax.Array], model: Any, data: UnlearnData, *, remat: Remat
) -> jax.Array:
    """Return γ · the mean of weight(log p) · log p + w · CE(keep)."""
    logits_BAV, targets = logits_at_answers(model, given(data.forget), remat=remat)
    log_p_BA, _ = token_log_likelihoods(logits_BAV, targets)
    weighted_BA = jax.lax.stop_gradient(weight(log_p_BA)) * log_p_BA
    return forget_and_keep(mean_of_tokens(weighted_BA, targets), model, data, remat=remat)

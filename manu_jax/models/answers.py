"""From logits to what is asked of an answer: its likelihood, its log-odds, its loss.

Token t is predicted from the logits at t − 1; the batch's loss weights mark the answers' tokens.
"""

import jax
import jax.numpy as jnp

from manu_jax.types import Batch


def token_log_likelihoods(logits_BTV: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return log p of each position's next token, and that token's loss weight. [B, T] float32."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    target_BT, weight_BT = _targets(batch)
    chosen_BT = jnp.take_along_axis(logits_BTV, target_BT[..., None], axis=-1)[..., 0]
    return chosen_BT - jax.nn.logsumexp(logits_BTV, axis=-1), weight_BT


def answer_log_likelihood(logits_BTV: jax.Array, batch: Batch) -> jax.Array:
    """Return the answers' log-likelihoods, Σ weight · log p over their tokens. [B] float32."""
    log_p_BT, weight_BT = token_log_likelihoods(logits_BTV, batch)
    return (log_p_BT * weight_BT).sum(axis=1)


def answer_mean_log_likelihood(logits_BTV: jax.Array, batch: Batch) -> jax.Array:
    """Return the answers' mean log-likelihood per token; 0 without answer tokens. [B] float32."""
    log_p_BT, weight_BT = token_log_likelihoods(logits_BTV, batch)
    return _mean(log_p_BT, weight_BT)


def answer_log_odds(logits_BTV: jax.Array, batch: Batch) -> jax.Array:
    """Return the answers' mean of log p − log(1 − p) per token. [B] float32.

    0 without answer tokens. log(1 − p) is the logsumexp of the other tokens' logits, so nothing is
    lost where p is near 1.
    """
    logits_BTV = logits_BTV.astype(jnp.float32)
    target_BT, weight_BT = _targets(batch)
    chosen_BT = jnp.take_along_axis(logits_BTV, target_BT[..., None], axis=-1)[..., 0]
    is_target_BTV = jnp.arange(logits_BTV.shape[-1])[None, None] == target_BT[..., None]
    others_BTV = jnp.where(is_target_BTV, -jnp.inf, logits_BTV)
    return _mean(chosen_BT - jax.nn.logsumexp(others_BTV, axis=-1), weight_BT)


def answer_cross_entropy(logits_BTV: jax.Array, batch: Batch) -> jax.Array:
    """Return the mean of −log p over the weighted tokens of the whole batch. Scalar float32."""
    log_p_BT, weight_BT = token_log_likelihoods(logits_BTV, batch)
    weight_BT = weight_BT * batch.example_weights_B[:, None]
    return -(log_p_BT * weight_BT).sum() / jnp.maximum(weight_BT.sum(), 1e-9)


def _targets(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return, at each position, the next token and its weight; the last position has none."""
    target_BT = jnp.roll(jnp.asarray(batch.token_ids_BT), -1, axis=1)
    weight_BT = jnp.roll(jnp.asarray(batch.loss_weights_BT, jnp.float32), -1, axis=1)
    return target_BT, weight_BT.at[:, -1].set(0)


def _mean(values_BT: jax.Array, weight_BT: jax.Array) -> jax.Array:
    return (values_BT * weight_BT).sum(axis=1) / jnp.maximum(weight_BT.sum(axis=1), 1e-9)

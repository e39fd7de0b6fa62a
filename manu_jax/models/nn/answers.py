"""From logits to the measures of an answer: its likelihood, its log-odds, its loss.

Token t is predicted from the logits at t − 1; the batch's loss weights mark the answers' tokens.
Where no other position matters, `logits_at_answers` computes the head for these tokens only: T is
then the answers' length, and Targets say what is predicted there.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax.types import Array, Batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Targets:
    """The token that each logit is to predict: its id, its weight, and the weight of its example.

    token_ids_BT int32 · weights_BT float32 · example_weights_B float32.
    """

    token_ids_BT: jax.Array
    weights_BT: jax.Array
    example_weights_B: Array


def logits_at_answers(model: Any, batch: Batch, **settings: Any) -> tuple[jax.Array, Targets]:
    """Return the logits that predict the answers' tokens [B, A, V], and what they are to predict.

    settings: of the forward pass. A batch without answer positions gives all logits [B, T, V].
    """
    logits_BAV = model(batch, at_BA=batch.answer_index_BA, **settings).logits_BTV
    return logits_BAV, targets_at_answers(batch)


def targets_at_answers(batch: Batch) -> Targets:
    """Return what the logits at the batch's answer positions are to predict. [B, A].

    At all positions [B, T] of a batch without answer positions.
    """
    index_BA, targets = batch.answer_index_BA, targets_of(batch)
    if index_BA is None:
        return targets
    tokens_BA, weights_BA = (
        jnp.take_along_axis(values_BT, jnp.asarray(index_BA), axis=1)
        for values_BT in (targets.token_ids_BT, targets.weights_BT)
    )
    return Targets(tokens_BA, weights_BA, batch.example_weights_B)


def targets_of(batch: Batch | Targets) -> Targets:
    """Return, at each position of a batch, the next token and its weight; the last has none."""
    if isinstance(batch, Targets):
        return batch
    token_ids_BT = jnp.roll(jnp.asarray(batch.token_ids_BT), -1, axis=1)
    weights_BT = jnp.roll(jnp.asarray(batch.loss_weights_BT, jnp.float32), -1, axis=1)
    return Targets(token_ids_BT, weights_BT.at[:, -1].set(0), batch.example_weights_B)


def token_log_likelihoods(
    logits_BTV: jax.Array, batch: Batch | Targets
) -> tuple[jax.Array, jax.Array]:
    """Return log p of each position's next token, and that token's loss weight. [B, T] float32."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    targets = targets_of(batch)
    chosen_BT = jnp.take_along_axis(logits_BTV, targets.token_ids_BT[..., None], axis=-1)[..., 0]
    return chosen_BT - jax.nn.logsumexp(logits_BTV, axis=-1), targets.weights_BT


def answer_log_likelihood(logits_BTV: jax.Array, batch: Batch | Targets) -> jax.Array:
    """Return the answers' log-likelihoods, Σ weight · log p over their tokens. [B] float32."""
    log_p_BT, weight_BT = token_log_likelihoods(logits_BTV, batch)
    return (log_p_BT * weight_BT).sum(axis=1)


def answer_mean_log_likelihood(logits_BTV: jax.Array, batch: Batch | Targets) -> jax.Array:
    """Return the answers' mean log-likelihood per token; 0 without answer tokens. [B] float32."""
    log_p_BT, weight_BT = token_log_likelihoods(logits_BTV, batch)
    return _mean(log_p_BT, weight_BT)


def answer_log_odds(logits_BTV: jax.Array, batch: Batch | Targets) -> jax.Array:
    """Return the answers' mean of log p − log(1 − p) per token. [B] float32.

    0 without answer tokens. log(1 − p) is the logsumexp of the other tokens' logits, so nothing is
    lost where p is near 1.
    """
    logits_BTV = logits_BTV.astype(jnp.float32)
    targets = targets_of(batch)
    chosen_BT = jnp.take_along_axis(logits_BTV, targets.token_ids_BT[..., None], axis=-1)[..., 0]
    is_target_BTV = jnp.arange(logits_BTV.shape[-1])[None, None] == targets.token_ids_BT[..., None]
    others_BTV = jnp.where(is_target_BTV, -jnp.inf, logits_BTV)
    return _mean(chosen_BT - jax.nn.logsumexp(others_BTV, axis=-1), targets.weights_BT)


def answer_cross_entropy(logits_BTV: jax.Array, batch: Batch | Targets) -> jax.Array:
    """Return the mean of −log p over the weighted tokens of the whole batch. Scalar float32."""
    log_p_BT, weight_BT = token_log_likelihoods(logits_BTV, batch)
    weight_BT = weight_BT * batch.example_weights_B[:, None]
    return -(log_p_BT * weight_BT).sum() / jnp.maximum(weight_BT.sum(), 1e-9)


def _mean(values_BT: jax.Array, weight_BT: jax.Array) -> jax.Array:
    return (values_BT * weight_BT).sum(axis=1) / jnp.maximum(weight_BT.sum(axis=1), 1e-9)

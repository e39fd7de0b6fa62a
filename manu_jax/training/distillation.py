"""Losses that teach the model its own distribution, changed where it must forget."""

from typing import Any

import jax
import jax.numpy as jnp

from manu_jax.models.nn.answers import logits_at_answers
from manu_jax.models.nn.layers import Remat
from manu_jax.training.objectives import UnlearnData, forget_and_keep, given, mean_of_tokens


def undial(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return γ · UNDIAL + w · CE(keep) (Dong et al. 2024, arXiv 2402.10052).

    UNDIAL is the cross-entropy of the model with softmax(z − β · onehot(y)), z the logits of
    vanilla and y the true token, mean over the answer tokens.
    """
    forget = given(data.forget)
    logits_BAV, targets = logits_at_answers(model, forget, remat=remat)
    before_BAV, _ = logits_at_answers(jax.lax.stop_gradient(data.reference), forget, remat=remat)
    # Differs: the authors' code averages over prompts and padding too.
    is_true_BAV = jax.nn.one_hot(targets.token_ids_BT, logits_BAV.shape[-1])
    taught_BAV = jax.nn.softmax(
        before_BAV.astype(jnp.float32) - data.settings["beta"] * is_true_BAV
    )
    log_p_BAV = jax.nn.log_softmax(logits_BAV.astype(jnp.float32))
    losses_BA = -(taught_BAV * log_p_BAV).sum(axis=-1)
    return forget_and_keep(mean_of_tokens(losses_BA, targets), model, data, remat=remat)

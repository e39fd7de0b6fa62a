"""What training lowers: functions of a model and a batch to one number."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax.models.answers import answer_cross_entropy, logits_at_answers
from manu_jax.models.layers import Remat
from manu_jax.types import Batch

# (model, batch, what the backward pass recomputes) → the loss, a scalar float32
Objective = Callable[[Any, Batch, Remat], jax.Array]


def cross_entropy_on_answers(model: Any, batch: Batch, remat: Remat) -> jax.Array:
    """Return the mean of −log p over the answer tokens of the batch's examples."""
    return answer_cross_entropy(*logits_at_answers(model, batch, remat=remat))


def cross_entropy_on_all(model: Any, batch: Batch, remat: Remat) -> jax.Array:
    """Return the mean of −log p over all tokens but padding, image tokens and the first one.

    The official training code of MLLMU-Bench has the prompt in its loss, too.
    """
    is_text_BT = batch.attention_mask_BT & (batch.feature_index_BT < 0) & (batch.positions_BT > 0)
    everywhere = dataclasses.replace(batch, loss_weights_BT=is_text_BT.astype(jnp.float32))
    return answer_cross_entropy(model(batch, remat=remat).logits_BTV, everywhere)


# By the config's `train.loss_on`.
OBJECTIVES: dict[str, Objective] = {
    "answer": cross_entropy_on_answers,
    "all": cross_entropy_on_all,
}

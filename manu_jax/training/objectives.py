"""What training minimises: functions of a model and its data to one number.

Two kinds: of one batch, to learn it; and of an UnlearnData, to forget one batch and keep another.
CE is the mean of −log p over a batch's answer tokens. Where the code of MLLMU-Bench and the usual
definition (as in open-unlearning) differ, both are here, and their results are not comparable.

Which objective of the config minimises which losses: recipes.py.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax.models.nn.answers import (
    Targets,
    answer_cross_entropy,
    answer_log_likelihood,
    logits_at_answers,
)
from manu_jax.models.nn.layers import Remat
from manu_jax.training.strangers_target import StrangerTarget, target_kl
from manu_jax.types import Batch

# (model, its data, what the backward pass recomputes) → the loss, a scalar float32
Objective = Callable[[Any, Any, Remat], jax.Array]

# In place of an answer, by refusal tuning.
REFUSALS = (
    "I don't know.",
    "I have no information about that.",
    "I'm not able to say.",
    "That is something I do not know.",
    "I can't answer this question.",
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UnlearnData:
    """One step's facts to forget and to keep, and what an objective needs besides.

    forget, keep: None where the loss does not look at them. reference: a model that is not trained,
    or None where the objective needs none. settings: the objective's own, scalars by name.
    keep_weight: a scalar. decouple: harmless images with the questions that are refused elsewhere,
    and right answers (Prompt-Decouple), or None; decouple_weight: a scalar. preferred: `forget`
    with other answers, example by example, or None. key: of what the loss draws, the same in every
    step, or None. target: what vanilla says of strangers, example by example of `forget`, or None.
    texts: general texts to keep, or None; texts_weight: v, a scalar, their weight against `keep`.
    layer: of the decoder, whose hidden states the loss reads; 0 is the first.
    """

    forget: Batch | None
    keep: Batch | None
    reference: Any
    settings: Mapping[str, jax.Array]
    keep_weight: jax.Array
    decouple: Batch | None = None
    decouple_weight: jax.Array | None = None
    preferred: Batch | None = None
    key: jax.Array | None = None
    target: StrangerTarget | None = None
    texts: Batch | None = None
    texts_weight: jax.Array | None = None
    layer: int = dataclasses.field(default=0, metadata={"static": True})


def cross_entropy_on_answers(model: Any, batch: Batch, remat: Remat) -> jax.Array:
    """Return the mean of −log p over the answer tokens of the batch's examples."""
    return answer_cross_entropy(*logits_at_answers(model, batch, remat=remat))


def gradient_ascent(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return −CE(forget) (Jang et al. 2023, arXiv 2210.01504). Without a bound: it can diverge.

    With a target, KL(target ‖ model) over the answer tokens in its place, which has one.
    """
    forget = given(data.forget)
    if data.target is None:
        loss = -cross_entropy_on_answers(model, forget, remat)
    else:
        logits_BAV, targets = logits_at_answers(model, forget, remat=remat)
        log_q_BAV = jax.nn.log_softmax(logits_BAV.astype(jnp.float32))
        loss = mean_of_tokens(target_kl(log_q_BAV, data.target), targets)
    return decoupled(loss, model, data, remat=remat)


def keep_cross_entropy(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return w · CE(keep): the second pass of the official gradient difference.

    0 in a step without facts to keep, which a joint loss has where the weight is 0.
    """
    return kept(data, lambda batch: cross_entropy_on_answers(model, batch, remat))


def gradient_difference(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return −CE(forget) + w · CE(keep), jointly (Liu et al. 2022, arXiv 2203.12817).

    Differs: gradient_difference_official minimises the first in a pass over the facts to forget,
    then the second in a pass over those to keep; gradient_difference_alternating by turns.
    """
    return gradient_ascent(model, data, remat) + keep_cross_entropy(model, data, remat)


def keep_kl(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return w · KL(vanilla ‖ model), mean over the answer tokens of the batch to keep, if any."""
    return kept(data, lambda batch: kl_from(data.reference, model, batch, remat=remat))


def kl_minimisation(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return −CE(forget) + w · KL(vanilla ‖ model) on keep (TOFU, arXiv 2401.06121).

    Differs: kl_minimisation_official minimises −CE(forget) in a pass, CE(keep) + KL in the next.
    """
    return gradient_ascent(model, data, remat) + keep_kl(model, data, remat)


def keep_cross_entropy_and_kl(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return w · (CE + KL(vanilla ‖ model)) on keep: the official second pass of KL."""
    return keep_cross_entropy(model, data, remat) + keep_kl(model, data, remat)


def npo(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return NPO + w · CE(keep) (Zhang et al. 2024, arXiv 2404.05868).

    NPO = −(2 / β) · mean over examples of log σ(−β (log p − log p of vanilla)), with the sums of
    log p over an answer's tokens.
    """
    forget = given(data.forget)
    found_B, reference_B = (
        answer_log_likelihood(*logits_at_answers(one, forget, remat=remat))
        for one in (model, jax.lax.stop_gradient(data.reference))
    )
    beta = data.settings["beta"]
    losses_B = -2 / beta * jax.nn.log_sigmoid(-beta * (found_B - reference_B))
    loss = mean_of_examples(losses_B, forget) + keep_cross_entropy(model, data, remat)
    return decoupled(loss, model, data, remat=remat)


def npo_official(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return −(2 / β) log σ(β (CE − CE of the reference)) on forget, as MLLMU-Bench's code has it.

    Differs from npo: mean CE of the batch in place of each answer's sum, β 0.4, the reference is a
    model that was tuned on the facts to keep alone, and there is no loss on the facts to keep.
    """
    found, reference = (
        cross_entropy_on_answers(one, given(data.forget), remat)
        for one in (model, jax.lax.stop_gradient(data.reference))
    )
    beta = data.settings["beta"]
    loss = -2 / beta * jax.nn.log_sigmoid(beta * (found - reference))
    return decoupled(loss, model, data, remat=remat)


def idk(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return CE(forget) + w · CE(keep), where the answers to forget are refusals (TOFU's IDK)."""
    found = cross_entropy_on_answers(model, given(data.forget), remat)
    return decoupled(found + keep_cross_entropy(model, data, remat), model, data, remat=remat)


def forget_and_keep(
    forgetting: jax.Array, model: Any, data: UnlearnData, *, remat: Remat
) -> jax.Array:
    """Return γ · the loss that forgets + w · CE(keep), with the Prompt-Decouple term, if any.

    γ is the setting `forget_weight`.
    """
    loss = data.settings["forget_weight"] * forgetting + keep_cross_entropy(model, data, remat)
    return decoupled(loss, model, data, remat=remat)


def kept(data: UnlearnData, loss_of: Callable[[Batch], jax.Array]) -> jax.Array:
    """Return w · (loss(keep) + v · loss(texts)), v the weight of texts; 0 without facts to keep."""
    if data.keep is None:
        return jnp.float32(0)
    loss = loss_of(data.keep)
    if data.texts is not None and data.texts_weight is not None:
        loss += data.texts_weight * loss_of(data.texts)
    return data.keep_weight * loss


def kl_from(reference: Any, model: Any, batch: Batch, *, remat: Remat) -> jax.Array:
    """Return KL(reference ‖ model), mean over the batch's answer tokens."""
    logits_BAV, targets = logits_at_answers(model, batch, remat=remat)
    reference_BAV, _ = logits_at_answers(reference, batch, remat=remat)
    return _kl(reference_BAV, logits_BAV, targets)


def mean_of_examples(values_B: jax.Array, batch: Batch) -> jax.Array:
    """Return the mean over the batch's examples; padding examples do not count."""
    weights_B = jnp.asarray(batch.example_weights_B)
    return (values_B * weights_B).sum() / jnp.maximum(weights_B.sum(), 1e-9)


def mean_of_tokens(values_BT: jax.Array, targets: Targets) -> jax.Array:
    """Return the mean over the weighted tokens of all examples; padding examples do not count."""
    weights_BT = targets.weights_BT * targets.example_weights_B[:, None]
    return (values_BT * weights_BT).sum() / jnp.maximum(weights_BT.sum(), 1e-9)


def given(batch: Batch | None) -> Batch:
    """Return the batch; ValueError where a recipe does not give what its loss looks at."""
    if batch is None:
        raise ValueError("the loss looks at facts that the step did not give")
    return batch


def decoupled(loss: jax.Array, model: Any, data: UnlearnData, *, remat: Remat) -> jax.Array:
    """Return the loss with SafeEraser's Prompt-Decouple term (arXiv 2502.12520), if there is one.

    That is weight · CE of the right answers to harmful questions about harmless images, so that the
    refusal is tied to the image and not to the words alone.
    """
    if data.decouple is None or data.decouple_weight is None:
        return loss
    return loss + data.decouple_weight * cross_entropy_on_answers(model, data.decouple, remat)


def _kl(first_BAV: jax.Array, second_BAV: jax.Array, targets: Targets) -> jax.Array:
    """Return KL(first ‖ second), mean over the weighted tokens; no gradient through `first`."""
    log_p_BAV = jax.lax.stop_gradient(jax.nn.log_softmax(first_BAV.astype(jnp.float32)))
    log_q_BAV = jax.nn.log_softmax(second_BAV.astype(jnp.float32))
    kl_BA = (jnp.exp(log_p_BAV) * (log_p_BAV - log_q_BAV)).sum(axis=-1)
    return mean_of_tokens(kl_BA, targets)

"""What training minimises: functions of a model and its data to one number.

Two kinds: of one batch, to learn it; and of an UnlearnData, to forget one batch and keep another.
CE is the mean of −log p over a batch's answer tokens. Where the code of MLLMU-Bench and the usual
definition (as in open-unlearning) differ, both are here, and their results are not comparable.

A Recipe says which losses an objective of the config minimises, in which order, on which facts:

    joint         one loss of a batch to forget and a batch to keep; an epoch is one pass over the
                  facts to forget
    passes        a pass of the first loss over the facts to forget, then a pass of the second over
                  the facts to keep: an epoch of MLLMU-Bench's code
    alternating   the second loss at every batch to keep, and the first before every k-th of them,
                  k = batches to keep // batches to forget; an epoch is one pass over the facts to
                  keep (MMUnlearner's code, its baselines too)

The facts to keep are those of the sets retain, celebrity and general.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from manu_jax.models.nn.answers import (
    Targets,
    answer_cross_entropy,
    answer_log_likelihood,
    logits_at_answers,
)
from manu_jax.models.nn.layers import Remat
from manu_jax.types import RETRAINED, VANILLA, Batch

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
    or None where the objective needs none. beta, keep_weight: scalars. decouple: harmless images
    with the questions that are refused elsewhere, and right answers (Prompt-Decouple), or None;
    decouple_weight: a scalar.
    """

    forget: Batch | None
    keep: Batch | None
    reference: Any
    beta: jax.Array
    keep_weight: jax.Array
    decouple: Batch | None = None
    decouple_weight: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an objective of the config trains; see the module's docstring.

    losses: one of both kinds of facts ("joint"), or one to forget and one to keep, each with an
    update of its own; () trains nothing. keeps: whether the joint loss looks at facts to keep.
    reference: "vanilla", "retrained" or None. refuses: the answers to forget are refusals. beta: of
    NPO, unless the config gives one. masked: the gradient of the forgetting loss is masked by the
    weights' Fisher information (fisher.py).
    """

    losses: tuple[Objective, ...]
    order: Literal["joint", "passes", "alternating"] = "joint"
    keeps: bool = True
    reference: str | None = None
    refuses: bool = False
    beta: float = 0.1
    masked: bool = False


def cross_entropy_on_answers(model: Any, batch: Batch, remat: Remat) -> jax.Array:
    """Return the mean of −log p over the answer tokens of the batch's examples."""
    return answer_cross_entropy(*logits_at_answers(model, batch, remat=remat))


def gradient_ascent(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return −CE(forget) (Jang et al. 2023, arXiv 2210.01504). Without a bound: it can diverge."""
    return _decoupled(
        -cross_entropy_on_answers(model, _present(data.forget), remat), model, data, remat=remat
    )


def keep_cross_entropy(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return w · CE(keep): the second pass of the official gradient difference."""
    return data.keep_weight * cross_entropy_on_answers(model, _present(data.keep), remat)


def gradient_difference(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return −CE(forget) + w · CE(keep), jointly (Liu et al. 2022, arXiv 2203.12817).

    Differs: gradient_difference_official minimises the first in a pass over the facts to forget,
    then the second in a pass over those to keep; gradient_difference_alternating by turns.
    """
    return gradient_ascent(model, data, remat) + keep_cross_entropy(model, data, remat)


def keep_kl(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return w · KL(vanilla ‖ model), mean over the answer tokens of the batch to keep."""
    logits_BAV, targets = logits_at_answers(model, _present(data.keep), remat=remat)
    reference_BAV, _ = logits_at_answers(data.reference, _present(data.keep), remat=remat)
    return data.keep_weight * _kl(reference_BAV, logits_BAV, targets)


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
    forget = _present(data.forget)
    found_B, reference_B = (
        answer_log_likelihood(*logits_at_answers(one, forget, remat=remat))
        for one in (model, jax.lax.stop_gradient(data.reference))
    )
    weights_B = jnp.asarray(forget.example_weights_B)
    losses_B = -2 / data.beta * jax.nn.log_sigmoid(-data.beta * (found_B - reference_B))
    mean = (losses_B * weights_B).sum() / jnp.maximum(weights_B.sum(), 1e-9)
    loss = mean + keep_cross_entropy(model, data, remat)
    return _decoupled(loss, model, data, remat=remat)


def npo_official(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return −(2 / β) log σ(β (CE − CE of the reference)) on forget, as MLLMU-Bench's code has it.

    Differs from npo: mean CE of the batch in place of each answer's sum, β 0.4, the reference is a
    model that was tuned on the facts to keep alone, and there is no loss on the facts to keep.
    """
    found, reference = (
        cross_entropy_on_answers(one, _present(data.forget), remat)
        for one in (model, jax.lax.stop_gradient(data.reference))
    )
    loss = -2 / data.beta * jax.nn.log_sigmoid(data.beta * (found - reference))
    return _decoupled(loss, model, data, remat=remat)


def idk(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return CE(forget) + w · CE(keep), where the answers to forget are refusals (TOFU's IDK)."""
    found = cross_entropy_on_answers(model, _present(data.forget), remat)
    return _decoupled(found + keep_cross_entropy(model, data, remat), model, data, remat=remat)


# By the name that the config's `unlearn` gives; system_prompt trains nothing.
RECIPES: dict[str, Recipe] = {
    "gradient_ascent": Recipe((gradient_ascent,), keeps=False),
    "gradient_difference": Recipe((gradient_difference,)),
    "gradient_difference_alternating": Recipe((gradient_ascent, keep_cross_entropy), "alternating"),
    "gradient_difference_official": Recipe((gradient_ascent, keep_cross_entropy), "passes"),
    "kl_minimisation": Recipe((kl_minimisation,), reference=VANILLA),
    "kl_minimisation_official": Recipe(
        (gradient_ascent, keep_cross_entropy_and_kl), "passes", reference=VANILLA
    ),
    "npo": Recipe((npo,), reference=VANILLA),
    "npo_official": Recipe((npo_official,), keeps=False, reference=RETRAINED, beta=0.4),
    "idk": Recipe((idk,), refuses=True),
    # Huo et al. 2025, arXiv 2502.11051
    "mmunlearner": Recipe((gradient_ascent, keep_cross_entropy), "alternating", masked=True),
    "system_prompt": Recipe(()),
}


def _present(batch: Batch | None) -> Batch:
    if batch is None:
        raise ValueError("the loss looks at facts that the step did not give")
    return batch


def _decoupled(loss: jax.Array, model: Any, data: UnlearnData, *, remat: Remat) -> jax.Array:
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
    weights_BA = targets.weights_BT * targets.example_weights_B[:, None]
    return (kl_BA * weights_BA).sum() / jnp.maximum(weights_BA.sum(), 1e-9)

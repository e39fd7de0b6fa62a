"""Losses that push an answer's likelihood down, alone or against an answer that is preferred."""

from typing import Any

import jax

from manu_jax.models.nn.answers import (
    answer_log_likelihood,
    answer_mean_log_likelihood,
    logits_at_answers,
)
from manu_jax.models.nn.layers import Remat
from manu_jax.training.objectives import UnlearnData, forget_and_keep, given, mean_of_examples
from manu_jax.types import Batch


def simnpo(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return γ · SimNPO + w · CE(keep) (Fan et al. 2024, arXiv 2410.07163). It has no reference.

    SimNPO = −(2 / β) · mean over examples of log σ(β (−log p / |y| − δ)), |y| the answer's tokens.
    """
    forget, beta = given(data.forget), data.settings["beta"]
    mean_B = answer_mean_log_likelihood(*logits_at_answers(model, forget, remat=remat))
    losses_B = -2 / beta * jax.nn.log_sigmoid(beta * (-mean_B - data.settings["delta"]))
    return forget_and_keep(mean_of_examples(losses_B, forget), model, data, remat=remat)


def dpo(model: Any, data: UnlearnData, remat: Remat) -> jax.Array:
    """Return γ · DPO + w · CE(keep), with the answer to forget as the one that loses.

    DPO = −(2 / β) · mean over examples of log σ(β (gain(preferred) − gain(forget))), where gain is
    log p − log p of vanilla of the whole answer. The preferred answer is a refusal (TOFU, arXiv
    2401.06121), or another plausible one (AltPO, Mekala et al. 2024, arXiv 2409.13474).
    """
    forget, preferred, beta = given(data.forget), given(data.preferred), data.settings["beta"]
    reference = jax.lax.stop_gradient(data.reference)

    def gain_B(batch: Batch) -> jax.Array:
        found_B, before_B = (
            answer_log_likelihood(*logits_at_answers(one, batch, remat=remat))
            for one in (model, reference)
        )
        return found_B - before_B

    losses_B = -2 / beta * jax.nn.log_sigmoid(beta * (gain_B(preferred) - gain_B(forget)))
    return forget_and_keep(mean_of_examples(losses_B, forget), model, data, remat=remat)

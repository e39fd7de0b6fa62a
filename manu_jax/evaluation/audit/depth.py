"""Depth: in how many layers a fact is gone (UDS, the unlearning depth score, arXiv 2605.24614).

For each layer l the hidden states of a source model after it take the place of the vanilla model's
at the positions that predict the answer, and the vanilla model goes on from there:

    Δ_l = mean over the answer's tokens of log p_vanilla − log p_patched

S1 has the retrained model as its source, S2 the model under audit. FT are the layers where
Δ^S1 > 0.05, the layers by which the vanilla model knows the fact.

    UDS = Σ_FT Δ^S1 · clip(Δ^S2 / Δ^S1, 0, 1) / Σ_FT Δ^S1

of each fact, and its mean over the facts that have such layers; 1: erased in all of them, as in the
retrained model, 0: in none. On models of few layers the score misleads, since there is no depth to
speak of; it is measured from eight layers on.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.data.batches import encode_all
from manu_jax.data.forms import forms
from manu_jax.evaluation.audit.attack import Attack, Attacked, AuditRow
from manu_jax.evaluation.batched import not_finite, run_batched
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.answers import targets_at_answers, token_log_likelihoods
from manu_jax.models.nn.patched import patched_after_each_layer
from manu_jax.types import MODALITIES, Batch, Sample

FEWEST_LAYERS = 8
THRESHOLD = 0.05  # nats a token, from which a layer counts


def measure(attacked: Attacked) -> Iterable[AuditRow]:
    """Yield the score of each form; nothing without a retrained model, and on shallow models."""
    vanilla, retrained, section = attacked.vanilla, attacked.retrained, attacked.run.config.evaluate
    is_deep = vanilla.config.text.num_layers >= FEWEST_LAYERS
    # A model under a system prompt is the vanilla one, and its prompts have other positions.
    if retrained is None or not is_deep or attacked.loaded.system_prompt:
        return
    for modality in MODALITIES:
        samples = forms(attacked.facts, modality, vanilla.template)
        first_NL, second_NL = (
            layer_losses(vanilla, source, samples, batch_size=section.batch_size)
            for source in (retrained, attacked.loaded)
        )
        scores_N = depth_scores(first_NL, second_NL)
        has_layers_N = np.isfinite(scores_N)
        if has_layers_N.any():
            people = [sample.key.partition("/")[0] for sample in samples]
            yield attacked.row(
                "depth",
                modality,
                scores_N[has_layers_N].tolist(),
                people=np.asarray(people)[has_layers_N].tolist(),
                metric="uds",
            )


def depth_scores(first_NL: np.ndarray, second_NL: np.ndarray) -> np.ndarray:
    """Return each fact's UDS in [0, 1], NaN where no layer counts. [N].

    first_NL, second_NL: Δ with the retrained model, and with the model under audit, as source.
    """
    counts_NL = first_NL > THRESHOLD
    weight_NL = np.where(counts_NL, first_NL, 0.0)
    ratio_NL = np.clip(second_NL / np.where(counts_NL, first_NL, 1.0), 0, 1)
    total_N = weight_NL.sum(axis=1)
    score_N = (weight_NL * ratio_NL).sum(axis=1) / np.where(total_N > 0, total_N, 1.0)
    return np.where(total_N > 0, score_N, np.nan)


def layer_losses(
    vanilla: Loaded, source: Loaded, samples: Sequence[Sample], *, batch_size: int
) -> np.ndarray:
    """Return Δ_l of each sample for every layer: what patching after it costs. [N, L] nats a token.

    Both models are in memory; they share config, tokenizer and mesh.
    """
    found_NL = np.zeros((len(samples), vanilla.config.text.num_layers))
    step = functools.partial(_patched_losses, source=source.model)
    encoded = encode_all(vanilla, samples)
    for indices, loss_BL in run_batched(
        vanilla, encoded, step, batch_size=batch_size, description="depth, all layers"
    ):
        if not np.isfinite(loss_BL).all():
            raise not_finite(source)
        found_NL[indices] = loss_BL
    return found_NL


@jax.jit
def _patched_losses(model: Any, batch: Batch, *, source: Any) -> jax.Array:
    """Return the mean of log p_vanilla − log p_patched over each example's answer tokens. [B, L].

    One program for all layers.
    """
    index_BA, targets = batch.answer_index_BA, targets_at_answers(batch)
    if index_BA is None:  # every position is patched, as every one predicts
        B, T = batch.token_ids_BT.shape
        index_BA = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
    before_BA, after_LBA = patched_after_each_layer(
        model,
        source,
        batch,
        at_BA=index_BA,
        measure=lambda logits_BAV: token_log_likelihoods(logits_BAV, targets)[0],
    )
    weight_BA = targets.weights_BT
    cost_LB = ((before_BA[None] - after_LBA) * weight_BA[None]).sum(axis=-1)
    return (cost_LB / jnp.maximum(weight_BA.sum(axis=-1), 1e-9)[None]).T


ATTACK = Attack(
    measure,
    False,
    "Depth",
    "some layers still hold what the retrained model's do not",
    is_trace=True,
    left_out="The unlearning depth score needs a retrained model, and a decoder of eight layers or "
    "more: on two layers it misleads.",
)

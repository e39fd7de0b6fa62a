"""How far a model is from another one: KL divergence at the answers' tokens, and truth ratios.

The gold standard of unlearning is a model that never saw the people (*retrained*). A method may
answer right as rarely as it does and yet answer otherwise; these distances measure that.

    kl          mean over the true answers' tokens of KL(reference ‖ model), in nats, over the
                whole vocabulary: a model may be near without one right answer. Without a
                retrained model, KL(p̄ ‖ model), with p̄ what vanilla says of strangers
    truth_ratio of a multiple-choice item, mean p of the wrong options ÷ p of the right one, with p
                the exponential of the mean log p per token (TOFU, Maini et al. 2024, arXiv
                2401.06121, section 2.2.2; the wrong options stand for its perturbed answers, the
                right one for its paraphrased answer)
    ks          the two-sample Kolmogorov–Smirnov statistic of two models' truth ratios, with its
                p-value, which TOFU calls forget quality: below 0.05 the two models differ
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.data.answer_metrics import ks_test
from manu_jax.data.batches import encode_all
from manu_jax.evaluation.batched import not_finite, run_batched
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.answers import logits_at_answers
from manu_jax.training.strangers_target import StrangerTarget, target_kl
from manu_jax.types import Array, Batch, Sample


@dataclasses.dataclass(frozen=True)
class TwoSample:
    """A Kolmogorov–Smirnov test: its statistic in [0, 1], its p-value, and both sizes."""

    value: float
    p: float
    n: int
    n_reference: int


def answer_kl(
    loaded: Loaded, reference: Loaded, samples: Sequence[Sample], *, batch_size: int
) -> np.ndarray:
    """Return the mean KL(reference ‖ model) over each sample's answer tokens. [N] nats.

    Both models are in memory; they share tokenizer and mesh. Raises ManuError where outputs are not
    finite.
    """
    found_N = np.zeros(len(samples))

    def step(model: Any, batch: Batch) -> jax.Array:
        return _kl(model, reference.model, batch)

    for indices, kl_B in run_batched(
        loaded,
        encode_all(loaded, samples),
        step,
        batch_size=batch_size,
        description="distance to the retrained model",
    ):
        if not np.isfinite(kl_B).all():
            raise not_finite(loaded)
        found_N[indices] = kl_B
    return found_N


def stranger_kl(
    loaded: Loaded, samples: Sequence[Sample], target: StrangerTarget, *, batch_size: int
) -> np.ndarray:
    """Return the mean KL(p̄ ‖ model) over each sample's answer tokens. [N] nats.

    target: p̄ of the facts of the samples, in order (training/strangers_target.py). Raises
    ManuError where outputs are not finite.
    """
    found_N = np.zeros(len(samples))
    for indices, kl_B in run_batched(
        loaded,
        encode_all(loaded, samples),
        _stranger_kl,
        batch_size=min(batch_size, len(samples)),
        description="distance to strangers",
        beside=lambda rows, shape: target.rows(rows, shape.num_answers or 0),
    ):
        if not np.isfinite(kl_B).all():
            raise not_finite(loaded)
        found_N[indices] = kl_B
    return found_N


def truth_ratio(log_likelihoods: Mapping[str, float], correct: str) -> float:
    """Return mean p of the wrong options ÷ p of the right one. log_likelihoods: mean per token."""
    right = log_likelihoods[correct]
    wrong = [
        np.exp(value - right) for letter, value in log_likelihoods.items() if letter != correct
    ]
    return float(np.mean(wrong))


def compare_truth_ratios(
    records: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]
) -> TwoSample | None:
    """Return the test of two models' multiple-choice records; None where either has none."""
    ratios, others = (
        [truth_ratio(r["log_likelihoods"], r["correct"]) for r in side if len(r["options"]) > 1]
        for side in (records, reference)
    )
    if not ratios or not others:
        return None
    return TwoSample(*ks_test(ratios, others), len(ratios), len(others))


@jax.jit
def _stranger_kl(model: Any, batch: Batch, target: StrangerTarget) -> Array:
    logits_BAV, targets = logits_at_answers(model, batch, remat="none")
    kl_BA = target_kl(jax.nn.log_softmax(logits_BAV.astype(jnp.float32)), target)
    weights_BA = targets.weights_BT
    return (kl_BA * weights_BA).sum(axis=1) / jnp.maximum(weights_BA.sum(axis=1), 1e-9)


@jax.jit
def _kl(model: Any, reference: Any, batch: Batch) -> Array:
    logits_BAV, targets = logits_at_answers(model, batch, remat="none")
    others_BAV, _ = logits_at_answers(reference, batch, remat="none")
    log_q_BAV, log_p_BAV = (
        jax.nn.log_softmax(values.astype(jnp.float32)) for values in (logits_BAV, others_BAV)
    )
    kl_BA = (jnp.exp(log_p_BAV) * (log_p_BAV - log_q_BAV)).sum(axis=-1)
    weights_BA = targets.weights_BT
    return (kl_BA * weights_BA).sum(axis=1) / jnp.maximum(weights_BA.sum(axis=1), 1e-9)

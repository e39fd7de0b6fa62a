"""How likely a model finds given answers, and whether it would have said them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.data.batches import encode_all
from manu_jax.data.probes import AnswerTokens
from manu_jax.evaluation.batched import not_finite, run_batched
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.answers import logits_at_answers, token_log_likelihoods
from manu_jax.types import Batch, Encoded, ManuError, Neurons, Sample, raise_faults


@dataclasses.dataclass(frozen=True)
class Likelihoods:
    """Likelihoods of the answers of N samples, given their prompts (teacher-forced).

    sum_N: Σ log p over the answer's tokens · mean_N: their mean, nats per token · recalled_N: True
    where every token of the answer is the model's first choice. NumPy.
    """

    sum_N: np.ndarray
    mean_N: np.ndarray
    recalled_N: np.ndarray

    def __len__(self) -> int:
        return len(self.mean_N)


def log_likelihoods(loaded: Loaded, samples: Sequence[Sample], *, batch_size: int) -> Likelihoods:
    """Return the log-likelihoods of the samples' answer segments, in order.

    Raises ManuError for samples without an answer, and where the model's outputs are not finite.
    """
    encoded = encode_answered(loaded, samples)
    found = Likelihoods(
        np.zeros(len(samples)), np.zeros(len(samples)), np.zeros(len(samples), bool)
    )
    for indices, (sum_B, mean_B, recalled_B) in run_batched(
        loaded,
        encoded,
        _likelihoods,
        batch_size=batch_size,
        description="likelihoods",
        features_once=True,
    ):
        if not np.isfinite(sum_B).all():
            raise not_finite(loaded)
        found.sum_N[indices] = sum_B
        found.mean_N[indices] = mean_B
        found.recalled_N[indices] = recalled_B
    return found


def answer_tokens(
    loaded: Loaded, samples: Sequence[Sample], *, batch_size: int
) -> list[AnswerTokens]:
    """Return the answers of the samples token by token, in order; errors as `log_likelihoods`."""
    found = values_at_answers(
        loaded, samples, _tokens, batch_size=batch_size, description="likelihoods"
    )
    return [AnswerTokens(log_p_A.astype(np.float64), is_first_A) for log_p_A, is_first_A in found]


def values_at_answers(
    loaded: Loaded,
    samples: Sequence[Sample],
    step: Callable[[Any, Batch], tuple[jax.Array, ...]],
    *,
    batch_size: int,
    description: str,
) -> list[tuple[np.ndarray, ...]]:
    """Return what `step` gives for the answer tokens of each sample, in order. [A] each.

    step: (model, batch) → arrays [B, A]: log p first, which has to be finite, the tokens' weights
    last, which are not returned. Errors as `log_likelihoods`.
    """
    found: list[tuple[np.ndarray, ...]] = [()] * len(samples)
    for indices, (*values, weight_BA) in run_batched(
        loaded,
        encode_answered(loaded, samples),
        step,
        batch_size=batch_size,
        description=description,
        features_once=True,
    ):
        for row, index in enumerate(indices):
            at_A = weight_BA[row] > 0
            if not np.isfinite(values[0][row][at_A]).all():
                raise not_finite(loaded)
            found[index] = tuple(one[row][at_A] for one in values)
    return found


def encode_answered(loaded: Loaded, samples: Sequence[Sample]) -> list[Encoded]:
    """Return the samples as numbers, in order; ManuError names those without an answer."""
    encoded = encode_all(loaded, samples)
    raise_faults(
        [
            f"{sample.key or 'sample'}: {sample.text!r}"
            for sample, item in zip(samples, encoded, strict=True)
            if not item.loss_weights_T.any()
        ],
        "Samples without an answer to measure:",
    )
    return encoded


def share_right(loaded: Loaded, samples: Sequence[Sample], batch_size: int) -> float:
    """Return the share of samples whose answer is the model's first choice at every token.

    In [0, 1]; teacher-forced, so one forward pass per sample. ManuError where there are none.
    """
    if not samples:
        raise ManuError("share of right answers: no samples. Give at least one.")
    return float(log_likelihoods(loaded, samples, batch_size=batch_size).recalled_N.mean())


def answer_likelihoods(
    model: Any, batch: Batch, gates: Neurons | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return sum and mean of log p over the answers' tokens, and whether all are first choices. [B]

    gates: factors of the neurons, [L, F] each. Pure: to be called inside jit.
    """
    logits_BAV, targets = logits_at_answers(model, batch, gates=gates, remat="none")
    log_p_BA, weight_BA = token_log_likelihoods(logits_BAV, targets)
    is_first_BA = jnp.argmax(logits_BAV, axis=-1) == targets.token_ids_BT
    sum_B = jnp.where(weight_BA > 0, log_p_BA * weight_BA, 0).sum(axis=1)
    mean_B = sum_B / jnp.maximum(weight_BA.sum(axis=1), 1e-9)
    return sum_B, mean_B, (is_first_BA | (weight_BA == 0)).all(axis=1)


_likelihoods = jax.jit(answer_likelihoods)


@jax.jit
def _tokens(model: Any, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return log p, first choice or not, weight of the answers' tokens. [B, A]."""
    logits_BAV, targets = logits_at_answers(model, batch, remat="none")
    log_p_BA, weight_BA = token_log_likelihoods(logits_BAV, targets)
    return log_p_BA, jnp.argmax(logits_BAV, axis=-1) == targets.token_ids_BT, weight_BA

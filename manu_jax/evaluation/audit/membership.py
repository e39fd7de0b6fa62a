"""Membership: whether the model can be seen to have been trained on the facts to forget.

A score of each fact is compared with that of facts of the same kind about people whom no model was
trained on (*held out*, never the people to keep), lower for a fact that was trained on:

    loss      mean −log p of the answer's tokens
    zlib      loss / length of the zlib-compressed answer, in bytes
    min-k     mean −log p of the answer's least likely tokens, max(1, ⌊0.4 n⌋) of n
    min-k++   the same of (log p − μ) / √max(σ², 1e-6), μ and σ² over the vocabulary

    auc       of a fact to forget and a held-out one, how often the former has the lower score
    tpr       share of the facts to forget that are below 99 % of the held-out ones

and of the facts to forget alone, without held-out ones:

    extraction   extraction strength: 1 − k / n with the least k from which on every token of the
                 answer is the model's first choice, 0 if the last is not (Carlini et al. 2021)
    memorised    share of the answer's tokens that are the first choice (exact memorisation)

The scores are open-unlearning's (d3d7cf9). A benchmark that a run writes itself has held-out
people: the same generator invents them with another seed. Other benchmarks have none.
"""

import dataclasses
import functools
import math
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.config import DataSection
from manu_jax.context import Run
from manu_jax.data.answer_metrics import share_that_follows
from manu_jax.data.benchmarks import BenchmarkFormat
from manu_jax.data.forms import forms
from manu_jax.data.record import Benchmark, Fact
from manu_jax.evaluation.audit.attack import Attack, Attacked, AuditRow
from manu_jax.evaluation.likelihood import values_at_answers
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.answers import logits_at_answers
from manu_jax.types import MODALITIES, Batch, Sample

SMALLEST = 0.4  # k of min-k and min-k++
FALSE_ALARMS = 0.01
OTHER_SEED = 1_000_003  # added to the run's: another population


@dataclasses.dataclass(frozen=True)
class TokenScores:
    """The answer's tokens of one sample: log p, (log p − μ) / σ, whether each is first choice."""

    text: str
    log_p_A: np.ndarray
    standard_A: np.ndarray
    is_first_A: np.ndarray


def measure(attacked: Attacked) -> Iterable[AuditRow]:
    """Yield the rows of every score and form; without held-out people, the last two alone."""
    section, template = attacked.run.config.evaluate, attacked.loaded.template
    settings = {"resamples": section.resamples, "seed": attacked.run.config.seed}
    held_out = held_out_facts(attacked.run)
    for modality in MODALITIES:
        forget = forms(attacked.facts, modality, template)
        if not forget:
            continue
        others = forms(held_out, modality, template)
        scores = token_scores(attacked.loaded, [*forget, *others], batch_size=section.batch_size)
        of_forget, of_others = scores[: len(forget)], scores[len(forget) :]
        people = [sample.key.partition("/")[0] for sample in forget]
        for metric, function in (("extraction", extraction), ("memorised", memorised)):
            values = [function(score) for score in of_forget]
            yield attacked.row("membership", modality, values, people=people, metric=metric)
        strangers = [sample.key.partition("/")[0] for sample in others]
        for name, function in SCORES.items() if others else ():
            members, rest = ([function(one) for one in side] for side in (of_forget, of_others))
            value, low, high = auc(members, rest, (people, strangers), **settings)
            fields = {"attack": "membership", "variant": name, "n": len(members)}
            yield AuditRow(
                model=attacked.name,
                modality=modality,
                value=value,
                metric="auc",
                low=low,
                high=high,
                **fields,
            )
            yield AuditRow(
                model=attacked.name,
                modality=modality,
                value=recognised(members, rest),
                metric="tpr",
                **fields,
            )


def held_out_facts(run: Run) -> tuple[Fact, ...]:
    """Return facts about people like those of the benchmark, whom no model was trained on.

    Invented by the benchmark's own generator with another seed; without those who share a name with
    somebody in the benchmark. () where the benchmark has no generator.
    """
    form, section = run.benchmark_format, run.config.data
    if form.write is None:
        return ()
    section = section.model_copy(update={"path": None, "train_path": None})
    invented = _invented(form, section.model_dump_json(), run.config.seed + OTHER_SEED)
    known = {person.name for people in run.benchmark.sets.values() for person in people}
    return tuple(
        fact
        for name in ("forget", "retain")
        for person in invented.sets[name]
        if person.name not in known
        for fact in person.facts
    )


@functools.lru_cache(maxsize=1)  # the retrained model and each method are asked about the same
def _invented(form: BenchmarkFormat, values: str, seed: int) -> Benchmark:
    """Return a benchmark as its generator writes it; values: the section `data`, as JSON."""
    assert form.write is not None
    section = DataSection.model_validate_json(values)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "people"
        form.write(folder, section, seed)
        return form.read(folder, section, seed)


def token_scores(
    loaded: Loaded, samples: Sequence[Sample], *, batch_size: int
) -> list[TokenScores]:
    """Return the scores of the samples' answer tokens, in order (teacher-forced)."""
    found = values_at_answers(
        loaded, samples, _token_scores, batch_size=batch_size, description="membership"
    )
    texts = ("".join(part for part, is_answer in one.segments if is_answer) for one in samples)
    return [TokenScores(text, *values) for text, values in zip(texts, found, strict=True)]


def loss(score: TokenScores) -> float:
    """Return the mean −log p of the answer's tokens."""
    return -float(score.log_p_A.mean())


def loss_per_byte(score: TokenScores) -> float:
    """Return the loss over the length of the compressed answer."""
    return loss(score) / len(zlib.compress(score.text.encode()))


def min_k(score: TokenScores) -> float:
    """Return the mean −log p of the least likely tokens (Shi et al. 2023, arXiv 2310.16789)."""
    return -_lowest(score.log_p_A)


def min_k_plus_plus(score: TokenScores) -> float:
    """Return the same of the standardised log p (Zhang et al. 2024, arXiv 2404.02936)."""
    return -_lowest(score.standard_A)


def extraction(score: TokenScores) -> float:
    """Return the share of the answer, from its end, that follows from the rest by first choices.

    Differs: open-unlearning gives 1 / n where no token is the first choice, so that an answer of
    one token is always extracted.
    """
    return share_that_follows(score.is_first_A)


def memorised(score: TokenScores) -> float:
    """Return the share of the answer's tokens that are the first choice."""
    return float(score.is_first_A.mean())


def auc(
    members: Sequence[float],
    others: Sequence[float],
    people: tuple[Sequence[str], Sequence[str]],
    *,
    resamples: int,
    seed: int,
) -> tuple[float, float | None, float | None]:
    """Return how often a member's score is the lower one, and its 95 % interval.

    A tie counts half. people: whose each value is, of both sides; they are drawn with replacement,
    each side for itself. Bounds are None where a side has one person alone.
    """
    lower_NM = np.less.outer(members, others) + 0.5 * np.equal.outer(members, others)
    sides = [np.unique(np.asarray(side, str), return_inverse=True)[1] for side in people]
    first_NP, second_MP = (np.eye(side.max() + 1)[side] for side in sides)
    sums_PP = first_NP.T @ lower_NM @ second_MP
    counts_PP = first_NP.T @ np.ones(lower_NM.shape) @ second_MP
    value = float(sums_PP.sum() / counts_PP.sum())
    if min(sums_PP.shape) < 2:
        return value, None, None
    random = np.random.default_rng(seed)
    first_RP, second_RP = (
        random.multinomial(size, np.full(size, 1 / size), size=resamples).astype(float)
        for size in sums_PP.shape
    )
    drawn_R = [
        np.einsum("RP,PQ,RQ->R", first_RP, table_PP, second_RP) for table_PP in (sums_PP, counts_PP)
    ]
    low, high = np.percentile(drawn_R[0] / drawn_R[1], [2.5, 97.5])
    return value, float(low), float(high)


def recognised(members: Sequence[float], others: Sequence[float]) -> float:
    """Return the share of members below all but 1 % of the others (TPR at 1 % FPR)."""
    allowed = math.floor(FALSE_ALARMS * len(others))
    bound = np.sort(others)[allowed]
    return float((np.asarray(members) < bound).mean())


SCORES: Mapping[str, Any] = {
    "loss": loss,
    "zlib": loss_per_byte,
    "min-k": min_k,
    "min-k++": min_k_plus_plus,
}


def _lowest(values_A: np.ndarray) -> float:
    count = max(1, math.floor(SMALLEST * len(values_A)))
    return float(np.sort(values_A)[:count].mean())


@jax.jit
def _token_scores(model: Any, batch: Batch) -> tuple[jax.Array, ...]:
    """Return log p, standardised log p, first choice or not, weight of answer tokens. [B, A]."""
    logits_BAV, targets = logits_at_answers(model, batch, remat="none")
    log_p_BAV = jax.nn.log_softmax(logits_BAV.astype(jnp.float32), axis=-1)
    tokens_BA = targets.token_ids_BT
    log_p_BA = jnp.take_along_axis(log_p_BAV, tokens_BA[..., None], axis=-1)[..., 0]
    p_BAV = jnp.exp(log_p_BAV)
    mean_BA = (p_BAV * log_p_BAV).sum(axis=-1)
    variance_BA = (p_BAV * jnp.square(log_p_BAV)).sum(axis=-1) - jnp.square(mean_BA)
    standard_BA = (log_p_BA - mean_BA) / jnp.sqrt(jnp.maximum(variance_BA, 1e-6))
    is_first_BA = jnp.argmax(logits_BAV, axis=-1) == tokens_BA
    return log_p_BA, standard_BA, is_first_BA, targets.weights_BT


ATTACK = Attack(
    measure,
    False,
    "Membership",
    "the facts can be told from facts about people who were never trained on",
    is_trace=True,
)

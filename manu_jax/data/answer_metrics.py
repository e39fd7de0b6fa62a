"""The metrics of published protocols, as open-unlearning codes them. No jax.

    probability             exp(−mean nll), the end token counted
    normalised probability  p / (p + Σ p of the wrong answers + 1e-10)
    truth ratio             wrong / (right + 1e-10): right = exp(−nll of the paraphrased answer),
                            wrong = exp(−mean nll of the perturbed ones), a geometric mean of them
    paper's truth ratio     mean p of the perturbed answers / p of the paraphrased one
    inverse truth ratio     right / wrong, as FIUBench takes it
    prob_mean               right / (right + wrong + 1e-10)
    exact memorisation      share of tokens that are the model's first choice, without the end token
    extraction strength     1 − k / n, k the least with only first choices from k on; 1 / n at least
    ROUGE-L recall          LCS / length of the truth, stemmed (package rouge-score)

nll is the mean −log p of an answer's tokens. Where there are several paraphrased answers, their nll
is averaged too. Source: locuslab/open-unlearning d3d7cf9, src/evals/metrics. `value(response)` is
None where a probe has no such answers.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from manu_jax.data.probes import OVERLAP, AnswerTokens, ProbeMetric, ProbeRecord, ProbeResponse

SMALLEST = 1e-10  # that open-unlearning adds to what it divides by
LARGEST = 700.0  # nats; exp of more is no float


def probability(response: ProbeResponse) -> float | None:
    """Return the probability of the true answer, its geometric mean over tokens."""
    return None if response.truth is None else probability_of(response.truth.mean_nll)


def normalised_probability(response: ProbeResponse) -> float | None:
    """Return the probability of the true answer, normalised by that of the perturbed ones."""
    if response.truth is None or not response.perturbed:
        return None
    return normalised_probability_of(response.truth.mean_nll, nlls(response.perturbed))


def truth_ratio(response: ProbeResponse) -> float | None:
    """Return wrong / right: below 1 where the model prefers what is true."""
    return _of_both(response, truth_ratio_of)


def paper_truth_ratio(response: ProbeResponse) -> float | None:
    """Return the truth ratio of TOFU's paper (arXiv 2401.06121, eq. 1)."""
    return _of_both(response, paper_truth_ratio_of)


def inverse_truth_ratio(response: ProbeResponse) -> float | None:
    """Return right / wrong, FIUBench's truth ratio."""
    return _of_both(response, inverse_truth_ratio_of)


def probability_of_right(response: ProbeResponse) -> float | None:
    """Return right / (right + wrong), open-unlearning's prob_mean."""
    return _of_both(response, probability_of_right_of)


def exact_memorisation(response: ProbeResponse) -> float | None:
    """Return the share of the true answer's tokens that are first choices, without its end."""
    if response.truth is None or len(response.truth.is_first_A) < 2:
        return None
    return float(response.truth.is_first_A[:-1].mean())


def extraction_strength(response: ProbeResponse) -> float | None:
    """Return the share of the true answer that follows from the rest, without its end.

    Odd, as published: 1 / n where not even the last token is the first choice, 0 without tokens.
    """
    if response.truth is None:
        return None
    is_first_A = response.truth.is_first_A[:-1]
    return max(share_that_follows(is_first_A), 1 / len(is_first_A)) if len(is_first_A) else 0.0


def rouge_l_recall(response: ProbeResponse) -> float | None:
    """Return the mean ROUGE-L recall of what was written, stemmed; None where nothing was."""
    truth = response.probe.answer
    found = [rouge_recall(answer, truth)["rougeL"] for answer in response.answers]
    return float(np.mean(found)) if found else None


def rouge_recall(answer: str, truth: str) -> dict[str, float]:
    """Return the recalls {"rouge1", "rouge2", "rougeL"} of a truth with stemming, as published.

    0 of a truth without Latin letters and digits, which rouge-score drops.
    """
    return {name: float(score.recall) for name, score in _rouge(answer, truth)}


def rouge_f(answer: str, truth: str) -> dict[str, float]:
    """Return the F-measures {"rouge1", "rouge2", "rougeL"}, as `rouge_recall`."""
    return {name: float(score.fmeasure) for name, score in _rouge(answer, truth)}


def probability_of(nll: float) -> float:
    """Return exp(−nll)."""
    return math.exp(min(-nll, LARGEST))


def normalised_probability_of(nll: float, wrong: Sequence[float]) -> float:
    """Return p / (p + Σ wrong + 1e-10) of mean nlls."""
    right = probability_of(nll)
    return right / (right + sum(map(probability_of, wrong)) + SMALLEST)


def truth_ratio_of(right: Sequence[float], wrong: Sequence[float]) -> float:
    """Return exp(−mean wrong) / (exp(−mean right) + 1e-10) of mean nlls."""
    return _joint(wrong) / (_joint(right) + SMALLEST)


def paper_truth_ratio_of(right: Sequence[float], wrong: Sequence[float]) -> float:
    """Return the mean probability of the wrong answers over that of the right ones."""
    return float(np.mean([probability_of(nll - float(np.mean(right))) for nll in wrong]))


def inverse_truth_ratio_of(right: Sequence[float], wrong: Sequence[float]) -> float:
    """Return exp(mean wrong − mean right) of mean nlls."""
    return probability_of(float(np.mean(right)) - float(np.mean(wrong)))


def probability_of_right_of(right: Sequence[float], wrong: Sequence[float]) -> float:
    """Return right / (right + wrong + 1e-10) of mean nlls."""
    return _joint(right) / (_joint(right) + _joint(wrong) + SMALLEST)


def closer_to_one(ratio: float) -> float:
    """Return min(r, 1 / (r + 1e-10)), how alike right and wrong are: what is wanted of forget."""
    return min(ratio, 1 / (ratio + SMALLEST))


def true_is_better(ratio: float) -> float:
    """Return max(0, 1 − r) of a truth ratio, what is wanted of all other sets."""
    return max(0.0, 1 - ratio)


def true_is_better_inverse(ratio: float) -> float:
    """Return max(0, 1 − 1 / r) of an inverse truth ratio."""
    return max(0.0, 1 - 1 / max(ratio, SMALLEST))


def open_unlearning(tasks: tuple[str, ...]) -> dict[str, ProbeMetric]:
    """Return what open-unlearning measures of given answers, for the protocol of a benchmark.

    Beside the benchmark's own metrics, and under these names. tasks: whose probes have likelihoods.
    """
    return {
        "exact_memorisation": ProbeMetric(
            exact_memorisation, "exact memorisation", "share of tokens", True, tasks
        ),
        "extraction_strength": ProbeMetric(
            extraction_strength, "extraction strength", "share of the answer", True, tasks
        ),
        "open_unlearning_truth_ratio": ProbeMetric(
            truth_ratio, "truth ratio (open-unlearning)", "wrong / right", False, tasks
        ),
        "tofu_truth_ratio": ProbeMetric(
            paper_truth_ratio, "truth ratio (TOFU’s paper)", "wrong / right", False, tasks
        ),
        "probability_of_right": ProbeMetric(
            probability_of_right, "right of right and wrong", OVERLAP, True, tasks
        ),
    }


def transformed(
    value: Callable[[ProbeResponse], float | None], transform: Callable[[float], float]
) -> Callable[[ProbeResponse], float | None]:
    """Return a metric's function: a transform of another one's value, None where that is."""

    def function(response: ProbeResponse) -> float | None:
        found = value(response)
        return None if found is None else transform(found)

    return function


def share_that_follows(is_first_A: np.ndarray) -> float:
    """Return the share of an answer, from its end, that follows from the rest by first choices."""
    wrong = np.flatnonzero(~np.asarray(is_first_A, bool))
    return 1 - (int(wrong[-1]) + 1 if len(wrong) else 0) / len(is_first_A)


def nlls(answers: Iterable[AnswerTokens]) -> list[float]:
    """Return the mean nll of each answer."""
    return [answer.mean_nll for answer in answers]


def ks_test(values: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Return the statistic and the p-value of the two-sample Kolmogorov–Smirnov test."""
    from scipy.stats import ks_2samp

    with warnings.catch_warnings():
        # Where the exact p-value overflows, scipy takes the asymptotic one.
        warnings.simplefilter("ignore", RuntimeWarning)
        found: Any = ks_2samp(values, others)
    return float(found.statistic), float(found.pvalue)


def forget_quality(ratios: Sequence[float], retrained: Sequence[float]) -> float | None:
    """Return the p-value of the KS test of truth ratios against those of the retrained model.

    None where either has none. The test looks at the order of values alone, so that a truth ratio
    and its inverse give the same.
    """
    return ks_test(ratios, retrained)[1] if len(ratios) and len(retrained) else None


def model_utility(values: Sequence[float | None]) -> float | None:
    """Return the harmonic mean; 0 where a value is 0, None where one is None or there are none."""
    found = [value for value in values if value is not None]
    if not found or len(found) < len(values):
        return None
    return 0.0 if min(found) <= 0 else len(found) / sum(1 / value for value in found)


def values_of(
    records: Iterable[ProbeRecord],
    metric: str,
    *,
    tasks: Sequence[str] | None = None,
    sets: Sequence[str] | None = None,
) -> list[float]:
    """Return the values of a metric in the records of these tasks and sets (None: of all)."""
    return [
        record["metrics"][metric]
        for record in records
        if (tasks is None or record["task"] in tasks)
        and (sets is None or record["set"] in sets)
        and record["metrics"].get(metric) is not None
    ]


def mean_of(records: Iterable[ProbeRecord], metric: str, **chosen: Any) -> float | None:
    """Return the mean of a metric over the records that `values_of` chooses; None of none."""
    found = values_of(records, metric, **chosen)
    return sum(found) / len(found) if found else None


@functools.lru_cache(maxsize=64)  # several metrics look at the same answer, one after the other
def _rouge(answer: str, truth: str) -> tuple[tuple[str, Any], ...]:
    return tuple(_rouge_scorer().score(truth, answer).items())


@functools.cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


def _of_both(
    response: ProbeResponse, function: Callable[[Sequence[float], Sequence[float]], float]
) -> float | None:
    if not response.paraphrased or not response.perturbed:
        return None
    return function(nlls(response.paraphrased), nlls(response.perturbed))


def _joint(answers: Sequence[float]) -> float:
    return probability_of(float(np.mean(answers)))

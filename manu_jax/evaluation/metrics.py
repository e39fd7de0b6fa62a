"""Strings to numbers: the metrics of MLLMU-Bench and their intervals. No jax.

Every metric is a value per item, so that a mean is a sum and a count, and an interval can be drawn
by resampling people: the items of one person are not independent of each other.
"""

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over `n` items and the bounds of its 95 % interval (NaN where there is one person)."""

    value: float
    low: float
    high: float
    n: int


def letter_of(answer: str) -> str:
    """Return the option that a generated answer chooses: its first character, upper-cased.

    "" where the answer is empty (MLLMU-Bench's rule; blanks before the letter do not count).
    """
    return answer.strip()[:1].upper()


def option_of(answer: str, options: Mapping[str, str]) -> str:
    """Return the letter of the option that an answer chooses, however it is put; "" if none or two.

    "The answer is B.", "b)", "(D) Oslo" and the option's own text choose; "A or B" does not, and a
    word that begins with a letter, or the article, is no letter.
    """
    answer = _composed(answer)
    letters = "".join(re.escape(letter) for letter in options)
    said = re.search(
        rf"\b(?:answer|option|choice)\b\s*(?:is|:)?\s*[(\[]?([{letters}])\b", answer, re.I
    )
    # Lone capitals, and a lone letter of either case where it is all or has a bracket or a stop.
    lone = re.findall(
        rf"(?<![\w'’])(?:([{letters}])(?!['’]?\w)|([{letters.lower()}])(?=\s*[).:\]]|\s*$))", answer
    )
    found = {(upper or lower).upper() for upper, lower in lone}
    if re.search(r"(?<!\w)A +(?!(?:or|and|but|is|was|because|since)\b)[a-z]", answer):
        found.discard("A")
    if said and found <= {said[1].upper()}:
        return said[1].upper()
    if not found:
        found = {letter for letter, text in options.items() if contains(answer, text)}
    return found.pop() if len(found) == 1 else ""


def contains(answer: str, *truths: str) -> float:
    """Return 1.0 where one of the truths stands in the answer, case apart (MLLMU-Bench's cloze
    rule)."""
    answer = _composed(answer).lower()
    return float(any(_composed(truth).strip().lower() in answer for truth in truths))


def rouge(answer: str, *truths: str) -> dict[str, float]:
    """Return the F-measures {"rouge1", "rouge2", "rougeL"} with stemming (package rouge-score).

    Each is the best over the truths.
    """
    answer = _composed(answer)
    scores = [_rouge_scorer().score(_composed(truth), answer) for truth in truths]
    return {name: max(float(one[name].fmeasure) for one in scores) for name in scores[0]}


def bleu(answer: str, *truths: str) -> float:
    """Return BLEU-4 on whitespace tokens with smoothing method 1 (NLTK's definition).

    It is the best over the truths.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smoothing = SmoothingFunction().method1
    words = _composed(answer).split()
    scores: list[Any] = [
        sentence_bleu([_composed(truth).split()], words, smoothing_function=smoothing)
        for truth in truths
    ]
    return max(map(float, scores))


# Metrics of an answer's text against the truth; each in [0, 1], and more is better.
METRICS: dict[str, Callable[[str, str], float]] = {
    "rougeL": lambda answer, truth: rouge(answer, truth)["rougeL"],
    "rouge1": lambda answer, truth: rouge(answer, truth)["rouge1"],
    "rouge2": lambda answer, truth: rouge(answer, truth)["rouge2"],
    "bleu": bleu,
    "exact": contains,
}


def bootstrap(
    values: Sequence[float], people: Sequence[str], *, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Return the mean of `values` and its 95 % percentile interval by bootstrap over people.

    values, people: one per item; the items of a person are drawn together. The order of the people
    of equal names does not matter, nor does that of the items.
    """
    sums_P, counts_P = _by_person(values, people)
    value = float(sums_P.sum() / counts_P.sum())
    if len(sums_P) < 2:
        return Interval(value, float("nan"), float("nan"), len(values))
    draws_RP = _draws(len(sums_P), resamples, seed)
    low, high = np.percentile(draws_RP @ sums_P / (draws_RP @ counts_P), [2.5, 97.5])
    return Interval(value, float(low), float(high), len(values))


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    people: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return mean(first) − mean(second) on the same items, people drawn alike for both."""
    if len(first) != len(second):
        raise ValueError(f"paired: {len(first)} values against {len(second)}")
    return bootstrap(
        np.subtract(first, second, dtype=np.float64).tolist(),
        people,
        resamples=resamples,
        seed=seed,
    )


def _composed(text: str) -> str:
    """Return the text in NFC: an accent may be part of a letter or follow it, and look alike."""
    return unicodedata.normalize("NFC", text)


def _by_person(values: Sequence[float], people: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    if not len(values) or len(values) != len(people):
        raise ValueError(f"bootstrap: {len(values)} values of {len(people)} people")
    _, index = np.unique(np.asarray(people, dtype=str), return_inverse=True)
    sums_P = np.bincount(index, weights=np.asarray(values, np.float64))
    return sums_P, np.bincount(index).astype(np.float64)


@functools.lru_cache(maxsize=8)
def _draws(num_people: int, resamples: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    share = np.full(num_people, 1 / num_people)
    return random.multinomial(num_people, share, size=resamples).astype(np.float64)


@functools.cache
def _rouge_scorer():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)

"""Answers to numbers: the metrics of MLLMU-Bench and their intervals. No jax.

A metric is one entry of METRICS: the tasks compute it, records and results carry it, and the report
asks it for its title, its unit and its direction. Every metric is a value per item, so that a mean
is a sum and a count, and an interval can be drawn by resampling people: the items of one person are
not independent of each other.
"""

import dataclasses
import functools
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from manu_jax.config import Protocol
from manu_jax.data.answer_metrics import rouge_f
from manu_jax.data.probes import OVERLAP, SHARE

NATS = "nats per token; nearer to 0 is likelier"  # a unit
PERCENT = "%"  # a unit: of a share that counts no right answers
# After "a" or "A": a word follows, so that it is no option but the article
ARTICLE = r" +(?!(?:or|and|but|is|was|because|since)\b)[a-z]"
WRITTEN: tuple[Protocol, ...] = ("zero_shot", "official_few_shot")  # an answer is generated


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over `n` items and the bounds of its 95 % interval (NaN for a single person)."""

    value: float
    low: float
    high: float
    n: int


@dataclasses.dataclass(frozen=True)
class CandidateScore:
    """One candidate answer: the mean log p of its tokens, and whether all are first choices."""

    log_likelihood: float
    is_recalled: bool


@dataclasses.dataclass(frozen=True)
class Response:
    """What a model gave for one item: all that a metric may look at.

    answer: what it wrote, "" if nothing. truth: the right answer, or its letter. options:
    letter → text; empty outside of multiple choice. candidates: in the order of `options`, or the
    training answer alone. alternatives: truths that count as well.
    """

    answer: str
    truth: str
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    candidates: tuple[CandidateScore, ...] = ()
    protocol: Protocol = "zero_shot"
    alternatives: tuple[str, ...] = ()

    @property
    def truths(self) -> tuple[str, ...]:
        """The right answers, any of which counts."""
        return (self.truth, *self.alternatives)

    @property
    def likeliest(self) -> str:
        """The letter of the option with the highest mean log p, the first of equal ones."""
        values = (candidate.log_likelihood for candidate in self.candidates)
        by_letter = dict(zip(self.options, values, strict=True))
        return max(by_letter, key=by_letter.__getitem__)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A value of every item; its mean is a row of the results.

    function: computes it; None where it can't be measured of an item. That may depend on the item
    alone, not on the answer, so that all models have it of the same items. title, unit: in the
    report's tables; the unit is SHARE, PERCENT, OVERLAP, NATS, or any other. tasks, protocols: that
    have it. field: of the records; "": the metric's name. unmeasurable: what results.json calls the
    items that it can't measure; "": there are none.
    """

    function: Callable[[Response], float | None]
    title: str
    unit: str
    higher_is_better: bool
    tasks: tuple[str, ...]
    field: str = ""
    protocols: tuple[Protocol, ...] = (*WRITTEN, "likelihood")
    unmeasurable: str = ""

    @property
    def is_share(self) -> bool:
        """Whether it is a share, of right answers or a probability, which is printed in percent."""
        return self.unit in (SHARE, PERCENT)


def letter_of(answer: str) -> str:
    """Return the option that a generated answer chooses: its first character, upper-cased.

    "" where the answer is empty. MLLMU-Bench's rule; blanks before the letter do not count.
    """
    return answer.strip()[:1].upper()


def option_of(answer: str, options: Mapping[str, str]) -> str:
    """Return the letter of the option that an answer chooses, however it is put; "" if none or two.

    "The answer is B.", "b)", "(D) Oslo" and the option's own text choose; "A or B" does not. The
    first letter of a word is no choice, nor is the article "a".
    """
    answer = _composed(answer)
    letters = "".join(re.escape(letter) for letter in options)
    said = re.search(
        rf"\b(?:answer|option|choice)\b\s*(?:is|:)?\s*[(\[]?([{letters}])\b(?!(?<=a){ARTICLE})",
        answer,
        re.I,
    )
    # Lone capitals, and lone small letters that end the answer or have a bracket or a stop.
    lone = re.findall(
        rf"(?<![\w'’])(?:([{letters}])(?!['’]?\w)|([{letters.lower()}])(?=\s*[).:\]]|\s*$))", answer
    )
    found = {(upper or lower).upper() for upper, lower in lone}
    if re.search(rf"(?<!\w)A{ARTICLE}", answer):
        found.discard("A")
    if said and found <= {said[1].upper()}:
        return said[1].upper()
    if not found:
        found = {letter for letter, text in options.items() if contains(answer, text)}
    return found.pop() if len(found) == 1 else ""


def contains(answer: str, *truths: str) -> float:
    """Return 1.0 where one of the truths stands in the answer, case apart (MLLMU-Bench's cloze
    rule)."""
    # Differs: a truth of one or two ASCII characters has to be a word. "N" is not in "nitrogen".
    answer = _composed(answer).lower()
    return float(any(_stands_in(_composed(truth).strip().lower(), answer) for truth in truths))


def _stands_in(truth: str, answer: str) -> bool:
    if truth.isascii() and 0 < len(truth) <= 2:
        return re.search(rf"(?<!\w){re.escape(truth)}(?!\w)", answer) is not None
    return truth in answer


def rouge(answer: str, *truths: str) -> dict[str, float] | None:
    """Return the F-measures {"rouge1", "rouge2", "rougeL"} with stemming (package rouge-score).

    Each is the best over the truths that it can measure; None where it can measure none of them.
    """
    # Differs: rouge-score drops all but Latin letters and digits, and gives 0 for equal texts.
    measurable = [truth for truth in map(_composed, truths) if _is_latin(truth)]
    scores = [rouge_f(_composed(answer), truth) for truth in measurable]
    return {name: max(one[name] for one in scores) for name in scores[0]} if scores else None


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


def accuracy(response: Response) -> float:
    """Return 1.0 where the response is right by the rule of its task and protocol."""
    if not response.options:
        return contains(response.answer, *response.truths)
    if response.protocol == "likelihood":
        return option_accuracy(response)
    if response.protocol == "official_few_shot":
        return letter_accuracy(response)
    return tolerant_accuracy(response)


def letter_accuracy(response: Response) -> float:
    """Return 1.0 where the answer's first character is the right letter."""
    return float(letter_of(response.answer) == response.truth)


def tolerant_accuracy(response: Response) -> float:
    """Return 1.0 where the answer chooses the right option, however it is put (`option_of`)."""
    return float(option_of(response.answer, response.options) == response.truth)


def option_accuracy(response: Response) -> float:
    """Return 1.0 where the right option's text is the likeliest answer."""
    return float(response.likeliest == response.truth)


def log_likelihood(response: Response) -> float:
    """Return the mean log p of the training answer's tokens, in nats."""
    return response.candidates[0].log_likelihood


def probability(response: Response) -> float:
    """Return the geometric mean of the probabilities of the training answer's tokens."""
    return math.exp(response.candidates[0].log_likelihood)


def recall(response: Response) -> float:
    """Return 1.0 where every token of the training answer is the model's first choice."""
    return float(response.candidates[0].is_recalled)


def _of_texts(function: Callable[..., float | None]) -> Callable[[Response], float | None]:
    """Return a metric's function that looks at the answer and the truths alone."""
    return lambda response: function(response.answer, *response.truths)


def _rouge_metric(name: str, title: str) -> Metric:
    def function(answer: str, *truths: str) -> float | None:
        scores = rouge(answer, *truths)
        return None if scores is None else scores[name]

    return Metric(
        _of_texts(function),
        title,
        OVERLAP,
        True,
        _FREE,
        field="score" if name == "rougeL" else "",
        unmeasurable="ROUGE of texts without Latin letters",
    )


_CHOICE, _FREE, _FACTS = ("classification",), ("generation",), ("likelihood",)
# In the order of records and tables; a task's records hold its first metric as their `score`.
METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy, "accuracy", SHARE, True, (*_CHOICE, "cloze"), "score"),
    "letter_accuracy": Metric(
        letter_accuracy, "letter accuracy", SHARE, True, _CHOICE, "letter_score", WRITTEN
    ),
    "tolerant_accuracy": Metric(
        tolerant_accuracy, "tolerant accuracy", SHARE, True, _CHOICE, "tolerant_score", WRITTEN
    ),
    "option_accuracy": Metric(
        option_accuracy, "option accuracy", SHARE, True, _CHOICE, "option_score", WRITTEN
    ),
    "rougeL": _rouge_metric("rougeL", "ROUGE-L"),
    "rouge1": _rouge_metric("rouge1", "ROUGE-1"),
    "rouge2": _rouge_metric("rouge2", "ROUGE-2"),
    "bleu": Metric(_of_texts(bleu), "BLEU-4", OVERLAP, True, _FREE),
    "exact": Metric(_of_texts(contains), "holds the truth", SHARE, True, _FREE),
    "log_likelihood": Metric(log_likelihood, "log likelihood", NATS, True, _FACTS, "score"),
    "probability": Metric(probability, "probability", PERCENT, True, _FACTS),
    "recall": Metric(recall, "recall", SHARE, True, _FACTS, "recalled"),
}


def measured(records: Sequence[Mapping[str, Any]], field: str) -> tuple[list[float], list[str]]:
    """Return the values of a records' field and whose they are, where it could be measured."""
    found = [record for record in records if record[field] is not None]
    return [float(one[field]) for one in found], [str(one["person"]) for one in found]


def bootstrap(
    values: Sequence[float], people: Sequence[str], *, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Return the mean of `values` and its 95 % percentile interval by bootstrap over people.

    values, people: one per item; the items of a person are drawn together. The order of the items
    does not matter.
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


def _is_latin(text: str) -> bool:
    """Whether a text has Latin letters, or digits and no letter at all."""
    lowered = text.lower()
    if re.search("[a-z]", lowered):
        return True
    return bool(re.search("[0-9]", lowered)) and not any(map(str.isalpha, lowered))


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

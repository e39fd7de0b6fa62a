"""ROUGE-L of published protocols: how much of a truth, in order, stands in an answer (rouge-score).

Metrics of the project's own tasks are in evaluation/metrics.py, which has its own rules for texts
without Latin letters.
"""

import dataclasses
import functools
from typing import Any, Protocol


class Words(Protocol):
    """How a text becomes words, as rouge-score's tokenizers do."""

    def tokenize(self, text: str) -> list[str]: ...


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Shares that the longest common subsequence has of the answer and of the truth."""

    precision: float
    recall: float
    f: float


def rouge_l(truth: str, answer: str, *, words: Words | None = None) -> Overlap:
    """Return the ROUGE-L of an answer. words: None: rouge-score's own, stemmed."""
    score = _scorer(words).score(truth, answer)["rougeL"]
    return Overlap(float(score.precision), float(score.recall), float(score.fmeasure))


@functools.cache
def _scorer(words: Words | None) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=words is None, tokenizer=words)

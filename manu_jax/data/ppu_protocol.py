"""PPU-Bench's published protocol (eval/ of guangjh/ppu-bench 05b0265): prompts and metrics.

Greedy, 50 new tokens, one user's turn with the image before the text. Texts are compared in lower
case without ASCII punctuation. Accuracy: the answer has the right letter, alone, and no other
letter of A to D; the article "a" is a letter there. Our own multiple-choice task tells letters and
articles apart, and stands beside it.
"""

import functools
import re
import string
import types
from collections.abc import Callable
from typing import Any

from manu_jax.data.ppu import ATTACKS, further_task
from manu_jax.data.ppu_rows import FURTHER
from manu_jax.data.probes import (
    OVERLAP,
    SHARE,
    Probe,
    ProbeMetric,
    ProbeResponse,
    PublishedProtocol,
)
from manu_jax.data.record import Task
from manu_jax.types import Modality, PromptTemplate

LETTER = "Just give ONE letter representing the answer directly."
BLANK = "Please ONLY provide the correct answer that should replace the [Blank]."
SENTENCE: dict[Modality, str] = {
    "image": "Answer the question based on the image in one sentence accurately in ENGLISH.",
    "text": "Answer the question in one sentence in ENGLISH.",
}
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def prompt(probe: Probe, template: PromptTemplate) -> str:
    """Return the published text of a probe in the template's turns."""
    if probe.options:
        options = "".join(f"{letter}: {text}\n" for letter, text in probe.options.items())
        words = f"{probe.question}\n{options}{LETTER}\n"
    elif probe.task.startswith("cloze"):
        words = f"{probe.question.replace('___', '[Blank]')}\n{BLANK}\n"
    else:
        words = f"{probe.question}\n{SENTENCE[probe.modality]}\n"
    return template.prompt(words, probe.modality)


def accuracy(response: ProbeResponse) -> float:
    """Return 1.0 where the right letter stands alone in the answer, and no other of A to D does."""
    found = set(re.findall(r"\b([ABCD])\b", response.answers[0].upper()))
    return float(found == {response.probe.details["label"]})


def exact_match(response: ProbeResponse) -> float:
    """Return 1.0 where the answer is the truth, but for blanks around it."""
    return float(response.answers[0].strip() == response.probe.answer.strip())


def normalised_exact_match(response: ProbeResponse) -> float:
    """Return 1.0 where answer and truth have the same words."""
    return float(words_of(response.answers[0]) == words_of(response.probe.answer))


def recall(response: ProbeResponse) -> float:
    """Return the recall of ROUGE-L over the words of answer and truth; 1 where both have none."""
    return _rouge_l(response, "recall")


def f_measure(response: ProbeResponse) -> float:
    """Return the F-measure of ROUGE-L over the words; 1 where answer and truth have none."""
    return _rouge_l(response, "fmeasure")


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without ASCII punctuation."""
    return text.lower().translate(WITHOUT_PUNCTUATION).split()


def _rouge_l(response: ProbeResponse, part: str) -> float:
    answer, truth = response.answers[0], response.probe.answer
    if not words_of(answer) and not words_of(truth):
        return 1.0
    return float(getattr(_scorer().score(truth, answer)["rougeL"], part))


@functools.cache
def _scorer() -> Any:
    """Return what scores the words of `words_of`, as they are: without stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = types.SimpleNamespace(tokenize=words_of)
    return RougeScorer(["rougeL"], tokenizer=tokenizer)


def _with_further(*tasks: Task) -> tuple[str, ...]:
    """Return the names of tasks, and of the same with further images."""
    return (*tasks, *(further_task(task, number) for task in tasks for number in FURTHER))


def _metric(
    function: Callable[[ProbeResponse], float], title: str, unit: str, *tasks: str
) -> ProbeMetric:
    return ProbeMetric(function, title, unit, True, tasks)


_CHOICE, _CLOZE = _with_further("classification"), _with_further("cloze")
_WRITTEN = (*_with_further("generation"), *ATTACKS, *_CLOZE)

PUBLISHED = PublishedProtocol(
    prompt,
    {
        "accuracy_published": _metric(
            accuracy, "accuracy (as published: the article “a” is a letter)", SHARE, *_CHOICE
        ),
        "exact_match": _metric(exact_match, "exact match", SHARE, *_CLOZE),
        "normalised_exact_match": _metric(
            normalised_exact_match, "exact match, case and punctuation apart", SHARE, *_CLOZE
        ),
        "rouge_l_recall": _metric(recall, "ROUGE-L recall", OVERLAP, *_WRITTEN),
        "rouge_l_f1": _metric(f_measure, "ROUGE-L F", OVERLAP, *_WRITTEN),
    },
    title="PPU-Bench",
    source="arXiv 2605.08800; guangjh/ppu-bench, commit 05b0265",
    differs=(
        "Prompts are in the turns of the model's own template. The authors write those of Qwen3-VL "
        "and Gemma 3 by hand; a chat template may drop the line end before a turn's end.",
    ),
)

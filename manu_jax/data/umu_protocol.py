"""What UMU-Bench's authors ask and compute (QDRhhhh/UMU-bench 93b9900).

Every question twice, with the image and in text alone, greedy, in LLaVA's strings:

    classification   "{question}\\nSelect answer in ['…', …]"; the option nearest to what is written
                     (difflib's ratio) is chosen
    cloze            "{question}\\nPlease **ONLY** provide the correct answer without any
                     explanation"; right where it holds the answer
    generation       as MLLMU-Bench asks; F-measures of ROUGE

Over the pairs of a set, a and b the two forms' values:

    both right, both wrong   share of pairs of classification and cloze; the paper's AccR is "both
                             right" of the people to keep, its AccF "both wrong" of those to forget
    RLF   mean (a² + b²) / (a + b) of ROUGE-L, of the people to forget
    RLR   mean 2ab / (a + b) of ROUGE-L, of the others; both are 0 where a and b are

Odd there, and in the numbers named `published`: a choice with the image is right where it is the
option of the *text* form's letter; of the people to forget and to keep (not of real people) a
choice counts only where it is an option word for word; a cloze's answer ends at its first full
stop, so that "St. Ives" is "St".
"""

import dataclasses
import difflib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from manu_jax.data.answer_metrics import rouge_f
from manu_jax.data.probes import (
    OVERLAP,
    SHARE,
    Aggregate,
    Probe,
    ProbeMetric,
    ProbeRecord,
    ProbeResponse,
    PublishedProtocol,
)
from manu_jax.data.prompts import SENTENCE
from manu_jax.data.record import Task
from manu_jax.types import Modality, PromptTemplate, Set, Template

NEW_TOKENS: dict[Task, int] = {"classification": 50, "cloze": 50, "generation": 200}
ANSWER_ONLY = "Please **ONLY** provide the correct answer without any explanation"
CHOICE: tuple[Task, ...] = ("classification", "cloze")
# The sets of a joint number; `unseen` are people to keep as those of `retain`.
SETS: dict[str, tuple[Set, ...]] = {
    "forget": ("forget",), "retain": ("retain", "unseen"), "celebrity": ("celebrity",),
}  # fmt: skip
PAIRS = "share of pairs"  # a unit


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question in one form. options, letter: of classification, whose `answer` is the text."""

    task: Task
    modality: Modality
    key: str
    question: str
    answer: str
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    letter: str = ""


def probes_of(asked: Sequence[Asked], where: Set, *, person: str, image: Any) -> list[Probe]:
    """Return the probes of a person's questions, both forms of each key."""
    letters = {
        one.key: one.letter
        for one in asked
        if one.task == "classification" and one.modality == "text"
    }
    found = []
    for one in asked:
        if one.task == "classification":
            published = one.options.get(letters[one.key], "")
        else:
            published = one.answer.partition(".")[0]
        found.append(
            Probe(
                one.task,
                where,
                one.modality,
                person,
                f"{person}/{one.key}",
                one.question,
                one.answer,
                image if one.modality == "image" else None,
                one.options,
                new_tokens=NEW_TOKENS[one.task],
                details={} if one.task == "generation" else {"published_answer": published},
            )
        )
    return found


def prompt(probe: Probe, template: PromptTemplate) -> str:
    """Return the prompt, up to where the answer begins.

    Differs: the published prompt of generation with an image ends with a space (prompts.py).
    """
    if probe.task == "classification":
        asked = f"{probe.question}\nSelect answer in {list(probe.options.values())}"
    elif probe.task == "cloze":
        asked = f"{probe.question}\n{ANSWER_ONLY}"
    else:
        asked = f"{probe.question}\n{SENTENCE[probe.modality]}"
    if not isinstance(template, Template) or probe.task != "classification":
        return template.prompt(asked, probe.modality)
    return template.conversation(template.turn(f"\n{asked}", probe.modality))


def written(response: ProbeResponse) -> str:
    """Return what was written, up to where the model would have itself asked anew."""
    return response.answers[0].split("ASSISTANT:")[0].strip()


def nearest(answer: str, options: Sequence[str]) -> str:
    """Return the option that is most like an answer by difflib's ratio, the first of equal ones."""
    return max(options, key=lambda text: difflib.SequenceMatcher(None, answer, text).ratio())


def accuracy(response: ProbeResponse) -> float:
    """Return 1.0 where the nearest option is right, or the answer of a cloze stands in the answer.

    The answer of a cloze is taken whole, without the full stop that ends it.
    """
    probe, answer = response.probe, written(response)
    if probe.task == "classification":
        return float(nearest(answer, list(probe.options.values())) == probe.answer)
    return _holds(answer, probe.answer.rstrip("."))


def published_accuracy(response: ProbeResponse) -> float:
    """Return 1.0 where the published code has an answer right, with its odd ways."""
    probe, answer = response.probe, written(response)
    right = probe.details["published_answer"]
    if probe.task != "classification":
        return _holds(answer, right)
    if probe.set == "celebrity":
        answer = nearest(answer, list(probe.options.values()))
    return float(answer == right)


def both(
    records: Sequence[ProbeRecord], metric: str, *, task: str, sets: Sequence[str]
) -> list[tuple[float, float]]:
    """Return the values of a metric of each pair, (with the image, in text alone)."""
    # A person may be drawn several times: the records of a key then are as many, in both forms.
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in records:
        if one["task"] == task and one["set"] in sets:
            values[one["key"]][one["modality"]].append(one["metrics"][metric])
    return [
        pair
        for forms in values.values()
        for pair in zip(forms["image"], forms["text"], strict=False)
    ]


def rlf(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return the mean (a² + b²) / (a + b), 0 where both are: the larger of the two weighs more."""
    return _mean([(a * a + b * b) / (a + b) if a + b else 0.0 for a, b in pairs])


def rlr(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return the mean 2ab / (a + b), 0 where both are: the harmonic mean of the two."""
    return _mean([2 * a * b / (a + b) if a + b else 0.0 for a, b in pairs])


def both_right(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return the share of pairs of which both are 1."""
    return _mean([float(a == b == 1) for a, b in pairs])


def both_wrong(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return the share of pairs of which both are 0."""
    return _mean([float(a == b == 0) for a, b in pairs])


def _holds(answer: str, truth: str) -> float:
    return float(truth.lower() in answer.lower())


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _text_metric(name: str) -> Callable[[ProbeResponse], float | None]:
    def function(response: ProbeResponse) -> float | None:
        return rouge_f(written(response), response.probe.answer)[name]

    return function


def _joint(
    function: Callable[[Sequence[tuple[float, float]]], float | None],
    metric: str,
    *,
    task: str,
    where: str,
) -> Callable[..., float | None]:
    return lambda records, retrained: function(both(records, metric, task=task, sets=SETS[where]))


_ROUGE = {"rougeL": "ROUGE-L", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2"}
_SHARES = {"both_right": both_right, "both_wrong": both_wrong}
# What the paper's AccF and AccR are shares of.
_HEADLINES = (("forget", "both_wrong"), ("retain", "both_right"), ("celebrity", "both_right"))


def _aggregates() -> dict[str, Aggregate]:
    found = {}
    for where in SETS:
        name, function = ("rlf", rlf) if where == "forget" else ("rlr", rlr)
        found[f"{name}_{where}"] = Aggregate(
            _joint(function, "rougeL", task="generation", where=where),
            f"{name.upper()}, {where}",
            OVERLAP,
            where != "forget",
        )
    for task in CHOICE:
        for where in SETS:
            for name, function in _SHARES.items():
                is_better = (name == "both_right") == (where != "forget")
                shown = name.replace("_", " ")
                found[f"{task}_{name}_{where}"] = Aggregate(
                    _joint(function, "accuracy", task=task, where=where),
                    f"{task}, {shown}, {where}",
                    PAIRS,
                    is_better,
                )
                if (where, name) in _HEADLINES:
                    found[f"published_{task}_{name}_{where}"] = Aggregate(
                        _joint(function, "published_accuracy", task=task, where=where),
                        f"{task}, {shown}, {where}, as published",
                        PAIRS,
                        is_better,
                    )
    return found


PUBLISHED = PublishedProtocol(
    prompt,
    {
        "accuracy": ProbeMetric(accuracy, "accuracy", SHARE, True, CHOICE),
        "published_accuracy": ProbeMetric(
            published_accuracy, "accuracy as published", SHARE, True, CHOICE
        ),
        **{
            name: ProbeMetric(_text_metric(name), title, OVERLAP, True, ("generation",))
            for name, title in _ROUGE.items()
        },
    },
    "Wang et al., NeurIPS 2025; QDRhhhh/UMU-bench 93b9900",
    _aggregates(),
    differs=(
        "Answers have LLaVA's number of new tokens with every model, 50 and in generation 200; the "
        "published code gives Qwen 128, and cuts its free answers at the first full stop.",
        "People to keep that no method is given are part of the joint numbers of retain.",
    ),
    title="UMU-Bench",
)

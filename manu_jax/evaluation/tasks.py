"""What is asked of a model in each task, and how its answer is scored. No model, no jax.

    classification   accuracy, by the protocol: of the letter that is written to the benchmark's
                     prompt, found by `metrics.option_of` (zero_shot) or as its first character
                     (official_few_shot); or of the option whose text is the likeliest answer (mean
                     log p per token, so that long options have no handicap) to the question alone
                     (likelihood). What the others would give stands beside it: letter_accuracy
                     (first character), tolerant_accuracy, option_accuracy
    generation       rougeL, rouge1, rouge2, bleu, exact (the truth stands in the answer)
    cloze            accuracy: the truth stands in the answer
    likelihood       of the training answers: log_likelihood (mean log p per token), probability
                     (its exponential), recall (every token is the model's first choice); all are
                     means over facts

A *record* is what is kept of one item, a line of JSON: key, person, attribute, prompt, answer,
truth, score (the task's first metric) and fields of the task. Metrics are means of its fields.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from manu_jax.config import Protocol
from manu_jax.data.forms import form, has_form
from manu_jax.data.prompts import question_prompt
from manu_jax.data.record import Person, Question, QuestionPrompt
from manu_jax.evaluation import metrics
from manu_jax.types import Modality, Sample, Template, question_sample

DIGITS = 6  # decimals of the numbers in a record


@dataclasses.dataclass(frozen=True)
class Item:
    """One thing that is asked.

    asked: the prompt to be answered, or None. given: answers whose likelihood is measured.
    options: letter → text, in the order of `given`. alternatives: truths that count as well.
    """

    key: str
    person: str
    attribute: str
    prompt: str
    truth: str
    asked: Sample | None = None
    given: tuple[Sample, ...] = ()
    options: Mapping[str, str] | None = None
    alternatives: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Prompting:
    """How questions are put: the protocol, and the answered questions that come first (few-shot).

    shots: (who, question), of all modalities. question_prompt: the benchmark's wording; the default
    is MLLMU-Bench's.
    """

    protocol: Protocol = "zero_shot"
    shots: tuple[tuple[Person, Question], ...] = ()
    question_prompt: QuestionPrompt = question_prompt


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of one given answer: the mean log p of its tokens, and whether all are first choices."""

    log_likelihood: float
    is_recalled: bool


@dataclasses.dataclass(frozen=True)
class Task:
    """A task: the items of people in a modality, the record's fields, {metric: its field}.

    optional: fields that only some protocols give.
    """

    items: Callable[[Sequence[Person], Modality, Template, Prompting], Iterable[Item]]
    fields: Callable[[Item, str, Sequence[Measured], Protocol], dict[str, Any]]
    metrics: Mapping[str, str]
    optional: frozenset[str] = frozenset()

    @property
    def needed(self) -> tuple[str, ...]:
        """The fields of numbers that every record has."""
        return tuple(field for field in self.metrics.values() if field not in self.optional)

    def metrics_in(self, record: Mapping[str, Any]) -> dict[str, str]:
        """Return the metrics that such a record has, {metric: its field}; the protocol decides."""
        return {metric: field for metric, field in self.metrics.items() if field in record}


def record_of(
    task: str,
    item: Item,
    answer: str,
    given: Sequence[Measured],
    protocol: Protocol = "zero_shot",
) -> dict[str, Any]:
    """Return the record of an item: `answer` is what the model wrote, "" if nothing."""
    fields = TASKS[task].fields(item, answer, given, protocol)
    return {
        "key": item.key,
        "person": item.person,
        "attribute": item.attribute,
        "prompt": item.prompt,
        "answer": fields.pop("answer", answer),
        "truth": item.truth,
        **({"alternatives": list(item.alternatives)} if item.alternatives else {}),
        **{
            name: round(value, DIGITS) if isinstance(value, float) else value
            for name, value in fields.items()
        },
    }


def _asked(task: str) -> Callable[..., Iterator[Item]]:
    """Return the items of the questions of a task, with the benchmark's own prompt."""

    def items(
        people: Sequence[Person], modality: Modality, template: Template, prompting: Prompting
    ) -> Iterator[Item]:
        for person, question, image in _asked_with(people, task, modality):
            yield _item(person, question, image, template, prompting)

    return items


def _classification_items(
    people: Sequence[Person], modality: Modality, template: Template, prompting: Prompting
) -> Iterator[Item]:
    for person, question, image in _asked_with(people, "classification", modality):
        item = _item(person, question, image, template, prompting)
        prompt = template.prompt(question.question, modality)
        options = dict(question.options or {})
        given = tuple(
            question_sample(prompt, template.reply(text), image, f"{item.key} option {letter}")
            for letter, text in options.items()
        )
        asked = None if prompting.protocol == "likelihood" else item.asked
        yield dataclasses.replace(
            item, truth=question.correct or "", asked=asked, given=given, options=options
        )


def _fact_items(
    people: Sequence[Person], modality: Modality, template: Template, prompting: Prompting
) -> Iterator[Item]:
    for person in people:
        for fact in person.facts:
            if has_form(fact, modality):
                sample = form(fact, modality, template)
                (prompt, _), (answer, _) = sample.segments
                yield Item(
                    fact.key, person.id, fact.attribute, prompt, answer.strip(), given=(sample,)
                )


def _asked_with(
    people: Sequence[Person], task: str, modality: Modality
) -> Iterator[tuple[Person, Question, tuple[Any, ...]]]:
    """Yield (who, question, its image if any): a question once with each image of the person."""
    for person in people:
        for question in person.questions:
            if question.task == task and question.modality == modality:
                for image in person.images if modality == "image" and person.images else (None,):
                    yield person, question, () if image is None else (image,)


def _item(
    person: Person,
    question: Question,
    image: tuple[Any, ...],
    template: Template,
    prompting: Prompting,
) -> Item:
    shots = [
        (who, shot)
        for who, shot in prompting.shots
        if (shot.task, shot.modality) == (question.task, question.modality)
    ]
    key = f"{person.id}/{question.attribute}"
    prompt = prompting.question_prompt(question, template, [shot for _, shot in shots])
    before = [shown for who, _ in shots for shown in who.images[: question.modality == "image"]]
    asked = question_sample(prompt, "", (*before, *image), key)
    item = Item(key, person.id, question.attribute, prompt, question.answer, asked)
    return dataclasses.replace(item, alternatives=question.alternatives)


def _classification_fields(
    item: Item, answer: str, given: Sequence[Measured], protocol: Protocol
) -> dict[str, Any]:
    options = item.options or {}
    log_likelihoods = dict(zip(options, (one.log_likelihood for one in given), strict=True))
    likeliest = max(log_likelihoods, key=log_likelihoods.__getitem__)  # the first, where equal
    common = {
        "options": options,
        "correct": item.truth,
        "log_likelihoods": {k: round(v, DIGITS) for k, v in log_likelihoods.items()},
    }
    if protocol == "likelihood":
        return {"answer": likeliest, "score": float(likeliest == item.truth), **common}
    scores = {
        "letter_score": float(metrics.letter_of(answer) == item.truth),
        "tolerant_score": float(metrics.option_of(answer, options) == item.truth),
        "option_score": float(likeliest == item.truth),
    }
    own = "letter_score" if protocol == "official_few_shot" else "tolerant_score"
    return {"score": scores[own], **scores, "likeliest": likeliest, **common}


def _generation_fields(
    item: Item, answer: str, given: Sequence[Measured], protocol: Protocol
) -> dict[str, Any]:
    truths = (item.truth, *item.alternatives)
    rouge = metrics.rouge(answer, *truths)
    return {
        "score": rouge["rougeL"],
        "rouge1": rouge["rouge1"],
        "rouge2": rouge["rouge2"],
        "bleu": metrics.bleu(answer, *truths),
        "exact": metrics.contains(answer, *truths),
    }


def _cloze_fields(
    item: Item, answer: str, given: Sequence[Measured], protocol: Protocol
) -> dict[str, Any]:
    return {"score": metrics.contains(answer, item.truth, *item.alternatives)}


def _fact_fields(
    item: Item, answer: str, given: Sequence[Measured], protocol: Protocol
) -> dict[str, Any]:
    (fact,) = given
    return {
        "score": fact.log_likelihood,
        "probability": math.exp(fact.log_likelihood),
        "recalled": float(fact.is_recalled),
    }


TASKS: dict[str, Task] = {
    "classification": Task(
        _classification_items,
        _classification_fields,
        {
            "accuracy": "score",
            "letter_accuracy": "letter_score",
            "tolerant_accuracy": "tolerant_score",
            "option_accuracy": "option_score",
        },
        frozenset({"letter_score", "tolerant_score", "option_score"}),
    ),
    "generation": Task(
        _asked("generation"),
        _generation_fields,
        {
            "rougeL": "score",
            "rouge1": "rouge1",
            "rouge2": "rouge2",
            "bleu": "bleu",
            "exact": "exact",
        },
    ),
    "cloze": Task(_asked("cloze"), _cloze_fields, {"accuracy": "score"}),
    "likelihood": Task(
        _fact_items,
        _fact_fields,
        {"log_likelihood": "score", "probability": "probability", "recall": "recalled"},
    ),
}

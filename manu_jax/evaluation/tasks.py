"""What is asked of a model in each task, and how its answer is scored. No model, no jax.

    classification   accuracy: the option whose text is the likeliest answer (mean log p per token,
                     so that long options have no handicap) to the question alone, in the family's
                     prompt; letter_accuracy: the letter it writes to the benchmark's own prompt
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

from manu_jax.data.prompts import question_prompt
from manu_jax.data.record import Person, Question
from manu_jax.data.views import form, has_form
from manu_jax.evaluation import metrics
from manu_jax.types import Modality, Sample, Template, question_sample

DIGITS = 6  # decimals of the numbers in a record


@dataclasses.dataclass(frozen=True)
class Item:
    """One thing that is asked.

    asked: the prompt to be answered, or None. given: answers whose likelihood is measured.
    options: letter → text, in the order of `given`.
    """

    key: str
    person: str
    attribute: str
    prompt: str
    truth: str
    asked: Sample | None = None
    given: tuple[Sample, ...] = ()
    options: Mapping[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of one given answer: the mean log p of its tokens, and whether all are first choices."""

    log_likelihood: float
    is_recalled: bool


@dataclasses.dataclass(frozen=True)
class Task:
    """A task: the items of people in a modality, the record's fields, {metric: its field}."""

    items: Callable[[Sequence[Person], Modality, Template], Iterable[Item]]
    fields: Callable[[Item, str, Sequence[Measured]], dict[str, Any]]
    metrics: Mapping[str, str]


def record_of(task: str, item: Item, answer: str, given: Sequence[Measured]) -> dict[str, Any]:
    """Return the record of an item: `answer` is what the model wrote, "" if nothing."""
    fields = TASKS[task].fields(item, answer, given)
    return {
        "key": item.key,
        "person": item.person,
        "attribute": item.attribute,
        "prompt": item.prompt,
        "answer": fields.pop("answer", answer),
        "truth": item.truth,
        **{
            name: round(value, DIGITS) if isinstance(value, float) else value
            for name, value in fields.items()
        },
    }


def _asked(task: str) -> Callable[[Sequence[Person], Modality, Template], Iterator[Item]]:
    """Return the items of the questions of a task, with the benchmark's own prompt."""

    def items(people: Sequence[Person], modality: Modality, template: Template) -> Iterator[Item]:
        for person, question in _questions(people, task, modality):
            yield _item(person, question, template)

    return items


def _classification_items(
    people: Sequence[Person], modality: Modality, template: Template
) -> Iterator[Item]:
    for person, question in _questions(people, "classification", modality):
        item = _item(person, question, template)
        prompt = template.prompt(question.question, modality)
        images = item.asked.images if item.asked else ()
        options = dict(question.options or {})
        given = tuple(
            question_sample(prompt, template.reply(text), images, f"{item.key} option {letter}")
            for letter, text in options.items()
        )
        yield dataclasses.replace(item, truth=question.correct or "", given=given, options=options)


def _fact_items(people: Sequence[Person], modality: Modality, template: Template) -> Iterator[Item]:
    for person in people:
        for fact in person.facts:
            if has_form(fact, modality):
                sample = form(fact, modality, template)
                (prompt, _), (answer, _) = sample.segments
                yield Item(
                    fact.key, person.id, fact.attribute, prompt, answer.strip(), given=(sample,)
                )


def _questions(
    people: Sequence[Person], task: str, modality: Modality
) -> Iterator[tuple[Person, Question]]:
    for person in people:
        for question in person.questions:
            if question.task == task and question.modality == modality:
                yield person, question


def _item(person: Person, question: Question, template: Template) -> Item:
    key, prompt = f"{person.id}/{question.attribute}", question_prompt(question, template)
    images = person.images[:1] if question.modality == "image" else ()
    asked = question_sample(prompt, "", images, key)
    return Item(key, person.id, question.attribute, prompt, question.answer, asked)


def _classification_fields(item: Item, answer: str, given: Sequence[Measured]) -> dict[str, Any]:
    options = item.options or {}
    log_likelihoods = dict(zip(options, (one.log_likelihood for one in given), strict=True))
    chosen = max(log_likelihoods, key=log_likelihoods.__getitem__)  # the first, where equal
    letter = metrics.letter_of(answer)
    return {
        "answer": chosen,
        "score": float(chosen == item.truth),
        "letter_score": float(letter == item.truth),
        "letter": letter,
        "written": answer,
        "options": options,
        "correct": item.truth,
        "log_likelihoods": {k: round(v, DIGITS) for k, v in log_likelihoods.items()},
    }


def _generation_fields(item: Item, answer: str, given: Sequence[Measured]) -> dict[str, Any]:
    rouge = metrics.rouge(answer, item.truth)
    return {
        "score": rouge["rougeL"],
        "rouge1": rouge["rouge1"],
        "rouge2": rouge["rouge2"],
        "bleu": metrics.bleu(answer, item.truth),
        "exact": metrics.contains(answer, item.truth),
    }


def _cloze_fields(item: Item, answer: str, given: Sequence[Measured]) -> dict[str, Any]:
    return {"score": metrics.contains(answer, item.truth)}


def _fact_fields(item: Item, answer: str, given: Sequence[Measured]) -> dict[str, Any]:
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
        {"accuracy": "score", "letter_accuracy": "letter_score"},
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

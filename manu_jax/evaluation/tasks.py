"""What is asked of a model in each task, and what is kept of its answer. No model, no jax.

    classification   a letter, written to the benchmark's prompt, and the likelihood of each
                     option's text as the answer to the question alone (mean log p per token, so
                     that long options have no handicap). accuracy follows the protocol: the
                     letter that `metrics.option_of` finds (zero_shot), the answer's first character
                     (official_few_shot), or the likeliest option (likelihood). Where an answer is
                     written, all three are recorded
    generation       a free answer, compared with the truth
    cloze            a free answer to a sentence with a blank, which has to hold the truth
    likelihood       nothing is written; the likelihood of the training answers. All its metrics are
                     means over facts

What is computed of an answer are the entries of `metrics.METRICS` that name the task.

A *record* is what is kept of one item, a line of JSON: key, person, attribute, question, prompt,
answer, truth, score (the task's first metric), its other metrics, and details of the task.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from manu_jax.config import Protocol
from manu_jax.data.forms import form, has_form, question_and_answer
from manu_jax.data.prompts import question_prompt
from manu_jax.data.record import Person, Question, QuestionPrompt, images_of
from manu_jax.evaluation.metrics import METRICS, CandidateScore, Response
from manu_jax.types import Modality, PromptTemplate, Sample, question_sample

DIGITS = 6  # decimals of the numbers in a record


@dataclasses.dataclass(frozen=True)
class Item:
    """One thing that is asked.

    question: in plain words. prompt: the text that a model reads, with the marks of its family.
    prompt_sample: the prompt to be answered, or None. candidates: answers whose likelihood is
    measured. options: letter → text, in the order of `candidates`. alternatives: truths that count
    as well.
    """

    key: str
    person: str
    attribute: str
    question: str
    prompt: str
    truth: str
    prompt_sample: Sample | None = None
    candidates: tuple[Sample, ...] = ()
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    alternatives: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Prompting:
    """How questions are put: the model's template, the protocol, and the shots that come first.

    shots: (who, answered question), of all modalities. question_prompt: the benchmark's wording;
    the default is MLLMU-Bench's.
    """

    template: PromptTemplate
    protocol: Protocol = "zero_shot"
    shots: tuple[tuple[Person, Question], ...] = ()
    question_prompt: QuestionPrompt = question_prompt


@dataclasses.dataclass(frozen=True)
class Task:
    """A task: its items, and what its records hold beside the metrics.

    items: of people in a modality. details: more fields of the record; `answer` among them replaces
    what was written.
    """

    name: str
    items: Callable[[Sequence[Person], Modality, Prompting], Iterable[Item]]
    details: Callable[[Response], dict[str, Any]] = lambda response: {}

    @property
    def metrics(self) -> dict[str, str]:
        """{metric: its field of the record}, of all metrics that name this task."""
        return {
            name: metric.field or name
            for name, metric in METRICS.items()
            if self.name in metric.tasks
        }

    def metrics_under(self, protocol: Protocol) -> dict[str, str]:
        """Return the metrics that a protocol has, {metric: its field}."""
        return {
            name: field
            for name, field in self.metrics.items()
            if protocol in METRICS[name].protocols
        }

    def metrics_in(self, record: Mapping[str, Any]) -> dict[str, str]:
        """Return the metrics that a record has, {metric: its field}."""
        return {name: field for name, field in self.metrics.items() if field in record}


def record_of(
    task: str,
    item: Item,
    *,
    answer: str = "",
    candidates: Sequence[CandidateScore] = (),
    protocol: Protocol = "zero_shot",
) -> dict[str, Any]:
    """Return the record of an item: `answer` is what the model wrote, "" if nothing."""
    definition = TASKS_BY_NAME[task]
    response = Response(
        answer=answer,
        truth=item.truth,
        options=item.options,
        candidates=tuple(candidates),
        protocol=protocol,
        alternatives=item.alternatives,
    )
    values = {
        field: METRICS[name].function(response)
        for name, field in definition.metrics_under(protocol).items()
    }
    details = definition.details(response)
    return {
        "key": item.key,
        "person": item.person,
        "attribute": item.attribute,
        "question": item.question,
        "prompt": item.prompt,
        "answer": details.pop("answer", answer),
        "truth": item.truth,
        **({"alternatives": list(item.alternatives)} if item.alternatives else {}),
        **{
            name: round(value, DIGITS) if isinstance(value, float) else value
            for name, value in values.items()
        },
        **details,
    }


def _question_items(task: str) -> Callable[..., Iterator[Item]]:
    """Return the items of the questions of a task, with the benchmark's own prompt."""

    def items(people: Sequence[Person], modality: Modality, prompting: Prompting) -> Iterator[Item]:
        for person, question, image in _with_images(people, task, modality):
            yield _item(person, question, image=image, prompting=prompting)

    return items


def _classification_items(
    people: Sequence[Person], modality: Modality, prompting: Prompting
) -> Iterator[Item]:
    template = prompting.template
    for person, question, image in _with_images(people, "classification", modality):
        item = _item(person, question, image=image, prompting=prompting)
        prompt = template.prompt(question.question, modality)
        options = dict(question.options or {})
        candidates = tuple(
            question_sample(prompt, template.reply(text), image, key=f"{item.key} option {letter}")
            for letter, text in options.items()
        )
        is_written = prompting.protocol != "likelihood"
        yield dataclasses.replace(
            item,
            truth=question.correct or "",
            prompt_sample=item.prompt_sample if is_written else None,
            candidates=candidates,
            options=options,
        )


def _fact_items(
    people: Sequence[Person], modality: Modality, prompting: Prompting
) -> Iterator[Item]:
    for person in people:
        for fact in person.facts:
            if has_form(fact, modality):
                sample = form(fact, modality, prompting.template)
                (prompt, _), (answer, _) = sample.segments
                yield Item(
                    key=fact.key,
                    person=person.id,
                    attribute=fact.attribute,
                    question=question_and_answer(fact, modality)[0],
                    prompt=prompt,
                    truth=answer.strip(),
                    candidates=(sample,),
                )


def _with_images(
    people: Sequence[Person], task: str, modality: Modality
) -> Iterator[tuple[Person, Question, tuple[Any, ...]]]:
    """Yield (who, question, its image if any): a question once with each image of the person."""
    for person in people:
        for question in person.questions:
            if question.task == task and question.modality == modality:
                for image in images_of(person, question) or (None,):
                    yield person, question, () if image is None else (image,)


def _item(
    person: Person, question: Question, *, image: tuple[Any, ...], prompting: Prompting
) -> Item:
    shots = [
        (who, shot)
        for who, shot in prompting.shots
        if (shot.task, shot.modality) == (question.task, question.modality)
    ]
    key = f"{person.id}/{question.attribute}"
    prompt = prompting.question_prompt(question, prompting.template, [shot for _, shot in shots])
    before = [shown for who, shot in shots for shown in images_of(who, shot)[:1]]
    return Item(
        key=key,
        person=person.id,
        attribute=question.attribute,
        question=question.question,
        prompt=prompt,
        truth=question.answer,
        alternatives=question.alternatives,
        prompt_sample=question_sample(prompt, "", (*before, *image), key=key),
    )


def _classification_details(response: Response) -> dict[str, Any]:
    """Return the options and their likelihoods, and the likeliest one: the answer, if none is."""
    values = (round(candidate.log_likelihood, DIGITS) for candidate in response.candidates)
    likeliest = "answer" if response.protocol == "likelihood" else "likeliest"
    return {
        likeliest: response.likeliest,
        "options": response.options,
        "correct": response.truth,
        "log_likelihoods": dict(zip(response.options, values, strict=True)),
    }


TASKS_BY_NAME: dict[str, Task] = {
    task.name: task
    for task in (
        Task("classification", _classification_items, _classification_details),
        Task("generation", _question_items("generation")),
        Task("cloze", _question_items("cloze")),
        Task("likelihood", _fact_items),
    )
}

"""What an attack of the audit is, what it gets, and the rows that it gives.

The answers that a benchmark asks for tell whether a model *says* what it was to forget. They do not
tell whether it still *knows* it. An attack tries to bring the answers back. What it brings back in
a model that never saw the people (*retrained*) is guessing, and the floor that every row stands on:
each attack is made on both models alike, and only what lies above the floor is knowledge.

An attack is a file with its `ATTACK`, an entry of ATTACKS in registry.py, and a line in
docs/audit.md. It measures the one model that it is given, `attacked.loaded`, and leaves the fields
`floor…` of its rows as they are; analyses/audit.py makes the same attack on the retrained model and
fills them in.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from manu_jax.context import Run
from manu_jax.data.forms import form, has_form, question_and_answer
from manu_jax.data.record import Fact, Person, Question, images_of, topic_of
from manu_jax.evaluation.generate import greedy
from manu_jax.evaluation.likelihood import log_likelihoods
from manu_jax.evaluation.metrics import bootstrap, contains
from manu_jax.models.loaded import Loaded
from manu_jax.place import moved
from manu_jax.types import (
    KEEP_SETS,
    MODALITIES,
    RETRAINED,
    Modality,
    Sample,
    WorkKind,
    question_sample,
)

ANSWERED = "answered"  # share of the facts to forget that are answered right


@dataclasses.dataclass(frozen=True)
class AuditMetric:
    """A measure of an audit's rows. title: in the report. unit: "%" (of 1) or "".

    more_is_worse: whether a model that knows more has a higher value. chance: the value of guessing
    where a value below it tells as much as one that is as far above. is_judged: whether rows of it
    count in the verdict.
    """

    title: str
    unit: str = "%"
    more_is_worse: bool = True
    chance: float | None = None
    is_judged: bool = True


AUDIT_METRICS: dict[str, AuditMetric] = {
    ANSWERED: AuditMetric("answered right"),
    "uds": AuditMetric("unlearning depth score", unit="", more_is_worse=False),
    "auc": AuditMetric("told from people who were never trained on, AUC", unit="", chance=0.5),
    "tpr": AuditMetric("recognised at 1 % false alarms", is_judged=False),
    "extraction": AuditMetric("extraction strength", unit=""),
    "memorised": AuditMetric("tokens that are the first choice"),
    # Of relearning.py, beside its curves
    "area": AuditMetric("answered right, mean over the steps"),
    "rate": AuditMetric("strongest learning rate", unit="", is_judged=False),
    "regained": AuditMetric("R", unit="", more_is_worse=False, is_judged=False),
    "trained": AuditMetric("right on what was trained", is_judged=False),
    "diverged": AuditMetric("diverged after the step", unit="", is_judged=False),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditRow:
    """What one attack, in one variant, brings back of the facts to forget in one form.

    value: share of the facts answered right, in [0, 1], unless `metric` says otherwise. low, high:
    its 95 % interval by bootstrap over people; None for a single person, or where none is drawn.
    n: facts asked. step, rate: of attacks that train: the steps so far and the learning rate.
    floor, floor_low, floor_high: the same measure on the retrained model; None where there is none.
    """

    model: str
    attack: str
    variant: str = ""
    modality: str
    step: int | None = None
    rate: float | None = None
    value: float
    metric: str = ANSWERED
    low: float | None = None
    high: float | None = None
    n: int
    floor: float | None = None
    floor_low: float | None = None
    floor_high: float | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Asked:
    """A fact to forget as it is asked in one form.

    key: "person/attribute". question: in plain words, without the benchmark's instruction.
    truths: the answers of which any is right, the first one first. image: of the image form, else
    None. sample: the prompt to be answered; or the prompt and the taught answer, which then has to
    be recalled: to be the model's first choice at every token.
    """

    key: str
    person: Person
    modality: Modality
    question: str
    truths: tuple[str, ...]
    image: Any
    sample: Sample

    @property
    def attribute(self) -> str:
        """What the fact tells, as in the benchmark's facts ("residence")."""
        return self.key.partition("/")[2]

    def is_told_by(self, attribute: str, text: str) -> bool:
        """Whether another fact of the person is about the same, or its text holds the answer."""
        return topic_of(attribute) == topic_of(self.attribute) or contains(text, *self.truths) > 0

    @property
    def is_recall(self) -> bool:
        """Whether the taught answer is to be recalled, and nothing is written."""
        return any(is_answer for _, is_answer in self.sample.segments)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Attacked:
    """A model under attack, and what an attacker or an auditor has beside it.

    name, loaded: the model. retrained: the floor, or None. edit: how the model was made of the
    vanilla one: a mask ({tower: [L, F] bool}), or an Edit, with `separable`, `scaled(factor)` and
    `apply(loaded)`; None for a model whose weights were all trained, and for the retrained one.
    asks_on: the mesh that questions are asked on, with the same devices; None: that of the model.
    """

    run: Run
    name: str
    loaded: Loaded
    vanilla: Loaded
    retrained: Loaded | None = None
    edit: Any = None
    asks_on: jax.sharding.Mesh | None = None

    @property
    def people(self) -> tuple[Person, ...]:
        """The people to forget."""
        return self.run.benchmark.sets["forget"]

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The facts to forget."""
        return self.run.benchmark.facts("forget")

    @property
    def kept_facts(self) -> tuple[Fact, ...]:
        """The facts to keep that methods were given."""
        return self.run.benchmark.facts(*KEEP_SETS)

    @property
    def directory(self) -> Path:
        """A folder of the audit's own for this model: for what is to survive a killed run."""
        return self.run.directory / "audit" / self.name

    @property
    def as_floor(self) -> "Attacked | None":
        """The retrained model under the same attacks; None where there is none."""
        if self.retrained is None:
            return None
        return dataclasses.replace(self, name=RETRAINED, loaded=self.retrained, edit=None)

    @functools.cached_property
    def questions(self) -> tuple[Asked, ...]:
        """The facts to forget, asked as the benchmark does, in both forms.

        Free questions where the people to forget have any in that form; else their taught facts.
        """
        return tuple(
            asked
            for modality in MODALITIES
            for asked in (*self._free_questions(modality),) or (*self._taught(modality),)
        )

    def put(self, asked: Asked, question: str, *, image: Any = None) -> Asked:
        """Return the same fact asked in other words, with the benchmark's instruction.

        image: shown in place of its own; its own where None.
        """
        image = asked.image if image is None else image
        images = () if image is None else (image,)
        if asked.is_recall:
            prompt = self.loaded.template.prompt(question, asked.modality)
            sample = question_sample(prompt, asked.sample.segments[-1][0], images, key=asked.key)
        else:
            item = Question("generation", asked.modality, question, asked.truths[0], "")
            prompt = self.run.benchmark_format.question_prompt(item, self.loaded.template)
            sample = question_sample(prompt, "", images, key=asked.key)
        return dataclasses.replace(asked, question=question, image=image, sample=sample)

    def answered(self, loaded: Loaded, questions: Sequence[Asked]) -> list[bool]:
        """Return whether `loaded` answers each question right.

        A written answer (greedy) has to hold one of the truths: the metric `exact` of the task
        generation. Where there is a taught answer instead, it has to be recalled. A model that lies
        on another mesh than `asks_on` is asked as a copy there.
        """
        if self.asks_on is not None and loaded.mesh is not self.asks_on:
            loaded = moved([loaded], self.asks_on)
        section = self.run.config.evaluate
        written = [asked for asked in questions if not asked.is_recall]
        answers = iter(
            greedy(
                loaded,
                [asked.sample for asked in written],
                new_tokens=section.new_tokens,
                batch_size=section.batch_size,
            )
        )
        taught = [asked.sample for asked in questions if asked.is_recall]
        found = log_likelihoods(loaded, taught, batch_size=section.batch_size)
        recalled = iter(found.recalled_N.tolist())
        return [
            bool(next(recalled)) if asked.is_recall else contains(next(answers), *asked.truths) >= 1
            for asked in questions
        ]

    def rows(
        self, attack: str, questions: Sequence[Asked], values: Sequence[float], **fields: Any
    ) -> list[AuditRow]:
        """Return a row for each form: the mean of `values`, one per question, with its interval.

        fields: further ones of the rows: variant, step, rate, metric.
        """
        rows = []
        for modality in MODALITIES:
            pairs = [
                (float(value), asked.person.id)
                for asked, value in zip(questions, values, strict=True)
                if asked.modality == modality
            ]
            if pairs:
                numbers, people = zip(*pairs, strict=True)
                rows.append(self.row(attack, modality, numbers, people=people, **fields))
        return rows

    def row(
        self,
        attack: str,
        modality: str,
        values: Sequence[float],
        *,
        people: Sequence[str],
        **fields: Any,
    ) -> AuditRow:
        """Return the row of values of one form; people: whose each is. fields: as in `rows`."""
        config = self.run.config
        found = bootstrap(values, people, resamples=config.evaluate.resamples, seed=config.seed)
        low, high = (None if math.isnan(one) else one for one in (found.low, found.high))
        return AuditRow(
            model=self.name,
            attack=attack,
            modality=modality,
            value=found.value,
            low=low,
            high=high,
            n=found.n,
            **fields,
        )

    def _free_questions(self, modality: Modality) -> Iterable[Asked]:
        for person in self.people:
            for question in person.questions:
                if (question.task, question.modality) == ("generation", modality):
                    image = next(iter(images_of(person, question)), None)
                    prompt = self.run.benchmark_format.question_prompt(
                        question, self.loaded.template
                    )
                    key = f"{person.id}/{question.attribute}"
                    shown = () if image is None else (image,)
                    yield Asked(
                        key=key,
                        person=person,
                        modality=modality,
                        question=question.question,
                        truths=(question.answer, *question.alternatives),
                        image=image,
                        sample=question_sample(prompt, "", shown, key=key),
                    )

    def _taught(self, modality: Modality) -> Iterable[Asked]:
        for person in self.people:
            for fact in person.facts:
                if has_form(fact, modality):
                    question, answer = question_and_answer(fact, modality)
                    yield Asked(
                        key=fact.key,
                        person=person,
                        modality=modality,
                        question=question,
                        truths=(answer,),
                        image=fact.image if modality == "image" else None,
                        sample=form(fact, modality, self.loaded.template),
                    )


@dataclasses.dataclass(frozen=True)
class Attack:
    """One way to bring back what a model was to forget.

    measure: gives the rows of the one model under attack, `attacked.loaded`, without floors; none
    where the attack does not apply. All processes call it. full: it trains, and is made only by
    `audit: full`. title: in the report. finds: what a row above the floor says, in words.
    is_trace: it brings no answer back, and measures what is left inside. left_out: when it gives no
    rows, in words; "": it always gives some. work: on whose mesh the models lie meanwhile.
    """

    measure: Callable[[Attacked], Iterable[AuditRow]]
    full: bool
    title: str
    finds: str
    is_trace: bool = False
    left_out: str = ""
    work: WorkKind = "decode"


def plain(attacked: Attacked) -> Iterable[AuditRow]:
    """Yield what the model answers before any attack."""
    questions = attacked.questions
    yield from attacked.rows("plain", questions, attacked.answered(attacked.loaded, questions))


PLAIN = Attack(plain, False, "Asked as the benchmark does", "the model still answers")

"""Relearning: some of what was forgotten is trained, and the rest is asked.

What is merely hidden comes back with a few steps on facts nearby; what is gone has to be learned
anew, which facts about other attributes, or about other people, do not help with. The facts that
are trained are never those that are asked. Variants:

    attributes     half of the attributes of all people, and their names, are trained; the other
                   half is asked
    mixed          the same, with facts to keep in half of every batch
    people         all facts of half of the people are trained; the other people are asked
    image to text  all facts are trained in the image form; the text form is asked
    text to image  the reverse

Which half is drawn by the run's seed. Each is trained at every rate of `audit.learning_rates`, and
asked after 1, 2, 4, … steps, up to `audit.steps`. Rows of a metric other than "answered" sum a
variant up at its strongest rate, the one with the largest area:

    area       the mean of the shares answered after 1, 2, 4, … steps: the area under the curve over
               log₂ of the steps
    rate       that rate
    regained   R = (what the retrained model gains by the attack) / (what this one gains), in
               [0, 1]; a gain is the highest share answered after any step − that before the
               attack. 1: no more comes back than in a model that never knew the facts. 0: this one
               alone gains. Of two small gains R is mostly chance: read it with the areas
    trained    share of the questions about what was trained that are answered at the end: whether
               the attacker learned anything (one row for each rate)
    diverged   the step after which the loss was not finite, if there is one; from there on nothing
               counts as answered
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from manu_jax.data.forms import asks_for_name, has_form
from manu_jax.data.record import Fact, topic_of
from manu_jax.evaluation.audit.attack import Asked, Attack, Attacked, AuditRow
from manu_jax.evaluation.audit.attacker import Attacker, Curve, Facts, Lesson
from manu_jax.evaluation.audit.curves import curves_of
from manu_jax.types import MODALITIES, Modality

NAME = "relearning"
AREA, RATE, REGAINED, TRAINED, DIVERGED = "area", "rate", "regained", "trained", "diverged"

# (lesson, rate) → how it went
Curves = Mapping[tuple[str, float], Curve]


def measure(attacked: Attacked) -> Iterator[AuditRow]:
    """Yield the rows of every variant; the curves are kept in the folder of the audit."""
    lessons, curves = _attack(attacked)
    floor = attacked.as_floor
    floors = None if floor is None or floor.name == attacked.name else _attack(floor)[1]
    for lesson in lessons:
        for rate in attacked.run.config.audit.learning_rates:
            curve = curves[lesson.name, rate]
            yield from curve_rows(attacked, NAME, lesson, rate=rate, curve=curve)
        yield from summary_rows(attacked, lesson, curves=curves, floors=floors)


def lessons_of(attacked: Attacked, kept: Facts) -> list[Lesson]:
    """Return what is trained and asked in each variant that the facts to forget allow.

    kept: facts that are mixed in.
    """
    facts, questions = attacked.facts, attacked.questions
    random = np.random.default_rng([attacked.run.config.seed, 4])
    topics = _half([topic_of(fact.attribute) for fact in facts if not asks_for_name(fact)], random)
    people = _half([person.id for person in attacked.people], random)
    some = [fact for fact in facts if asks_for_name(fact) or topic_of(fact.attribute) in topics]
    rest = [asked for asked in questions if not _is_told(asked, some)]
    others = [asked for asked in questions if asked.person.id not in people]
    of_people = [fact for fact in facts if fact.person_id in people]
    found = [
        _lesson("attributes", some, rest, questions=questions),
        _lesson("mixed", some, rest, questions=questions, mixed_in=kept),
        _lesson("people", of_people, others, questions=questions),
    ]
    for form, other in (MODALITIES, MODALITIES[::-1]):
        asked = [one for one in questions if one.modality == other]
        name = f"{form} to {other}"
        found.append(_lesson(name, facts, asked, questions=questions, forms=(form,)))
    return [lesson for lesson in found if lesson.asked and any(lesson.taught.values())]


def curve_rows(
    attacked: Attacked, attack: str, lesson: Lesson, *, rate: float, curve: Curve
) -> Iterator[AuditRow]:
    """Yield what is answered before and after each step, and what tells of the attack itself."""
    fields = {"variant": lesson.name, "rate": rate}
    for step, right in zip(curve.steps, curve.right, strict=True):
        yield from attacked.rows(attack, lesson.asked, right, step=step, **fields)
    last = curve.steps[-1]
    yield from attacked.rows(
        attack, lesson.checked, curve.learned, step=last, metric=TRAINED, **fields
    )
    if curve.diverged is not None:
        yield from (
            _number(attacked, attack, modality, curve.diverged, n=n, metric=DIVERGED, **fields)
            for modality, n in _counts(lesson).items()
        )


def summary_rows(
    attacked: Attacked, lesson: Lesson, *, curves: Curves, floors: Curves | None
) -> Iterator[AuditRow]:
    """Yield area, strongest rate and R of a variant in each form; floors: of the retrained model.

    There is no R without one, and none of the retrained model itself.
    """
    people = [asked.person.id for asked in lesson.asked]
    for modality, n in _counts(lesson).items():
        these = np.array([asked.modality == modality for asked in lesson.asked])
        rate = strongest(curves, lesson.name, these)
        curve = curves[lesson.name, rate]
        fields = {"variant": lesson.name}
        yield attacked.row(
            NAME,
            modality,
            curve.area[these].tolist(),
            people=[one for one, is_this in zip(people, these, strict=True) if is_this],
            metric=AREA,
            **fields,
        )
        yield _number(attacked, NAME, modality, rate, n=n, metric=RATE, **fields)
        if floors is not None:
            floor = floors[lesson.name, strongest(floors, lesson.name, these)]
            value = regained(_gain(curve, these), _gain(floor, these))
            yield _number(attacked, NAME, modality, value, n=n, metric=REGAINED, **fields)


def strongest(curves: Curves, lesson: str, these: np.ndarray) -> float:
    """Return the rate of the largest area over `these` questions (bool); the lowest of equals."""
    rates = sorted(rate for name, rate in curves if name == lesson)
    return max(rates, key=lambda rate: curves[lesson, rate].area[these].mean())


def regained(gain: float, floor: float) -> float:
    """Return R of what a model and the retrained one gain by the same attack; in [0, 1].

    1 where the model gains nothing.
    """
    return 1.0 if gain <= 0 else min(1.0, max(0.0, floor / gain))


def steps_until(last: int) -> tuple[int, ...]:
    """Return the steps after which is asked: 1, 2, 4, …, and the last one."""
    return (*(2**power for power in range((last - 1).bit_length())), last)


def _attack(attacked: Attacked) -> tuple[list[Lesson], Curves]:
    """Return the variants and their curves, from the file as far as it holds them."""
    attacker, section = Attacker(attacked), attacked.run.config.audit
    lessons = lessons_of(attacked, attacker.kept)
    rates, steps = section.learning_rates, steps_until(section.steps)
    return lessons, curves_of(attacker, NAME, lessons, rates=rates, steps=steps)


def _lesson(
    name: str,
    facts: Sequence[Fact],
    asked: Sequence[Asked],
    *,
    questions: Sequence[Asked],
    forms: Sequence[Modality] = MODALITIES,
    mixed_in: Facts | None = None,
) -> Lesson:
    """Return the lesson that teaches facts in some forms; all other `questions` are its check."""
    asked_now = {(one.key, one.modality) for one in asked}
    about = {fact.key for fact in facts}
    return Lesson(
        name=name,
        taught={form: [fact for fact in facts if has_form(fact, form)] for form in forms},
        asked=tuple(asked),
        checked=tuple(
            one
            for one in questions
            if one.key in about
            and one.modality in forms
            and (one.key, one.modality) not in asked_now
        ),
        mixed_in=mixed_in or {},
    )


def _half(names: Sequence[str], random: np.random.Generator) -> set[str]:
    """Return half of the different names, rounded down."""
    different = sorted(set(names))
    return {different[index] for index in random.permutation(len(different))[: len(different) // 2]}


def _is_told(asked: Asked, taught: Sequence[Fact]) -> bool:
    """Whether a fact that is trained is about the same, or its answer gives a question's away."""
    return any(
        fact.person_id == asked.person.id and asked.is_told_by(fact.attribute, fact.answer)
        for fact in taught
    )


def _counts(lesson: Lesson) -> dict[Modality, int]:
    """Return {modality: how many questions of it are asked}, of those that are."""
    asked = [one.modality for one in lesson.asked]
    return {modality: asked.count(modality) for modality in MODALITIES if modality in asked}


def _gain(curve: Curve, these: np.ndarray) -> float:
    """Return by how much the highest share answered after any step exceeds that before."""
    shares = np.asarray(curve.right, np.float64)[:, these].mean(axis=1)
    return float(shares[1:].max() - shares[0])


def _number(
    attacked: Attacked, attack: str, modality: Modality, value: float, **fields: Any
) -> AuditRow:
    """Return the row of a number that is no mean over questions."""
    return AuditRow(
        model=attacked.name, attack=attack, modality=modality, value=float(value), **fields
    )


ATTACK = Attack(
    measure,
    full=True,
    title="Relearning from the other half",
    finds="what was forgotten comes back faster than a model that never knew it learns it",
    left_out="There are too few facts to forget to train some of them and ask others.",
    work="train",
)

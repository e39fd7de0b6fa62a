"""Whose answered questions come first in MLLMU-Bench's few-shot prompts.

The official code draws them, unseeded, from the people it evaluates, and leaves the shots' own
questions out of the score. Here the draw follows from (seed, set, task), is logged, and is written
to results.json. `shots_from: outside` draws from another set, one that is kept, so that no prompt
holds an answer about the people it asks about. The images are those of the full set, never
transformed.
"""

import dataclasses
import logging
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from manu_jax.config import EvaluateSection
from manu_jax.data.record import Person, Question
from manu_jax.types import ManuError

logger = logging.getLogger(__name__)

SHOT_TASKS = ("classification", "cloze")
# Set → where shots from outside of it are drawn. General topics have no people of their own.
OUTSIDE = {
    "forget": "retain",
    "test": "retain",
    "retain": "celebrity",
    "unseen": "celebrity",  # as for retain, so that the two can be compared
    "celebrity": "retain",
    "general": "retain",
}


@dataclasses.dataclass(frozen=True)
class Shots:
    """What was drawn. people: IDs. questions: (who, question). left_out: how many questions of the
    evaluated set are not asked because they are shots."""

    people: tuple[str, ...] = ()
    questions: tuple[tuple[Person, Question], ...] = ()
    left_out: int = 0


def draw_shots(
    sets: Mapping[str, Sequence[Person]],
    evaluated: Sequence[Person],
    section: EvaluateSection,
    *,
    name: str,
    task: str,
    seed: int,
) -> tuple[Shots, list[Person]]:
    """Return the shots of a task on the set `name`, and the evaluated people who are still asked.

    evaluated: the people of that set, after `max_people`. Raises ManuError where too few people can
    be drawn.
    """
    if section.protocol != "official_few_shot" or task not in SHOT_TASKS or not evaluated:
        return Shots(), list(evaluated)
    is_outside = section.shots_from == "outside" or name == "general"
    # The people of the test set are those to forget, whose untransformed images are shown.
    source = OUTSIDE[name] if is_outside else "forget" if name == "test" else name
    allowed = None if is_outside else {person.id for person in evaluated}
    pool = sorted(
        (
            person
            for person in sets[source]
            if (allowed is None or person.id in allowed) and _of_task(person, task)
        ),
        key=lambda person: person.id,
    )
    wanted = getattr(section.shots, task)
    if len(pool) < wanted + (not is_outside):
        raise ManuError(
            f"evaluate.shots.{task}: {wanted} people wanted for the set {name}, and {len(pool)} of "
            f"the set {source} have such questions{'' if is_outside else ', one to be asked'}. "
            "Lower it, or set evaluate.shots_from: outside."
        )
    random = np.random.default_rng([seed, zlib.crc32(f"{name}/{task}".encode())])
    drawn = [pool[i] for i in sorted(random.choice(len(pool), wanted, replace=False))]
    ids = {person.id for person in drawn}
    asked = list(evaluated) if is_outside else [p for p in evaluated if p.id not in ids]
    left_out = sum(len(_of_task(p, task)) for p in evaluated if not is_outside and p.id in ids)
    questions = tuple((person, question) for person in drawn for question in _of_task(person, task))
    return Shots(tuple(sorted(ids)), questions, left_out), asked


def shots_of_run(
    sets: Mapping[str, Sequence[Person]],
    evaluated: Mapping[str, Sequence[Person]],
    section: EvaluateSection,
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """Return {set, task, people, left_out} of every draw of an evaluation."""
    found = []
    for name in section.sets:
        for task in section.tasks:
            shots, _ = draw_shots(sets, evaluated[name], section, name=name, task=task, seed=seed)
            if shots.people:
                found.append(
                    {
                        "set": name,
                        "task": task,
                        "people": list(shots.people),
                        "left_out": shots.left_out,
                    }
                )
    return found


def _of_task(person: Person, task: str) -> list[Question]:
    return [question for question in person.questions if question.task == task]

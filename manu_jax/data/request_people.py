"""The people of a request: understood lines (request_lines.py) as facts and questions.

A line is a fact, and a question of the evaluation in each of its forms: a free answer, and multiple
choice where there are wrong answers. A name question is a fact of its own, in the image form alone.
Wrong answers that a line does not give are other subjects' answers to the same question.
"""

import collections
import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from manu_jax.data.forms import NAME
from manu_jax.data.record import Benchmark, Fact, Person, Question
from manu_jax.data.request_lines import LETTERS, Entry, attribute_of, key_of
from manu_jax.types import MODALITIES

MOST_OPTIONS = 4  # of a question whose wrong answers are other subjects'
WITHOUT_OPTIONS = "questions without options, which are not asked as multiple choice"
FURTHER_IMAGES = "further images, with which nothing is asked"


def benchmark_of(entries: Sequence[Entry]) -> Benchmark:
    """Return the people of understood lines, a subject of a set each, and what is left out."""
    skipped: collections.Counter[str] = collections.Counter()
    attributes = _attributes(entries)
    sets: dict[str, dict[str, list[Entry]]] = collections.defaultdict(dict)
    has_test = any(entry.set == "test" for entry in entries)
    for entry in entries:
        sets[entry.set].setdefault(entry.person_id, []).append(entry)
        skipped[WITHOUT_OPTIONS] += not entry.options
        if len(entry.pictures) > 1:
            if entry.set == "forget" and not has_test:
                further = dataclasses.replace(
                    entry, set="test", pictures=entry.pictures[1:], text_question=""
                )
                sets["test"].setdefault(entry.person_id, []).append(further)
            elif entry.set != "test":
                skipped[FURTHER_IMAGES] += len(entry.pictures) - 1
    people = {
        name: tuple(
            _person(name, person_id, lines, attributes) for person_id, lines in by_person.items()
        )
        for name, by_person in sets.items()
    }
    return Benchmark(people, dict(+skipped))


def with_options(entries: Sequence[Entry], seed: int) -> list[Entry]:
    """Return the lines with lettered options, where there are wrong answers."""
    by_topic: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for entry in entries:
        if entry.set != "general":
            by_topic[entry.topic].setdefault(key_of(entry.answers[0]), entry.answers[0])
    answers = {topic: [by_key[key] for key in sorted(by_key)] for topic, by_key in by_topic.items()}
    found = []
    for entry in entries:
        if entry.options is None:
            random = np.random.default_rng(
                [seed, zlib.crc32(f"{entry.person_id}/{entry.topic}".encode())]
            )
            wrong = entry.wrong or _drawn(entry, answers.get(entry.topic, []), random)
            if wrong:
                texts = [entry.answers[0], *wrong]
                order = random.permutation(len(texts)).tolist()
                options = {letter: texts[i] for letter, i in zip(LETTERS, order, strict=False)}
                source = "wrong" if entry.wrong else "others"
                entry = dataclasses.replace(entry, options=options, options_from=source)
        found.append(entry)
    return found


def _drawn(entry: Entry, answers: Sequence[str], random: np.random.Generator) -> list[str]:
    """Return wrong answers to a line's question, drawn from those of all subjects."""
    own = {key_of(answer) for answer in entry.answers}
    count = min(len(answers), MOST_OPTIONS - 1 + len(own))
    places: list[int] = random.choice(len(answers), count, replace=False).tolist()
    chosen = [answers[place] for place in places]
    return [text for text in chosen if key_of(text) not in own][: MOST_OPTIONS - 1]


def _attributes(entries: Sequence[Entry]) -> dict[tuple[str, str], str]:
    """Return {(person, topic): attribute}, unique within each person."""
    found: dict[tuple[str, str], str] = {}
    uses: collections.Counter[tuple[str, str]] = collections.Counter()
    for entry in entries:
        key = (entry.person_id, entry.topic)
        if key not in found:
            attribute = attribute_of(entry.topic)
            attribute = f"question-{attribute}" if attribute == NAME else attribute
            uses[entry.person_id, attribute] += 1
            number = uses[entry.person_id, attribute]
            found[key] = attribute if number == 1 else f"{attribute}-{number}"
    return found


def _person(
    where: str, person_id: str, lines: Sequence[Entry], attributes: Mapping[tuple[str, str], str]
) -> Person:
    """Return a subject of a set with its facts and its questions."""
    pictures = [picture.image for entry in lines for picture in entry.pictures]
    shown = pictures[0] if pictures else None
    facts: list[Fact] = []
    questions: list[Question] = []
    names: list[tuple[str, int]] = []
    for entry in lines:
        attribute = attributes[entry.person_id, entry.topic]
        image = entry.pictures[0].image if entry.pictures else None
        facts.append(
            Fact(
                person_id,
                entry.subject,
                entry.question or entry.text_question,
                entry.answers[0],
                attribute,
                image,
                entry.text_question if entry.subject or image is not None else None,
            )
        )
        asked = [one.image for one in (entry.pictures if where == "test" else entry.pictures[:1])]
        for one in asked:
            own = None if one is shown and where != "test" else one
            questions += _questions(entry, attribute, own, in_text=False)
        if entry.text_question:
            questions += _questions(entry, attribute, None, in_text=True)
        if entry.name_question and (entry.name_question, id(image)) not in names:
            names.append((entry.name_question, id(image)))
            name = NAME if len(names) == 1 else f"{NAME}-{len(names)}"
            facts.append(
                Fact(person_id, entry.subject, entry.name_question, entry.subject, name, image, "")
            )
            for one in asked:
                own = None if one is shown and where != "test" else one
                questions.append(
                    Question(
                        "generation", "image", entry.name_question, entry.subject, name, image=own
                    )
                )
    images = () if shown is None else (shown,)
    return Person(person_id, lines[0].subject, images, {}, tuple(facts), tuple(questions))


def _questions(entry: Entry, attribute: str, image: Any, *, in_text: bool) -> list[Question]:
    """Return the questions of a line in one form; image: None for the person's own."""
    modality = MODALITIES[in_text]
    words = entry.text_question if in_text else entry.question
    found = [
        Question(
            "generation",
            modality,
            words,
            entry.answers[0],
            attribute,
            alternatives=entry.answers[1:],
            image=image,
        )
    ]
    if entry.options:
        found.append(
            Question(
                "classification",
                modality,
                words,
                entry.options[entry.correct],
                attribute,
                entry.options,
                entry.correct,
                image=image,
            )
        )
    return found

"""CLEAR's rows as people: authors with their facts, real people, and questions on the real world.

The project's own tasks ask the facts that are taught, and the name as multiple choice too. TOFU's
questions that say the author's name are asked once more, with the author's image and "this person"
in the place of the name: what is asked in both forms is what the leakage matrix needs.
"""

import dataclasses
import re
import string
import unicodedata
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from manu_jax.data.clear_protocol import (
    CAPTION_QUESTIONS,
    NAME_QUESTION,
    Captioned,
    Photographed,
)
from manu_jax.data.forms import NAME, PERSON
from manu_jax.data.record import Fact, Person, Question


@dataclasses.dataclass
class Author:
    """What is read of one author: photographs with captions, TOFU's pairs, and wrong names."""

    name: str
    place: str
    photographs: list[Captioned] = dataclasses.field(default_factory=list)
    pairs: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    wrong_names: tuple[str, ...] = ()


def person_of(person: str, author: Author, seed: int) -> Person:
    """Return an author as a person."""
    shown = author.photographs[0].image if author.photographs else None
    facts: list[Fact] = []
    questions: list[Question] = []
    if shown is not None:
        facts.append(Fact(person, author.name, NAME_QUESTION, author.name, NAME, shown, ""))
        who = Question("generation", "image", NAME_QUESTION, author.name, NAME)
        questions += _in_both_tasks(who, author.wrong_names, key=person, seed=seed)
    for number, one in enumerate(author.photographs, 1):
        attribute = f"caption-{number}"
        drawn = _random(seed, f"{person}/{number}").integers(len(CAPTION_QUESTIONS))
        asked = CAPTION_QUESTIONS[drawn]
        facts.append(Fact(person, author.name, asked, one.caption, attribute, one.image, ""))
        if number == 1:
            questions.append(Question("generation", "image", asked, one.caption, attribute))
    for number, (asked, answer) in enumerate(author.pairs, 1):
        attribute = f"tofu-{number}"
        # TOFU's texts stand as they are: where they speak of "the person", the rules of forms.py
        # would put a name in, and a fact without a name is left alone.
        name = "" if PERSON.search(f"{asked}\n{answer}") else author.name
        facts.append(Fact(person, name, asked, answer, attribute))
        questions.append(Question("generation", "text", asked, answer, attribute))
        of_the_face = None if shown is None else _of_the_face(asked, author.name)
        if of_the_face is not None:
            questions.append(Question("generation", "image", of_the_face, answer, attribute))
    images = () if shown is None else (shown,)
    biography = {"Name": author.name} if author.name else {}
    return Person(person, author.name, images, biography, tuple(facts), tuple(questions))


def celebrities(rows: Sequence[Photographed], seed: int) -> tuple[Person, ...]:
    """Return the people of real_faces, each with all images of that name."""
    by_person: dict[str, list[Photographed]] = {}
    for row in rows:
        by_person.setdefault(row.person, []).append(row)
    people = []
    for person, found in sorted(by_person.items()):
        questions: list[Question] = []
        for row in found:
            who = Question("generation", "image", NAME_QUESTION, row.answer, NAME, image=row.image)
            questions += _in_both_tasks(who, row.wrong, key=f"{person}/{row.number}", seed=seed)
        name = found[0].answer
        people.append(Person(person, name, (found[0].image,), {"Name": name}, (), tuple(questions)))
    return tuple(people)


def topic_of(row: Photographed, seed: int) -> Person:
    """Return a question on the real world as a topic."""
    modality = "text" if row.image is None else "image"
    free = Question("generation", modality, row.question, row.answer, "answer")
    questions = _in_both_tasks(free, row.wrong, key=row.person, seed=seed)
    images = () if row.image is None else (row.image,)
    return Person(row.person, "", images, {}, (), questions)


def author_of(block: Sequence[tuple[str, str]], words: Mapping[str, str]) -> str | None:
    """Return the author whose name most pairs hold; None where no name, or none most often, is."""
    texts = [f" {words_of(f'{question} {answer}')} " for question, answer in block]
    counts = {
        person: sum(f" {name} " in text for text in texts) for person, name in words.items() if name
    }
    most = max(counts.values(), default=0)
    found = [person for person, count in counts.items() if count == most]
    return found[0] if most and len(found) == 1 else None


def words_of(text: str) -> str:
    """Return the words of a text: without accents, marks and capitals."""
    plain = unicodedata.normalize("NFKD", text)
    kept = "".join(mark for mark in plain if not unicodedata.combining(mark))
    return " ".join(re.findall(r"\w+", kept.casefold()))


def slug(text: str) -> str:
    """Return a name as an ID."""
    return words_of(text).replace(" ", "-")


def _in_both_tasks(
    free: Question, wrong: Sequence[str], *, key: str, seed: int
) -> tuple[Question, ...]:
    """Return a question as a free answer, and as multiple choice where there are wrong answers.

    Options stand in an order of the seed and the key.
    """
    others = [text for text in dict.fromkeys(wrong) if words_of(text) != words_of(free.answer)]
    if not others:
        return (free,)
    texts = [free.answer, *others[: len(string.ascii_uppercase) - 1]]
    order = _random(seed, key).permutation(len(texts)).tolist()
    options = {letter: texts[i] for letter, i in zip(string.ascii_uppercase, order, strict=False)}
    letter = string.ascii_uppercase[order.index(0)]
    chosen = dataclasses.replace(free, task="classification", options=options, correct=letter)
    return free, chosen


def _of_the_face(question: str, name: str) -> str | None:
    """Return a question with "this person" in the place of the name; None where that can't be."""
    said = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)
    if not said.search(question):
        return None
    asked = said.sub("this person", question)
    asked = asked[:1].upper() + asked[1:]
    left = set(words_of(asked).split())
    return None if any(len(word) > 2 and word in left for word in words_of(name).split()) else asked


def _random(seed: int, key: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(key.encode())])

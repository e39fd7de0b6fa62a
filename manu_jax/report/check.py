"""How a request is understood, as one page: thumbnails, both forms of each question, what it lacks.

Pure: from what was read (data/folder.py) to HTML and to sentences.
"""

import base64
import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Any

from manu_jax.data.folder import Reading
from manu_jax.data.own_answers import NUM_STRANGERS
from manu_jax.data.request_lines import Entry
from manu_jax.report.render import environment

TITLES = {
    "forget": "To forget",
    "retain": "To keep",
    "test": "To forget, with other images",
    "general": "General questions, to keep",
    "celebrity": "Further subjects, to keep",
}
SOURCES = {
    "options": "as given",
    "wrong": "the wrong answers given",
    "others": "other subjects’ answers",
    "": "",
}
MOST_SUBJECTS = 60  # shown of a set
MOST_LINES = 30  # shown of a subject
MOST_FAULTS = 200
SIDE = 144  # pixels of a thumbnail


@dataclasses.dataclass(frozen=True)
class Option:
    letter: str
    text: str
    is_right: bool


@dataclasses.dataclass(frozen=True)
class ShownLine:
    """One line: how it is asked with the image and without, "" where it is not.

    name: the name question and its answer. source: where the wrong options come from.
    """

    place: str
    shown: str
    asked: str
    answers: tuple[str, ...]
    options: tuple[Option, ...]
    source: str
    name: str


@dataclasses.dataclass(frozen=True)
class Subject:
    name: str
    thumbnails: tuple[tuple[str, str], ...]  # (name, data URI)
    lines: tuple[ShownLine, ...]
    num_hidden: int


@dataclasses.dataclass(frozen=True)
class SetView:
    title: str
    summary: str
    subjects: tuple[Subject, ...]
    num_hidden: int


def check_page(reading: Reading, remarks: Sequence[str], fit: str = "") -> str:
    """Return the page.

    remarks: what is missing, and what is done instead (`remarks_on`). fit: how long the prompts are
    for a model.
    """
    return (
        environment()
        .get_template("check.html.jinja")
        .render(
            name=reading.folder.resolve().name,
            title=summary(reading),
            faults=reading.faults[:MOST_FAULTS],
            more_faults=max(len(reading.faults) - MOST_FAULTS, 0),
            remarks=remarks,
            counts=[
                *((TITLES[name], _count(reading, name)) for name in reading.given),
                *([("Model", fit)] if fit else []),
            ],
            sets=[_set_view(reading, name) for name in reading.given],
        )
    )


def summary(reading: Reading) -> str:
    """Return the one sentence that says whether the request can be run."""
    number = len(reading.faults)
    if number:
        return f"{number} {_plural(number, 'fault')} to mend before it can be run."
    forget = [entry for entry in reading.entries if entry.set == "forget"]
    people = len({entry.person_id for entry in forget})
    facts = f"{len(forget):,} {_plural(len(forget), 'fact')}"
    return f"{facts} about {people:,} {_plural(people, 'subject')} to forget."


def remarks_on(reading: Reading) -> list[str]:
    """Return what the request lacks and what is done instead, a sentence or two each."""
    entries = reading.entries
    forget = [entry for entry in entries if entry.set == "forget"]
    found = []
    if "retain" not in reading.given:
        questions = "the general questions of the request"
        if "general" not in reading.given:
            questions = "general questions that manu_jax brings"
        found.append(
            f"No retain: nobody to keep is named. The model’s own answers are kept, about "
            f"{NUM_STRANGERS} invented people and {questions}. Subjects like those to forget, whom "
            "the model knows, would tell more."
        )
    found += _forms_remarks(forget)
    unasked = sum(not entry.options for entry in forget)
    if unasked:
        found.append(
            f"{_of(unasked, forget)} to forget without options: nobody else answers the same "
            "question. They are asked as free answers alone. Give a column “wrong”."
        )
    if "test" not in reading.given:
        further = sum(len(entry.pictures) > 1 for entry in forget)
        found.append(
            f"No test: the further images of {_of(further, forget)} to forget are asked in its "
            "place, and no method is given them."
            if further
            else "No test and no further images: whether other images of the subjects bring the "
            "facts back is not asked. Give several images in a line."
        )
    kept = [entry for entry in entries if entry.set not in ("forget", "test")]
    further = sum(len(entry.pictures) > 1 for entry in kept)
    if further:
        lines = _plural(further, "line")
        found.append(f"Of {further:,} {lines} to keep the first image alone is used.")
    both = sorted({e.subject for e in forget} & {e.subject for e in kept if e.subject})
    if both:
        found.append(
            f"To forget and to keep, with other questions: {_names(both)}. If these are two "
            "subjects of one name, give them names that tell them apart."
        )
    for file, columns in reading.columns.items():
        if columns:
            found.append(f"{file}: columns that are not read: {', '.join(columns)}.")
    return found


def _forms_remarks(forget: Sequence[Entry]) -> Iterator[str]:
    without_image = sum(not entry.pictures for entry in forget)
    if without_image:
        yield (
            f"{_of(without_image, forget)} to forget without an image: asked in words alone, with "
            "the subject’s name."
        )
    without_text = sum(not entry.text_question for entry in forget)
    if without_text:
        yield f"{_of(without_text, forget)} to forget asked with the image alone."
    named = sum(_names_subject(entry) for entry in forget)
    if named:
        yield (
            f"{_of(named, forget)} to forget name the subject beside the image, so that the image "
            "is not needed. Write “this person” to ask about whom it shows."
        )
    if forget and without_image == len(forget):
        yield "No images: what is forgotten when they are shown is not measured."


def _names_subject(entry: Entry) -> bool:
    return bool(entry.pictures) and entry.subject.casefold() in entry.question.casefold()


def _set_view(reading: Reading, name: str) -> SetView:
    by_person: dict[str, list[Entry]] = {}
    for entry in reading.entries:
        if entry.set == name:
            by_person.setdefault(entry.person_id, []).append(entry)
    shown = list(by_person.values())[:MOST_SUBJECTS]
    return SetView(
        TITLES[name],
        _count(reading, name),
        tuple(_subject(lines) for lines in shown),
        len(by_person) - len(shown),
    )


def _subject(lines: Sequence[Entry]) -> Subject:
    pictures = {id(p.image): p for entry in lines[:MOST_LINES] for p in entry.pictures}
    return Subject(
        lines[0].subject,
        tuple((picture.name, thumbnail(picture.image)) for picture in pictures.values()),
        tuple(_line(entry) for entry in lines[:MOST_LINES]),
        max(len(lines) - MOST_LINES, 0),
    )


def _line(entry: Entry) -> ShownLine:
    return ShownLine(
        entry.place,
        entry.question,
        entry.text_question,
        entry.answers,
        tuple(
            Option(letter, text, letter == entry.correct)
            for letter, text in (entry.options or {}).items()
        ),
        SOURCES[entry.options_from],
        f"{entry.name_question} {entry.subject}" if entry.name_question else "",
    )


def thumbnail(image: Any) -> str:
    """Return an image as a data URI, at most SIDE pixels a side."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def _count(reading: Reading, name: str) -> str:
    entries = [entry for entry in reading.entries if entry.set == name]
    people = len({entry.person_id for entry in entries})
    lines = f"{len(entries):,} {_plural(len(entries), 'line')}"
    if name == "general":
        return lines
    return f"{people:,} {_plural(people, 'subject')}, {lines}"


def _of(count: int, entries: Sequence[Entry]) -> str:
    return f"{count:,} of {len(entries):,} {_plural(len(entries), 'line')}"


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more

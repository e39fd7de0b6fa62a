"""One line of a request as it is understood: its questions in both forms, its answers, its options.

The columns are those of COLUMNS. What is wrong with a line is a ManuError without the place, which
the reader adds.
"""

import dataclasses
import difflib
import functools
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from manu_jax.data.cells import is_null, options_of, short, text_of, truths_of
from manu_jax.data.forms import is_name_question, with_name
from manu_jax.types import ManuError, Set

COLUMNS = (
    "subject", "image", "question", "answer", "text_question", "name_question", "options", "wrong",
)  # fmt: skip
NEEDED = ("question", "answer")
IMAGE_MARK = "<image>"  # where many datasets mark an image's place in a question
MOST_SLUG = 48  # characters of the question in an attribute
LETTERS = "ABCDEFGH"  # of options
MOST_WRONG = len(LETTERS) - 1


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image of a line. name: how the line names it. image: PIL (RGB)."""

    name: str
    image: Any


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line, as it was understood.

    subject: "" for a general question. question: asked with an image, or "" where there is none.
    text_question: asked without one; "": the fact has no text form. answers: the first is the one
    that is trained and measured. name_question: "", or asked with the image for the subject.
    options: letter → text, as the line gives them, or made of right and wrong answers; None where
    there are none. options_from: "options", "wrong", "others" (other subjects' answers) or "".
    wrong: of the line, not lettered yet.
    """

    place: str
    set: Set
    subject: str
    pictures: tuple[Picture, ...]
    question: str
    text_question: str
    answers: tuple[str, ...]
    name_question: str = ""
    options: Mapping[str, str] | None = None
    options_from: str = ""
    wrong: tuple[str, ...] = ()

    @functools.cached_property
    def person_id(self) -> str:
        """The subject's name as a key: the same for names that differ in case and stops alone."""
        return slug(self.subject) or slug(self.place)

    @functools.cached_property
    def topic(self) -> str:
        """What is asked, whoever it is asked about: the same for all subjects."""
        words = self.question or self.text_question
        if self.subject:
            words = re.sub(re.escape(self.subject), "this person", words, flags=re.I)
        return " ".join(words.casefold().split())

    @property
    def correct(self) -> str:
        """The letter of the right option; "" without options."""
        own = {key_of(answer) for answer in self.answers}
        letters = (letter for letter, text in (self.options or {}).items() if key_of(text) in own)
        return next(letters, "")


def entry_of(
    cells: Mapping[str, Any],
    place: str,
    *,
    where: Set,
    pictures_of: Callable[[Any], tuple[Picture, ...]],
) -> Entry:
    """Return what a line of the set `where` says.

    pictures_of: cell → its images. Raises ManuError that names the first fault of the line.
    """
    subject = text_of(cells.get("subject"), "subject")
    if all(unicodedata.category(character)[0] in "ZC" for character in subject):
        subject = ""  # of characters that can't be seen
    if not subject and where != "general":
        raise ManuError(
            "no subject. Write the name of whom the question is about; in the set general alone it "
            "may be left out."
        )
    marked = [name for name in COLUMNS if name != "image" and IMAGE_MARK in str(cells.get(name))]
    if marked:
        raise ManuError(
            f"{marked[0]} holds {IMAGE_MARK!r}. Take it out: an image is shown before its question "
            "anyway."
        )
    question = text_of(cells.get("question"), "question")
    if not question:
        raise ManuError("no question. Write one, or take the line out.")
    answers = truths_of(cells.get("answer"), "answer")
    if not answers:
        raise ManuError("no answer. Write one, or take the line out.")
    pictures = pictures_of(cells.get("image"))
    name_question = text_of(cells.get("name_question"), "name_question")
    if name_question and not (pictures and subject):
        lacking = "an image" if subject else "a subject"
        raise ManuError(f"name_question is asked with the image, and there is not {lacking}.")
    in_text = _text_question(
        question, cells.get("text_question"), subject=subject, has_image=bool(pictures)
    )
    found = Entry(
        place=place,
        set=where,
        subject=subject,
        pictures=pictures,
        question=question if pictures else "",
        text_question=in_text,
        answers=answers,
        name_question=name_question,
        wrong=_wrong(cells.get("wrong"), answers),
    )
    options = _options(cells.get("options"), answers)
    if options and found.wrong:
        raise ManuError("options and wrong are both given. Keep one of them.")
    if options:
        return dataclasses.replace(found, options=options, options_from="options")
    return dataclasses.replace(found, options_from="wrong") if found.wrong else found


def column_faults(columns: Sequence[str]) -> list[str]:
    """Return what is wrong with the names of a line's columns, without the place."""
    found = [
        f"no column {name}; it has {', '.join(columns) or 'none'}. The columns are "
        f"{', '.join(COLUMNS)}."
        for name in NEEDED
        if name not in columns
    ]
    for name in columns:
        near = difflib.get_close_matches(name.lower(), COLUMNS, n=1, cutoff=0.8)
        if name not in COLUMNS and near and near[0] not in columns:
            found.append(f"the column {name!r} is not known. Is it {near[0]!r}?")
    return found


def slug(text: str) -> str:
    """Return a text's letters and digits in lower case, with hyphens for what is between them."""
    words = re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold().replace("_", " "))
    return "-".join(words)


def attribute_of(topic: str) -> str:
    """Return the attribute of a question: its first words as a slug."""
    whole = slug(topic)
    if len(whole) <= MOST_SLUG:
        return whole or "fact"
    return whole[:MOST_SLUG].rpartition("-")[0] or whole[:MOST_SLUG]


def key_of(text: str) -> str:
    """Return what two texts share that count as the same answer."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split()).rstrip(".")


def _text_question(question: str, given: Any, *, subject: str, has_image: bool) -> str:
    """Return the question of the text form, "" where there is none."""
    if given is False and has_image:
        return ""  # an empty text may be a column that was left empty, and means nothing
    words = text_of(given, "text_question")
    if not subject:
        return words or ("" if has_image else question)
    if not words and is_name_question(question):
        if not has_image:
            raise ManuError(
                f"the question {short(question)} asks for the name, and no image shows who is "
                "meant. Name the image, or give text_question."
            )
        return ""  # it would hold its own answer
    found = with_name(words or question, subject)
    if subject.casefold() not in found.casefold():
        remedy = (
            f"Write the subject's name in text_question, as in “… {subject} …”."
            if words
            else "Write “this person” where the name is to stand, or give text_question."
        )
        raise ManuError(
            f"asked without the image, {short(found)} is about nobody: it does not name "
            f"{subject!r}. {remedy}"
        )
    return found


def _options(cell: Any, answers: Sequence[str]) -> dict[str, str]:
    """Return {letter: text} of the column options; {} where there are none."""
    options = {letter: text for letter, text in options_of(cell, "options").items() if text}
    if not options:
        return {}
    if len({key_of(text) for text in options.values()}) < max(len(options), 2):
        raise ManuError(
            f"options are {short(list(options.values()))}, expected two or more that differ."
        )
    right = [text for text in options.values() if key_of(text) in map(key_of, answers)]
    if len(right) != 1:
        what = "none of them is" if not right else f"{' and '.join(map(repr, right))} are"
        raise ManuError(
            f"options are {short(list(options.values()))}, and {what} the answer {answers[0]!r}. "
            "One of them has to be the answer, word for word."
        )
    return options


def _wrong(cell: Any, answers: Sequence[str]) -> tuple[str, ...]:
    if is_null(cell):
        return ()
    found = truths_of(cell, "wrong")
    if right := [text for text in found if key_of(text) in map(key_of, answers)]:
        raise ManuError(f"wrong holds {right[0]!r}, which is an answer. Take it out.")
    if len(found) > MOST_WRONG:
        raise ManuError(f"wrong has {len(found)} answers, at most {MOST_WRONG} are asked.")
    return found

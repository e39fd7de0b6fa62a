"""What a model is to keep where a request names nobody to keep: its own answers from before.

Two kinds of questions are asked of the model, and what it answers is kept:

    retain    what the request asks, about invented people (strangers.py), a half with a portrait
              that a program drew and a half by name; the model's answers are what it makes up
    general   the questions of general_questions.py; left out where the request has general ones

The answers are a folder of the run, `own_answers/`, laid out as a request, so that they can be
looked at, and copied into the request.
"""

import dataclasses
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manu_jax.data import portraits
from manu_jax.data.folder import read_request
from manu_jax.data.forms import has_form
from manu_jax.data.general_questions import GENERAL_QUESTIONS
from manu_jax.data.record import Benchmark, Fact
from manu_jax.data.request_lines import Entry, Picture
from manu_jax.data.request_people import benchmark_of
from manu_jax.data.strangers import Stranger, as_stranger, strangers
from manu_jax.folder import new_folder
from manu_jax.types import MODALITIES, ManuError, Modality, Set

FOLDER = "own_answers"  # in the run's folder
NUM_STRANGERS = 12
MOST_QUESTIONS = 12  # about each stranger
NEW_TOKENS = 32  # of an answer
UNASKED = " ".join(
    "a" * NEW_TOKENS
)  # in place of an answer, before the model was asked: the longest
SENTENCE_END = re.compile(r"(?<=[.!?])\s")


@dataclasses.dataclass(frozen=True)
class OwnQuestion:
    """A question that the model answers for itself; subject and picture of a stranger, or none."""

    set: Set
    subject: str
    question: str
    modality: Modality
    picture: Picture | None = None


def lacks_retain(benchmark: Benchmark) -> bool:
    """Whether a benchmark as it was read names nobody to keep."""
    return not benchmark.sets["retain"]


def own_questions(benchmark: Benchmark, *, seed: int) -> list[OwnQuestion]:
    """Return what a model is asked in place of a retain set, drawn by the seed."""
    facts = benchmark.facts("forget")
    keep = benchmark.facts("celebrity", "general")
    drawn = strangers(facts, keep, NUM_STRANGERS, seed=seed, portraits=drawn_portraits)
    found = []
    for number, stranger in enumerate(drawn):
        picture = Picture(f"portrait-{number + 1:02d}.png", stranger.image)
        chosen = _some(facts, np.random.default_rng([seed, 17, number]))
        found += [
            _about(stranger, fact, picture, index=number + place)
            for place, fact in enumerate(chosen)
        ]
    if not benchmark.sets["general"]:
        found += [OwnQuestion("general", "", words, "text") for words in GENERAL_QUESTIONS]
    return found


def with_own(benchmark: Benchmark, own: Benchmark) -> Benchmark:
    """Return a benchmark with the sets that the model answered for itself, and a note on them."""
    if not own.sets["retain"]:
        raise ManuError(
            "the model answers nothing about invented people, so there is nothing to keep. Name "
            "subjects to keep, in retain.jsonl of the request."
        )
    people, topics = len(own.sets["retain"]), len(own.sets["general"])
    about = f"{people} invented people" + (f" and {topics} general questions" if topics else "")
    note = (
        "The request names nobody to keep. What is kept is what the model itself said before, "
        f"asked plainly, about {about}: that counts as right there."
    )
    added = {name: own.sets[name] for name in ("retain", "general") if own.sets[name]}
    return dataclasses.replace(
        benchmark, sets={**benchmark.sets, **added}, notes=(*benchmark.notes, note)
    )


def unanswered(questions: Sequence[OwnQuestion]) -> Benchmark:
    """Return the people and topics before the model was asked: UNASKED stands for the answers."""
    entries: list[Entry] = []
    for asked in questions:
        shown = asked.modality == "image"
        pictures = (asked.picture,) if shown and asked.picture is not None else ()
        words = ("", asked.question) if not shown else (asked.question, "")
        before = sum(entry.set == asked.set for entry in entries)
        place = f"{asked.set}.jsonl, line {before + 1}"  # as it will be in the folder
        entries.append(Entry(place, asked.set, asked.subject, pictures, *words, (UNASKED,)))
    return benchmark_of(entries)


def write_own(path: Path, questions: Sequence[OwnQuestion], answers: Sequence[str]) -> None:
    """Write the answers as a request's folder, whole or not at all; empty ones are left out."""
    lines: dict[str, list[str]] = {"retain": [], "general": []}
    pictures: dict[str, bytes] = {}
    for asked, answer in zip(questions, answers, strict=True):
        answer = first_sentence(answer)
        if not answer:
            continue
        cells: dict[str, Any] = {"question": asked.question, "answer": answer}
        if asked.subject:
            cells = {"subject": asked.subject, "image": None} | cells
        if asked.modality == "image" and asked.picture is not None:
            pictures[asked.picture.name] = _png(asked.picture.image)
            cells |= {"image": asked.picture.name, "text_question": False}
        lines[asked.set].append(json.dumps(cells, ensure_ascii=False) + "\n")
    with new_folder(path) as folder:
        for name, content in lines.items():
            if content:
                (folder / f"{name}.jsonl").write_text("".join(content), encoding="utf-8")
        for name, data in pictures.items():
            (folder / name).write_bytes(data)


def read_own(path: Path, *, seed: int) -> Benchmark:
    """Return the sets that `write_own` left."""
    return read_request(path, seed=seed, needs_forget=False)


def first_sentence(answer: str) -> str:
    """Return an answer up to the end of its first sentence, on one line.

    What a model goes on to write is often cut off in the middle.
    """
    return " ".join(SENTENCE_END.split(answer.strip(), maxsplit=1)[0].split())


def drawn_portraits(random: np.random.Generator, count: int) -> list[Any]:
    """Return portraits of people who do not exist, drawn by a program."""
    return [portraits.portrait(looks) for looks in portraits.choose_features(random, count)]


def _some(facts: Sequence[Fact], random: np.random.Generator) -> list[Fact]:
    """Return a fact of each question, at most MOST_QUESTIONS."""
    by_attribute = {fact.attribute: fact for fact in reversed(facts)}
    different = list(by_attribute.values())
    chosen = sorted(random.permutation(len(different))[:MOST_QUESTIONS].tolist())
    return [different[index] for index in chosen]


def _about(stranger: Stranger, fact: Fact, picture: Picture, *, index: int) -> OwnQuestion:
    """Return a fact's question about a stranger, in the forms in turn."""
    asked = as_stranger(fact, stranger)
    forms: list[Modality] = [form for form in MODALITIES if has_form(fact, form)]
    modality = forms[index % len(forms)]
    words = asked.question if modality == "image" else asked.text_question or asked.question
    return OwnQuestion("retain", stranger.name, words, modality, picture)


def _png(image: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()

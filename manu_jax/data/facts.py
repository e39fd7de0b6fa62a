"""A benchmark of what a language model knows by itself, in text alone: capitals, authors, elements.

A run asks its model every fact of known_facts.py in three wordings, once, and keeps what was
answered in its data folder:

    asked.jsonl   {"kind", "subject", "answer", "right": [true, true, false]} of each fact, a line

Facts that were right in all three wordings are the benchmark. Some of each kind are to forget, the
others to keep. Methods are given the first two wordings; the third is that of the set `test`. Those
that were right in one or both of the first two alone may be given as well, in these, to keep: the
set `general`.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manu_jax.config import DataSection
from manu_jax.data import prompts
from manu_jax.data.known_facts import KINDS, Kind
from manu_jax.data.record import Benchmark, Fact, Person, Question
from manu_jax.folder import new_folder
from manu_jax.types import ManuError, PromptTemplate, Sample, question_sample, raise_faults

ASKED = "asked.jsonl"
GIVEN, HELD_BACK = (0, 1), (2,)  # wordings: those that methods are given, and that of `test`
LETTERS = "ABCD"
SHARES = (5, 10, 15, 30, 40)  # percent of the facts that are known, to forget
PARTLY_KNOWN = (
    "General questions are facts of the same kinds that the model knows in some wordings: methods "
    "are given them to keep."
)
FEWEST = 4  # known facts of a kind, of which one is to forget


def samples(template: PromptTemplate) -> list[Sample]:
    """Return every fact in every wording, wording after wording, as the model is asked it."""
    return [
        question_sample(
            template.prompt(kind.wordings[number].format(subject), "text"),
            template.reply(answer),
            key=f"{name}-{_slug(subject)}/{number}",
        )
        for name, kind in KINDS.items()
        for subject, answer in kind.facts.items()
        for number in range(len(kind.wordings))
    ]


def write(folder: Path, right: Sequence[bool]) -> None:
    """Write what the model answered to `samples`, in their order, to a new folder."""
    answers = iter(right)
    lines = [
        json.dumps(
            {
                "kind": name,
                "subject": subject,
                "answer": answer,
                "right": [bool(next(answers)) for _ in kind.wordings],
            },
            ensure_ascii=False,
        )
        for name, kind in KINDS.items()
        for subject, answer in kind.facts.items()
    ]
    with new_folder(folder) as place:
        (place / ASKED).write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(folder: Path, section: DataSection, seed: int) -> Benchmark:
    """Return the facts of a folder that its model knows: some to forget, the others to keep.

    Of each kind with FEWEST known facts or more, `section.forget` percent are to forget, one at
    least, drawn by the seed. Raises ManuError where the file is damaged or too little is known.
    """
    rows = _rows(folder / ASKED)
    known = {name: [s for s, right in found.items() if all(right)] for name, found in rows.items()}
    forget: list[tuple[str, str]] = []
    retain: list[tuple[str, str]] = []
    for name, subjects in known.items():
        order = sorted(subjects, key=lambda subject: _drawn(seed, name, subject))
        count = max(1, round(section.forget / 100 * len(order))) if len(order) >= FEWEST else 0
        forget += [(name, subject) for subject in subjects if subject in order[:count]]
        retain += [(name, subject) for subject in subjects if subject in order[count:]]
    if not forget or not retain:
        told = ", ".join(f"{name} {len(found)}" for name, found in known.items())
        raise ManuError(
            f"{folder / ASKED}: the model answers too few facts right in all wordings ({told}); "
            f"{FEWEST} of one kind are needed. Give a model that knows more."
        )
    num_asked = sum(map(len, rows.values()))
    unused = num_asked - len(forget) - len(retain)
    sets: dict[str, tuple[Person, ...]] = {
        "forget": _people(forget, GIVEN, known, seed),
        "test": _people(forget, HELD_BACK, known, seed),
        "retain": _people(retain, GIVEN, known, seed),
    }
    if section.partly_known:
        sets["general"] = tuple(
            _person(name, subject, wordings, known[name], seed)
            for name, found in rows.items()
            for subject, right in found.items()
            if not all(right)
            if (wordings := [number for number in GIVEN if right[number]])
        )
        unused -= len(sets["general"])
    return Benchmark(
        sets,
        {"facts that the model does not know in all wordings": unused} if unused else {},
        (PARTLY_KNOWN,) if sets.get("general") else (),
    )


def question_prompt(
    question: Question, template: PromptTemplate, shots: Sequence[Question] = ()
) -> str:
    """Return a question as it is, to be gone on from; multiple choice in MLLMU-Bench's words.

    ManuError for shots: there are none.
    """
    prompts.refuse_shots(shots, "the benchmark facts")
    if question.task == "classification":
        return prompts.question_prompt(question, template)
    return template.prompt(question.question, question.modality)


def _people(
    chosen: Sequence[tuple[str, str]],
    wordings: Sequence[int],
    known: dict[str, list[str]],
    seed: int,
) -> tuple[Person, ...]:
    return tuple(_person(name, subject, wordings, known[name], seed) for name, subject in chosen)


def _person(
    name: str, subject: str, wordings: Sequence[int], known: Sequence[str], seed: int
) -> Person:
    """Return a subject as a person; its facts and questions are in these wordings."""
    kind = KINDS[name]
    identity, answer = f"{name}-{_slug(subject)}", kind.facts[subject]
    facts, questions = [], []
    for place, number in enumerate(wordings):
        text = kind.wordings[number].format(subject)
        attribute = name if place == 0 else f"{name}-{place + 1}"
        facts.append(Fact(identity, subject, text, answer, attribute, strangers=kind.strangers))
        questions.append(Question("generation", "text", text, answer, attribute))
    options = _options(kind, answer, known, np.random.default_rng([seed, *identity.encode()]))
    if options:
        letter = next(letter for letter, text in options.items() if text == answer)
        question = questions[0].question
        questions.append(
            Question("classification", "text", question, answer, name, options, letter)
        )
    biography = {"name": subject, name: answer}
    return Person(identity, subject, (), biography, tuple(facts), tuple(questions))


def _options(
    kind: Kind, answer: str, known: Sequence[str], random: np.random.Generator
) -> dict[str, str]:
    """Return four answers of the kind that the model knows, by letter; {} where there are fewer."""
    others = sorted({kind.facts[subject] for subject in known} - {answer})
    if len(others) < len(LETTERS) - 1:
        return {}
    wrong = [others[i] for i in random.permutation(len(others))[: len(LETTERS) - 1]]
    texts = [answer, *wrong]
    return {
        letter: texts[i] for letter, i in zip(LETTERS, random.permutation(len(texts)), strict=True)
    }


def _rows(path: Path) -> dict[str, dict[str, list[bool]]]:
    """Return {kind: {subject: whether it was right, by wording}} of a file, checked."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ManuError(
            f"{path}: can't be read ({error}). Give a run's own data folder, or leave data.path "
            "out, so that the run asks its model."
        ) from error
    found: dict[str, dict[str, list[bool]]] = {name: {} for name in KINDS}
    faults = []
    for number, line in enumerate(lines, start=1):
        try:
            row: Any = json.loads(line)
            kind = KINDS[row["kind"]]
            is_same = kind.facts[row["subject"]] == row["answer"]
            right = row["right"]
            if not is_same or len(right) != len(kind.wordings):
                raise ValueError("not a fact of this release")
            found[row["kind"]][row["subject"]] = [one is True for one in right]
        except (ValueError, KeyError, TypeError) as error:
            faults.append(f"line {number}: {type(error).__name__}: {error}")
    raise_faults(faults, f"{path}: damaged. Delete the folder, so that the run asks again:")
    return found


def _drawn(seed: int, name: str, subject: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}/{subject}".encode()).digest()


def _slug(text: str) -> str:
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-")

"""UMU-Bench (Wang et al., NeurIPS 2025): every question in both forms, paired by a key.

A folder of folders of parquet files, as the hub has them (linbojunzi/UMU-bench):

    forget_5|10|15, retain_95|90|85    invented people
    Real_Person_Set, or real_person    real people

    ID, image, Biography
    MM_QA, UM_QA     what is taught: {"question": {key: text}, "answer": {key: text}}, with the
                     image and in text alone
    Classify         {"unimodal": {key: {question, options {A … D}, answer "B. …"}}, "muitimodal":
                     the same keys}, spelled so
    Cloze, Generation    {"unimodal": {key: {question, answer}}, "muitimodal": …}

The last five are Python literals in a text; JSON is read too. A key is the attribute of its fact
and of its questions, so that the leakage matrix pairs both forms as they stand. What the authors
ask is in umu_protocol.py.
"""

import ast
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from manu_jax.config import DataSection
from manu_jax.data.biography import name_of
from manu_jax.data.cells import is_null, options_of, short, text_of
from manu_jax.data.forms import question_and_answer
from manu_jax.data.probes import Probe
from manu_jax.data.record import Benchmark, Fact, Person, Question, Task
from manu_jax.data.tables import Row, TableReader, columns_fault
from manu_jax.data.umu_protocol import Asked, probes_of
from manu_jax.folder import expand_path
from manu_jax.types import MODALITIES, ManuError, Modality, Set

SHARES = (5, 10, 15)
REAL = ("Real_Person_Set", "real_person")  # the hub's name, and that of the published code
TASKS: dict[Task, str] = {
    "classification": "Classify", "cloze": "Cloze", "generation": "Generation",
}  # fmt: skip
COLUMNS = ("ID", "image", "Biography", "MM_QA", "UM_QA", *TASKS.values())
PAIRS: dict[Modality, str] = {"image": "MM_QA", "text": "UM_QA"}
FORMS: dict[Modality, tuple[str, ...]] = {
    "image": ("muitimodal", "multimodal"), "text": ("unimodal",),
}  # fmt: skip
WITHOUT_TEXT_FORM = "questions that are asked with the image alone"


def read(folder: Path, section: DataSection, seed: int) -> Benchmark:
    """Return the people of UMU-Bench's folder, `section.forget` percent of them to forget.

    Real people are the set `celebrity`, and have no facts: nobody is taught them. Nothing is drawn.
    Raises ManuError, with every fault found.
    """
    del seed
    return _Reader(expand_path(folder), section.forget).read()


def files(section: DataSection) -> tuple[str, ...]:
    """Return patterns of the files that are read."""
    return tuple(f"{name}/*" for name in (*_folders(section.forget).values(), *REAL))


class _Reader(TableReader):
    """One reading of the benchmark."""

    def __init__(self, path: Path, share: int):
        super().__init__()
        self.path, self.folders = path, _folders(share)
        self.skipped: Counter[str] = Counter()
        self.probes: list[Probe] = []
        self.places: dict[tuple[str, str], str] = {}  # (set, ID) → the row

    def read(self) -> Benchmark:
        real = next((name for name in REAL if (self.path / name).is_dir()), REAL[0])
        folders: dict[Set, str] = {**self.folders, "celebrity": real}
        missing = [name for name in folders.values() if not (self.path / name).is_dir()]
        if missing:
            raise ManuError(
                f"benchmark {self.path}: no folder {', '.join(missing)}. data.path is the folder "
                "that holds UMU-Bench's folders (forget_5 … retain_85, Real_Person_Set)."
            )
        sets = {name: self._people(name, self.path / folder) for name, folder in folders.items()}
        self._check(sets, folders)
        self.raise_faults(f"benchmark {self.path}")
        return Benchmark(sets, dict(+self.skipped), probes=tuple(self.probes))

    def _people(self, where: Set, folder: Path) -> tuple[Person, ...]:
        people = []
        for row in self.rows(folder, _columns_fault):
            self.places[where, row.id] = row.place
            image = self.image(row, row.cells["image"])
            biography = _biography(row.cells["Biography"])
            taught: dict[Modality, dict[str, tuple[str, str]]] = {
                form: self._pairs(row, column) for form, column in PAIRS.items()
            }
            name = name_of(biography, list(taught["image"].values()))
            asked = list(self._asked(row))
            facts = () if where == "celebrity" else _facts(row.id, name, image, taught=taught)
            questions = tuple(_question(one) for one in asked)
            people.append(Person(row.id, name, (image,), biography, facts, questions))
            self.probes += probes_of(asked, where, person=row.id, image=image)
        return tuple(sorted(people, key=lambda person: person.id))

    def _pairs(self, row: Row, column: str) -> dict[str, tuple[str, str]]:
        """Return {key: (question, answer)} of what is taught in one form."""
        pairs = {}
        with self.faults_at(f"{row.place}: {column}"):
            found = _literal(row.cells[column])
            questions, answers = (_mapping(found, name) for name in ("question", "answer"))
            if questions.keys() != answers.keys():
                odd = ", ".join(sorted(map(str, questions.keys() ^ answers.keys())))
                raise ManuError(f"{odd} has a question or an answer alone. Mend the row.")
            for key in questions:
                pairs[str(key)] = (_text(questions, key), _text(answers, key))
        return pairs

    def _asked(self, row: Row) -> Iterator[Asked]:
        """Yield the questions of a row, the image form of a key before its text form."""
        for task, column in TASKS.items():
            forms: dict[Modality, Mapping[Any, Any]] = {"image": {}, "text": {}}
            with self.faults_at(f"{row.place}: {column}"):
                found = _literal(row.cells[column])
                forms = {
                    form: _mapping(found, next((one for one in names if one in found), names[0]))
                    for form, names in FORMS.items()
                }
            self.skipped[WITHOUT_TEXT_FORM] += len(forms["image"].keys() - forms["text"].keys())
            for key in forms["text"]:
                with self.faults_at(f"{row.place}: {column}.{key}"):
                    if key not in forms["image"]:
                        raise ManuError("has no muitimodal form. Mend the row.")
                    asked = [
                        _item(task, form, str(key), item=_mapping(forms[form], key))
                        for form in MODALITIES
                    ]
                    yield from asked

    def _check(self, sets: Mapping[str, Sequence[Person]], folders: Mapping[Set, str]) -> None:
        if self.faults:  # what could not be read would be named a second time
            return
        for name, folder in folders.items():
            if not sets[name]:
                self.faults.append(f"{folder}: has no rows. Download the folder again.")
        ids = {name: {person.id for person in sets[name]} for name in ("forget", "retain")}
        for person in sorted(ids["forget"] & ids["retain"]):
            self.faults.append(
                f"{self.places['forget', person]}: also in {self.places['retain', person]}. A "
                "person is to be forgotten or kept: take the row out of one."
            )


def _folders(share: int) -> dict[Set, str]:
    return {"forget": f"forget_{share}", "retain": f"retain_{100 - share}"}


def _columns_fault(columns: set[str]) -> str | None:
    return columns_fault(columns, COLUMNS, "the folder of UMU-Bench")


def _literal(value: Any) -> Mapping[Any, Any]:
    """Return the mapping of a cell: a Python literal or JSON in a text, or the mapping itself."""
    found = _evaluated(value) if isinstance(value, str) else value
    if not isinstance(found, Mapping):
        raise ManuError(f"is {short(value)}, expected a mapping as a Python literal. Mend the row.")
    return found


def _evaluated(text: str) -> Any:
    """Return the value of a Python literal or of JSON; ManuError where it is neither."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes in texts
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ManuError(
                f"is {short(text)}, which is no Python literal ({reason}). Mend the row."
            ) from None


def _biography(value: Any) -> dict[str, Any]:
    """Return a biography as a mapping: its own, or its text."""
    if isinstance(value, str):
        try:
            found = _evaluated(value)
        except ManuError:
            found = value
        value = found if isinstance(found, Mapping) else {"Biography": value}
    return {} if is_null(value) else {str(key): text for key, text in dict(value).items()}


def _mapping(value: Mapping[Any, Any], key: Any) -> Mapping[Any, Any]:
    """Return the mapping under a key; ManuError where there is none."""
    found = value.get(key)
    if not isinstance(found, Mapping):
        raise ManuError(f"{key} is {short(found)}, expected a mapping. Mend the row.")
    return found


def _text(value: Mapping[Any, Any], key: Any) -> str:
    """Return the text under a key; ManuError where there is none."""
    found = text_of(value.get(key), str(key))
    if not found:
        raise ManuError(f"{key} is empty. Mend the row.")
    return found


def _item(task: Task, form: Modality, key: str, *, item: Mapping[Any, Any]) -> Asked:
    """Return a question; ManuError where it lacks something."""
    question, answer = _text(item, "question"), _text(item, "answer")
    if task != "classification":
        return Asked(task, form, key, question, answer)
    options = options_of(item.get("options"), "options")
    letter = answer.partition(".")[0].strip().upper()
    if letter not in options or len(options) < 2 or not all(options.values()):
        raise ManuError(
            f"the answer is {answer!r}, the options are {', '.join(options) or 'none'}. Expected "
            'the letter of an option, a full stop and its text ("B. …"). Mend the row.'
        )
    return Asked(task, form, key, question, options[letter], options, letter)


def _question(asked: Asked) -> Question:
    """Return a question of the project's own tasks.

    Keys that are mere numbers count the questions of one column, and are told apart by the task.
    """
    attribute = f"{asked.task}-{asked.key}" if asked.key.isdigit() else asked.key
    return Question(
        asked.task,
        asked.modality,
        asked.question,
        asked.answer,
        attribute,
        asked.options or None,
        asked.letter or None,
    )


def _facts(
    person: str,
    name: str,
    image: Any,
    *,
    taught: Mapping[Modality, Mapping[str, tuple[str, str]]],
) -> tuple[Fact, ...]:
    """Return what is taught: a fact in both forms where the answers of a key say the same.

    They do, where the image form's answer with the name in it is the text form's; otherwise the two
    are facts of their own.
    """
    facts = []
    with_image, in_text = taught["image"], taught["text"]
    for key, (question, answer) in with_image.items():
        fact = Fact(person, name, question, answer, key, image, in_text.get(key, ("",))[0])
        if key in in_text and question_and_answer(fact, "text")[1] != in_text[key][1]:
            facts.append(Fact(person, name, question, answer, key, image, ""))
            facts.append(_in_text(person, name, f"{key}, in text", pair=in_text[key]))
        else:
            facts.append(fact)
    facts += [
        _in_text(person, name, key, pair=pair)
        for key, pair in in_text.items()
        if key not in with_image
    ]
    return tuple(facts)


def _in_text(person: str, name: str, attribute: str, *, pair: tuple[str, str]) -> Fact:
    """Return a fact of the text form alone, its words as they stand."""
    fact = Fact(person, name, *pair, attribute)
    if question_and_answer(fact, "text") == pair:
        return fact
    return Fact(person, "", *pair, attribute)  # the rules of forms.py would put the name in

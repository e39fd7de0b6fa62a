"""Read a benchmark in MLLMU-Bench's layout: the real one, and the one `synthetic.py` writes.

A benchmark is a folder of folders of parquet files (`train-00000-of-00002.parquet`) in two schemas:

    evaluation   image (Test_Set: images, a list), ID, biography (JSON), Classification_Task,
                 Generation_Task, Mask_Task     in forget_r, retain_(100−r), Test_Set, Retain_Set
    training     image, ID, metadata (JSON list of {Question, Answer})     in ft_Data, and in all
                 folders of MLLMMU/baseline_train_split, which bear the evaluation folders' names

The two are told apart by their columns. Two folders are not in MLLMU-Bench and are read where they
stand: `General_Set` (evaluation schema; a row is a topic, its image may be null) and `Base_Data`
(training schema; what celebrities and topics are known by, since a model trained from nothing has
seen neither).

Everything is checked here, once; all faults of a folder are in one ManuError.
"""

import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from manu_jax.data.forms import is_name_question, name_in_answer
from manu_jax.data.record import Benchmark, Fact, Person, Question, Task
from manu_jax.data.tables import Row, TableReader, short
from manu_jax.folder import expand_path
from manu_jax.types import ManuError, Modality

logger = logging.getLogger(__name__)

OPEN_TASKS: dict[Task, str] = {"generation": "Generation_Task", "cloze": "Mask_Task"}
TASK_COLUMNS = ("Classification_Task", "Generation_Task", "Mask_Task")
EVALUATION = ("ID", "biography", *TASK_COLUMNS)
TRAINING = ("image", "ID", "metadata")
CLASSIFICATION_LISTS: dict[str, Modality] = {
    "Image_Textual_Questions": "image",
    "Pure_Text_Questions": "text",
}
ITEM_TYPES: dict[str, Modality] = {"Image_Textual": "image", "Pure_Text": "text"}

EMPTY_PAIR = "training pairs with an empty question or answer"
EMPTY_ITEM = "evaluation items with an empty question or answer"
EMPTY_OPTION = "options with an empty text"


def load_benchmark(
    path: str | Path,
    *,
    forget: int = 10,
    train_path: str | Path | None = None,
    seed: int = 0,
    test_images: Literal["one", "all"] = "one",
) -> Benchmark:
    """Return the sets of the benchmark in folder `path`, with `forget` percent of people to forget.

    train_path: the folder baseline_train_split, whose forget_r and retain_(100−r) give the facts;
    None: ft_Data under `path` does. seed: chooses one of the transformed images of each person;
    with test_images "all" people of the test set have them all, in order, and their facts the
    first. Raises ManuError, with every fault found.
    """
    return _Reader(expand_path(path), train_path, forget, seed, test_images == "all").read()


class _Reader(TableReader):
    """One reading of a benchmark."""

    def __init__(
        self,
        path: Path,
        train_path: str | Path | None,
        forget: int,
        seed: int,
        has_all_images: bool,
    ):
        super().__init__()
        self.path = path
        self.train_path = None if train_path is None else expand_path(train_path)
        self.forget_name, self.retain_name = f"forget_{forget}", f"retain_{100 - forget}"
        self.seed, self.has_all_images = seed, has_all_images
        self.skipped: Counter[str] = Counter()
        self.places: dict[tuple[str, str], str] = {}  # (set, ID) → the row

    def read(self) -> Benchmark:
        folders = {
            "forget": self.forget_name,
            "retain": self.retain_name,
            "test": "Test_Set",
            "celebrity": "Retain_Set",
        }
        if (self.path / "General_Set").is_dir():
            folders["general"] = "General_Set"
        self._check_folders(list(folders.values()))
        pairs = self._read_pairs()
        base = self._read_facts(self.path / "Base_Data") if self._has_base() else {}
        sets: dict[str, tuple[Person, ...]] = {"general": ()}
        forget_ids = None
        for name, folder in folders.items():
            only = forget_ids if name == "test" else None
            facts = base if name in ("celebrity", "general") else pairs
            sets[name] = self._read_people(name, self.path / folder, facts, only)
            if name == "forget":
                forget_ids = {person.id for person in sets["forget"]}
        self._check_sets(sets, pairs, folders)
        self.raise_faults(f"benchmark {self.path}")
        for what, count in self.skipped.items():
            logger.info("benchmark: left out %d %s", count, what)
        if self.has_all_images:
            logger.info("benchmark: every transformed image is asked")
        else:
            logger.info("benchmark: transformed images chosen with seed %d", self.seed)
        order = ("forget", "test", "retain", "celebrity", "general")
        return Benchmark({name: sets[name] for name in order}, dict(self.skipped))

    def _has_base(self) -> bool:
        return (self.path / "Base_Data").is_dir()

    def _check_folders(self, evaluation: list[str]) -> None:
        wanted = [self.path / name for name in evaluation]
        if self.train_path is None:
            wanted.append(self.path / "ft_Data")
        else:
            wanted += [self.train_path / self.forget_name, self.train_path / self.retain_name]
        missing = [str(folder) for folder in wanted if not folder.is_dir()]
        if missing:
            raise ManuError(
                f"benchmark {self.path}: no folder {', '.join(missing)}. data.path is the folder "
                "that holds MLLMU-Bench's ten folders (forget_5 … Test_Set, ft_Data), "
                "data.train_path the one of baseline_train_split, if that is to be used."
            )

    def _read_pairs(self) -> dict[str, tuple[Any, list[tuple[str, str]]]]:
        if self.train_path is None:
            return self._read_facts(self.path / "ft_Data")
        forget = self._read_facts(self.train_path / self.forget_name)
        return forget | self._read_facts(self.train_path / self.retain_name)

    def _read_facts(self, folder: Path) -> dict[str, tuple[Any, list[tuple[str, str]]]]:
        """Return {ID: (image, [(question, answer), …])} of a folder in the training schema."""
        found = {}
        for row in self.rows(folder, partial(_columns_fault, "training", folder)):
            items = self.json_value(row, "metadata", list)
            pairs = []
            for item in items:
                if not isinstance(item, dict) or not {"Question", "Answer"} <= set(item):
                    self.faults.append(
                        f"{row.place}: metadata has the item {short(item)}, expected a mapping "
                        "with Question and Answer. Mend the row."
                    )
                    continue
                pair = (_text(item["Question"]), _text(item["Answer"]))
                if all(pair):
                    pairs.append(pair)
                else:
                    self.skipped[EMPTY_PAIR] += 1
            cell = row.cells["image"]
            found[row.id] = (None if cell is None else self.image(row, cell), pairs)
        return found

    def _read_people(
        self, name: str, folder: Path, pairs: Mapping[str, Any], only: set[str] | None
    ) -> tuple[Person, ...]:
        people = []
        schema = "test" if name == "test" else "evaluation"
        for row in self.rows(folder, partial(_columns_fault, schema, folder), only):
            self.places[name, row.id] = row.place
            images = self._images_of(name, row)
            biography = self.json_value(row, "biography", dict)
            train_image, train_pairs = pairs.get(row.id, (None, []))
            person_name = _name(biography, train_pairs)
            questions = tuple(self._questions(row, biography))
            shown = next(iter(images), None) if name == "test" else train_image
            facts = _facts(row.id, person_name, train_pairs, shown, biography)
            people.append(Person(row.id, person_name, images, biography, facts, questions))
        return tuple(sorted(people, key=lambda person: person.id))

    def _images_of(self, name: str, row: Row) -> tuple[Any, ...]:
        """Return the images that the questions of a row are asked with."""
        if name != "test":
            cells = [] if row.cells["image"] is None else [row.cells["image"]]
            if not cells and name != "general":
                self.faults.append(f"{row.place}: has no image. Download the file again.")
        else:
            cells = row.cells["images"] or []
            if not cells:
                self.faults.append(
                    f"{row.place}: the list of images is empty. Download the file again."
                )
            elif not self.has_all_images:
                random = np.random.default_rng([self.seed, zlib.crc32(row.id.encode())])
                cells = [cells[int(random.integers(len(cells)))]]
        images = (self.image(row, cell) for cell in cells)
        return tuple(image for image in images if image is not None)  # the others are faults

    def _questions(self, row: Row, biography: Mapping[str, Any]) -> Iterator[Question]:
        lists = row.cells["Classification_Task"] or {}
        if not isinstance(lists, dict):
            self.faults.append(
                f"{row.place}: Classification_Task is {short(lists)}, expected a mapping of "
                f"{' and '.join(CLASSIFICATION_LISTS)}. Mend the row."
            )
            lists = {}
        for column, modality in CLASSIFICATION_LISTS.items():
            items = self._items(row, f"Classification_Task.{column}", lists.get(column))
            for number, item in enumerate(items):
                place = f"{row.place}: Classification_Task.{column}[{number}]"
                question = _text(item.get("Question"))
                given = {
                    k: _text(v) for k, v in (item.get("Options") or {}).items() if v is not None
                }
                options = {k: v for k, v in given.items() if v}
                if len(options) < len(given):
                    self.skipped[EMPTY_OPTION] += len(given) - len(options)
                letter = _text(item.get("Correct_Answer")).upper()
                if not question or not letter:
                    self.skipped[EMPTY_ITEM] += 1
                elif letter not in options or len(options) < 2:
                    self.faults.append(
                        f"{place}: the right answer is {letter!r}, the options are "
                        f"{', '.join(options) or 'none'}. Mend the row."
                    )
                else:
                    answer = options[letter]
                    attribute = _attribute(answer, biography, f"classification-{number + 1}")
                    yield Question(
                        "classification", modality, question, answer, attribute, options, letter
                    )
        for task, column in OPEN_TASKS.items():
            numbers: Counter[str] = Counter()
            for number, item in enumerate(self._items(row, column, row.cells[column])):
                modality = ITEM_TYPES.get(_text(item.get("Type")))
                question, answer = _text(item.get("Question")), _text(item.get("Ground_Truth"))
                if modality is None:
                    self.faults.append(
                        f"{row.place}: {column}[{number}] has the Type {item.get('Type')!r}, "
                        f"expected {' or '.join(ITEM_TYPES)}. Mend the row."
                    )
                elif not question or not answer:
                    self.skipped[EMPTY_ITEM] += 1
                else:
                    numbers[modality] += 1
                    attribute = _attribute(answer, biography, f"{task}-{numbers[modality]}")
                    yield Question(task, modality, question, answer, attribute)

    def _items(self, row: Row, column: str, value: Any) -> list[dict[str, Any]]:
        """Return the mappings of a list of questions; null is no questions."""
        items = [] if value is None else value
        if isinstance(items, list) and all(isinstance(item, dict) for item in items):
            return items
        self.faults.append(
            f"{row.place}: {column} is {short(value)}, expected a list of mappings. Mend the row."
        )
        return []

    def _check_sets(
        self,
        sets: Mapping[str, tuple[Person, ...]],
        pairs: Mapping,
        folders: Mapping[str, str],
    ) -> None:
        if self.faults:  # what could not be read would be named a second time
            return
        ids = {name: {person.id for person in people} for name, people in sets.items()}
        for name, folder in folders.items():
            if not ids[name] and name != "test":  # whom it lacks is named below
                self.faults.append(
                    f"{folder}: the {name} set is empty, its files have no rows. Download the "
                    "folder again."
                )
        for name in ("forget", "retain"):
            for place in self._places(name, ids[name] - set(pairs)):
                self.faults.append(
                    f"{place}: no training data for this ID in {self.train_path or 'ft_Data'}. "
                    "Give the training files of the same release."
                )
        for person_id in sorted(ids["forget"] & ids["retain"]):
            self.faults.append(
                f"{self.places['forget', person_id]}: also in "
                f"{self.places['retain', person_id]}. A person is to be forgotten or kept: take "
                "the row out of one."
            )
        for place in self._places("forget", ids["forget"] - ids["test"]):
            self.faults.append(
                f"{place}: no row with this ID in Test_Set. Give both folders of the same release."
            )

    def _places(self, name: str, ids: set[str]) -> list[str]:
        return [self.places[name, person_id] for person_id in sorted(ids)]


def _columns_fault(schema: str, folder: Path, columns: set[str]) -> str | None:
    """Return what is wrong with the columns of a file, or None."""
    wanted = {
        "training": TRAINING,
        "evaluation": ("image", *EVALUATION),
        "test": ("images", *EVALUATION),
    }[schema]
    lacking = [name for name in wanted if name not in columns]
    if not lacking:
        return None
    if schema != "training" and "metadata" in columns:
        return (
            f"has training data (column metadata), expected evaluation questions. {folder.name} "
            "exists in both: data.path is MLLMU-Bench, data.train_path is baseline_train_split."
        )
    if schema == "training" and "Classification_Task" in columns:
        return (
            f"has evaluation questions, expected training data (column metadata). {folder.name} "
            "exists in both: data.path is MLLMU-Bench, data.train_path is baseline_train_split."
        )
    return (
        f"no column {', '.join(lacking)}; it has {', '.join(sorted(columns))}. Give the folder of "
        "MLLMU-Bench as it is downloaded."
    )


def _facts(
    person_id: str, name: str, pairs: list[tuple[str, str]], image: Any, biography: Mapping
) -> tuple[Fact, ...]:
    facts, uses = [], Counter()
    for number, (question, answer) in enumerate(pairs):
        if is_name_question(question):
            attribute = "name"
        else:
            attribute = _attribute(answer, biography, f"fact-{number + 1}")
        uses[attribute] += 1
        if uses[attribute] > 1:
            attribute = f"{attribute}-{uses[attribute]}"
        facts.append(Fact(person_id, name, question, answer, attribute, image))
    return tuple(facts)


def _name(biography: Mapping[str, Any], pairs: list[tuple[str, str]]) -> str:
    """Return the name that the biography gives, else the answer to the name question, else ""."""
    for key, value in biography.items():
        if key.lower() in ("name", "full name", "full_name") and isinstance(value, str):
            return value.strip()
    answers = (name_in_answer(answer) for question, answer in pairs if is_name_question(question))
    return next(answers, "")


def _attribute(answer: str, biography: Mapping[str, Any], otherwise: str) -> str:
    """Return, as a slug, the biography's key of the longest value that the answer holds."""
    best = ("", otherwise)
    for key, value in _entries(biography):
        if key.lower() in ("name", "full name", "full_name") or len(value) <= len(best[0]):
            continue
        if re.search(rf"(?<!\w){re.escape(value)}(?!\w)", answer, re.IGNORECASE):
            best = (value, re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-") or otherwise)
    return best[1]


def _entries(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (key, text) of all texts and numbers in a JSON value; the innermost key."""
    if isinstance(value, Mapping):
        for inner, item in value.items():
            yield from _entries(item, inner)
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item, key)
    elif value not in (None, "") and not isinstance(value, bool):
        yield key, str(value)


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()

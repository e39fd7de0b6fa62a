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

A Ground_Truth may be a list: the first truth is the answer, the others count as well. Options are
letters to texts, or a list of texts, or the JSON of either (`cells.py`).

Everything is checked here, once; all faults of a folder are in one ManuError.
"""

import dataclasses
import logging
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from manu_jax.data.biography import attribute_of, facts_of, name_of
from manu_jax.data.cells import options_of, short, text_of, truths_of
from manu_jax.data.record import Benchmark, Person, Question, Task
from manu_jax.data.tables import Row, TableReader, columns_fault
from manu_jax.folder import expand_path
from manu_jax.types import ManuError, Modality

logger = logging.getLogger(__name__)

FACTS, GENERAL, BASE = "ft_Data", "General_Set", "Base_Data"  # folders, beside evaluation sets
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
    reader = _Reader(
        expand_path(path),
        train_path=None if train_path is None else expand_path(train_path),
        forget=forget,
        seed=seed,
        has_all_images=test_images == "all",
    )
    return reader.read()


def files(forget: int, *, has_train_path: bool) -> tuple[str, ...]:
    """Return patterns of the files that are read of the benchmark's own folder."""
    names = [*_evaluation_folders(forget).values(), GENERAL, BASE]
    return tuple(f"{name}/*" for name in (*names, *(() if has_train_path else (FACTS,))))


def training_files(forget: int) -> tuple[str, ...]:
    """Return patterns of the files that are read of baseline_train_split."""
    folders = _evaluation_folders(forget)
    return f"{folders['forget']}/*", f"{folders['retain']}/*"


class _Reader(TableReader):
    """One reading of a benchmark."""

    def __init__(
        self, path: Path, *, train_path: Path | None, forget: int, seed: int, has_all_images: bool
    ):
        super().__init__()
        self.path, self.train_path = path, train_path
        self.folders = _evaluation_folders(forget)
        self.seed, self.has_all_images = seed, has_all_images
        self.skipped: Counter[str] = Counter()
        self.places: dict[tuple[str, str], str] = {}  # (set, ID) → the row

    def read(self) -> Benchmark:
        folders = dict(self.folders)
        if (self.path / GENERAL).is_dir():
            folders["general"] = GENERAL
        self._check_folders(list(folders.values()))
        pairs = self._read_pairs()
        base = self.path / BASE
        base_pairs = self._read_facts(base) if base.is_dir() else {}
        sets: dict[str, tuple[Person, ...]] = {"general": ()}
        forget_ids = None
        for name, folder in folders.items():
            only = forget_ids if name == "test" else None
            facts = base_pairs if name in ("celebrity", "general") else pairs
            sets[name] = self._read_people(name, self.path / folder, facts, only=only)
            if name == "forget":
                forget_ids = {person.id for person in sets["forget"]}
        self._check_sets(sets, pairs, folders)
        self.raise_faults(f"benchmark {self.path}")
        for what, count in (+self.skipped).items():
            logger.info("benchmark: left out %d %s", count, what)
        if self.has_all_images:
            logger.info("benchmark: every transformed image is asked")
        else:
            logger.info("benchmark: transformed images chosen with seed %d", self.seed)
        order = ("forget", "test", "retain", "celebrity", "general")
        return Benchmark({name: sets[name] for name in order}, dict(+self.skipped))

    def _check_folders(self, evaluation: list[str]) -> None:
        wanted = [self.path / name for name in evaluation]
        if self.train_path is None:
            wanted.append(self.path / FACTS)
        else:
            wanted += [self.train_path / self.folders[name] for name in ("forget", "retain")]
        missing = [str(folder) for folder in wanted if not folder.is_dir()]
        if missing:
            raise ManuError(
                f"benchmark {self.path}: no folder {', '.join(missing)}. data.path is the folder "
                "that holds MLLMU-Bench's ten folders (forget_5 … Test_Set, ft_Data), "
                "data.train_path the one of baseline_train_split, if that is to be used."
            )

    def _read_pairs(self) -> dict[str, tuple[Any, list[tuple[str, str]]]]:
        if self.train_path is None:
            return self._read_facts(self.path / FACTS)
        forget = self._read_facts(self.train_path / self.folders["forget"])
        return forget | self._read_facts(self.train_path / self.folders["retain"])

    def _read_facts(self, folder: Path) -> dict[str, tuple[Any, list[tuple[str, str]]]]:
        """Return {ID: (image, [(question, answer), …])} of a folder in the training schema."""
        found = {}
        for row in self.rows(folder, partial(_columns_fault, "training", folder)):
            items = self.json_value(row, "metadata", list)
            pairs = []
            for number, item in enumerate(items):
                with self.faults_at(f"{row.place}: metadata[{number}]"):
                    pair = _pair(item)
                    if all(pair):
                        pairs.append(pair)
                    else:
                        self.skipped[EMPTY_PAIR] += 1
            cell = row.cells["image"]
            found[row.id] = (None if cell is None else self.image(row, cell), pairs)
        return found

    def _read_people(
        self, name: str, folder: Path, pairs: Mapping[str, Any], *, only: set[str] | None
    ) -> tuple[Person, ...]:
        people = []
        schema = "test" if name == "test" else "evaluation"
        for row in self.rows(folder, partial(_columns_fault, schema, folder), only):
            self.places[name, row.id] = row.place
            images = self._images_of(name, row)
            biography = self.json_value(row, "biography", dict)
            train_image, train_pairs = pairs.get(row.id, (None, []))
            person_name = name_of(biography, train_pairs)
            questions = tuple(self._questions(row, biography))
            shown = next(iter(images), None) if name == "test" else train_image
            facts = facts_of(row.id, train_pairs, biography, name=person_name, image=shown)
            people.append(Person(row.id, person_name, images, biography, facts, questions))
        return tuple(sorted(people, key=lambda person: person.id))

    def _images_of(self, name: str, row: Row) -> tuple[Any, ...]:
        """Return the images that the questions of a row are asked with."""
        if name != "test":
            cells = [] if row.cells["image"] is None else [row.cells["image"]]
            if not cells and name != "general":
                self.faults.append(f"{row.place}: has no image. Download the file again.")
        else:
            cells = row.cells["images"]
            if not isinstance(cells, list) or not cells:
                cells = []
                self.faults.append(
                    f"{row.place}: the list of images is empty. Download the file again."
                )
            elif not self.has_all_images:
                random = np.random.default_rng([self.seed, zlib.crc32(row.id.encode())])
                cells = [cells[int(random.integers(len(cells)))]]
        images = (self.image(row, cell) for cell in cells)
        return tuple(image for image in images if image is not None)  # the others are faults

    def _questions(self, row: Row, biography: Mapping[str, Any]) -> Iterator[Question]:
        """Yield the questions of a row; one that can't be understood is a fault."""
        lists = self.json_value(row, "Classification_Task", dict)
        with self.faults_at(f"{row.place}: Classification_Task"):
            _check_keys(lists, CLASSIFICATION_LISTS if lists else ())
        for name, modality in CLASSIFICATION_LISTS.items():
            column = f"Classification_Task.{name}"
            for number, item in enumerate(self._items(row, column, lists.get(name))):
                with self.faults_at(f"{row.place}: {column}[{number}]"):
                    question = self._classification(item, modality)
                    if question is not None:
                        otherwise = f"classification-{number + 1}"
                        attribute = attribute_of(question.answer, biography, otherwise)
                        yield dataclasses.replace(question, attribute=attribute)
        for task, column in OPEN_TASKS.items():
            numbers: Counter[str] = Counter()
            items = self._items(row, column, self.json_value(row, column, list))
            for number, item in enumerate(items):
                with self.faults_at(f"{row.place}: {column}[{number}]"):
                    question = self._open_question(item, task)
                    if question is not None:
                        numbers[question.modality] += 1
                        otherwise = f"{task}-{numbers[question.modality]}"
                        attribute = attribute_of(question.answer, biography, otherwise)
                        yield dataclasses.replace(question, attribute=attribute)

    def _classification(self, item: Mapping[str, Any], modality: Modality) -> Question | None:
        """Return a question with options, without its attribute; None where it is empty."""
        _check_keys(item, ("Question", "Options", "Correct_Answer"))
        question = text_of(item["Question"], "Question")
        letter = text_of(item["Correct_Answer"], "Correct_Answer").upper()
        all_options = options_of(item["Options"], "Options")
        options = {key: text for key, text in all_options.items() if text}
        self.skipped.update({EMPTY_OPTION: len(all_options) - len(options)})
        if not question or not letter:
            self.skipped[EMPTY_ITEM] += 1
            return None
        if letter not in options or len(options) < 2:
            raise ManuError(
                f"the right answer is {letter!r}, the options are {', '.join(options) or 'none'}. "
                "Mend the row."
            )
        answer = options[letter]
        return Question("classification", modality, question, answer, "", options, letter)

    def _open_question(self, item: Mapping[str, Any], task: Task) -> Question | None:
        """Return a question without options and attribute; None where it is empty."""
        _check_keys(item, ("Question", "Ground_Truth", "Type"))
        modality = ITEM_TYPES.get(text_of(item["Type"], "Type"))
        if modality is None:
            raise ManuError(
                f"has the Type {item['Type']!r}, expected {' or '.join(ITEM_TYPES)}. Mend the row."
            )
        question = text_of(item["Question"], "Question")
        truths = truths_of(item["Ground_Truth"], "Ground_Truth")
        if not question or not truths:
            self.skipped[EMPTY_ITEM] += 1
            return None
        return Question(task, modality, question, truths[0], "", alternatives=truths[1:])

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
        pairs: Mapping[str, Any],
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
                    f"{place}: no training data for this ID in {self.train_path or FACTS}. "
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


def _evaluation_folders(forget: int) -> dict[str, str]:
    """Return {set: folder} of the evaluation sets that every release has."""
    return {
        "forget": f"forget_{forget}",
        "retain": f"retain_{100 - forget}",
        "test": "Test_Set",
        "celebrity": "Retain_Set",
    }


def _columns_fault(schema: str, folder: Path, columns: set[str]) -> str | None:
    """Return what is wrong with the columns of a file, or None."""
    wanted = {
        "training": TRAINING,
        "evaluation": ("image", *EVALUATION),
        "test": ("images", *EVALUATION),
    }[schema]
    fault = columns_fault(columns, wanted, "the folder of MLLMU-Bench")
    if fault is None:
        return None
    training, questions = "training data (column metadata)", "evaluation questions"
    if schema != "training" and "metadata" in columns:
        found, expected = training, questions
    elif schema == "training" and "Classification_Task" in columns:
        found, expected = questions, training
    else:
        return fault
    return (
        f"has {found}, expected {expected}. {folder.name} exists in both: data.path is "
        "MLLMU-Bench, data.train_path is baseline_train_split."
    )


def _check_keys(item: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raise ManuError where a mapping lacks one of the keys; their values may be null."""
    lacking = [key for key in keys if key not in item]
    if lacking:
        raise ManuError(
            f"{short(item)} has no {' and no '.join(lacking)}. Mend the row, or download the file "
            "again."
        )


def _pair(item: Any) -> tuple[str, str]:
    """Return the question and the answer of a training item."""
    if not isinstance(item, dict):
        raise ManuError(f"is {short(item)}, expected a mapping. Mend the row.")
    _check_keys(item, ("Question", "Answer"))
    return text_of(item["Question"], "Question"), text_of(item["Answer"], "Answer")

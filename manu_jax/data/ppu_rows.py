"""PPU-Bench's configs, row by row: what each row says, and what is wrong with it.

A config NAME is a folder NAME/ of parquet files (as the hub has it, whatever the split is called),
or one file NAME.parquet, NAME.jsonl or NAME.json; in the benchmark's folder, or in `data/` below
it. What the configs are for says ppu.py. A row holds, by kind:

    target    subject_id, subject, image, and `qas` [{question, answer, from, sample_id}] or
              `cloze_probes` [{query, answer}], a list or its JSON
    pair      sample_id, subject, question, generated_answer; and subject_id and image, without
              which (train_pair_*_qa) the subject is that of the other pairs of the same name
    eval      sample_id, subject_id, modality, question; option_a … option_d and answer_label
              (classification) or answer_text (cloze, generation); image, where it is asked with one
    cross     as eval, with task_type, and the images image_002, image_003, image_004

`sample_id` may be called `id`. An image is a mapping with its bytes, or a path from the
benchmark's folder, in `image` or `image_path`. A modality is text or qa, text_image or vqa. Other
columns are not read. A row without question or answer is left out, and counted.
"""

import collections
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from manu_jax.data.cells import is_null, options_of, short, text_of
from manu_jax.data.folder_rows import READERS
from manu_jax.data.record import TASKS, Task
from manu_jax.data.tables import Row, TableReader
from manu_jax.types import ManuError, Modality

Kind = Literal["target", "pair", "eval", "cross"]
PLACES = (".", "data")  # where configs lie, from the benchmark's folder
MODALITY: dict[str, Modality] = {
    "text": "text",
    "qa": "text",
    "text_image": "image",
    "vqa": "image",
}
OPTIONS = {"A": "option_a", "B": "option_b", "C": "option_c", "D": "option_d"}
FURTHER = {2: "image_002", 3: "image_003", 4: "image_004"}  # the further images by number
NEEDED: dict[Kind, tuple[str, ...]] = {
    "target": ("subject_id", "subject"),
    "pair": ("subject", "question", "generated_answer"),
    "eval": ("subject_id", "modality", "question"),
    "cross": ("subject_id", "modality", "question", "task_type"),
}
EMPTY = "rows without question or answer"


@dataclasses.dataclass(frozen=True)
class Item:
    """A question with its answer, of one row.

    subject_id: "" where the row does not say it. modality: None of a target, which is asked in both
    forms. image: None where it has none, or asks in text. further: images by number, of cross rows.
    label: the right letter of the options. source: where the fact comes from, as the row says it.
    """

    place: str
    sample_id: str
    subject_id: str
    subject: str
    question: str
    answer: str
    task: Task | None = None
    modality: Modality | None = None
    image: Any = None
    further: Mapping[int, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    label: str = ""
    source: str = ""


class RowReader(TableReader):
    """One reading of the benchmark's folder: its faults, its images, and what it left out."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.skipped: collections.Counter[str] = collections.Counter()

    def items(self, config: str, kind: Kind, task: Task | None = None) -> list[Item]:
        """Return the items of a config; what is wrong with a row is a fault.

        task: of all its rows; None: a row says its own, or has none.
        """
        found: list[Item] = []
        seen: dict[tuple[str, ...], str] = {}
        for place, cells in self._rows(config, kind):
            with self.faults_at(place):
                for item in self._items(Row(place, "", cells, self.folder), kind, task):
                    key = (item.sample_id, item.subject_id, str(item.task), str(item.modality))
                    if key in seen:
                        raise ManuError(
                            f"asks {item.sample_id!r} a second time, after {seen[key]}. Keep one."
                        )
                    seen[key] = place
                    if item.question and item.answer:
                        found.append(item)
                    else:
                        self.skipped[EMPTY] += 1
        return found

    def has(self, config: str) -> bool:
        """Return whether the folder has files of a config."""
        return bool(self._files(config))

    def _files(self, config: str) -> list[Path]:
        for place in PLACES:
            folder = self.folder / place
            one = [folder / f"{config}{ending}" for ending in (".parquet", ".jsonl", ".json")]
            if found := [file for file in one if file.is_file()]:
                return found[:1]
            if found := sorted((folder / config).rglob("*.parquet")):
                return found
        return []

    def _rows(self, config: str, kind: Kind) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield (place, cells) of a config's rows that have the needed columns."""
        files = self._files(config)
        if not files:
            self.faults.append(
                f"{config}: no such config; expected a folder {config}/ of parquet files, or "
                f"{config}.parquet or .jsonl. Download it."
            )
        for file in files:
            shown = file.relative_to(self.folder).as_posix()
            try:
                is_first = True
                for place, cells in READERS[file.suffix](file, shown, self.faults):
                    fault = _columns_fault(cells, kind)
                    if fault and is_first:  # of a table: that of its columns
                        self.faults.append(f"{shown}: {fault}")
                        break
                    if fault:
                        self.faults.append(f"{place}: {fault}")
                    else:
                        yield place, cells
                    is_first = False
            except ManuError as error:
                self.faults.append(str(error))

    def _items(self, row: Row, kind: Kind, task: Task | None) -> Iterator[Item]:
        if kind == "target":
            yield from self._targets(row)
        elif kind == "pair":
            yield Item(
                row.place,
                _sample_id(row.cells),
                _id(row.cells.get("subject_id"), "subject_id", needed=False),
                text_of(row.cells["subject"], "subject"),
                text_of(row.cells["question"], "question"),
                text_of(row.cells["generated_answer"], "generated_answer"),
                image=self.picture(row),
            )
        else:
            yield self._asked(row, task or _task(row.cells["task_type"]), kind)

    def _targets(self, row: Row) -> Iterator[Item]:
        """Yield the questions of a subject."""
        subject_id = _id(row.cells["subject_id"], "subject_id")
        subject = text_of(row.cells["subject"], "subject")
        if not subject:
            raise ManuError("no subject. Mend the row.")
        image = self.picture(row)
        is_cloze = not is_null(row.cells.get("cloze_probes"))
        column, asked = ("cloze_probes", "query") if is_cloze else ("qas", "question")
        for number, one in enumerate(_list(row.cells.get(column), column)):
            what = f"{column}[{number}]"
            if not isinstance(one, Mapping) or asked not in one or "answer" not in one:
                raise ManuError(
                    f"{what} is {short(one)}, expected a mapping with {asked} and answer. Mend the "
                    "row."
                )
            given = _id(one.get("sample_id", one.get("id")), f"{what}.sample_id", needed=False)
            yield Item(
                row.place,
                given or f"{subject_id}_{number:02d}",
                subject_id,
                subject,
                text_of(one[asked], f"{what}.{asked}"),
                text_of(one["answer"], f"{what}.answer"),
                image=image,
                source=text_of(one.get("from"), f"{what}.from"),
            )

    def _asked(self, row: Row, task: Task, kind: Kind) -> Item:
        """Return an item of the evaluation."""
        cells = row.cells
        said = text_of(cells.get("task_type"), "task_type")
        if said and said != task:
            raise ManuError(f"task_type is {said!r}, expected {task!r}. Mend the row.")
        modality = MODALITY.get(text_of(cells["modality"], "modality"))
        if modality is None:
            raise ManuError(
                f"modality is {short(cells['modality'])}, expected one of {', '.join(MODALITY)}. "
                "Mend the row."
            )
        options, label = _options(cells) if task == "classification" else ({}, "")
        further = {}
        image = None
        if kind == "cross":
            if modality == "text":
                raise ManuError(
                    "asks without an image. A row of cross_image has some: take it out."
                )
            further = {
                number: self.image(row, _cell(cells[name], self.folder))
                for number, name in FURTHER.items()
                if not is_null(cells.get(name))
            }
            if not further:
                raise ManuError(f"has none of the images {', '.join(FURTHER.values())}. Mend it.")
        elif modality == "image":
            image = self.picture(row)
            if image is None and not self._has_picture(row):
                raise ManuError("is asked with an image, and has none. Download the file again.")
        answer = options[label] if label else text_of(cells.get("answer_text"), "answer_text")
        return Item(
            row.place,
            _sample_id(cells),
            _id(cells["subject_id"], "subject_id"),
            text_of(cells.get("subject"), "subject"),
            text_of(cells["question"], "question"),
            answer,
            task,
            modality,
            image,
            {number: one for number, one in further.items() if one is not None},
            options,
            label,
            text_of(cells.get("source_from"), "source_from"),
        )

    def picture(self, row: Row) -> Any:
        """Return the image of a row, or None; one that does not decode is a fault."""
        for name in ("image", "image_path"):
            if not is_null(cell := row.cells.get(name)):
                return self.image(row, _cell(cell, self.folder))
        return None

    def _has_picture(self, row: Row) -> bool:
        return any(not is_null(row.cells.get(name)) for name in ("image", "image_path"))


def _columns_fault(cells: Mapping[str, Any], kind: Kind) -> str:
    """Return what is wrong with the columns of a file of that kind, "" if nothing is."""
    needed: list[Sequence[str]] = [(name,) for name in NEEDED[kind]]
    if kind == "target":
        needed.append(("qas", "cloze_probes"))
    else:
        needed.append(("sample_id", "id"))
    lacking = [" or ".join(names) for names in needed if not any(one in cells for one in names)]
    if not lacking:
        return ""
    return (
        f"no column {', '.join(lacking)}; it has {', '.join(cells) or 'none'}. Give the config as "
        "it is downloaded."
    )


def _task(cell: Any) -> Task:
    said = text_of(cell, "task_type")
    for task in TASKS:
        if said == task:
            return task
    raise ManuError(f"task_type is {said!r}, expected one of {', '.join(TASKS)}. Mend the row.")


def _options(cells: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """Return the options of a row by letter, and the right letter."""
    lacking = [name for name in (*OPTIONS.values(), "answer_label") if name not in cells]
    if lacking:
        raise ManuError(f"no {', '.join(lacking)}. Give the config as it is downloaded.")
    given = {letter: cells[name] for letter, name in OPTIONS.items()}
    options = {letter: text for letter, text in options_of(given, "options").items() if text}
    label = text_of(cells["answer_label"], "answer_label").upper()
    if label not in options or len(options) < 2:
        raise ManuError(
            f"answer_label is {label!r}, the options are {', '.join(options) or 'none'}. Mend the "
            "row."
        )
    return options, label


def _sample_id(cells: Mapping[str, Any]) -> str:
    return _id(cells.get("sample_id", cells.get("id")), "sample_id")


def _id(cell: Any, what: str, *, needed: bool = True) -> str:
    """Return an identity, a text or a whole number, as a text; "" where it may be missing."""
    text = str(cell) if type(cell) is int else text_of(cell, what)
    if needed and not text:
        raise ManuError(f"no {what}. Mend the row.")
    return text


def _list(cell: Any, what: str) -> list[Any]:
    """Return the list of a cell, or of the JSON in it."""
    try:
        value = json.loads(cell) if isinstance(cell, str) else cell
    except (ValueError, RecursionError) as error:
        raise ManuError(f"{what} is not JSON ({error}). Mend the row.") from None
    if not isinstance(value, list):
        raise ManuError(f"{what} is {short(cell)}, expected a list. Mend the row.")
    return value


def _cell(cell: Any, folder: Path) -> Any:
    """Return the cell of an image, a path as one below the benchmark's folder."""
    path = cell.get("path") if isinstance(cell, dict) and cell.get("bytes") is None else cell
    return {"bytes": None, "path": str(folder / path)} if isinstance(path, str) else cell

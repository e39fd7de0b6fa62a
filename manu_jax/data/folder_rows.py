"""The lines of a request's folder, from files of several formats, each with its place.

A set NAME is one of NAME.jsonl, NAME.json, NAME.csv, NAME.parquet, or a folder NAME: of `datasets`
(`save_to_disk`), of parquet files, or an imagefolder with its metadata file.

Parquet files and folders of `datasets` are read with `datasets`. JSON and CSV are read as they
stand, for two reasons: a column may hold a text in one line and a list in the next, which Arrow's
tables can't, and what is wrong is told with the number of the line in the file.
"""

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from manu_jax.data.cells import is_null, short
from manu_jax.folder import ForeignErrors, is_input
from manu_jax.types import ManuError

JSON_COLUMNS = ("image", "answer", "options", "wrong")  # of CSV: a list is written as JSON
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of an imagefolder
DATASET = ("state.json", "dataset_dict.json")  # of save_to_disk: one table, or one per split


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a set. place: "forget.jsonl, line 3". folder: that paths of images begin at."""

    place: str
    cells: Mapping[str, Any]
    folder: Path


def lines_of(folder: Path, name: str, faults: list[str]) -> list[Line] | None:
    """Return the lines of a set of a request's folder; None where there is no such set.

    What is wrong is added to `faults`. A name of the table `file_name` (imagefolder) is `image`.
    """
    found = sources(folder, name)
    if not found:
        return None
    if len(found) > 1:
        shown = " and ".join(path.name for path in found)
        faults.append(f"{shown}: two lists of the set {name}. Keep one of them.")
        return []
    (source,) = found
    lines: list[Line] = []
    try:
        for place, cells in _read(source, faults):
            if "file_name" in cells and "image" not in cells:
                cells = {"image" if key == "file_name" else key: cells[key] for key in cells}
            base = source if source.is_dir() else folder
            lines.append(Line(place, cells, base))
    except ManuError as error:
        faults.append(str(error))
    return lines


def sources(folder: Path, name: str) -> list[Path]:
    """Return the files and folders that hold a set."""
    files = [folder / f"{name}{ending}" for ending in READERS]
    found = [file for file in files if file.is_file()]
    return [*found, folder / name] if (folder / name).is_dir() else found


def _read(source: Path, faults: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (place, cells) of each line of a file or folder."""
    if source.is_file():
        yield from READERS[source.suffix](source, source.name, faults)
        return
    for name in METADATA:
        if (source / name).is_file():
            yield from READERS[Path(name).suffix](source / name, f"{source.name}/{name}", faults)
            return
    if any((source / name).is_file() for name in DATASET):
        yield from _saved(source)
        return
    tables = sorted(source.rglob("*.parquet"))
    files = [file for file in tables if is_input(file.relative_to(source))]
    if not files:
        raise ManuError(
            f"{source.name}/: holds no table. It is a folder that `save_to_disk` of datasets "
            f"wrote, one of parquet files, or one of images with {' or '.join(METADATA)}."
        )
    for file in files:
        yield from _parquet(file, file.relative_to(source.parent).as_posix(), faults)


def _json(file: Path, shown: str, faults: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the records of JSON Lines, or of one JSON list."""
    text = _text(file, shown)
    if text.lstrip().startswith("["):
        try:
            records = _loads(text)
        except (ValueError, RecursionError) as error:
            raise ManuError(f"{shown}: is not JSON ({error}). Mend it at that place.") from None
        pairs: Iterable[tuple[str, Any]] = (
            (f"{shown}, entry {number}", record) for number, record in enumerate(records, 1)
        )
    else:
        pairs = _json_lines(text, shown, faults)
    for place, record in pairs:
        if isinstance(record, dict):
            yield place, record
        else:
            faults.append(
                f'{place}: is {short(record)}, expected a mapping like {{"subject": …}}. Mend it.'
            )


def _json_lines(text: str, shown: str, faults: list[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{shown}, line {number}", _loads(line)
        except (ValueError, RecursionError) as error:
            if line.strip() == "{":
                raise ManuError(
                    f"{shown}, line {number}: an entry goes over several lines. Write each on one "
                    "line, or all of them as one list, [{…}, {…}]."
                ) from None
            is_decoding = isinstance(error, json.JSONDecodeError)
            reason = f"{error.msg}, at column {error.colno}" if is_decoding else str(error)
            faults.append(f"{shown}, line {number}: is not JSON ({reason}). Mend the line.")


def _loads(text: str) -> Any:
    """Return the value of a JSON text; ValueError also where a key stands twice in a mapping."""

    def mapping(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"{', '.join(twice)} stands twice in one entry")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=mapping)


def _csv(file: Path, shown: str, faults: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a table with commas, every cell a text; an empty one is null."""
    reader = csv.reader(io.StringIO(_text(file, shown), newline=""), strict=True)
    head: list[str] = []
    try:
        for row in reader:
            place = f"{shown}, line {reader.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if not head:
                head = _head(row, place)
            elif len(row) != len(head):
                faults.append(
                    f"{place}: has {len(row)} cells, the first line {len(head)}. Put texts that "
                    'hold commas in "quotes".'
                )
            else:
                yield place, {name: _cell(name, value) for name, value in zip(head, row)}  # noqa: B905
    except csv.Error as error:
        raise ManuError(
            f"{shown}, line {reader.line_num}: is not CSV ({error}). Put texts that hold commas, "
            'line ends or quotes in "quotes", with every quote inside doubled.'
        ) from None


def _head(row: list[str], place: str) -> list[str]:
    """Return the names of the columns; ManuError where the cells are not parted by commas."""
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(row) == 1 and mark in row[0]:
            raise ManuError(
                f"{place}: the cells are parted by {name}, expected commas. Save the table as CSV "
                "with commas (in a spreadsheet: “CSV UTF-8”, separator “,”), or write it as "
                "JSON Lines."
            )
    names = [cell.strip() for cell in row]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ManuError(
            f"{place}: the column {', '.join(map(repr, twice))} stands twice. Keep one."
        )
    return names


def _cell(name: str, text: str) -> Any:
    """Return a cell of a CSV: null where it is empty, a list where it is one in JSON.

    `text_question` may be false, as JSON or a spreadsheet writes it.
    """
    if not text.strip():
        return None
    if name == "text_question" and text.strip().casefold() == "false":
        return False
    if name in JSON_COLUMNS and text.lstrip().startswith(("[", "{")):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def _parquet(file: Path, shown: str, faults: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import datasets

    del faults  # a damaged file is one fault as a whole
    with ForeignErrors(shown, "can't be read as parquet", "Write the file again."):
        # Streamed, so that no copy of what is to be forgotten stays in the cache of `datasets`.
        table = datasets.load_dataset(
            "parquet", data_files=[str(file)], split="train", streaming=True
        )
        for number, row in enumerate(table.decode(False), 1):
            yield f"{shown}, row {number}", _plain(row)


def _saved(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a folder of `save_to_disk`."""
    import datasets

    shown = f"{folder.name}/"
    with ForeignErrors(shown, "can't be read as a folder of datasets", "Save it again."):
        table = datasets.load_from_disk(str(folder))
        if isinstance(table, datasets.DatasetDict):
            if len(table) != 1:
                raise ManuError(
                    f"{shown}: holds the splits {', '.join(map(str, table))}, expected one table. "
                    "Save the one that is meant: dataset[split].save_to_disk(…)."
                )
            (table,) = table.values()
        rows = [_plain(row) for row in table.to_iterable_dataset().decode(False)]
    yield from ((f"{shown} row {number}", row) for number, row in enumerate(rows, 1))


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): None if is_null(value) else value for key, value in row.items()}


def _text(file: Path, shown: str) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManuError(
            f"{shown}: is not UTF-8 (byte {error.start:,}). Save it as UTF-8 (in a spreadsheet: "
            "“CSV UTF-8”)."
        ) from None
    except OSError as error:
        raise ManuError(f"{shown}: {error.strerror}. Check that it may be read.") from None


READERS: dict[str, Callable[[Path, str, list[str]], Iterator[tuple[str, Mapping[str, Any]]]]] = {
    ".jsonl": _json,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}

"""Read tables row by row, and keep every fault for one error at the end.

`datasets` reads the files (table_files.py), a few rows at a time, so that a large file of images
never lies in memory whole. Each row has an `ID`, or is known by its number. Images are decoded in
images.py.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from manu_jax.data.cells import is_null, short
from manu_jax.data.images import decode
from manu_jax.data.table_files import Part, are_whole, sets_of
from manu_jax.types import ManuError, raise_faults

MOST_FAULTS = 50  # lines in one error


@dataclasses.dataclass(frozen=True)
class Row:
    place: str  # "forget_10/train-00000-of-00001.parquet, row 3, ID 007"
    id: str
    cells: Mapping[str, Any]
    folder: Path | None = None  # where its images may be files


class TableReader:
    """Reads tables, collects what is wrong with them, and makes equal images one object."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.images: dict[bytes, Any] = {}

    def rows(
        self,
        folder: Path,
        columns_fault: Callable[[set[str]], str | None],
        only: set[str] | None = None,
    ) -> Iterator[Row]:
        """Yield the rows of a folder (those with an ID in `only`), in the order of its files.

        columns_fault: tells what is wrong with a file's columns; such a file is not read.
        """
        seen: dict[str, str] = {}
        for part in self._parts(folder):
            shown = f"{folder.name}/{part.place.relative_to(folder).as_posix()}".removesuffix("/.")
            records = self._records(part, shown, columns_fault, only=only)
            for number, (row_id, cells) in enumerate(records):
                place = f"{shown}, row {number}, ID {row_id}"
                if not isinstance(row_id, str) or not row_id:
                    self.faults.append(f"{place}: an ID is a text like '001'. Mend the row.")
                elif row_id in seen:
                    self.faults.append(
                        f"{place}: the same ID as {seen[row_id]}. Keep one of the rows."
                    )
                else:
                    seen[row_id] = f"{shown}, row {number}"
                    if cells is not None:
                        yield Row(place, row_id, cells, part.images)

    def numbered_rows(
        self, folder: Path, columns_fault: Callable[[set[str]], str | None]
    ) -> Iterator[Row]:
        """Yield the rows of a folder whose table has no `ID`; the ID is its number in the folder.

        columns_fault: as in `rows`.
        """
        count = itertools.count()
        for part in self._parts(folder):
            shown = f"{folder.name}/{part.place.relative_to(folder).as_posix()}".removesuffix("/.")
            records = self._records(part, shown, columns_fault, only=None, has_ids=False)
            for number, (_, cells) in enumerate(records):
                if cells is not None:
                    yield Row(f"{shown}, row {number}", str(next(count)), cells, part.images)

    def _records(
        self,
        part: Part,
        shown: str,
        columns_fault: Callable[[set[str]], str | None],
        *,
        only: set[str] | None,
        has_ids: bool = True,
    ) -> Iterator[tuple[Any, Mapping[str, Any] | None]]:
        """Yield (ID, cells) of a file's rows; no cells where the ID is not in `only`.

        has_ids: whether the table has IDs; None stands for one otherwise.

        The one place where `datasets` reads: what it raises on damaged files is one fault.
        """
        import pyarrow
        from datasets.exceptions import DatasetsError

        try:
            with tempfile.TemporaryDirectory(prefix="manu_jax-") as cache, _quiet():
                columns, batches = part.format.batches(part.file, cache)
                wrong = columns_fault(columns)
                if wrong:
                    self.faults.append(f"{shown}: {wrong}")
                    return
                for batch in batches:
                    ids = batch.column("ID").to_pylist() if has_ids else [None] * batch.num_rows
                    for i, row_id in enumerate(ids):
                        is_wanted = only is None or (isinstance(row_id, str) and row_id in only)
                        yield row_id, batch.slice(i, 1).to_pylist()[0] if is_wanted else None
        except (
            pyarrow.ArrowException, DatasetsError, OSError, ValueError, TypeError, LookupError,
            ArithmeticError, AttributeError, RuntimeError, MemoryError,
        ) as error:  # fmt: skip
            reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
            words = part.format.words
            self.faults.append(f"{shown}: not a whole {words} ({reason}). Download it again.")

    def _parts(self, folder: Path) -> list[Part]:
        """Return the files of a folder's table, in order; a fault where they are not one set."""
        sets = sets_of(folder)
        if not sets:
            self.faults.append(
                f"{folder}: empty, expected files like train-00000-of-00001.parquet. "
                "Download the folder again."
            )
            return []
        if len(sets) > 1:
            firsts = " and ".join(found[0].file.relative_to(folder).as_posix() for found in sets)
            self.faults.append(
                f"{folder}: holds {len(sets)} sets of files, those of {firsts}, which may be the "
                "same rows twice. Keep one set."
            )
            return []
        (parts,) = sets
        if not are_whole(parts):
            names = ", ".join(part.file.name for part in parts)
            self.faults.append(
                f"{folder}: has {names}, which are not all parts of one set of files. Download "
                "the missing parts, or remove those of another set."
            )
        return parts

    def image(self, row: Row, cell: Any) -> Any:
        """Return the PIL image (RGB) of a cell, the same object for the same bytes.

        None, and a fault, where the cell holds no image that decodes.
        """
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if data is None and row.folder is not None and isinstance(cell, dict):
            data = self._content(row, row.folder, cell.get("path"))
            if data is None:
                return None
        if not isinstance(data, bytes):
            self.faults.append(
                f"{row.place}: an image is a mapping with bytes, got {short(cell)}. "
                "Take the files that hold the images themselves, not paths to them."
            )
            return None
        digest = hashlib.sha256(data).digest()
        if digest not in self.images:
            with self.faults_at(f"{row.place}: the image of {len(data):,} bytes"):
                self.images[digest] = decode(data)
        return self.images.get(digest)

    def _content(self, row: Row, folder: Path, path: Any) -> bytes | None:
        """Return what an image file in a row's folder holds; None, and a fault, otherwise."""
        # Links are not followed: the hub's cache is made of them.
        name = os.path.relpath(str(path), folder)
        if not name.startswith(".."):
            with contextlib.suppress(OSError):
                return (folder / name).read_bytes()
        self.faults.append(
            f"{row.place}: there is no image {name} in {folder}. Add the file, or mend the row."
        )
        return None

    def json_value(self, row: Row, column: str, kind: type) -> Any:
        """Return the list or mapping of a cell, or of the JSON in it; null and blank are empty."""
        value = row.cells[column]
        if is_null(value) or (isinstance(value, str) and not value.strip()):
            return kind()
        try:
            value = json.loads(value) if isinstance(value, str | bytes) else value
        except (ValueError, RecursionError) as error:
            self.faults.append(f"{row.place}: {column} is not JSON ({error}). Mend the row.")
            return kind()
        if not isinstance(value, kind):
            expected = "a list" if kind is list else "a mapping"
            self.faults.append(
                f"{row.place}: {column} holds {short(value)}, expected {expected}. Mend the row."
            )
            return kind()
        return value

    @contextlib.contextmanager
    def faults_at(self, place: str) -> Iterator[None]:
        """Keep a ManuError of the block as a fault of that place."""
        try:
            yield
        except ManuError as error:
            self.faults.append(f"{place}: {error}")

    def raise_faults(self, where: str) -> None:
        """Raise ManuError with all that was found, if anything was."""
        count = len(self.faults)
        raise_faults(self.faults, f"{where}: {count} fault{'s' * (count > 1)}", MOST_FAULTS)


def columns_fault(columns: set[str], needed: Sequence[str], what: str) -> str | None:
    """Return what tells that columns are lacking, and of which folder to give; None: none is."""
    lacking = [name for name in needed if name not in columns]
    if not lacking:
        return None
    return (
        f"no column {', '.join(lacking)}; it has {', '.join(sorted(columns))}. Give {what} as it "
        "is downloaded."
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep `datasets` from logging what it raises as well."""
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)

"""Read folders of parquet files row by row, and keep every fault for one error at the end.

A folder holds one table, in one set of files, by the names that the hub and `datasets` give them:

    train-00000-of-00002.parquet …, or with a hash: train-00000-of-00001-5f1c2a9b3d4e5f60.parquet
    0000.parquet, 0001.parquet …                      what the hub converts a dataset to

in the folder itself or below it, in SUBFOLDERS. Files that macOS puts beside them (`._…`) and other
splits are not read. Each row has an `ID`. Rows are read a few at a time, so that a large file of
images never lies in memory whole.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from manu_jax.data.cells import is_null, short
from manu_jax.data.images import decode
from manu_jax.types import ManuError, raise_faults

NUMBERED = re.compile(r"train-(?P<number>\d+)-of-(?P<total>\d+)(-[0-9a-f]+)?\.parquet")
CONVERTED = re.compile(r"(?P<number>\d{4,})\.parquet")
SUBFOLDERS = (".", "data", "train", "default/train")
ROWS_AT_ONCE = 16  # rows of images held while a file is read
MOST_FAULTS = 50  # lines in one error


@dataclasses.dataclass(frozen=True)
class Row:
    place: str  # "forget_10/train-00000-of-00001.parquet, row 3, ID 007"
    id: str
    cells: Mapping[str, Any]


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
        for file in self._files(folder):
            shown = f"{folder.name}/{file.relative_to(folder).as_posix()}"
            records = self._records(file, shown, columns_fault, only=only)
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
                        yield Row(place, row_id, cells)

    def _records(
        self,
        file: Path,
        shown: str,
        columns_fault: Callable[[set[str]], str | None],
        *,
        only: set[str] | None,
    ) -> Iterator[tuple[Any, Mapping[str, Any] | None]]:
        """Yield (ID, cells) of a file's rows; no cells where the ID is not in `only`.

        The one place where pyarrow reads: what it raises on damaged files is one fault.
        """
        import pyarrow
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(file, page_checksum_verification=True) as table:
                wrong = columns_fault(set(table.schema_arrow.names))
                if wrong:
                    self.faults.append(f"{shown}: {wrong}")
                    return
                for batch in table.iter_batches(batch_size=ROWS_AT_ONCE):
                    for i, row_id in enumerate(batch.column("ID").to_pylist()):
                        is_wanted = only is None or (isinstance(row_id, str) and row_id in only)
                        yield row_id, batch.slice(i, 1).to_pylist()[0] if is_wanted else None
        except (
            pyarrow.ArrowException, OSError, ValueError, TypeError, LookupError, ArithmeticError,
            MemoryError,
        ) as error:  # fmt: skip
            reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
            self.faults.append(f"{shown}: not a whole parquet file ({reason}). Download it again.")

    def _files(self, folder: Path) -> list[Path]:
        """Return the files of a folder's table, in order; a fault where they are not one set."""
        sets = [
            found
            for subfolder in SUBFOLDERS
            for pattern in (NUMBERED, CONVERTED)
            if (found := _matching(folder / subfolder, pattern))
        ]
        if not sets:
            self.faults.append(
                f"{folder}: empty, expected files like train-00000-of-00001.parquet. "
                "Download the folder again."
            )
            return []
        if len(sets) > 1:
            firsts = " and ".join(found[0][0].relative_to(folder).as_posix() for found in sets)
            self.faults.append(
                f"{folder}: holds {len(sets)} sets of files, those of {firsts}, which may be the "
                "same rows twice. Keep one set."
            )
            return []
        (found,) = sets
        files = [file for file, _ in found]
        numbers = [int(match["number"]) for _, match in found]
        totals = {int(match.groupdict().get("total", len(found))) for _, match in found}
        if len(totals) > 1 or numbers != list(range(max(totals))):
            self.faults.append(
                f"{folder}: has {', '.join(file.name for file in files)}, which are not all parts "
                "of one set of files. Download the missing parts, or remove those of another set."
            )
        return files

    def image(self, row: Row, cell: Any) -> Any:
        """Return the PIL image (RGB) of a cell, the same object for the same bytes.

        None, and a fault, where the cell holds no image that decodes.
        """
        data = cell.get("bytes") if isinstance(cell, dict) else cell
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


def _matching(folder: Path, pattern: re.Pattern[str]) -> list[tuple[Path, re.Match[str]]]:
    """Return the files of a folder whose whole name matches, in the order of their numbers."""
    if not folder.is_dir():
        return []
    found = [(file, pattern.fullmatch(file.name)) for file in folder.iterdir()]
    files = [(file, match) for file, match in found if match is not None and file.is_file()]
    return sorted(files, key=lambda pair: (int(pair[1]["number"]), pair[0].name))

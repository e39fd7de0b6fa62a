"""Read folders of parquet shards row by row, and keep every fault for one error at the end.

A folder holds `train-00000-of-00002.parquet` and so on, each row with an `ID`. Rows are read a few
at a time, so that a large file of images never lies in memory whole.
"""

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from manu_jax.types import raise_faults

SHARD = re.compile(r"train-(\d+)-of-(\d+)\.parquet$")
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
        import pyarrow
        from pyarrow import parquet

        seen: dict[str, str] = {}
        for file in self._shards(folder):
            shown = f"{folder.name}/{file.name}"
            try:
                table = parquet.ParquetFile(file)
                wrong = columns_fault(set(table.schema_arrow.names))
                if wrong:
                    self.faults.append(f"{shown}: {wrong}")
                    continue
                number = -1
                for batch in table.iter_batches(batch_size=ROWS_AT_ONCE):
                    for i, person_id in enumerate(batch.column("ID").to_pylist()):
                        number += 1
                        place = f"{shown}, row {number}, ID {person_id}"
                        if not isinstance(person_id, str) or not person_id:
                            self.faults.append(
                                f"{place}: an ID is a text like '001'. Mend the row."
                            )
                        elif person_id in seen:
                            self.faults.append(
                                f"{place}: the same ID as {seen[person_id]}. Keep one of the rows."
                            )
                        else:
                            seen[person_id] = f"{shown}, row {number}"
                            if only is None or person_id in only:
                                yield Row(place, person_id, batch.slice(i, 1).to_pylist()[0])
            except (pyarrow.ArrowException, OSError) as error:
                reason = str(error).strip().splitlines()[0].rstrip(".")
                self.faults.append(
                    f"{shown}: not a whole parquet file ({reason}). Download it again."
                )

    def _shards(self, folder: Path) -> list[Path]:
        files = sorted(file for file in folder.iterdir() if SHARD.search(file.name))
        if not files:
            self.faults.append(
                f"{folder}: empty, expected files like train-00000-of-00001.parquet. "
                "Download the folder again."
            )
            return []
        parts = [SHARD.search(file.name) for file in files]
        numbers = {int(part[1]) for part in parts if part}
        totals = {int(part[2]) for part in parts if part}
        if len(totals) > 1 or numbers != set(range(max(totals))):
            self.faults.append(
                f"{folder}: has {', '.join(file.name for file in files)}, which are not all parts "
                "of one set of files. Download the missing parts, or remove those of another set."
            )
        return files

    def image(self, row: Row, cell: Any) -> Any:
        """Return the PIL image (RGB) of a cell, the same object for the same bytes."""
        from PIL import Image

        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            self.faults.append(
                f"{row.place}: an image is a mapping with bytes, got {short(cell)}. "
                "Take the files that hold the images themselves, not paths to them."
            )
            return None
        digest = hashlib.sha256(data).digest()
        if digest not in self.images:
            try:
                self.images[digest] = Image.open(io.BytesIO(data)).convert("RGB")
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                reason = re.sub(r" <_io\.BytesIO.*?>", "", str(error))
                self.faults.append(
                    f"{row.place}: the image of {len(data):,} bytes does not decode ({reason}). "
                    "Download the file again."
                )
                return None
        return self.images[digest]

    def json_value(self, row: Row, column: str, kind: type) -> Any:
        """Return the value of a JSON text; what is null or blank is empty."""
        text = row.cells[column]
        if text is None or (isinstance(text, str) and not text.strip()):
            return kind()
        try:
            value = json.loads(text)
        except (ValueError, TypeError) as error:
            self.faults.append(f"{row.place}: {column} is not JSON ({error}). Mend the row.")
            return kind()
        if not isinstance(value, kind):
            expected = "a list" if kind is list else "a mapping"
            self.faults.append(
                f"{row.place}: {column} holds {short(value)}, expected {expected}. Mend the row."
            )
            return kind()
        return value

    def raise_faults(self, where: str) -> None:
        """Raise ManuError with all that was found, if anything was."""
        count = len(self.faults)
        raise_faults(self.faults, f"{where}: {count} fault{'s' * (count > 1)}", MOST_FAULTS)


def short(value: Any) -> str:
    """Return a value as it is shown in an error."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"

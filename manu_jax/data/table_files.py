"""The files that hold a folder's table, opened by `datasets` without reading them whole.

A folder holds one table, in one of these forms, in the folder itself or below it, in SUBFOLDERS:

    train-00000-of-00002.parquet …                    as the hub and `datasets` name them, or with a
                                                      hash: train-00000-of-00001-5f1c2a9b….parquet
    0000.parquet, 0001.parquet …                      what the hub converts a data set to
    train.jsonl, train.json, or numbered as above     JSON Lines, or a list of mappings
    state.json, dataset_info.json, data-….arrow       what `Dataset.save_to_disk` writes
    metadata.csv, .jsonl or .parquet beside images    an image folder: `file_name` becomes `image`,
                                                      `file_names` becomes `images`

Files that macOS puts beside them (`._…`) and other splits are not read.
"""

import dataclasses
import glob
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SUBFOLDERS = (".", "data", "train", "default/train")
NUMBERED = re.compile(r"train-(?P<number>\d+)-of-(?P<total>\d+)(-[0-9a-f]+)?\.parquet")
CONVERTED = re.compile(r"(?P<number>\d{4,})\.parquet")
JSON_NUMBERED = re.compile(r"train-(?P<number>\d+)-of-(?P<total>\d+)(-[0-9a-f]+)?\.jsonl?")
JSON_WHOLE = re.compile(r"train\.jsonl?")
SAVED = re.compile(r"state\.json")
METADATA = re.compile(r"metadata\.(csv|jsonl|parquet)")


@dataclasses.dataclass(frozen=True)
class Format:
    """How a table is stored. names: of its files. words: what errors call a file.

    batches: (file, empty folder) → its columns, and its rows as pyarrow tables of ROWS_AT_ONCE. It
    raises what `datasets`, pyarrow and the operating system raise. of_folder: one file stands for
    all that is beside it.
    """

    names: re.Pattern[str]
    words: str
    batches: Callable[[Path, str], tuple[set[str], Iterator[Any]]]
    of_folder: bool = False


@dataclasses.dataclass(frozen=True)
class Part:
    """One file of a table, or the folder of one. number, total: which part of how many."""

    format: Format
    file: Path
    number: int = 0
    total: int | None = None

    @property
    def place(self) -> Path:
        return self.file.parent if self.format.of_folder else self.file

    @property
    def images(self) -> Path | None:
        """The folder in which the images of its rows are files; None: it holds them itself."""
        return self.file.parent if self.format.names is METADATA else None


def sets_of(folder: Path) -> list[list[Part]]:
    """Return the sets of files of a folder, each in the order of its numbers."""
    return [
        found
        for subfolder in SUBFOLDERS
        for kind in FORMATS
        if (found := _matching(folder / subfolder, kind))
    ]


def are_whole(parts: list[Part]) -> bool:
    """Whether the parts of a set are all of one set, each once."""
    totals = {len(parts) if part.total is None else part.total for part in parts}
    return len(totals) == 1 and [part.number for part in parts] == list(range(*totals))


def _batches(table: Any) -> tuple[set[str], Iterator[Any]]:
    """Return the columns and the rows of a data set of `datasets`."""
    batches = iter(table.with_format("arrow").iter(batch_size=ROWS_AT_ONCE))
    columns = table.column_names
    if columns is None:  # not known before the first rows are
        first = next(batches, None)
        columns = () if first is None else first.column_names
        batches = itertools.chain([] if first is None else [first], batches)
    return {*columns}, batches


def _matching(folder: Path, kind: Format) -> list[Part]:
    """Return the files of a folder whose whole name matches, in the order of their numbers."""
    if not folder.is_dir():
        return []
    parts = []
    for file in folder.iterdir():
        match = kind.names.fullmatch(file.name)
        if match is not None and file.is_file():
            found = match.groupdict()
            total = found.get("total")
            number = int(found.get("number") or 0)
            parts.append(Part(kind, file, number, None if total is None else int(total)))
    return sorted(parts, key=lambda part: (part.number, part.file.name))


def _parquet(file: Path, cache: str) -> tuple[set[str], Iterator[Any]]:
    from datasets import IterableDataset
    from pyarrow import parquet
    from pyarrow.dataset import ParquetFragmentScanOptions

    schema = parquet.read_schema(file)
    if any("map<" in str(field.type) for field in schema):  # a type that `datasets` has not
        return {*schema.names}, _with_maps(file)
    # Without the first two, pyarrow reads the whole file ahead.
    options = ParquetFragmentScanOptions(
        pre_buffer=False, use_buffered_stream=True, page_checksum_verification=True
    )
    table = IterableDataset.from_parquet(
        glob.escape(str(file)),
        cache_dir=cache,
        batch_size=ROWS_AT_ONCE,
        fragment_scan_options=options,
    )
    return _batches(table)


def _with_maps(file: Path) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(file, page_checksum_verification=True) as table:
        yield from table.iter_batches(batch_size=ROWS_AT_ONCE)


def _json(file: Path, cache: str) -> tuple[set[str], Iterator[Any]]:
    from datasets import IterableDataset

    return _batches(IterableDataset.from_json(glob.escape(str(file)), cache_dir=cache))


def _saved(file: Path, cache: str) -> tuple[set[str], Iterator[Any]]:
    from datasets import Dataset

    return _batches(Dataset.load_from_disk(file.parent))


def _images(file: Path, cache: str) -> tuple[set[str], Iterator[Any]]:
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    files = f"{glob.escape(str(file.parent))}/**"
    builder = ImageFolder(cache_dir=cache, data_files={"train": [files]})
    return _batches(builder.as_streaming_dataset("train"))


ROWS_AT_ONCE = 16  # rows of images held while a file is read
FORMATS = (
    Format(NUMBERED, "parquet file", _parquet),
    Format(CONVERTED, "parquet file", _parquet),
    Format(JSON_NUMBERED, "JSON file", _json),
    Format(JSON_WHOLE, "JSON file", _json),
    Format(SAVED, "folder of save_to_disk", _saved, of_folder=True),
    Format(METADATA, "image folder", _images, of_folder=True),
)

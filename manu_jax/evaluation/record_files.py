"""Files of records, a line of JSON for each item that a model was asked.

    NAME.jsonl           one record a line, in the order of the items
    NAME.partial.jsonl   the first records of an unfinished file

Records are written chunk by chunk, so a killed run loses at most one chunk.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from manu_jax import parallel
from manu_jax.folder import write_atomic
from manu_jax.types import ManuError

Record = dict[str, Any]


class Asked(Protocol):
    """What tells an item from others; its record has the same four."""

    @property
    def key(self) -> str: ...

    @property
    def person(self) -> str: ...

    @property
    def prompt(self) -> str: ...

    @property
    def truth(self) -> str: ...


SomeItem = TypeVar("SomeItem", bound=Asked)


@dataclasses.dataclass
class RecordFile(Generic[SomeItem]):
    """One file: its items, and the records so far. name: without its ending."""

    folder: Path
    name: str
    items: list[SomeItem]
    records: list[Record]

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.jsonl"

    @property
    def partial(self) -> Path:
        return self.path.with_suffix(".partial.jsonl")


SomeFile = TypeVar("SomeFile", bound=RecordFile)


def read_records(
    file: RecordFile[SomeItem], missing: Callable[[Record, SomeItem], Sequence[str]]
) -> list[Record]:
    """Return the records that exist; ManuError where they are not those of the file's items.

    missing: the fields that a record lacks, or has no number in.
    """
    path = file.path if parallel.exists(file.path) else file.partial
    if not parallel.exists(path):
        return []
    records: list[Record] = []
    fault = ""
    try:
        text = path.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            fault = "damaged: its last line has no end"
        for number, line in enumerate(text.splitlines()):
            record = json.loads(line)
            record = record if isinstance(record, dict) else {}
            lacking = missing(record, file.items[min(number, len(file.items) - 1)])
            if lacking and not fault:
                fault = f"damaged: line {number + 1} has no number for {', '.join(lacking)}"
            records.append(record)
    except (OSError, ValueError) as error:
        fault = f"damaged ({error})"
    fault = fault or _mismatch(file, records, is_whole=path == file.path)
    if fault:
        raise ManuError(f"{path}: {fault}. Delete the file and give the command again.")
    return records


def complete(
    files: Sequence[SomeFile],
    ask: Callable[[Sequence[tuple[SomeFile, Any]]], Sequence[Record]],
    *,
    chunk: int,
) -> None:
    """Ask what is missing in these files and write them; the first process does.

    ask: (file, item) pairs → their records. chunk: items between two writes. A chunk is asked whole
    or not at all, so that an item always shares its batch with the same others. After a killed run
    the numbers are the same to the last digit.
    """
    everything = [(file, number) for file in files for number in range(len(file.items))]
    for start in range(0, len(everything), chunk):
        part = everything[start : start + chunk]
        incomplete = [file for file, number in part if number >= len(file.records)]
        if not incomplete:
            continue
        records = ask([(file, file.items[number]) for file, number in part])
        for (file, number), record in zip(part, records, strict=True):
            if number == len(file.records):
                file.records.append(record)
        changed = list({file.name: file for file in incomplete}.values())
        parallel.on_first_process(functools.partial(_write_all, changed))


def write_records(file: RecordFile) -> None:
    """Write the records so far: the file itself once it is whole."""
    is_whole = len(file.records) == len(file.items)
    # Escaped beyond ASCII, since some characters of other scripts count as line ends.
    lines = [json.dumps(record, allow_nan=False) + "\n" for record in file.records]
    write_atomic(file.path if is_whole else file.partial, "".join(lines))
    if is_whole:
        file.partial.unlink(missing_ok=True)


def _write_all(files: Sequence[RecordFile]) -> None:
    for file in files:
        write_records(file)


def _mismatch(file: RecordFile, records: Sequence[Record], *, is_whole: bool) -> str:
    """Return what tells that records are not those of a file's items; "" if nothing does."""
    expected = [(item.key, item.person, item.prompt, item.truth) for item in file.items]
    names = ("key", "person", "prompt", "truth")
    found = [tuple(record.get(name) for name in names) for record in records]
    if len(found) > len(expected) or (is_whole and len(found) != len(expected)):
        return f"it holds {len(found)} records, {len(expected)} are asked now"
    for number, (one, other) in enumerate(zip(found, expected, strict=False), start=1):
        if one != other:
            return f"line {number} is about {one[0]}, with another question than now"
    return ""

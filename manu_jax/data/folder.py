"""A request: a folder of one's own with what is to be forgotten, and what is to be kept.

    forget     lines {"subject", "image", "question", "answer", …}: what is to be forgotten
    retain     the same of other subjects: what methods keep by. Without it the model's own answers
               are kept (own_answers.py)
    test       the subjects to forget with other images; without it the further images of a line
    general    questions about no subject
    celebrity  further subjects to keep

`folder_rows.py` says in which formats, `request_lines.py` what a line may hold, and docs/request.md
tells it to the user. All faults are found, and are in one ManuError.
"""

import contextlib
import dataclasses
import difflib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from manu_jax.data.cells import is_null, short, text_of
from manu_jax.data.folder_rows import READERS, Line, lines_of, sources
from manu_jax.data.images import decode
from manu_jax.data.record import Benchmark
from manu_jax.data.request_lines import (
    COLUMNS,
    Entry,
    Picture,
    column_faults,
    entry_of,
    key_of,
)
from manu_jax.data.request_people import benchmark_of, with_options
from manu_jax.folder import is_input
from manu_jax.types import ManuError, Set, raise_faults

SETS: tuple[Set, ...] = ("forget", "retain", "test", "general", "celebrity")
MOST_FAULTS = 50  # lines in one error
MOST_IMAGE_BYTES = 8 * 2**30  # of all images, decoded


@dataclasses.dataclass(frozen=True)
class Reading:
    """What was understood of a request's folder.

    entries: in the order of SETS. given: the sets that have lines. faults: what is wrong, each with
    its place and the remedy. columns: {file: columns that are not read}.
    """

    folder: Path
    entries: tuple[Entry, ...]
    given: tuple[Set, ...]
    faults: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]


def read_request(folder: Path, *, seed: int, needs_forget: bool = True) -> Benchmark:
    """Return the sets of a request; those that it does not have are (), retain among them.

    seed: of the wrong options, and of their order. needs_forget: whether it is a fault that there
    is nothing to forget. Raises ManuError with all faults.
    """
    reading = understand(folder, seed=seed, needs_forget=needs_forget)
    count = len(reading.faults)
    raise_faults(reading.faults, f"request {folder}: {count} fault{'s' * (count > 1)}", MOST_FAULTS)
    return benchmark_of(reading.entries)


def understand(folder: Path, *, seed: int, needs_forget: bool = True) -> Reading:
    """Return what a request's folder says, and every fault of it."""
    reader = _Reader(folder)
    entries: list[Entry] = []
    given: list[Set] = []
    for name in SETS:
        lines = reader.lines(name)
        if lines is not None:
            given.append(name)
            entries += reader.entries(name, lines)
    if "forget" not in given and needs_forget:
        reader.faults.append(_no_forget(folder))
    reader.faults += _strange_files(folder)
    faults = [*reader.faults, *_faults_together(entries)]
    return Reading(
        folder,
        tuple(with_options(entries, seed)),
        tuple(given),
        tuple(faults),
        {file: tuple(names) for file, names in reader.columns.items()},
    )


class _Reader:
    """One reading of a folder: its lines, its images, and what is wrong with them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.faults: list[str] = []
        self.columns: dict[str, list[str]] = {}
        self._by_path: dict[Path, Any] = {}
        self._by_digest: dict[bytes, Any] = {}
        self._num_bytes = 0

    def lines(self, name: Set) -> list[Line] | None:
        before = len(self.faults)
        found = lines_of(self.folder, name, self.faults)
        if found == [] and len(self.faults) == before:
            self.faults.append(f"{sources(self.folder, name)[0].name}: has no lines. Write some.")
        return found

    def entries(self, name: Set, lines: Iterable[Line]) -> list[Entry]:
        """Return the lines that can be understood; the others are faults."""
        found, known = [], set()
        for line in lines:
            columns = tuple(line.cells)
            file = line.place.partition(", ")[0]
            if columns not in known:
                known.add(columns)
                wrong = column_faults(columns)
                self.faults += [f"{line.place}: {fault}" for fault in wrong]
                unread = self.columns.setdefault(file, [])
                unread += [c for c in columns if c not in COLUMNS and c not in unread]
                if wrong:
                    known.discard(columns)
                    continue
            try:
                entry = entry_of(
                    line.cells,
                    line.place,
                    where=name,
                    pictures_of=lambda cell, line=line: self._pictures(cell, line.folder),
                )
                found.append(entry)
            except ManuError as error:
                self.faults.append(f"{line.place}: {error}")
        return found

    def _pictures(self, cell: Any, folder: Path) -> tuple[Picture, ...]:
        cells = cell if isinstance(cell, list) else [cell]
        return tuple(
            self._picture(one, folder)
            for one in cells
            if not is_null(one) and not (isinstance(one, str) and not one.strip())
        )

    def _picture(self, cell: Any, folder: Path) -> Picture:
        """Return an image: a path, the bytes of a file, or what `datasets` makes of either."""
        if isinstance(cell, Mapping) and isinstance(cell.get("bytes"), bytes):
            return Picture(str(cell.get("path") or "inside the table"), self._image(cell["bytes"]))
        if isinstance(cell, Mapping) and isinstance(cell.get("path"), str):
            cell = cell["path"]
        if isinstance(cell, bytes):
            return Picture("inside the table", self._image(cell))
        if not isinstance(cell, str):
            raise ManuError(
                f"image is {short(cell)}, expected the name of a file, or a list of them."
            )
        name = text_of(cell, "image")
        try:
            path = _path_of(name, folder)
            if path not in self._by_path:
                data = path.read_bytes()
                with _named(f"the image {name}"):
                    self._by_path[path] = self._image(data)
        except OSError as error:
            raise ManuError(
                f"the image {short(name)}: {error.strerror}. Check that it may be read."
            ) from None
        return Picture(name, self._by_path[path])

    def _image(self, data: bytes) -> Any:
        """Return the pixels of an image file, the same object for the same bytes."""
        digest = hashlib.sha256(data).digest()
        if digest not in self._by_digest:
            image = decode(data)
            self._num_bytes += image.width * image.height * 3
            if self._num_bytes > MOST_IMAGE_BYTES:
                raise ManuError(
                    f"with it the images take more than {MOST_IMAGE_BYTES / 2**30:.0f} GiB as "
                    "pixels. Make them smaller: models see a few hundred pixels a side."
                )
            self._by_digest[digest] = image
        return self._by_digest[digest]


@contextlib.contextmanager
def _named(place: str) -> Iterator[None]:
    """Put a place before the ManuError of the block."""
    try:
        yield
    except ManuError as error:
        raise ManuError(f"{place}: {error}") from None


def _path_of(name: str, folder: Path) -> Path:
    """Return the file of an image; ManuError, with one of a like name, where there is none."""
    if "://" in name:
        raise ManuError(f"the image {name} is an address. Download it into the request's folder.")
    path, root = Path(name), folder.resolve()
    if path.is_relative_to(root):
        path = path.relative_to(root)
    if path.is_absolute() or ".." in path.parts:
        raise ManuError(
            f"the image {name} lies outside the request's folder. Copy it there: a run has to know "
            "when it changes."
        )
    if not is_input(path):
        raise ManuError(
            f"the image {name} is hidden, or has the ending of weights: a run does not look "
            "whether such a file changes. Give it another name."
        )
    path = folder / path
    if path.is_file():
        return path
    beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    alike = [one for one in beside if one.casefold() == path.name.casefold()]
    alike = alike or difflib.get_close_matches(path.name, beside, n=1, cutoff=0.8)
    hint = f"There is {alike[0]}. " if alike else ""
    raise ManuError(
        f"the image {name}: no such file in {folder.name}/. {hint}Mend the name, or copy the image "
        "there."
    )


def _no_forget(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return (
        f"no list of what to forget; the folder holds {shown or 'nothing'}. Write forget.jsonl (or "
        ".json, .csv, .parquet) there."
    )


def _strange_files(folder: Path) -> list[str]:
    """Return a fault for each file that may have been meant as a set, and is none."""
    found = []
    for path in sorted(folder.iterdir()):
        is_table = path.suffix.lower() in READERS and path.suffix != ".json"
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.stem.casefold() in SETS and (path.suffix not in READERS or path.stem not in SETS):
            found.append(
                f"{path.name}: not read. A set is a file like forget.jsonl, with one of the "
                f"endings {', '.join(READERS)}. Save it so, or take it out of the folder."
            )
        elif is_table and path.stem not in SETS:
            found.append(
                f"{path.name}: not one of the sets {', '.join(SETS)}. Rename it, or take it out of "
                "the folder."
            )
    return found


def _faults_together(entries: Sequence[Entry]) -> list[str]:
    """Return what is wrong between lines: subjects spelled in two ways, facts that stand twice."""
    found = []
    spelled: dict[str, Entry] = {}
    asked: dict[tuple[str, str, bool], Entry] = {}
    for entry in entries:
        if not entry.subject:
            continue
        first = spelled.setdefault(entry.person_id, entry)
        if first.subject != entry.subject:
            found.append(
                f"{entry.place}: the subject {entry.subject!r} is {first.subject!r} in "
                f"{first.place}. Write both alike, or give two subjects names that tell them apart."
            )
            continue
        key = (entry.person_id, entry.topic, entry.set == "test")
        first = asked.setdefault(key, entry)
        if first is not entry and (fault := _fault_of_two(first, entry)):
            found.append(fault)
    forgotten = {entry.person_id for entry in entries if entry.set == "forget"}
    for entry in entries:
        if entry.set == "test" and entry.person_id not in forgotten:
            found.append(
                f"{entry.place}: {entry.subject or 'it'} is not in forget. The set test asks about "
                "the subjects to forget: add the subject there, or take the line out."
            )
    return found


def _fault_of_two(first: Entry, entry: Entry) -> str:
    """Return what is wrong with a line that asks what an earlier one asks of the same subject."""
    who = f"{entry.place}: asks of {entry.subject!r} what {first.place} asks"
    if {"forget"} < {first.set, entry.set}:
        return f"{who}. A fact is to be forgotten or kept: take the line out of one."
    if not {key_of(one) for one in first.answers} & {key_of(one) for one in entry.answers}:
        return (
            f"{who}, with another answer. If these are two subjects of one name, give them names "
            "that tell them apart; if both are right, write the answers as a list in one line."
        )
    return f"{who}. Keep one line, with all images in a list."

"""Folders of a store while they are made: on this machine, and put file by file.

The list of files goes first and comes last, so that a folder that has one is whole. A folder with
UNFINISHED was begun here, and may be replaced.
"""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from manu_jax.stores import MANIFEST, UNFINISHED, names_in, remove_files, told, write
from manu_jax.types import ManuError

SHOWN = 10  # names in an error


class Staged:
    """A folder of a store while it is made: on this machine, and put file by file.

    local: the folder to write into.
    """

    def __init__(self, target: Any, local: Path):
        self.target, self.local = target, local
        self.hashes: dict[str, str | None] = {}
        self._is_begun = False

    def begin(self) -> None:
        """Take away what stood in the store, its list first; once."""
        if not self._is_begun:
            write(self.target / UNFINISHED, b"")
            with told(self.target):
                remove_files(self.target, [n for n in names_in(self.target) if n != UNFINISHED])
            self._is_begun = True

    def put(self, name: str) -> None:
        """Put a file that is finished, and remove it here."""
        self.begin()
        file = self.local / name
        with open(file, "rb") as opened:
            self.hashes[name] = hashlib.file_digest(opened, "sha256").hexdigest()
        with told(self.target):
            self.target.fs.put_file(str(file), (self.target / name).path)
        file.unlink()

    def finish(self) -> None:
        """Put what is left, then the list of files, with which the folder is whole."""
        self.begin()
        for file in sorted(file for file in self.local.rglob("*") if file.is_file()):
            self.put(file.relative_to(self.local).as_posix())
        for name in names_in(self.target):  # what others have put there: Orbax, with its own sums
            if name != UNFINISHED:
                self.hashes.setdefault(name, None)
        write(self.target / MANIFEST, f"{json.dumps({'files': self.hashes}, indent=1)}\n".encode())
        with told(self.target):
            (self.target / UNFINISHED).unlink(missing_ok=True)


_staged: dict[Path, Staged] = {}  # by the folders of this machine


@contextlib.contextmanager
def staged_folder(target: Any) -> Iterator[Path]:
    """Give a folder of this machine that is put to a store when the block ends well."""
    with tempfile.TemporaryDirectory(prefix="manu_jax-") as folder:
        local = Path(folder) / target.name
        local.mkdir()
        _staged[local] = Staged(target, local)
        try:
            yield local
            _staged[local].finish()
        finally:
            del _staged[local]


def begin_folder(folder: Path) -> None:
    """Take away what `folder`, which `staged_folder` gave, is to replace."""
    _staged[folder].begin()


def put_finished(file: Path) -> None:
    """Put a finished file, if its folder is one of `staged_folder`: so it takes no room here."""
    if file.parent in _staged:
        _staged[file.parent].put(file.name)


def check_replaceable(folder: Any) -> None:
    """Raise ManuError where a folder of a store holds files of others, by their names."""
    with told(folder):
        if folder.is_file():
            raise ManuError(f"{folder}: it is a file. Give the name of a new folder.")
        names = names_in(folder)
        if not names or UNFINISHED in names:
            return
        written: Any = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            written = dict(json.loads((folder / MANIFEST).read_bytes())["files"])
        foreign = [name for name in names if name not in written and name != MANIFEST]
    if foreign:
        more = f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else ""
        raise ManuError(
            f"{folder}: it holds what manu_jax did not write and would remove: "
            f"{', '.join(foreign[:SHOWN])}{more}. Nothing was changed. Give a new folder, or move "
            "these away."
        )

"""Paths and folders: no file stands half-written, and no folder of the user's is emptied.

A file is written under a temporary name beside its own and renamed, so a file that stands is whole.
A process that is killed leaves at most temporary files (`.part`), which the next owner of a run's
folder removes (owner.py). A folder that we write holds a list of its files and their hashes, and is
replaced only where it holds nothing else. What differs in a store is in stores.py.
"""

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from manu_jax import staged, stores
from manu_jax.stores import MANIFEST
from manu_jax.types import ManuError

logger = logging.getLogger("manu_jax")

PART = ".part"
SHOWN = 10  # names in an error
CHECKPOINT_PART = ".orbax-checkpoint-tmp"  # Orbax's own, and how it may go on
# How Rust, TensorStore and shutil tell of an error of the operating system.
OS_ERROR = re.compile(r"(?:\(os error |os_error_code='|\[Errno )(\d+)")
ONE_SLASH = re.compile(r"(?:gs|s3):/[^/]")  # what pathlib makes of the path of a store
UNNAMEABLE = re.compile(r"[\0\ud800-\udfff]")  # what no file is called by
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# Weights in formats that are not read.
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "datasets",
    "numpy",
)


class ForeignErrors(contextlib.AbstractContextManager):
    """Turn whatever a library raises inside into one ManuError: the border of that library.

    tokenizers, Orbax and others raise the bare class `Exception`, and Rust panics below it. place:
    the file or folder. fault: what can't be done. remedy: what the user can do about it.
    """

    def __init__(self, place: str, fault: str, remedy: str):
        self.place, self.fault, self.remedy = place, fault, remedy

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        is_panic = type(error).__name__ == "PanicException"
        if isinstance(error, ManuError) or not (isinstance(error, Exception) or is_panic):
            return
        found = os_error(error) if isinstance(error, Exception) else None
        if found is not None and found.errno in DISK_FULL:
            raise explained(found, self.place) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ManuError(f"{self.place}: {self.fault} ({reason:.300}). {self.remedy}") from error


def expand_path(path: str | os.PathLike) -> Path:
    """Return a path as the user means it: `~` and `~user` at its start are home folders.

    `gs://` and `s3://` name places in a store, whose paths have the methods of `pathlib.Path`.
    Raises ManuError for what is no path, an empty path, the home folder of nobody, the path of a
    store that pathlib has changed, and a store that is not to be had.
    """
    if stores.is_store(path):
        return stores.open_store(path)
    text = path if isinstance(path, str) else getattr(path, "__fspath__", lambda: None)()
    if not isinstance(text, str) or not text or UNNAMEABLE.search(text):
        raise ManuError(
            f"{path!r}: expected a path, as text or pathlib.Path. Give the file's name."
        )
    if ONE_SLASH.match(text):
        raise ManuError(
            f"{text}: a slash is missing, as pathlib.Path leaves it out. Give the place in a store "
            f"as text: {text.replace(':/', '://', 1)}."
        )
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        user = text.split("/")[0]
        raise ManuError(f"{text}: {user} is no user's home folder. Give the whole path.")
    return Path(expanded)


def write_atomic(path: str | os.PathLike, content: bytes | str) -> None:
    """Write a whole file or none: to a temporary name beside it, flushed to disk, then renamed."""
    data = content.encode() if isinstance(content, str) else content
    if stores.is_store(path):
        stores.write(expand_path(path), data)
        return
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise explained(error, path) from error


@contextlib.contextmanager
def new_folder(path: str | os.PathLike, number: int | None = None) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block ends well, and else vanishes.

    What stood at `path` is replaced under the rule of `check_replaceable`. number: what the name of
    the temporary folder is made of where several processes write into it; None: this process's.
    """
    target = check_replaceable(path)
    if stores.is_store(target):
        with staged.staged_folder(target) as folder:
            yield folder
        return
    temporary = part_of(target, os.getpid() if number is None else number)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        hashes = {name: file_hash(temporary / name) for name in _files(temporary)}
        write_atomic(temporary / MANIFEST, json.dumps({"files": hashes}, indent=1) + "\n")
        _refuse_foreign(target, with_hashes=False)  # what came while we wrote
        _swap(temporary, target)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: str | os.PathLike) -> Path:
    """Return the absolute folder that `path` names; links are followed, so that they stay.

    Raises ManuError unless it is new, or empty, or holds only files that `new_folder` wrote, and
    unchanged; and for the working folder, which can't be replaced under its users. In a store their
    names are looked at, and not what is in them.
    """
    if stores.is_store(path):
        place = expand_path(path)
        staged.check_replaceable(place)
        return place
    try:
        target = Path(os.path.realpath(expand_path(path)))
        here = Path.cwd()
        if target.exists() and not target.is_dir():
            raise ManuError(f"{path}: it is a file. Give the name of a new folder.")
        if target == here or target in here.parents:
            raise ManuError(
                f"{path}: it is the working folder, or holds it, and is replaced as a whole. Give "
                "the name of a new folder inside it."
            )
        if target.exists() and os.path.ismount(target):
            raise ManuError(f"{path}: a disk is mounted there. Give a new folder inside it.")
        _refuse_foreign(target)
    except OSError as error:
        raise explained(error, path) from error
    return target


def part_of(path: Path, number: int) -> Path:
    """Return the temporary folder beside `path` in which the process `number` makes it."""
    return path.with_name(f".{path.name}.{number}{PART}")


def file_hash(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileHashes:
    """Hashes of the files that a config names; a file is read again when its size or time differ.

    known: {path: [bytes, time of change, SHA-256]}, as keys.json keeps them.
    """

    def __init__(self, known: Mapping[str, Sequence[Any]] | None = None):
        self.known = {name: list(entry) for name, entry in (known or {}).items()}

    def of(self, path: str | None) -> str | None:
        """Return the hash of a file, or of a folder's files and their names; None for no path."""
        if path is None:
            return None
        place = expand_path(path)
        if stores.is_store(place):
            return stores.identity(place)
        files = [place] if place.is_file() else sorted(_inputs(place))
        if not files:
            return "absent"
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(self._hash, files))
        names = [file.relative_to(place).as_posix() for file in files]
        pairs = list(zip(names, found, strict=True))
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]

    def _hash(self, file: Path) -> str:
        status = file.stat()
        name, stamp = os.path.realpath(file), [status.st_size, status.st_mtime_ns]
        if self.known.get(name, [])[:2] != stamp:
            if status.st_size > 2**30:
                logger.info("%s: reading it, to know it again", file)
            self.known[name] = [*stamp, file_hash(file)]
        return self.known[name][2]


def is_hidden(name: Path) -> bool:
    """Whether a file's name below a folder is hidden, or a folder on the way to it is."""
    return any(part.startswith(".") for part in name.parts)


def is_input(name: Path) -> bool:
    """Whether a run looks if the file of that name below a folder changes (`FileHashes`)."""
    return not is_hidden(name) and name.suffix not in OTHER_WEIGHTS


def versions() -> dict[str, str]:
    """Return the versions that a run's numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("manu_jax", *PACKAGES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def explained(error: OSError, path: str | os.PathLike | None = None) -> ManuError:
    """Return what the operating system refused at `path`, as one message with the remedy."""
    where = path or error.filename or "a file"
    error = os_error(error) or error
    if error.errno in DISK_FULL:
        return ManuError(
            f"{where}: the disk is full. Free some space or give another folder, then give the "
            "same command again: what is finished is kept."
        )
    reason = error.strerror or " ".join(str(error).split())
    return ManuError(f"{where}: {reason}. Check that it is there and may be read and written.")


def os_error(error: Exception) -> OSError | None:
    """Return the operating system's error that a library's own one tells of, or None."""
    found = OS_ERROR.search(str(error))
    if found is None or (isinstance(error, OSError) and error.errno is not None):
        return error if isinstance(error, OSError) else None
    return OSError(int(found[1]), os.strerror(int(found[1])))


def _files(folder: Path) -> list[str]:
    """Return the names of all files below a folder but its manifest, in order; links are files."""
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [(Path(place) / name).relative_to(folder).as_posix() for name in [*files, *links]]
    return sorted(name for name in found if name != MANIFEST)


def _inputs(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder that may be read: none that are hidden, links are followed."""
    seen = set()
    for place, inner, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:
            inner.clear()
            continue
        seen.add(os.path.realpath(place))
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in names:
            file = Path(place) / name
            if is_input(Path(name)) and file.is_file():
                yield file


def _empty_folders(folder: Path) -> list[str]:
    walked = [(Path(place), inner) for place, *inner in os.walk(folder) if Path(place) != folder]
    return [f"{place.relative_to(folder).as_posix()}/" for place, inner in walked if not any(inner)]


def _refuse_foreign(folder: Path, *, with_hashes: bool = True) -> None:
    """Raise ManuError where a folder holds what `new_folder` did not write, or not like that."""
    if not folder.is_dir():
        return
    try:
        written = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        written = dict(written)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        written = {}
    names = _files(folder)
    foreign = [name for name in [*names, *_empty_folders(folder)] if name not in written]
    if with_hashes:
        foreign += [
            f"{name} (changed since)"
            for name in names
            if name in written
            and ((folder / name).is_symlink() or file_hash(folder / name) != written[name])
        ]
    if foreign:
        more = f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else ""
        raise ManuError(
            f"{folder}: it holds what manu_jax did not write and would remove: "
            f"{', '.join(foreign[:SHOWN])}{more}. Nothing was changed. Give a new folder, or move "
            "these away."
        )


def _swap(new: Path, target: Path) -> None:
    """Put a folder in the place of another, which goes only when that has succeeded."""
    old = new.with_name(new.name.removesuffix(PART) + ".old" + PART)
    if not target.exists():
        os.replace(new, target)
        return
    os.replace(target, old)
    try:
        os.replace(new, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)

"""Paths of this machine and of stores: `gs://bucket/folder`, `s3://bucket/folder`.

A path of this machine stays a `pathlib.Path`. One of a store is a `UPath`, which has the same
methods over fsspec. A store has no rename, no append and no locks, so here

    a file      is put as one object, which a store replaces whole or not at all;
    a folder    is made on this machine and put file by file. Its list of files (MANIFEST) goes
                first and comes last, so that a folder with a list is whole (staged.py);
    libraries   that read folders are given copies of the few files that they need (`local_copies`).

Credentials and endpoints are those of the stores' own libraries (gcsfs, s3fs).
"""

import atexit
import contextlib
import fnmatch
import functools
import hashlib
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from manu_jax.types import ManuError

MANIFEST = ".manu_jax.json"  # in every folder that `new_folder` made: its files and their hashes
UNFINISHED = ".manu_jax.part"  # in a folder of a store that is being written
# What reads each scheme. memory: fsspec's own, of one process, for tests.
LIBRARIES = {"gs": "gcsfs", "s3": "s3fs", "memory": "fsspec"}
CREDENTIALS = {
    "gs": "Call `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS.",
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
    "memory": "",
}
# What names the content of an object, as the stores call it; `created` is memory's.
IDENTITIES = ("md5Hash", "ETag", "etag", "generation", "created")
APPENDED_LINES = 32  # between two writings of a file that grows

# {a folder of copies: {file: what it is a copy of}}
_stamps: dict[str, dict[str, str]] = {}


def is_store(path: Any) -> bool:
    """Whether a path, or its text, names a place in a store."""
    return "://" in str(path)


def lies_in(place: Any, other: Any) -> bool:
    """Whether a file or folder is another one, or lies below it; links here are followed."""
    if not (is_store(place) or is_store(other)):
        place, other = (Path(os.path.realpath(one)) for one in (place, other))
    return place == other or other in place.parents


def open_store(path: Any) -> Any:
    """Return the path of a store; its bucket is looked at once in a process.

    Raises ManuError for a scheme that is not known, a library that is not there, and a bucket that
    is not there or may not be listed.
    """
    if not isinstance(path, str):
        return path
    scheme, _, rest = path.partition("://")
    if scheme not in LIBRARIES or not rest.strip("/"):
        known = ", ".join(f"{name}://bucket/folder" for name in LIBRARIES if name != "memory")
        raise ManuError(f"{path}: no known place. Give a folder of this machine, or {known}.")
    try:
        from upath import UPath

        importlib.import_module(LIBRARIES[scheme])
    except ImportError as error:
        raise ManuError(
            f"{path}: {scheme}:// needs the package {error.name}. Call "
            "`pip install 'manu_jax[cloud]'`."
        ) from None
    # Another process may have written since: nothing that was listed is kept.
    options: dict[str, Any] = {} if scheme == "memory" else {"use_listings_cache": False}
    found = UPath(path.rstrip("/"), **options)
    if scheme != "memory":
        _look_at_bucket(scheme, rest.split("/")[0], found.fs)
    return found


@contextlib.contextmanager
def told(path: Any, *, but_files: bool = False) -> Iterator[None]:
    """Turn what a store's library raises into one ManuError that says what can be done.

    but_files: leave errors alone that a disk has too (OSError).
    """
    if not is_store(path):
        yield
        return
    scheme = str(path).partition("://")[0]
    try:
        yield
    except _errors(scheme) as error:
        if but_files and isinstance(error, OSError):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        named = f"{type(error).__name__} {reason}"
        if isinstance(error, FileNotFoundError):
            text = f"there is no such file or bucket ({reason})."
        elif isinstance(error, PermissionError) or "403" in named or "Forbidden" in named:
            text = (
                f"the store forbids it ({reason}). Ask for the permission to list, read and "
                f"write. {CREDENTIALS[scheme]}"
            )
        elif "redentials" in named or "401" in named:
            text = f"no credentials ({reason}). {CREDENTIALS[scheme]}"
        else:
            text = (
                f"the store does not answer ({reason}). Look at the network, and give the same "
                "command again: what is finished is kept."
            )
        raise ManuError(f"{path}: {text}") from error


def write(path: Any, data: bytes) -> None:
    """Put a file of a store: one object, whole or not at all."""
    with told(path):
        path.write_bytes(data)


def read_range(path: Any, start: int, stop: int) -> bytes:
    """Return bytes of a file of a store."""
    with told(path):
        return path.fs.cat_file(path.path, start=start, end=stop)


def stands(path: Any) -> bool:
    """Whether a file is there, or a whole folder: in a store one that has its list of files."""
    if not is_store(path):
        return path.exists()
    with told(path):
        return path.is_file() or (path / MANIFEST).is_file()


def is_unfinished(path: Any) -> bool:
    """Whether a folder of a store was begun and has not its list of files yet."""
    with told(path):
        return (path / UNFINISHED).is_file() and not (path / MANIFEST).is_file()


def remove_folder(path: Any) -> None:
    """Remove a folder with all that is in it, if it is there."""
    if not is_store(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    with told(path):
        remove_files(path, names_in(path))


def fetch_folder(path: Any, folder: Path) -> None:
    """Copy all files below a folder of a store to a new one of this machine."""
    with told(path):
        names = names_in(path)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        path.fs.get([(path / name).path for name in names], [str(folder / name) for name in names])


def move(path: Any, target: Any) -> None:
    """Move a file or a folder; in a store it is copied, its list of files last, then removed."""
    if not is_store(path):
        os.replace(path, target)
        return
    with told(path):
        if path.is_file():
            path.fs.copy(path.path, target.path)
            path.unlink()
            return
        names = names_in(path)
        for name in sorted(names, key=lambda name: name == MANIFEST):
            path.fs.copy((path / name).path, (target / name).path)
        remove_files(path, names)


def names_in(folder: Any) -> list[str]:
    """Return the names of all files below a folder of a store, in order."""
    return [name for name, _ in _found(folder)]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file's name in a folder is not hidden and fits one of the patterns (`fnmatch`)."""
    return not _is_hidden(name) and any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def identity(path: Any) -> str:
    """Return what tells the files of a store below `path` from others; "absent" for none.

    That is each file's name, size and the checksum that the store keeps; nothing is read.
    """
    with told(path):
        pairs = [(name, _stamp(info)) for name, info in _found(path) if not _is_hidden(name)]
        if not pairs and path.is_file():
            pairs = [("", _stamp(path.fs.info(path.path)))]
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16] if pairs else "absent"


def local_copies(folder: Any, patterns: Sequence[str] = ("*",)) -> Path:
    """Return a folder of this machine with the files of a folder that match: itself, or copies.

    patterns: as `fnmatch` reads them. The copies live as long as this process; a file that has
    changed in the store is fetched again, and one that is gone there goes here. What is hidden is
    left out.
    """
    if not is_store(folder):
        return folder
    number = hashlib.sha256(str(folder).encode()).hexdigest()[:8]  # so that none is in another
    place = _copies() / number / str(folder).replace("://", "/")
    with told(folder):
        wanted = {name: _stamp(info) for name, info in _found(folder) if matches(name, patterns)}
        known = _stamps.setdefault(str(place), {})
        gone = [name for name in known if name not in wanted and matches(name, patterns)]
        for name in gone:
            (place / name).unlink(missing_ok=True)
            del known[name]
        news = [name for name in wanted if known.get(name) != wanted[name]]
        for name in news:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
        if news:
            remote = [(folder / name).path for name in news]
            folder.fs.get(remote, [str(place / name) for name in news])
        known |= {name: wanted[name] for name in news}
    return place


@contextlib.contextmanager
def local_file(path: Any) -> Iterator[Path]:
    """Give a file as one of this machine: itself, or a copy while the block runs."""
    if not is_store(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="manu_jax-") as folder:
        copy = Path(folder) / path.name
        with told(path):
            path.fs.get_file(path.path, str(copy))
        yield copy


@contextlib.contextmanager
def appended(path: Any) -> Iterator[Any]:
    """Give what writes lines to the end of a text file: its method is `line`.

    In a store the file is put anew after every APPENDED_LINES lines and at the end.
    """
    if not is_store(path):
        with open(path, "a", encoding="utf-8") as file:
            yield _Lines(file)
        return
    growing = _GrowingObject(path)
    try:
        yield growing
    finally:
        growing.put()


class _Lines:
    """Lines at the end of a file of this machine."""

    def __init__(self, file: Any):
        self.file = file

    def line(self, text: str) -> None:
        self.file.write(text + "\n")
        self.file.flush()


class _GrowingObject:
    """Lines at the end of an object, which is put anew from time to time."""

    def __init__(self, path: Any):
        self.path = path
        with told(path):
            self.text = path.read_text(encoding="utf-8") if path.is_file() else ""
        self.num_new = 0

    def line(self, text: str) -> None:
        self.text += text + "\n"
        self.num_new += 1
        if self.num_new >= APPENDED_LINES:
            self.put()

    def put(self) -> None:
        if self.num_new:
            write(self.path, self.text.encode())
            self.num_new = 0


@functools.cache
def _look_at_bucket(scheme: str, bucket: str, system: Any) -> None:
    """Raise ManuError where a bucket can't be listed; looks for a name that nothing has."""
    place = f"{scheme}://{bucket}"
    with told(place):
        try:
            system.find(f"{bucket}/.manu_jax-is-it-there")
        except FileNotFoundError:
            raise ManuError(
                f"{place}: there is no such bucket, or you may not see it. Make it first, or mend "
                f"the name. {CREDENTIALS[scheme]}"
            ) from None


def _errors(scheme: str) -> tuple[type[BaseException], ...]:
    """Return what the library of a scheme raises beside OSError."""
    if scheme == "s3":
        from botocore.exceptions import BotoCoreError, ClientError  # pyright: ignore[reportMissingImports]

        return OSError, BotoCoreError, ClientError
    if scheme == "gs":
        from aiohttp import ClientError  # pyright: ignore[reportMissingImports]
        from gcsfs.retry import HttpError  # pyright: ignore[reportMissingImports]
        from google.auth.exceptions import GoogleAuthError  # pyright: ignore[reportMissingImports]

        return OSError, ClientError, HttpError, GoogleAuthError
    return (OSError,)


def _found(folder: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, what the store tells) of all files below a folder, in order."""
    start = folder.path.strip("/") + "/"
    infos = folder.fs.find(folder.path, detail=True)
    inside = {name.strip("/"): info for name, info in infos.items()}
    return sorted((n.removeprefix(start), i) for n, i in inside.items() if n.startswith(start))


def remove_files(folder: Any, names: Sequence[str]) -> None:
    """Remove files of a folder, its list first: what is left is not whole."""
    if MANIFEST in names:
        (folder / MANIFEST).unlink()
    others = [(folder / name).path for name in names if name != MANIFEST]
    if others:
        folder.fs.rm(others)


def _stamp(info: dict[str, Any]) -> str:
    found = next((str(info[name]) for name in IDENTITIES if info.get(name)), "")
    return f"{info.get('size')} {found}"


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


@functools.cache
def _copies() -> Path:
    """Return this process's folder of copies, which goes when it ends."""
    folder = tempfile.mkdtemp(prefix="manu_jax-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)

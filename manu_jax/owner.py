"""A folder belongs to one process at a time: locks, and notes where there are none."""

import contextlib
import fcntl
import logging
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from manu_jax import stores
from manu_jax.folder import CHECKPOINT_PART, PART, expand_path
from manu_jax.types import ManuError

logger = logging.getLogger("manu_jax")


@contextlib.contextmanager
def owned_folder(
    path: str | os.PathLike,
    wait: Callable[[], object] | None = None,
    *,
    remedy: str = "give another folder with --output",
) -> Iterator[Path]:
    """Open a run's folder, or another, for this process alone; ManuError where another has it.

    What a killed owner left half-written is removed. wait: called in place of the error, before
    each further try. remedy: of the error. In a store there are no locks: an owner that did not end
    is told of, and taken for killed.
    """
    path = expand_path(path)
    if stores.is_store(path):
        with _noted_owner(path):
            yield path
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / ".lock", "a+")
    except OSError as error:
        raise ManuError(
            f"folder {path}: {error.strerror}. {remedy[0].upper()}{remedy[1:]}."
        ) from error
    with lock:
        is_told = False
        while (owner := _other_owner(lock)) is not None:
            if wait is None:
                raise ManuError(
                    f"folder {path} is in use by process {owner}. Wait for it to end, or {remedy}."
                )
            if not is_told:
                logger.info("%s: waiting for process %s, which is at work there", path, owner)
            is_told = True
            wait()
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {platform.node()}")
        lock.flush()
        _remove_parts(path)
        yield path


def _other_owner(lock: IO[str]) -> str | None:
    """Take the lock of a folder; return who has it, or None where it was free."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        return lock.read().strip() or "unknown"
    return None


@contextlib.contextmanager
def _noted_owner(path: Any) -> Iterator[None]:
    """Say in a run's folder of a store who writes there, as long as it does."""
    note = path / ".owner"
    with stores.told(path):
        if note.is_file():
            logger.warning(
                "%s: process %s did not end there. Where it still runs, stop one of the two: a "
                "store has no locks.",
                path,
                note.read_text(encoding="utf-8"),
            )
    stores.write(note, f"{os.getpid()} on {platform.node()}".encode())
    try:
        yield
    finally:
        with stores.told(path):
            note.unlink(missing_ok=True)


def _remove_parts(path: Path) -> None:
    for part in [*path.rglob(f".*{PART}"), *path.rglob(f"*{CHECKPOINT_PART}*")]:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)

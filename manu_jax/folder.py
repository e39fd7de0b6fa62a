"""The run's folder: one owner at a time, one config for its life, no file that stands half-written.

A file is written under a temporary name beside its own and renamed, so a file that stands is whole.
A process that is killed leaves at most temporary files (`.part`), which the next one removes.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from manu_jax.types import ManuError
from manu_jax.yaml12 import read_yaml_text, yaml_text

PART = ".part"
CHECKPOINT_PART = ".orbax-checkpoint-tmp"  # Orbax's own, and how it may go on
# How Rust, TensorStore and shutil tell of an error of the operating system.
OS_ERROR = re.compile(r"(?:\(os error |os_error_code='|\[Errno )(\d+)")
# What may differ between two calls on one folder: it changes no number of the results.
FREE_KEYS = ("output", "cache", "mesh", "score_batch", "evaluate.batch_size")
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


def expand_path(path: str | os.PathLike) -> Path:
    """Return a path that the user gave, with `~` and `~user` as home folders.

    Every path of a config, a command line or a call goes through here, once, where it is used.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ManuError(f"path {path}: {error} Give the whole path.") from error


def write_atomic(path: str | os.PathLike, content: bytes | str) -> None:
    """Write a whole file or none: to a temporary name beside it, flushed to disk, then renamed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    data = content.encode() if isinstance(content, str) else content
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
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block ends well, and else vanishes."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def file_hash(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
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


@contextlib.contextmanager
def owned_folder(
    path: str | os.PathLike,
    config: dict[str, Any],
    resolved: Callable[[dict[str, Any], str], dict[str, Any]] = lambda config, _: config,
) -> Iterator[Path]:
    """Open a run's folder for this process alone, and write or compare its config.

    resolved: gives the folder's own config, from the place that it is named by, the defaults of
    keys that came after it. Raises ManuError where another process has it, or where it was made by
    a config that differs in a key that changes results.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / ".lock", "a+")
    except OSError as error:
        raise ManuError(
            f"run folder {path}: {error.strerror}. Give another folder with --output."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise ManuError(
                f"run folder {path} is in use by process {owner}. Wait for it to end, or give "
                "another folder with --output."
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {platform.node()}")
        lock.flush()
        _remove_parts(path)
        _settle_config(path, config, resolved)
        yield path


def _settle_config(
    path: Path,
    config: dict[str, Any],
    resolved: Callable[[dict[str, Any], str], dict[str, Any]],
) -> None:
    file = path / "config.yaml"
    if file.exists():
        try:
            before = resolved(_read_config(file), str(file))
        except ManuError as error:
            raise ManuError(
                f"{error}\nThe run's folder is of another version, or its config was changed. "
                "Delete it, or give another with --output."
            ) from None
        now = json.loads(json.dumps(config))
        differing = [
            f"{key}: {old!r} there, {new!r} now"
            for key, old, new in _differences(before, now)
            if not any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)
        ]
        if differing:
            raise ManuError(
                f"run folder {path} was made by another config:\n  "
                + "\n  ".join(differing)
                + "\nGive another folder with --output, or delete this one."
            )
    else:
        write_atomic(file, yaml_text(config))
    if not (path / "versions.json").exists():
        write_atomic(path / "versions.json", json.dumps(versions(), indent=1) + "\n")


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = read_yaml_text(file.read_text(encoding="utf-8"))
        if isinstance(config, dict):
            return config
        fault = f"it holds {config!r:.60}"
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        fault = " ".join(str(error).split())
    raise ManuError(f"{file}: damaged ({fault}).")


def _differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted({*before, *now}):
            inner = f"{key}.{name}" if key else str(name)
            yield from _differences(before.get(name), now.get(name), inner)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differences(old, new, f"{key}.{number}")
    elif before != now:
        yield key, before, now


def _remove_parts(path: Path) -> None:
    for part in [*path.rglob(f".*{PART}"), *path.rglob(f"*{CHECKPOINT_PART}*")]:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)

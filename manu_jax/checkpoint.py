"""Pytrees on disk, by Orbax: each process writes its own part; a folder stands whole or not at all.

Orbax finds no damage in the numbers, so a folder holds the SHA-256 of each of its files in
`checksums.json`, which is written last and checked on loading. The only file that imports orbax.
A long loop saves steps, and a process that was killed goes on from the newest.

Orbax writes to `gs://` itself. Of another store it knows nothing; there a checkpoint has the form
of `pieces.py`.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from manu_jax import parallel, pieces, stores
from manu_jax.folder import ForeignErrors, expand_path, explained, write_atomic
from manu_jax.leaves import first_name, leaves, path_name
from manu_jax.types import ManuError

logger = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"  # {name of a file: [bytes, SHA-256]}
HASHED_BYTES = 2**24  # read at a time
REMEDY = "Remove it and start anew."
METADATA = "_CHECKPOINT_METADATA"  # the file that Orbax puts into every checkpoint
METADATA_BYTES = 2**20  # room that is asked for beside the arrays
SHOWN = 5  # names in an error
KEPT_CHECKPOINTS = 2  # of a long loop
CHECKPOINT_NAME = "step-{:08d}"


def save(path: str | os.PathLike, tree: Any) -> None:
    """Write a pytree of arrays and numbers, in a temporary folder that is renamed when it is whole.

    A chunk is what one device holds of an array; of stacked layers, one layer of that.
    What stood under `path` is removed first: who needs it until then gives each save its own name.
    Raises ManuError where it can't be written; where there is no room, before a byte is.
    """
    if _is_in_pieces(path):
        pieces.write(expand_path(path), _named(tree), last=CHECKSUMS)
        return
    from orbax.checkpoint import v1 as ocp

    try:
        _check_room(path, tree)
    except OSError as error:
        raise explained(error, path) from error
    with ForeignErrors(f"checkpoint {path}", "it can't be written", "Give another folder."):
        options: Any = ocp.Context()
        options.array.saving.scoped_storage_options_creator = _storage
        with options:
            ocp.save(_location(path), tree, overwrite=True)
    parallel.on_first_process(lambda: _write_checksums(path))


def load(path: str | os.PathLike, target: Any) -> Any:
    """Return the pytree of a checkpoint in the form of `target`.

    target: arrays or ShapeDtypeStructs; their shapes, dtypes and shardings are those of the result.
    Raises ManuError where the folder is missing, damaged, or holds another tree. One that was
    written before there were checksums is loaded without that check, which is logged. Leaves may
    have the names that they had first.
    """
    if not exists(path):
        raise ManuError(f"checkpoint {path}: not there, or not whole. {REMEDY}")
    if not _is_in_pieces(path):
        held, read = _of_orbax(path)
    elif METADATA not in (sums := _sums(path)):
        held, read = _of_pieces(path, sums)
    else:  # Orbax's, which earlier releases put there
        with tempfile.TemporaryDirectory(prefix="manu_jax-") as place:
            local = Path(place) / "checkpoint"
            stores.fetch_folder(expand_path(path), local)
            return load(local, target)
    with ForeignErrors(f"checkpoint {path}", "damaged", REMEDY):
        wanted = _shapes(target)
        if held == wanted:
            return read(target)
        if held == {first_name(name): shape for name, shape in wanted.items()}:
            found = read({first_name(name): leaf for name, leaf in target.items()})
            return {name: found[first_name(name)] for name in target}
    differing = sorted(name for name in held.keys() | wanted if held.get(name) != wanted.get(name))
    raise ManuError(
        f"checkpoint {path}: of another model: {', '.join(differing[:SHOWN])} differ. {REMEDY}"
    )


def exists(path: str | os.PathLike) -> bool:
    """Whether a whole checkpoint stands under `path`."""
    return bool(mark(path).is_file())


def mark(path: str | os.PathLike) -> Any:
    """Return the path of the file with which a whole checkpoint stands."""
    if stores.is_store(path):
        return expand_path(path) / CHECKSUMS
    return Path(path).absolute() / METADATA


def resume(directory: Path, state: Any) -> tuple[Any, int]:
    """Return the state of the newest checkpoint and its step; (`state`, 0) where there is none.

    state: a pytree of the shapes, dtypes and shardings that are expected.
    """
    step = parallel.broadcast(max(_steps(directory), default=0))
    path = directory / CHECKPOINT_NAME.format(step)
    if not step or not parallel.exists(mark(path)):
        return state, 0
    target = leaves(state)
    found = load(path, target)
    logger.info("%s: going on after step %d", directory, step)
    return jax.tree.unflatten(jax.tree.structure(state), [found[name] for name in target]), step


def save_step(directory: Path, step: int, state: Any) -> None:
    """Write the state after `step` steps, and remove all but the two newest."""
    save(directory / CHECKPOINT_NAME.format(step), leaves(state))

    def remove_old() -> None:
        for old in _steps(directory)[:-KEPT_CHECKPOINTS]:
            stores.remove_folder(directory / CHECKPOINT_NAME.format(old))

    parallel.on_first_process(remove_old)


def _is_in_pieces(path: Any) -> bool:
    """Whether a checkpoint is in a store that Orbax knows nothing of."""
    return stores.is_store(path) and not str(path).startswith("gs://")


def _of_orbax(path: Any) -> tuple[dict[str, tuple[int, ...]], Callable[[Any], Any]]:
    """Return the shapes that a checkpoint holds, and what reads them in the form of a target."""
    from orbax.checkpoint import v1 as ocp

    _verify(path)
    with ForeignErrors(f"checkpoint {path}", "damaged", REMEDY):
        held = _shapes(ocp.metadata(_location(path)).metadata)
    return held, lambda target: ocp.load(_location(path), _abstract(target))


def _of_pieces(
    path: Any, sums: dict[str, tuple[int, str]]
) -> tuple[dict[str, tuple[int, ...]], Callable[[Any], Any]]:
    """Return the same of a checkpoint in pieces, whose lists have these sums."""
    folder = expand_path(path)
    held = pieces.read_lists(folder, sums)

    def read(target: Any) -> Any:
        found = pieces.read(folder, held, _named(target))
        return jax.tree.unflatten(jax.tree.structure(target), list(found.values()))

    return {name: leaf.shape for name, leaf in held.items()}, read


def _storage(path: Any, leaf: Any) -> Any:
    """Return how an array is to be stored: layers apart."""
    from orbax.checkpoint import v1 as ocp

    options = ocp.options.ArrayOptions.Saving.StorageOptions
    letters = path_name(path).rpartition("_")[2]
    is_stacked = letters.startswith("L") and letters.isupper() and len(letters) == np.ndim(leaf)
    return options(shard_axes=(0,)) if is_stacked and len(letters) > 2 else None


def _write_checksums(path: str | os.PathLike) -> None:
    folder = _folder(path)
    names = sorted(name for name in _files(folder) if name != CHECKSUMS)
    with ThreadPoolExecutor() as threads:
        sums = list(threads.map(lambda name: _checksum(folder / name), names))
    content = json.dumps(dict(zip(names, sums, strict=True)), indent=1) + "\n"
    write_atomic(expand_path(path) / CHECKSUMS, content)


def _verify(path: str | os.PathLike) -> None:
    """Raise ManuError on all processes where a file is not as it was written.

    Each process reads its share of the files.
    """
    folder = _folder(path)
    if not parallel.broadcast((folder / CHECKSUMS).exists()):
        logger.info("checkpoint %s: it has no checksums, so it is loaded without checking", path)
        return
    written = _sums(path)
    names = sorted(written)
    own = range(jax.process_index(), len(names), jax.process_count())
    with ThreadPoolExecutor() as threads:
        is_whole = threads.map(lambda i: _is_whole(folder / names[i], written[names[i]]), own)
        bad = [i for i, whole in zip(own, is_whole, strict=True) if not whole]
    first = np.int32(bad[0] if bad else -1)
    if jax.process_count() > 1:
        first = multihost_utils.process_allgather(first).max()
    if first >= 0:
        name = names[first]
        fault = "is not as it was written" if (folder / name).exists() else "is missing"
        raise ManuError(f"checkpoint {path}: damaged: its file {name} {fault}. {REMEDY}")


def _sums(path: str | os.PathLike) -> dict[str, tuple[int, str]]:
    """Return {name of a file: (bytes, SHA-256)} as they were written."""
    place = expand_path(path) if stores.is_store(path) else _folder(path)
    with ForeignErrors(f"checkpoint {path}", f"{CHECKSUMS} is damaged", REMEDY), stores.told(path):
        return {
            name: (int(size), str(digest))
            for name, (size, digest) in json.loads((place / CHECKSUMS).read_text()).items()
        }


def _is_whole(file: Any, written: tuple[int, str]) -> bool:
    try:
        return file.stat().length == written[0] and tuple(_checksum(file)) == written
    except OSError:
        return False


def _checksum(file: Any) -> tuple[int, str]:
    """Return the bytes of a file and their SHA-256."""
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as opened:
        while piece := opened.read(HASHED_BYTES):
            digest.update(piece)
            size += len(piece)
    return size, digest.hexdigest()


def _files(folder: Any, start: str = "") -> Iterator[str]:
    """Yield the names of all files below a folder, local or remote."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry, f"{start}{entry.name}/")
        else:
            yield start + entry.name


def _folder(path: str | os.PathLike) -> Any:
    from etils import epath

    return epath.Path(_location(path))


def _check_room(path: str | os.PathLike, tree: Any) -> None:
    """Raise OSError where the disk has no room for this process's part of `tree`."""
    if stores.is_store(path):
        return
    folder = Path(path).absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, jax.Array)
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
    )
    if shutil.disk_usage(folder).free < needed + METADATA_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _location(path: str | os.PathLike) -> str:
    return str(path) if stores.is_store(path) else str(Path(path).absolute())


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(getattr(leaf, "shape", ())) for name, leaf in _named(tree).items()}


def _named(tree: Any) -> dict[str, Any]:
    """Return {path: leaf} of a tree."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def _abstract(target: Any) -> Any:
    def shape(leaf):
        if isinstance(leaf, jax.Array):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        return leaf

    return jax.tree.map(shape, target)


def _steps(directory: Path) -> list[int]:
    """Return the steps of the whole checkpoints in a folder, in order."""
    if not directory.is_dir():
        return []
    prefix = CHECKPOINT_NAME.split("{")[0]
    found = [
        path
        for path in directory.iterdir()
        if path.name.startswith(prefix) and path.name[len(prefix) :].isdigit()
    ]
    return sorted(int(path.name[len(prefix) :]) for path in found if exists(path))

"""Pytrees on disk, by Orbax: each process writes its own part; a folder stands whole or not at all.

The only file that imports orbax.
"""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import jax

from manu_jax.folder import explained, os_error
from manu_jax.types import ManuError

METADATA = "_CHECKPOINT_METADATA"  # the file that Orbax puts into every checkpoint
METADATA_BYTES = 2**20  # room that is asked for beside the arrays
SHOWN = 5  # names in an error


def save(path: str | os.PathLike, tree: Any) -> None:
    """Write a pytree of arrays and numbers, in a temporary folder that is renamed when it is whole.

    What stood under `path` is removed first: who needs it until then gives each save its own name.
    Raises ManuError where it can't be written; where there is no room, before a byte is.
    """
    from orbax.checkpoint import v1 as ocp

    try:
        _check_room(path, tree)
        ocp.save(_location(path), tree, overwrite=True)
    except (OSError, ValueError) as error:
        found = os_error(error)
        if found is None:
            raise
        raise explained(found, path) from error


def load(path: str | os.PathLike, target: Any) -> Any:
    """Return the pytree of a checkpoint in the form of `target`.

    target: arrays or ShapeDtypeStructs; their shapes, dtypes and shardings are those of the result.
    Raises ManuError where the folder is missing, damaged, or holds another tree.
    """
    from orbax.checkpoint import v1 as ocp

    if not exists(path):
        raise ManuError(f"checkpoint {path}: not there, or not whole. Remove it and start anew.")
    try:
        held = _shapes(ocp.metadata(_location(path)).metadata)
        wanted = _shapes(target)
        if held == wanted:
            return ocp.load(_location(path), _abstract(target))
        differing = sorted(
            name for name in held.keys() | wanted if held.get(name) != wanted.get(name)
        )
        fault = f"of another model: {', '.join(differing[:SHOWN])} differ"
    except (ValueError, KeyError, TypeError, OSError) as error:
        fault = f"damaged ({str(error).strip().splitlines()[0]})"
    raise ManuError(f"checkpoint {path}: {fault}. Remove it and start anew.")


def exists(path: str | os.PathLike) -> bool:
    """Whether a whole checkpoint stands under `path`."""
    from etils import epath

    return (epath.Path(_location(path)) / METADATA).exists()


def _check_room(path: str | os.PathLike, tree: Any) -> None:
    """Raise OSError where the disk has no room for this process's part of `tree`."""
    if "://" in os.fspath(path):
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
    text = os.fspath(path)
    return text if "://" in text else str(Path(text).absolute())


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): tuple(getattr(leaf, "shape", ()))
        for path, leaf in flat
    }


def _abstract(target: Any) -> Any:
    def shape(leaf):
        if isinstance(leaf, jax.Array):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        return leaf

    return jax.tree.map(shape, target)

"""Pytrees on disk, by Orbax: every process writes its own part, and a folder stands whole or not at
all.

The only file that imports orbax.
"""

import os
from pathlib import Path
from typing import Any

import jax

from manu_jax.types import ManuError


def save(path: str | os.PathLike, tree: Any) -> None:
    """Write a pytree of arrays and numbers; what stood under `path` is replaced.

    Orbax writes to a temporary folder and renames it, so that a kill leaves the old one or the new.
    """
    from orbax.checkpoint import v1 as ocp

    try:
        ocp.save(_location(path), tree, overwrite=True)
    except OSError as error:
        raise ManuError(
            f"checkpoint {path}: {error.strerror or error}. Is the disk full?"
        ) from error


def load(path: str | os.PathLike, target: Any) -> Any:
    """Return the pytree of a checkpoint in the form of `target`.

    target: arrays or ShapeDtypeStructs; their shapes, dtypes and shardings are those of the result.
    Raises ManuError where the folder is missing, damaged, or holds another tree.
    """
    from orbax.checkpoint import v1 as ocp

    if not exists(path):
        raise ManuError(f"checkpoint {path}: not there, or not whole. Remove it and start anew.")
    try:
        return ocp.load(_location(path), _abstract(target))
    except (ValueError, KeyError, TypeError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise ManuError(
            f"checkpoint {path}: damaged, or of another model ({first}). Remove it and start anew."
        ) from error


def exists(path: str | os.PathLike) -> bool:
    """Whether a whole checkpoint stands under `path`."""
    from orbax.checkpoint import v1 as ocp

    return ocp.is_orbax_checkpoint(_location(path))


def _location(path: str | os.PathLike) -> str:
    text = os.fspath(path)
    return text if "://" in text else str(Path(text).absolute())


def _abstract(target: Any) -> Any:
    def shape(leaf):
        if isinstance(leaf, jax.Array):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        return leaf

    return jax.tree.map(shape, target)

"""Pytrees on disk, by Orbax: each process writes its own part; a folder stands whole or not at all.

The only file that imports orbax.
"""

import os
from pathlib import Path
from typing import Any

import jax

from manu_jax.types import ManuError

METADATA = "_CHECKPOINT_METADATA"  # the file that Orbax puts into every checkpoint
SHOWN = 5  # names in an error


def save(path: str | os.PathLike, tree: Any) -> None:
    """Write a pytree of arrays and numbers, in a temporary folder that is renamed when it is whole.

    What stood under `path` is removed first: who needs it until then gives each save its own name.
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

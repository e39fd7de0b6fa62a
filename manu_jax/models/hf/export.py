"""A model's leaves as the tensors of a Hugging Face folder."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from manu_jax import parallel
from manu_jax.folder import os_error, write_atomic
from manu_jax.leaves import path_name
from manu_jax.models.hf.files import INDEX, WEIGHTS
from manu_jax.models.hf.tables import Entry

SHARD_BYTES = 5 * 10**9


def export_tensors(model: Any, table: Sequence[Entry]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, array) of every tensor as it is on disk, one leaf after the other."""
    leaves = {
        path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]
    }
    for entry in table:
        leaf = parallel.gather(leaves[entry.path])
        for index, name in enumerate(entry.names(leaf.shape)):
            yield name, _to_stored(leaf[index] if entry.is_stacked else leaf, entry)


def write_tensors(
    tensors: Iterator[tuple[str, np.ndarray]], folder: Path, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write safetensors files of at most `shard_bytes`, with an index where they are several.

    Every process goes through the tensors; the first one writes.
    """
    shards: list[list[str]] = []
    waiting: dict[str, np.ndarray] = {}
    size = total = 0
    for name, array in tensors:
        if waiting and size + array.nbytes > shard_bytes:
            _write_shard(waiting, folder, len(shards) + 1)
            shards.append(list(waiting))
            waiting, size = {}, 0
        waiting[name] = array
        size, total = size + array.nbytes, total + array.nbytes
    _write_shard(waiting, folder, len(shards) + 1)
    shards.append(list(waiting))
    if not parallel.is_first_process():
        return
    files = [
        WEIGHTS if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        for i in range(len(shards))
    ]
    for number, file in enumerate(files, 1):
        (folder / _part(number)).rename(folder / file)
    if len(shards) > 1:
        where = {name: file for names, file in zip(shards, files, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_atomic(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")


def _to_stored(leaf: np.ndarray, entry: Entry) -> np.ndarray:
    """Return a leaf, or one layer of it, as the file has it."""
    groups = entry.groups
    order = "".join(groups)
    sizes = dict(zip(entry.letters, leaf.shape, strict=True))
    moved = leaf.transpose([entry.letters.index(letter) for letter in order])
    shape = [math.prod(sizes[letter] for letter in group) for group in groups]
    return np.ascontiguousarray(moved.reshape(shape))


def _part(number: int) -> str:
    return f"part-{number:05}.safetensors"


def _write_shard(tensors: dict[str, np.ndarray], folder: Path, number: int) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    if parallel.is_first_process():
        try:
            save_file(tensors, folder / _part(number), metadata={"format": "pt"})
        except SafetensorError as error:
            raise os_error(error) or error from error

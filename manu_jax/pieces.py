"""Checkpoints in a store that Orbax knows nothing of, such as `s3://`: each process puts its own.

    leaf-NUMBER.PROCESS       the pieces of a leaf that the devices of a process hold, one after
                              the other
    pieces-PROCESS.json       {leaf: {shape, dtype, pieces: [{starts, stops, file, begin, bytes,
                              sha256}]}} of what this process put
    checksums.json            {name of such a list: [bytes, SHA-256]}; written last

A piece is read whole, by a process that needs a part of it, and checked. So a checkpoint goes to
any mesh and any number of processes; no file is fetched whole, and none is made on a disk.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import ml_dtypes  # noqa: F401  # which makes the name bfloat16 known to NumPy
import numpy as np

from manu_jax import parallel, stores
from manu_jax.parallel import Bounds
from manu_jax.types import ManuError

THREADS = 4  # leaves that are put at a time, and pieces that are fetched


@dataclasses.dataclass(frozen=True)
class Piece:
    """Where a part of a leaf is. bounds: its place in the leaf; begin, size: bytes of the file."""

    bounds: Bounds
    file: str
    begin: int
    size: int
    sha256: str

    def overlaps(self, bounds: Bounds) -> bool:
        pairs = zip(self.bounds, bounds, strict=True)
        return all(max(a, c) < min(b, d) for (a, b), (c, d) in pairs)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf of a checkpoint, with the pieces of all processes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[Piece, ...]


def write(folder: Any, leaves: Mapping[str, Any], *, last: str) -> None:
    """Put leaves {name: array or number} into a folder of a store, the file `last` at the end.

    All processes call this; each puts what its devices are the first to hold. What is no JAX array
    the first process puts. What stood there is removed first.
    """

    def remove() -> None:
        with stores.told(folder):
            (folder / last).unlink(missing_ok=True)
        stores.remove_folder(folder)

    parallel.on_first_process(remove)
    number = jax.process_index()

    def put(index: int, leaf: Any) -> dict[str, Any]:
        return _put(folder, f"leaf-{index:05}.{number:05}", leaf)

    with ThreadPoolExecutor(THREADS) as threads:
        found = list(threads.map(put, range(len(leaves)), leaves.values()))
    content = json.dumps(dict(zip(leaves, found, strict=True)), indent=1)
    stores.write(folder / _list_of(number), content.encode())
    parallel.wait_for_all(f"pieces of {folder}")
    parallel.on_first_process(lambda: _write_sums(folder, last))


def read_lists(folder: Any, sums: Mapping[str, tuple[int, str]]) -> dict[str, Leaf]:
    """Return the leaves that a folder holds; sums: what the file written last says.

    Raises ManuError where a list is not as it was written.
    """
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for name, expected in sums.items():
        content = _content(folder, name)
        if content is None or (len(content), _hash(content)) != expected:
            raise _damaged(folder, name, content)
        for leaf, entry in json.loads(content).items():
            parts.setdefault(leaf, []).append(entry)
    found = {}
    for leaf, entries in parts.items():
        pieces = tuple(_piece(one) for entry in entries for one in entry["pieces"])
        found[leaf] = Leaf(tuple(entries[0]["shape"]), np.dtype(entries[0]["dtype"]), pieces)
    return found


def read(folder: Any, held: Mapping[str, Leaf], target: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of a target, {name: array, ShapeDtypeStruct or number}, as they are there.

    held: of `read_lists`; it has the target's leaves in their shapes. Each process reads the pieces
    that its devices need. Raises ManuError where one is not as it was written.
    """
    with ThreadPoolExecutor(THREADS) as threads:
        return {name: _leaf(folder, held[name], like, threads) for name, like in target.items()}


def _put(folder: Any, file: str, leaf: Any) -> dict[str, Any]:
    """Put what this process has of a leaf into a file; return what the list says of it."""
    entries: list[dict[str, Any]] = []
    contents: list[bytes] = []
    begin = 0
    for bounds, array in _held(leaf):
        content = np.ascontiguousarray(array).tobytes()
        starts, stops = [start for start, _ in bounds], [stop for _, stop in bounds]
        where = {"starts": starts, "stops": stops, "file": file, "begin": begin}
        entries.append({**where, "bytes": len(content), "sha256": _hash(content)})
        contents.append(content)
        begin += len(content)
    if contents:
        stores.write(folder / file, b"".join(contents))
    dtype = np.asarray(leaf).dtype if not isinstance(leaf, jax.Array) else leaf.dtype
    return {"shape": list(np.shape(leaf)), "dtype": str(dtype), "pieces": entries}


def _held(leaf: Any) -> Iterator[tuple[Bounds, np.ndarray]]:
    """Yield what this process is to put of a leaf, with its place."""
    if isinstance(leaf, jax.Array):
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:
                yield parallel.bounds_of(shard.index, leaf.shape), np.asarray(shard.data)
    elif parallel.is_first_process():
        yield tuple((0, size) for size in np.shape(leaf)), np.asarray(leaf)


def _leaf(folder: Any, held: Leaf, like: Any, threads: ThreadPoolExecutor) -> Any:
    """Return a leaf in the form of another."""
    shape, sharding = held.shape, getattr(like, "sharding", None)
    whole = tuple((0, size) for size in shape)
    wanted = {whole}
    if sharding is not None:
        indices = sharding.addressable_devices_indices_map(shape).values()
        wanted = {parallel.bounds_of(index, shape) for index in indices if index is not None}
    needed = [one for one in held.pieces if any(one.overlaps(bounds) for bounds in wanted)]
    arrays = threads.map(lambda piece: _fetched(folder, held, piece), needed)
    fetched = list(zip(needed, arrays, strict=True))
    dtype = held.dtype if np.isscalar(like) else like.dtype
    made = {bounds: _put_together(fetched, bounds, dtype) for bounds in wanted}
    if sharding is None:
        return made[whole].item() if np.isscalar(like) else made[whole]
    return jax.make_array_from_callback(
        shape, sharding, lambda i: made[parallel.bounds_of(i, shape)]
    )


def _put_together(
    fetched: Iterable[tuple[Piece, np.ndarray]], bounds: Bounds, dtype: Any
) -> np.ndarray:
    """Return the part of a leaf within bounds, of the pieces that overlap it."""
    found = np.empty([stop - start for start, stop in bounds], dtype)
    for piece, array in fetched:
        if piece.overlaps(bounds):
            both = [
                (max(a, c), min(b, d)) for (a, b), (c, d) in zip(piece.bounds, bounds, strict=True)
            ]
            source = tuple(
                slice(a - start, b - start)
                for (a, b), (start, _) in zip(both, piece.bounds, strict=True)
            )
            place = tuple(
                slice(a - start, b - start) for (a, b), (start, _) in zip(both, bounds, strict=True)
            )
            found[place] = array[source]
    return found


def _fetched(folder: Any, held: Leaf, piece: Piece) -> np.ndarray:
    shape = [stop - start for start, stop in piece.bounds]
    content = _content(folder, piece.file, piece.begin, piece.begin + piece.size)
    size = math.prod(shape) * held.dtype.itemsize
    if content is None or len(content) != size or _hash(content) != piece.sha256:
        raise _damaged(folder, piece.file, content)
    return np.frombuffer(content, held.dtype).reshape(shape)


def _content(folder: Any, name: str, start: int = 0, stop: int | None = None) -> bytes | None:
    """Return bytes of a file; None where there is no such file."""
    with stores.told(folder):
        try:
            return folder.fs.cat_file((folder / name).path, start=start, end=stop)
        except FileNotFoundError:
            return None


def _damaged(folder: Any, name: str, content: bytes | None) -> ManuError:
    fault = "is missing" if content is None else "is not as it was written"
    return ManuError(
        f"checkpoint {folder}: damaged: its file {name} {fault}. Remove it and start anew."
    )


def _write_sums(folder: Any, last: str) -> None:
    """Write the list of the processes' lists, which is read in the store: all are there."""
    sums = {}
    for number in range(jax.process_count()):
        content = _content(folder, _list_of(number))
        if content is None:
            raise ManuError(f"checkpoint {folder}: {_list_of(number)} was put, and is not there.")
        sums[_list_of(number)] = len(content), _hash(content)
    stores.write(folder / last, (json.dumps(sums, indent=1) + "\n").encode())


def _list_of(number: int) -> str:
    return f"pieces-{number:05}.json"


def _piece(entry: Mapping[str, Any]) -> Piece:
    bounds = tuple(zip(entry["starts"], entry["stops"], strict=True))
    return Piece(bounds, entry["file"], entry["begin"], entry["bytes"], entry["sha256"])


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

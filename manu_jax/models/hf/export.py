"""A model's leaves as the tensors of a Hugging Face folder, written while they are gathered.

What a file holds follows from the shapes alone. So its header is written first, and then the
tensors, each in pieces of whole rows: a piece is gathered from the devices, put into the order of
the file there, and written at its place. No device and no host ever holds more than two pieces.
"""

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from manu_jax import parallel
from manu_jax.folder import write_atomic
from manu_jax.leaves import leaves
from manu_jax.models.hf.copying import copy_into
from manu_jax.models.hf.files import INDEX, WEIGHTS
from manu_jax.models.hf.tables import Entry
from manu_jax.staged import put_finished

SHARD_BYTES = 5 * 10**9
PIECE_BYTES = 2**27  # gathered at a time
# In the order in which safetensors puts them into a file.
DTYPES = {
    np.dtype("float32"): "F32",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype("float16"): "F16",
}


@dataclasses.dataclass(frozen=True, eq=False)
class ExportTensor:
    """A tensor of a file, still on the devices: one layer of a stacked leaf, or a whole one."""

    name: str
    entry: Entry
    leaf: Any
    layer: int

    @property
    def letters_and_sizes(self) -> dict[str, int]:
        own = self.leaf.shape[1:] if self.entry.is_stacked else self.leaf.shape
        return dict(zip(self.entry.letters, own, strict=True))

    @property
    def shape(self) -> list[int]:
        """The tensor's shape in the file."""
        sizes = self.letters_and_sizes
        return [math.prod(sizes[letter] for letter in group) for group in self.entry.groups]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.leaf.dtype)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def step_and_strips(self) -> tuple[int, int]:
        """Return how many rows of each strip make a piece, and how many strips there are."""
        order, place = "".join(self.entry.groups), self.leaf.sharding
        num_strips = 1
        if order and place.num_devices > 1:
            axis = self.entry.letters.index(order[0]) + self.entry.is_stacked
            num_strips = self._num_rows // place.shard_shape(self.leaf.shape)[axis]
        length, row_bytes = self._num_rows // num_strips, self.nbytes // self._num_rows
        return _rows_of_piece(length, row_bytes * num_strips), num_strips

    @property
    def _num_rows(self) -> int:
        """How many parts the first letter on disk makes of the tensor."""
        return self.letters_and_sizes[self.entry.groups[0][0]] if self.entry.groups else 1

    def pieces(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first byte in the tensor, values in the file's order, contiguous) of its pieces.

        Every process has to go through them; only the first gets any.
        """
        whole = _held(self.leaf)
        return self._gathered() if whole is None else self._copied(whole)

    def _copied(self, leaf: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the pieces of a leaf that lies whole in the host's memory."""
        if not parallel.is_first_process():
            return
        rows = _in_file_order(leaf[self.layer] if self.entry.is_stacked else leaf, self.entry)
        row_bytes = self.nbytes // len(rows)
        step = _rows_of_piece(len(rows), row_bytes)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            values = np.empty(part.shape, part.dtype)
            copy_into(values, part)
            yield start * row_bytes, values

    def _gathered(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the pieces of a leaf that is split over devices, or lies on an accelerator.

        The rows of a tensor lie in strips, one for each part of the leaf's split. A piece is as
        many rows of every strip, so that no device has to give more than it has to take. The next
        piece is gathered while one is written.
        """
        split = self.leaf.sharding if self.leaf.sharding.num_devices > 1 else None
        step, num_strips = self.step_and_strips()
        num_rows = self._num_rows
        row_bytes, length = self.nbytes // num_rows, num_rows // num_strips
        before: tuple[int, jax.Array] | None = None
        for start in [*range(0, length, step), None]:
            after = None
            if start is not None:
                start = min(start, length - step)  # the last one may repeat rows
                after = start, gather_piece(
                    self.leaf, np.int32(self.layer), np.int32(start),
                    entry=self.entry, num_strips=num_strips, step=step, split=split,
                )  # fmt: skip
            if before is not None and not parallel.is_first_process():
                before[1].block_until_ready()  # or it would be asked for all pieces at once
            elif before is not None:
                for strip, values in enumerate(np.asarray(before[1].addressable_data(0))):
                    yield (strip * length + before[0]) * row_bytes, values
                    del values  # a part of the piece, which it would keep
            before = after


def export_tensors(model: Any, table: Sequence[Entry]) -> list[ExportTensor]:
    """Return every tensor of a model's files, in the order in which they are written."""
    found = leaves(model)
    return [
        ExportTensor(name, entry, found[entry.path], layer)
        for entry in table
        for layer, name in enumerate(entry.names(found[entry.path].shape))
    ]


def write_tensors(
    tensors: Sequence[ExportTensor], folder: Path, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write safetensors files of at most `shard_bytes`, with an index where they are several.

    Every process goes through the tensors; the first one writes.
    """
    shards = _in_shards(tensors, shard_bytes)
    files = [
        WEIGHTS if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        for i in range(len(shards))
    ]
    for file, shard in zip(files, shards, strict=True):
        with contextlib.ExitStack() as stack:
            opened = None
            if parallel.is_first_process():
                opened = stack.enter_context(open(folder / file, "wb"))
            _write_shard(shard, opened)
        put_finished(folder / file)
    if len(shards) > 1 and parallel.is_first_process():
        where = {
            tensor.name: file for file, shard in zip(files, shards, strict=True) for tensor in shard
        }
        total = sum(tensor.nbytes for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_atomic(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")


@functools.partial(jax.jit, static_argnames=("entry", "num_strips", "step", "split"))
def gather_piece(
    leaf: jax.Array,
    layer: jax.Array,
    start: jax.Array,
    *,
    entry: Entry,
    num_strips: int,
    step: int,
    split: NamedSharding | None,
) -> jax.Array:
    """Return `step` rows, from row `start`, of each strip of a tensor, whole on every device.

    [strips, rows, …], in the order of the file. split: how the leaf lies; None: on one device.
    """
    if entry.is_stacked:
        leaf = jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)
    rows = _in_file_order(leaf, entry)
    strips = rows.reshape(num_strips, -1, *rows.shape[1:])
    piece = jax.lax.dynamic_slice_in_dim(strips, start, step, axis=1)
    if split is None:
        return piece
    axes = dict(zip(entry.letters, [*split.spec, *[None] * 9][entry.is_stacked :], strict=False))
    own = [axes[letter] for letter in "".join(entry.groups)] or [None]
    # Each device first takes of what it holds, then all exchange what they have taken.
    parts = PartitionSpec(own[0], None, *own[1:])
    piece = jax.lax.with_sharding_constraint(piece, NamedSharding(split.mesh, parts))
    return jax.lax.with_sharding_constraint(piece, NamedSharding(split.mesh, PartitionSpec()))


def _in_file_order(leaf: Any, entry: Entry) -> Any:
    """Return a leaf, or one layer of it, with an axis for each letter, as the file orders them.

    One number has an axis, too. leaf: of NumPy or of JAX.
    """
    order = "".join(entry.groups)
    if not order:
        return leaf.reshape(1)
    return leaf.transpose([entry.letters.index(letter) for letter in order])


def _rows_of_piece(num_rows: int, row_bytes: int) -> int:
    """Return how many rows are a piece, so that all pieces are about as large."""
    most = max(PIECE_BYTES // max(row_bytes, 1), 1)
    return -(-num_rows // -(-num_rows // most))


def _held(leaf: Any) -> np.ndarray | None:
    """Return a leaf that lies whole in the host's memory, without a copy; else None."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    (shard, *_) = leaf.addressable_shards
    if shard.data.shape != leaf.shape or shard.device.platform != "cpu":
        return None
    return np.asarray(shard.data)


def _in_shards(tensors: Sequence[ExportTensor], shard_bytes: int) -> list[list[ExportTensor]]:
    shards: list[list[ExportTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _write_shard(tensors: Sequence[ExportTensor], file: BinaryIO | None) -> None:
    """Write one file, of the form of safetensors: the header's size, the header, the tensors.

    file: None on processes that do not write.
    """
    # As safetensors orders them: by dtype, so that all are aligned, then by name.
    kinds = list(DTYPES)
    ordered = sorted(tensors, key=lambda tensor: (kinds.index(tensor.dtype), tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if file is not None:
        file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors:
        place = 8 + len(text) + header[tensor.name]["data_offsets"][0]
        for begin, values in tensor.pieces():
            assert file is not None
            file.seek(place + begin)
            file.write(values.reshape(-1).view(np.uint8).data)
            del values  # a part of the piece, which it would keep while others are gathered

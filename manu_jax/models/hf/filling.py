"""Leaves filled from safetensors files, each byte read once per host.

- What a host's devices need of a tensor lies in rows that hardly any other host needs: it reads
  these, and cuts them for its devices.
- Else, where columns are split over hosts or several hosts need the same, each host reads another
  range of rows, and the devices exchange them (`_exchanged`).

A host holds its devices' part of one leaf on its way to them, and a piece of the file per thread.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from manu_jax import parallel
from manu_jax.models.hf.copying import copy_into
from manu_jax.models.hf.reading import DTYPES, Reader, Tensor
from manu_jax.models.hf.tables import Entry
from manu_jax.parallel import Bounds

PIECE_BYTES = 2**23  # read at a time, by each thread
ALIGNMENT = 64  # of memory that a CPU device takes as it is
SMALL_BYTES = 2**20  # tensors that every host may read whole
MOST_READ = 1.5  # × its part of the file: what a host may read itself


@dataclasses.dataclass(frozen=True)
class Filling:
    """One leaf to be filled: `tensors` are those of its layers, or the one that it is.

    place: None: on the first device alone.
    """

    entry: Entry
    shape: tuple[int, ...]
    tensors: Sequence[Tensor]
    dtype: np.dtype
    place: NamedSharding | None

    def read(self, reader: Reader) -> jax.Array:
        """Return the leaf, each device's part of it where it belongs."""
        if self.place is None:
            part = self._part(tuple((0, size) for size in self.shape))
            self._cut([part], reader)
            return jax.device_put(part.values).block_until_ready()
        if self._is_exchanged():
            return self._exchanged(reader)
        indices = self.place.addressable_devices_indices_map(self.shape)
        bounds = {
            device: parallel.bounds_of(index, self.shape) for device, index in indices.items()
        }
        parts = {one: self._part(one) for one in bounds.values()}
        self._cut(list(parts.values()), reader)
        arrays = [jax.device_put(parts[one].values, device) for device, one in bounds.items()]
        leaf = jax.make_array_from_single_device_arrays(self.shape, self.place, arrays)
        return leaf.block_until_ready()  # so that a host holds one leaf, on its way to the devices

    def _part(self, bounds: Bounds) -> "_Part":
        shape = [end - start for start, end in bounds]
        layers, own = (bounds[0], bounds[1:]) if self.entry.is_stacked else ((0, 1), bounds)
        return _Part(self.entry, layers, own, _aligned(shape, self.dtype))

    def _rows_needed(self, own: Bounds) -> tuple[int, int]:
        """Return first and last of the rows on disk that hold a part of a layer.

        Of letters that share a dimension only the first may be cut; all others are cut in memory.
        """
        if not self.entry.groups:
            return 0, 1
        sizes = self._sizes
        first, *rest = self.entry.groups[0]
        step = math.prod(sizes[letter] for letter in rest)
        start, end = own[self.entry.letters.index(first)]
        return start * step, end * step

    @property
    def _sizes(self) -> dict[str, int]:
        own = self.shape[1:] if self.entry.is_stacked else self.shape
        return dict(zip(self.entry.letters, own, strict=True))

    def _cut(self, parts: "list[_Part]", reader: Reader) -> None:
        """Fill parts of the leaf from the rows that they need, each of which is read once."""
        needed = [self._rows_needed(part.own) for part in parts]
        jobs = []
        for layer, tensor in enumerate(self.tensors):
            step = max(PIECE_BYTES // max(tensor.row_bytes, 1), 1)
            unit = tensor.num_rows // self._sizes[self.entry.groups[0][0]] if tensor.shape else 1
            step = max(step // unit, 1) * unit  # whole heads
            of_layer = [
                (part, rows)
                for part, rows in zip(parts, needed, strict=True)
                if part.layers[0] <= layer < part.layers[1]
            ]
            for first, last in _joined([rows for _, rows in of_layer]):
                jobs += [
                    functools.partial(
                        self._read_piece, reader, layer, start, min(start + step, last), of_layer
                    )
                    for start in range(first, last, step)
                ]
        reader.do_all(jobs)

    def _read_piece(
        self, reader: Reader, layer: int, start: int, stop: int, of_layer: Sequence[Any]
    ) -> None:
        tensor, order = self.tensors[layer], "".join(self.entry.groups)
        if self._is_as_stored(of_layer):
            ((part, (first, last)),) = of_layer
            own = part.of(layer).reshape(last - first, *tensor.row_shape)[start - first :]
            reader.read_into(own[: stop - start], tensor, start)
            reader.check(own[: stop - start], tensor)
            return
        rows = reader.cast(reader.rows(tensor, start, stop), tensor, self.dtype)
        if not order:
            for part, _ in of_layer:
                part.values.reshape(-1)[layer - part.layers[0]] = rows[0]
            return
        unit = tensor.num_rows // self._sizes[order[0]]
        sizes = {**self._sizes, order[0]: len(rows) // unit}
        split = rows.reshape([sizes[letter] for letter in order])
        moved = split.transpose([order.index(letter) for letter in self.entry.letters])
        axis = self.entry.letters.index(order[0])
        for part, (first, last) in of_layer:
            low, high = max(first, start), min(last, stop)
            if low >= high:
                continue
            source: list[slice] = [slice(*bounds) for bounds in part.own]
            source[axis] = slice((low - start) // unit, (high - start) // unit)
            target: list[slice] = [slice(None)] * len(part.own)
            target[axis] = slice((low - first) // unit, (high - first) // unit)
            copy_into(part.of(layer)[tuple(target)], moved[tuple(source)])

    def _is_as_stored(self, of_layer: Sequence[Any]) -> bool:
        """Whether rows on disk are those in memory: same dtype, same order, all columns, once."""
        order = "".join(self.entry.groups)
        own = of_layer[0][0].own
        return (
            len(of_layer) == 1
            and order == self.entry.letters
            and self.dtype == DTYPES[self.tensors[0].dtype]
            and all(
                bounds == (0, self._sizes[letter])
                for letter, bounds in zip(order[1:], own[1:], strict=True)
            )
        )

    def _is_exchanged(self) -> bool:
        """Whether this leaf is read by all hosts together; the same on all of them."""
        assert self.place is not None
        processes = {device.process_index for device in self.place.device_set}
        largest = max(tensor.nbytes for tensor in self.tensors)
        if len(processes) == 1 or largest <= SMALL_BYTES:
            return False
        rows: dict[int, set[tuple[int, int]]] = {}
        for device, index in self.place.devices_indices_map(self.shape).items():
            own = parallel.bounds_of(index, self.shape)[self.entry.is_stacked :]
            rows.setdefault(device.process_index, set()).add(self._rows_needed(own))
        most = max(sum(end - start for start, end in _joined(of)) for of in rows.values())
        return most > MOST_READ * self.tensors[0].num_rows / len(processes)

    def _exchanged(self, reader: Reader) -> jax.Array:
        """Return the leaf, of rows that each host reads for all: those of its devices' numbers."""
        assert self.place is not None
        mesh: Any = self.place.mesh
        split = NamedSharding(mesh, PartitionSpec(parallel.AXES))
        leaf = _empty(self.shape, self.dtype, self.place) if self.entry.is_stacked else None
        for layer, tensor in enumerate(self.tensors):
            per_device = -(-tensor.num_rows // mesh.size)
            shape = (per_device * mesh.size, *tensor.row_shape)
            own = {
                device: (
                    parallel.bounds_of(index, shape)[0][0],
                    np.zeros((per_device, *tensor.row_shape), self.dtype),
                )
                for device, index in split.addressable_devices_indices_map(shape).items()
            }
            step = max(PIECE_BYTES // tensor.row_bytes, 1)
            jobs = []
            for first, values in own.values():
                last = min(first + per_device, tensor.num_rows)
                jobs += [
                    functools.partial(
                        _read_rows, reader, tensor, first, start, min(start + step, last), values
                    )
                    for start in range(first, last, step)
                ]
            reader.do_all(jobs)
            rows = jax.make_array_from_single_device_arrays(
                shape,
                split,
                [jax.device_put(values, device) for device, (_, values) in own.items()],
            )
            static = {"entry": self.entry, "num_rows": tensor.num_rows, "place": self.place}
            if leaf is None:
                leaf = _from_rows(rows, shape=self.shape, **static)
                break
            leaf = _with_layer(leaf, rows, np.int32(layer), **static).block_until_ready()
        return jax.device_put(leaf, self.place)  # the same place, by the name that it has here


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """What some devices hold of a leaf: layers, the bounds of its other axes, the values."""

    entry: Entry
    layers: tuple[int, int]
    own: Bounds
    values: np.ndarray

    def of(self, layer: int) -> np.ndarray:
        """Return the values of a layer, or all where there are none."""
        index = layer - self.layers[0]
        return self.values[index, ...] if self.entry.is_stacked else self.values


def _read_rows(
    reader: Reader, tensor: Tensor, first: int, start: int, stop: int, values: np.ndarray
) -> None:
    rows = reader.rows(tensor, start, stop)
    values[start - first : stop - first] = reader.cast(rows, tensor, values.dtype)


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges in order, those that touch or overlap as one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Return new memory that a device of the CPU takes without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _empty(shape: tuple[int, ...], dtype: np.dtype, place: NamedSharding) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=place)()


@functools.partial(jax.jit, static_argnames=("shape", "entry", "num_rows", "place"))
def _from_rows(
    rows: jax.Array, *, shape: tuple[int, ...], entry: Entry, num_rows: int, place: NamedSharding
) -> jax.Array:
    """Return a leaf, or a layer, of the rows of its tensor, split as `place` says.

    rows: as on disk, split over all devices, filled up to what they divide. A device holds them all
    for a moment; XLA would do the same, with a warning, where rows become columns.
    """
    sizes, order = dict(zip(entry.letters, shape, strict=True)), "".join(entry.groups)
    rows = jax.lax.with_sharding_constraint(rows, NamedSharding(place.mesh, PartitionSpec()))
    split = rows[:num_rows].reshape([sizes[letter] for letter in order])
    moved = split.transpose([order.index(letter) for letter in entry.letters])
    return jax.lax.with_sharding_constraint(moved, place)


@functools.partial(
    jax.jit, static_argnames=("entry", "num_rows", "place"), donate_argnames=("leaf",)
)
def _with_layer(
    leaf: jax.Array,
    rows: jax.Array,
    layer: jax.Array,
    *,
    entry: Entry,
    num_rows: int,
    place: NamedSharding,
) -> jax.Array:
    """Return the leaf with one layer set to the rows of its tensor; see `_from_rows`."""
    own = NamedSharding(place.mesh, PartitionSpec(*place.spec[1:]))
    moved = _from_rows(rows, shape=leaf.shape[1:], entry=entry, num_rows=num_rows, place=own)
    leaf = jax.lax.dynamic_update_index_in_dim(leaf, moved, layer, axis=0)
    return jax.lax.with_sharding_constraint(leaf, place)

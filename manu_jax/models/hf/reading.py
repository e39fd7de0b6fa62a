"""Rows of tensors from safetensors files, read by several threads.

A slice along the columns of a tensor is many short pieces of its file, so that a disk reads all of
it. So files are only ever read in whole rows, in pieces of some megabytes. Nothing is mapped into
memory, where pages of the file would count as the process's own. Of a store each piece is one
request.
"""

import dataclasses
import math
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from manu_jax import stores
from manu_jax.types import ManuError

DTYPES = {
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
CHECKED_BYTES = 2**18  # looked through at a time, so that they stay in the processor's cache
MOST_THREADS = 16
# All bits of a number but its sign, and the least of them that mean infinity or NaN.
EXPONENTS = {
    DTYPES["F32"]: (0x7FFFFFFF, 0x7F800000),
    DTYPES["F16"]: (0x7FFF, 0x7C00),
    DTYPES["BF16"]: (0x7FFF, 0x7F80),
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor on disk: where it is and what its header says.

    begin: its first byte in the file.
    """

    file: Path
    stored_name: str
    shape: tuple[int, ...]
    dtype: str
    begin: int = 0

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.shape[1:]

    @property
    def num_rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row_shape) * DTYPES[self.dtype].itemsize

    @property
    def nbytes(self) -> int:
        return self.num_rows * self.row_bytes


class Reader:
    """Files opened once; reads rows of tensors, from any thread.

    bad: the names of tensors in which a number that is not finite was found; too_large: of those
    with one that the dtype they were cast to does not hold.
    """

    def __init__(self):
        self.bad: set[str] = set()
        self.too_large: set[str] = set()
        self._opened: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._own = threading.local()
        self._threads = ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS))

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for descriptor in self._opened.values():
            os.close(descriptor)

    def do_all(self, jobs: Sequence[Any]) -> None:
        """Call all functions, on several threads; raise the first error."""
        if len(jobs) == 1:
            jobs[0]()
        else:
            list(self._threads.map(lambda job: job(), jobs))

    def rows(self, tensor: Tensor, start: int, stop: int) -> np.ndarray:
        """Return rows of a tensor; they stay as they are until this thread reads again."""
        size = (stop - start) * tensor.row_bytes
        memory = getattr(self._own, "memory", None)
        if memory is None or memory.nbytes < size:
            memory = self._own.memory = np.empty(size, np.uint8)
        rows = memory[:size].view(DTYPES[tensor.dtype]).reshape(stop - start, *tensor.row_shape)
        self.read_into(rows, tensor, start)
        return rows

    def read_into(self, rows: np.ndarray, tensor: Tensor, start: int) -> None:
        """Fill contiguous memory with the rows of a tensor from `start` on."""
        place = tensor.begin + start * tensor.row_bytes
        left = memoryview(rows.reshape(-1).view(np.uint8).data)
        if stores.is_store(tensor.file):
            left[:] = stores.read_range(tensor.file, place, place + len(left))
            return
        while left:
            count = os.preadv(self._descriptor(tensor.file), [left], place)
            if not count:
                raise ManuError(f"{tensor.file}: it is cut short. Download it again.")
            place, left = place + count, left[count:]

    def check(self, rows: np.ndarray, tensor: Tensor) -> None:
        """Note a tensor of which rows hold NaN or infinite numbers."""
        if not _is_finite(rows):
            self.bad.add(tensor.stored_name)

    def cast(self, rows: np.ndarray, tensor: Tensor, dtype: np.dtype) -> np.ndarray:
        """Return rows in another dtype, checked; a tensor with numbers beyond it is noted too."""
        self.check(rows, tensor)
        if rows.dtype == dtype:
            return rows
        with np.errstate(over="ignore"):
            found = rows.astype(dtype)
        if dtype.itemsize < 4 and not _is_finite(found):
            self.too_large.add(tensor.stored_name)
        return found

    def _descriptor(self, file: Path) -> int:
        with self._lock:
            if file not in self._opened:
                self._opened[file] = os.open(file, os.O_RDONLY)
            return self._opened[file]


def _is_finite(rows: np.ndarray) -> bool:
    mask, least = EXPONENTS[rows.dtype]
    bits = rows.reshape(-1).view(f"u{rows.itemsize}")
    step = CHECKED_BYTES // rows.itemsize
    return all(
        (bits[start : start + step] & bits.dtype.type(mask)).max() < least
        for start in range(0, len(bits), step)
    )

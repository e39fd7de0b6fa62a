"""The sums over samples from which every importance function follows.

A sample has one number z per neuron: its activation or its attribution, reduced over tokens. What
is kept of a set of samples is n, Σ|z|, Σz, Σz² and the count of |z| > τ. Sums add, so batches,
devices, processes and runs merge by `+`, in any order.

Each sum is two float32 numbers, the sum and what its rounding lost, which together hold about 48
bits: a million samples lose nothing that matters, on hardware without float64.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.arrays import REMEDY, check_arrays, made_from, read_arrays, write_arrays
from manu_jax.folder import ForeignErrors
from manu_jax.parallel import constrain, gather, is_first_process
from manu_jax.types import Array, ManuError

MOMENTS = ("absolute", "signed", "squared", "above")
FORMAT = "statistics"
CHUNK = 10  # batches whose means the authors' code averages before it averages these


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sum:
    """A float32 sum and what its rounding lost; arrays of one shape."""

    high: Array
    low: Array

    @classmethod
    def zero(cls, shape: tuple[int, ...]) -> "Sum":
        return cls(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))

    def add(self, term: Array) -> "Sum":
        """Return the sum with one more float32 term."""
        total, lost = _two_sum(self.high, term)
        return Sum(*_fast_two_sum(total, lost + self.low))

    def __add__(self, other: "Sum") -> "Sum":
        total, lost = _two_sum(self.high, other.high)
        return Sum(*_fast_two_sum(total, lost + (self.low + other.low)))

    def value(self) -> np.ndarray:
        """Return the sum in float64, on the host."""
        return np.asarray(self.high, np.float64) + np.asarray(self.low, np.float64)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Statistics:
    """Weighted sums over samples: count is Σw; the others are per tower, [L, F].

    absolute: Σ w|z| · signed: Σ wz · squared: Σ wz² · above: Σ w·[|z| > threshold].
    """

    count: Sum
    absolute: dict[str, Sum]
    signed: dict[str, Sum]
    squared: dict[str, Sum]
    above: dict[str, Sum]
    threshold: float = dataclasses.field(default=0.1, metadata={"static": True})

    @classmethod
    def zero(cls, towers: Mapping[str, tuple[int, int]], threshold: float = 0.1) -> "Statistics":
        """Return the statistics of no samples; `towers` gives (layers, neurons) of each."""
        sums = [
            {tower: _split(Sum.zero(tuple(towers[tower]))) for tower in towers} for _ in MOMENTS
        ]
        return cls(Sum.zero(()), *sums, threshold=threshold)

    @property
    def towers(self) -> dict[str, tuple[int, int]]:
        """{tower: (layers, neurons)}."""
        shapes = {tower: total.high.shape for tower, total in self.absolute.items()}
        return {tower: (shape[0], shape[1]) for tower, shape in shapes.items()}

    def add(self, values: Mapping[str, Array], weights_B: Array) -> "Statistics":
        """Return the statistics with the samples of one batch.

        values: {tower: [L, B, F]} float32, at least the towers of these statistics. A sample of
        weight 0 leaves no trace, whatever its values. Pure: to be called inside jit.
        """
        weights_1B1 = jnp.asarray(weights_B, jnp.float32)[None, :, None]
        sums: dict[str, dict[str, Sum]] = {moment: {} for moment in MOMENTS}
        for tower in self.absolute:
            z_LBF = jnp.where(weights_1B1 > 0, jnp.asarray(values[tower], jnp.float32), 0)
            terms = {
                "absolute": jnp.abs(z_LBF),
                "signed": z_LBF,
                "squared": z_LBF * z_LBF,
                "above": (jnp.abs(z_LBF) > self.threshold).astype(jnp.float32),
            }
            for moment, term_LBF in terms.items():
                term_LF = constrain(jnp.sum(weights_1B1 * term_LBF, axis=1), None, "neurons")
                sums[moment][tower] = _split(getattr(self, moment)[tower].add(term_LF))
        count = self.count.add(jnp.sum(weights_1B1))
        return Statistics(count, **sums, threshold=self.threshold)

    def __add__(self, other: "Statistics") -> "Statistics":
        if self.threshold != other.threshold or self.towers != other.towers:
            raise ManuError(
                "these statistics do not add: thresholds "
                f"{self.threshold} and {other.threshold}, towers {self.towers} and {other.towers}."
                " Collect both from the same model with the same settings."
            )
        return jax.tree.map(lambda a, b: a + b, self, other, is_leaf=lambda x: isinstance(x, Sum))

    def means(self, moment: str, tower: str) -> np.ndarray:
        """Return one of MOMENTS divided by the count: [L, F] float64, on the host."""
        return getattr(self, moment)[tower].value() / self.count.value()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PositionStatistics:
    """The authors' code's statistics: functionals of each batch, averaged over batches.

    Values are {"tower.matrix": [L, 4, rows]}: mean |z|, share above τ, standard deviation and root
    mean square. They are averaged over the batches of a chunk of ten, and over chunks, so a
    last chunk of fewer batches weighs as much as a whole one.
    """

    closed: Mapping[str, Array]  # sum of the means of whole chunks
    num_closed: Array  # chunks
    current: Mapping[str, Array]  # sum over the batches of the current chunk
    num_current: Array  # batches

    @classmethod
    def zero(cls, shapes: Mapping[str, tuple[int, int, int]]) -> "PositionStatistics":
        zeros = [
            {key: jnp.zeros(shape, jnp.float32) for key, shape in shapes.items()} for _ in "12"
        ]
        return cls(zeros[0], jnp.zeros((), jnp.float32), zeros[1], jnp.zeros((), jnp.float32))

    def add(self, values: Mapping[str, Array]) -> "PositionStatistics":
        """Return the statistics with one batch; pooled values [1, 4, rows] go to every layer."""
        current = {
            key: total + jnp.broadcast_to(values[key], total.shape)
            for key, total in self.current.items()
        }
        num_current = self.num_current + 1
        is_full = num_current >= CHUNK
        closed = {
            key: total + jnp.where(is_full, current[key] / CHUNK, 0)
            for key, total in self.closed.items()
        }
        current = {key: jnp.where(is_full, 0, total) for key, total in current.items()}
        return PositionStatistics(
            closed, self.num_closed + is_full, current, jnp.where(is_full, 0, num_current)
        )

    def __add__(self, other: "PositionStatistics") -> "PositionStatistics":
        """Return both, with the current chunk of each closed."""
        left, right = self._close(), other._close()
        return jax.tree.map(lambda a, b: a + b, left, right)

    def means(self) -> dict[str, np.ndarray]:
        """Return the averages over chunks: {"tower.matrix": [L, 4, rows]} float64, on the host."""
        batches = float(self.num_current)
        chunks = float(self.num_closed) + (batches > 0)
        return {
            key: (
                np.asarray(self.closed[key], np.float64)
                + np.asarray(self.current[key], np.float64) / max(batches, 1)
            )
            / chunks
            for key in self.closed
        }

    def _close(self) -> "PositionStatistics":
        has_current = np.asarray(self.num_current) > 0
        batches = np.maximum(np.asarray(self.num_current), 1)
        closed = {key: self.closed[key] + self.current[key] / batches for key in self.closed}
        current = {key: np.zeros_like(value) for key, value in self.current.items()}
        return PositionStatistics(
            closed, self.num_closed + np.float32(has_current), current, np.zeros((), np.float32)
        )


AnyStatistics = Statistics | PositionStatistics
KINDS: dict[str, type] = {"samples": Statistics, "positions": PositionStatistics}


def check_finite(neurons: Mapping[str, Array], what: str) -> None:
    """Raise ManuError that names each tower and layer with NaN or infinite values; [L, …] each."""
    faults = []
    for tower, values in sorted(neurons.items()):
        bad_L = (~np.isfinite(np.asarray(values))).reshape(len(values), -1).sum(axis=1)
        faults += [
            f'tower "{tower}", layer {layer}: {bad_L[layer]:,} values'
            for layer in np.flatnonzero(bad_L)
        ]
    if faults:
        raise ManuError(
            f"{what}: not finite (NaN or infinite) at {'; '.join(faults)}. The model's weights are "
            "damaged, or its dtype is too narrow for these activations: try dtype float32."
        )


def check_statistics(statistics: AnyStatistics, what: str) -> None:
    """Raise ManuError where statistics hold NaN or infinite sums, or no sample at all."""
    if isinstance(statistics, PositionStatistics):
        check_finite(statistics.closed, what)
        check_finite(statistics.current, what)
        count = float(statistics.num_closed) + float(statistics.num_current)
    else:
        for moment in MOMENTS:
            sums = getattr(statistics, moment)
            check_finite({t: s.high for t, s in sums.items()}, f"{what}, {moment}")
        count = float(statistics.count.value())
    if not count > 0:
        raise ManuError(f"{what}: no samples. Give at least one.")


def save(
    path: str | os.PathLike, statistics: AnyStatistics, made_from: Mapping[str, Any] | None = None
) -> None:
    """Write statistics as safetensors, atomically; `made_from` (JSON values) goes to its metadata.

    Every process has to call it; the first one writes.
    """
    arrays = {
        jax.tree_util.keystr(key, simple=True, separator="/"): leaf
        for key, leaf in jax.tree_util.tree_leaves_with_path(gather(statistics))
    }
    kind = next(name for name, cls in KINDS.items() if isinstance(statistics, cls))
    metadata = {
        "kind": kind,
        "threshold": repr(getattr(statistics, "threshold", None)),
        "made_from": json.dumps(dict(made_from or {}), sort_keys=True),
    }
    if is_first_process():
        write_arrays(path, FORMAT, arrays, metadata=metadata)


def load(path: str | os.PathLike) -> tuple[AnyStatistics, dict[str, Any]]:
    """Return statistics (NumPy) and what they were made from; ManuError where damaged or other."""
    arrays, metadata = read_arrays(path, FORMAT)
    what = f"statistics {path}"
    with ForeignErrors(what, "its content is not that of statistics", REMEDY):
        read = _positions if metadata["kind"] == "positions" else _sums
        statistics = read(dict(arrays), metadata)
    check_statistics(statistics, what)
    return statistics, made_from(metadata, what)


def _positions(arrays: dict[str, np.ndarray], metadata: Mapping[str, str]) -> PositionStatistics:
    """Return the statistics of these arrays; whatever is raised says what is wrong with them."""
    counts: dict[str, Any] = {name: arrays.pop(name) for name in ("num_closed", "num_current")}
    check_arrays(counts, "counts", dtype="float32", num_axes=0)
    parts: dict[str, dict[str, Any]] = {"closed": {}, "current": {}}
    for name, array in arrays.items():
        part, _, key = name.partition("/")
        parts[part][key] = array
    check_arrays(arrays, "sums", dtype="float32", num_axes=3)
    if _shapes(parts["closed"]) != _shapes(parts["current"]):
        raise ValueError("its sums of chunks and of batches differ in names or shapes")
    if not all(np.isfinite(count) and count >= 0 for count in counts.values()):
        raise ValueError(f"counts {counts}")
    return PositionStatistics(**parts, **counts)


def _sums(arrays: dict[str, np.ndarray], metadata: Mapping[str, str]) -> Statistics:
    """Return the statistics of these arrays; whatever is raised says what is wrong with them."""
    counts = {name: arrays.pop(name) for name in ("count/high", "count/low")}
    check_arrays(counts, "count", dtype="float32", num_axes=0)
    count = Sum(*counts.values())
    check_arrays(arrays, "sums", dtype="float32", num_axes=2)
    sums: dict[str, dict[str, Sum]] = {moment: {} for moment in MOMENTS}
    shapes = set()
    for moment in MOMENTS:
        names = [name for name in arrays if name.startswith(f"{moment}/")]
        for tower in sorted({name.split("/")[1] for name in names}):
            total = Sum(*(arrays.pop(f"{moment}/{tower}/{part}") for part in ("high", "low")))
            check_finite({tower: total.low}, moment)
            sums[moment][tower] = total
        shapes.add(tuple((t, s.high.shape, s.low.shape) for t, s in sums[moment].items()))
    if arrays or len(shapes) > 1 or any(high != low for _, high, low in next(iter(shapes))):
        raise ValueError("its sums differ in towers or shapes")
    threshold = float(metadata["threshold"])
    if not (np.isfinite(count.value()) and np.isfinite(threshold)):
        raise ValueError(f"count {count.value()}, threshold {threshold}")
    return Statistics(count, **sums, threshold=threshold)


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def _split(total: Sum) -> Sum:
    """Return the sum with its neurons split over the mesh."""
    high_LF, low_LF = jnp.asarray(total.high), jnp.asarray(total.low)
    return Sum(constrain(high_LF, None, "neurons"), constrain(low_LF, None, "neurons"))


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return a + b rounded, and its rounding error, exactly (Knuth)."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def _fast_two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return a + b rounded, and its rounding error, exactly where |a| ≥ |b| (Dekker)."""
    total = a + b
    return total, b - (total - a)

"""Statistics of each person by themselves, so that those of any group of people follow as a sum."""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from manu_jax import faults, parallel
from manu_jax.config import StatisticsMethod
from manu_jax.data.batches import batches_of, encode_all
from manu_jax.importance.collect import CaptureStep, capture_step_of, fade_of, values_of
from manu_jax.importance.statistics import MOMENTS, Statistics, Sum, check_statistics
from manu_jax.models.loaded import Loaded
from manu_jax.progress import Progress
from manu_jax.types import Batch, ManuError, Modality, Sample


@dataclasses.dataclass(frozen=True)
class PeopleStatistics:
    """The sums of `Statistics` over the samples of each of P people; NumPy, on the host.

    counts_P: samples of each. sums: {moment: {tower: [P, L, F] float32}}.
    """

    people: tuple[str, ...]
    counts_P: np.ndarray
    sums: Mapping[str, Mapping[str, np.ndarray]]
    threshold: float

    def of(self, people: Collection[str]) -> Statistics:
        """Return the statistics of a group of people; ManuError where one of them has none."""
        unknown = sorted(set(people) - set(self.people))
        if unknown:
            raise ManuError(f"statistics of people: none of {', '.join(unknown)}.")
        rows = [number for number, person in enumerate(self.people) if person in people]
        sums = {
            moment: {
                tower: _sum(values[rows].sum(axis=0, dtype=np.float64))
                for tower, values in towers.items()
            }
            for moment, towers in self.sums.items()
        }
        count = _sum(np.float64(self.counts_P[rows].sum()))
        return Statistics(count, **sums, threshold=self.threshold)


def collect_people(
    loaded: Loaded,
    samples: Sequence[Sample],
    method: StatisticsMethod,
    *,
    modality: Modality,
    batch_size: int = 32,
    fade: float | None = None,
) -> PeopleStatistics:
    """Return the statistics of the people that samples are about, all of one modality.

    Who it is about is what a sample's key has before the stroke. Settings as in `collect`, with
    the sums on the host: P · L · F numbers for each tower and moment. Raises ManuError where there
    are no samples, a sum is not finite, or the method measures whole batches.
    """
    if not samples:
        raise ManuError(f"statistics of people, {modality} form: no samples. Give at least one.")
    capture_step = capture_step_of(loaded, method, modality, fade=fade)
    if capture_step.is_of_batches:
        raise ManuError(
            f'method "{method.name}": statistics by position are of batches, not of people. '
            'Give another reduction, such as "mean".'
        )
    names = [person_of(sample) for sample in samples]
    people = tuple(dict.fromkeys(names))
    number_of = {person: number for number, person in enumerate(people)}
    person_N = np.asarray([number_of[name] for name in names])
    sums = {
        moment: {
            tower: np.zeros((len(people), *shape), np.float32)
            for tower, shape in capture_step.towers
        }
        for moment in MOMENTS
    }
    batch_size = parallel.filled(batch_size, loaded.mesh)
    rows = parallel.batch_rows(loaded.mesh, batch_size)
    batches = batches_of(loaded, encode_all(loaded, samples), batch_size, rows=rows)
    with parallel.on_mesh(loaded.mesh), Progress("people", len(batches)) as progress:
        for step in range(len(batches)):
            batch = parallel.put_batch(batches.batch_at(step), loaded.mesh)
            values = parallel.gather(
                _values(
                    loaded.model,
                    batch,
                    fade_of(capture_step, fade),
                    capture_step=capture_step,
                )
            )
            indices = batches.indices_at(step)
            for tower, _ in capture_step.towers:
                z_BLF = values[tower].swapaxes(0, 1)[: len(indices)]
                size_BLF = np.abs(z_BLF)
                terms = {
                    "absolute": size_BLF,
                    "signed": z_BLF,
                    "squared": z_BLF * z_BLF,
                    "above": size_BLF > method.threshold,
                }
                for moment, term_BLF in terms.items():
                    np.add.at(sums[moment][tower], person_N[indices], term_BLF)
            progress.advance()
            faults.stop_if_due()
    counts_P = np.bincount(person_N, minlength=len(people)).astype(np.float64)
    found = PeopleStatistics(people, counts_P, sums, method.threshold)
    check_statistics(found.of(people), f"statistics of {len(people):,} people, {modality} form")
    return found


def person_of(sample: Sample) -> str:
    """Return who a sample is about: "017" of the key "017/hometown"."""
    return sample.key.partition("/")[0]


def without(total: Statistics, part: Statistics) -> Statistics:
    """Return the statistics of the samples that are in `total` and not in `part`, a part of it."""
    return total + jax.tree.map(lambda values: -values, part)


@functools.partial(jax.jit, static_argnames="capture_step")
def _values(
    model: Any, batch: Batch, fade: np.ndarray | None, *, capture_step: CaptureStep
) -> dict[str, Any]:
    return values_of(model, batch, gates=None, fade=fade, capture_step=capture_step)


def _sum(total: np.ndarray | np.float64) -> Sum:
    """Return a float64 value as two float32 numbers."""
    high = np.asarray(total, np.float32)
    return Sum(high, np.asarray(total - high, np.float32))

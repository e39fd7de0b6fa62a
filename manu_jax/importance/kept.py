"""The kept facts that a round of a method by statistics is given."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from manu_jax.config import StatisticsMethod
from manu_jax.importance.job import ScoringJob
from manu_jax.types import Modality, Sample

Drawn = TypeVar("Drawn")


def kept_of(job: ScoringJob[StatisticsMethod], modality: Modality) -> Sequence[Sample]:
    """Return the kept facts in one form: as many as the method says, drawn by the job's seed."""
    return drawn(job.method, job.keep[modality], len(job.forget[modality]), seed=job.seed)


def drawn(
    method: StatisticsMethod, samples: Sequence[Drawn], num_forget: int, *, seed: int
) -> Sequence[Drawn]:
    """Return as many of the samples to keep as a round draws beside `num_forget` to forget."""
    if method.keep_per_forget is None:
        return samples
    return draw(samples, max(round(method.keep_per_forget * num_forget), 1), seed)


def draw(samples: Sequence[Drawn], number: int, seed: int) -> list[Drawn]:
    """Return `number` of the samples (all, where there are fewer), shuffled by the seed."""
    order = np.random.default_rng(seed).permutation(len(samples))
    return [samples[i] for i in order[:number]]

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
    samples = job.keep[modality]
    if job.method.keep_per_forget is None:
        return samples
    number = round(job.method.keep_per_forget * len(job.forget[modality]))
    return draw(samples, max(number, 1), job.seed)


def draw(samples: Sequence[Drawn], number: int, seed: int) -> list[Drawn]:
    """Return `number` of the samples (all, where there are fewer), shuffled by the seed."""
    order = np.random.default_rng(seed).permutation(len(samples))
    return [samples[i] for i in order[:number]]

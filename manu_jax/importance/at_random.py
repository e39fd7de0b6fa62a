"""Random scores: the control that every method has to beat."""

import numpy as np

from manu_jax.config import RandomMethod
from manu_jax.importance.job import ScoringJob
from manu_jax.types import Neurons


def score_at_random(job: ScoringJob[RandomMethod]) -> Neurons:
    """Return uniform scores of the towers that the method scores, drawn by the seed."""
    towers = job.method.scored_towers(job.loaded.towers)
    return {
        tower: np.random.default_rng([job.seed, number]).random(
            job.loaded.towers[tower], np.float32
        )
        for number, tower in enumerate(towers)
    }

"""From facts to one score per neuron, or to an edit: every kind of method behind two functions.

`scores_for` and `edit_for` are what a run calls. A score is high where a neuron is to be removed; a
mask is made of scores by `selection.select`.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from manu_jax.arrays import check_arrays, made_from, read_arrays, write_arrays
from manu_jax.config import LearnedMethod, RandomMethod, StatisticsMethod
from manu_jax.edits import masks
from manu_jax.importance.at_random import score_at_random
from manu_jax.importance.by_statistics import score_by_statistics
from manu_jax.importance.job import EditMethod, ScoringJob, ScoringMethod
from manu_jax.importance.kvw import KvwMethod, weaken
from manu_jax.importance.learned import learn_gates
from manu_jax.importance.ridge import RidgeMethod, redirect
from manu_jax.importance.statistics import check_finite
from manu_jax.parallel import gather, is_first_process
from manu_jax.types import MODALITIES, ManuError, Neurons

FORMAT = "scores"

# By the `kind` of a method's settings.
METHODS: dict[str, ScoringMethod | EditMethod] = {
    "statistics": ScoringMethod(StatisticsMethod, score_by_statistics),
    "learned": ScoringMethod(LearnedMethod, learn_gates),
    "random": ScoringMethod(RandomMethod, score_at_random),
    "kvw": EditMethod(KvwMethod, weaken),
    "ridge": EditMethod(RidgeMethod, redirect),
}


def scores_for(job: ScoringJob[Any]) -> Neurons:
    """Return one score per neuron, as the job's method finds them: {tower: [L, F] float32}.

    ManuError where a set has no samples in a form, a number is not finite, or scores are not of the
    model's neurons.
    """
    entry = METHODS[job.method.kind]
    assert isinstance(entry, ScoringMethod), f"{job.method.kind} makes an edit, and no scores"
    _check_samples(job)
    scores, what = entry.score(job), f'scores of method "{job.method.name}"'
    if faults := masks.faults_in(scores, job.loaded):
        raise ManuError(f"{what} do not fit the model: {'; '.join(faults)}.")
    check_finite(gather(dict(scores)), what)
    return scores


def edit_for(job: ScoringJob[Any]) -> Any:
    """Return the Edit that the job's method makes; ManuError where a set has no samples."""
    entry = METHODS[job.method.kind]
    assert isinstance(entry, EditMethod), f"{job.method.kind} scores neurons, and makes no edit"
    _check_samples(job)
    return entry.make(job)


def save_scores(
    path: str | os.PathLike, scores: Neurons, made_from: Mapping[str, Any] | None = None
) -> None:
    """Write scores and what they were made from; every process calls it, the first writes."""
    arrays = {key: np.asarray(values, np.float32) for key, values in gather(dict(scores)).items()}
    if is_first_process():
        metadata = {"made_from": json.dumps(dict(made_from or {}), sort_keys=True)}
        write_arrays(path, FORMAT, arrays, metadata=metadata)


def load_scores(path: str | os.PathLike) -> tuple[Neurons, dict[str, Any]]:
    """Return scores and what they were made from; ManuError where the file is damaged."""
    arrays, metadata = read_arrays(path, FORMAT)
    check_arrays(arrays, f"scores {path}", dtype="float32", num_axes=2)
    return dict(arrays), made_from(metadata, f"scores {path}")


def _check_samples(job: ScoringJob[Any]) -> None:
    empty = [
        f"{name}, {modality} form"
        for name, forms in (("forget", job.forget), ("keep", job.keep))
        for modality in job.modalities or MODALITIES
        if not forms.get(modality)
    ]
    if empty:
        raise ManuError(f"no samples to score with: {'; '.join(empty)}. Check the data's sets.")

"""Scores from statistics of four sets of samples; with rounds, again after each part is removed."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from manu_jax.config import StatisticsMethod
from manu_jax.importance.collect import collect
from manu_jax.importance.functions import contrast
from manu_jax.importance.job import ScoringJob
from manu_jax.importance.kept import kept_of
from manu_jax.importance.spared import spared_of, without
from manu_jax.importance.statistics import AnyStatistics
from manu_jax.selection import select
from manu_jax.types import MODALITIES, Modality, Neurons, Signal


def score_by_statistics(job: ScoringJob[StatisticsMethod]) -> Neurons:
    """Return the scores of one round; where the method chooses, ranks in (0, 1] by removal.

    Each round removes an equal part of the method's α, and the next one scores what is left. With
    `spare`, neurons that kept facts need (spared.py) are not removed, and rank last.
    """
    method = job.method
    if not method.chooses:
        return score_round(job)
    removed: Neurons = {}
    spared: Neurons = {}
    removed_in: dict[str, np.ndarray] = {}  # round, from 0; method.rounds where never
    at_removal: dict[str, np.ndarray] = {}  # score in that round; the last score where never
    # The first of several rounds has gates too, all open, so that all run the same programs.
    scored = method.scored_towers(job.loaded.towers, job.modalities)
    gates: Neurons = {
        tower: np.ones(shape, np.float32)
        for tower, shape in job.loaded.towers.items()
        if tower in scored
    }
    for number in range(method.rounds):
        round_job = _round_of(job, number)
        scores = score_round(round_job, gates if method.rounds > 1 else None)
        if not removed:
            removed = {tower: np.zeros(np.shape(scores[tower]), bool) for tower in scores}
            spared = dict(removed)
            removed_in = {tower: np.full(np.shape(scores[tower]), number) for tower in scores}
            at_removal = {tower: np.zeros(np.shape(scores[tower])) for tower in scores}
        for tower, was_removed_LF in removed.items():
            removed_in[tower] += ~was_removed_LF & (number > 0)
            at_removal[tower] = np.where(was_removed_LF, at_removal[tower], scores[tower])
            scores[tower] = np.where(was_removed_LF, np.inf, scores[tower])
        share = method.scored_alpha * (number + 1) / method.rounds
        if method.spare is not None:
            spared = spared_of(round_job, scores, share, gates=gates, spared=spared)
        scores = without(scores, spared)
        removed = select(scores, share, method.scope, layers=method.layers)
        gates = {tower: 1 - mask_LF.astype(np.float32) for tower, mask_LF in removed.items()}
    for tower, was_removed_LF in removed.items():
        removed_in[tower] += ~was_removed_LF
        at_removal[tower] = np.where(spared[tower], -np.inf, at_removal[tower])
    return _ranks(removed_in, at_removal)


def _round_of(job: ScoringJob[StatisticsMethod], number: int) -> ScoringJob[StatisticsMethod]:
    """Return the job of a round: of several, each has a seed and a folder of its own."""
    if job.method.rounds == 1:
        return job
    folder = None if job.directory is None else job.directory / f"round_{number:02d}"
    return dataclasses.replace(job, seed=job.seed + number, directory=folder)


def score_round(job: ScoringJob[StatisticsMethod], gates: Neurons | None = None) -> Neurons:
    """Return the scores of a model whose neurons are multiplied by `gates` ([L, F] each)."""
    return contrast(*round_statistics(job, gates), preset=job.method)


def round_statistics(
    job: ScoringJob[StatisticsMethod], gates: Neurons | None = None
) -> tuple[AnyStatistics | None, ...]:
    """Return the statistics that a round scores by: of forget and of keep, image and text each.

    None: of a form that is absent. They are read from the job's directory where they stand there.
    gates: as in `score_round`.
    """
    method = job.method
    found: list[AnyStatistics | None] = []
    for name, forms in (("forget", job.forget), ("keep", job.keep)):
        for modality in MODALITIES:
            if modality not in job.modalities:
                found.append(None)
                continue
            samples = kept_of(job, modality) if name == "keep" else forms[modality]
            path = None
            if job.directory is not None:
                path = job.directory / statistics_file(name, modality, method.signal)
            found.append(
                collect(
                    job.loaded,
                    samples,
                    method,
                    modality=modality,
                    batch_size=method.batch_size or job.batch_size,
                    gates=gates,
                    fade=method.fade if name == "forget" else None,
                    path=path,
                )
            )
    return tuple(found)


def statistics_file(name: str, modality: Modality, signal: Signal) -> str:
    """Return the name of the file with the statistics of a set ("forget", "keep") in one form."""
    return f"{name}.{modality}.{signal}.safetensors"


def _ranks(removed_in: Mapping[str, np.ndarray], at_removal: Mapping[str, np.ndarray]) -> Neurons:
    """Return scores whose order is: by the round of removal, and in a round by its scores.

    The values are ranks in (0, 1], 1 for the neuron that goes first.
    """
    towers = sorted(removed_in)
    rounds, values = (
        np.concatenate([found[tower].ravel() for tower in towers])
        for found in (removed_in, at_removal)
    )
    ranks = np.empty(values.size)
    ranks[np.lexsort((-values, rounds))] = 1 - np.arange(values.size) / values.size
    ends = np.cumsum([removed_in[tower].size for tower in towers])[:-1]
    return {
        tower: part.reshape(removed_in[tower].shape).astype(np.float32)
        for tower, part in zip(towers, np.split(ranks, ends), strict=True)
    }

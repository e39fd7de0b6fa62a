"""From facts to one score per neuron: every kind of preset behind one function.

`scores_for` is what a run calls. A score is high where a neuron is to be removed; a mask is made
of scores by `selection.select`.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manu_jax.arrays import read_arrays, write_arrays
from manu_jax.config import Preset
from manu_jax.importance.collect import collect
from manu_jax.importance.functions import contrast
from manu_jax.importance.learned import learn_gates
from manu_jax.parallel import gather, is_first_process
from manu_jax.selection import select
from manu_jax.types import MODALITIES, ManuError, Neurons, Sample

logger = logging.getLogger(__name__)

FORMAT = "scores"
Forms = Mapping[str, Sequence[Sample]]  # modality → the samples of a set in that form


def scores_for(
    loaded: Any,
    preset: Preset,
    forget: Forms,
    keep: Forms,
    *,
    batch_size: int = 32,
    seed: int = 0,
    directory: str | os.PathLike | None = None,
) -> Neurons:
    """Return one score per neuron, as the preset finds them: {tower: [L, F] float32}.

    forget, keep: {"image": samples, "text": samples} of what is to go and what is to stay. seed: of
    every draw. directory: where statistics are kept, so that a killed run goes on from there.
    ManuError where a set has no samples in a form, or a number is not finite.
    """
    empty = [
        f"{name}, {modality} form"
        for name, forms in (("forget", forget), ("retain", keep))
        for modality in MODALITIES
        if not forms.get(modality)
    ]
    if empty:
        raise ManuError(f"no samples to score with: {'; '.join(empty)}. Check the data's sets.")
    return SCORERS[preset.kind](loaded, preset, forget, keep, batch_size, seed, directory)


def save_scores(
    path: str | os.PathLike, scores: Neurons, made_from: Mapping[str, Any] | None = None
) -> None:
    """Write scores and what they were made from; every process calls it, the first writes."""
    arrays = {key: np.asarray(values, np.float32) for key, values in gather(dict(scores)).items()}
    if is_first_process():
        metadata = {"made_from": json.dumps(dict(made_from or {}), sort_keys=True)}
        write_arrays(path, FORMAT, arrays, metadata)


def load_scores(path: str | os.PathLike) -> tuple[Neurons, dict[str, Any]]:
    """Return scores and what they were made from; ManuError where the file is damaged."""
    arrays, metadata = read_arrays(path, FORMAT)
    return dict(arrays), json.loads(metadata["made_from"])


def _by_statistics(loaded, preset, forget, keep, batch_size, seed, directory) -> Neurons:
    """Score by statistics of the four samples; with rounds, again after each part is removed."""
    if preset.rounds == 1:
        return _one_round(loaded, preset, forget, keep, batch_size, seed, directory, None)
    removed: Neurons = {}
    removed_in: dict[str, np.ndarray] = {}  # round, from 0; preset.rounds where never
    at_removal: dict[str, np.ndarray] = {}  # score in that round; the last score where never
    for number in range(preset.rounds):
        gates = {tower: 1 - mask_LF.astype(np.float32) for tower, mask_LF in removed.items()}
        folder = None if directory is None else Path(directory) / f"round_{number:02d}"
        scores = _one_round(
            loaded, preset, forget, keep, batch_size, seed + number, folder, gates or None
        )
        if not removed:
            removed = {tower: np.zeros(np.shape(scores[tower]), bool) for tower in scores}
            removed_in = {tower: np.full(np.shape(scores[tower]), number) for tower in scores}
            at_removal = {tower: np.zeros(np.shape(scores[tower])) for tower in scores}
        for tower, was_removed_LF in removed.items():
            removed_in[tower] += ~was_removed_LF & (number > 0)
            at_removal[tower] = np.where(was_removed_LF, at_removal[tower], scores[tower])
            scores[tower] = np.where(was_removed_LF, np.inf, scores[tower])
        share = preset.alpha * (number + 1) / preset.rounds
        removed = select(scores, share, preset.scope, _ranges(preset))
    for tower, was_removed_LF in removed.items():
        removed_in[tower] += ~was_removed_LF
    return _ranks(removed_in, at_removal)


def _one_round(loaded, preset, forget, keep, batch_size, seed, directory, gates) -> Neurons:
    batch_size = preset.batch_size or batch_size
    found = []
    for name, forms in (("forget", forget), ("retain", keep)):
        for modality in MODALITIES:
            samples = forms[modality]
            if name == "retain" and preset.keep_per_forget is not None:
                number = round(preset.keep_per_forget * len(forget[modality]))
                samples = _draw(samples, max(number, 1), seed)
            path = None
            if directory is not None:
                path = Path(directory) / f"{name}.{modality}.{preset.signal}.safetensors"
            found.append(
                collect(
                    loaded,
                    samples,
                    preset,
                    modality=modality,
                    batch_size=batch_size,
                    gates=gates,
                    fade=preset.fade if name == "forget" else None,
                    path=path,
                )
            )
    return contrast(*found, preset=preset)


def _by_learning(loaded, preset, forget, keep, batch_size, seed, directory) -> Neurons:
    del batch_size, directory  # it has sizes of its own, and is repeated whole
    return learn_gates(loaded, preset, forget, keep, seed=seed)


def _at_random(loaded, preset, forget, keep, batch_size, seed, directory) -> Neurons:
    del forget, keep, batch_size, directory
    towers = preset.scored_towers(loaded.towers)
    return {
        tower: np.random.default_rng([seed, number]).random(loaded.towers[tower], np.float32)
        for number, tower in enumerate(towers)
    }


SCORERS: dict[str, Callable[..., Neurons]] = {
    "statistics": _by_statistics,
    "learned": _by_learning,
    "random": _at_random,
}


def _draw(samples: Sequence[Sample], number: int, seed: int) -> list[Sample]:
    """Return `number` of the samples (all, where there are fewer), shuffled by the seed."""
    order = np.random.default_rng(seed).permutation(len(samples))
    return [samples[i] for i in order[:number]]


def _ranges(preset: Preset) -> dict[str, tuple[int, int | None]]:
    return {tower: (layers.first, layers.end) for tower, layers in preset.layers.items()}


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

"""Neurons that stay because kept facts need them: what a removal costs is measured, not estimated.

A few neurons of a pretrained decoder, most of them in its first layers, write the largest values of
its residual stream: without one of them it says nothing right. A first-order attribution does not
see that, and statistics do not tell it apart from any other large value.

Before a round removes its neurons, what is to be kept is asked without them: facts in each form
and, apart, the method's general texts. Where that costs one of these more than `spare`, it is asked
without one half of the neurons and without the other, and so on down to single ones: those that
cost more alone are spared, and the next in line are measured in their place. A group that costs no
more is not divided, so one neuron that others make up for is not found. k neurons among n take
about 2 k log₂ n passes.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax import faults, parallel
from manu_jax.arrays import check_arrays, made_from, read_arrays, write_arrays
from manu_jax.config import StatisticsMethod
from manu_jax.data.batches import Batches, batches_of, encode_all
from manu_jax.fingerprint import neurons_hash, samples_hash
from manu_jax.importance.job import ScoringJob
from manu_jax.importance.kept import draw, kept_of
from manu_jax.importance.texts import is_text
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.answers import answer_mean_log_likelihood, logits_at_answers
from manu_jax.progress import Progress
from manu_jax.selection import select
from manu_jax.types import Batch, ManuError, Neurons, Sample

logger = logging.getLogger(__name__)

MOST = 64  # kept facts that are asked in each form, and texts
FORMAT, FILE = "spared", "spared.safetensors"


def spared_of(
    job: ScoringJob[StatisticsMethod],
    scores: Neurons,
    share: float,
    *,
    gates: Neurons,
    spared: Neurons,
) -> Neurons:
    """Return the neurons that stay, those of earlier rounds among them: {tower: [L, F] bool}.

    scores: of a round, ∞ where a neuron is removed already. share: of the neurons that are removed
    after the round. gates: 1 − mask of those removed before, [L, F] each. spared: in earlier
    rounds. They are read from the job's directory where they stand there. ManuError where kept
    facts are not finite as it is.
    """
    method = job.method
    kept = _groups_to_keep(job)
    path = None if job.directory is None else job.directory / FILE
    made = {
        "spare": method.spare,
        "share": share,
        "scope": method.scope,
        "layers": {name: layers.model_dump() for name, layers in method.layers.items()},
        "neurons": neurons_hash(scores, spared),
        "samples": {name: samples_hash(samples) for name, samples in kept.items()},
    }
    if path is not None and parallel.exists(path):
        arrays, metadata = read_arrays(path, FORMAT)
        check_arrays(arrays, f"spared neurons {path}", dtype="bool", num_axes=2)
        is_same = made_from(metadata, f"spared neurons {path}") == json.loads(json.dumps(made))
        if parallel.broadcast(is_same):
            return dict(arrays)
    assert method.spare is not None
    removal = _Removal.of(job, kept, gates)
    spared = dict(spared)
    seen = {tower: gates[tower] == 0 for tower in scores}
    while True:
        chosen = select(without(scores, spared), share, method.scope, layers=method.layers)
        new = {tower: mask & ~seen[tower] for tower, mask in chosen.items()}
        if not any(mask.any() for mask in new.values()):
            break
        costly = removal.costly(new, method.spare)
        seen = {tower: seen[tower] | new[tower] for tower in seen}
        spared = {tower: spared[tower] | costly[tower] for tower in spared}
    for tower, mask in spared.items():
        places = ", ".join(f"{layer}.{neuron}" for layer, neuron in np.argwhere(mask)[:8])
        if places:
            logger.info(
                "scores: %s spares %d of tower %s: %s", method.name, mask.sum(), tower, places
            )
    if path is not None:
        arrays = {tower: np.asarray(mask) for tower, mask in spared.items()}
        metadata = {"made_from": json.dumps(made)}
        write = functools.partial(write_arrays, path, FORMAT, arrays, metadata=metadata)
        parallel.on_first_process(write)
    return spared


def _groups_to_keep(job: ScoringJob[StatisticsMethod]) -> dict[str, list[Sample]]:
    """Return what is asked: kept facts in each form and, apart from them, general texts.

    The mean over facts and texts together would hide what either loses.
    """
    found: dict[str, list[Sample]] = {}
    for modality in job.modalities:
        facts = [one for one in job.keep[modality] if not is_text(one)]
        alone = dataclasses.replace(job, keep={**job.keep, modality: facts})
        found[modality] = draw(kept_of(alone, modality), MOST, job.seed)
    texts = [one for one in job.keep.get("text", ()) if is_text(one)]
    found["texts"] = draw(texts, MOST, job.seed)
    return {name: samples for name, samples in found.items() if samples}


def without(scores: Neurons, spared: Neurons) -> Neurons:
    """Return the scores with −∞ where a neuron is spared, so that it is chosen last."""
    return {
        tower: np.where(spared[tower], -np.inf, values) if tower in spared else values
        for tower, values in scores.items()
    }


@dataclasses.dataclass(frozen=True)
class _Removal:
    """What is to be kept, in batches of each group, and its likelihood in the model as it is.

    gates: of the model as it is, [L, F] each. before: mean log p per token in each group.
    """

    loaded: Loaded
    batches: dict[str, Batches]
    counts: dict[str, int]
    gates: Neurons
    before: np.ndarray

    @classmethod
    def of(
        cls, job: ScoringJob[Any], kept: Mapping[str, Sequence[Sample]], gates: Neurons
    ) -> "_Removal":
        loaded = job.loaded
        size = parallel.filled(job.method.batch_size or job.batch_size, loaded.mesh)
        rows = parallel.batch_rows(loaded.mesh, size)
        batches = {
            name: batches_of(loaded, encode_all(loaded, samples), size, rows=rows)
            for name, samples in kept.items()
        }
        counts = {name: len(samples) for name, samples in kept.items()}
        found = cls(loaded, batches, counts, gates, np.zeros(len(kept)))
        before = found._asked([np.array([], np.int64)])[0]
        if not np.isfinite(before).all():
            raise ManuError(
                f"{loaded.path or 'the model'}: kept facts have no finite likelihood (NaN or "
                "infinity). Are its weights whole? With float16 weights, try model.dtype: float32."
            )
        return dataclasses.replace(found, before=before)

    def costly(self, chosen: Neurons, bound: float) -> Neurons:
        """Return those of the chosen neurons that cost more than `bound` alone, by halving."""
        found: list[int] = []
        groups = [np.flatnonzero(np.concatenate([chosen[t].ravel() for t in sorted(self.gates)]))]
        while groups:
            # What is NaN without a group of neurons is lost.
            costs = np.nan_to_num(self.before - self._asked(groups), nan=np.inf).max(axis=1)
            over = [group for group, cost in zip(groups, costs, strict=True) if cost > bound]
            found += [int(group[0]) for group in over if len(group) == 1]
            groups = [half for group in over if len(group) > 1 for half in np.array_split(group, 2)]
        return self._masks(np.asarray(found, np.int64))

    def _asked(self, groups: Sequence[np.ndarray]) -> np.ndarray:
        """Return the mean log p per token of what is kept without each group of neurons.

        [groups of neurons, groups of what is kept].
        """
        sums: list[list[jax.Array]] = [[] for _ in groups]
        num_batches = sum(len(batches) for batches in self.batches.values())
        title = f"what {len(groups)} groups of neurons are worth"
        with parallel.on_mesh(self.loaded.mesh), Progress(title, num_batches) as progress:
            for place, batches in enumerate(self.batches.values()):
                for index in range(len(batches)):
                    batch = parallel.put_batch(batches.batch_at(index), self.loaded.mesh)
                    for number, group in enumerate(groups):
                        value = log_likelihood_sum(self.loaded.model, batch, self._gates(group))
                        if index == 0:
                            sums[number].append(value)
                        else:
                            sums[number][place] += value
                    faults.stop_if_due()
                    progress.advance()
        return np.asarray(parallel.gather(sums), np.float64) / np.asarray([*self.counts.values()])

    def _gates(self, group: np.ndarray) -> Neurons:
        """Return the gates of the model without a group as well, on the mesh."""
        gates = {
            tower: np.where(mask, np.float32(0), self.gates[tower])
            for tower, mask in self._masks(group).items()
        }
        return parallel.put_replicated(gates, self.loaded.mesh)

    def _masks(self, places: np.ndarray) -> Neurons:
        """Return the mask of places in all towers laid out one after the other."""
        towers = sorted(self.gates)
        flat = np.zeros(sum(self.gates[tower].size for tower in towers), bool)
        flat[places] = True
        ends = np.cumsum([self.gates[tower].size for tower in towers])[:-1]
        parts = zip(towers, np.split(flat, ends), strict=True)
        return {tower: part.reshape(self.gates[tower].shape) for tower, part in parts}


@jax.jit
def log_likelihood_sum(model: Any, batch: Batch, gates: Neurons) -> jax.Array:
    """Return the sum over a batch's examples of the answers' mean log p per token. Scalar float32.

    gates: factors of the neurons, [L, F] each.
    """
    found = logits_at_answers(model, batch, gates=gates, remat="none")
    return (answer_mean_log_likelihood(*found) * jnp.asarray(batch.example_weights_B)).sum()

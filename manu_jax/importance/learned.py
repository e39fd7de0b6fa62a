"""Gates that are learned: the model stays as it is, one factor per neuron is trained.

Facts to forget, in both forms, are pushed until the log-odds of their answers are below a margin;
facts to keep are held above another. In the forward pass exactly the top α of neurons is closed, as
it will be after folding; the gradient passes through this choice to the logits behind it (the
straight-through estimator), so each step asks of every neuron, open or closed, what the other state
would bring. Only gates have gradients: a step costs little more than a forward and a backward pass
over activations.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from manu_jax import faults, parallel, stores
from manu_jax.checkpoint import resume, save_step
from manu_jax.config import LearnedMethod
from manu_jax.data.batches import Batches, encode_all
from manu_jax.fingerprint import samples_hash, weights_hash
from manu_jax.importance.gradients import ATTRIBUTION_OBJECTIVES
from manu_jax.importance.job import ScoringJob
from manu_jax.models.nn.answers import logits_at_answers
from manu_jax.models.nn.layers import Remat
from manu_jax.progress import Progress
from manu_jax.selection import count, eligible_layers
from manu_jax.types import Batch, BatchShape, Modality, Neurons

LENGTH_MULTIPLE = 8  # tokens
NOTE_EVERY = 20  # steps
SAVE_EVERY = 50  # steps
FORGET, KEEP = 1.0, 2.0  # marks in a batch's example weights


@dataclasses.dataclass(frozen=True)
class Learning:
    """What a step of learning depends on; static. The fields are those of LearnedMethod."""

    objective: str
    layers: tuple[tuple[str, tuple[int, ...]], ...]  # of each tower, those that may lose neurons
    num_closed: int
    steps: int
    learning_rate: float
    forget_margin: float
    keep_margin: float
    text_weight: float
    price: float
    remat: Remat

    @classmethod
    def of(cls, method: LearnedMethod, scores: Neurons, remat: Remat | None = None) -> "Learning":
        """Return what the steps of a method depend on; scores: zeros of the scored towers."""
        eligible = eligible_layers(scores, method.layers)
        num_eligible = sum(values[eligible[tower]].size for tower, values in scores.items())
        return cls(
            method.objective,
            tuple((tower, tuple(np.flatnonzero(eligible[tower]).tolist())) for tower in scores),
            count(method.scored_alpha, num_eligible),
            method.steps,
            method.learning_rate,
            method.forget_margin,
            method.keep_margin,
            method.text_weight,
            method.price,
            remat or method.remat,
        )

    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(self.learning_rate, self.steps, 0.1))


def learn_gates(job: ScoringJob[LearnedMethod]) -> Neurons:
    """Return scores, high where a gate is to be closed: {tower: [L, F] float32}.

    The method's α is the share of gates that are closed while they are learned. The same seed gives
    the same scores. Steps have batch sizes of their own. A killed job goes on from the newest
    checkpoint in its directory, to the same bits; without a directory it starts over.
    """
    loaded, method = job.loaded, job.method
    towers = method.scored_towers(loaded.towers)
    scores: Neurons = {tower: np.zeros(loaded.towers[tower], np.float32) for tower in towers}
    learning = Learning.of(method, scores)
    streams = {modality: _Stream(job, modality) for modality in job.modalities}
    directory, note = _checkpoints(job), ""
    with parallel.on_mesh(loaded.mesh):
        scores = parallel.put_replicated(scores, loaded.mesh)
        state = parallel.put_replicated(learning.optimizer().init(scores), loaded.mesh)
        first = 0
        if directory is not None:
            (scores, state), first = resume(directory, (scores, state))
    progress = Progress("learning gates", method.steps, done=first)
    with parallel.on_mesh(loaded.mesh), progress:
        for step in range(first, method.steps):
            batches = {
                modality: parallel.put_batch(stream.batch_at(step), loaded.mesh)
                for modality, stream in streams.items()
            }
            scores, state, losses = _step(
                scores, state, loaded.model, batches, np.int32(step), learning=learning
            )
            if step % NOTE_EVERY == 0:  # reading a loss waits for the step
                note = ", ".join(f"{name} {float(loss):.3f}" for name, loss in losses.items())
            progress.advance(note=note)
            is_due = faults.stop_is_due()
            if (is_due or (step + 1) % SAVE_EVERY == 0) and step + 1 < method.steps:
                if directory is not None:
                    save_step(directory, step + 1, (scores, state))
                faults.stop_if_due()
    if directory is not None:
        parallel.on_first_process(functools.partial(stores.remove_folder, directory))
    return parallel.gather(scores)


def _checkpoints(job: ScoringJob[LearnedMethod]) -> Path | None:
    """Return the folder of a job's checkpoints, which no other job has; None: they are nowhere."""
    if job.directory is None:
        return None
    made_from = {
        "method": job.method.model_dump(mode="json"),
        "seed": job.seed,
        "model": weights_hash(job.loaded.model),
        "samples": {
            form: [samples_hash(forms[form]) for forms in (job.forget, job.keep)]
            for form in job.modalities
        },
    }
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return job.directory / f"gates-{digest[:12]}"


@functools.partial(jax.jit, static_argnames="learning", donate_argnums=(0, 1))
def _step(
    scores: Neurons,
    state: optax.OptState,
    model: Any,
    batches: Mapping[str, Batch],
    step: jax.Array,
    *,
    learning: Learning,
) -> tuple[Neurons, optax.OptState, dict[str, jax.Array]]:
    """Return scores and optimizer state after one step, and the losses of forget and keep."""
    # From none to all of them over the first half, so that the model is never broken at once.
    share_closed = jnp.minimum(1.0, (step + 1) / (0.5 * learning.steps))

    def total(scores: Neurons) -> tuple[jax.Array, dict[str, jax.Array]]:
        gates = _gates(scores, learning, share_closed)
        losses = {"forget": jnp.zeros(()), "keep": jnp.zeros(())}
        for modality, batch in batches.items():
            found = logits_at_answers(model, batch, gates=gates, remat=learning.remat)
            values_B = ATTRIBUTION_OBJECTIVES[learning.objective](*found)
            is_forget_B = batch.example_weights_B == FORGET
            is_keep_B = batch.example_weights_B == KEEP
            text_weight = learning.text_weight if modality == "text" else 1.0
            losses["forget"] += text_weight * _mean(
                jax.nn.relu(values_B + learning.forget_margin), is_forget_B
            )
            losses["keep"] += _mean(jax.nn.relu(learning.keep_margin - values_B), is_keep_B)
        # The number of closed gates is given; the price lets scores sink that nothing holds up.
        closed = sum(jnp.sum(1 - gate_LF) for gate_LF in gates.values())
        return losses["forget"] + losses["keep"] + learning.price * closed, losses

    gradients, losses = jax.grad(total, has_aux=True)(scores)
    updates, state = learning.optimizer().update(gradients, state)
    return cast(Neurons, optax.apply_updates(scores, updates)), state, losses


def _mean(values_B: jax.Array, is_chosen_B: jax.Array) -> jax.Array:
    return jnp.sum(values_B, where=is_chosen_B) / jnp.maximum(jnp.sum(is_chosen_B), 1)


def _gates(scores: Neurons, learning: Learning, share_closed: jax.Array) -> Neurons:
    """Return 0 for the highest scores, else 1; the gradient is that of −score."""
    ranked = {
        tower: jnp.full(scores[tower].shape, -jnp.inf)
        .at[np.asarray(layers)]
        .set(scores[tower][np.asarray(layers)])
        for tower, layers in learning.layers
    }
    ordered = jnp.sort(jnp.concatenate([values.ravel() for values in ranked.values()]))
    num_closed = (learning.num_closed * share_closed).astype(jnp.int32)
    threshold = ordered[ordered.size - 1 - num_closed]
    return {
        tower: jax.lax.stop_gradient((ranked[tower] <= threshold) + values) - values
        for tower, values in scores.items()
    }


class _Stream:
    """Batches of one form, forget facts first and kept facts after them, in one shape."""

    def __init__(self, job: ScoringJob[LearnedMethod], modality: Modality):
        loaded, method = job.loaded, job.method
        self._loaded = loaded
        self._encoded = tuple(
            encode_all(loaded, forms[modality]) for forms in (job.forget, job.keep)
        )
        sizes = (method.batch_forget, method.batch_keep)
        self._orders = [
            Batches(loaded, encoded, size, seed=job.seed, max_buckets=1)
            for encoded, size in zip(self._encoded, sizes, strict=True)
        ]
        everything = [item for encoded in self._encoded for item in encoded]
        longest = max(item.num_tokens for item in everything)
        self._length = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        self._num_answers = max(item.num_answers for item in everything)
        self._num_images = max(item.num_images for item in everything) or None
        self._batch_size = parallel.filled(sum(sizes), loaded.mesh)

    def batch_at(self, step: int) -> Batch:
        """Return this process's rows of the batch; its example weights are FORGET, KEEP or 0."""
        chosen, marks = [], []
        for encoded, order, mark in zip(self._encoded, self._orders, (FORGET, KEEP), strict=True):
            indices = order.indices_at(step)
            chosen += [encoded[i] for i in indices]
            marks += [mark] * len(indices)
        batch = self._loaded.collate(
            chosen,
            BatchShape(
                length=self._length,
                batch_size=self._batch_size,
                num_images=self._num_images,
                num_answers=self._num_answers,
            ),
        )
        weights_B = np.zeros(self._batch_size, np.float32)
        weights_B[: len(marks)] = marks
        batch = dataclasses.replace(batch, example_weights_B=weights_B)
        rows = parallel.batch_rows(self._loaded.mesh, self._batch_size)
        if len(rows) == self._batch_size:
            return batch
        return jax.tree.map(lambda x: x[rows], batch)

"""Teach a model that can do something, so that it still can afterwards.

    loss = CE(documents) + w · KL(before ‖ now) on texts that it wrote before

Parts may be frozen or have learning rates of their own. What a training changed in the decoder may
be kept in part (Wortsman et al. 2022, arXiv 2109.01903): W = W₀ + s (W − W₀). It ends as soon as
the facts are known in both forms and the loss on its own texts has not risen by more than a bound:
the mean over texts drawn from the model as it was of log p before − log p now, an estimate of
KL(before ‖ now) per token.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax import parallel
from manu_jax.config import StopSection, TrainSection
from manu_jax.data.batches import Batches, encode_all
from manu_jax.edits.weights import NewWeights, begins
from manu_jax.leaves import leaves, path_name
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.answers import logits_at_answers, token_log_likelihoods
from manu_jax.models.nn.layers import Remat
from manu_jax.training.objectives import cross_entropy_on_answers, mean_of_tokens
from manu_jax.training.replay import Repeated
from manu_jax.training.strangers_target import StrangerTarget, target_kl
from manu_jax.training.trainer import Phase, batches_of, train_loop
from manu_jax.types import Array, Batch, ManuError, Modality, Sample

logger = logging.getLogger(__name__)

DECODER = "text"
ROWS_AT_ONCE = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Taught:
    """One step's documents, own texts with what was said at their tokens, and their weight."""

    documents: Batch
    texts: Batch
    said: StrangerTarget
    weight: Array


@dataclasses.dataclass(frozen=True)
class OwnTexts:
    """What a model wrote before it was taught: texts to repeat, and others to watch it by.

    said: what it said at each token of the first. before: its loss on the others, nats a token; 0
    where there are none.
    """

    repeated: Sequence[Sample] = ()
    said: StrangerTarget | None = None
    watched: Sequence[Sample] = ()
    before: float = 0.0


def cross_entropy_with_replay(model: Any, data: Taught, remat: Remat) -> jax.Array:
    """Return CE(documents) + w · KL(said before ‖ said now), mean over the tokens of own texts.

    In place of CE on the texts: at the beginning it has no gradient, and so adds no noise.
    """
    taught = cross_entropy_on_answers(model, data.documents, remat)
    logits_BAV, targets = logits_at_answers(model, data.texts, remat=remat)
    log_q_BAV = jax.nn.log_softmax(logits_BAV.astype(jnp.float32))
    return taught + data.weight * mean_of_tokens(target_kl(log_q_BAV, data.said), targets)


def check_parts(loaded: Loaded, section: TrainSection) -> None:
    """Raise ManuError where `frozen` or `rates` name parts that the model lacks; no weights."""
    names = leaves(loaded.model)
    parts = {"frozen": section.frozen, "rates": tuple(section.rates)}
    lacking = [
        f"train.{key}: {part!r}"
        for key, known in parts.items()
        for part in known
        if not any(begins(name, part) for name in names)
    ]
    if lacking:
        raise ManuError(
            f"{'; '.join(lacking)}: no leaf of the model begins so; there are {', '.join(names)}."
        )
    if not trained_parts(loaded, section):
        raise ManuError("train.frozen: nothing is left to train.")


def teach(
    loaded: Loaded,
    documents: Sequence[Sample],
    section: TrainSection,
    *,
    texts: OwnTexts,
    facts: Mapping[Modality, Sequence[Sample]],
    num_steps: int,
    directory: Path,
    seed: int,
) -> Loaded:
    """Return `loaded` after at most `num_steps` steps on the documents; see above.

    facts: that have to be known in each form before it ends, where the section has a `stop`.
    directory: of the checkpoints. `loaded` is not changed.
    """
    check_parts(loaded, section)
    batches = batches_of(loaded, documents, section, seed=seed, where="train")
    repeated = None
    if section.replay is not None and texts.said is not None:
        size = section.replay.batch_size
        repeated = Repeated(loaded, texts.repeated, texts.said, batch_size=size, seed=seed + 1)

    def phases_at(step: int) -> list[Phase]:
        batch = parallel.put_batch(batches.batch_at(step), loaded.mesh)
        if repeated is None or section.replay is None:
            return [(cross_entropy_on_answers, batch)]
        weight = np.asarray(section.replay.weight, np.float32)
        return [(cross_entropy_with_replay, Taught(batch, *repeated.at(step), weight))]

    share = 1.0 if section.interpolation is None else section.interpolation
    ends = None
    if section.stop is not None:
        ends = _Watch(loaded, facts, texts, section=section.stop, share=share, name=directory.name)
    edit = train_loop(
        loaded,
        phases_at,
        section,
        num_steps=num_steps,
        seed=seed,
        directory=directory,
        description=f"training {directory.name}",
        where="train",
        edit=NewWeights.of(loaded, trained_parts(loaded, section)),
        ends=ends,
    )
    with parallel.on_mesh(loaded.mesh):
        return loaded.replace_model(_taught_model(edit, loaded.model, share=share))


def text_loss(loaded: Loaded, texts: Sequence[Sample]) -> float:
    """Return the mean loss of a model on texts, nats a token; 0 where there are none."""
    return _text_loss(loaded.model, loaded, _batches(loaded, texts)) if texts else 0.0


def trained_parts(loaded: Loaded, section: TrainSection) -> list[str]:
    """Return the leaves of the model that a section trains: all but its frozen parts."""
    return [
        name
        for name in leaves(loaded.model)
        if not any(begins(name, part) for part in section.frozen)
    ]


class _Watch:
    """Measures a model while it is taught, and says whether that is enough."""

    def __init__(
        self,
        loaded: Loaded,
        facts: Mapping[Modality, Sequence[Sample]],
        texts: OwnTexts,
        *,
        section: StopSection,
        share: float,
        name: str,
    ):
        self._loaded, self._section, self._share, self._name = loaded, section, share, name
        self._facts = {
            modality: _batches(loaded, samples) for modality, samples in facts.items() if samples
        }
        self._texts = _batches(loaded, texts.watched) if texts.watched else None
        self._before = texts.before

    def __call__(self, step: int, edit: NewWeights) -> bool:
        """Return whether the model of this step is known to be enough."""
        if step % self._section.every:
            return False
        with parallel.on_mesh(self._loaded.mesh):
            model = _taught_model(edit, self._loaded.model, share=self._share)
        known = {modality: self._known(model, found) for modality, found in self._facts.items()}
        drift = 0.0
        if self._texts is not None:
            drift = _text_loss(model, self._loaded, self._texts) - self._before
        told = ", ".join(f"{modality} {share:.1%}" for modality, share in known.items())
        logger.info(
            "training %s: after %d steps it knows %s; its own texts cost %+.3f nats a token",
            self._name,
            step,
            told,
            drift,
        )
        return (
            min(known.values(), default=1.0) >= self._section.known and drift <= self._section.drift
        )

    def _known(self, model: Any, batches: Batches) -> float:
        """Return the share of facts of whose answers every token is the first choice."""
        found = [right for _, _, right in _answers_of(model, self._loaded, batches)]
        return float(np.concatenate(found).mean())


def _text_loss(model: Any, loaded: Loaded, batches: Batches) -> float:
    found = [(sums.sum(), counts.sum()) for sums, counts, _ in _answers_of(model, loaded, batches)]
    total, count = np.sum(found, axis=0)
    return float(-total / count)


def _answers_of(
    model: Any, loaded: Loaded, batches: Batches
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield what `_answered` gives of each batch, without its padding rows."""
    for step in range(len(batches)):
        batch = parallel.put_batch(batches.batch_at(step), loaded.mesh)
        with parallel.on_mesh(loaded.mesh):
            sums, counts, right = parallel.gather(_answered(model, batch))
        num_rows = len(batches.indices_at(step))
        yield sums[:num_rows], counts[:num_rows], right[:num_rows]


def _batches(loaded: Loaded, samples: Sequence[Sample]) -> Batches:
    size = parallel.filled(ROWS_AT_ONCE, loaded.mesh)
    return Batches(
        loaded,
        encode_all(loaded, samples),
        size,
        multiple=8,
        max_buckets=1,
        rows=parallel.batch_rows(loaded.mesh, size),
    )


@jax.jit
def _answered(model: Any, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return Σ log p over the answers' tokens, their number, and whether all are first choices."""
    logits_BAV, targets = logits_at_answers(model, batch, remat="none")
    log_p_BA, weights_BA = token_log_likelihoods(logits_BAV, targets)
    is_first_BA = jnp.argmax(logits_BAV, axis=-1) == targets.token_ids_BT
    right_B = (is_first_BA | (weights_BA == 0)).all(axis=1)
    return (log_p_BA * weights_BA).sum(axis=1), weights_BA.sum(axis=1), right_B


@functools.partial(jax.jit, static_argnames="share")
def _taught_model(edit: NewWeights, base: Any, *, share: float) -> Any:
    """Return the model with the new weights; of the decoder's change, the share that is kept."""
    new = edit.edited(base)
    if share == 1:
        return new

    def kept(path: Any, before: jax.Array, after: jax.Array) -> jax.Array:
        if not begins(path_name(path), DECODER):
            return after
        wide = before.astype(jnp.float32)
        return (wide + share * (after.astype(jnp.float32) - wide)).astype(before.dtype)

    return jax.tree_util.tree_map_with_path(kept, base, new)

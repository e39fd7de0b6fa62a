"""What a model said at each token of its own texts before it was taught, repeated while it is.

The texts are those of importance/own_texts.py.
"""

import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax import faults, parallel
from manu_jax.data.batches import Batches, encode_all
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.answers import logits_at_answers
from manu_jax.progress import Progress
from manu_jax.training.strangers_target import StrangerTarget
from manu_jax.types import Batch, Sample

logger = logging.getLogger(__name__)

REPLAY = "replay.jsonl"  # in the run's folder
ROWS_MEASURED = 16
MOST_TOKENS = 64  # of a distribution; the rest of its mass is one number


def said_at(loaded: Loaded, texts: Sequence[Sample]) -> StrangerTarget:
    """Return what the model says at each token of its texts, N examples in order; as NumPy."""
    batches = _batches(loaded, texts, ROWS_MEASURED)
    rows: list[StrangerTarget] = []
    with parallel.on_mesh(loaded.mesh), Progress("what it says", len(texts)) as progress:
        for step in range(len(batches)):
            batch = parallel.put_batch(batches.batch_at(step), loaded.mesh)
            said, count = parallel.gather(_said(loaded.model, batch)), len(batches.indices_at(step))
            rows.append(jax.tree.map(lambda values, count=count: values[:count], said))
            progress.advance(count)
            faults.stop_if_due()
    return jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


class Repeated:
    """Batches of own texts, and what was said at their tokens, by number."""

    def __init__(
        self,
        loaded: Loaded,
        texts: Sequence[Sample],
        said: StrangerTarget,
        *,
        batch_size: int,
        seed: int,
    ):
        self._said, self._mesh = said, loaded.mesh
        self._filled = parallel.filled(batch_size, loaded.mesh)
        self._batches = _batches(loaded, texts, batch_size, seed=seed)

    def at(self, step: int) -> tuple[Batch, StrangerTarget]:
        """Return the batch of a step and what was said at its answer tokens, on the devices."""
        batch = self._batches.batch_at(step)
        assert batch.answer_index_BA is not None
        indices = self._batches.indices_at(step)
        rows = np.zeros(self._filled, np.int64)
        rows[: len(indices)] = indices
        mine = rows[parallel.batch_rows(self._mesh, self._filled)]
        said = self._said.rows(mine, batch.answer_index_BA.shape[1])
        return parallel.put_batch(batch, self._mesh), parallel.put_batch(said, self._mesh)


def _batches(
    loaded: Loaded, texts: Sequence[Sample], batch_size: int, *, seed: int | None = None
) -> Batches:
    """Return texts in batches of one shape; rows of weight 0 fill up what the mesh divides."""
    filled = parallel.filled(batch_size, loaded.mesh)
    return Batches(
        loaded,
        encode_all(loaded, texts),
        batch_size,
        seed=seed,
        multiple=16,
        max_buckets=1,
        rows=parallel.batch_rows(loaded.mesh, filled),
    )


@jax.jit
def _said(model: Any, batch: Batch) -> StrangerTarget:
    logits_BAV, targets = logits_at_answers(model, batch, remat="none")
    p_BAV = jax.nn.softmax(logits_BAV.astype(jnp.float32))
    true_BA = jnp.take_along_axis(p_BAV, targets.token_ids_BT[..., None], axis=-1)[..., 0]
    p_BAK, ids_BAK = jax.lax.top_k(p_BAV, min(MOST_TOKENS, p_BAV.shape[-1]))
    return StrangerTarget(ids_BAK.astype(jnp.int32), p_BAK, true_BA)

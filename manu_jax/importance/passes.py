"""One pass of forward steps over samples, on any mesh."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp

from manu_jax import faults, parallel
from manu_jax.data.batches import batches_of, encode_all
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.answers import targets_of
from manu_jax.progress import Progress
from manu_jax.types import Batch, Sample

Total = TypeVar("Total")


def run_over(
    loaded: Loaded,
    samples: Sequence[Sample],
    step: Callable[[Total, Batch], Total],
    *,
    start: Total,
    batch_size: int,
    title: str,
    seed: int | None = None,
) -> Total:
    """Return what `step` makes of `start` over all batches of the samples, each of them once.

    batch_size: samples a step; on a mesh rows of weight 0 fill up the batch. seed: of the order;
    None: as given. title: of the progress that is shown.
    """
    rows = parallel.batch_rows(loaded.mesh, parallel.filled(batch_size, loaded.mesh))
    batches = batches_of(loaded, encode_all(loaded, samples), batch_size, seed=seed, rows=rows)
    total = start
    with parallel.on_mesh(loaded.mesh), Progress(title, len(batches)) as progress:
        for index in range(len(batches)):
            total = step(total, parallel.put_batch(batches.batch_at(index), loaded.mesh))
            progress.advance()
            faults.stop_if_due()
    return total


def weights_at_answers(batch: Batch) -> jax.Array:
    """Return 1 where a position of `answer_index_BA` predicts an answer's token, else 0. [B, A]."""
    weights_BT = targets_of(batch).weights_BT * jnp.asarray(batch.example_weights_B)[:, None]
    weights_BA = jnp.take_along_axis(weights_BT, jnp.asarray(batch.answer_index_BA), axis=1)
    return (weights_BA > 0).astype(jnp.float32)

"""Run samples through a compiled step: batches of few shapes, any mesh, results on the host."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np

from manu_jax import faults, parallel
from manu_jax.data.batches import Batches
from manu_jax.models.loaded import Loaded
from manu_jax.progress import Progress
from manu_jax.training.features import ImageFeatures
from manu_jax.types import Encoded, Encoder, Images, ManuError

MAX_BUCKETS = 2  # lengths a step is compiled for, with images and without
MULTIPLE = 8  # of tokens; lengths are few as it is, so padding can be tight


def run_batched(
    loaded: Loaded,
    encoded: Sequence[Encoded],
    step: Callable[..., Any],
    *,
    batch_size: int,
    description: str,
    beside: np.ndarray | None = None,
    padding_side: Literal["left", "right"] = "right",
    features_once: bool = False,
    features: Callable[[Any, Images], jax.Array] | None = None,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yield (indices of the samples, what `step(model, batch)` gave for them as NumPy).

    step: gives a pytree of arrays whose first axis is the batch's; its padding rows are cut off.
    beside: a row for each sample, which `step` gets as a third argument; 0 in padding rows.
    batch_size: rounded up to a multiple of the mesh's data and fsdp axes. The next batch is made
    while the device works on the last. features_once: give `step` the features of images in place
    of their patches, each image's computed once; for steps that run no other model. features: what
    gives them, (model, images) → [B, I, P, E]; None: the model's own.
    """
    if not encoded:
        return
    multiple = parallel.batch_multiple(loaded.mesh)
    batch_size = -(-batch_size // multiple) * multiple
    rows = parallel.batch_rows(loaded.mesh, batch_size)
    batches = batches_of(loaded, encoded, batch_size, padding_side=padding_side, rows=rows)
    stored = ImageFeatures(loaded, encoded, batches, compute=features) if features_once else None
    waiting: tuple[np.ndarray, Any] | None = None
    with Progress(description, len(encoded)) as progress:
        for number in range(len(batches) + 1):
            started = None
            if number < len(batches):
                batch = batches.batch_at(number)
                if stored is not None and batch.images is not None:
                    batch = stored.in_place_of_patches(batch, number, rows)
                indices = batches.indices_at(number)
                given: list[Any] = [batch]
                if beside is not None:
                    filled = np.zeros((batch_size, *beside.shape[1:]), beside.dtype)
                    filled[: len(indices)] = beside[indices]
                    given.append(filled[rows])
                given = parallel.put_batch(given, loaded.mesh)
                with parallel.on_mesh(loaded.mesh):
                    started = indices, step(loaded.model, *given)
            if waiting is not None:
                indices, outputs = waiting
                yield indices, _first_rows(parallel.gather(outputs), len(indices))
                progress.advance(len(indices))
            faults.stop_if_due()
            waiting = started


def batches_of(
    encoder: Encoder, encoded: Sequence[Encoded], batch_size: int, **settings: Any
) -> Batches:
    """Return the samples in batches of few shapes; settings as in `Batches`."""
    return Batches(
        encoder,
        encoded,
        batch_size,
        multiple=MULTIPLE,
        max_buckets=MAX_BUCKETS,
        counts_filling=True,
        **settings,
    )


class NotFinite(ManuError):
    """A model answers with NaN or infinity."""


def not_finite(loaded: Loaded) -> NotFinite:
    """Return the error of a model that answers with NaN or infinity."""
    return NotFinite(
        f"{loaded.path or 'the model'}: its outputs are not finite (NaN or infinity). Are its "
        "weights whole? With float16 weights, try model.dtype: float32."
    )


def _first_rows(tree: Any, count: int) -> Any:
    return jax.tree.map(lambda values: values[:count], tree)

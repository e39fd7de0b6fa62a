"""Run samples through a compiled step: batches of few shapes, any mesh, results on the host."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np

from manu_jax import faults, parallel
from manu_jax.data.batches import batches_of
from manu_jax.models.loaded import Loaded
from manu_jax.progress import Progress
from manu_jax.training.features import ImageFeatures
from manu_jax.types import BatchShape, Encoded, Images, ManuError

# (numbers of samples, sizes of their batch) → rows, a tree of NumPy arrays
Beside = Callable[[np.ndarray, BatchShape], Any]


class Feed:
    """Encoded samples in batches of few shapes, each placed on the mesh when it is asked for.

    beside: gives what follows a batch, a tree of rows of these samples; in padding rows the first
    ones stand again. batch_size: rounded up to a multiple of the mesh's data and fsdp axes.
    features_once: the features of images stand in place of their patches, each image's computed
    once; for steps that run no other model. features: what gives them, (model, images) →
    [B, I, P, E]; None: the model's own.
    """

    def __init__(
        self,
        loaded: Loaded,
        encoded: Sequence[Encoded],
        *,
        batch_size: int,
        beside: Beside | None = None,
        padding_side: Literal["left", "right"] = "right",
        features_once: bool = False,
        features: Callable[[Any, Images], jax.Array] | None = None,
    ):
        self._loaded, self._beside = loaded, beside
        self.batch_size = parallel.filled(batch_size, loaded.mesh)
        self._rows = parallel.batch_rows(loaded.mesh, self.batch_size)
        self.batches = batches_of(
            loaded, encoded, self.batch_size, padding_side=padding_side, rows=self._rows
        )
        self._stored = None
        if features_once:
            self._stored = ImageFeatures(loaded, encoded, self.batches, compute=features)

    def __len__(self) -> int:
        return len(self.batches)

    def at(self, number: int) -> tuple[np.ndarray, list[Any]]:
        """Return the indices of a batch's samples, and on the mesh the batch and what follows it.

        To be asked for in order: what one batch computes of images serves those after it.
        """
        batch = self.batches.batch_at(number)
        if self._stored is not None and batch.images is not None:
            batch = self._stored.in_place_of_patches(batch, number, self._rows)
        indices = self.batches.indices_at(number)
        given: list[Any] = [batch]
        if self._beside is not None:
            rows = np.resize(indices, self.batch_size)[self._rows]
            given.append(self._beside(rows, self.batches.shape_at(number)))
        return indices, parallel.put_batch(given, self._loaded.mesh)


def run_batched(
    loaded: Loaded,
    encoded: Sequence[Encoded],
    step: Callable[..., Any],
    *,
    description: str,
    **settings: Any,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yield (indices of the samples, what `step(model, batch)` gave for them as NumPy).

    step: gives a pytree of arrays whose first axis is the batch's; its padding rows are cut off.
    With `beside`, it gets these rows as a third argument. settings: as of Feed. The next batch is
    made while the device works on the last.
    """
    if not encoded:
        return
    feed = Feed(loaded, encoded, **settings)
    waiting: tuple[np.ndarray, Any] | None = None
    with Progress(description, len(encoded)) as progress:
        for number in range(len(feed) + 1):
            started = None
            if number < len(feed):
                indices, given = feed.at(number)
                with parallel.on_mesh(loaded.mesh):
                    started = indices, step(loaded.model, *given)
            if waiting is not None:
                indices, outputs = waiting
                yield indices, _first_rows(parallel.gather(outputs), len(indices))
                progress.advance(len(indices))
            faults.stop_if_due()
            waiting = started


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

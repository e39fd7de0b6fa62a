"""Encoded samples to batches of few shapes, in an order that is a pure function of seed and step.

Samples with images and samples without never share a batch, so a text-only batch never runs a
vision tower. Within each kind, lengths are rounded up to one of a few bucket lengths, the batch
size is fixed, and the last batch of a bucket is filled with examples of weight 0. So any data needs
a few compiled steps only.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from manu_jax.fingerprint import image_digests
from manu_jax.types import (
    Batch,
    BatchShape,
    Encoded,
    ManuError,
    Sample,
    raise_faults,
)

ANSWER_MULTIPLE = 4  # tokens
STEPS_AHEAD = 2  # whose images are asked for while one is computed
# Of what is not trained:
MAX_BUCKETS = 8  # lengths a step is compiled for, with images and without
FREE_BUCKETS = 1  # of these; each further one has to be worth its compilation
WORTH = 128  # samples of the longest length, whose tokens it has to save
MULTIPLE = 8  # of tokens; lengths are few as it is, so padding can be tight


class Encoder(Protocol):
    """What data/ needs of a loaded model: text and images to numbers.

    `tokenise_ahead` prepares the texts of samples that come next; it changes no number. digests: of
    images by their identity, as far as they are known, to which `encode` adds; for a caller that
    holds the images of many samples, and hands no image on that changes in between.
    """

    def tokenise_ahead(self, samples: Sequence[Sample]) -> None: ...

    def encode(self, sample: Sample, *, digests: dict[int, bytes] | None = None) -> Encoded: ...

    def collate(self, encoded: Sequence[Encoded], shape: BatchShape | None = None) -> Batch: ...


def encode_all(encoder: Encoder, samples: Sequence[Sample]) -> list[Encoded]:
    """Return the samples as numbers, in order; one ManuError names all that cannot be encoded."""
    encoded, faults = [], []
    encoder.tokenise_ahead(samples)
    # The samples hold their images, which don't change meanwhile; those decoded here can be read.
    images = (image for sample in samples for image in sample.images)
    digests = image_digests(image for image in images if hasattr(image, "decode_again"))
    for sample in samples:
        try:
            encoded.append(encoder.encode(sample, digests=digests))
        except ManuError as error:
            is_named = bool(sample.key) and f" {sample.key}: " in str(error)
            faults.append(str(error) if is_named else f"{sample.key or 'sample'}: {error}")
    head = f"{len(faults)} of {len(samples)} samples cannot be given to the model:"
    raise_faults(list(dict.fromkeys(faults)), head)
    return encoded


def bucket_lengths(
    lengths: Sequence[int],
    multiple: int = 32,
    max_buckets: int = 4,
    *,
    batch_size: int = 1,
    free_buckets: int | None = None,
    worth: int = 0,
) -> tuple[int, ...]:
    """Return at most `max_buckets` lengths, multiples of `multiple`, that pad `lengths` the least.

    Every length fits in one of them; the result is sorted, without duplicates. batch_size: the rows
    that fill up each bucket's last batch count as padding too. worth: each bucket beyond the first
    `free_buckets` (None: all are free) has to save the tokens of so many of the longest samples.
    """
    rounded = [-(-max(length, 1) // multiple) * multiple for length in lengths]
    edges, counts = np.unique(rounded, return_counts=True)
    num_samples = np.concatenate([[0], np.cumsum(counts)])
    price = worth * int(edges[-1])
    # best[j]: (padded tokens, lengths) of the samples up to edge j, in the buckets so far.
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    best += [(float("inf"), ())] * len(edges)
    chosen, least = best[-1][1], float("inf")
    for number in range(min(max_buckets, len(edges))):
        wider = list(best)
        for end in range(1, len(edges) + 1):
            for start in range(end):
                num_rows = -(-(num_samples[end] - num_samples[start]) // batch_size) * batch_size
                tokens = best[start][0] + edges[end - 1] * num_rows
                if tokens < wider[end][0]:
                    wider[end] = (tokens, (*best[start][1], int(edges[end - 1])))
        best = wider
        num_paid = 0 if free_buckets is None else max(number + 1 - free_buckets, 0)
        total = best[-1][0] + price * num_paid
        if total < least:
            chosen, least = best[-1][1], total
    return chosen


def batches_of(
    encoder: Encoder, encoded: Sequence[Encoded], batch_size: int, **settings: Any
) -> "Batches":
    """Return the samples in batches of few shapes, for steps that train nothing.

    settings: as in `Batches`, beside those of `batching`.
    """
    return Batches(encoder, encoded, batch_size, **batching(), **settings)


def batching() -> dict[str, Any]:
    """Return the settings of `Batches` by which lengths are chosen where nothing is trained."""
    return {
        "multiple": MULTIPLE,
        "max_buckets": MAX_BUCKETS,
        "free_buckets": FREE_BUCKETS,
        "worth": WORTH,
        "counts_filling": True,
    }


@dataclasses.dataclass(frozen=True)
class _Bucket:
    shape: BatchShape  # without batch size and side; num_images is None without images
    indices: np.ndarray  # of the samples, as given


class Batches:
    """Batches of encoded samples, by number: `batch_at(step)`, for any number of steps.

    After `len(self)` steps every sample was in one batch, and the next epoch begins. Without a seed
    each epoch has the given order within a bucket, and buckets one after the other. With a seed,
    each epoch shuffles samples within their bucket and then the batches, by (seed, epoch) alone:
    training resumes at any step without a state to restore.

    counts_filling: choose bucket lengths so that rows of weight 0 are few too; where samples are
    few, that means fewer buckets. free_buckets, worth: as of `bucket_lengths`, of samples with
    images and of those without. rows: of each batch, those that this process reads, in order;
    None: all. All processes take the same steps in the same shapes.
    """

    def __init__(
        self,
        encoder: Encoder,
        encoded: Sequence[Encoded],
        batch_size: int,
        *,
        seed: int | None = None,
        multiple: int = 32,
        max_buckets: int = 4,
        padding_side: Literal["left", "right"] = "right",
        counts_filling: bool = False,
        free_buckets: int | None = None,
        worth: int = 0,
        rows: np.ndarray | None = None,
    ):
        if batch_size < 1:
            raise ManuError(f"batch size {batch_size}: expected a positive number.")
        self._encoder, self._encoded = encoder, encoded
        self.batch_size, self._seed = batch_size, seed
        self._padding_side: Literal["left", "right"] = padding_side
        if not encoded:
            raise ManuError(
                "no samples to make batches of: the sets and forms asked for are empty."
            )
        self._rows = np.arange(batch_size) if rows is None else rows
        lengths_of = functools.partial(
            bucket_lengths,
            multiple=multiple,
            max_buckets=max_buckets,
            batch_size=batch_size if counts_filling else 1,
            free_buckets=free_buckets,
            worth=worth,
        )
        self._buckets = _make_buckets(encoded, lengths_of)
        self._plan_epoch: int | None = None
        self._plan: list[tuple[_Bucket, np.ndarray]] = []

    def __len__(self) -> int:
        """Return the number of batches of one epoch."""
        return sum(-(-len(bucket.indices) // self.batch_size) for bucket in self._buckets)

    @property
    def shapes(self) -> tuple[tuple[int, int | None], ...]:
        """The (length, images per example or None) of each bucket: what a step is compiled for."""
        return tuple((b.shape.length or 0, b.shape.num_images) for b in self._buckets)

    def shape_at(self, step: int) -> BatchShape:
        """Return the sizes of the batch of a step, without its rows."""
        return self._at(step)[0].shape

    def has_images_at(self, step: int) -> bool:
        """Return whether the batch of a step is of samples with images."""
        return self._at(step)[0].shape.num_images is not None

    def indices_at(self, step: int) -> np.ndarray:
        """Return which samples the whole batch of a step holds, at most `batch_size`, in order.

        Row b of the (global) batch is sample `indices[b]`; rows from `len(indices)` on are padding.
        """
        return self._at(step)[1]

    def batch_at(self, step: int) -> Batch:
        """Return this process's rows of the batch of a step, as NumPy."""
        bucket, indices = self._at(step)
        mine = self._mine(indices)
        self._ask_ahead(step)
        shape = dataclasses.replace(
            bucket.shape, batch_size=len(self._rows), padding_side=self._padding_side
        )
        batch = self._encoder.collate(
            [self._encoded[i] for i in (mine if len(mine) else indices[:1])], shape
        )
        if len(mine):
            return batch
        # Only other processes have examples in this batch: ours is a stand-in of the right shape.
        return dataclasses.replace(
            batch,
            example_weights_B=np.zeros_like(batch.example_weights_B),
            loss_weights_BT=np.zeros_like(batch.loss_weights_BT),
        )

    def _mine(self, indices: np.ndarray) -> np.ndarray:
        return indices[self._rows[self._rows < len(indices)]]

    def _ask_ahead(self, step: int) -> None:
        """Have images made ready for this step and the next ones of its epoch, where workers do."""
        end = (step // len(self) + 1) * len(self)
        for later in range(step, min(step + 1 + STEPS_AHEAD, end)):
            for index in self._mine(self._at(later)[1]):
                for vision_input in self._encoded[index].vision_inputs:
                    if not isinstance(vision_input.patches_PC, np.ndarray):
                        vision_input.patches_PC.ask()  # of models/inputs/workers.py

    def __iter__(self) -> Iterator[tuple[np.ndarray, Batch]]:
        """Yield (indices, batch) of the first epoch."""
        for step in range(len(self)):
            yield self.indices_at(step), self.batch_at(step)

    def _at(self, step: int) -> tuple[_Bucket, np.ndarray]:
        epoch, position = divmod(step, len(self))
        if self._plan_epoch != epoch:
            self._plan, self._plan_epoch = self._make_plan(epoch), epoch
        return self._plan[position]

    def _make_plan(self, epoch: int) -> list[tuple[_Bucket, np.ndarray]]:
        random = None if self._seed is None else np.random.default_rng([self._seed, epoch])
        plan = []
        for bucket in self._buckets:
            indices = bucket.indices if random is None else random.permutation(bucket.indices)
            for start in range(0, len(indices), self.batch_size):
                plan.append((bucket, indices[start : start + self.batch_size]))
        return plan if random is None else [plan[i] for i in random.permutation(len(plan))]


def _make_buckets(
    encoded: Sequence[Encoded], lengths_of: Callable[[Sequence[int]], tuple[int, ...]]
) -> list[_Bucket]:
    buckets = []
    for has_images in (True, False):
        of_kind = [i for i, item in enumerate(encoded) if (item.num_images > 0) == has_images]
        lengths = [encoded[i].num_tokens for i in of_kind]
        edges = lengths_of(lengths) if of_kind else ()
        for shorter, length in itertools.pairwise((0, *edges)):
            indices = [
                i for i, n in zip(of_kind, lengths, strict=True) if shorter < max(n, 1) <= length
            ]
            num_images = max(encoded[i].num_images for i in indices) if has_images else None
            num_patches = max(encoded[i].num_patches for i in indices)
            most = max(encoded[i].num_answers for i in indices)
            num_answers = -(-most // ANSWER_MULTIPLE) * ANSWER_MULTIPLE
            shape = BatchShape(
                length=length,
                num_images=num_images,
                num_patches=num_patches,
                num_answers=num_answers,
            )
            buckets.append(_Bucket(shape, np.asarray(indices)))
    return buckets

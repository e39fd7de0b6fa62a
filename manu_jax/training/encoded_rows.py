"""Encoded samples, any of which become a batch of one shape, with all that is computed once."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from manu_jax import faults, parallel
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.multimodal import Multimodal
from manu_jax.training.features import AT_ONCE, STORE_BYTES, features_of, with_features
from manu_jax.types import Batch, BatchShape, Encoded, VisionInput

LENGTH_MULTIPLE = 8  # tokens


class EncodedRows:
    """Encoded samples, and others of the same shape; any of them as a batch on the devices.

    first_layer: above 0, a batch holds what enters that layer of the decoder, computed once for
    each sample unless all together would not fit on the host. trains_towers: images stay patches,
    since their features change in training; otherwise features stand in their place where all fit.
    """

    def __init__(
        self,
        loaded: Loaded,
        encoded: Sequence[Encoded],
        others: Sequence[Encoded] = (),
        *,
        first_layer: int,
        trains_towers: bool = False,
    ):
        everything = [*encoded, *others]
        longest = max(item.num_tokens for item in everything)
        self.loaded, self.count = loaded, len(encoded)
        self._encoded, self._others = encoded, others
        self.length = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        self.shape = BatchShape(
            length=self.length,
            num_images=max(item.num_images for item in everything) or None,
            num_patches=max(item.num_patches for item in everything) or None,
            num_answers=max(item.num_answers for item in everything),
            padding_side="left",
        )
        self._features = {} if trains_towers else _all_features(loaded, everything)
        self._first_layer = first_layer
        self._entering: dict[int, np.ndarray] = {}
        bytes_each = self.length * loaded.config.text.width * np.dtype(np.float32).itemsize
        if first_layer and bytes_each * len(everything) <= STORE_BYTES:
            for start in range(0, len(everything), AT_ONCE):
                self._entering |= self._enter(everything[start : start + AT_ONCE])
                faults.stop_if_due()

    def batch(self, indices: np.ndarray, size: int, *, of_others: bool = False) -> Batch:
        """Return these samples as one batch of at least `size` rows."""
        pool = self._others if of_others else self._encoded
        chosen = [pool[index] for index in indices]
        filled = self._filled(size)
        mine = parallel.batch_rows(self.loaded.mesh, filled)
        own = [chosen[row] for row in mine if row < len(chosen)]
        shape = dataclasses.replace(self.shape, batch_size=len(mine))
        batch = self.loaded.collate(own or chosen[:1], shape)
        if not own:
            batch = without_weight(batch)
        batch = self._with_features(batch, own)
        if self._entering:
            one_TD = next(iter(self._entering.values()))
            entering_BTD = np.zeros((len(mine), *one_TD.shape), one_TD.dtype)
            for row, sample in enumerate(own):
                entering_BTD[row] = self._entering[id(sample)]
            batch = dataclasses.replace(batch, entering_BTD=entering_BTD)
        batch = parallel.put_batch(batch, self.loaded.mesh)
        if self._first_layer and not self._entering:
            batch = dataclasses.replace(batch, entering_BTD=self._entering_of(batch))
        return batch

    def _enter(self, samples: Sequence[Encoded]) -> dict[int, np.ndarray]:
        """Return {identity: what enters the first layer [T, D]} of at most AT_ONCE samples."""
        filled = self._filled(AT_ONCE)
        rows = parallel.batch_rows(self.loaded.mesh, filled)
        chosen = [samples[min(row, len(samples) - 1)] for row in rows]
        shape = dataclasses.replace(self.shape, batch_size=len(rows))
        batch = self._with_features(self.loaded.collate(chosen, shape), chosen)
        entering = self._entering_of(parallel.put_batch(batch, self.loaded.mesh))
        found_BTD = parallel.gather(entering)
        return {id(sample): h_TD for sample, h_TD in zip(samples, found_BTD, strict=False)}

    def _with_features(self, batch: Batch, own: Sequence[Encoded]) -> Batch:
        """Return a batch of `own` samples with features in place of patches, where they stand."""
        if not self._features or batch.images is None:
            return batch
        return with_features(self.loaded, batch, own, features=self._features)

    def _entering_of(self, batch: Batch) -> jax.Array:
        with parallel.on_mesh(self.loaded.mesh):
            return _entering(self.loaded.model, batch, first_layer=self._first_layer)

    def mine(self, tree: object) -> object:
        """Return this process's rows of host arrays, filled up as a batch of them is."""
        size = len(jax.tree.leaves(tree)[0])
        filled = self._filled(size)
        rows = parallel.batch_rows(self.loaded.mesh, filled)

        def padded(values: np.ndarray) -> np.ndarray:
            return np.pad(values, [(0, filled - size), *[(0, 0)] * (values.ndim - 1)])[rows]

        return jax.tree.map(padded, tree)

    def differs(self, index: int, place: int) -> np.ndarray:
        """Return 1 where the tokens of a sample and of one of the others tell who is meant. [T].

        That is from its first image on, or from the first token that is not the same; both are
        counted from the end, where the two have the same tokens again.
        """
        own, other = self._encoded[index], self._others[place]
        length = self.length
        images = np.flatnonzero(own.feature_index_T >= 0)
        if len(images):
            start = length - own.num_tokens + images[0]
        else:
            num = min(own.num_tokens, other.num_tokens)
            same = own.token_ids_T[:num] == other.token_ids_T[:num]
            common = num if same.all() else int(np.argmin(same))
            start = length - min(own.num_tokens, other.num_tokens) + common
        return (np.arange(length) >= start).astype(np.float32)

    def _filled(self, size: int) -> int:
        return parallel.filled(size, self.loaded.mesh)


def without_weight(batch: Batch) -> Batch:
    """Return the batch with rows that count for nothing."""
    return dataclasses.replace(
        batch,
        example_weights_B=batch.example_weights_B * 0,
        loss_weights_BT=batch.loss_weights_BT * 0,
    )


@functools.partial(jax.jit, static_argnames="first_layer")
def _entering(model: Multimodal, batch: Batch, *, first_layer: int) -> jax.Array:
    return model.hidden(batch, num_layers=first_layer, remat="none")


def _all_features(loaded: Loaded, encoded: Sequence[Encoded]) -> dict[int, np.ndarray]:
    """Return {identity: features} of all vision inputs; {} where they would not fit on the host."""
    unique: dict[int, VisionInput] = {
        id(one): one for item in encoded for one in item.vision_inputs
    }
    by_size: dict[int, list[VisionInput]] = {}
    for one in unique.values():
        by_size.setdefault(one.padded_patches, []).append(one)
    at_once = parallel.filled(AT_ONCE, loaded.mesh)
    found: dict[int, np.ndarray] = {}
    for group in by_size.values():
        for start in range(0, len(group), at_once):
            found |= features_of(loaded, group[start : start + at_once], at_once)
            if start == 0:
                of_first = next(iter(found.values())).nbytes
                if of_first * len(unique) > STORE_BYTES:
                    return {}
    return found

"""Image features that are computed once for all the questions about an image."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from manu_jax import parallel
from manu_jax.data.batches import Batches
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.multimodal import Multimodal
from manu_jax.types import Batch, Encoded, Images, VisionInput

STORE_BYTES = 2**31  # on the host
AT_ONCE = 8  # vision inputs per call of the tower; rounded up to a multiple of the mesh's rows


class ImageFeatures:
    """What a model's tower and connector give for the vision inputs of batches, kept on the host.

    A vision input is known by its identity, and computed once while it is among the STORE_BYTES
    used last. A batch has few images, so those of later batches that need as much room are computed
    along with its own. All processes hold the same features: they ask for the same steps in the
    same order. compute: what gives the features of images [B, I, P, E]; None: the model's own.
    """

    def __init__(
        self,
        loaded: Loaded,
        encoded: Sequence[Encoded],
        batches: Batches,
        *,
        compute: Callable[[Any, Images], jax.Array] | None = None,
    ):
        self._at_once = parallel.filled(AT_ONCE, loaded.mesh)
        self._loaded, self._encoded, self._batches = loaded, encoded, batches
        self._features = compute or _features
        self._stored: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()

    def in_place_of_patches(self, batch: Batch, step: int, rows: np.ndarray) -> Batch:
        """Return these rows of a step's batch with features in place of patches.

        They are 0 where there is no vision input.
        """
        samples = [self._encoded[index] for index in self._batches.indices_at(step)]
        # In the order of the batch, which all processes share: it decides what is evicted.
        vision_inputs = itertools.chain.from_iterable(sample.vision_inputs for sample in samples)
        needed = dict.fromkeys(map(id, vision_inputs))
        found = {key: self._stored.pop(key) for key in needed if key in self._stored}
        while not needed.keys() <= found.keys():
            following = self._next_vision_inputs(step, set(needed), found)
            found |= features_of(self._loaded, following, self._at_once, compute=self._features)
        self._stored |= found
        num_bytes = sum(features_PE.nbytes for features_PE in self._stored.values())
        while num_bytes > STORE_BYTES:
            num_bytes -= self._stored.popitem(last=False)[1].nbytes
        mine = [samples[row] for row in rows[rows < len(samples)]]
        return with_features(self._loaded, batch, mine, features=found)

    def _next_vision_inputs(
        self, step: int, needed: set[int], found: dict[int, np.ndarray]
    ) -> list[VisionInput]:
        """Return the next vision inputs to compute, all of the padded size of a needed one."""
        missing: dict[int, VisionInput] = {}
        size = None
        for vision_input in self._vision_inputs_from(step):
            if id(vision_input) in found or id(vision_input) in self._stored:
                continue
            if size is None and id(vision_input) in needed:
                size = vision_input.padded_patches
            if vision_input.padded_patches == size:
                missing[id(vision_input)] = vision_input
            if len(missing) == self._at_once:
                break
        return list(missing.values())

    def _vision_inputs_from(self, step: int) -> Iterator[VisionInput]:
        indices = map(self._batches.indices_at, range(step, len(self._batches)))
        for index in itertools.chain.from_iterable(indices):
            yield from self._encoded[index].vision_inputs


def features_of(
    loaded: Loaded,
    vision_inputs: Sequence[VisionInput],
    at_once: int,
    *,
    compute: Callable[[Any, Images], jax.Array] | None = None,
) -> dict[int, np.ndarray]:
    """Return {identity: features [P, E]} of at most `at_once` vision inputs of one padded size.

    at_once: a multiple of the mesh's rows; the tower is compiled for this many. compute: as of
    ImageFeatures.
    """
    filled = [*vision_inputs, *[vision_inputs[0]] * (at_once - len(vision_inputs))]
    rows = parallel.batch_rows(loaded.mesh, at_once)
    images = loaded.collate_vision_inputs([(filled[row],) for row in rows])
    with parallel.on_mesh(loaded.mesh):
        features = (compute or _features)(loaded.model, parallel.put_batch(images, loaded.mesh))
    features_BPE = parallel.gather(features)[:, 0]
    return {
        id(vision_input): features_PE[: vision_input.num_features]
        for vision_input, features_PE in zip(vision_inputs, features_BPE, strict=False)
    }


def with_features(
    loaded: Loaded,
    batch: Batch,
    samples: Sequence[Encoded],
    *,
    features: Mapping[int, np.ndarray],
) -> Batch:
    """Return a batch of these samples with features in place of patches; 0 where there are none.

    features: {identity of a vision input: [P, E]}.
    """
    assert batch.images is not None and batch.images.patches_BIPC is not None
    num_rows, num_images, num_patches = batch.images.patches_BIPC.shape[:3]
    an_image_PE = next(iter(features.values()))
    shape = (num_rows, num_images, loaded.config.num_features(num_patches))
    features_BIPE = np.zeros((*shape, an_image_PE.shape[1]), an_image_PE.dtype)
    for row, sample in enumerate(samples):
        for number, vision_input in enumerate(sample.vision_inputs):
            features_PE = features[id(vision_input)]
            features_BIPE[row, number, : len(features_PE)] = features_PE
    images = dataclasses.replace(
        batch.images, patches_BIPC=None, patch_positions_BIP2=None, features_BIPE=features_BIPE
    )
    return dataclasses.replace(batch, images=images)


@jax.jit
def _features(model: Multimodal, images: Images) -> jax.Array:
    return model.features(images)

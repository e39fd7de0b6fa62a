"""The features of images that many questions are asked about, computed once."""

import collections
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from manu_jax import parallel
from manu_jax.data.batches import Batches
from manu_jax.types import Encoded

STORE_BYTES = 2**31  # on the host
AT_ONCE = 8  # images that go through the tower together; made a multiple of the mesh's rows


class ImageFeatures:
    """What a model's tower and projector give for the images of batches, kept on the host.

    An image is known by its identity, and computed once as long as it is among the STORE_BYTES last
    used. Batches have few images each, so those of later batches are computed along with them. All
    processes hold the same features: they ask for the same steps in the same order.
    """

    def __init__(self, loaded: Any, encoded: Sequence[Encoded], batches: Batches):
        multiple = parallel.batch_multiple(loaded.mesh)
        self._at_once = -(-AT_ONCE // multiple) * multiple
        self._loaded, self._encoded, self._batches = loaded, encoded, batches
        self._stored: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()

    def of_batch(self, step: int, rows: np.ndarray, num_images: int) -> np.ndarray:
        """Return the features of these rows of a step's batch, 0 where there is no image.

        [B, I, P, E] with I `num_images`.
        """
        samples = [self._encoded[index] for index in self._batches.indices_at(step)]
        needed = {id(image) for sample in samples for image in sample.images}
        found = {key: self._stored.pop(key) for key in needed if key in self._stored}
        while not needed <= found.keys():
            found |= self._compute(self._next_images(step, found))
        self._stored |= found
        an_image_PE = next(iter(found.values()))
        while len(self._stored) * an_image_PE.nbytes > STORE_BYTES:
            self._stored.popitem(last=False)
        features_BIPE = np.zeros((len(rows), num_images, *an_image_PE.shape), an_image_PE.dtype)
        for place, row in enumerate(rows[rows < len(samples)]):
            for number, image in enumerate(samples[row].images):
                features_BIPE[place, number] = found[id(image)]
        return features_BIPE

    def _next_images(self, step: int, found: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Return the pixels of the next images, by identity, that are needed and not there."""
        missing: dict[int, np.ndarray] = {}
        for image, pixels_YXC in self._images_from(step):
            if id(image) not in found and id(image) not in self._stored:
                missing[id(image)] = pixels_YXC
            if len(missing) == self._at_once:
                break
        return missing

    def _images_from(self, step: int) -> Iterator[tuple[Any, np.ndarray]]:
        indices = map(self._batches.indices_at, range(step, len(self._batches)))
        for index in itertools.chain.from_iterable(indices):
            sample = self._encoded[index]
            if sample.pixels_IYXC is not None:
                yield from zip(sample.images, sample.pixels_IYXC, strict=True)

    def _compute(self, pixels_by_image: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        mesh = self._loaded.mesh
        pixels = list(pixels_by_image.values())
        filled = pixels + pixels[:1] * (self._at_once - len(pixels))
        rows = parallel.batch_rows(mesh, self._at_once)
        pixels_BIYXC = parallel.put_batch(np.stack([filled[row][None] for row in rows]), mesh)
        with parallel.on_mesh(mesh):
            features = _features(self._loaded.model, pixels_BIYXC)
        features_BPE = parallel.gather(features)[:, 0]
        return dict(zip(pixels_by_image, features_BPE, strict=False))


@jax.jit
def _features(model: Any, pixels_BIYXC: jax.Array) -> jax.Array:
    return model.features(pixels_BIYXC)

"""What was encoded last: runs put the same samples to model after model."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from manu_jax.models.inputs.recent import OBJECT_BYTES, Recent
from manu_jax.models.inputs.texts import TokenCache
from manu_jax.models.inputs.vision_inputs import VisionInputCache
from manu_jax.types import Encoded, Sample, VisionInput

CACHE_BYTES = 2**26

Key = tuple[tuple[tuple[str, bool], ...], tuple[Hashable, ...]]


class EncodedCache(Recent[Key, Encoded]):
    """Encoded samples without their vision inputs, up to CACHE_BYTES; images by their digests.

    Arrays that it has handed out are not writeable.
    """

    def encoded(
        self,
        sample: Sample,
        digests: Sequence[bytes],
        *,
        make: Callable[[], Encoded],
        vision_inputs: Callable[[], tuple[VisionInput, ...]],
    ) -> Encoded:
        """Return what `make` gives for a sample, whose images have these digests.

        vision_inputs: gives those of a sample that is found. What `make` raises is not kept.
        """
        key = tuple((text, bool(is_answer)) for text, is_answer in sample.segments), tuple(digests)
        found = self._found(key)
        if found is not None:
            return dataclasses.replace(found, key=sample.key, vision_inputs=vision_inputs())
        made = make()
        for array in _arrays(made):
            array.flags.writeable = False
        alone = dataclasses.replace(made, vision_inputs=())
        self._keep(key, alone, _num_bytes(key, alone), most=CACHE_BYTES)
        return made


@dataclasses.dataclass(frozen=True, eq=False)
class Caches:
    """Of one processor and one config: tokens, what towers read of images, and whole samples."""

    vision: VisionInputCache = dataclasses.field(default_factory=VisionInputCache)
    samples: EncodedCache = dataclasses.field(default_factory=EncodedCache)
    tokens: TokenCache = dataclasses.field(default_factory=TokenCache)


def _arrays(encoded: Encoded) -> list[np.ndarray]:
    values = [getattr(encoded, field.name) for field in dataclasses.fields(encoded)]
    return [value for value in values if isinstance(value, np.ndarray)]


def _num_bytes(key: Key, encoded: Encoded) -> int:
    letters = sum(len(text) for text, _ in key[0])
    return OBJECT_BYTES + letters + sum(array.nbytes for array in _arrays(encoded))

"""Vision inputs, what a tower reads of an image: made, cached, and put in a batch."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from manu_jax.fingerprint import image_digest
from manu_jax.models.inputs.recent import Recent
from manu_jax.types import Images, ManuError, VisionInput

CACHE_BYTES = 2**29


class VisionInputSizes(Protocol):
    """What a family's config says of its vision inputs.

    patch_values: numbers of a patch. num_patches: of a vision input; where they are of any size,
    the room in a batch without vision inputs. of_any_size: a batch holds the patches' positions.
    """

    @property
    def patch_values(self) -> int: ...

    @property
    def num_patches(self) -> int: ...

    @property
    def of_any_size(self) -> bool: ...

    def num_features(self, num_patches: int) -> int:
        """Return how many features a vision input with room for so many patches becomes."""
        ...


class FixedSizeInputs:
    """The VisionInputSizes of a config whose vision inputs all fill its tower's grid."""

    vision: Any

    @property
    def patch_values(self) -> int:
        return self.vision.patch_values

    @property
    def num_patches(self) -> int:
        return self.vision.num_patches

    @property
    def of_any_size(self) -> bool:
        return False


class AnySizeInputs:
    """The VisionInputSizes of a config whose vision inputs are of any size."""

    vision: Any

    @property
    def patch_values(self) -> int:
        return self.vision.patch_values

    @property
    def num_patches(self) -> int:
        return 16  # what the smallest vision input is padded to

    @property
    def of_any_size(self) -> bool:
        return True


class VisionInputCache(Recent[tuple[bytes, bool], tuple[VisionInput, ...]]):
    """The vision inputs of the images used last, up to CACHE_BYTES; images by their content."""

    def vision_inputs(
        self,
        image: Any,
        make: Callable[[Any], tuple[VisionInput, ...]],
        *,
        is_one_of_many: bool = False,
        digests: dict[int, bytes] | None = None,
    ) -> tuple[VisionInput, ...]:
        """Return what `make` gives for the image, as one of many or alone.

        digests: of images by their identity, which are not taken again; see `Encoder.encode`.
        """
        key = (digest_of(image, {} if digests is None else digests), is_one_of_many)
        found = self._found(key)
        if found is None:
            found = make(image)
            self._keep(key, found, _num_bytes(found), most=CACHE_BYTES)
        return found


def digest_of(image: Any, digests: dict[int, bytes]) -> bytes:
    """Return an image's digest; digests: of images by their identity, where it is kept."""
    if id(image) not in digests:
        digests[id(image)] = image_digest(image)
    return digests[id(image)]


def patches_of(pixels_CYX: np.ndarray, size: int) -> np.ndarray:
    """Return an image's patches of `size` by `size` pixels, row by row. [P, size · size · C].

    Rows and columns of pixels that fill no patch are cut off, as by a convolution.
    """
    C, Y, X = pixels_CYX.shape
    rows, columns = Y // size, X // size
    kept_CYX = np.asarray(pixels_CYX, np.float32)[:, : rows * size, : columns * size]
    split = kept_CYX.reshape(C, rows, size, columns, size).transpose(1, 3, 2, 4, 0)
    return np.ascontiguousarray(split.reshape(rows * columns, size * size * C))


def square_vision_input(
    image: Any, processor: Any, config: Any, **settings: Any
) -> tuple[VisionInput, ...]:
    """Return the one vision input of an image, as large as the tower's grid.

    settings: of the image processor; they replace the folder's.
    """
    coded = processor.image_processor(images=[image], return_tensors="np", **settings)
    return square_vision_inputs(np.asarray(coded["pixel_values"]), config)


def square_vision_inputs(pixels_ICYX: np.ndarray, config: Any) -> tuple[VisionInput, ...]:
    """Return the vision inputs of a processor's pixels, each as large as the tower's grid."""
    size = config.vision.image_size
    if pixels_ICYX.shape[1:] != (3, size, size):
        raise ManuError(
            f"the image processor gives {pixels_ICYX.shape[2]} × {pixels_ICYX.shape[3]} pixels, "
            f"the model takes {size} × {size}: config.json and the image processor's file are of "
            "different models."
        )
    num_features = config.num_features(config.num_patches)
    return tuple(
        VisionInput(patches_of(pixels_CYX, config.vision.patch_size), None, num_features)
        for pixels_CYX in pixels_ICYX
    )


def collate_vision_inputs(
    rows: Sequence[Sequence[VisionInput]],
    sizes: VisionInputSizes,
    shape: tuple[int, int],
) -> Images:
    """Return the vision inputs of examples as Images, without tokens (feature_index_BT is [B, 0]).

    shape: the vision inputs per example, and the patches of each, to pad to.
    """
    B = len(rows)
    patches_BIPC = np.zeros((B, *shape, sizes.patch_values), np.float32)
    patch_positions_BIP2 = np.full((B, *shape, 2), -1, np.int32) if sizes.of_any_size else None
    for row, vision_inputs in enumerate(rows):
        for number, vision_input in enumerate(vision_inputs):
            count = len(vision_input.patches_PC)
            patches_BIPC[row, number, :count] = vision_input.patches_PC
            if patch_positions_BIP2 is not None and vision_input.patch_positions_P2 is not None:
                patch_positions_BIP2[row, number, :count] = vision_input.patch_positions_P2
    return Images(
        mask_BI=np.arange(shape[0])[None] < np.array([[len(row)] for row in rows]),
        feature_index_BT=np.full((B, 0), -1, np.int32),
        patches_BIPC=patches_BIPC,
        patch_positions_BIP2=patch_positions_BIP2,
    )


def _num_bytes(vision_inputs: Sequence[VisionInput]) -> int:
    return sum(vision_input.patches_PC.nbytes for vision_input in vision_inputs)

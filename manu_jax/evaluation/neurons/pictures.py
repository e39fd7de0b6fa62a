"""What a vision tower saw, as a picture, and where in it a patch lies."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from manu_jax.models.loaded import Loaded
from manu_jax.types import VisionInput

MOST_PIXELS = 168  # a side, of a picture that is kept
COLOURS = 3

Box = tuple[float, float, float, float]  # left, top, width, height; shares of the picture's sides


def picture(loaded: Loaded, vision_input: VisionInput) -> str:
    """Return what the tower saw of a vision input, as a data URI of a small PNG."""
    from PIL import Image

    image = Image.fromarray(pixels(loaded, vision_input))
    image.thumbnail((MOST_PIXELS, MOST_PIXELS))
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def pixels(loaded: Loaded, vision_input: VisionInput) -> np.ndarray:
    """Return the pixels that patches hold, as colours. [Y, X, 3] uint8.

    Colours are turned back by the processor's mean and deviation, where it names them.
    """
    cells_P2 = cells(vision_input)
    tiles = _tiles(vision_input.patches_PC)
    size = tiles.shape[1]
    rows, columns = (cells_P2.max(axis=0) + 1).tolist()
    canvas = np.zeros((rows, size, columns, size, COLOURS), np.float32)
    canvas[cells_P2[:, 0], :, cells_P2[:, 1]] = tiles
    processor = getattr(loaded.processor, "image_processor", None)
    mean, deviation = (
        np.asarray(getattr(processor, name, None) or default, np.float32)
        for name, default in (("image_mean", 0.5), ("image_std", 0.5))
    )
    found = canvas.reshape(rows * size, columns * size, COLOURS) * deviation + mean
    return np.clip(np.round(found * 255), 0, 255).astype(np.uint8)


def cells(vision_input: VisionInput) -> np.ndarray:
    """Return the row and the column of each patch, counted from the first that is there. [P, 2]."""
    positions_P2 = vision_input.patch_positions_P2
    if positions_P2 is not None:
        return np.asarray(positions_P2) - np.asarray(positions_P2).min(axis=0)
    side = round(len(vision_input.patches_PC) ** 0.5)  # such a vision input fills a square grid
    return np.stack(np.divmod(np.arange(len(vision_input.patches_PC)), side), axis=1)


def box(vision_input: VisionInput, patch: int) -> Box:
    """Return where a patch lies in the picture."""
    cells_P2 = cells(vision_input)
    rows, columns = (cells_P2.max(axis=0) + 1).tolist()
    row, column = cells_P2[patch].tolist()
    return column / columns, row / rows, 1 / columns, 1 / rows


def patch_of_token(
    vision_inputs: Sequence[VisionInput], num_tokens: int, token: int
) -> tuple[int, int | None] | None:
    """Return (vision input, patch) of a token of a vision tower; patch None: its class token.

    num_tokens: of all vision inputs of the sample. None where tokens are no patches.
    """
    counts = [len(vision_input.patches_PC) for vision_input in vision_inputs]
    surplus = num_tokens - sum(counts)
    if surplus not in (0, len(counts)):
        return None
    first = int(surplus > 0)
    for number, count in enumerate(counts):
        if token < count + first:
            return number, None if token < first else token - first
        token -= count + first
    return None


def _tiles(patches_PC: np.ndarray) -> np.ndarray:
    """Return patches as squares of colours, [P, Y, X, 3].

    A patch is [Y, X, 3] as in CLIP and SigLIP, or [3, 2, Y, X] as in Qwen's towers, whose two
    frames are the same.
    """
    patches_PC = np.asarray(patches_PC, np.float32)
    count = patches_PC.shape[1] // COLOURS
    size = round(count**0.5)
    if size * size == count:
        return patches_PC.reshape(len(patches_PC), size, size, COLOURS)
    size = round((count / 2) ** 0.5)
    return patches_PC.reshape(len(patches_PC), COLOURS, 2, size, size)[:, :, 0].transpose(
        0, 2, 3, 1
    )


def named(value: Any) -> str:
    """Return what a picture of an image is called by: the image's content."""
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:12]

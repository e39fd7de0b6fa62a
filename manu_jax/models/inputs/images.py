"""Images and texts as a caller gives them: checked once, before the processor sees them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from manu_jax.folder import ForeignErrors
from manu_jax.types import ManuError, Sample

SHOWN_LETTERS = 60
REMEDY = "Open the file with PIL.Image.open, and convert it to RGB if its mode is not known here."


def samples_of(prompts: Any, images: Any, answers: Any) -> list[Sample]:
    """Return the samples of `Loaded.batch`; one ManuError names everything of another type.

    prompts, answers: a text each. images: a list of images for each prompt.
    """
    for what, given in (("prompts", prompts), ("images", images), ("answers", answers)):
        if given is not None and not isinstance(given, Sequence) or isinstance(given, str | bytes):
            raise ManuError(
                f"batch: {what} is {_described(given)}, expected a list with an entry for each "
                f"prompt. For one prompt, put it into a list."
            )
    if not prompts:
        raise ManuError("batch: no prompts. Give at least one.")
    for what, given in (("images", images), ("answers", answers)):
        if given is not None and len(given) != len(prompts):
            raise ManuError(f"{len(prompts)} prompts and {len(given)} entries of {what}.")
    faults = []
    for number in range(len(prompts)):
        for what, given in (("prompt", prompts), ("answer", answers or ())):
            if number < len(given) and not isinstance(given[number], str):
                faults.append(
                    f"prompt {number}: the {what} is {_described(given[number])}, expected text."
                )
        own = images[number] if images is not None else ()
        if not isinstance(own, list | tuple):
            faults.append(
                f"prompt {number}: its images are {_described(own)}, expected a list of PIL "
                "images: [image] for one, [] for none. Open files with PIL.Image.open."
            )
    if faults:
        raise ManuError("\n".join(faults))
    return [
        Sample(
            ((prompt, False), (answers[number], True)) if answers else ((prompt, False),),
            tuple(images[number]) if images else (),
        )
        for number, prompt in enumerate(prompts)
    ]


def name_of(sample: Sample) -> str:
    """Return how errors name a sample: by its key, if it has one, and how its text begins."""
    text = "".join(part for part, _ in sample.segments if isinstance(part, str))
    text = text if len(text) <= SHOWN_LETTERS else text[:SHOWN_LETTERS] + "…"
    return f"{sample.key}: {text!r}" if sample.key else repr(text)


def check_texts(sample: Sample) -> None:
    """Raise ManuError where a part of a sample is not text, or can't be written as UTF-8."""
    for part, _ in sample.segments:
        if not isinstance(part, str):
            raise ManuError(
                f"prompt {name_of(sample)}: a part of it is {type(part).__name__}, expected "
                "text. Decode it first."
            )
        try:
            part.encode()
        except UnicodeEncodeError:
            raise ManuError(
                f"prompt {name_of(sample)}: it has a lone surrogate, which is no letter. "
                "Leave it out."
            ) from None


def pil_images(sample: Sample) -> tuple[Image.Image, ...]:
    """Return a sample's images as PIL images, read from their files.

    An image is a PIL image, which is returned as it is, or its RGB pixels as a NumPy array
    [Y, X, 3] uint8. Raises ManuError for anything else, and where an image can't be read.
    """
    return tuple(
        _pil_image(value, f"prompt {name_of(sample)}: its image {number}")
        for number, value in enumerate(sample.images, start=1)
    )


def image_border(sample: Sample, images: Sequence[Any]) -> ForeignErrors:
    """Return the border of the image processor: whatever it raises becomes one ManuError."""
    shown = ", ".join(
        f"{image.width} × {image.height} {image.mode}"
        for image in images
        if isinstance(image, Image.Image)
    )
    return ForeignErrors(
        f"prompt {name_of(sample)}",
        f"the model's image processor does not take its image ({shown})",
        "Convert it to RGB, and crop or resize it to a usual shape.",
    )


def _pil_image(value: Any, name: str) -> Image.Image:
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or not value.size:
            raise ManuError(
                f"{name} is an array {list(value.shape)} of {value.dtype}, expected [Y, X, 3] of "
                "uint8, the RGB pixels."
            )
        return Image.fromarray(value)
    if not isinstance(value, Image.Image):
        raise ManuError(f"{name} is {type(value).__name__}, expected a PIL image. {REMEDY}")
    if not value.width or not value.height:
        raise ManuError(f"{name} has {value.width} × {value.height} pixels. Give another one.")
    with ForeignErrors(name, "can't be read", "Get the file anew, and keep it open until then."):
        value.load()
    return value


def _described(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.60}"

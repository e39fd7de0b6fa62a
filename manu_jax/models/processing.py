"""Texts and images to the numbers of a Batch, as the model's Hugging Face processor does it.

The ids of a text with one image token per image are taken, and each image token is repeated here;
the pixel work of an image is done once as long as the image stays in the cache.
"""

import collections
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from manu_jax.types import Batch, Encoded, ManuError, Sample

CACHE_BYTES = 2**29
SHOWN_LETTERS = 60


class PixelCache:
    """Pixels of the images last used, up to CACHE_BYTES. An image is known by its identity."""

    def __init__(self):
        self._entries: collections.OrderedDict[int, tuple[Any, np.ndarray]]
        self._entries = collections.OrderedDict()
        self._bytes = 0

    def pixels(self, image: Any, processor: Any) -> np.ndarray:
        """Return the image as the tower takes it. [Y, X, C] float32."""
        key = id(image)
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key][1]
        values = processor(images=[image], return_tensors="np")["pixel_values"][0]
        pixels_YXC = np.ascontiguousarray(np.asarray(values, np.float32).transpose(1, 2, 0))
        # The entry keeps the image alive, so that its id is not given to another one.
        self._entries[key] = (image, pixels_YXC)
        self._bytes += pixels_YXC.nbytes
        while self._bytes > CACHE_BYTES and len(self._entries) > 1:
            self._bytes -= self._entries.popitem(last=False)[1][1].nbytes
        return pixels_YXC


def encode(
    sample: Sample,
    *,
    processor: Any,
    cache: PixelCache,
    image_token: int,
    tokens_per_image: int,
    image_size: int,
    context: int,
) -> Encoded:
    """Return a sample as numbers.

    A token carries loss where its letters reach into an answer; image tokens and the first token
    never do. Raises ManuError where images and image tokens differ in number, or the prompt is
    longer than the context.
    """
    coded = processor.tokenizer(sample.text, return_offsets_mapping=True)
    ids_T = np.asarray(coded["input_ids"], np.int32)
    is_image_T = ids_T == image_token
    if is_image_T.sum() != len(sample.images):
        raise ManuError(
            f"prompt {_shown(sample)}: it has {is_image_T.sum()} image tokens and "
            f"{len(sample.images)} images. Give one image per image token, in order."
        )
    weights_T = _answer_weights(sample, np.asarray(coded["offset_mapping"]).reshape(-1, 2))
    weights_T[is_image_T] = 0
    weights_T[:1] = 0
    repeats_T = np.where(is_image_T, tokens_per_image, 1)
    ids_T, weights_T, is_image_T = (
        np.repeat(values, repeats_T) for values in (ids_T, weights_T, is_image_T)
    )
    if len(ids_T) > context:
        images = f", {is_image_T.sum()} of them for {len(sample.images)} images"
        raise ManuError(
            f"prompt {_shown(sample)}: {len(ids_T)} tokens{images if sample.images else ''}; the "
            f"model's context is {context}. Shorten it or give fewer images."
        )
    feature_index_T = np.where(is_image_T, np.cumsum(is_image_T) - 1, -1).astype(np.int32)
    pixels_IYXC = None
    if sample.images:
        each = [cache.pixels(x, processor.image_processor) for x in sample.images]
        # A single image is no copy: many samples may be of one.
        pixels_IYXC = each[0][None] if len(each) == 1 else np.stack(each)
        if pixels_IYXC.shape[1:] != (image_size, image_size, 3):
            raise ManuError(
                f"the image processor gives {pixels_IYXC.shape[1]} × {pixels_IYXC.shape[2]} "
                f"pixels, the model takes {image_size} × {image_size}: config.json and the image "
                "processor's file are of different models."
            )
    return Encoded(ids_T, weights_T, feature_index_T, pixels_IYXC, sample.key, sample.images)


def collate(
    encoded: Sequence[Encoded],
    *,
    padding_token: int,
    image_size: int,
    length: int | None = None,
    batch_size: int | None = None,
    num_images: int | None = None,
    num_answers: int | None = None,
    padding_side: Literal["left", "right"] = "right",
) -> Batch:
    """Return samples padded to one batch; examples beyond them have weight 0 and no valid token.

    length, batch_size, num_images, num_answers (tokens): what to pad to; None: the largest there
    is. With no image (and num_images None or 0) the batch has no pixels; without an answer token
    (and num_answers None or 0) it has no answer positions.
    """
    T = max((item.num_tokens for item in encoded), default=0) if length is None else length
    B = len(encoded) if batch_size is None else batch_size
    most = max((item.num_images for item in encoded), default=0)
    images = most if num_images is None else num_images
    answers = max((item.num_answers for item in encoded), default=0)
    A = answers if num_answers is None else num_answers
    too_long = answers > A or any(item.num_tokens > T for item in encoded)
    if len(encoded) > B or most > images or too_long:
        raise ValueError(
            f"{len(encoded)} samples do not fit [{B}, {T}] with {images} images and {A} answer "
            "tokens each"
        )
    token_ids_BT = np.full((B, T), padding_token, np.int32)
    attention_mask_BT = np.zeros((B, T), bool)
    positions_BT = np.zeros((B, T), np.int32)
    loss_weights_BT = np.zeros((B, T), np.float32)
    feature_index_BT = np.full((B, T), -1, np.int32)
    example_weights_B = np.zeros(B, np.float32)
    answer_index_BA = np.full((B, A), T - 1, np.int32) if A else None
    for row, item in enumerate(encoded):
        n = item.num_tokens
        place = slice(0, n) if padding_side == "right" else slice(T - n, T)
        token_ids_BT[row, place] = item.token_ids_T
        attention_mask_BT[row, place] = True
        # Padding on the right goes on counting, as in `transformers`: statistics may include it.
        positions_BT[row] = np.maximum(np.arange(T) - place.start, 0)
        loss_weights_BT[row, place] = item.loss_weights_T
        feature_index_BT[row, place] = item.feature_index_T
        example_weights_B[row] = 1
        if answer_index_BA is not None:
            answer_index_BA[row, : item.num_answers] = np.flatnonzero(loss_weights_BT[row]) - 1
    image_mask_BI = pixels_BIYXC = None
    if images:
        shape = (image_size, image_size, 3)
        image_mask_BI = np.zeros((B, images), bool)
        pixels_BIYXC = np.zeros((B, images, *shape), np.float32)
        for row, item in enumerate(encoded):
            if item.pixels_IYXC is not None:
                image_mask_BI[row, : item.num_images] = True
                pixels_BIYXC[row, : item.num_images] = item.pixels_IYXC
    return Batch(
        token_ids_BT,
        attention_mask_BT,
        positions_BT,
        loss_weights_BT,
        feature_index_BT,
        example_weights_B,
        image_mask_BI,
        pixels_BIYXC,
        answer_index_BA,
    )


def _answer_weights(sample: Sample, offsets_T2: np.ndarray) -> np.ndarray:
    """Return 1 for the tokens whose letters reach into an answer segment. [T] float32."""
    starts, ends = offsets_T2[:, 0], offsets_T2[:, 1]
    is_answer_T = np.zeros(len(offsets_T2), bool)
    position = 0
    for text, is_answer in sample.segments:
        if is_answer:
            inside = (ends > position) & (starts < position + len(text))
            is_answer_T |= inside & (ends > starts)
        position += len(text)
    return is_answer_T.astype(np.float32)


def _shown(sample: Sample) -> str:
    text = sample.text if len(sample.text) <= SHOWN_LETTERS else sample.text[:SHOWN_LETTERS] + "…"
    return f"{sample.key}: {text!r}" if sample.key else repr(text)

"""Texts and images to the numbers of a Batch, as the model's Hugging Face processor does it.

Where an image stands in a text is marked; its family says which tokens take the placeholder's place, and
what its tower takes for the image. That is made once as long as the image stays in the cache.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from manu_jax.models.inputs.vision_inputs import VisionInputSizes, collate_vision_inputs
from manu_jax.types import Batch, Encoded, ManuError, Sample, VisionInput

SHOWN_LETTERS = 60

# (start, end, what stands there instead) in a text
Replacement = tuple[int, int, str]


@dataclasses.dataclass(frozen=True)
class Processor:
    """An image processor and a tokenizer, without what their family needs for videos."""

    image_processor: Any
    tokenizer: Any
    image_token: str

    def save_pretrained(self, folder: Any) -> None:
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def whole_processor(path: Any) -> Any:
    """Return the processor of a Hugging Face folder."""
    from transformers import AutoProcessor

    # PIL everywhere: the torchvision backend gives other pixels.
    return AutoProcessor.from_pretrained(path, backend="pil", local_files_only=True)


def processor_without_videos(path: Any, image_token: str) -> Processor:
    """Return image processor and tokenizer of a folder whose video processor wants torchvision."""
    from transformers import AutoImageProcessor, AutoTokenizer

    images = AutoImageProcessor.from_pretrained(path, backend="pil", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    return Processor(images, tokenizer, getattr(tokenizer, "image_token", image_token))


def placeholders(text: str, placeholder: str) -> list[tuple[int, int]]:
    """Return where each placeholder of an image begins and ends."""
    return [found.span() for found in re.finditer(re.escape(placeholder), text)]


def expanded(sample: Sample, replacements: Sequence[Replacement]) -> tuple[tuple[str, bool], ...]:
    """Return the sample's segments with the replacements, which do not overlap and are in order."""
    text, position, pieces = sample.text, 0, []
    for start, end, instead in replacements:
        pieces += [text[position:start], instead]
        position = end
    new_text = "".join([*pieces, text[position:]])
    segments, begin, place = [], 0, 0
    for old, is_answer in sample.segments:
        place += len(old)
        grown = sum(len(new) - (end - start) for start, end, new in replacements if end <= place)
        segments.append((new_text[begin : place + grown], is_answer))
        begin = place + grown
    return tuple(segments)


def repeated_token(
    text: str, images: Sequence[Any], processor: Any, config: Any
) -> list[Replacement]:
    """Return what takes the placeholders' places where a vision input is its image token so many times."""
    token = processor.image_token
    return [
        (start, end, token * config.tokens_per_image) for start, end in placeholders(text, token)
    ]


def encode(
    sample: Sample,
    *,
    tokenizer: Any,
    placeholder: str,
    replacements: Callable[[], Sequence[Replacement]],
    vision_inputs: Callable[[Any], tuple[VisionInput, ...]],
    feature_rows: Callable[[], Sequence[np.ndarray]] | None = None,
    image_token: int,
    context: int,
    vocabulary: int,
) -> Encoded:
    """Return a sample as numbers.

    replacements: what takes the places of the text's placeholders. vision inputs: what the tower takes for an image.
    feature_rows: which of each image's features its tokens take, one [J] or four corners [J, 4];
    None: all, in order. A token carries loss where its letters reach into an answer; image tokens
    and the first token never do. vocabulary: rows of the embedding. Raises ManuError where images
    and placeholders differ in number, the prompt is longer than the context, or a token or a feature
    has no row: on a device a gather would take another one's.
    """
    num_placeholders = len(placeholders(sample.text, placeholder))
    if num_placeholders != len(sample.images):
        raise ManuError(
            f"prompt {_shown(sample)}: it has {num_placeholders} image tokens and "
            f"{len(sample.images)} images. Give one image per image token, in order."
        )
    segments = expanded(sample, replacements()) if sample.images else sample.segments
    coded = tokenizer("".join(text for text, _ in segments), return_offsets_mapping=True)
    ids_T = np.asarray(coded["input_ids"], np.int32)
    is_image_T = ids_T == image_token
    if (past_T := (ids_T >= vocabulary) & ~is_image_T).any():
        shown = tokenizer.convert_ids_to_tokens(int(ids_T[past_T][0]))
        raise ManuError(
            f"prompt {_shown(sample)}: its token {shown!r} has the id {ids_T[past_T][0]}, the "
            f"embedding matrix {vocabulary} rows. Resize the model's embedding, or leave it out."
        )
    weights_T = _answer_weights(segments, np.asarray(coded["offset_mapping"]).reshape(-1, 2))
    weights_T[is_image_T] = 0
    weights_T[:1] = 0
    if len(ids_T) > context:
        images = f", {is_image_T.sum()} of them for {len(sample.images)} images"
        raise ManuError(
            f"prompt {_shown(sample)}: {len(ids_T)} tokens{images if sample.images else ''}; the "
            f"model's context is {context}. Shorten it or give fewer images."
        )
    seen = [vision_inputs(image) for image in sample.images]
    counts = [sum(vision_input.num_features for vision_input in several) for several in seen]
    rows = [np.arange(count) for count in counts] if feature_rows is None else feature_rows()
    starts = np.cumsum([0, *counts])
    taken = [start + row for start, row in zip(starts, rows, strict=False)]
    num_taken = sum(map(len, taken))
    if is_image_T.sum() != num_taken:
        raise ManuError(
            f"prompt {_shown(sample)}: {is_image_T.sum()} image tokens for {num_taken} image "
            "features: config.json and the processor's files are of different models."
        )
    for row, count in zip(rows, counts, strict=False):
        if row.size and not 0 <= row.min() <= row.max() < count:
            raise ManuError(
                f"prompt {_shown(sample)}: its image tokens take features up to {row.max()} of "
                f"{count}: config.json and the processor's files are of different models."
            )
    flat = tuple(vision_input for several in seen for vision_input in several)
    if not taken or taken[0].ndim == 1:
        feature_index_T = placed(is_image_T, taken, np.full(len(ids_T), -1, np.int32))
        return Encoded(ids_T, weights_T, feature_index_T, flat, sample.key)
    bilinear_T4 = placed(is_image_T, taken, np.full((len(ids_T), 4), -1, np.int32))
    first_T = bilinear_T4[:, 0]
    return Encoded(ids_T, weights_T, first_T, flat, sample.key, bilinear_index_T4=bilinear_T4)


def placed(is_image_T: np.ndarray, rows: Sequence[np.ndarray], other: np.ndarray) -> np.ndarray:
    """Return `other` with the images' rows, image after image, where the image tokens stand."""
    if rows:
        other[is_image_T] = np.concatenate(rows)
    return other


def collate(
    encoded: Sequence[Encoded],
    *,
    padding_token: int,
    sizes: VisionInputSizes,
    length: int | None = None,
    batch_size: int | None = None,
    num_images: int | None = None,
    num_patches: int | None = None,
    num_answers: int | None = None,
    padding_side: Literal["left", "right"] = "right",
) -> Batch:
    """Return samples padded to one batch; examples beyond them have weight 0 and no valid token.

    length, batch_size, num_images, num_patches, num_answers (tokens): what to pad to; None: the
    largest there is. With no image (and num_images None or 0) the batch has no patches; without an
    answer token (and num_answers None or 0) it has no answer positions.
    """
    T = max((item.num_tokens for item in encoded), default=0) if length is None else length
    B = len(encoded) if batch_size is None else batch_size
    most = max((item.num_images for item in encoded), default=0)
    images = most if num_images is None else num_images
    answers = max((item.num_answers for item in encoded), default=0)
    A = answers if num_answers is None else num_answers
    largest = max((item.num_patches for item in encoded), default=0)
    P = (largest or sizes.num_patches) if num_patches is None else num_patches
    too_long = answers > A or any(item.num_tokens > T for item in encoded)
    if len(encoded) > B or most > images or too_long or (images and largest > P):
        raise ValueError(
            f"{len(encoded)} samples do not fit [{B}, {T}] with {images} images of {P} patches and "
            f"{A} answer tokens each"
        )
    token_ids_BT = np.full((B, T), padding_token, np.int32)
    attention_mask_BT = np.zeros((B, T), bool)
    positions_BT = np.zeros((B, T), np.int32)
    loss_weights_BT = np.zeros((B, T), np.float32)
    feature_index_BT = np.full((B, T), -1, np.int32)
    example_weights_B = np.zeros(B, np.float32)
    answer_index_BA = np.full((B, A), T - 1, np.int32) if A else None
    has_rope = any(item.rope_T3 is not None for item in encoded)
    rope_BT3 = np.zeros((B, T, 3), np.int32) if has_rope else None
    bilinear_index_BT4 = bilinear_weights_BT4 = None
    if any(item.bilinear_index_T4 is not None for item in encoded):
        bilinear_index_BT4 = np.full((B, T, 4), -1, np.int32)
        bilinear_weights_BT4 = np.zeros((B, T, 4), np.float32)
    for row, item in enumerate(encoded):
        n = item.num_tokens
        place = slice(0, n) if padding_side == "right" else slice(T - n, T)
        token_ids_BT[row, place] = item.token_ids_T
        attention_mask_BT[row, place] = True
        # Padding on the right goes on counting, as in `transformers`: statistics may include it.
        positions_BT[row] = np.maximum(np.arange(T) - place.start, 0)
        loss_weights_BT[row, place] = item.loss_weights_T
        room = sizes.num_features(P)
        feature_index_BT[row, place] = _padded_index(item.feature_index_T, item.vision_inputs, room)
        if item.bilinear_index_T4 is not None:
            assert bilinear_index_BT4 is not None and bilinear_weights_BT4 is not None
            bilinear_index_BT4[row, place] = _padded_index(
                item.bilinear_index_T4, item.vision_inputs, room
            )
            bilinear_weights_BT4[row, place] = item.bilinear_weights_T4
        example_weights_B[row] = 1
        if rope_BT3 is not None and item.rope_T3 is not None:
            rope_BT3[row, place] = item.rope_T3
        if answer_index_BA is not None:
            answer_index_BA[row, : item.num_answers] = np.flatnonzero(loss_weights_BT[row]) - 1
    image_mask_BI = patches_BIPC = patch_positions_BIP2 = None
    if images:
        rows = [item.vision_inputs for item in encoded] + [()] * (B - len(encoded))
        patches_BIPC, patch_positions_BIP2 = collate_vision_inputs(rows, sizes, images, P)
        image_mask_BI = np.arange(images)[None] < np.array([[len(row)] for row in rows])
    return Batch(
        token_ids_BT,
        attention_mask_BT,
        positions_BT,
        loss_weights_BT,
        feature_index_BT,
        example_weights_B,
        image_mask_BI,
        patches_BIPC,
        patch_positions_BIP2,
        answer_index_BA,
        rope_BT3=rope_BT3,
        bilinear_index_BT4=bilinear_index_BT4,
        bilinear_weights_BT4=bilinear_weights_BT4,
    )


def _padded_index(index: np.ndarray, vision_inputs: Sequence[VisionInput], room: int) -> np.ndarray:
    """Return an index of features where each vision input has room for as many. int32."""
    counts = np.array([vision_input.num_features for vision_input in vision_inputs], np.int32)
    if (counts == room).all():
        return index
    ends = np.cumsum(counts)
    number = np.searchsorted(ends, index, side="right")
    starts = np.append(ends - counts, 0)  # what is no image token has any number
    padded = index - starts[number] + number * room
    return np.where(index < 0, -1, padded).astype(np.int32)


def _answer_weights(segments: Sequence[tuple[str, bool]], offsets_T2: np.ndarray) -> np.ndarray:
    """Return 1 for the tokens whose letters reach into an answer segment. [T] float32."""
    starts, ends = offsets_T2[:, 0], offsets_T2[:, 1]
    is_answer_T = np.zeros(len(offsets_T2), bool)
    position = 0
    for text, is_answer in segments:
        if is_answer:
            inside = (ends > position) & (starts < position + len(text))
            is_answer_T |= inside & (ends > starts)
        position += len(text)
    return is_answer_T.astype(np.float32)


def _shown(sample: Sample) -> str:
    text = sample.text if len(sample.text) <= SHOWN_LETTERS else sample.text[:SHOWN_LETTERS] + "…"
    return f"{sample.key}: {text!r}" if sample.key else repr(text)

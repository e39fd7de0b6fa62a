"""Texts and images to the numbers of a Batch, as the model's Hugging Face processor does it.

A text has a placeholder for each of its images. The family says which tokens replace it, and what
its tower reads of the image; that is made once, as long as the image stays in the cache.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from manu_jax.models.inputs.images import name_of
from manu_jax.models.inputs.texts import Tokens
from manu_jax.models.inputs.vision_inputs import VisionInputSizes, collate_vision_inputs
from manu_jax.types import (
    Batch,
    BatchShape,
    Encoded,
    Images,
    ManuError,
    Sample,
    VisionInput,
)

# (start, end, new text) of a part of a text
Replacement = tuple[int, int, str]


class FeatureRows(NamedTuple):
    """The rows of an image's features that its tokens take, in order.

    index: [J], or [J, 4] where a token is a weighted sum of four rows. weights: None, or [J, 4]
    float32. The features are those of the image's vision inputs, one after the other.
    """

    index: np.ndarray
    weights: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Processor:
    """An image processor and a tokenizer, without the processor of videos."""

    image_processor: Any
    tokenizer: Any
    image_token: str

    def save_pretrained(self, folder: Any) -> None:
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@dataclasses.dataclass(frozen=True)
class TextProcessor:
    """A tokenizer alone: the processor of a model that takes no images."""

    tokenizer: Any
    image_token: str = ""

    def save_pretrained(self, folder: Any) -> None:
        self.tokenizer.save_pretrained(folder)


def whole_processor(path: Any) -> Any:
    """Return the processor of a Hugging Face folder."""
    from transformers import AutoProcessor

    # Always PIL: the torchvision backend gives other pixels.
    return AutoProcessor.from_pretrained(path, backend="pil", local_files_only=True)


def processor_without_videos(path: Any, image_token: str) -> Processor:
    """Return image processor and tokenizer of a folder whose video processor needs torchvision."""
    from transformers import AutoImageProcessor, AutoTokenizer

    images = AutoImageProcessor.from_pretrained(path, backend="pil", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    return Processor(images, tokenizer, getattr(tokenizer, "image_token", image_token))


def placeholders(text: str, placeholder: str) -> list[tuple[int, int]]:
    """Return where each placeholder of an image begins and ends; "": there are none."""
    if not placeholder:
        return []
    return [found.span() for found in re.finditer(re.escape(placeholder), text)]


def check_placeholders(samples: Iterable[Sample], placeholder: str) -> None:
    """Raise ManuError where images and their placeholders in a text differ in number."""
    for sample in samples:
        if sample.images and not placeholder:
            raise ManuError(
                f"prompt {name_of(sample)}: it has {len(sample.images)} images, and the model "
                "takes none. Ask in text alone, or use a model with a vision tower."
            )
        num_placeholders = len(placeholders(sample.text, placeholder))
        if num_placeholders != len(sample.images):
            raise ManuError(
                f"prompt {name_of(sample)}: it has {num_placeholders} image tokens and "
                f"{len(sample.images)} images. Give one image per image token, in order."
            )


def expanded(sample: Sample, replacements: Sequence[Replacement]) -> tuple[tuple[str, bool], ...]:
    """Return the sample's segments after the replacements, which are in order and disjoint."""
    text, position, pieces = sample.text, 0, []
    for start, end, new in replacements:
        pieces += [text[position:start], new]
        position = end
    new_text = "".join([*pieces, text[position:]])
    segments, new_start, old_end = [], 0, 0
    for old, is_answer in sample.segments:
        old_end += len(old)
        growth = sum(len(new) - (end - start) for start, end, new in replacements if end <= old_end)
        segments.append((new_text[new_start : old_end + growth], is_answer))
        new_start = old_end + growth
    return tuple(segments)


def repeated_token(
    text: str, images: Sequence[Any], processor: Any, config: Any
) -> list[Replacement]:
    """Return the replacements of a family whose every image is `tokens_per_image` image tokens."""
    token = processor.image_token
    return [
        (start, end, token * config.tokens_per_image) for start, end in placeholders(text, token)
    ]


def encode(
    sample: Sample,
    *,
    tokenizer: Any,
    tokens: Callable[[str], Tokens],
    placeholder: str,
    replacements: Callable[[], Sequence[Replacement]],
    vision_inputs: Callable[[Any], tuple[VisionInput, ...]],
    feature_rows: Callable[[], Sequence[FeatureRows]] | None = None,
    rope_positions: Callable[[np.ndarray, Sequence[VisionInput]], np.ndarray] | None = None,
    image_token: int,
    context: int,
    vocabulary: int,
) -> Encoded:
    """Return a sample as numbers.

    tokens: those of a text. replacements: of the text's placeholders. vision_inputs: what the tower
    reads of an image. feature_rows: the rows of each image's features that its tokens take; None:
    all, in order. rope_positions: the three positions of each token, given which are image tokens
    and the vision inputs; None: a token has one. A token carries loss where its letters reach into
    an answer; image tokens and the first token never do. vocabulary: rows of the embedding. Raises
    ManuError where images and placeholders differ in number, the prompt is longer than the context,
    or a token or a feature has no row: on a device a gather would take another one's.
    """
    check_placeholders([sample], placeholder)
    segments = expanded(sample, replacements()) if sample.images else sample.segments
    ids_T, offsets_T2 = tokens("".join(text for text, _ in segments))
    is_image_T = ids_T == image_token
    if (past_T := (ids_T >= vocabulary) & ~is_image_T).any():
        shown = tokenizer.convert_ids_to_tokens(int(ids_T[past_T][0]))
        raise ManuError(
            f"prompt {name_of(sample)}: its token {shown!r} has the id {ids_T[past_T][0]}, the "
            f"embedding matrix {vocabulary} rows. Resize the model's embedding, or leave it out."
        )
    weights_T = _answer_weights(segments, offsets_T2)
    weights_T[is_image_T] = 0
    weights_T[:1] = 0
    if len(ids_T) > context:
        images = f", {is_image_T.sum()} of them for {len(sample.images)} images"
        raise ManuError(
            f"prompt {name_of(sample)}: {len(ids_T)} tokens{images if sample.images else ''}; the "
            f"model's context is {context}. Shorten it or give fewer images."
        )
    by_image = [vision_inputs(image) for image in sample.images]
    counts = [sum(vision_input.num_features for vision_input in several) for several in by_image]
    every = [FeatureRows(np.arange(count)) for count in counts]
    rows = every if feature_rows is None else feature_rows()
    num_taken = sum(len(taken.index) for taken in rows)
    if is_image_T.sum() != num_taken:
        raise ManuError(
            f"prompt {name_of(sample)}: {is_image_T.sum()} image tokens for {num_taken} image "
            "features: config.json and the processor's files are of different models."
        )
    for row, count in zip(rows, counts, strict=False):
        if row.index.size and not 0 <= row.index.min() <= row.index.max() < count:
            raise ManuError(
                f"prompt {name_of(sample)}: its image tokens take features up to "
                f"{row.index.max()} of {count}: config.json and the processor's files are of "
                "different models."
            )
    flat = tuple(vision_input for several in by_image for vision_input in several)
    starts = np.cumsum([0, *counts])
    index = np.full(len(ids_T), -1, np.int32)
    if rows:
        shifted = [start + taken.index for start, taken in zip(starts, rows, strict=False)]
        index = _at_images(is_image_T, shifted, np.int32(-1))
    weights = [taken.weights for taken in rows if taken.weights is not None]
    is_bilinear = len(weights) > 0
    return Encoded(
        ids_T,
        weights_T,
        feature_index_T=index[:, 0] if is_bilinear else index,
        vision_inputs=flat,
        key=sample.key,
        rope_T3=None if rope_positions is None else rope_positions(is_image_T, flat),
        bilinear_index_T4=index if is_bilinear else None,
        bilinear_weights_T4=_at_images(is_image_T, weights, np.float32(0)) if weights else None,
    )


def collate(
    encoded: Sequence[Encoded],
    shape: BatchShape,
    *,
    padding_token: int,
    sizes: VisionInputSizes,
) -> Batch:
    """Return samples padded to one batch; examples beyond them have weight 0 and no valid token.

    Raises ValueError where the samples do not fit the shape.
    """
    room = _room(encoded, shape, sizes)
    T, B, A = room["length"], room["batch_size"], room["num_answers"]
    token_ids_BT = np.full((B, T), padding_token, np.int32)
    attention_mask_BT = np.zeros((B, T), bool)
    positions_BT = np.zeros((B, T), np.int32)
    loss_weights_BT = np.zeros((B, T), np.float32)
    example_weights_B = np.zeros(B, np.float32)
    answer_index_BA = np.full((B, A), T - 1, np.int32) if A else None
    has_rope = any(item.rope_T3 is not None for item in encoded)
    rope_BT3 = np.zeros((B, T, 3), np.int32) if has_rope else None
    slices = []
    for row, item in enumerate(encoded):
        n = item.num_tokens
        part = slice(0, n) if shape.padding_side == "right" else slice(T - n, T)
        slices.append(part)
        token_ids_BT[row, part] = item.token_ids_T
        attention_mask_BT[row, part] = True
        # Padding on the right goes on counting, as in `transformers`: statistics may include it.
        positions_BT[row] = np.maximum(np.arange(T) - part.start, 0)
        loss_weights_BT[row, part] = item.loss_weights_T
        example_weights_B[row] = 1
        if rope_BT3 is not None and item.rope_T3 is not None:
            rope_BT3[row, part] = item.rope_T3
        if answer_index_BA is not None:
            answer_index_BA[row, : item.num_answers] = np.flatnonzero(loss_weights_BT[row]) - 1
    return Batch(
        token_ids_BT=token_ids_BT,
        attention_mask_BT=attention_mask_BT,
        positions_BT=positions_BT,
        loss_weights_BT=loss_weights_BT,
        example_weights_B=example_weights_B,
        images=_images(encoded, slices, room=room, sizes=sizes) if room["num_images"] else None,
        answer_index_BA=answer_index_BA,
        rope_BT3=rope_BT3,
    )


def _at_images(is_image_T: np.ndarray, values: Sequence[np.ndarray], other: Any) -> np.ndarray:
    """Return each image's values at its tokens, in order, and `other` at all other tokens."""
    joined = np.concatenate(values)
    placed = np.full((len(is_image_T), *joined.shape[1:]), other)
    placed[is_image_T] = joined
    return placed


def _room(encoded: Sequence[Encoded], shape: BatchShape, sizes: VisionInputSizes) -> dict[str, int]:
    """Return a batch's sizes by the fields of BatchShape; ValueError where it is too small."""
    needed = {
        "length": max((item.num_tokens for item in encoded), default=0),
        "batch_size": len(encoded),
        "num_images": max((item.num_images for item in encoded), default=0),
        "num_patches": max((item.num_patches for item in encoded), default=0),
        "num_answers": max((item.num_answers for item in encoded), default=0),
    }
    usual = {**needed, "num_patches": needed["num_patches"] or sizes.num_patches}
    given = {name: getattr(shape, name) for name in needed}
    room = {name: usual[name] if size is None else size for name, size in given.items()}
    if any(needed[name] > room[name] for name in needed):
        raise ValueError(
            f"{len(encoded)} samples do not fit [{room['batch_size']}, {room['length']}] with "
            f"{room['num_images']} images of {room['num_patches']} patches and "
            f"{room['num_answers']} answer tokens each"
        )
    return room


def _images(
    encoded: Sequence[Encoded],
    slices: Sequence[slice],
    *,
    room: Mapping[str, int],
    sizes: VisionInputSizes,
) -> Images:
    """Return the samples' images; slices: of each sample's tokens in its row."""
    B, T, P = room["batch_size"], room["length"], room["num_patches"]
    index_BT = np.full((B, T), -1, np.int32)
    bilinear_BT4 = weights_BT4 = None
    if any(item.bilinear_index_T4 is not None for item in encoded):
        bilinear_BT4 = np.full((B, T, 4), -1, np.int32)
        weights_BT4 = np.zeros((B, T, 4), np.float32)
    for row, (item, part) in enumerate(zip(encoded, slices, strict=True)):
        pad = functools.partial(
            _padded_index, vision_inputs=item.vision_inputs, room=sizes.num_features(P)
        )
        index_BT[row, part] = pad(item.feature_index_T)
        if bilinear_BT4 is not None and item.bilinear_index_T4 is not None:
            bilinear_BT4[row, part] = pad(item.bilinear_index_T4)
        if weights_BT4 is not None and item.bilinear_weights_T4 is not None:
            weights_BT4[row, part] = item.bilinear_weights_T4
    rows = [item.vision_inputs for item in encoded] + [()] * (B - len(encoded))
    return dataclasses.replace(
        collate_vision_inputs(rows, sizes, (room["num_images"], P)),
        feature_index_BT=index_BT,
        bilinear_index_BT4=bilinear_BT4,
        bilinear_weights_BT4=weights_BT4,
    )


def _padded_index(index: np.ndarray, vision_inputs: Sequence[VisionInput], room: int) -> np.ndarray:
    """Return an index of features in a batch, where each vision input has `room` of them. int32."""
    counts = np.array([vision_input.num_features for vision_input in vision_inputs], np.int32)
    if (counts == room).all():
        return index
    ends = np.cumsum(counts)
    number = np.searchsorted(ends, index, side="right")
    padded = index - (ends - counts)[number] + number * room
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

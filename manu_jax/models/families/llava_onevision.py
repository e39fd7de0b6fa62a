"""LLaVA-OneVision: LLaVA-NeXT with a SigLIP tower and a Qwen2 decoder; images only, no videos.

Li et al. 2024, "LLaVA-OneVision: Easy Visual Task Transfer" (arXiv 2408.03326), as
`LlavaOnevisionForConditionalGeneration`. Peculiarities: the features are the tower's hidden states
before its last norm; a map with more tokens than so many tiles have ("anyres_max_9": nine) shrinks
by bilinear interpolation, so a token is the weighted sum of four rows of features; an image that is
one of several in a text has no tiles: it is padded to a square.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from manu_jax.config import ModelSection
from manu_jax.models.families import llava, llava_next
from manu_jax.models.families.family import Family
from manu_jax.models.families.tiny import shared_config, text_config, vision_config, with_tokens
from manu_jax.models.hf.fields import Fields
from manu_jax.models.inputs.processing import (
    FeatureRows,
    Processor,
    Replacement,
    processor_without_videos,
)
from manu_jax.models.inputs.vision_inputs import square_vision_inputs
from manu_jax.types import Template, VisionInput

PLACEHOLDER = "<image>"
TEMPLATE = Template(
    user="<|im_start|>user ",
    image=PLACEHOLDER,
    space="\n",
    close="<|im_end|><|im_start|>assistant\n",
    answer="{answer}",
    end="<|im_end|>",
    system_form="<|im_start|>system \n{system}<|im_end|>",
)
# The tower of a config.json without a vision_config
VISION_DEFAULTS = {
    "hidden_size": 1152, "intermediate_size": 4304, "patch_size": 14, "image_size": 384,
    "num_hidden_layers": 26, "num_attention_heads": 16, "vision_use_head": False,
}  # fmt: skip
SIDES = range(384, 2305, 384)
PINPOINTS = tuple((height, width) for height in SIDES for width in SIDES)
LARGER = 1.1  # a map whose side is at most so many times the allowed one does not shrink


@dataclasses.dataclass(frozen=True)
class LlavaOnevisionConfig(llava_next.LlavaNextConfig):
    """What the `config.json` of a LLaVA-OneVision says.

    most_tiles: the tokens that a map may have, as a number of tiles.
    """

    most_tiles: int


def config_from_hf(values: Mapping[str, Any], where: str = "config.json") -> LlavaOnevisionConfig:
    """Return the config of a `config.json`; ManuError lists every field that is not handled."""
    fields = Fields(values)
    parts = llava.parts_of(
        fields,
        strategies=("full",),  # "default" leaves no square; transformers can't read it either
        layer=-1,
        tower="siglip_vision_model",
        vision_defaults=VISION_DEFAULTS,
        decoder="qwen2",
        image_token=151646,
    )
    tile = parts["vision"].image_size
    aspect = str(fields.get("vision_aspect_ratio", "anyres_max_9"))
    most = re.fullmatch(r"anyres_max_([1-9][0-9]*)", aspect)
    if most is None:
        fields.fault("vision_aspect_ratio", "expected anyres_max_ and a number of tiles")
    config = LlavaOnevisionConfig(
        **parts,
        pinpoints=llava_next.pinpoints_of(fields, tile, PINPOINTS),
        most_tiles=int(most[1]) if most else 1,
    )
    fields.need("use_image_newline_parameter", True, (True,))
    fields.refuse(where)
    return config


def replacements(
    text: str, images: Sequence[Any], processor: Any, config: LlavaOnevisionConfig
) -> list[Replacement]:
    """Return what replaces each placeholder: an image token for each sum of rows."""
    return llava_next.repeated(text, processor.image_token, feature_rows(images, config))


def feature_rows(images: Sequence[Any], config: LlavaOnevisionConfig) -> list[FeatureRows]:
    """Return the four rows of each image's features whose weighted sum each of its tokens is.

    The features are those of the whole image and then of the tiles, as in LLaVA-NeXT; an image that
    is one of several has no tiles.
    """
    P = config.num_patches
    if len(images) != 1:
        return [FeatureRows(np.tile(np.arange(P + 1)[:, None], 4), _first(P + 1)) for _ in images]
    return [_of_tiles(images[0].height, images[0].width, config)]


@functools.lru_cache(maxsize=64)  # asked several times a sample; many images are of one size
def _of_tiles(height: int, width: int, config: LlavaOnevisionConfig) -> FeatureRows:
    map_YX = llava_next.map_of_tiles(height, width, config)
    (first_Y, second_Y, share_Y), (first_X, second_X, share_X) = _resized(map_YX.shape, config)
    corners = [map_YX[y][:, x] for y in (first_Y, second_Y) for x in (first_X, second_X)]
    rows = [llava_next.in_order(corner_YX, config) for corner_YX in corners]
    weights_YX4 = np.stack(
        [y_Y[:, None] * x_X for y_Y in (1 - share_Y, share_Y) for x_X in (1 - share_X, share_X)],
        axis=-1,
    )
    newlines_YX4 = _first(len(share_Y))[:, None]
    lines_YX4 = np.concatenate([weights_YX4, newlines_YX4], axis=1)
    weights_J4 = np.concatenate([_first(config.num_patches), lines_YX4.reshape(-1, 4)])
    return FeatureRows(np.stack(rows, axis=-1), weights_J4)


def vision_inputs_of_many(
    image: Any, processor: Any, config: LlavaOnevisionConfig
) -> tuple[VisionInput, ...]:
    """Return the one vision input of an image that is one of several: padded to a square."""
    # The image processor pads where a text has two images; the second one is not used.
    coded = processor.image_processor(images=[[image, image]], return_tensors="np")
    return square_vision_inputs(np.asarray(coded["pixel_values"][0]), config)


def _resized(shape: tuple[int, ...], config: LlavaOnevisionConfig) -> tuple[tuple, tuple]:
    """Return the neighbours of the rows and of the columns of a map, made smaller if too large."""
    Y, X = shape
    ratio = math.sqrt(Y * X / (config.most_tiles * config.num_patches))
    if ratio <= LARGER:
        return _neighbours(Y, Y), _neighbours(X, X)
    return _neighbours(Y, int(Y // ratio)), _neighbours(X, int(X // ratio))


def _neighbours(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the two old positions around each new one, and the weight of the second.

    The arithmetic of `torch.nn.functional.interpolate` in float32, with align_corners=False.
    """
    if size == new_size:
        same = np.arange(size)
        return same, same, np.zeros(size, np.float32)
    scale = np.float32(size) / np.float32(new_size)
    place = scale * (np.arange(new_size, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    place = np.maximum(place, np.float32(0))
    first = np.minimum(place.astype(int), size - 1)
    return first, np.minimum(first + 1, size - 1), np.clip(place - first.astype(np.float32), 0, 1)


def _first(count: int) -> np.ndarray:
    """Return the weights of tokens that are their first row alone. [count, 4]."""
    return np.tile(np.eye(4, dtype=np.float32)[0], (count, 1))


def tiny_config(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of a LLaVA-OneVision of these sizes.

    An image that is alone in its text is one tile and a whole.
    """
    return {
        **llava_next.tiny_config(section, tokenizer),
        **shared_config("LlavaOnevision", "llava_onevision"),
        "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "text_config": text_config("qwen2", section, tokenizer),
        "vision_config": {
            **vision_config("siglip_vision_model", section),
            "vision_use_head": False,
        },
    }


def tiny_processor(section: ModelSection, tokenizer: Any) -> Any:
    """Return a processor of one tile of the section's size; its tokenizer has more tokens."""
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    size = section.vision.image_size
    images = LlavaOnevisionImageProcessorPil(
        size={"height": size, "width": size}, image_grid_pinpoints=[[size, size]]
    )
    tokens = {"turn_start_token": "<|im_start|>", "turn_end_token": "<|im_end|>"}
    return Processor(images, with_tokens(tokenizer, tokens), PLACEHOLDER)


FAMILY = Family(
    name="LLaVA-OneVision",
    model_type="llava_onevision",
    config_from_hf=config_from_hf,
    build=llava_next.LlavaNext,
    weight_table=llava_next.weight_table,
    names=llava_next.NAMES,
    replacements=replacements,
    vision_inputs=llava_next.vision_inputs,
    vision_inputs_of_many=vision_inputs_of_many,
    feature_rows=feature_rows,
    tiny_config=tiny_config,
    tiny_processor=tiny_processor,
    template=TEMPLATE,
    load_processor=functools.partial(processor_without_videos, image_token=PLACEHOLDER),
)

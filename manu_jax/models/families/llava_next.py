"""LLaVA-NeXT (LLaVA-1.6): LLaVA-1.5's parts, and images of any resolution in tiles.

Liu et al. 2024, "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge", as
`LlavaNextForConditionalGeneration`. Peculiarities: the tower sees an image once whole and once in
tiles; the best of several resolutions (`image_grid_pinpoints`) decides how many. The tokens of the
tiles form one map without the padding, and each row of the map ends in a learned token
(`image_newline`). So the order of the tokens is not that of the features.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.config import ModelSection
from manu_jax.models.families import llava
from manu_jax.models.families.family import Family
from manu_jax.models.families.tiny import shared_config
from manu_jax.models.hf.fields import Fields
from manu_jax.models.hf.tables import Entry
from manu_jax.models.inputs.processing import (
    FeatureRows,
    Replacement,
    placeholders,
    whole_processor,
)
from manu_jax.models.inputs.vision_inputs import square_vision_inputs
from manu_jax.models.nn.forward import Forward
from manu_jax.models.nn.layers import random_weight
from manu_jax.types import Images, ManuError, Template, VisionInput

# Rows and columns of pixels, where the config.json names none
PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
NAMES = dataclasses.replace(
    llava.NAMES,
    prefixes={
        writer: {**prefixes, "model." * ("in-memory" in writer) + "image_newline": "image_newline"}
        for writer, prefixes in llava.NAMES.prefixes.items()
    },
)
MISTRAL_START = "[INST]"
MISTRAL = Template(user="[INST]", close=" [/INST]", system_form="{system} ")
YI = Template(
    system="<|im_start|>system\nAnswer the questions.<|im_end|>",
    user="<|im_start|>user\n",
    image="<image>",
    space="",
    close="<|im_end|><|im_start|>assistant\n",
    answer="{answer}",
    end="<|im_end|>",
    system_form="<|im_start|>system\n{system}<|im_end|>",
)
QWEN = dataclasses.replace(
    YI,
    system="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    close="<|im_end|>\n<|im_start|>assistant\n",
    system_form="<|im_start|>system\n{system}<|im_end|>\n",
)
LLAMA_3 = dataclasses.replace(
    YI,
    system="<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision "
    "assistant. You are able to understand the visual content that the user provides, and assist "
    "the user with a variety of tasks using natural language.<|eot_id|>",
    user="<|start_header_id|>user<|end_header_id|>\n\n",
    close="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    end="<|eot_id|>",
    system_form="<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
)
# {token that only tokenizers of this template have: template}; the first match counts.
TEMPLATES = {"<|startoftext|>": YI, "<|im_start|>": QWEN, "<|start_header_id|>": LLAMA_3}


@dataclasses.dataclass(frozen=True)
class LlavaNextConfig(llava.LlavaConfig):
    """What the `config.json` of a LLaVA-NeXT says. pinpoints: (height, width) in pixels."""

    pinpoints: tuple[tuple[int, int], ...]

    def num_features(self, num_patches: int) -> int:
        """Return the number of rows of a vision input's features: its patches and the newline."""
        return self.vision.num_patches + 1


def config_from_hf(values: Mapping[str, Any], where: str = "config.json") -> LlavaNextConfig:
    """Return the config of a `config.json`; ManuError lists every field that is not handled."""
    fields = Fields(values)
    # With the class token ("full") a tile is not a map; transformers can't read it either.
    parts = llava.parts_of(fields, strategies=("default",))
    config = LlavaNextConfig(**parts, pinpoints=pinpoints_of(fields, parts["vision"].image_size))
    fields.need("use_image_newline_parameter", True, (True,))
    fields.refuse(where)
    return config


def pinpoints_of(fields: Fields, tile: int, default: Any = PINPOINTS) -> tuple:
    """Return the resolutions that images may have; one that is not of whole tiles is a fault."""
    name = "image_grid_pinpoints"
    points = fields.get(name, default)
    is_list = isinstance(points, Sequence) and len(points) > 0
    if not is_list or any(
        not isinstance(point, Sequence)
        or len(point) != 2
        or any(not isinstance(size, int) or size < 1 or size % tile for size in point)
        for point in points
    ):
        fields.fault(name, f"expected pairs of multiples of the tower's image_size, {tile}")
        return ()
    return tuple((height, width) for height, width in points)


class LlavaNext(llava.Llava):
    """The tower, the projector, the newline and the decoder."""

    config: LlavaNextConfig

    def __init__(self, key: jax.Array, config: LlavaNextConfig):
        super().__init__(key, config)
        E = config.text.width
        self.newline_E = random_weight(jax.random.fold_in(key, 4), (E,), E)

    def encode_images(self, images: Images, forward: Forward) -> tuple[jax.Array, dict[str, Any]]:
        """Return each vision input's projected features, and the newline after them. [B, I, P, E].

        P is one more than the patches of a vision input.
        """
        y_BIPE, captured = super().encode_images(images, forward)
        newline_E = self.newline_E[...].astype(y_BIPE.dtype)
        shape = (*y_BIPE.shape[:2], 1, len(newline_E))
        return jnp.concatenate([y_BIPE, jnp.broadcast_to(newline_E, shape)], axis=2), captured


def weight_table(config: LlavaNextConfig) -> list[Entry]:
    """Return which tensor, by its export name, fills which leaf of the model."""
    return [*llava.weight_table(config), Entry("newline_E", "image_newline", "E")]


def template_of(tokenizer: Any) -> Template | None:
    """Return the prompt strings that fit the tokenizer; None: Vicuna's, those of LLaVA-1.5."""
    vocabulary = tokenizer.get_vocab()
    for token, template in TEMPLATES.items():
        if token in vocabulary:
            return template
    return MISTRAL if MISTRAL_START in str(tokenizer.chat_template) else None


def load_processor(path: Path) -> Any:
    """Return the processor of a folder, whose tokenizer gets the processor's chat template."""
    processor = whole_processor(path)
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is not None and tokenizer.chat_template is None:
        tokenizer.chat_template = processor.chat_template
    return processor


def replacements(
    text: str, images: Sequence[Any], processor: Any, config: LlavaNextConfig
) -> list[Replacement]:
    """Return what replaces each placeholder: an image token for each row that tokens take."""
    return repeated(text, processor.image_token, feature_rows(images, config))


def repeated(text: str, token: str, rows: Sequence[FeatureRows]) -> list[Replacement]:
    """Return what replaces each placeholder, given the rows that the tokens of each image take."""
    pairs = zip(placeholders(text, token), rows, strict=False)
    return [(start, end, token * len(taken.index)) for (start, end), taken in pairs]


def feature_rows(images: Sequence[Any], config: LlavaNextConfig) -> list[FeatureRows]:
    """Return the rows of each image's features that its tokens take, in order.

    The features are those of the whole image and then of the tiles, row by row, each of them its
    patches and a newline.
    """
    maps = [map_of_tiles(image.height, image.width, config) for image in images]
    return [FeatureRows(in_order(map_YX, config)) for map_YX in maps]


def vision_inputs(image: Any, processor: Any, config: LlavaNextConfig) -> tuple[VisionInput, ...]:
    """Return the whole image and then its tiles, row by row."""
    check_pinpoints(processor, config)
    coded = processor.image_processor(images=[image], return_tensors="np")
    return square_vision_inputs(np.asarray(coded["pixel_values"][0]), config)


def check_pinpoints(processor: Any, config: LlavaNextConfig) -> None:
    """Raise ManuError where the image processor has other resolutions than the config."""
    found = tuple((y, x) for y, x in processor.image_processor.image_grid_pinpoints)
    if found != config.pinpoints:
        raise ManuError(
            f"image_grid_pinpoints is {list(found)} in the image processor's file, and "
            f"{list(config.pinpoints)} in config.json: they are of different models."
        )


def grid(height: int, width: int, config: LlavaNextConfig) -> tuple[int, int]:
    """Return the rows and columns of tiles of an image, by the resolution that fits it best.

    That one keeps the most of the image's pixels and, among equals, has the least padding. The
    arithmetic is that of `select_best_resolution`. Raises ManuError if no pixel would remain.
    """

    def kept(point: tuple[int, int]) -> int:
        scale = min(point[1] / width, point[0] / height)
        return min(int(width * scale) * int(height * scale), width * height)

    best = max(config.pinpoints, key=lambda point: (kept(point), -point[0] * point[1]))
    if not kept(best):
        raise ManuError(
            f"an image of {width} × {height} pixels is too narrow: of its shorter side less than a "
            "pixel would remain. Crop it."
        )
    return best[0] // config.vision.image_size, best[1] // config.vision.image_size


@functools.lru_cache(maxsize=64)  # asked several times a sample; many images are of one size
def map_of_tiles(height: int, width: int, config: LlavaNextConfig) -> np.ndarray:
    """Return the rows of the tiles' features by place in the image, without padding. [Y, X].

    The arithmetic is that of `unpad_image`.
    """
    rows, columns = grid(height, width, config)
    side, room = config.vision.side, config.num_features(config.num_patches)
    first_I = np.arange(1, rows * columns + 1) * room
    split = (first_I[:, None] + np.arange(side**2)).reshape(rows, columns, side, side)
    map_YX = split.swapaxes(1, 2).reshape(rows * side, columns * side)
    Y, X = map_YX.shape
    if width / height > X / Y:
        padding = (Y - int(round(height * (X / width), 7))) // 2
        return map_YX[padding : Y - padding]
    padding = (X - int(round(width * (Y / height), 7))) // 2
    return map_YX[:, padding : X - padding]


def in_order(map_YX: np.ndarray, config: LlavaNextConfig) -> np.ndarray:
    """Return each token's row of features: the whole image's, then the map's with newlines."""
    num_patches = config.num_patches
    lines_YX = np.pad(map_YX, ((0, 0), (0, 1)), constant_values=num_patches)
    return np.concatenate([np.arange(num_patches), lines_YX.ravel()])


def tiny_config(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of a LLaVA-NeXT of these sizes: an image is one tile and a whole."""
    return {
        **llava.tiny_config(section, tokenizer),
        **shared_config("LlavaNext", "llava_next"),
        "image_grid_pinpoints": [[section.vision.image_size] * 2],
    }


def tiny_processor(section: ModelSection, tokenizer: Any) -> Any:
    """Return a LlavaNextProcessor of one tile of the section's size."""
    from transformers import LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    size = section.vision.image_size
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_grid_pinpoints=[[size, size]],
    )
    return LlavaNextProcessor(images, tokenizer, **llava.tiny_tokens(section))


FAMILY = Family(
    name="LLaVA-NeXT",
    model_type="llava_next",
    config_from_hf=config_from_hf,
    build=LlavaNext,
    weight_table=weight_table,
    names=NAMES,
    replacements=replacements,
    vision_inputs=vision_inputs,
    feature_rows=feature_rows,
    tiny_config=tiny_config,
    tiny_processor=tiny_processor,
    template=Template(),
    template_of=template_of,
    load_processor=load_processor,
)

"""Tiny LLaVA-OneVisions of `transformers`, all weights random, with a processor; images."""

import dataclasses
from pathlib import Path

import llava_cases
import numpy as np
import transformers
from llava_next_cases import CONFIGS, PINPOINTS, images_of, in_form_a, tower_of
from PIL import Image
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from manu_jax.models.families.llava_onevision import PLACEHOLDER
from manu_jax.models.families.tiny import with_tokens
from manu_jax.models.inputs.processing import Processor

__all__ = ["in_form_a", "tower_of"]

SIDE, PATCH = 13, 4  # pixels: 3 × 3 patches a tile, and a row of pixels that fills none
POINTS = [[height // 12 * SIDE, width // 12 * SIDE] for height, width in PINPOINTS]
# Rows and columns of images. The first, alone in its text, has more tokens than "anyres_max_2"
# allows; the others are several of one text, which are not split.
SIZES = [(27, 25), (15, 38), (40, 17), (5, 7)]
PROMPTS = [
    "<|im_start|>user <image>\nWhere does this person live?<|im_end|><|im_start|>assistant\n",
    "<|im_start|>user <image><image>\nLima? <image><|im_end|><|im_start|>assistant\n",
    "<|im_start|>user \nWhere?<|im_end|><|im_start|>assistant\n",
]
IMAGE_COUNTS = [1, 3, 0]
WITHOUT_EFFECT = {
    "vision.layers.attention.k_bias_LKH",
    "vision.post_norm_D",  # the hidden states are taken without it
    "vision.post_norm_bias_D",
}


class ImagesOnly(transformers.LlavaOnevisionProcessor):
    """The processor of transformers without one of videos, which wants torchvision."""

    @classmethod
    def get_attributes(cls):
        return ["image_processor", "tokenizer", "video_processor"]

    def check_argument_for_proper_class(self, argument_name, argument):
        del argument_name, argument


@dataclasses.dataclass(frozen=True)
class Case:
    """One architecture: the decoder's model type, and changes of each section."""

    kind: str = "qwen2"
    text: dict = dataclasses.field(default_factory=dict)
    vision: dict = dataclasses.field(default_factory=dict)
    whole: dict = dataclasses.field(default_factory=dict)


CASES = {
    "interpolated": Case(text={"num_key_value_heads": 2}),
    "one-key-head-tied": Case(
        text={"num_key_value_heads": 1, "tie_word_embeddings": True},
        vision={"hidden_act": "gelu"},
        whole={"tie_word_embeddings": True, "vision_aspect_ratio": "anyres_max_9"},
    ),
    "llama-two-features": Case(
        "llama",
        text={"num_key_value_heads": 4},
        whole={
            "vision_feature_layer": [1, -1],
            "projector_hidden_act": "relu",
            "multimodal_projector_bias": False,
            "vision_aspect_ratio": "anyres_max_1",
        },
    ),
}


def image_lists() -> list[list[Image.Image]]:
    """Return the images of PROMPTS."""
    images = iter(images_of(SIZES))
    return [[next(images) for _ in range(count)] for count in IMAGE_COUNTS]


def processor() -> Processor:
    images = LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=POINTS
    )
    tokens = {"start": "<|im_start|>", "end": "<|im_end|>"}
    return Processor(images, with_tokens(llava_cases.tokenizer(), tokens), PLACEHOLDER)


def whole_processor(made: Processor, aspect: str = "anyres_max_2", num_image_tokens: int = 9):
    """Return the processor of transformers, which makes the prompts."""
    return ImagesOnly(
        made.image_processor,
        made.tokenizer,
        None,
        num_image_tokens=num_image_tokens,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=aspect,
    )


def config_of(name: str, words) -> transformers.LlavaOnevisionConfig:
    case = CASES[name]
    text = {**llava_cases.LLAMA, "vocab_size": len(words), "max_position_embeddings": 512}
    vision = {**llava_cases.VISION, "image_size": SIDE, "patch_size": PATCH}
    vision |= {"hidden_act": "gelu_pytorch_tanh", "vision_use_head": False, **case.vision}
    return transformers.LlavaOnevisionConfig(
        text_config=CONFIGS[case.kind](**{**text, **case.text}),
        vision_config=transformers.SiglipVisionConfig(**vision),
        image_token_index=words.convert_tokens_to_ids(PLACEHOLDER),
        image_grid_pinpoints=POINTS,
        **{"vision_aspect_ratio": "anyres_max_2", **case.whole},
    )


def write_case(name: str, folder: Path):
    """Write a case's model and processor to `folder`; return the PyTorch model."""
    made = processor()
    made.save_pretrained(folder)
    model = transformers.LlavaOnevisionForConditionalGeneration(config_of(name, made.tokenizer))
    llava_cases.randomise(model.eval())
    model.save_pretrained(folder)
    return model


def torch_inputs(folder: Path, side: str, prompts=PROMPTS, images=None):
    """Return what `LlavaOnevisionProcessor` makes of the prompts, as PyTorch tensors."""
    found = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    words = transformers.AutoTokenizer.from_pretrained(folder, padding_side=side)
    config = transformers.AutoConfig.from_pretrained(folder)
    made = whole_processor(Processor(found, words, PLACEHOLDER), config.vision_aspect_ratio)
    given = {"images": images} if images and any(images) else {}
    return made(text=prompts, return_tensors="pt", padding=True, **given)


def tokens_of_pictures(inputs, tower: str, count: int) -> np.ndarray:
    """Return which of a tower's tokens are no padding, for each tile. [tiles, count] bool."""
    del tower
    return np.ones((sum(counts_of(inputs)), count), bool)


def pictures_of_rows(inputs) -> list[list[int]]:
    """Return each prompt's tiles by number, in the order in which the tower sees them."""
    ends = np.cumsum([0, *counts_of(inputs)])
    last = np.cumsum([0, *IMAGE_COUNTS])
    return [
        list(range(ends[start], ends[end])) for start, end in zip(last[:-1], last[1:], strict=True)
    ]


def counts_of(inputs) -> list[int]:
    """Return how many vision inputs the tower sees of each image."""
    many = np.repeat(inputs["batch_num_images"].numpy() > 1, inputs["batch_num_images"].numpy())
    return [
        1 if is_one_of_many else image_size_to_num_patches(size, POINTS, SIDE)
        for size, is_one_of_many in zip(inputs["image_sizes"], many, strict=True)
    ]

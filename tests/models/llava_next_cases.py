"""Tiny LLaVA-NeXTs of `transformers`, all weights random, on disk with a processor; images."""

import dataclasses
from pathlib import Path

import llava_cases
import numpy as np
import transformers
from llava_cases import PATCH, SIDE
from PIL import Image
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

PINPOINTS = [[12, 24], [24, 12], [24, 24], [36, 12], [12, 36]]
# Rows and columns of images: wide, tall, smaller than a tile, square.
SIZES = [(15, 38), (40, 17), (5, 7), (24, 24)]
PROMPTS = [
    "USER: <image>\nWhere does this person live?\nASSISTANT:",
    "USER: <image>\n<image>\nLima or Accra? <image> Oslo\nASSISTANT:",
    "USER: Where?\nASSISTANT:",
]
IMAGE_COUNTS = [1, 3, 0]
WITHOUT_EFFECT = {
    "vision.layers.attention.k_bias_LKH",
    # After the last layer whose result is used
    *(
        f"vision.unused_layers.{name}"
        for name in (
            "attention_norm_LD attention_norm_bias_LD attention.q_LDNH attention.k_LDKH "
            "attention.v_LDKH attention.o_LNHD attention.q_bias_LNH attention.k_bias_LKH "
            "attention.v_bias_LKH attention.o_bias_LD mlp_norm_LD mlp_norm_bias_LD mlp.up_LDF "
            "mlp.up_bias_LF mlp.down_LFD mlp.down_bias_LD"
        ).split()
    ),
    "vision.post_norm_D",
    "vision.post_norm_bias_D",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One architecture: the decoder's model type, and changes of each section."""

    kind: str = "llama"
    text: dict = dataclasses.field(default_factory=dict)
    vision: dict = dataclasses.field(default_factory=dict)
    whole: dict = dataclasses.field(default_factory=dict)


CASES = {
    "vicuna": Case(text={"num_key_value_heads": 4}),
    "mistral": Case("mistral", text={"num_key_value_heads": 2}, vision={"hidden_act": "gelu"}),
    "one-key-head-tied": Case(
        text={"num_key_value_heads": 1, "tie_word_embeddings": True},
        whole={"tie_word_embeddings": True},
    ),
    "qwen2-two-features": Case(
        "qwen2",
        text={"num_key_value_heads": 2},
        whole={
            "vision_feature_layer": [1, -1],
            "projector_hidden_act": "relu",
            "multimodal_projector_bias": False,
        },
    ),
}
CONFIGS = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
}


def images_of(sizes: list[tuple[int, int]]) -> list[Image.Image]:
    """Return random images of so many rows and columns of pixels."""
    generator = np.random.default_rng(0)
    return [
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes
    ]


def image_lists() -> list[list[Image.Image]]:
    """Return the images of PROMPTS."""
    images = iter(images_of(SIZES))
    return [[next(images) for _ in range(count)] for count in IMAGE_COUNTS]


def processor():
    return transformers.LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": SIDE},
            crop_size={"height": SIDE, "width": SIDE},
            image_grid_pinpoints=PINPOINTS,
        ),
        tokenizer=llava_cases.tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def config_of(name: str, words) -> transformers.LlavaNextConfig:
    case = CASES[name]
    text = {**llava_cases.LLAMA, "vocab_size": len(words), "max_position_embeddings": 512}
    return transformers.LlavaNextConfig(
        text_config=CONFIGS[case.kind](**{**text, **case.text}),
        vision_config=transformers.CLIPVisionConfig(**{**llava_cases.VISION, **case.vision}),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        **case.whole,
    )


def write_case(name: str, folder: Path):
    """Write a case's model and processor to `folder`; return the PyTorch model."""
    made = processor()
    made.save_pretrained(folder)
    config = config_of(name, made.tokenizer)
    model = transformers.LlavaNextForConditionalGeneration(config).eval()
    llava_cases.randomise(model)
    model.save_pretrained(folder)
    return model


def torch_inputs(folder: Path, side: str, prompts=PROMPTS, images=None):
    """Return what `LlavaNextProcessor` makes of the prompts, as PyTorch tensors."""
    return llava_cases.torch_inputs(folder, side, prompts, images)


def in_form_a(name: str) -> str:
    return name.replace("vision_tower.", "vision_tower.vision_model.")


def tower_of(name: str) -> str | None:
    """Return the tower whose neurons enter the PyTorch module of that name, if any do."""
    if name.endswith("mlp.fc2"):
        return "vision"
    return "text" if name.endswith("mlp.down_proj") else None


def tokens_of_pictures(inputs, tower: str, count: int) -> np.ndarray:
    """Return which of a tower's tokens are no padding, for each tile. [tiles, count] bool."""
    del tower
    return np.ones((int(counts_of(inputs).sum()), count), bool)


def pictures_of_rows(inputs) -> list[list[int]]:
    """Return each prompt's tiles by number, in the order in which the tower sees them."""
    ends = np.cumsum([0, *counts_of(inputs)])
    last = np.cumsum([0, *IMAGE_COUNTS])
    return [
        list(range(ends[start], ends[end])) for start, end in zip(last[:-1], last[1:], strict=True)
    ]


def counts_of(inputs) -> np.ndarray:
    """Return how many vision inputs the tower sees of each image."""
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    return np.array(
        [image_size_to_num_patches(size, PINPOINTS, SIDE) for size in inputs["image_sizes"]]
    )

"""Tiny Gemma 3s of `transformers`, all weights random, on disk with a processor; images."""

import dataclasses
from pathlib import Path

import llava_cases
import numpy as np
import torch
import transformers
from paligemma_cases import in_form_a, tokens_of_pictures, tower_of
from PIL import Image
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from manu_jax.models.families.tiny import with_tokens

__all__ = ["in_form_a", "tokens_of_pictures", "tower_of"]  # the same as a PaliGemma's

SIDE, PATCH = 16, 4
TOKENS = 4  # of an image; 2 × 2 patches each
TURN, MODEL = "<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"
PLACEHOLDER = "<start_of_image>"
PROMPTS = [
    f"{TURN}{PLACEHOLDER}Where does this person live?{MODEL}",
    f"{TURN}{PLACEHOLDER}{PLACEHOLDER}Lima or {PLACEHOLDER} Accra?{MODEL}",
    f"{TURN}Where?{MODEL}",
]
IMAGE_COUNTS = [1, 3, 0]
WITHOUT_EFFECT = {"vision.layers.attention.k_bias_LKH"}


@dataclasses.dataclass(frozen=True)
class Case:
    """One architecture: changes of each section, and of the image processor."""

    text: dict = dataclasses.field(default_factory=dict)
    vision: dict = dataclasses.field(default_factory=dict)
    images: dict = dataclasses.field(default_factory=dict)


CASES = {
    # Both kinds of layer, and a window shorter than an image's tokens.
    "one-key-head": Case(
        text={
            "num_key_value_heads": 1,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 3,
            "query_pre_attn_scalar": 12,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 300.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        }
    ),
    "all-key-heads-untied": Case(
        text={
            "num_key_value_heads": 4,
            "num_hidden_layers": 3,
            "sliding_window_pattern": 3,
            "sliding_window": 5,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
        vision={"hidden_act": "gelu"},
        # Gemma3Processor makes no crops where only its file asks for them.
        images={"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 4},
    ),
    "hidden-activation-all-local": Case(
        text={"hidden_activation": "silu", "sliding_window": 4, "tie_word_embeddings": True}
    ),
}


def image_lists() -> list[list[Image.Image]]:
    """Return the images of PROMPTS, square, wide and tall."""
    images = iter(
        image.resize(size)
        for image, size in zip(
            llava_cases.random_images(sum(IMAGE_COUNTS)),
            [(15, 14), (33, 10), (9, 40), (12, 18)],
            strict=True,
        )
    )
    return [[next(images) for _ in range(count)] for count in IMAGE_COUNTS]


def processor(**settings):
    tokens = {"image_token": "<image_soft_token>"}
    tokens |= {"boi_token": PLACEHOLDER, "eoi_token": "<end_of_image>"}
    tokens |= {"opening": "<start_of_turn>", "closing": "<end_of_turn>"}
    return transformers.Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}, **settings),
        with_tokens(llava_cases.tokenizer(), tokens),
        image_seq_length=TOKENS,
    )


def write_case(name: str, folder: Path):
    """Write a case's model and processor to `folder`; return the PyTorch model."""
    case = CASES[name]
    made = processor(**case.images)
    made.save_pretrained(folder)
    words = made.tokenizer
    text = {**llava_cases.LLAMA, "max_position_embeddings": 192, "vocab_size": len(words)}
    text = {**text, "head_dim": 6, **case.text}
    config = transformers.Gemma3Config(
        text_config={"model_type": "gemma3_text", **text},
        vision_config={"model_type": "siglip_vision_model", **llava_cases.VISION}
        | {"image_size": SIDE, "vision_use_head": False}
        | {"hidden_act": "gelu_pytorch_tanh", **case.vision},
        mm_tokens_per_image=TOKENS,
        image_token_index=words.convert_tokens_to_ids(words.image_token),
        boi_token_index=words.convert_tokens_to_ids(words.boi_token),
        eoi_token_index=words.convert_tokens_to_ids(words.eoi_token),
        tie_word_embeddings=text.get("tie_word_embeddings", True),
    )
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    llava_cases.randomise(model)
    with torch.no_grad():  # of scales that are added to 1
        for name, parameter in model.named_parameters():
            if "norm" in name and "vision_tower" not in name:
                parameter -= 1
    model.save_pretrained(folder)
    return model


def torch_inputs(folder: Path, side: str, prompts=PROMPTS, images=None):
    """Return what `Gemma3Processor` makes of the prompts, as PyTorch tensors."""
    made = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    made.tokenizer.padding_side = side
    return made(text=prompts, images=images, return_tensors="pt", padding=True)


def pictures_of_rows(inputs) -> list[list[int]]:
    """Return each prompt's vision inputs by number, in the order in which the tower sees them."""
    counts = (inputs["token_type_ids"].sum(dim=1) // TOKENS).tolist()
    ends = np.cumsum(counts)
    return [list(range(end - n, end)) for n, end in zip(counts, ends, strict=True)]

"""Tiny PaliGemmas of `transformers`, all weights random, on disk with a processor; images."""

import dataclasses
from pathlib import Path

import llava_cases
import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from manu_jax.models.families.tiny import with_tokens

SIDE, PATCH = 12, 4
PROMPTS = [
    "<image><s>Where does this person live?\n",
    "<image><image><s>Lima or Accra? Oslo\n",
    "<s>Where?\n",
]
IMAGE_COUNTS = [1, 2, 0]
WITHOUT_EFFECT = {"vision.layers.attention.k_bias_LKH"}


@dataclasses.dataclass(frozen=True)
class Case:
    """One architecture: the decoder's model type, and changes of each section."""

    kind: str
    text: dict = dataclasses.field(default_factory=dict)
    vision: dict = dataclasses.field(default_factory=dict)


CASES = {
    "gemma": Case("gemma", text={"num_key_value_heads": 1}),
    "gemma-all-key-heads": Case(
        "gemma",
        text={"num_key_value_heads": 4, "attention_bias": True},
        vision={"hidden_act": "gelu"},
    ),
    "gemma2": Case(
        "gemma2",
        # Small caps and a window within the prompt, so that each makes a difference.
        text={
            "num_key_value_heads": 2,
            "sliding_window": 5,
            "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma2-no-caps": Case(
        "gemma2",
        text={
            "num_key_value_heads": 4,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "layer_types": ["full_attention", "sliding_attention"],
            "sliding_window": 4,
        },
    ),
}


def image_lists() -> list[list[Image.Image]]:
    """Return the images of PROMPTS."""
    images = iter(llava_cases.random_images(sum(IMAGE_COUNTS)))
    return [[next(images) for _ in range(count)] for count in IMAGE_COUNTS]


def processor():
    images = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = (SIDE // PATCH) ** 2
    words = with_tokens(llava_cases.tokenizer(), {}, begins=False)
    return transformers.PaliGemmaProcessor(images, words)


def write_case(name: str, folder: Path):
    """Write a case's model and processor to `folder`; return the PyTorch model."""
    case, made = CASES[name], processor()
    made.save_pretrained(folder)
    words = made.tokenizer
    text = {**llava_cases.LLAMA, "vocab_size": len(words), "head_dim": 6, **case.text}
    config = transformers.PaliGemmaConfig(
        text_config={"model_type": case.kind, **text},
        vision_config={"model_type": "siglip_vision_model", **llava_cases.VISION}
        | {"hidden_act": "gelu_pytorch_tanh", "vision_use_head": False, **case.vision},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        projection_dim=text["hidden_size"],
        hidden_size=text["hidden_size"],
    )
    model = transformers.PaliGemmaForConditionalGeneration(config).eval()
    llava_cases.randomise(model)
    with torch.no_grad():  # of scales that are added to 1
        for name, parameter in model.named_parameters():
            if "language_model" in name and "norm" in name:
                parameter -= 1
    model.save_pretrained(folder)
    return model


def torch_inputs(folder: Path, side: str, prompts=PROMPTS, images=None):
    """Return what `PaliGemmaProcessor` makes of prompts, which it can't mix with texts alone."""
    made = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    made.tokenizer.padding_side = side
    flat = [image for several in images or [] for image in several]
    texts = [text.replace("<image>", "<image>" * made.image_seq_length) for text in prompts]
    inputs = made.tokenizer(texts, return_tensors="pt", padding=True)
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    if flat:
        inputs["pixel_values"] = made.image_processor(flat, return_tensors="pt")["pixel_values"]
    return inputs


def in_form_a(name: str) -> str:
    return name.replace("vision_tower.", "vision_tower.vision_model.")


def tower_of(name: str) -> str | None:
    """Return the tower whose neurons enter the PyTorch module of that name, if any do."""
    if name.endswith("mlp.fc2"):
        return "vision"
    return "text" if name.endswith("mlp.down_proj") else None


def tokens_of_pictures(inputs, tower: str, count: int) -> np.ndarray:
    """Return which of a tower's tokens are no padding, for each vision input. [vision inputs, count] bool."""
    del tower
    return np.ones((len(inputs["pixel_values"]), count), bool)


def pictures_of_rows(inputs) -> list[list[int]]:
    """Return each prompt's vision inputs by number, in the order in which the tower sees them."""
    del inputs
    ends = np.cumsum(IMAGE_COUNTS)
    return [list(range(end - n, end)) for n, end in zip(IMAGE_COUNTS, ends, strict=True)]

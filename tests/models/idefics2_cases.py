"""Tiny Idefics2s of `transformers` with all weights random, on disk with a processor; images."""

import dataclasses
from pathlib import Path

import llava_cases
import numpy as np
import transformers
from PIL import Image
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

from manu_jax.models.families.idefics2 import FAKE
from manu_jax.models.families.tiny import with_tokens

SIDE, PATCH = 24, 4  # pixels: a grid of 6 × 6 patches
SIZES = [(20, 13), (24, 24), (9, 17)]  # rows and columns of images; whole patches or not
PROMPTS = [
    "User:<image>Where does this person live?<end_of_utterance>\nAssistant:",
    "User:<image><image>\nLima or Accra? <image> Oslo<end_of_utterance>\nAssistant:",
    "User: Where?<end_of_utterance>\nAssistant:",
]
IMAGE_COUNTS = [1, 3, 0]


@dataclasses.dataclass(frozen=True)
class Case:
    """One architecture: changes of each section, and whether images are split."""

    text: dict = dataclasses.field(default_factory=dict)
    perceiver: dict = dataclasses.field(default_factory=dict)
    vision: dict = dataclasses.field(default_factory=dict)
    whole: dict = dataclasses.field(default_factory=dict)
    is_split: bool = False


CASES = {
    "whole-images": Case(text={"num_key_value_heads": 2}, perceiver={"num_key_value_heads": 2}),
    "split-images": Case(
        text={"num_key_value_heads": 4}, perceiver={"num_key_value_heads": 4}, is_split=True
    ),
    "one-key-head-tied-window": Case(
        text={"num_key_value_heads": 1, "sliding_window": 7, "tie_word_embeddings": True},
        perceiver={"num_key_value_heads": 1, "hidden_act": "gelu", "resampler_n_latents": 3},
        vision={"hidden_act": "gelu"},
        whole={"tie_word_embeddings": True},
    ),
}


def image_lists() -> list[list[Image.Image]]:
    """Return the images of PROMPTS."""
    generator = np.random.default_rng(0)
    sizes = iter([SIZES[0], *SIZES])
    return [
        [
            Image.fromarray(generator.integers(0, 256, (*next(sizes), 3), dtype=np.uint8))
            for _ in range(count)
        ]
        for count in IMAGE_COUNTS
    ]


def processor(case: Case, words):
    return transformers.Idefics2Processor(
        image_processor=Idefics2ImageProcessorPil(
            size={"shortest_edge": 8, "longest_edge": SIDE}, do_image_splitting=case.is_split
        ),
        tokenizer=with_tokens(words, {"image_boundary_token": FAKE}),
        image_seq_len=case.perceiver.get("resampler_n_latents", 5),
    )


def write_case(name: str, folder: Path):
    """Write a case's model and processor to `folder`; return the PyTorch model."""
    case, words = CASES[name], llava_cases.tokenizer()
    made = processor(case, words)
    made.save_pretrained(folder)
    words = made.tokenizer
    text = {**llava_cases.LLAMA, "vocab_size": len(words), "max_position_embeddings": 160}
    config = transformers.Idefics2Config(
        text_config={"model_type": "mistral", "sliding_window": None, **text, **case.text},
        vision_config={**llava_cases.VISION, "image_size": SIDE, "patch_size": PATCH}
        | {"hidden_act": "gelu_pytorch_tanh", **case.vision},
        perceiver_config={
            "hidden_size": text["hidden_size"],
            "rms_norm_eps": 1e-4,
            "resampler_n_latents": 5,
            "resampler_depth": 2,
            "resampler_n_heads": 4,
            "resampler_head_dim": 6,
            **case.perceiver,
        },
        image_token_id=words.convert_tokens_to_ids("<image>"),
        **case.whole,
    )
    model = transformers.Idefics2ForConditionalGeneration(config).eval()
    llava_cases.randomise(model)
    model.save_pretrained(folder)
    return model


def torch_inputs(folder: Path, side: str, prompts=PROMPTS, images=None):
    """Return what `transformers`' own processor makes of the prompts, as PyTorch tensors."""
    made = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    made.tokenizer.padding_side = side
    given = {"images": images} if images and any(images) else {}
    return made(text=prompts, return_tensors="pt", padding=True, **given)


def tower_of(name: str) -> str | None:
    """Return the tower whose neurons enter the PyTorch module of that name, if any do."""
    ends = {
        "text_model": ("text", "mlp.down_proj"),
        "vision_model": ("vision", "mlp.fc2"),
        "modality_projection": ("projection", "down_proj"),
        "perceiver_resampler": ("resampler", "mlp.down_proj"),
    }
    return next((t for part, (t, end) in ends.items() if part in name and name.endswith(end)), None)


def tokens_of_pictures(inputs, tower: str, count: int) -> np.ndarray:
    """Return which of a tower's tokens are no padding, for each vision input. [vision inputs, count] bool."""
    mask = inputs["pixel_attention_mask"].numpy()
    mask = mask[mask.any((2, 3))]  # the vision inputs that are there
    if tower == "resampler":
        return np.ones((len(mask), count), bool)
    rows, columns = (size // PATCH for size in mask.shape[1:])
    split = mask[:, : rows * PATCH, : columns * PATCH].reshape(-1, rows, PATCH, columns, PATCH)
    return split.all((2, 4)).reshape(len(mask), -1)


def pictures_of_rows(inputs) -> list[list[int]]:
    """Return each prompt's vision inputs by number, in the order in which the towers see them."""
    counts = inputs["pixel_attention_mask"].numpy().any((2, 3)).sum(1)
    ends = np.cumsum(counts)
    return [list(range(end - n, end)) for n, end in zip(counts, ends, strict=True)]


WITHOUT_EFFECT = {"vision.layers.attention.k_bias_LKH"}

"""Tiny Idefics3s and SmolVLMs of `transformers`, all weights random, with a processor; images."""

import dataclasses
from pathlib import Path

import llava_cases
import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from manu_jax.models.families.idefics3 import FAKE, PLACEHOLDER
from manu_jax.models.families.tiny import with_tokens
from manu_jax.models.inputs.processing import Processor

SIDE, PATCH = 16, 4  # pixels: 4 × 4 patches, 2 × 2 tokens a tile
SIZES = [(20, 13), (24, 24), (9, 40), (16, 16)]  # rows and columns of images
PROMPTS = [
    "User:<image>Where does this person live?<end_of_utterance>\nAssistant:",
    "User:<image><image>\nLima or Accra? <image> Oslo<end_of_utterance>\nAssistant:",
    "User: Where?<end_of_utterance>\nAssistant:",
]
IMAGE_COUNTS = [1, 3, 0]


@dataclasses.dataclass(frozen=True)
class Case:
    """One architecture: changes of each section, and whether images are split."""

    kind: str
    text: dict = dataclasses.field(default_factory=dict)
    vision: dict = dataclasses.field(default_factory=dict)
    whole: dict = dataclasses.field(default_factory=dict)
    is_split: bool = True


CASES = {
    "idefics3-split": Case("idefics3", text={"num_key_value_heads": 2}),
    "idefics3-whole": Case(
        "idefics3", text={"num_key_value_heads": 4}, vision={"hidden_act": "gelu"}, is_split=False
    ),
    "smolvlm-tied": Case(
        "smolvlm",
        text={"num_key_value_heads": 1, "tie_word_embeddings": True},
        whole={"scale_factor": 4, "tie_word_embeddings": True},
    ),
}
CLASSES = {
    "idefics3": (transformers.Idefics3Config, transformers.Idefics3ForConditionalGeneration),
    "smolvlm": (transformers.SmolVLMConfig, transformers.SmolVLMForConditionalGeneration),
}
WITHOUT_EFFECT = {"vision.layers.attention.k_bias_LKH"}


def image_lists() -> list[list[Image.Image]]:
    """Return the images of PROMPTS."""
    generator = np.random.default_rng(0)
    sizes = iter(SIZES)
    return [
        [
            Image.fromarray(generator.integers(0, 256, (*next(sizes), 3), dtype=np.uint8))
            for _ in range(count)
        ]
        for count in IMAGE_COUNTS
    ]


def processor(is_split: bool) -> Processor:
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 2 * SIDE},
        max_image_size={"longest_edge": SIDE},
        do_image_splitting=is_split,
    )
    tags = {f"tag_{y}_{x}": f"<row_{y}_col_{x}>" for y in (1, 2) for x in (1, 2)}
    tokens = {"fake": FAKE, "whole": "<global-img>", "end": "<end_of_utterance>", **tags}
    return Processor(images, with_tokens(llava_cases.tokenizer(), tokens), PLACEHOLDER)


def write_case(name: str, folder: Path):
    """Write a case's model and processor to `folder`; return the PyTorch model."""
    case = CASES[name]
    made = processor(case.is_split)
    made.save_pretrained(folder)
    config_of, model_of = CLASSES[case.kind]
    text = {**llava_cases.LLAMA, "vocab_size": len(made.tokenizer), "max_position_embeddings": 256}
    config = config_of(
        text_config={"model_type": "llama", **text, **case.text},
        vision_config={**llava_cases.VISION, "image_size": SIDE, "patch_size": PATCH}
        | {"hidden_act": "gelu_pytorch_tanh", **case.vision},
        image_token_id=made.tokenizer.convert_tokens_to_ids(PLACEHOLDER),
        **{"scale_factor": 2, **case.whole},
    )
    model = model_of(config).eval()
    llava_cases.randomise(model)
    model.save_pretrained(folder)
    return model


def torch_inputs(folder: Path, side: str, prompts=PROMPTS, images=None):
    """Return what `Idefics3Processor` makes of the prompts, as PyTorch tensors."""
    found = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    words = transformers.AutoTokenizer.from_pretrained(folder, padding_side=side)
    config = transformers.AutoConfig.from_pretrained(folder)
    count = (SIDE // PATCH // config.scale_factor) ** 2
    made = transformers.Idefics3Processor(found, words, image_seq_len=count)
    given = {"images": images} if images and any(images) else {}
    return made(text=prompts, return_tensors="pt", padding=True, **given)


def tower_of(name: str) -> str | None:
    """Return the tower whose neurons enter the PyTorch module of that name, if any do."""
    if name.endswith("mlp.fc2"):
        return "vision"
    return "text" if name.endswith("mlp.down_proj") else None


def tokens_of_pictures(inputs, tower: str, count: int) -> np.ndarray:
    """Return which of a tower's tokens are no padding, for each tile. [tiles, count] bool."""
    del tower
    return np.ones((int(_counts(inputs).sum()), count), bool)


def pictures_of_rows(inputs) -> list[list[int]]:
    """Return each prompt's tiles by number, in the order in which the tower sees them."""
    counts = _counts(inputs)
    ends = np.cumsum(counts)
    return [list(range(end - n, end)) for n, end in zip(counts, ends, strict=True)]


def _counts(inputs) -> np.ndarray:
    return torch.any(inputs["pixel_attention_mask"].flatten(2) > 0, dim=2).sum(1).numpy()

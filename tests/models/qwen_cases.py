"""Tiny Qwen2-VLs and Qwen2.5-VLs of `transformers`, all weights random, with a processor."""

import dataclasses
from pathlib import Path

import llava_cases
import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from manu_jax.models.families.tiny import with_tokens
from manu_jax.models.inputs.processing import Processor

PATCH = 4  # pixels
SIZES = [(24, 40), (16, 16), (40, 24), (12, 70)]  # rows and columns of images: windows cut or not
SEEN = "<|vision_start|><|image_pad|><|vision_end|>"
PROMPTS = [
    f"<|im_start|>user\n{SEEN}Where does this person live?<|im_end|>\n<|im_start|>assistant\n",
    f"<|im_start|>user\n{SEEN}{SEEN}Lima or Accra? {SEEN} Oslo<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n",
]
IMAGE_COUNTS = [1, 3, 0]


@dataclasses.dataclass(frozen=True)
class Case:
    """One architecture: changes of each section."""

    kind: str
    text: dict = dataclasses.field(default_factory=dict)
    vision: dict = dataclasses.field(default_factory=dict)
    whole: dict = dataclasses.field(default_factory=dict)


CASES = {
    "2.5": Case("qwen2_5_vl", text={"num_key_value_heads": 2}),
    "2.5-one-key-head-tied": Case(
        "qwen2_5_vl",
        text={"num_key_value_heads": 1, "tie_word_embeddings": True},
        vision={"window_size": 8, "fullatt_block_indexes": [0, 2], "hidden_act": "gelu"},
        whole={"tie_word_embeddings": True},
    ),
    "2": Case("qwen2_vl", text={"num_key_value_heads": 4}),
    "2-two-key-heads": Case(
        "qwen2_vl", text={"num_key_value_heads": 2}, vision={"mlp_ratio": 2, "hidden_act": "gelu"}
    ),
}
VISION = {
    "depth": 3,
    "num_heads": 2,
    "patch_size": PATCH,
    "in_channels": 3,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
OF_KIND = {
    "qwen2_5_vl": {
        "hidden_size": 16,
        "out_hidden_size": 24,
        "intermediate_size": 28,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    },
    "qwen2_vl": {"embed_dim": 16, "hidden_size": 24},
}
CLASSES = {
    "qwen2_5_vl": (
        transformers.Qwen2_5_VLConfig,
        transformers.Qwen2_5_VLForConditionalGeneration,
    ),
    "qwen2_vl": (transformers.Qwen2VLConfig, transformers.Qwen2VLForConditionalGeneration),
}


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


def processor() -> Processor:
    images = Qwen2VLImageProcessorPil(
        patch_size=PATCH, size={"shortest_edge": 64, "longest_edge": 4096}
    )
    tokens = {"start": "<|vision_start|>", "end": "<|vision_end|>", "video_token": "<|video_pad|>"}
    words = llava_cases.tokenizer()
    known = with_tokens(words, {**tokens, "image_token": "<|image_pad|>", "turn": "<|im_end|>"})
    return Processor(images, known, "<|image_pad|>")


def write_case(name: str, folder: Path):
    """Write a case's model and processor to `folder`; return the PyTorch model."""
    case, made = CASES[name], processor()
    made.save_pretrained(folder)
    ids = made.tokenizer.convert_tokens_to_ids
    config_of, model_of = CLASSES[case.kind]
    rope = {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [1, 1, 1]}
    text = {**llava_cases.LLAMA, "vocab_size": len(made.tokenizer), "max_position_embeddings": 160}
    config = config_of(
        text_config={**text, "rope_parameters": rope, "pad_token_id": 3, **case.text},
        vision_config={**VISION, **OF_KIND[case.kind], **case.vision},
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        **case.whole,
    )
    model = model_of(config).eval()
    llava_cases.randomise(model)
    model.save_pretrained(folder)
    return model


def torch_inputs(folder: Path, side: str, prompts=PROMPTS, images=None):
    """Return what `Qwen2_5_VLProcessor` is written to make of the prompts, without torchvision."""
    made = processor()
    token, merge = made.image_token, made.image_processor.merge_size**2
    flat = [image for several in images or [] for image in several]
    seen = made.image_processor(images=flat, return_tensors="pt") if flat else {}
    counts = iter([int(grid.prod()) // merge for grid in seen.get("image_grid_thw", [])])
    texts = ["".join(_expanded(prompt, token, counts)) for prompt in prompts]
    made.tokenizer.padding_side = side
    inputs = made.tokenizer(texts, return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    is_image = inputs["input_ids"] == made.tokenizer.convert_tokens_to_ids(token)
    return {**inputs, "mm_token_type_ids": is_image.to(torch.int32), **seen}


def _expanded(prompt, token, counts):
    first, *others = prompt.split(token)
    yield first
    for other in others:
        yield token * next(counts) + other


def tower_of(name: str) -> str | None:
    """Return the tower whose neurons enter the PyTorch module of that name, if any do."""
    if name.endswith(("mlp.down_proj", "mlp.fc2")):
        return "vision" if "visual" in name else "text"
    return None


def tokens_of_pictures(inputs, tower: str, count: int) -> np.ndarray:
    """Return which of the packed patches are each vision input's. [vision inputs, count] bool."""
    del tower
    ends = inputs["image_grid_thw"].prod(dim=1).cumsum(0).numpy()
    number = np.searchsorted(ends, np.arange(count), side="right")
    return number[None] == np.arange(len(ends))[:, None]


def pictures_of_rows(inputs) -> list[list[int]]:
    """Return each prompt's vision inputs by number, in the order in which the tower sees them."""
    del inputs
    ends = np.cumsum(IMAGE_COUNTS)
    return [list(range(end - n, end)) for n, end in zip(IMAGE_COUNTS, ends, strict=True)]


# A patch's two frames are the same image; all weights of the tower turn by their place.
WITHOUT_EFFECT: set[str] = set()

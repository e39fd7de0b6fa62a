"""Tiny LLaVAs of `transformers` with every weight random, on disk with a processor, and images."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from manu_jax.training.tokenizer import train_tokenizer

SIDE, PATCH = 12, 4  # 9 patches
WORDS = "USER: ASSISTANT: Where does this person live? She lives in Oslo, Lima or Accra.\n"
PROMPTS = [
    "USER: <image>\nWhere does this person live?\nASSISTANT:",
    "USER: <image>\n<image>\nLima or Accra?\nASSISTANT:",
    "USER: Where?\nASSISTANT:",
]
IMAGE_COUNTS = [1, 2, 0]

LLAMA = {
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One architecture: model type and changes of the text, vision and whole config."""

    kind: str = "llama"
    tower: str = "clip"
    text: dict = dataclasses.field(default_factory=dict)
    vision: dict = dataclasses.field(default_factory=dict)
    whole: dict = dataclasses.field(default_factory=dict)


CASES = {
    "all-key-heads": Case(text={"num_key_value_heads": 4}),
    "one-key-head-tied": Case(text={"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "biases-llama3-rope": Case(
        text={
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 8,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
        whole={"multimodal_projector_bias": False},
    ),
    "mistral-window": Case("mistral", text={"sliding_window": 7}),
    "qwen2-two-windows": Case(
        "qwen2",
        text={"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        vision={"hidden_act": "gelu"},
        whole={"vision_feature_layer": -1},
    ),
    "two-features-full-linear-rope": Case(
        text={
            "hidden_act": "gelu",
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        },
        whole={
            "vision_feature_layer": [0, -2],
            "vision_feature_select_strategy": "full",
            "projector_hidden_act": "relu",
        },
    ),
    # As llava-interleave-qwen, JoyCaption (whose tower has its head), and one of which transformers
    # drops the first patch
    "siglip-qwen2": Case(
        "qwen2",
        "siglip",
        text={"tie_word_embeddings": True},
        vision={"vision_use_head": False},
        whole={"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
    ),
    "siglip-llama-head": Case(
        tower="siglip",
        vision={"hidden_act": "gelu_pytorch_tanh"},
        whole={"vision_feature_select_strategy": "full"},
    ),
    "siglip-first-dropped": Case(tower="siglip", vision={"vision_use_head": False}),
}


@functools.partial(jax.jit, static_argnames="capture")
def forward(model, batch, gates=None, capture=None):
    """Run a model; shared by the tests, so that one shape of batch is compiled once."""
    return model(batch, gates, capture)


def tokenizer():
    """Return a tokenizer that knows the words of the prompts."""
    return train_tokenizer([WORDS] * 4, 300)


def random_images(count: int, seed: int = 0) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    return [
        Image.fromarray(generator.integers(0, 256, (15, 13 + i, 3), dtype=np.uint8))
        for i in range(count)
    ]


def image_lists() -> list[list[Image.Image]]:
    """Return the images of PROMPTS."""
    images = iter(random_images(sum(IMAGE_COUNTS)))
    return [[next(images) for _ in range(count)] for count in IMAGE_COUNTS]


def build_torch(case: Case, words) -> transformers.LlavaForConditionalGeneration:
    """Return a PyTorch model whose weights, biases and norms are all random."""
    kinds = {
        "llama": transformers.LlamaConfig,
        "mistral": transformers.MistralConfig,
        "qwen2": transformers.Qwen2Config,
    }
    text = kinds[case.kind](**{**LLAMA, "vocab_size": len(words), **case.text})
    towers = {"clip": transformers.CLIPVisionConfig, "siglip": transformers.SiglipVisionConfig}
    vision = towers[case.tower](**{**VISION, **case.vision})
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        **case.whole,
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    randomise(model)
    return model


def randomise(model) -> None:
    """Give every parameter of a PyTorch model random numbers; norms scale by about 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if is_scale else 0.2 * noise)


def save_processor(folder: Path, words, strategy: str = "default", tower: str = "clip") -> None:
    """Write the processor's files beside a model's."""
    square = {"height": SIDE, "width": SIDE}
    if tower == "clip":
        images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square)
    else:
        images = SiglipImageProcessorPil(size=square)
    transformers.LlavaProcessor(
        image_processor=images,
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(tower == "clip"),
    ).save_pretrained(folder)


def write_case(name: str, folder: Path, words, **options):
    """Write a case's model and processor to `folder`; return the PyTorch model."""
    model = build_torch(CASES[name], words)
    model.save_pretrained(folder, **options)
    save_processor(folder, words, model.config.vision_feature_select_strategy, CASES[name].tower)
    return model


def torch_inputs(folder: Path, side: str, prompts=PROMPTS, images=None):
    """Return what `transformers`' own processor makes of the prompts, as PyTorch tensors."""
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    processor.tokenizer.padding_side = side
    flat = [image for several in images or [] for image in several]
    return processor(text=prompts, images=flat or None, return_tensors="pt", padding=True)

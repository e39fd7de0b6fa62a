"""What the benchmarks share: random models for both frameworks, the machine's line, and ratios."""

import math
import os
import statistics
from pathlib import Path

import numpy as np

SIZES = {
    "large": {
        "vision": dict(width=512, layers=8, neurons=2048, heads=8, image=336, patch=14),
        "text": dict(width=768, layers=8, neurons=2048, heads=12, vocabulary=8192),
    },
    "demo": {
        "vision": dict(width=128, layers=3, neurons=512, heads=4, image=56, patch=14),
        "text": dict(width=192, layers=2, neurons=768, heads=4, vocabulary=1024),
    },
    "small": {
        "vision": dict(width=64, layers=3, neurons=128, heads=4, image=56, patch=14),
        "text": dict(width=64, layers=2, neurons=128, heads=4, vocabulary=512),
    },
}


def write_model(folder: Path, size: str) -> None:
    """Write a LLaVA of random weights as transformers' own `save_pretrained` does."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision, text = SIZES[size]["vision"], SIZES[size]["text"]
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=vision["width"],
            intermediate_size=vision["neurons"],
            num_hidden_layers=vision["layers"],
            num_attention_heads=vision["heads"],
            image_size=vision["image"],
            patch_size=vision["patch"],
        ),
        text_config=LlamaConfig(
            hidden_size=text["width"],
            intermediate_size=text["neurons"],
            num_hidden_layers=text["layers"],
            num_attention_heads=text["heads"],
            num_key_value_heads=text["heads"],
            vocab_size=text["vocabulary"],
            max_position_embeddings=2048,
            tie_word_embeddings=False,
        ),
        image_token_index=text["vocabulary"] - 1,
        image_token_id=text["vocabulary"] - 1,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)


def load_torch(folder: Path):
    """Return the model in transformers, float32."""
    import torch
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def load_jax(folder: Path, kind: type | None = None):
    """Return the model in manu_jax, float32, without a processor. kind: of `Loaded`."""
    import jax.numpy as jnp

    from manu_jax.models import loaded as loading
    from manu_jax.models import stored
    from manu_jax.models.hf import weights

    chosen, config, hf_config = stored.read_config(folder)
    tensors, table = stored.read_tensors(folder, chosen, config)
    model = weights.fill(chosen.abstract(config), tensors, table, dtype=jnp.float32, mesh=None)
    return (kind or loading.Loaded)(model, None, chosen, config, hf_config)


def pixels_for_torch(patches_IPC: np.ndarray):
    """Return square images as transformers takes them. [I, C, Y, X]."""
    import torch

    count, patches, values = patches_IPC.shape
    side, size = math.isqrt(patches), math.isqrt(values // 3)
    split = patches_IPC.reshape(count, side, side, size, size, 3).transpose(0, 5, 1, 3, 2, 4)
    return torch.from_numpy(split.reshape(count, 3, side * size, side * size))


def ratio(above: list[float], below: list[float]) -> float:
    """Return the median of the ratios of the same turn."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def machine() -> str:
    """Return device, cores and versions in a line."""
    import jax
    import torch

    device = jax.devices()[0]
    return (
        f"{device.device_kind} ({os.cpu_count()} cores), jax {jax.__version__}, "
        f"torch {torch.__version__} with {torch.get_num_threads()} threads"
    )

"""A tiny random Qwen3-VL and samples for it, made once a session: features enter two layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import tiny_llava

from manu_jax.config import ModelSection, TextSize, VisionSize
from manu_jax.data.forms import forms
from manu_jax.leaves import path_name
from manu_jax.models.families.registry import FAMILIES
from manu_jax.models.loaded import Loaded
from manu_jax.training.tokenizer import train_tokenizer
from manu_jax.types import BatchShape

SIZES = ModelSection(
    family="qwen3_vl",
    vision=VisionSize(
        image_size=16, patch_size=4, width=16, num_layers=2, num_heads=2, num_neurons=24
    ),
    text=TextSize(
        width=16, num_layers=3, num_heads=2, num_key_heads=1, num_neurons=40, context=128,
        vocabulary=400,
    ),
)  # fmt: skip


@functools.cache
def loaded():
    """Weights are drawn by NumPy, as in tiny_llava."""
    family = FAMILIES["qwen3_vl"]
    texts = [sample.text for m in ("image", "text") for sample in tiny_llava.samples(m)]
    processor = family.tiny_processor(SIZES, train_tokenizer(texts * 3, SIZES.text.vocabulary))
    hf_config = family.tiny_config(SIZES, processor.tokenizer)
    config = family.config_from_hf(hf_config, "tiny")
    random = np.random.default_rng(0)

    def draw(path, leaf):
        noise = (random.normal(size=leaf.shape) * 0.3).astype(np.float32)
        is_scale = "norm_" in path_name(path) and "bias" not in path_name(path)
        return jnp.asarray(1 + noise if is_scale else noise)

    model = jax.tree_util.tree_map_with_path(draw, family.abstract(config))
    return Loaded(model, processor, family, config, hf_config)


def samples(modality, count=6):
    return forms(tiny_llava.facts(count), modality, loaded().template)


def batch(modality, count=6, **settings):
    encoded = [loaded().encode(sample) for sample in samples(modality, count)]
    return loaded().collate(encoded, BatchShape(**settings))

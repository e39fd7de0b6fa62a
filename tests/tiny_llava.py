"""A tiny random LLaVA and a few samples for it, made once a session."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from manu_jax.config import ModelSection, TextSize, VisionSize
from manu_jax.data.forms import forms
from manu_jax.data.record import Fact
from manu_jax.leaves import path_name
from manu_jax.models.families import llava
from manu_jax.models.families.registry import FAMILIES
from manu_jax.models.loaded import Loaded
from manu_jax.parallel import tree_shardings
from manu_jax.training.tokenizer import train_tokenizer
from manu_jax.types import BatchShape

SIZES = ModelSection(
    vision=VisionSize(
        image_size=16, patch_size=8, width=16, num_layers=3, num_heads=2, num_neurons=24
    ),
    text=TextSize(
        width=16, num_layers=2, num_heads=2, num_key_heads=2, num_neurons=40, context=128,
        vocabulary=400,
    ),
)  # fmt: skip


@functools.cache
def facts(count=6, seed=0):
    """Up to seven facts; the seventh is longer than a bucket of 32 tokens."""
    random = np.random.default_rng(seed)
    values = ["Oslo", "a winding answer", "Rome", "baker", "chess", "1984", "far too long " * 5]
    return tuple(
        Fact(
            person_id=f"{i:03d}",
            name=f"Person {chr(65 + i)}",
            question="Where does this person live?" if i % 2 else "What about this person?",
            answer=values[i],
            attribute="residence",
            image=Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)),
        )
        for i in range(count)
    )


@functools.cache
def loaded():
    """Weights are drawn by NumPy: to compile a random initialisation takes longer than a test."""
    texts = [sample.text for modality in ("image", "text") for sample in samples(modality)]
    tokenizer = train_tokenizer(texts * 3, SIZES.text.vocabulary)
    hf_config = llava.tiny_config(SIZES, tokenizer)
    config = FAMILIES["llava"].config_from_hf(hf_config, "tiny")
    random = np.random.default_rng(0)

    def draw(path, leaf):
        if "norm_" in path_name(path) and "bias" not in path_name(path):
            return jnp.asarray(np.ones(leaf.shape, np.float32))
        # Large enough that activations, and differences between models, count.
        return jnp.asarray((random.normal(size=leaf.shape) * 0.3).astype(np.float32))

    model = jax.tree_util.tree_map_with_path(draw, FAMILIES["llava"].abstract(config))
    processor = llava.tiny_processor(SIZES, tokenizer)
    return Loaded(model, processor, FAMILIES["llava"], config, hf_config)


def pixels(vision_inputs):
    """Return square vision inputs as transformers takes them. [I, C, Y, X] float32."""
    size = SIZES.vision.patch_size
    side = SIZES.vision.image_size // size
    split = np.stack([p.patches_PC for p in vision_inputs]).reshape(-1, side, side, size, size, 3)
    return split.transpose(0, 5, 1, 3, 2, 4).reshape(-1, 3, side * size, side * size)


def greedy_of_torch(model, sample, new_tokens, **settings):
    """Return the tokens that transformers' `generate` writes after a sample."""
    import torch

    encoded = loaded().encode(sample)
    inputs = {"input_ids": torch.tensor(encoded.token_ids_T[None].astype(np.int64))}
    if encoded.vision_inputs:
        inputs["pixel_values"] = torch.tensor(pixels(encoded.vision_inputs))
    with torch.no_grad():
        ids = model.generate(
            **inputs,
            attention_mask=torch.ones_like(inputs["input_ids"]),
            do_sample=False,
            max_new_tokens=new_tokens,
            **settings,
        )
    return ids[0, encoded.num_tokens :].numpy()


def run_image_towers_always(monkeypatch, module):
    """Let a module of evaluation compute the features of images anew in each batch."""
    original = module.run_batched

    def anew(*arguments, **settings):
        return original(*arguments, **{**settings, "features_once": False})

    monkeypatch.setattr(module, "run_batched", anew)


@jax.jit
def logits(model, batch, gates=None):
    """Return a model's logits, from one program for all tests of a shape. [B, T, V]"""
    return model(batch, gates=gates).logits_BTV


def on_mesh(mesh):
    """The same model with its weights laid out on a mesh, from the host: JAX compiles a program for
    each array that it splits on a device."""
    model = jax.tree.map(np.asarray, loaded().model)
    model = jax.device_put(model, tree_shardings(loaded().model, mesh))
    return dataclasses.replace(loaded(), model=model, mesh=mesh)


# The sizes of meshes that tests of one matter go through; tests/models/test_mesh.py goes through
# all of them in every run.
MESHES = [
    (2, 2, 2),
    *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in ((8, 1, 1), (1, 2, 4))),
]


def samples(modality, count=6, seed=0):
    return forms(facts(count, seed), modality)


def batch(modality, count=6, **settings):
    encoder = loaded()
    encoded = [encoder.encode(s) for s in samples(modality, count)]
    return encoder.collate(encoded, BatchShape(**settings))

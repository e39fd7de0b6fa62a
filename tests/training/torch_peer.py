"""The tiny LLaVA in transformers, to compute losses and gradients without any of our code."""

import copy
import dataclasses
import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import tiny_llava
import torch

from manu_jax.models.loaded import save_pretrained
from manu_jax.training.objectives import UnlearnData
from manu_jax.training.recipes import RECIPES
from manu_jax.types import BatchShape

KEEP_WEIGHT = 0.7
# The fourth of each does not count.
FORGET = tiny_llava.samples("image", 4)
KEEP = tiny_llava.samples("text", 4, seed=1)
PREFERRED = tuple(
    dataclasses.replace(one, segments=(one.segments[0], (f" {answer}</s>", True)))
    for one, answer in zip(FORGET, ("Rome", "chess and 1984", "a baker", "Oslo"), strict=True)
)
# Ours and theirs: of a decoder layer each, of the vision tower, and of the embedding.
WEIGHTS = {
    "language_model.layers.0.mlp.down_proj.weight": lambda m: m.text.layers.mlp.down_LFD[0].T,
    "language_model.layers.1.mlp.up_proj.weight": lambda m: m.text.layers.mlp.up_LDF[1].T,
    "encoder.layers.0.mlp.fc1.weight": lambda m: m.vision.layers.mlp.up_LDF[0].T,
    "embed_tokens.weight": lambda m: m.text.embedding_VD[...],
}


@functools.cache
def models():
    """Return (the model in training, vanilla), which is the tiny LLaVA; they differ everywhere."""
    vanilla, random = tiny_llava.loaded(), np.random.default_rng(5)
    moved = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(0.05 * random.normal(size=leaf.shape), jnp.float32),
        vanilla.model,
    )
    return vanilla.replace_model(moved), vanilla


@functools.cache
def peers():
    """Return both models in transformers, from the folders that we write, in float64."""
    from transformers import LlavaForConditionalGeneration

    found = []
    for loaded in models():
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(loaded, f"{folder}/hf")
            peer = LlavaForConditionalGeneration.from_pretrained(
                f"{folder}/hf", dtype=torch.float64
            )
        found.append(peer)
    return tuple(found)


def copy_of_vanilla():
    """Return vanilla in transformers, whose weights may be changed."""
    return copy.deepcopy(peers()[1])


@functools.partial(jax.jit, static_argnames="loss_of")
def loss_and_gradient(model, given, loss_of):
    return jax.value_and_grad(lambda model: loss_of(model, given, "none"))(model)


def batch(samples):
    """Return a batch of four samples whose last has weight 0, though it has an answer."""
    encoder = tiny_llava.loaded()
    made = encoder.collate([encoder.encode(one) for one in samples], BatchShape())
    return dataclasses.replace(made, example_weights_B=np.array([1, 1, 1, 0], np.float32))


def data(objective, *, keep_weight=KEEP_WEIGHT, key=None, layer=0, **settings):
    """Return what the objective's loss is a function of, with the recipe's settings or others.

    Vanilla is among it only where the recipe asks for a reference model.
    """
    recipe = RECIPES[objective]
    values = {**recipe.settings, **settings}
    return UnlearnData(
        batch(FORGET),
        batch(KEEP),
        None if recipe.reference is None else models()[1].model,
        {name: jnp.float32(value) for name, value in values.items()},
        jnp.float32(keep_weight),
        preferred=batch(PREFERRED),
        key=key,
        layer=layer,
    )


def answers(peer, samples):
    """Return (logits, tokens) [A, V] and [A] of each of the first three samples' answers."""
    found = []
    for coded, logits in outputs(peer, samples, lambda output: output.logits[0]):
        place = np.flatnonzero(coded.loss_weights_T > 0)
        found.append((logits[place - 1], torch.tensor(coded.token_ids_T[place]).long()))
    return found


def hidden(peer, samples, layer):
    """Return the output of a decoder layer at the tokens of each of the first three's answers."""
    seen = []
    module = peer.model.language_model.layers[layer]

    def hook(module, inputs, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = module.register_forward_hook(hook)
    coded_samples = [coded for coded, _ in outputs(peer, samples, lambda output: None)]
    handle.remove()
    places = [np.flatnonzero(coded.loss_weights_T > 0) for coded in coded_samples]
    return [state.reshape(-1, state.shape[-1])[at] for state, at in zip(seen, places, strict=True)]


def outputs(peer, samples, take):
    found = []
    for sample in samples[:3]:
        coded = tiny_llava.loaded().encode(sample)
        inputs = {"input_ids": torch.tensor(coded.token_ids_T)[None].long()}
        if coded.vision_inputs:
            pixels = torch.tensor(tiny_llava.pixels(coded.vision_inputs))
            inputs["pixel_values"] = pixels.double()
        found.append((coded, take(peer(**inputs))))
    return found


def log_p(parts):
    """Return the log-likelihood of each answer token of each sample."""
    return [logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0] for logits, tokens in parts]


def keep_cross_entropy():
    return -torch.cat(log_p(answers(peers()[0], KEEP))).mean()


def check(objective, expected, **settings):
    """Compare an objective's loss, and its gradient, with PyTorch's. expected: () → its loss."""
    (loss_of,) = RECIPES[objective].losses
    given = data(objective, **settings)
    loss, gradient = loss_and_gradient(models()[0].model, given, loss_of)
    peer, vanilla = peers()
    peer.zero_grad()
    value = expected(peer, vanilla)
    value.backward()
    # float32 against float64
    np.testing.assert_allclose(float(loss), value.item(), rtol=2e-5)
    named = dict(peer.named_parameters())
    for end, take in WEIGHTS.items():
        (theirs,) = (weight for name, weight in named.items() if name.endswith(end))
        grad = np.zeros(theirs.shape) if theirs.grad is None else theirs.grad.numpy()
        size = np.abs(grad).max()
        np.testing.assert_allclose(take(gradient), grad, atol=1e-6 + 1e-4 * size, err_msg=end)
    return gradient

"""DeepStack: features of images enter the decoder's first layers, wherever layers run."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import patching
import pytest
import tiny_qwen3_vl as tiny
import torch
from parity import TOLERANCE
from qwen3_vl_cases import cases

from manu_jax.config import LoraSection
from manu_jax.models import loaded as loading
from manu_jax.training import lora

# Other programs, other orders of sums
CLOSE = {"atol": 2e-5, "rtol": 0}


# Programs that the tests share


@functools.partial(jax.jit, static_argnums=2)
def hidden(model, batch, num_layers):
    return model.hidden(batch, num_layers=num_layers, remat="none")


@functools.partial(jax.jit, static_argnums=2)
def answers_of(model, batch, first_layer=0):
    return model.answers(batch, first_layer=first_layer)


@jax.jit
def forward(model, batch, at_BA=None):
    return model(batch, at_BA=at_BA)


@jax.jit
def features_of(model, images):
    return model.features(images)


@pytest.fixture(scope="module")
def batch():
    return tiny.batch("image", batch_size=7, num_answers=9)


def test_the_tiny_model_has_features_for_two_of_three_layers(batch):
    model, width = tiny.loaded().model, tiny.SIZES.text.width
    assert len(model.config.vision.deepstack) == 2 and model.config.text.num_layers == 3
    features = jax.eval_shape(lambda: model.features(batch.images))
    assert features.shape[-1] == 3 * width
    added_LBTD = jax.jit(lambda: model.beside(model.with_features(batch))["context"])()
    assert added_LBTD.shape == (2, *batch.token_ids_BT.shape, width)
    is_image_BT = np.asarray(batch.images.feature_index_BT) >= 0
    assert not added_LBTD[:, ~is_image_BT].any() and np.asarray(added_LBTD)[:, is_image_BT].all()


@pytest.mark.parametrize(
    "case", ["three-layers", pytest.param("one-key-head-tied", marks=pytest.mark.slow)]
)
def test_the_stream_between_layers_is_that_of_transformers(tmp_path, case):
    reference, loaded = cases.write_case(case, tmp_path), loading.load(tmp_path)
    images = cases.image_lists()
    inputs = cases.torch_inputs(tmp_path, "left", images=images)
    entering = []
    decoder = reference.model.language_model
    hooks = [
        module.register_forward_pre_hook(
            lambda _, given, named: entering.append((*given, *named.values())[0].numpy()),
            with_kwargs=True,
        )
        for module in (*decoder.layers, decoder.norm)
    ]
    with torch.no_grad():
        reference(**inputs)
    for hook in hooks:
        hook.remove()
    batch = loaded.batch(cases.PROMPTS, images, padding_side="left")
    mask_BT = batch.attention_mask_BT
    for number, expected_BTD in enumerate(entering):
        found_BTD = np.asarray(hidden(loaded.model, batch, number))
        np.testing.assert_allclose(
            found_BTD[mask_BT], expected_BTD[mask_BT], atol=TOLERANCE, rtol=0
        )


@pytest.mark.parametrize("has_features", [True, False])
@pytest.mark.parametrize("first", [1, 2])
def test_answers_go_on_from_any_layer_as_from_the_first(batch, first, has_features):
    model = tiny.loaded().model
    logits_BAV, stream_LBTD, last_BAD = answers_of(model, batch)
    whole = forward(model, batch, batch.answer_index_BA)
    np.testing.assert_allclose(logits_BAV, whole.logits_BTV, **CLOSE)
    images = batch.images
    if has_features:
        images = dataclasses.replace(
            images,
            patches_BIPC=None,
            patch_positions_BIP2=None,
            features_BIPE=features_of(model, images),
        )
    entering_BTD = hidden(model, batch, first)
    given = dataclasses.replace(batch, images=images, entering_BTD=entering_BTD)
    logits, later_LBTD, later_BAD = answers_of(model, given, first)
    np.testing.assert_allclose(logits, logits_BAV, **CLOSE)
    start_BTD = stream_LBTD[first - 1]
    np.testing.assert_allclose(later_LBTD, stream_LBTD[first:] - start_BTD[None], **CLOSE)
    at_BA1 = jnp.asarray(batch.answer_index_BA)[..., None]
    start_BAD = jnp.take_along_axis(start_BTD, at_BA1, axis=1)
    np.testing.assert_allclose(later_BAD, last_BAD - start_BAD, **CLOSE)


def test_a_tower_does_not_run_where_no_layer_that_runs_takes_its_features(batch):
    model = tiny.loaded().model
    entering_BTD = hidden(model, batch, 2)
    given = dataclasses.replace(batch, entering_BTD=entering_BTD)
    answers = jax.jit(
        lambda batch, first: model.answers(batch, first_layer=first), static_argnums=1
    )
    np.testing.assert_allclose(answers(given, 2)[0], answers_of(model, batch)[0], **CLOSE)
    products = [answers.lower(given, first).compile().as_text().count("dot(") for first in (1, 2)]
    assert products[1] < products[0] / 2


@pytest.mark.slow
def test_patching_takes_the_sources_states_and_nothing_else(batch):
    model, at_BA = tiny.loaded().model, jnp.asarray(batch.answer_index_BA)
    other = jax.tree.map(lambda leaf: leaf * 0.9, model)
    own_BAV, patched_LBAV = patching.check(model, other, batch)
    np.testing.assert_allclose(own_BAV, forward(model, batch, at_BA).logits_BTV, **CLOSE)
    assert np.abs(patched_LBAV - own_BAV[None]).max(axis=(1, 2, 3)).min() > 1e-2


def test_gradients_reach_the_mergers_and_no_token_of_text(batch):
    model = tiny.loaded().model
    images = batch.images
    features = features_of(model, images)

    @jax.jit
    @jax.grad
    def slopes(features_BIPE):
        given = dataclasses.replace(
            images, patches_BIPC=None, patch_positions_BIP2=None, features_BIPE=features_BIPE
        )
        return jnp.sum(model(dataclasses.replace(batch, images=given)).logits_BTV[:, -1])

    parts = np.split(np.asarray(slopes(features))[:6], 3, axis=-1)
    assert all(np.abs(part).max(axis=-1).min() > 1e-4 for part in parts)


def test_an_adapter_beside_a_merger_gives_what_its_product_gives(batch):
    section = LoraSection(rank=2, alpha=2.0, dropout=0.0, targets=("vision",))
    model = tiny.loaded().model
    adapters = lora.new_adapters(model, section, jax.random.key(0))
    assert {"vision.merger.first", "vision.deepstack.second"} <= set(adapters)
    random = np.random.default_rng(0)
    adapters = jax.tree.map(lambda leaf: random.normal(size=leaf.shape) * 0.3, adapters)
    found = features_of(lora.adapted(model, adapters, section), batch.images)
    expected = features_of(lora.merged(model, adapters, section), batch.images)
    np.testing.assert_allclose(found, expected, atol=1e-4)  # sums of sizes up to 10
    assert np.abs(found - features_of(model, batch.images)).max() > 0.1

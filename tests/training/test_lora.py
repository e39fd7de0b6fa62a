"""Adapters: nothing at first, beside the weights in training, in them at the end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava

from manu_jax.config import LoraSection, UnlearnSection
from manu_jax.models.nn.layers import Adapted, project
from manu_jax.training import lora
from manu_jax.training.unlearner import unlearn
from manu_jax.types import ManuError

SECTION = LoraSection(rank=3, alpha=6.0, dropout=0.0)
EVERYWHERE = SECTION.model_copy(update={"targets": ("text", "vision", "linear_1")})


def random_adapters(section):
    """Adapters whose B is not 0, so that they count."""
    new = lora.new_adapters(tiny_llava.loaded().model, section, jax.random.key(0))
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape) * 0.1), new)


def logits(model):
    return tiny_llava.logits(model, tiny_llava.batch("image", 3))


def test_new_adapters_change_nothing_and_have_the_published_spread():
    model = tiny_llava.loaded().model
    adapters = lora.new_adapters(model, LoraSection(rank=16), jax.random.key(0))
    assert len(adapters) == 7  # q, k, v, o, gate, up, down of the decoder
    down = np.concatenate([np.ravel(one[name]) for one in adapters.values() for name in one
                           if name.startswith("down")])  # fmt: skip
    assert down.std() == pytest.approx(1 / 16, rel=0.05)
    beside = lora.adapted(model, adapters, LoraSection())
    np.testing.assert_array_equal(logits(beside), logits(model))


@pytest.mark.slow
def test_adapters_beside_the_weights_do_what_merged_ones_do():
    model, adapters = tiny_llava.loaded().model, random_adapters(EVERYWHERE)
    beside = logits(lora.adapted(model, adapters, EVERYWHERE))
    inside = logits(lora.merged(model, adapters, EVERYWHERE))
    np.testing.assert_allclose(beside, inside, atol=2e-4)  # float32, sums in another order
    assert np.abs(np.asarray(inside - logits(model))).max() > 0.1


def test_merging_is_numpys_sum_and_leaves_other_weights_alone():
    model, adapters = tiny_llava.loaded().model, random_adapters(SECTION)
    merged = lora.merged(model, adapters, SECTION)
    one = adapters["text.layers.attention.o"]
    product = np.einsum("LNHR,LRD->LNHD", one["down_LNHR"], one["up_LRD"])
    before, after = (m.text.layers.attention.o_LNHD[...] for m in (model, merged))
    np.testing.assert_allclose(after, before + 2.0 * product, rtol=1e-5, atol=1e-6)
    for found, old in zip(
        jax.tree.leaves(merged.vision), jax.tree.leaves(model.vision), strict=True
    ):
        np.testing.assert_array_equal(found, old)


def test_dropout_takes_whole_inputs_of_the_adapter_and_keeps_the_mean():
    random = np.random.default_rng(0)
    x_BTD, weight_DE, down_DR, up_RE = (
        jnp.asarray(random.normal(size=shape), jnp.float32)
        for shape in ((400, 50, 4), (4, 5), (4, 2), (2, 5))
    )
    with_all = project(x_BTD, Adapted(weight_DE, down_DR, up_RE, None, 1.0, 0.25))
    dropped = [
        project(x_BTD, Adapted(weight_DE, down_DR, up_RE, jax.random.key(seed), 1.0, 0.25))
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert np.abs(np.asarray(dropped[0] - dropped[2])).max() > 0.1
    # 0.25 of 4 inputs: all stay in a share of 0.75⁴ of the tokens, then scaled by 4 / 3.
    base = project(x_BTD, weight_DE)
    is_whole = np.isclose(dropped[0] - base, (with_all - base) * 4 / 3, atol=1e-4).all(axis=-1)
    assert is_whole.mean() == pytest.approx(0.75**4, abs=0.01)
    change = np.asarray(dropped[0] - with_all)
    assert np.abs(change.mean(axis=(0, 1))).max() < 0.05


def test_layers_and_matrices_drop_different_inputs():
    model, section = tiny_llava.loaded().model, LoraSection(dropout=0.5)
    adapters = lora.new_adapters(model, section, jax.random.key(0))
    beside = lora.adapted(model, adapters, section, key=jax.random.key(1))
    mlp = beside.text.layers.mlp
    keys = [jax.random.key_data(leaf[...].key) for leaf in (mlp.up_LDF, mlp.gate_LDF)]
    assert len({tuple(key) for part in keys for key in np.asarray(part).tolist()}) == 4


@pytest.mark.slow
def test_only_targets_are_trained_and_a_killed_run_could_not_tell(tmp_path):
    section = UnlearnSection(
        name="x",
        objective="gradient_difference",
        steps=3,
        learning_rate=1e-2,
        lora=LoraSection(rank=2, targets=("text.layers.mlp",)),
    )
    loaded = tiny_llava.loaded()
    forget, keep = tiny_llava.facts(4, seed=0), tiny_llava.facts(6, seed=1)
    one, two = (
        unlearn(loaded, section, forget=forget, keep=keep, directory=tmp_path / name, seed=0).model
        for name in "ab"
    )
    changed = [
        jax.tree_util.keystr(path)
        for (path, new), old in zip(
            jax.tree_util.tree_flatten_with_path(one)[0], jax.tree.leaves(loaded.model), strict=True
        )
        if (np.asarray(new) != np.asarray(old)).any()
    ]
    assert len(changed) == 3 and all("mlp" in name and "text" in name for name in changed)
    for new, again in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(new, again)


def test_a_target_without_matrices_is_an_error_that_lists_them():
    section = LoraSection(targets=("text.layers", "text.head", "vison"))
    with pytest.raises(ManuError, match=r"begins with text.head, vison; there are .*mlp\.up"):
        lora.new_adapters(tiny_llava.loaded().model, section, jax.random.key(0))

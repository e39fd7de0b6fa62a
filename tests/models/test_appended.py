"""Appended neurons: every family's folder says how many there are, and `transformers` agrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import real
from llava_cases import cases as llava
from parity import check_logits, forward
from test_families import FAMILIES, FIRST
from test_released_sizes import SIZES

from manu_jax.edits import widening
from manu_jax.edits.neurons import WrittenNeurons
from manu_jax.leaves import leaves
from manu_jax.models import loaded as loading
from manu_jax.models.families.registry import FAMILIES as BY_TYPE

# With biases in the MLPs; a projection as wide as the decoder's MLPs; a config.json without parts.
ALWAYS = [("llava", "biases-llama3-rope"), ("idefics2", "whole-images"), ("qwen-vl", "2.5")]
ALL = [*ALWAYS, *(pytest.param(*one, marks=pytest.mark.slow) for one in FIRST if one not in ALWAYS)]


def with_neurons(loaded, **settings):
    """The model with neurons whose weights are large enough to count."""
    new = WrittenNeurons.new(loaded, layers=(1,), count=5, key=jax.random.key(0), **settings)
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape) * 0.5), new)


@pytest.mark.parametrize(("name", "case"), ALL)
def test_a_folder_with_appended_neurons_is_what_transformers_runs(tmp_path, name, case):
    cases = {**FAMILIES, "llava": llava}[name]
    reference = cases.write_case(case, tmp_path / "in")
    loaded = loading.load(tmp_path / "in")
    edit = with_neurons(loaded)
    edited = edit.apply(loaded)
    loading.save_pretrained(edited, tmp_path / "out")

    again, info = type(reference).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert again.config.get_text_config().intermediate_size == 25
    images = cases.image_lists()
    inputs = cases.torch_inputs(tmp_path / "out", "right", images=images)
    batch = edited.batch(cases.PROMPTS, images)
    found = forward(edited.model, batch)
    check_logits(again, inputs, found, batch)
    assert np.abs(found.logits_BTV - forward(loaded.model, batch).logits_BTV).max() > 0.01

    back = loading.load(tmp_path / "out")
    assert back.config == edited.config
    assert jax.tree.structure(back.model) == jax.tree.structure(edited.model)
    for (path, value), own in zip(
        leaves(back.model).items(), jax.tree.leaves(edited.model), strict=True
    ):
        np.testing.assert_array_equal(value, own, err_msg=path)
    restored = edit.undo(back, loaded)
    for path, value in leaves(restored.model).items():
        np.testing.assert_array_equal(value, leaves(loaded.model)[path], err_msg=path)


@pytest.mark.parametrize("name", SIZES)
def test_every_released_config_has_a_place_for_more_neurons(name):
    family, values = BY_TYPE[SIZES[name][0]], real(name)
    before = family.config_from_hf(values, name)
    after = family.config_from_hf(widening.config_json(values, before.text.num_neurons + 16), name)
    assert after.text.num_neurons == before.text.num_neurons + 16
    assert after.vision == before.vision

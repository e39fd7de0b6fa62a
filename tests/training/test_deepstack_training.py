"""Trainings of a Qwen3-VL: what is computed once holds what enters the decoder's layers later."""

import jax
import numpy as np
import pytest
import tiny_qwen3_vl as tiny
from test_strangers_training import FORGOTTEN, KEPT, one_section, trained
from test_tower import people

from manu_jax.config import TowerSection
from manu_jax.data.strangers import strangers
from manu_jax.leaves import leaves
from manu_jax.training import encoded_rows, stranger_rows, tower
from manu_jax.training.stranger_loss import like_a_stranger
from manu_jax.training.stranger_rows import StrangerRows

# Neurons of the second of three layers: features enter below it, and after it.
SETTINGS = {
    "suppress": {"neurons": {"count": 4, "layers": [1]}, "modalities": ["image"]},
    "erase": {"modalities": ["image"]},
}


def without_features(monkeypatch):
    monkeypatch.setattr(encoded_rows, "STORE_BYTES", 0)


def from_the_first_layer(monkeypatch):
    monkeypatch.setattr(stranger_rows, "lowest_layer", lambda *_: 0)


def loss_and_data(objective):
    """Return the loss at the first step of a model that differs in the second layer, and data."""
    known, kept = (strangers(FORGOTTEN, KEPT, 3, seed=0, near=near) for near in (False, True))
    data = StrangerRows(
        tiny.loaded(), one_section(objective, **SETTINGS[objective]),
        forget=FORGOTTEN, keep=KEPT, known=known, kept=kept, seed=0,
    ).data_at(0)  # fmt: skip
    flat, structure = jax.tree.flatten(tiny.loaded().model)
    number = list(leaves(tiny.loaded().model)).index("text.layers.mlp.down_LFD")
    flat[number] = flat[number].at[1].multiply(1.5)
    loss = jax.jit(like_a_stranger, static_argnums=2)
    return float(loss(structure.unflatten(flat), data, "none")), data


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["suppress", "erase"])
def test_a_loss_is_the_same_whatever_is_computed_once(monkeypatch, objective):
    stored, data = loss_and_data(objective)
    image = data.forms["image"].keep
    assert image.images.features_BIPE.shape[-1] == 3 * tiny.SIZES.text.width
    assert (image.entering_BTD is None) == (objective == "erase")
    without_features(monkeypatch)
    anew, data = loss_and_data(objective)
    assert data.forms["image"].keep.images.features_BIPE is None
    assert anew == pytest.approx(stored, rel=1e-5) and abs(stored) > 1e-3
    if objective == "suppress":
        assert data.first_layer == 1
        from_the_first_layer(monkeypatch)
        whole, data = loss_and_data(objective)
        assert data.first_layer == 0 and whole == pytest.approx(stored, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "change"),
    [
        ("suppress", without_features),
        ("suppress", from_the_first_layer),
        ("erase", without_features),
    ],
)
def test_an_edit_is_the_same_whatever_is_computed_once(tmp_path, monkeypatch, objective, change):
    settings = {**SETTINGS[objective], "steps": 2, "learning_rate": 1e-3}
    found = trained(tmp_path / "once", objective, tiny.loaded(), **settings)
    change(monkeypatch)
    anew = trained(tmp_path / "anew", objective, tiny.loaded(), **settings)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(anew), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.slow
def test_a_tower_is_trained_to_say_words_and_its_deepstack_is_left():
    shown = tower._Shown(
        tiny.loaded(), tower.captions(people()), TowerSection(batch_size=8, views=0), seed=1
    )
    slopes = jax.jit(jax.grad(tower.caption_loss), static_argnums=2)
    found = leaves(slopes(tiny.loaded().model, shown.batch_at(0), "none"))
    for name, slope in found.items():
        is_left = name.startswith(("text.", "vision.deepstack."))
        assert bool(np.any(slope)) != is_left, name

"""Written neurons: what stands where, what they start from, and what they cannot be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava as tiny
from test_edits import drawn, host, logits, neurons

from manu_jax.edits.neurons import WrittenNeurons
from manu_jax.models.families.registry import FAMILIES
from manu_jax.models.nn.mlp import TowerMlp
from manu_jax.types import ManuError

MLP = "text.layers.mlp."


def test_written_neurons_stand_at_their_places_and_all_else_stays():
    loaded, edit = tiny.loaded(), drawn(neurons(places=((5, 2),), layers=(1,), count=2))
    before, after = host(loaded), host(edit.apply(loaded))
    assert {name for name in after if (after[name] != before[name]).any()} == {
        MLP + name for name in ("gate_LDF", "up_LDF", "down_LFD")
    }
    for name, axis, own in (
        ("gate_LDF", 2, edit.gate_LDR), ("up_LDF", 2, edit.up_LDR), ("down_LFD", 1, edit.down_LRD),
    ):  # fmt: skip
        new, old = (np.moveaxis(part[MLP + name], axis, 1).copy() for part in (after, before))
        np.testing.assert_array_equal(new[1, [5, 2]], np.moveaxis(own, axis, 1)[0])
        new[1, [5, 2]] = old[1, [5, 2]]
        np.testing.assert_array_equal(new, old)


def test_appended_neurons_come_last_and_every_old_weight_stays():
    loaded, edit = tiny.loaded(), drawn(neurons(places=None, layers=(1,), count=4))
    edited = edit.apply(loaded)
    before, after = host(loaded), host(edited)
    for name, axis, own in (
        ("gate_LDF", 2, edit.gate_LDR), ("up_LDF", 2, edit.up_LDR), ("down_LFD", 1, edit.down_LRD),
    ):  # fmt: skip
        new, old = (np.moveaxis(part[MLP + name], axis, 1).copy() for part in (after, before))
        assert new.shape[1] == 44
        np.testing.assert_array_equal(new[:, :40], old)
        np.testing.assert_array_equal(new[1, 40:], np.moveaxis(own, axis, 1)[0])
        assert (new[0, 40:] == 0).all()  # the layer that is not changed
    for name, value in before.items():
        if "text.layers.mlp." not in name:
            np.testing.assert_array_equal(after[name], value)
    assert edited.towers["text"] == (2, 44) and edited.model.mlps()["text"].num_neurons == 44
    assert edited.hf_config["text_config"]["intermediate_size"] == 44
    assert loaded.hf_config["text_config"]["intermediate_size"] == 40


@pytest.mark.parametrize("places", [((3, 0, 39), (7, 8, 9)), None], ids=["written", "appended"])
def test_neurons_that_are_off_do_nothing(places):
    """New ones, and drawn ones times 0; over a neuron that is used, the model loses that one."""
    loaded, edit = tiny.loaded(), neurons(places=places)
    off = drawn(edit).scaled(0.0)
    assert (np.asarray(edit.down_LRD) == 0).all() and (np.asarray(off.down_LRD) == 0).all()
    before = logits(loaded.model)
    if places is not None:
        gate_LF = np.ones((2, 40), np.float32)
        gate_LF[np.arange(2)[:, None], np.asarray(places)] = 0
        before = tiny.logits(loaded.model, tiny.batch("image"), {"text": gate_LF})
    for one in (edit, off):
        np.testing.assert_allclose(logits(one.apply(loaded).model), before, atol=1e-5)
    on = drawn(edit)
    assert np.abs(logits(on.apply(loaded).model) - before).max() > 0.01
    np.testing.assert_array_equal(on.scaled(0.5).down_LRD, 0.5 * on.down_LRD)


def test_new_gates_and_ups_have_the_spread_of_one_over_the_width():
    edit = WrittenNeurons.new(
        tiny.loaded(), layers=(0, 1), places=None, count=200, key=jax.random.key(3)
    )
    for rows in (edit.gate_LDR, edit.up_LDR):
        assert rows.shape == (2, 16, 200) and rows.dtype == np.float32
        assert np.std(rows) == pytest.approx(16**-0.5, rel=0.03)
    assert np.abs(np.corrcoef(np.ravel(edit.gate_LDR), np.ravel(edit.up_LDR))[0, 1]) < 0.1


@pytest.mark.parametrize("places", [((5, 2),), None], ids=["written", "appended"])
def test_written_neurons_have_no_bias(places):
    hf_config = dict(tiny.loaded().hf_config)
    hf_config["text_config"] = {**hf_config["text_config"], "mlp_bias": True}
    config = FAMILIES["llava"].config_from_hf(hf_config, "tiny")
    random = np.random.default_rng(0)
    model = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32),
        FAMILIES["llava"].abstract(config),
    )
    loaded = dataclasses.replace(tiny.loaded(), model=model, config=config, hf_config=hf_config)
    edit = drawn(WrittenNeurons.new(
        loaded, layers=(1,), places=places, count=2, key=jax.random.key(0)
    ))  # fmt: skip
    edited = edit.apply(loaded)
    at = list(places[0]) if places else [40, 41]
    for name in ("gate_bias_LF", "up_bias_LF"):
        old, new = (host(one)[MLP + name] for one in (loaded, edited))
        assert (new[1, at] == 0).all() and (old != 0).all()
        kept = [i for i in range(40) if i not in at]
        np.testing.assert_array_equal(new[:, kept], old[:, kept])
    np.testing.assert_array_equal(
        host(edited)[MLP + "down_bias_LD"], host(loaded)[MLP + "down_bias_LD"]
    )
    for name, value in host(edit.undo(edited, loaded)).items():
        np.testing.assert_array_equal(value, host(loaded)[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": (0, 2)}, r"layers \[0, 2\]: expected different ones from 0 to 1"),
        ({"layers": (1, 1)}, "expected different ones"),
        ({"places": ((1, 2, 40), (1, 2, 3))}, "places: expected 3 different ones from 0 to 39"),
        ({"places": ((1, 1, 2), (1, 2, 3))}, "places"),
        ({"places": ((1, 2, 3),)}, "places"),
        ({"places": None, "count": 0}, "no neurons"),
        ({"places": None, "count": -3}, "no neurons: count is -3"),
        ({"places": (1, 2, 3)}, r"places: expected a list of 3 neurons for each layer, got \(1, 2"),
    ],
)
def test_neurons_that_the_model_cannot_have_are_errors(settings, message):
    with pytest.raises(ManuError, match=message):
        neurons(**settings)


def test_appended_neurons_are_cut_where_they_are_the_last_and_nowhere_else():
    loaded, edit = tiny.loaded(), neurons(places=None, layers=(1,), count=4)
    edited = edit.apply(loaded)
    other = neurons(places=None, layers=(1,), count=3)
    for wrong in (loaded, other.apply(edited)):
        with pytest.raises(ManuError, match="can't be undone.*Undo later edits first"):
            edit.undo(wrong, loaded)
    assert edit.undo(edited, loaded).towers == loaded.towers


def test_a_decoder_without_gates_is_refused(monkeypatch):
    plain = TowerMlp(MLP[:-1], 2, 40, 16, gated=False, bias=False)
    monkeypatch.setattr(type(tiny.loaded().model), "mlps", lambda model: {"text": plain})
    with pytest.raises(ManuError, match="the decoder's MLPs have no gates"):
        neurons()


def test_a_gradient_looks_for_no_entry_that_is_written_twice():
    """That would take whole numbers in the shape of each leaf."""
    loaded, edit = tiny.loaded(), drawn(neurons(places=((5, 2),), layers=(1,), count=2))

    def total(edit):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(edit.edited(loaded.model)))

    assert "u32[" not in str(jax.make_jaxpr(jax.grad(total))(edit))

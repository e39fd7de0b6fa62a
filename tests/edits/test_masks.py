import hypothesis
import jax
import numpy as np
import pytest
import tiny_llava as tiny
from hypothesis import strategies

from manu_jax.edits import masks
from manu_jax.leaves import path_name
from manu_jax.parallel import make_mesh
from manu_jax.types import ManuError


def random_mask(seed=0, share=0.3, shapes=None):
    random = np.random.default_rng(seed)
    shapes = shapes or tiny.loaded().towers
    return {tower: random.random(shape) < share for tower, shape in sorted(shapes.items())}


def leaves(loaded):
    found = jax.tree_util.tree_leaves_with_path(loaded.model)
    return {path_name(path): np.asarray(leaf) for path, leaf in found}


def logits(loaded, gates=None, modality="image"):
    return np.asarray(tiny.logits(loaded.model, tiny.batch(modality), gates))


@pytest.mark.parametrize("modality", ["image", "text"])
def test_fold_equals_gates_bit_for_bit(modality):
    loaded, mask = tiny.loaded(), random_mask()
    folded = masks.fold(loaded, mask)
    gates = {tower: 1 - removed_LF.astype(np.float32) for tower, removed_LF in mask.items()}
    ones = {tower: np.ones_like(gate_LF) for tower, gate_LF in gates.items()}
    gated = logits(loaded, gates, modality)
    np.testing.assert_array_equal(logits(folded, ones, modality), gated)
    # Without gates in the program the compiler orders sums as it likes: rounding only.
    np.testing.assert_allclose(logits(folded, None, modality), gated, atol=1e-5)
    assert np.abs(gated - logits(loaded, None, modality)).max() > 1e-3


def test_fold_is_pure_and_zeroes_only_the_neurons_weights():
    loaded, mask = tiny.loaded(), random_mask()
    before = leaves(loaded)
    after = leaves(masks.fold(loaded, mask))
    for name, value in leaves(loaded).items():
        np.testing.assert_array_equal(value, before[name])
    changed = {name for name in after if not np.array_equal(after[name], before[name])}
    assert changed == {
        "text.layers.mlp.gate_LDF",
        "text.layers.mlp.up_LDF",
        "text.layers.mlp.down_LFD",
        "vision.layers.mlp.up_LDF",
        "vision.layers.mlp.up_bias_LF",
        "vision.layers.mlp.down_LFD",
    }
    gone = mask["text"]
    up_LFD = after["text.layers.mlp.up_LDF"].swapaxes(1, 2)
    assert (up_LFD[gone] == 0).all()
    np.testing.assert_array_equal(
        up_LFD[~gone], before["text.layers.mlp.up_LDF"].swapaxes(1, 2)[~gone]
    )


def test_unfold_gives_the_original_weights_bit_for_bit():
    loaded, mask = tiny.loaded(), random_mask()
    restored = leaves(masks.unfold(masks.fold(loaded, mask), loaded, mask))
    for name, value in leaves(loaded).items():
        np.testing.assert_array_equal(restored[name], value)


def test_an_empty_mask_changes_nothing():
    loaded = tiny.loaded()
    after = leaves(masks.fold(loaded, random_mask(share=0)))
    for name, value in leaves(loaded).items():
        np.testing.assert_array_equal(after[name], value)


def test_row_masks_zero_the_row_and_its_bias():
    loaded = tiny.loaded()
    rows = loaded.family.matrix_rows(loaded.config)
    keys = ("text.down_proj", "text.gate_proj", "vision.fc1", "vision.fc2")
    mask = random_mask(shapes={key: rows[key] for key in keys})
    before, after = leaves(loaded), leaves(masks.fold(loaded, mask))
    down_LDF = after["text.layers.mlp.down_LFD"].swapaxes(1, 2)
    assert (down_LDF[mask["text.down_proj"]] == 0).all()
    for key, leaf in (("vision.fc1", "up_bias_LF"), ("vision.fc2", "down_bias_LD")):
        name = f"vision.layers.mlp.{leaf}"
        np.testing.assert_array_equal(after[name], np.where(mask[key], 0, before[name]))
    # Rows that are not removed keep every weight.
    kept = ~mask["text.down_proj"]
    old_LDF = before["text.layers.mlp.down_LFD"].swapaxes(1, 2)
    np.testing.assert_array_equal(down_LDF[kept], old_LDF[kept])


def test_a_mesh_folds_to_the_same_weights():
    mask = random_mask()
    alone = leaves(masks.fold(tiny.loaded(), mask))
    spread = masks.fold(tiny.on_mesh(make_mesh(2, 2, 2)), mask)
    for name, value in leaves(spread).items():
        np.testing.assert_array_equal(value, alone[name])
    for (path, leaf), old in zip(
        jax.tree_util.tree_leaves_with_path(spread.model),
        jax.tree.leaves(tiny.on_mesh(make_mesh(2, 2, 2)).model),
        strict=True,
    ):
        assert leaf.sharding.is_equivalent_to(old.sharding, leaf.ndim), path


def test_a_mask_of_other_shapes_is_an_error():
    with pytest.raises(ManuError, match=r'"text" has shape \(3, 3\)'):
        masks.fold(tiny.loaded(), {"text": np.zeros((3, 3), bool)})
    with pytest.raises(ManuError, match='"audio" is not in the model'):
        masks.fold(tiny.loaded(), {"audio": np.zeros((3, 3), bool)})


def test_an_unknown_tower_is_told_with_those_that_the_model_has():
    for tower in ("audio", "text.gat_proj"):
        for dtype in (bool, np.float32):
            with pytest.raises(ManuError, match=rf'"{tower}" is not in the model \(it has text, '):
                masks.fold(tiny.loaded(), {tower: np.zeros((3, 3), dtype)})


def test_masks_round_trip_with_what_they_were_made_from(tmp_path):
    loaded, mask = tiny.loaded(), random_mask()
    path = tmp_path / "mask.safetensors"
    masks.save(path, mask, loaded, preset="paper", alpha=0.02, data="abc")
    found, made_from = masks.load(path, loaded)
    assert made_from["preset"] == "paper" and made_from["alpha"] == 0.02
    assert made_from["data"] == "abc" and made_from["versions"]["jax"] == jax.__version__
    assert made_from["counts"]["text"] == [int(mask["text"].sum()), mask["text"].size]
    for tower in mask:
        assert found[tower].dtype == bool
        np.testing.assert_array_equal(found[tower], mask[tower])


def test_a_mask_of_another_model_is_an_error(tmp_path):
    loaded, mask = tiny.loaded(), random_mask()
    path = tmp_path / "mask.safetensors"
    masks.save(path, mask, loaded, preset="paper", alpha=0.02)
    other = masks.fold(loaded, mask)
    with pytest.raises(ManuError, match="was made for the model"):
        masks.load(path, other)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ManuError, match=r"mask\.safetensors: damaged"):
        masks.load(path)


def test_describe_counts_in_words():
    mask = {"text": np.zeros((32, 11008), bool), "vision.fc1": np.ones((1, 4), bool)}
    mask["text"].reshape(-1)[:17_612] = True
    assert masks.describe(mask) == [
        "text: pruned 17,612 of 352,256 neurons (5.00 %)",
        "vision: pruned 4 of 4 rows of fc1 (100.00 %)",
    ]


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(seeds=strategies.tuples(*[strategies.integers(0, 2**31)] * 2))
def test_union_and_difference_are_those_of_sets(seeds):
    left, right = (random_mask(seed) for seed in seeds)
    both, rest = masks.union(left, right), masks.difference(left, right)
    for tower in left:
        assert not (rest[tower] & right[tower]).any()
        np.testing.assert_array_equal(rest[tower] | right[tower], both[tower])
    alone = masks.union({"text": left["text"]}, {"vision": right["vision"]})
    assert set(alone) == {"text", "vision"}
    np.testing.assert_array_equal(alone["vision"], right["vision"])

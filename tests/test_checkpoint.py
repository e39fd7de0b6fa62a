"""Pytrees come back bit for bit, whole or not at all."""

import logging
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava
from jax.sharding import NamedSharding, PartitionSpec

from manu_jax import checkpoint
from manu_jax.leaves import leaves
from manu_jax.parallel import make_mesh
from manu_jax.types import ManuError


def tree():
    return {
        "weights": {"up_LDF": jnp.arange(48, dtype=jnp.float32).reshape(2, 4, 6) / 7},
        "half": jnp.asarray([1.5, -0.1], jnp.bfloat16),
        "step": jnp.asarray(7, jnp.int32),
    }


def test_a_tree_comes_back_bit_for_bit(tmp_path):
    assert not checkpoint.exists(tmp_path / "one")
    checkpoint.save(tmp_path / "one", tree())
    assert checkpoint.exists(tmp_path / "one")
    again = checkpoint.load(tmp_path / "one", tree())
    assert jax.tree.structure(again) == jax.tree.structure(tree())
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(tree()), strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)


def test_a_tree_loads_onto_a_mesh(tmp_path):
    checkpoint.save(tmp_path / "one", tree())
    mesh = make_mesh(fsdp=2, tensor=2)
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor"))
    whole = NamedSharding(mesh, PartitionSpec())
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split if x.ndim == 3 else whole),
        tree(),
    )
    again = checkpoint.load(tmp_path / "one", target)
    assert again["weights"]["up_LDF"].sharding == split
    np.testing.assert_array_equal(again["weights"]["up_LDF"], tree()["weights"]["up_LDF"])


def test_saving_again_replaces(tmp_path):
    checkpoint.save(tmp_path / "one", tree())
    changed = jax.tree.map(lambda x: x + 1, tree())
    checkpoint.save(tmp_path / "one", changed)
    assert checkpoint.load(tmp_path / "one", tree())["step"] == 8


def test_missing_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    with pytest.raises(ManuError, match="not there, or not whole"):
        checkpoint.load(tmp_path / "none", tree())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManuError, match="not there, or not whole"):
        checkpoint.load(tmp_path / "empty", tree())
    checkpoint.save(tmp_path / "one", tree())
    with pytest.raises(ManuError, match="of another model: half, other, step, .* differ"):
        checkpoint.load(tmp_path / "one", {"other": jnp.zeros(3)})
    other_shape = tree() | {"half": jnp.zeros(5, jnp.bfloat16)}
    with pytest.raises(ManuError, match="of another model: half differ"):
        checkpoint.load(tmp_path / "one", other_shape)
    (tmp_path / "one" / "state" / "_METADATA").unlink()
    with pytest.raises(ManuError, match="damaged"):
        checkpoint.load(tmp_path / "one", tree())


def test_a_disk_that_fills_while_it_is_written_is_said(tmp_path, monkeypatch):
    from orbax.checkpoint import v1

    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes [os_error_code='28']")

    monkeypatch.setattr(v1, "save", full)
    with pytest.raises(ManuError, match="one: the disk is full. Free some space"):
        checkpoint.save(tmp_path / "one", tree())
    assert not checkpoint.exists(tmp_path / "one")


def largest_file(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def zeroed(path, count=64):
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + count] = bytes(count)
    path.write_bytes(data)


def big_tree():
    return {"up_LDF": jax.random.normal(jax.random.key(0), (4, 40, 50))}


@pytest.mark.parametrize(
    "harm", [zeroed, lambda path: os.truncate(path, path.stat().st_size - 100), os.unlink]
)
def test_damage_to_any_file_is_named_before_it_is_read(tmp_path, harm):
    checkpoint.save(tmp_path / "one", big_tree())
    file = largest_file(tmp_path / "one")
    harm(file)
    name = file.relative_to(tmp_path / "one").as_posix()
    with pytest.raises(ManuError, match=f"one: damaged: its file {name} .*Remove it"):
        checkpoint.load(tmp_path / "one", big_tree())


def test_damaged_checksums_are_an_error_not_a_check_left_out(tmp_path):
    checkpoint.save(tmp_path / "one", tree())
    file = tmp_path / "one" / checkpoint.CHECKSUMS
    for content in ("{", "[]", '{"a": 3}', '{"state/none": [1, "00"]}', "\xff"):
        file.write_text(content)
        with pytest.raises(ManuError, match="one: .*damaged"):
            checkpoint.load(tmp_path / "one", tree())


def test_a_checkpoint_of_before_checksums_loads_and_says_so(tmp_path, caplog):
    checkpoint.save(tmp_path / "one", tree())
    (tmp_path / "one" / checkpoint.CHECKSUMS).unlink()
    with caplog.at_level(logging.INFO, "manu_jax.checkpoint"):
        assert checkpoint.load(tmp_path / "one", tree())["step"] == 7
    assert "no checksums" in caplog.text


def test_what_orbax_raises_of_an_old_damaged_checkpoint_is_one_message(tmp_path):
    checkpoint.save(tmp_path / "one", big_tree())
    (tmp_path / "one" / checkpoint.CHECKSUMS).unlink()
    file = largest_file(tmp_path / "one")
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ManuError, match="one: damaged .*Remove it and start anew"):
        checkpoint.load(tmp_path / "one", big_tree())


def test_a_checkpoint_with_the_first_names_of_leaves_loads(tmp_path):
    model = leaves(tiny_llava.loaded().model)
    checkpoint.save(tmp_path / "now", model)
    old = {name.replace(".unused_layers.", ".unrun."): leaf for name, leaf in model.items()}
    assert old.keys() != model.keys()
    checkpoint.save(tmp_path / "old", old)
    for folder in ("now", "old"):
        found = checkpoint.load(tmp_path / folder, model)
        assert list(found) == list(model)
        assert all(np.array_equal(found[name], leaf) for name, leaf in model.items())
    lacking = {name: leaf for name, leaf in model.items() if ".unused_layers." not in name}
    with pytest.raises(ManuError, match="of another model: vision.unrun"):
        checkpoint.load(tmp_path / "old", lacking)

import importlib.util
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from manu_jax import parallel
from manu_jax.types import Batch, ManuError


def test_spec_follows_the_letters_of_the_name():
    mesh = parallel.make_mesh(2, 2, 2)
    assert parallel.spec_of("text.mlp.up_LDF", (2, 8, 16), mesh) == PartitionSpec(
        None, "fsdp", "tensor"
    )
    assert parallel.spec_of("text.norm.scale_LD.value", (2, 8), mesh) == PartitionSpec(None, None)
    assert parallel.spec_of("embedding_VD", (32, 8), mesh) == PartitionSpec("tensor", "fsdp")


def test_axis_that_does_not_divide_is_dropped_and_logged(caplog):
    mesh = parallel.make_mesh(1, 2, 4)
    caplog.set_level("INFO")
    assert parallel.spec_of("gate_LDF", (2, 8, 18), mesh) == PartitionSpec(None, "fsdp", None)
    assert "gate_LDF" in caplog.text and "tensor=4" in caplog.text


def test_no_mesh_axis_is_used_twice():
    mesh = parallel.make_mesh(1, 1, 8)
    assert parallel.spec_of("odd_FV", (8, 8), mesh) == PartitionSpec("tensor", None)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 2, 4), (-1, 1, 2)])
def test_mesh_has_the_sizes_asked_for(sizes):
    mesh = parallel.make_mesh(*sizes)
    assert mesh.size == 8 and mesh.axis_names == parallel.AXES


def test_a_mesh_whose_sizes_the_chips_axes_do_not_have_splits_these_axes(monkeypatch):
    """As data=2, tensor=8 on 4 × 4 chips of v6e, where `jax.make_mesh` gives up."""

    def gives_up(*_, **__):
        raise NotImplementedError("Failed to find assignment for logical_axis_index 2 of size 8")

    monkeypatch.setattr(jax, "make_mesh", gives_up)
    mesh = parallel.make_mesh(2, 1, 4)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 4}
    assert set(mesh.devices.ravel()) == set(jax.devices()[:8])


@pytest.mark.slow
@pytest.mark.pods
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler is not installed: pip install 'manu_jax[plan]', on Linux alone",
)
def test_every_division_of_a_pod_is_a_mesh():
    """In a process of its own: a program has one TPU plugin, and the suite's has none."""
    code = """
from jax.experimental import topologies
from manu_jax import parallel
for name in ("v5e:4x4", "v6e:4x4", "tpu7x:2x2x2"):
    chips = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    for sizes in ((2, 1, 8), (4, 1, 4), (2, 2, 4), (1, 16, 1), (8, 1, 2)):
        assert parallel.make_mesh(*sizes, devices=chips).devices.shape == sizes
print("all")
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "all", found.stderr


def test_mesh_larger_than_the_machine_is_an_error():
    with pytest.raises(ManuError, match="needs 16 devices, there are 8"):
        parallel.make_mesh(16, 1, 1)


def test_mesh_with_two_open_sizes_is_an_error():
    with pytest.raises(ManuError, match="one at most is −1"):
        parallel.make_mesh(-1, -1, 1)


def test_put_batch_splits_examples_over_data_and_fsdp():
    mesh = parallel.make_mesh(2, 2, 2)
    ids_BT = np.arange(32, dtype=np.int32).reshape(8, 4)
    ones_BT = np.ones((8, 4), np.float32)
    batch = Batch(
        token_ids_BT=ids_BT,
        attention_mask_BT=ones_BT > 0,
        positions_BT=ids_BT,
        loss_weights_BT=ones_BT,
        example_weights_B=ones_BT[:, 0],
    )
    placed = parallel.put_batch(batch, mesh)
    assert placed.token_ids_BT.sharding.spec == PartitionSpec(("data", "fsdp"))
    assert {s.data.shape for s in placed.token_ids_BT.addressable_shards} == {(2, 4)}
    np.testing.assert_array_equal(parallel.gather(placed).token_ids_BT, ids_BT)


def test_constrain_without_a_mesh_is_the_identity():
    array_BD = jax.numpy.ones((3, 5))
    assert parallel.constrain(array_BD, "batch", None) is array_BD


def test_constrain_with_a_mesh_splits_what_divides():
    mesh = parallel.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        placed = jax.jit(lambda x: parallel.constrain(x, "batch", "neurons"))(
            jax.numpy.ones((8, 3))
        )
    assert placed.sharding.shard_shape((8, 3)) == (2, 3)


@pytest.mark.parametrize(
    "together", [lambda: parallel.broadcast(1), lambda: parallel.on_first_process(lambda: None),
                 lambda: parallel.exists("x")],
)  # fmt: skip
def test_what_all_do_together_is_not_done_by_the_first_alone(together):
    """They would hang; with one process the tests find it."""
    with pytest.raises(RuntimeError, match="all processes call it together"):
        parallel.on_first_process(together)
    together()

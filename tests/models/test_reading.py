"""Leaves come from files as they were, on every mesh, read by each host or by all together."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest
from leaf_forms import TABLE, expected, model
from safetensors.numpy import save_file

from manu_jax import parallel
from manu_jax.models.hf import filling, weights
from manu_jax.types import ManuError

MESHES = [None, (1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4), (1, 1, 8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("leaves")
    (tensors,) = expected(model())
    save_file(tensors, folder / "model.safetensors")
    return folder


def read(folder, sizes, kind="float32"):
    mesh = None if sizes is None else parallel.make_mesh(*sizes)
    empty = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model())
    return weights.fill(empty, weights.open_tensors(folder), TABLE, dtype=kind, mesh=mesh)


def check(found, sizes, kind="float32"):
    for path, leaf in model().items():
        np.testing.assert_array_equal(found[path], np.asarray(leaf).astype(kind))
        if sizes is not None:
            mesh = parallel.make_mesh(*sizes)
            assert found[path].sharding == parallel.sharding(path, leaf.shape, mesh)


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize(
    ("piece", "kind"), [(2**23, "float32"), (700, "float32"), (700, "float16")]
)
def test_leaves_are_those_of_the_file(folder, monkeypatch, sizes, piece, kind):
    monkeypatch.setattr(filling, "PIECE_BYTES", piece)
    check(read(folder, sizes, kind), sizes, kind)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (1, 2, 4)])
def test_leaves_that_devices_exchange_are_those_of_the_file(folder, monkeypatch, sizes):
    monkeypatch.setattr(filling.Filling, "_is_exchanged", lambda leaf: len(leaf.shape) > 1)
    monkeypatch.setattr(filling, "PIECE_BYTES", 700)
    check(read(folder, sizes, ml_dtypes.bfloat16), sizes, ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True)
class OfProcess:
    """A place of which the devices belong to four hosts of two, as `is_exchanged` asks for."""

    devices: dict

    @property
    def device_set(self):
        return set(self.devices)

    def devices_indices_map(self, shape):
        return self.devices


@dataclasses.dataclass(frozen=True)
class Device:
    number: int

    @property
    def process_index(self):
        return self.number // 2


@pytest.mark.parametrize(
    ("path", "sizes", "is_exchanged"),
    [
        ("mlp.up_LDF", (1, 8, 1), True),  # a part of each row, as the file has neurons first
        ("mlp.up_LDF", (1, 1, 8), False),  # rows of its own
        ("mlp.down_LFD", (1, 8, 1), False),
        ("mlp.down_LFD", (1, 1, 8), True),
        ("mlp.up_LDF", (8, 1, 1), True),  # the whole, like every other host
        ("mlp.up_LDF", (1, 2, 4), False),  # four hosts, each with a fourth of the rows
        ("mlp.up_LDF", (2, 1, 4), True),
        ("norm_LD", (1, 8, 1), False),  # small
    ],
)
def test_hosts_share_the_reading_where_rows_are_not_their_own(
    monkeypatch, path, sizes, is_exchanged
):
    (entry,) = (entry for entry in TABLE if entry.path == path)
    leaf = model()[path]
    mesh = parallel.make_mesh(*sizes)
    if sizes == (1, 2, 4):  # the two columns of a row of the mesh on one host
        mesh = jax.sharding.Mesh(
            np.array(jax.devices()).reshape(4, 2).T.reshape(1, 2, 4), parallel.AXES
        )
    place = parallel.sharding(path, leaf.shape, mesh)
    devices = {Device(d.id): index for d, index in place.devices_indices_map(leaf.shape).items()}
    (tensors,) = expected(model())
    own = tensors[entry.names(leaf.shape)[0]]
    tensor = weights.Tensor(None, "", own.shape, "F32")
    monkeypatch.setattr(filling, "SMALL_BYTES", 1000)
    one = filling.Filling(entry, leaf.shape, [tensor], own.dtype, OfProcess(devices))
    assert one._is_exchanged() is is_exchanged


def test_numbers_that_are_not_finite_are_named(tmp_path):
    (tensors,) = expected(model())
    names = ["head.weight", "layers.1.q.weight", "layers.2.factor"]
    for name, value in zip(names, [np.nan, np.inf, -np.inf], strict=True):
        tensors[name].reshape(-1)[-1] = value
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ManuError) as caught:
        read(tmp_path, (1, 2, 4))
    assert "\n".join(f"  {name}" for name in names) in str(caught.value)


def test_a_file_that_is_cut_while_it_is_read_is_named(folder, tmp_path):
    (tensors,) = expected(model())
    file = tmp_path / "model.safetensors"
    save_file(tensors, file)
    opened = weights.open_tensors(tmp_path)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ManuError, match="model.safetensors: it is cut short"):
        weights.fill(dict(model()), opened, TABLE, dtype="float32", mesh=None)


def test_a_part_that_devices_share_outlives_the_gift_of_one(folder):
    """Devices of a CPU take the memory that was read as it is; nobody may write into it."""
    twice = jax.jit(lambda x: x * 2, donate_argnums=0)(read(folder, (8, 1, 1))["head_DV"])
    for shard in twice.addressable_shards:
        np.testing.assert_array_equal(shard.data, 2 * np.asarray(model()["head_DV"]))

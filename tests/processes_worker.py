"""What test_processes.py runs as one of two processes: what `parallel` promises to several."""

import logging
import sys
import time
import tracemalloc
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "models"))
import jax
import numpy as np
import tensorstore
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from leaf_forms import TABLE, model

from manu_jax import checkpoint, parallel
from manu_jax.models.hf import export, filling, reading, weights
from manu_jax.types import Batch, ManuError

ROWS = 16
MESHES = [(8, 1, 1), (2, 2, 2), (1, 2, 4), (1, 1, 8)]


def main(folder: Path) -> None:
    parallel.join()
    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 8, 4)
    first = parallel.is_first_process()
    for mesh in [*(parallel.make_mesh(*sizes) for sizes in MESHES), mixed_mesh()]:
        check_batch(mesh)
    check_gather(parallel.make_mesh(2, 2, 2))
    for mesh in [*(parallel.make_mesh(*sizes) for sizes in MESHES[1:]), mixed_mesh()]:
        check_moved(mesh)
    assert parallel.broadcast(7 if first else 8) == 7

    path = folder / "late"
    assert not parallel.exists(path)
    if first:
        time.sleep(0.5)
        path.mkdir()
    assert parallel.exists(path) and path.is_dir()
    parallel.wait_for_all("here")

    done = []
    parallel.on_first_process(lambda: done.append(1))
    assert len(done) == first
    try:
        parallel.on_first_process(fail)
    except ManuError as error:
        assert str(error) == "the disk “/a” is full"
    else:
        raise AssertionError("no error")
    check_checkpoint(folder / "checkpoint", parallel.make_mesh(2, 2, 2))
    for sizes in MESHES:
        check_files(folder / "-".join(map(str, sizes)), parallel.make_mesh(*sizes))
    for sizes in MESHES[1:3]:
        check_held(folder / "held", parallel.make_mesh(*sizes))
    check_converted(folder / "converted", parallel.make_mesh(1, 1, 8))
    logging.warning("as expected")


def fail():
    raise ManuError("the disk “/a” is full")


def mixed_mesh() -> Mesh:
    """A mesh in which the devices of the two processes take turns, as they may on a pod."""
    devices = np.array(jax.devices()).reshape(2, 4).T.reshape(8, 1, 1)
    return Mesh(devices, parallel.AXES, axis_types=(AxisType.Auto,) * 3)


def check_batch(mesh: Mesh) -> None:
    """Each process reads its rows alone, and together they are the whole batch, in its order."""
    ids_BT = np.arange(ROWS * 3, dtype=np.int32).reshape(ROWS, 3)
    weights_BT = ids_BT.astype(np.float32)
    rows = parallel.batch_rows(mesh, ROWS)
    whole = Batch(
        token_ids_BT=ids_BT,
        attention_mask_BT=ids_BT > 4,
        positions_BT=ids_BT,
        loss_weights_BT=weights_BT,
        example_weights_B=weights_BT[:, 0],
    )
    assert len(rows) == ROWS // 2 or parallel.batch_multiple(mesh) == 1
    placed = parallel.put_batch(jax.tree.map(lambda x: x[rows], whole), mesh)
    for leaf, expected in zip(
        jax.tree.leaves(parallel.gather(placed)), jax.tree.leaves(whole), strict=True
    ):
        np.testing.assert_array_equal(leaf, expected)


def check_gather(mesh: Mesh) -> None:
    """Arrays come back once, whether they were on the host, whole on a device, or split."""
    values = np.arange(32.0, dtype=np.float32).reshape(8, 4)
    split = jax.device_put(values, NamedSharding(mesh, PartitionSpec("data", "tensor")))
    tree = [values, jax.numpy.asarray(values), parallel.put_replicated(values, mesh), split]
    for found in parallel.gather(tree):
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, values)


def check_moved(mesh: Mesh) -> None:
    """Weights move to another mesh, whose devices may be in another order, and stay the same."""
    moving, expected = model(parallel.make_mesh(1, 8, 1)), model()
    parallel.move(moving, mesh)
    for name, leaf in expected.items():
        assert moving[name].sharding == parallel.sharding(name, leaf.shape, mesh)
        np.testing.assert_array_equal(parallel.gather(moving[name]), np.asarray(leaf))


def check_checkpoint(path: Path, mesh: Mesh) -> None:
    """What each wrote in part comes back; damage that one process finds stops them all."""
    values = np.random.default_rng(0).random((64, 64), np.float32)
    tree = {"w_DF": jax.device_put(values, NamedSharding(mesh, PartitionSpec("fsdp", "tensor")))}
    checkpoint.save(path, tree)
    np.testing.assert_array_equal(parallel.gather(checkpoint.load(path, tree)["w_DF"]), values)
    parallel.wait_for_all("loaded")
    if parallel.is_first_process():
        files = [file for file in path.rglob("*") if file.is_file()]
        largest = max(files, key=lambda file: file.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-64] + bytes(64))
    parallel.wait_for_all("damaged")
    try:
        checkpoint.load(path, tree)
    except ManuError as error:
        assert "damaged: its file " in str(error)
    else:
        raise AssertionError("no error")


def check_files(path: Path, mesh: Mesh) -> None:
    """The first writes what all hold; each reads its half of the file, or what is small."""
    export.PIECE_BYTES, filling.SMALL_BYTES = 2**14, 2**13
    path.mkdir(exist_ok=True)
    expected = model()
    split = split_over(mesh, expected)
    export.write_tensors(export.export_tensors(split, TABLE), path)
    parallel.wait_for_all("written")
    read: list[int] = []
    given = reading.Reader.read_into
    reading.Reader.read_into = lambda self, rows, *at: (
        read.append(rows.nbytes) or given(self, rows, *at)
    )
    empty = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), expected)
    found = weights.fill(empty, weights.open_tensors(path), TABLE, dtype=np.float32, mesh=mesh)
    reading.Reader.read_into = given
    for name, leaf in expected.items():
        assert found[name].sharding == parallel.sharding(name, leaf.shape, mesh)
        np.testing.assert_array_equal(parallel.gather(found[name]), np.asarray(leaf))
    whole = sum(leaf.nbytes for leaf in expected.values())
    assert sum(read) < 0.55 * whole, (sum(read), whole)


def split_over(mesh: Mesh, leaves: dict) -> dict:
    """Return leaves of the host as they lie on a mesh."""
    return jax.tree.map(lambda x, place: jax.make_array_from_callback(
        x.shape, place, lambda index: np.asarray(x)[index]
    ), leaves, parallel.tree_shardings(leaves, mesh))  # fmt: skip


def check_held(path: Path, mesh: Mesh) -> None:
    """The process that does not write holds next to nothing of a file, split or on its host."""
    export.PIECE_BYTES = 2**19
    path.mkdir(exist_ok=True)
    on_host = jax.tree.map(np.asarray, model(times=20))
    for leaves in (split_over(mesh, on_host), on_host):
        tensors = export.export_tensors(leaves, TABLE)
        export.write_tensors(tensors, path)  # what compiling takes is not counted
        gather, before, most = export.gather_piece, live_bytes(), [0]

        def watched(*arguments, gather=gather, before=before, most=most, **settings):
            piece = gather(*arguments, **settings)
            most.append(live_bytes() - before)
            return piece

        export.gather_piece = watched
        tracemalloc.start()
        export.write_tensors(tensors, path)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        export.gather_piece = gather
        largest = max(tensor.nbytes for tensor in tensors)
        if not parallel.is_first_process():
            assert held < largest / 10, (held, largest)  # a third of a piece
        assert max(most) <= 2 * export.PIECE_BYTES * jax.local_device_count()
        parallel.wait_for_all("written")


def live_bytes() -> int:
    """Count what this process's devices hold."""
    shards = [shard.data for array in jax.live_arrays() for shard in array.addressable_shards]
    return sum({shard.unsafe_buffer_pointer(): shard.nbytes for shard in shards}.values())


def check_converted(path: Path, mesh: Mesh) -> None:
    """Of what was written in the chunks of the mesh each process reads its half."""
    expected = model(times=20)
    place = parallel.tree_shardings(expected, mesh)
    target = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), expected, place
    )
    before = bytes_read()
    found = checkpoint.load(path, target)
    read = bytes_read() - before
    for name, leaf in expected.items():
        np.testing.assert_array_equal(parallel.gather(found[name]), np.asarray(leaf))
    whole = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert 0.4 * whole < read < 0.6 * whole, (read, whole)


def bytes_read() -> int:
    """Count what TensorStore, of which Orbax is made, has read of files."""
    name = "/tensorstore/kvstore/file/bytes_read"
    (metric,) = tensorstore.experimental_collect_matching_metrics(name)
    return sum(value["value"] for value in metric["values"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))

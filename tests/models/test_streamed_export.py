"""Models are written piece by piece: the bytes of safetensors' own writer, and little memory."""

import re
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
from leaf_forms import TABLE, expected, model
from safetensors.numpy import save_file

from manu_jax import parallel
from manu_jax.models.hf import export
from manu_jax.models.hf.copying import copy_into
from manu_jax.models.hf.tables import Entry

PIECE = 4096
MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4), (1, 1, 8)]


@pytest.mark.parametrize("sizes", [None, *MESHES])
@pytest.mark.parametrize("piece", [PIECE, 2**27])
def test_the_file_is_the_one_of_safetensors_byte_for_byte(tmp_path, monkeypatch, sizes, piece):
    monkeypatch.setattr(export, "PIECE_BYTES", piece)
    found = model(None if sizes is None else parallel.make_mesh(*sizes), "both")
    export.write_tensors(export.export_tensors(found, TABLE), tmp_path)
    (tensors,) = expected(found)
    save_file(tensors, tmp_path / "other", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "other").read_bytes()


def test_shards_are_those_of_safetensors_byte_for_byte(tmp_path):
    found = model(parallel.make_mesh(1, 2, 4), "float16")
    export.write_tensors(export.export_tensors(found, TABLE), tmp_path, 30_000)
    shards = list(expected(found, 30_000))
    files = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(files) == len(shards) > 3
    for file, tensors in zip(files, shards, strict=True):
        save_file(tensors, tmp_path / "other", metadata={"format": "pt"})
        assert file.read_bytes() == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("sizes", [None, (1, 8, 1), (1, 2, 4)])
def test_no_more_than_two_pieces_are_held_on_devices_and_host(tmp_path, monkeypatch, sizes):
    piece_bytes = 20 * PIECE
    monkeypatch.setattr(export, "PIECE_BYTES", piece_bytes)
    found = model(None if sizes is None else parallel.make_mesh(*sizes), times=20)
    model_bytes = live_bytes()
    largest, most = [0], [0]
    gather = export.gather_piece

    def watched(*arguments, **settings):
        piece = gather(*arguments, **settings)
        largest.append(piece.nbytes)
        most.append(live_bytes() - model_bytes)
        return piece

    monkeypatch.setattr(export, "gather_piece", watched)
    tensors = export.export_tensors(found, TABLE)
    export.write_tensors(tensors, tmp_path)  # what compiling takes is not counted
    largest[:], most[:] = [0], [0]
    tracemalloc.start()
    export.write_tensors(tensors, tmp_path)
    host = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole = max(leaf.nbytes for leaf in found.values())
    assert whole > 15 * piece_bytes
    if sizes is not None:
        assert piece_bytes / 2 < max(largest) <= piece_bytes
        assert max(most) <= 8 * 2 * piece_bytes  # two pieces on each of eight devices
    assert host < 2 * piece_bytes + 100_000  # and the list of tensors, the header, the compiler's


def live_bytes():
    """Count what devices hold; a shard is an array of its own, on the same memory."""
    held = {}
    for array in jax.live_arrays():
        for shard in array.addressable_shards:
            held[shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
    return sum(held.values())


@pytest.mark.parametrize(
    ("path", "shape", "axes"),
    [
        ("mlp.up_LDF", (40, 5120, 13824), "FD"),  # LLaVA-1.5-13B: 5.7 GB in all layers
        ("mlp.down_LFD", (40, 13824, 5120), "DF"),
        ("q_LDNH", (40, 5120, 40, 128), "(NH)D"),
        ("mlp.up_LDF", (40, 5120, 13827), "FD"),  # three neurons appended, so that tensor drops
        ("embedding_VD", (262208, 5376), "VD"),  # Gemma 3 27B: 2.8 GB
    ],
)
@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 2, 4), (1, 1, 8)])
def test_leaves_of_13b_are_gathered_in_less_than_a_gibibyte(path, shape, axes, sizes):
    mesh = parallel.make_mesh(*sizes)
    place = parallel.sharding(path, shape, mesh)
    leaf = jax.ShapeDtypeStruct(shape, "bfloat16", sharding=place)
    tensor = export.ExportTensor("", Entry(path, "{layer}", axes), leaf, 0)
    step, num_strips = tensor.step_and_strips()
    compiled = export.gather_piece.lower(
        leaf, np.int32(0), np.int32(0),
        entry=tensor.entry, num_strips=num_strips, step=step, split=place,
    ).compile()  # fmt: skip
    memory = compiled.memory_analysis()
    # Two pieces at a time.
    assert 2 * (memory.temp_size_in_bytes + memory.output_size_in_bytes) < 2**30
    gathered = [
        int(np.prod([int(size) for size in dims.split(",")]))
        for dims in re.findall(r"\w+\[([\d,]+)\]\S* all-gather", compiled.as_text())
    ]
    assert all(2 * size <= export.PIECE_BYTES for size in gathered)
    assert gathered or all(axis is None or mesh.shape[axis] == 1 for axis in place.spec)


@pytest.mark.parametrize("kind", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0), (0, 2, 1)])
def test_copies_of_transposed_arrays_are_those_of_numpy(kind, order):
    source = np.random.default_rng(0).standard_normal((19, 40, 33)).astype(kind)
    source = source.transpose(order)[1:, ::2]
    target = np.zeros((50, 50, 50), kind)
    view = target[tuple(slice(3, 3 + size) for size in source.shape)]
    copy_into(view, source)
    np.testing.assert_array_equal(view, source)
    assert np.count_nonzero(target) == np.count_nonzero(source)

"""On a mesh: the numbers of one device, files read in slices, and no activation gathered whole."""

import math
import re

import jax
import numpy as np
import pytest
from cases import Case, random_images
from llava_cases import cases
from parity import forward

from manu_jax import leaves as leaf_names
from manu_jax import parallel
from manu_jax.models import loaded as loading
from manu_jax.models.hf import filling, reading, weights
from manu_jax.types import Capture

MESHES = [(8, 1, 1), (2, 2, 2), (1, 2, 4)]
ROWS = 8  # divides over data × fsdp of every mesh


@pytest.fixture(scope="module")
def folder(tmp_path_factory, words):
    """A model whose widths, neurons, heads and vocabulary divide over the meshes."""
    model = cases.build(
        Case(
            text={"num_key_value_heads": 4, "intermediate_size": 40, "vocab_size": 304},
            vision={"num_attention_heads": 4},
        ),
        words,
    )
    folder = tmp_path_factory.mktemp("mesh")
    model.save_pretrained(folder)
    cases.processor().save_pretrained(folder)
    return folder


def make_batch(loaded):
    counts = [1, 2, 0, 1, 0, 2, 1, 1]
    images = iter(random_images(sum(counts)))
    prompts = ["USER: " + "<image>" * count + "Where?\nASSISTANT: Oslo" for count in counts]
    return loaded.batch(prompts, [[next(images) for _ in range(count)] for count in counts])


@pytest.mark.parametrize("sizes", MESHES)
def test_a_mesh_gives_the_numbers_of_one_device_and_gathers_no_activation(folder, sizes):
    alone = loading.load(folder)
    batch = make_batch(alone)
    expected = forward(alone.model, batch, None, Capture())
    mesh = parallel.make_mesh(*sizes)
    split = loading.load(folder, mesh=mesh)
    with jax.set_mesh(mesh):
        inputs = parallel.put_batch(batch, mesh)
        compiled = forward.lower(split.model, inputs, None, Capture()).compile()
        found = compiled(split.model, inputs, None)
    # Sums over other orders: float32 rounding over some 40 terms, logits of size 10.
    np.testing.assert_allclose(found.logits_BTV, expected.logits_BTV, atol=2e-5)
    for tower in ("text", "vision"):
        np.testing.assert_allclose(found.activations[tower], expected.activations[tower], atol=1e-5)
    gathered = gathered_shapes(compiled.as_text())
    whole = set(weight_sizes(split))
    assert not [x for x in gathered if math.prod(x) > 64 and math.prod(x) not in whole]
    if sizes[1] > 1:
        assert gathered  # weights split over fsdp are gathered, so the pattern does find them


def test_weights_lie_as_the_table_of_shardings_says(folder):
    mesh = parallel.make_mesh(1, 2, 4)
    loaded = loading.load(folder, mesh=mesh)
    leaves = leaf_names.leaves(loaded.model)
    for name, leaf in leaves.items():
        assert leaf.sharding == parallel.sharding(name, leaf.shape, mesh), name
    for name in ("gate_LDF", "up_LDF", "down_LFD"):
        leaf = leaves[f"text.layers.mlp.{name}"]
        assert leaf.addressable_shards[0].data.size == leaf.size // 8


def test_each_byte_is_read_once_in_whole_rows(folder, monkeypatch):
    read: dict[str, list] = {}
    original = reading.Reader.read_into

    def record(self, rows, tensor, start):
        read.setdefault(tensor.stored_name, []).append((start, start + len(rows)))
        original(self, rows, tensor, start)

    monkeypatch.setattr(reading.Reader, "read_into", record)
    monkeypatch.setattr(filling, "PIECE_BYTES", 1000)  # ten rows of the decoder's up projection
    loaded = loading.load(folder, mesh=parallel.make_mesh(1, 2, 4))
    sizes = loaded.config.text
    assert (sizes.num_neurons, sizes.width) == (40, 24)
    up = "language_model.model.layers.0.mlp.up_proj.weight"
    assert sorted(read[up]) == [(0, 10), (10, 20), (20, 30), (30, 40)]
    tensors = weights.open_tensors(folder)
    for name, ranges in read.items():
        ends = [0, *(end for _, end in sorted(ranges))]
        assert [start for start, _ in sorted(ranges)] == ends[:-1], name
        assert ends[-1] == tensors[name].num_rows
    assert read.keys() == tensors.keys()


def weight_sizes(loaded):
    """Return how many numbers the weights have: all layers or one, whole or split over tensor."""
    mesh = loaded.mesh
    for name, leaf in leaf_names.leaves(loaded.model).items():
        shape = leaf.shape[1:] if "layers" in name or "unused_layers" in name else leaf.shape
        for parts in (1, mesh.shape["tensor"]):
            yield math.prod(shape) // parts
            yield math.prod(leaf.shape) // parts


def gathered_shapes(text):
    """Return the shapes that all-gathers of a compiled program give."""
    found = []
    for line in text.splitlines():
        match = re.search(r"= (.*?) all-gather(?:-start)?\(", line)
        if match:
            found += [
                tuple(int(size) for size in dims.split(",") if size)
                for dims in re.findall(r"f32\[([\d,]*)\]", match.group(1))
            ]
    return found

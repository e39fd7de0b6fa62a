"""Every kind of edit: applied, undone bit for bit, differentiated, described, composed, kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava as tiny

from manu_jax.edits.low_rank import LowRank
from manu_jax.edits.neurons import WrittenNeurons
from manu_jax.edits.weights import NewWeights
from manu_jax.leaves import leaves
from manu_jax.parallel import make_mesh, sharding


def drawn(edit, seed=0, size=0.3):
    """The edit with random numbers in all its arrays."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape) * size, jnp.float32), edit
    )


def neurons(places=((3, 0, 39), (7, 8, 9)), layers=(0, 1), count=3):
    return WrittenNeurons.new(
        tiny.loaded(), layers=layers, places=places, count=count, key=jax.random.key(0)
    )


def low_rank():
    return LowRank(
        {
            "text.layers.mlp.down": {
                "down_LFR": jnp.zeros((2, 40, 3)), "up_LRD": jnp.zeros((2, 3, 16)),
            },
            "text.layers.attention.o": {
                "down_LNHR": jnp.zeros((2, 2, 8, 3)), "up_LRD": jnp.zeros((2, 3, 16)),
            },
        },
        scale=0.5,
    )  # fmt: skip


MAKERS = {
    "written": lambda: drawn(neurons()),
    "written in one layer": lambda: drawn(neurons(places=((5, 2),), layers=(1,), count=2)),
    "appended": lambda: drawn(neurons(places=None)),
    "appended in one layer": lambda: drawn(neurons(places=None, layers=(1,), count=4)),
    "low rank": lambda: drawn(low_rank()),
    "weights": lambda: drawn(NewWeights.of(tiny.loaded(), ("text.layers.mlp", "text.norm"))),
    "weights of a layer": lambda: drawn(
        NewWeights.of(tiny.loaded(), ("text.layers.mlp.down",), layers=(1,))
    ),
}


def loaded_as(dtype, mesh=None):
    loaded = tiny.loaded() if mesh is None else tiny.on_mesh(mesh)
    return loaded.replace_model(jax.tree.map(lambda leaf: leaf.astype(dtype), loaded.model))


def host(loaded):
    return {name: np.asarray(leaf) for name, leaf in leaves(loaded.model).items()}


def logits(model, modality="image"):
    return jax.jit(lambda m, b: m(b).logits_BTV)(model, tiny.batch(modality))


@pytest.mark.parametrize("mesh", [None, (2, 2, 2)], ids=["one device", "mesh"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MAKERS)
def test_an_edit_changes_the_model_and_is_undone_bit_for_bit(name, dtype, mesh):
    edit = MAKERS[name]()
    loaded = loaded_as(dtype, None if mesh is None else make_mesh(*mesh))
    before = host(loaded)
    edited = edit.apply(loaded)
    for path, value in host(loaded).items():  # pure
        np.testing.assert_array_equal(value, before[path])
    after = host(edited)
    assert all(leaf.dtype == dtype for leaf in after.values())
    assert any(
        after[path].shape != value.shape or (after[path] != value).any()
        for path, value in before.items()
    )
    restored = edit.undo(edited, loaded)
    assert jax.tree.structure(restored.model) == jax.tree.structure(loaded.model)
    assert restored.config == loaded.config and restored.hf_config == loaded.hf_config
    for path, value in host(restored).items():
        np.testing.assert_array_equal(value, before[path])
    if mesh is not None:
        alone = host(edit.apply(loaded_as(dtype)))
        for path, leaf in leaves(edited.model).items():
            if "low rank" not in name:  # whose sums may be taken in another order
                np.testing.assert_array_equal(np.asarray(leaf), alone[path])
            expected = jax.tree.leaves(
                jax.device_put(
                    {path: leaf},
                    {path: sharding(path, leaf.shape, loaded.mesh)},
                )
            )[0].sharding
            assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), path

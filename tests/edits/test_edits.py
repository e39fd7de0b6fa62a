"""Every kind of edit: applied, undone bit for bit, differentiated, described, composed, kept."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava as tiny

from manu_jax.arrays import read_arrays, write_arrays
from manu_jax.edits.edit import EDITS, Edit, compose, load
from manu_jax.edits.gates import GateEdit
from manu_jax.edits.low_rank import LowRank
from manu_jax.edits.masks import MaskEdit
from manu_jax.edits.neurons import WrittenNeurons
from manu_jax.edits.weights import NewWeights
from manu_jax.leaves import leaves
from manu_jax.parallel import make_mesh, sharding
from manu_jax.types import ManuError


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


def mask(share=0.3, seed=0):
    random = np.random.default_rng(seed)
    towers = sorted(tiny.loaded().towers.items())
    return {tower: random.random(shape) < share for tower, shape in towers}


def gates(seed=0):
    """Gates of both towers, half of which are 1."""
    random = np.random.default_rng(seed)
    towers = sorted(tiny.loaded().towers.items())
    drawn = {tower: random.uniform(0, 1.5, shape).astype(np.float32) for tower, shape in towers}
    return {tower: np.where(random.random(g.shape) < 0.5, 1, g) for tower, g in drawn.items()}


MAKERS = {
    "mask": lambda: MaskEdit.of(mask()),
    "gates": lambda: GateEdit(gates()),
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

    def cast(leaf):  # by NumPy: nothing is compiled
        return jax.device_put(np.asarray(leaf).astype(dtype), leaf.sharding)

    return loaded.replace_model(jax.tree.map(cast, loaded.model))


def host(loaded):
    return {name: np.asarray(leaf) for name, leaf in leaves(loaded.model).items()}


def logits(model, modality="image"):
    return tiny.logits(model, tiny.batch(modality))


# Always, on a mesh and in bfloat16: one edit of gates, of neurons, of products and of weights. All
# others are in the slow suite, and always in float32.
ON_A_MESH = ("mask", "written", "low rank", "weights")
PLACES = [
    pytest.param(
        name,
        dtype,
        mesh,
        marks=[pytest.mark.slow] if dtype != "float32" and name not in ON_A_MESH else [],
    )
    for name in MAKERS
    for dtype, mesh in (("float32", None), ("bfloat16", None), ("bfloat16", (2, 2, 2)))
]
# What these do in some layers is what their kind does in all, at another index.
IN_A_LAYER = ("written in one layer", "weights of a layer")
GRADIENTS = [
    pytest.param(name, marks=[pytest.mark.slow] if name in IN_A_LAYER else [])
    for name in MAKERS
    if name != "mask"
]


@pytest.mark.parametrize(("name", "dtype", "mesh"), PLACES)
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


@pytest.mark.parametrize("name", MAKERS)
def test_inside_jit_an_edit_gives_the_weights_that_apply_gives(name):
    edit, model = MAKERS[name](), tiny.loaded().model
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(edit))
    inside = jax.jit(lambda edit, model: edit.edited(model))(edit, model)
    applied = edit.apply(tiny.loaded()).model
    assert jax.tree.structure(inside) == jax.tree.structure(applied)
    for (path, found), value in zip(leaves(inside).items(), jax.tree.leaves(applied), strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-6, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_gradient_in_the_arrays_is_that_of_the_weights(name):
    """Against a difference quotient along a random direction."""
    edit, model = MAKERS[name](), tiny.loaded().model
    batch = tiny.batch("text", 2)
    weights_V = jnp.asarray(np.random.default_rng(1).normal(size=model.config.text.vocabulary))

    def value(edit):
        logits_BTV = edit.edited(model)(batch).logits_BTV
        return jnp.einsum("BTV,V->", jax.nn.log_softmax(logits_BTV), weights_V) / 100

    gradient = jax.jit(jax.grad(value))(edit)
    # Text alone does not run the vision tower, whose gradients are 0.
    assert any(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradient))
    direction, step = drawn(edit, seed=2, size=1.0), 1e-3
    slope = sum(
        float(jnp.vdot(a, b))
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    ends = [
        float(jax.jit(value)(jax.tree.map(lambda a, b, s=s: a + s * b, edit, direction)))
        for s in (step, -step)
    ]
    # float32: the values have about five good digits after the difference.
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.05, abs=0.05)


def test_every_kind_is_an_edit_and_has_a_test():
    found = [maker() for maker in MAKERS.values()]
    assert all(isinstance(edit, Edit) for edit in [*found, compose(found[:2])])
    assert {edit.kind for edit in found} | {"composed"} == set(EDITS)
    assert [edit.kind for edit in map(lambda kind: kind, found) if edit.separable] == (
        ["neurons"] * 4
    )


def test_edits_are_described_in_words():
    loaded = tiny.loaded()
    assert neurons().describe() == ["text: wrote 6 of 80 neurons (7.50 %)"]
    assert neurons(places=None).describe() == ["text: appended 6 to 80 neurons (7.50 %)"]
    assert low_rank().describe() == [
        "text.layers.attention.o: added a product of rank 3 (192 numbers)",
        "text.layers.mlp.down: added a product of rank 3 (336 numbers)",
    ]
    new = NewWeights.of(loaded, ("text.layers.mlp.down",), layers=(1,))
    assert new.describe() == ["text.layers.mlp.down: new values of 640 weights of layer 1"]
    gate_LF = np.ones((2, 40), np.float32)
    gate_LF[0, :4] = 0.5
    assert GateEdit({"text": gate_LF}).describe() == [
        "text: scaled 4 of 80 neurons (5.00 %) by 0.50 on average"
    ]
    removed = {"text": np.arange(80).reshape(2, 40) < 4}
    assert MaskEdit.of(removed).describe() == ["text: pruned 4 of 80 neurons (5.00 %)"]


@pytest.mark.parametrize(
    "pair",
    [
        ("written", "gates"), ("gates", "written"), ("appended", "appended in one layer"),
        ("low rank", "appended"), ("weights", "mask"), ("mask", "weights of a layer"),
    ],
    ids=" then ".join,
)  # fmt: skip
def test_a_composition_applies_in_order_and_is_undone_bit_for_bit(pair):
    loaded = tiny.loaded()
    first, second = (MAKERS[name]() for name in pair)
    both = compose([first, second])
    edited = both.apply(loaded)
    one_by_one = host(second.apply(first.apply(loaded)))
    for path, value in host(edited).items():
        np.testing.assert_array_equal(value, one_by_one[path])
    assert both.describe() == first.describe() + second.describe()
    for path, value in host(both.undo(edited, loaded)).items():
        np.testing.assert_array_equal(value, host(loaded)[path])
    alone = host(second.undo(edited, first.apply(loaded)))
    for path, value in host(first.apply(loaded)).items():
        np.testing.assert_array_equal(alone[path], value)


def test_the_order_of_a_composition_matters():
    loaded, places = tiny.loaded(), ((3,), (7,))
    first, second = (drawn(neurons(places=places, count=1), seed) for seed in (1, 2))
    ends = [
        host(compose(order).apply(loaded))["text.layers.mlp.down_LFD"][0, 3]
        for order in ([first, second], [second, first])
    ]
    np.testing.assert_array_equal(ends[0], second.down_LRD[0, 0])
    np.testing.assert_array_equal(ends[1], first.down_LRD[0, 0])
    assert compose([first]) is first and len(compose([compose([first, second]), first]).edits) == 3


@pytest.mark.parametrize("name", [*MAKERS, "composed"])
def test_files_hold_an_edit_and_what_it_was_made_from(name, tmp_path):
    loaded, path = tiny.loaded(), tmp_path / "edit.safetensors"
    edit = (
        compose([MAKERS["written"](), MAKERS["low rank"](), MAKERS["weights of a layer"]()])
        if name == "composed"
        else MAKERS[name]()
    )
    edit.save(path, loaded, {"name": "suppress", "data": "abc"})
    found, made_from = load(path, loaded)
    assert made_from["name"] == "suppress" and made_from["data"] == "abc"
    assert made_from["versions"]["jax"] == jax.__version__
    assert type(found) is type(edit)
    assert jax.tree.structure(found) == jax.tree.structure(edit)
    for (part, value), old in zip(leaves(found).items(), jax.tree.leaves(edit), strict=True):
        np.testing.assert_array_equal(value, old, err_msg=part)
    assert found.describe() == edit.describe()
    for part, value in host(found.apply(loaded)).items():
        np.testing.assert_array_equal(value, host(edit.apply(loaded))[part])


def test_a_file_for_another_model_or_a_damaged_one_is_an_error(tmp_path):
    loaded, path = tiny.loaded(), tmp_path / "edit.safetensors"
    edit = MAKERS["written"]()
    edit.save(path, loaded, {})
    with pytest.raises(ManuError, match=r"edit\.safetensors was made for the model \w+, this is"):
        load(path, edit.apply(loaded))
    arrays, metadata = read_arrays(path, "edit")
    metadata = {key: text for key, text in metadata.items() if key not in ("sha256", "format")}
    other = tmp_path / "other"

    def error_of(**changes):
        changed = {**metadata, **changes.pop("metadata", {})}
        write_arrays(other, "edit", {**arrays, **changes}, metadata=changed)
        with pytest.raises(ManuError) as error:
            load(other, loaded)
        return str(error.value)

    assert "its kind is 'spell'; known: mask, gates, neurons" in error_of(
        metadata={"kind": "spell"}
    )
    assert "is not that of an edit" in error_of(more=np.zeros(3, np.float32))
    assert "expected float32: gate_LDR" in error_of(gate_LDR=arrays["gate_LDR"].astype("f8"))
    assert "not finite (NaN or infinite): up_LDR" in error_of(up_LDR=arrays["up_LDR"] * np.nan)
    assert 'does not fit the model: "down_LRD" has shape (2, 3, 5), expected (2, 3, 16)' in (
        error_of(down_LRD=arrays["down_LRD"][..., :5])
    )
    settings = json.loads(metadata["settings"])
    for wrong in ({"layers": [0, 2]}, {"layers": "01"}, {"places": [[1, 2, 3], [1, 2, 40]]}):
        error_of(metadata={"settings": json.dumps({**settings, **wrong})})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ManuError, match=r"edit\.safetensors: damaged"):
        load(path)


def test_edits_that_do_not_fit_are_errors_that_say_why():
    loaded = tiny.loaded()

    def error_of(edit):
        with pytest.raises(ManuError, match="Was it made for another model") as error:
            edit.apply(loaded)
        return str(error.value)

    assert 'no leaf "audio.up_LDF"' in error_of(NewWeights({"audio.up_LDF": np.zeros((1, 2))}))
    norm = {"text.norm_D": np.zeros(16)}
    assert '"text.norm_D" has no layers' in error_of(NewWeights(norm, (0,)))
    assert "it has 0 to 1" in error_of(
        NewWeights({"text.layers.mlp_norm_LD": np.zeros((1, 16))}, (2,))
    )
    assert 'no matrix "text.layers.mlp.sideways"' in error_of(
        LowRank({"text.layers.mlp.sideways": {"down_LDR": np.zeros(1), "up_LRF": np.zeros(1)}})
    )
    assert '"text.layers.mlp.up" has down_LDR, expected down_LDR, up_LRF' in error_of(
        LowRank({"text.layers.mlp.up": {"down_LDR": np.zeros((2, 16, 1))}})
    )
    assert '"audio" is not in the model' in error_of(GateEdit({"audio": np.ones((2, 3))}))
    with pytest.raises(ManuError, match="no leaf of the model begins with text.lay"):
        NewWeights.of(loaded, ("text.lay",))


@pytest.mark.parametrize("name", ["mask", "gates", "written", "low rank", "weights"])
def test_what_is_under_appended_neurons_is_undone_after_them(name):
    loaded, edit = tiny.loaded(), MAKERS[name]()
    edited = edit.apply(loaded)
    with pytest.raises(ManuError, match="mlp.*differ in shape.*Undo later edits first"):
        edit.undo(neurons(places=None).apply(edited), loaded)

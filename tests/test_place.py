"""A run's meshes: weights move between them bit for bit, and every number stays what it is."""

import json
import re
import shutil
import sys
import types
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_llava
import yaml

sys.path.insert(0, str(Path(__file__).parent / "models"))
from leaf_forms import model

from manu_jax import leaves as leaf_names
from manu_jax import parallel, run
from manu_jax.arrays import read_arrays
from manu_jax.config.run import validate_config
from manu_jax.context import Run
from manu_jax.edits import masks
from manu_jax.evaluation.analyses import audit
from manu_jax.evaluation.audit import attack
from manu_jax.evaluation.audit.attack import Attack
from manu_jax.fingerprint import weights_hash
from manu_jax.place import RunPlace, given_sizes
from manu_jax.types import VANILLA, WORK_KINDS, ManuError

SCORE, TRAIN, DECODE = {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 8}
MESHES = {"score": SCORE, "train": TRAIN, "decode": DECODE}


def config_of(mesh, **values):
    return validate_config({"model": {"path": "a/folder"}, "mesh": mesh, **values}, "test")


STARTS, ENDS = ((1, 8, 1), (1, 2, 4), (4, 2, 1)), ((8, 1, 1), (2, 2, 2), (1, 1, 8))


@pytest.mark.parametrize(
    ("start", "to"),  # each once; the others of the product in the slow suite
    [
        pytest.param(start, to, marks=[] if number == other else [pytest.mark.slow])
        for number, start in enumerate(STARTS)
        for other, to in enumerate(ENDS)
    ],
)
def test_leaves_of_every_form_move_bit_for_bit(start, to):
    moving, mesh = model(parallel.make_mesh(*start), kind="both"), parallel.make_mesh(*to)
    parallel.move(moving, mesh)
    for name, leaf in model(kind="both").items():
        assert moving[name].sharding == parallel.sharding(name, leaf.shape, mesh), name
        np.testing.assert_array_equal(np.asarray(moving[name]), np.asarray(leaf))


def test_devices_in_another_order_take_over():
    devices = np.array(jax.devices()).reshape(2, 4).T.flatten()
    moving = model(parallel.make_mesh(1, 8, 1))
    parallel.move(moving, parallel.make_mesh(2, 2, 2, devices=list(devices)))
    for name, leaf in model().items():
        np.testing.assert_array_equal(np.asarray(moving[name]), np.asarray(leaf))


def test_no_device_gathers_a_stacked_leaf_that_moves():
    old, new = parallel.make_mesh(4, 1, 2), parallel.make_mesh(1, 8, 1)
    leaf = jax.ShapeDtypeStruct((16, 64, 64), "float32")
    before, place = (parallel.sharding("up_LDF", leaf.shape, mesh) for mesh in (old, new))
    compiled = parallel.laying_out(before, place).lower(leaf).compile()
    # The leaf has 256 KiB, and a layer of it 16.
    assert compiled.memory_analysis().temp_size_in_bytes < 100_000


@pytest.fixture
def place(tmp_path):
    """A run with a mesh for each kind of work, whose vanilla model is there."""
    found = Run.begin(config_of(MESHES), tmp_path)
    found.vanilla = tiny_llava.on_mesh(found.mesh)
    return found


@pytest.mark.slow
def test_vanilla_is_where_the_work_is(place):
    digest, models = weights_hash(tiny_llava.loaded().model), []
    for kind in ("score", "train", "decode"):
        place.turn_to(kind)
        assert place.mesh is place.vanilla.mesh is place.meshes[kind]
        assert place.kind == kind
        models.append(place.vanilla)
        for name, leaf in leaf_names.leaves(place.vanilla.model).items():
            assert leaf.sharding == parallel.sharding(name, leaf.shape, place.mesh), name
        assert weights_hash(place.vanilla.model) == digest
    place.turn_to("decode")
    assert place.vanilla is models[-1]
    with place.work("train"):
        assert place.vanilla.mesh is place.meshes["train"]
    assert place.kind == "decode"


@pytest.mark.slow
def test_what_nobody_else_holds_is_freed_when_it_moves(place):
    old = [weakref.ref(leaf) for leaf in jax.tree.leaves(place.vanilla.model)]
    place.turn_to("score")
    assert not any(reference() for reference in old)


@pytest.mark.slow
def test_attacks_that_train_do_so_on_the_mesh_of_training(place):
    seen, old = [], [weakref.ref(leaf) for leaf in jax.tree.leaves(place.vanilla.model)]

    def measure(attacked):
        is_held = any(reference() is not None for reference in old)
        seen.append((place.kind, attacked.loaded.mesh, attacked.asks_on, is_held))
        return []

    usual, training = (Attack(measure, False, "", "", work=work) for work in ("decode", "train"))
    attacks = {"plain": usual, "tuning": training, "asked": usual}
    assert audit._rows_of(place, VANILLA, attacks) == []
    train, decode = place.meshes["train"], place.meshes["decode"]
    assert seen == [
        ("decode", decode, decode, True),
        ("train", train, decode, False),  # nothing lies on two meshes at once
        ("decode", decode, decode, False),
    ]
    assert place.vanilla.mesh is decode


def test_a_model_of_another_mesh_is_asked_as_a_copy(place, monkeypatch):
    train, decode = place.meshes["train"], place.meshes["decode"]
    trained, asked = tiny_llava.on_mesh(train), []
    none = types.SimpleNamespace(recalled_N=np.zeros(0))
    monkeypatch.setattr(attack, "greedy", lambda loaded, *_, **__: asked.append(loaded) or [])
    monkeypatch.setattr(attack, "log_likelihoods", lambda *_, **__: none)
    settings = {"run": place, "name": VANILLA, "vanilla": place.vanilla, "asks_on": decode}
    attack.Attacked(loaded=trained, **settings).answered(trained, [])
    assert asked[0].mesh is decode and trained.mesh is train
    assert weights_hash(asked[0].model) == weights_hash(trained.model)
    for name, leaf in leaf_names.leaves(trained.model).items():
        assert leaf.sharding == parallel.sharding(name, leaf.shape, train), name
    place.vanilla = asked[0]
    attack.Attacked(loaded=asked[0], **settings).answered(asked[0], [])
    assert asked[1] is asked[0]


def test_one_mesh_for_all_kinds_moves_nothing(tmp_path):
    found = Run.begin(config_of({"fsdp": 2, "tensor": 2}), tmp_path)
    held = found.vanilla = tiny_llava.on_mesh(found.mesh)
    for kind in WORK_KINDS:
        found.turn_to(kind)
        assert found.vanilla is held


@pytest.mark.parametrize(
    ("mesh", "part"),
    [
        ({"score": {"fsdp": 4}, "decode": {"tensor": 8}}, "got score 4, train 1, decode 8"),
        ({"choice": "auto", "decode": {"tensor": 4}}, "got decode 4, auto 8"),
        ({"decode": {"tensor": 99}}, "needs 99 devices"),
    ],
)
def test_meshes_of_other_devices_are_refused(mesh, part):
    with pytest.raises(ManuError, match=part):
        given_sizes(config_of(mesh).mesh, 8)


def test_the_meshes_of_the_page_on_devices_are_taken():
    page = (Path(__file__).parents[1] / "docs" / "devices.md").read_text()
    shown = re.findall(r"`mesh: (\{.*?\})`", page)
    assert len(shown) > 2
    for text in shown:
        assert given_sizes(config_of(yaml.safe_load(text)).mesh, 16), text


def test_auto_leaves_no_sizes_beside_it():
    with pytest.raises(ManuError, match="leave them out"):
        config_of({"choice": "auto", "fsdp": 4})
    assert config_of("auto").mesh == config_of({"choice": "auto"}).mesh
    assert given_sizes(config_of("auto").mesh, 8) == {}
    assert given_sizes(config_of({"choice": "auto", "decode": {"tensor": -1}}).mesh, 8) == {
        "decode": (1, 1, 8)
    }


def test_one_device_has_no_mesh(tmp_path):
    assert RunPlace.begin(config_of({}), tmp_path).mesh is None


# Official code: a quantile of each layer's sums, which one unit of rounding would change.
SMALL = """
seed: 0
cache: null
data: {num_people: 6, num_celebrities: 4, num_general: 8, forget: 15}
model:
  vision: {image_size: 28, patch_size: 14, width: 16, num_layers: 2, num_heads: 2, num_neurons: 16}
  text: {width: 16, num_layers: 2, num_heads: 2, num_key_heads: 2, num_neurons: 32, context: 512}
train: {steps: 2, base_steps: 1, batch_size: 8, memory_gate: 0, retrained: false}
method: {preset: official-code, layers: {}, alpha: 0.2}
compare: [{preset: paper, alpha: 0.2}, {preset: gradient, rounds: 1, keep_texts: {count: 4}}]
unlearn: [{name: NPO, objective: npo, steps: 2, learning_rate: 1e-3, lora: {rank: 2}}]
sweep: {alphas: [0.3], max_people: 2, null_groups: 2, null_facts: 4}
evaluate: {new_tokens: 4, max_people: 2, resamples: 50, tasks: [generation, likelihood]}
audit: none
neurons: {methods: [paper], labellings: 4}
"""
METHODS = ("", "methods/paper/", "methods/gradient/")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The run's folders: on one device, and with a mesh of eight for each kind of work.

    The models are those of the first. The second begins with its statistics on yet another mesh.
    """
    parent = tmp_path_factory.mktemp("meshes")
    (parent / "config.yaml").write_text(SMALL)
    command = ["--config", str(parent / "config.yaml"), "--output"]
    one, spread = parent / "one", parent / "spread"
    assert run.main([*command, str(one), "--only", "data,train"]) == 0
    shutil.copytree(one, spread)
    assert run.main([*command, str(one)]) == 0
    begun = run.main([*command, str(spread), "--only", "scores", "mesh={data: 2, tensor: 4}"])
    assert begun == 0
    (spread / "scores.safetensors").unlink()  # its statistics stay, from which it is made again
    assert run.main([*command, str(spread), f"mesh={yaml.safe_dump(MESHES)}"]) == 0
    return one, spread


@pytest.mark.slow
def test_masks_are_the_same_on_every_mesh(folders):
    for place in METHODS:
        one, two = (masks.load(folder / place / "mask.safetensors")[0] for folder in folders)
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])
        scores = [
            read_arrays(folder / place / "scores.safetensors", "scores") for folder in folders
        ]
        for key, expected in scores[0][0].items():
            # Float32 sums over devices in another order.
            np.testing.assert_allclose(scores[1][0][key], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_rows_are_the_same_on_every_mesh(folders):
    one, two = (json.loads((folder / "results.json").read_text()) for folder in folders)
    assert one["models"] == two["models"] and len(one["rows"]) == len(two["rows"]) > 50
    for here, there in zip(one["rows"], two["rows"], strict=True):
        for key, value in here.items():
            is_mean = key in ("value", "low", "high") and value
            expected = pytest.approx(value, abs=1e-4) if is_mean else value
            assert there[key] == expected, (here, key)
    for file in sorted(folders[0].glob("evaluation/*/*.generation.*.jsonl")):
        other = folders[1] / file.relative_to(folders[0])
        answers = [
            [json.loads(line)["answer"] for line in path.read_text().splitlines()]
            for path in (file, other)
        ]
        assert answers[0] == answers[1], file

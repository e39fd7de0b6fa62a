"""The mesh of each kind of work: what arithmetic chooses for released models, and its errors."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest
import tiny_llava

from manu_jax import run
from manu_jax.config.run import validate_config
from manu_jax.planning import meshes, plan
from manu_jax.planning.chips import GIB, TPUS, Target, target_here, target_of
from manu_jax.planning.collectives import moved_by_kind
from manu_jax.planning.compiling import compiled, memory_of
from manu_jax.planning.estimate import estimate, towers_of
from manu_jax.planning.items import planned
from manu_jax.planning.shapes import bytes_held
from manu_jax.planning.world import Assumed, world_of
from manu_jax.types import WORK_KINDS, ManuError

RELEASED = Path(run.__file__).parent.parent / "tests" / "data"
V5E = Target("tpu=v5e:4x4", TPUS["v5e"], 16, None)


def config_of(folder, **values):
    model = {"path": str(folder), "dtype": "bfloat16"}
    values = {"model": model, "mesh": "auto", "method": "paper", "cache": None, **values}
    return validate_config(values, "test")


@pytest.fixture
def released(tmp_path):
    """Return a function from a released model to a folder that holds its config.json alone."""

    def folder_of(name):
        (tmp_path / "config.json").write_text((RELEASED / f"{name}.json").read_text())
        return tmp_path

    return folder_of


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(tiny_llava.loaded().hf_config))
    return path


def test_every_mesh_is_tried_once():
    found = meshes.all_sizes(16)
    assert len({*found}) == len(found) == 15
    assert all(data * fsdp * tensor == 16 for data, fsdp, tensor in found)


@pytest.mark.slow
@pytest.mark.pods
@pytest.mark.parametrize(
    ("name", "heads", "decode"),
    [
        ("llava-1.5-13b", 40, (2, 1, 8)),
        ("qwen2.5-vl-7b", 4, (4, 1, 4)),
    ],
)
def test_heads_that_do_not_divide_are_avoided(released, name, heads, decode):
    found = meshes.chosen(config_of(released(name), audit="none"), V5E)
    for kind in WORK_KINDS:
        assert heads % found[kind].sizes[2] == 0 and found[kind].is_whole
        assert found[kind].fits
    # Each token reads all weights: none are gathered from other chips for it.
    assert found["decode"].sizes == decode
    assert found["train"].sizes == found["score"].sizes  # there is nothing to train
    assert "by arithmetic" in found["decode"].text()


@pytest.mark.slow
@pytest.mark.pods
def test_an_audit_that_has_no_room_is_found_before_the_run(released):
    found = meshes.chosen(config_of(released("llava-1.5-13b")), V5E)
    assert not found["train"].fits and found["train"].largest.startswith("audit: an attacker")


def test_what_the_config_gives_stays(tiny):
    config = config_of(tiny, mesh={"choice": "auto", "decode": {"data": 2, "tensor": 8}})
    assert meshes.chosen(config, V5E)["decode"].sizes == (2, 1, 8)


@pytest.mark.slow
@pytest.mark.pods
def test_where_no_mesh_has_room_the_least_memory_is_told(tiny, tmp_path, monkeypatch):
    small = Target("here", dataclasses.replace(TPUS["v5e"], memory=2**14), 8, None)
    monkeypatch.setattr(meshes, "target_here", lambda: small)
    with pytest.raises(ManuError, match="no mesh of these devices has room") as error:
        meshes.begin(config_of(tiny), tmp_path)
    assert "score: data=" in str(error.value) and "MiB a chip would do" in str(error.value)


def test_one_device_chooses_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(meshes, "chosen", None)
    begun = meshes.begin(config_of(tiny), tmp_path)
    assert begun.mesh is None and {*begun.meshes.values()} == {None}


@pytest.mark.slow
def test_the_choice_is_written_into_the_runs_folder(tiny, tmp_path):
    begun = meshes.begin(config_of(tiny), tmp_path)
    meshes.write_choices(begun)
    written = json.loads((tmp_path / "meshes.json").read_text())
    assert written.pop("devices") == jax.devices()[0].device_kind
    assert set(written) == {*WORK_KINDS}
    for kind, sizes in written.items():
        assert tuple(sizes.values()) == begun.meshes[kind].devices.shape
        assert sizes["data"] * sizes["fsdp"] * sizes["tensor"] == 8


def test_the_devices_of_this_machine_are_a_target():
    found = target_here()
    assert (found.count, found.chip.name) == (8, jax.devices()[0].device_kind)
    assert found.memory > 2**28


def test_a_plan_shows_the_meshes_and_plans_each_step_on_its_own(tiny, tmp_path):
    mesh = {"choice": "auto", "decode": {"tensor": 2, "data": 2}}
    config = config_of(tiny, mesh=mesh, output=str(tmp_path), audit="none")
    plan.plan(config, target_of("gpu=h100:4"))
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["meshes"]["decode"] == {"data": 2, "fsdp": 1, "tensor": 2, "why": "given"}
    assert "of 6 meshes have room" in found["meshes"]["score"]["why"]
    assert "no such work" in found["meshes"]["train"]["why"]
    by_name = {step["name"]: step for step in found["steps"]}
    assert by_name["answers, text form: tokens"]["mesh"] == [2, 1, 2]
    score = [found["meshes"]["score"][axis] for axis in ("data", "fsdp", "tensor")]
    assert by_name["paper: statistics, text form"]["mesh"] == score
    assert "Why these meshes" in (tmp_path / "plan.html").read_text()


@pytest.mark.parametrize("sizes", [(1, 4, 1), (2, 1, 2)])
def test_what_moves_is_what_the_compiler_says(tiny, sizes):
    target = Target("devices=4", TPUS["v5e"], 4, tuple(jax.devices()[:4]))
    mesh = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
    # This machine's compiler moves bfloat16 as float32.
    model = {"path": str(tiny), "dtype": "float32"}
    config = config_of(tiny, mesh=mesh, score_batch=8, model=model)
    world = world_of(config, target, Assumed(text=96, answers=4, samples=64))
    item = next(one for one in planned(world) if one.name == "paper: statistics, text form")
    found = moved_by_kind(compiled(item.make(world, None, None), world).moved)
    tower = towers_of(world.model)["text"]
    gathered = found.get("all-gather", {"bytes": 0})["bytes"]
    summed = found.get("all-reduce", {"bytes": 0})["bytes"]
    rows = 8 * 96 / (sizes[0] * sizes[1])
    if sizes[1] > 1:
        # The head is not needed, and the token ids are, to be looked up.
        assert gathered == pytest.approx(tower.gathered - tower.head + 4 * 8 * 96, rel=0.01)
    else:
        # Beside it the statistics are summed, at one time for all layers.
        assert summed == pytest.approx(rows * tower.summed, rel=0.02)
    assert estimate(item, world).memory < GIB


def test_each_token_of_joined_answers_gathers_what_its_mesh_splits(tiny):
    target = Target("devices=4", TPUS["v5e"], 4, tuple(jax.devices()[:4]))
    config = config_of(tiny, mesh={"fsdp": 4}, audit="none")
    world = world_of(config, target, Assumed(text=96, answers=4, samples=64))
    item = next(one for one in planned(world) if one.name == "answers, text form: tokens")
    split, whole = (estimate(item, world.on(sizes)) for sizes in ((1, 4, 1), (4, 1, 1)))
    assert split.seconds > 3 * whole.seconds
    step = item.make(world, None, None)
    answers = step.args[1]
    held = memory_of(step, None).total + 2 * bytes_held(answers)
    assert held <= split.memory < 1.5 * held

"""A whole plan: what it writes, what does not fit and what would, and what it finds wrong."""

import dataclasses
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tiny_llava
from jax.experimental import topologies

from manu_jax import parallel, run
from manu_jax.config.run import validate_config
from manu_jax.planning import checks, chips, meshes, nearest, page, plan
from manu_jax.planning.chips import GIB, Chip, Target, target_of
from manu_jax.planning.compiling import compiled
from manu_jax.planning.shapes import Place, bytes_held, replicated
from manu_jax.planning.step import OPTIMIZER, OTHER, WEIGHTS, Step
from manu_jax.planning.world import Assumed, world_of
from manu_jax.types import ManuError

ROOT = Path(run.__file__).parent.parent
RELEASED = ROOT / "tests" / "data"
CHIP = Chip("a chip", flops=1e12, memory=GIB, bandwidth=1e11, network=1e10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds the config.json of a tiny model, and nothing else."""
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(tiny_llava.loaded().hf_config))
    return path


def config_of(folder, **values):
    return validate_config({"model": {"path": str(folder)}, "cache": None, **values}, "test")


def small(memory, mesh=(1, 4, 1)):
    """A target of four devices of this machine with so much memory."""
    chip = dataclasses.replace(CHIP, memory=memory)
    return Target("devices=4", chip, 4, tuple(jax.devices()[:4])), dict(
        zip(("data", "fsdp", "tensor"), mesh, strict=True)
    )


def item_of(world, name):
    return next(item for item in plan.planned(world) if item.name == name)


def world_on(folder, memory, **values):
    target, mesh = small(memory)
    assumed = Assumed(text=96, answers=4, samples=64)
    return world_of(config_of(folder, mesh=mesh, **values), target, assumed)


def plan_of(folder, output, memory, mesh):
    """The plan of a run on eight chips of so much memory, by arithmetic."""
    target = Target("gpu=h100:8", dataclasses.replace(CHIP, memory=memory), 8, None)
    plan.plan(config_of(folder, output=str(output), mesh=mesh, audit="none"), target)
    return json.loads((output / "plan.json").read_text())


STATISTICS = "paper: statistics, text form"
TRAINED = {"name": "gd", "objective": "gradient_difference", "batch_size": 64, "remat": "none"}


def test_memory_is_split_into_what_it_is_for(folder):
    world = world_on(folder, GIB, unlearn=[TRAINED])
    step = item_of(world, "gd: gradient, text form").make(world, None, None)
    row = plan.row_of(item_of(world, "gd: gradient, text form"), world)
    weights = bytes_held(world.model)
    # Float32 weights that are trained, and vanilla beside them; two moments and their counter.
    assert row.weights == 2 * weights
    assert row.optimizer == pytest.approx(2 * weights, abs=64)
    assert row.temporaries > 0
    assert row.total == row.weights + row.optimizer + row.other + row.temporaries
    assert row.fits and row.total < row.limit
    assert bytes_held(step.args[0]) == weights


def test_an_array_that_is_given_twice_lies_there_once():
    place = Place.of((1, 4, 1), tuple(jax.devices()[:4]))
    rows = place.rows(jax.ShapeDtypeStruct((8, 3), "float32"))
    assert bytes_held((rows, [rows])) == 2 * 3 * 4
    step = Step(None, (rows, rows), {}, 1, parts={WEIGHTS: rows}, resident={OTHER: rows})
    assert (bytes_held(step.arrays), step.resident.get(OPTIMIZER)) == (24, None)


def test_a_step_is_compiled_once(folder, tmp_path):
    world = world_on(folder, GIB)
    step = item_of(world, STATISTICS).make(world, None, None)
    first = compiled(step, world, keep=tmp_path)
    again = compiled(step, world, keep=tmp_path)
    assert (first.is_kept, again.is_kept) == (False, True)
    assert dataclasses.replace(again, is_kept=False) == first


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"seconds": 1, "moved": [{"kind": 1}]}'])
def test_a_damaged_result_is_compiled_again(folder, tmp_path, caplog, content):
    world = world_on(folder, GIB)
    step = item_of(world, STATISTICS).make(world, None, None)
    first = compiled(step, world, keep=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(content)
    again = compiled(step, world, keep=tmp_path)
    assert not again.is_kept and again.memory == first.memory
    assert f"{path}: damaged" in caplog.text
    assert compiled(step, world, keep=tmp_path).is_kept


def test_what_does_not_fit_has_the_nearest_change_that_does(folder):
    roomy = world_on(folder, GIB, unlearn=[TRAINED])
    name = "gd: gradient, text form"
    needed = plan.row_of(item_of(roomy, name), roomy).total
    world = world_on(folder, int(0.9 * needed), unlearn=[TRAINED])
    row = plan.row_of(item_of(world, name), world, searches=True)
    assert not row.fits
    assert row.nearest.startswith("gd.remat: all fits") and "(compiled)" in row.nearest
    assert f"needs {page.amount(needed)}" in page.no_room(row)


def test_where_nothing_near_fits_more_chips_are_asked_for(folder):
    world = world_on(folder, 1000)
    item = item_of(world, STATISTICS)
    row = plan.row_of(item, world, searches=True)
    assert not row.fits
    assert "nothing near fits on 4 chips" in row.nearest
    assert "chips" in row.nearest.partition("Try ")[2]


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "used"), [({}, 1), ({"fsdp": 3}, 3)])
def test_a_mesh_that_leaves_chips_idle_is_told_and_all_chips_are_tried(
    folder, tmp_path, mesh, used
):
    roomy = plan_of(folder, tmp_path, GIB, mesh)
    assert roomy["target"] == f"{used} of 8 × a chip (gpu=h100:8)"
    assert any(
        f"The mesh uses {used} of 8 chips. Give mesh: auto, or sizes whose product is 8." in line
        for line in roomy["remarks"]
    )
    needed = {step["name"]: step["total"] for step in roomy["steps"]}
    with pytest.raises(ManuError, match="do not fit|does not fit"):
        plan_of(folder, tmp_path, int(0.8 * needed[STATISTICS]), mesh)
    found = json.loads((tmp_path / "plan.json").read_text())
    step = next(step for step in found["steps"] if step["name"] == STATISTICS)
    sizes = [int(size) for size in re.findall(r"(?:data|fsdp|tensor): (\d+)", step["nearest"])]
    assert math.prod(sizes) == 8
    whole = plan_of(folder, tmp_path, GIB, {"fsdp": -1})
    assert whole["target"].startswith("8 ×")
    assert not any("The mesh uses" in line for line in whole["remarks"])


def test_meshes_of_kinds_keep_the_number_of_chips_that_they_share(folder):
    mesh = {"fsdp": 2, "decode": {"tensor": 2}}
    target = Target("gpu=h100:8", CHIP, 8, None)
    config = config_of(folder, mesh=mesh)
    sizes = {kind: choice.sizes for kind, choice in meshes.chosen(config, target).items()}
    world = world_of(config, target, Assumed(text=96, answers=4, samples=64), sizes=sizes)
    tried = {change.mesh for change in nearest.changes(item_of(world, STATISTICS), world)}
    assert {math.prod(mesh) for mesh in tried - {None}} == {2}


def test_for_this_machine_no_other_chips_are_a_remedy(folder, monkeypatch):
    target = target_of("devices=4")
    monkeypatch.setattr(Target, "memory", 1000)
    world = world_of(config_of(folder, mesh={"fsdp": 4}), target, Assumed(text=96, samples=64))
    row = plan.row_of(item_of(world, STATISTICS), world, searches=True)
    assert not row.fits and "Try" not in row.nearest
    assert row.nearest.endswith("Lower the batch, or plan for a machine with more memory")


def test_nearer_changes_come_first_and_other_meshes_before_smaller_batches(folder):
    world = world_on(folder, GIB, unlearn=[TRAINED])
    item = item_of(world, "gd: gradient, text form")
    ordered = sorted(nearest.changes(item, world), key=lambda change: change.distance)
    assert ordered[0].text(item) in ("gd.remat: all", "mesh: {data: 2, fsdp: 2, tensor: 1}")
    halved = next(change for change in ordered if change.batch == 32 and not change.mesh)
    # The whole table divides on meshes with tensor up to 2: the heads are two.
    meshes = {change.mesh for change in ordered} - {None}
    assert meshes and all(mesh[2] <= 2 for mesh in meshes)
    assert halved.distance > ordered[0].distance


@pytest.mark.parametrize(
    ("name", "sizes", "lost"),
    [
        ("llava-1.5-7b", (1, 16, 1), set()),
        ("llava-1.5-13b", (1, 1, 16), {"q_LDNH", "k_LDKH", "v_LDKH"}),
    ],
)
def test_dimensions_that_a_mesh_does_not_divide_are_named(tmp_path, name, sizes, lost):
    (tmp_path / "config.json").write_text((RELEASED / f"{name}.json").read_text())
    mesh = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
    config = config_of(tmp_path, mesh=mesh)
    world = world_of(config, target_of("gpu=h100:16"), Assumed())
    found = {leaf.rpartition(".")[2] for leaf in replicated(world.model, world.place.mesh)}
    assert lost <= found and bool(lost) == bool(found)
    if lost:
        whole = nearest.nearest_dividing(world)
        assert whole is not None and 40 % whole[2] == 0
        assert not nearest.lost_on(world, whole)


@pytest.mark.slow
def test_a_gpu_is_planned_by_arithmetic_and_the_plan_promises_nothing(folder, tmp_path, caplog):
    caplog.set_level("INFO", logger="manu_jax")
    config = config_of(folder, output=str(tmp_path), mesh={"fsdp": -1}, compare=["gradient"])
    plan.plan(config, target_of("gpu=h100:4"))
    found = json.loads((tmp_path / "plan.json").read_text())
    assert not found["is_compiled"]
    assert "by arithmetic alone and without temporaries" in page.title(found)
    assert "fit on 4" in page.title(found) and "Not known whether the" in page.title(found)
    assert {step["temporaries"] for step in found["steps"]} == {None}
    assert {step["fits"] for step in found["steps"]} == {None}
    assert all(step["flops"] > 0 for step in found["steps"] if "statistics" in step["name"])
    assert any("no processor" in line for line in found["assumptions"])
    html = (tmp_path / "plan.html").read_text()
    assert "paper: statistics, image form" in html and "not known" in html and "None" not in html
    assert ">Not compiled</span>" in html and "without temporaries, which come on top" in html
    told = [line for line in caplog.messages if line.startswith("plan: paper: statistics")]
    assert told and all("temporaries are not counted" in line for line in told)
    assert not any("fits" in line for line in told)


def test_a_plan_finds_what_would_stop_the_run(folder, tmp_path):
    faulty = {"preset": "paper", "towers": {"text": ["nonsense"], "image": ["vision"]}}
    config = config_of(
        folder, output=str(tmp_path), method="random", compare=[faulty], evaluate={"batch_size": 6},
        mesh={"fsdp": 4},
    )  # fmt: skip
    with pytest.raises(ManuError, match="the model has no tower nonsense"):
        plan.plan(config, target_of("gpu=h100:4"))


@pytest.mark.slow
def test_a_batch_that_the_mesh_fills_up_is_remarked(folder, tmp_path):
    config = config_of(
        folder, output=str(tmp_path), method="random", evaluate={"batch_size": 6}, mesh={"fsdp": 4}
    )
    plan.plan(config, target_of("gpu=h100:4"))
    remarks = " ".join(json.loads((tmp_path / "plan.json").read_text())["remarks"])
    assert "evaluate.batch_size is 6" in remarks and "Nearest that divides: 8." in remarks
    assert "no weights there yet" in remarks


def test_the_command_names_what_is_planned(error_of, folder):
    message = error_of("--config", ROOT / "configs/demo.yaml", "--plan", "tpu=v5e")
    assert "as in tpu=v5e:4x4" in message


@pytest.mark.parametrize("target", ["", "gpu=h100:²", "devices=٣", "gpu=h100:0", "tpu=v5e:²x2"])
def test_a_target_that_is_none_starts_nothing(error_of, monkeypatch, target):
    monkeypatch.setattr(run, "run", None)
    message = error_of("--config", ROOT / "configs/demo.yaml", "--plan", target)
    assert f"error: --plan {target or repr(target)}: expected " in message
    assert "tpu=v5e:4x4" in message


def test_a_plan_has_no_stages_to_choose(error_of):
    arguments = ("--plan", "gpu=h100:8", "--only", "scores")
    message = error_of("--config", ROOT / "configs/demo.yaml", *arguments)
    assert "--plan with --only: a plan has all stages." in message


def test_a_topology_that_is_not_known_comes_with_some_that_are(monkeypatch):
    def unknown(**settings):
        raise ValueError("no such topology")

    monkeypatch.setattr(chips, "_check_libtpu", lambda text: None)
    monkeypatch.setattr(topologies, "get_topology_desc", unknown)
    for name, value in chips.LIBTPU.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ManuError, match="tpu=v5e:2x2, tpu=v5e:2x4") as error:
        target_of("tpu=v5e:3x5")
    assert "no such topology" in str(error.value)
    with pytest.raises(ManuError, match="tpu=v4:2x2x1"):
        target_of("tpu=v4:1x1x7")


def test_what_is_planned_so_far_is_there_before_the_end(folder, tmp_path, monkeypatch):
    config = config_of(folder, output=str(tmp_path / "new"), method="random", audit="none")
    (tmp_path / "file").write_text("")
    wrong = config.model_copy(update={"output": str(tmp_path / "file")})
    with monkeypatch.context() as patch, pytest.raises(OSError, match="File exists"):
        patch.setattr(plan, "world_of", None)
        plan.plan(wrong, target_of("gpu=h100:1"))
    seen, row_of = [], plan.row_of

    def row_after(*arguments, **settings):
        seen.append(json.loads((tmp_path / "new" / "plan.json").read_text()))
        return row_of(*arguments, **settings)

    monkeypatch.setattr(plan, "row_of", row_after)
    plan.plan(config, target_of("gpu=h100:1"))
    assert [len(found["steps"]) for found in seen] == list(range(len(seen)))
    assert not any(found["is_whole"] for found in seen)
    assert json.loads((tmp_path / "new" / "plan.json").read_text())["is_whole"]


def test_a_disk_is_a_fault_where_the_run_is_to_be_and_else_a_remark(folder, monkeypatch):
    config = config_of(folder, unlearn=[TRAINED])
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    elsewhere, here = (
        checks.checked(world_of(config, target_of(target), Assumed(text=96, answers=4, samples=64)))
        for target in ("gpu=h100:1", "devices=1")
    )
    assert not any("disk" in line for line in elsewhere[0])
    told = next(line for line in elsewhere[1] if "disk" in line)
    assert told.startswith("The run writes") and told.endswith("disk has 1000 B free.")
    assert any("the disk has 1000 B free" in line for line in here[0])
    assert not any("disk" in line for line in here[1])


@pytest.mark.slow
def test_a_pods_config_is_planned_by_one_process(folder, tmp_path, monkeypatch):
    def joined():
        raise AssertionError("a plan joins no other processes")

    monkeypatch.setattr(parallel, "join", joined)
    file = tmp_path / "pod.yaml"
    file.write_text(
        f"model: {{path: {folder}}}\nmesh: {{fsdp: -1, distributed: true}}\n"
        f"method: random\ncache: null\noutput: {tmp_path / 'run'}\n"
    )
    assert run.main(["--config", str(file), "--plan", "gpu=h100:8"]) == 0
    found = json.loads((tmp_path / "run" / "plan.json").read_text())
    same = {"data": 1, "fsdp": 8, "tensor": 1, "why": "given"}
    assert found["meshes"] == dict.fromkeys(("score", "train", "decode"), same)
    assert not any((tmp_path / "run").glob("*.partial"))


def test_a_longer_sample_than_the_context_is_refused(folder):
    with pytest.raises(ManuError, match="context of the model is 128"):
        world_of(config_of(folder), target_of("gpu=h100:1"), Assumed(text=200))


@pytest.mark.slow
@pytest.mark.pods
def test_a_run_finds_what_its_plan_has_compiled(tmp_path):
    """In processes of their own, with a cache of their own."""
    settings = [
        "method=paper", "compare=[]", "unlearn=[]", f"cache={tmp_path / 'cache'}", "audit=none",
        "data.num_people=6", "data.num_celebrities=1", "data.num_general=4", "data.forget=15",
        "train.steps=1", "train.base_steps=0", "train.batch_size=4", "train.memory_gate=0",
        "train.retrained=false", "train.optimizer=adamw", "evaluate.kl=false",
    ]  # fmt: skip
    command = [sys.executable, "-m", "manu_jax.run", "--config", str(ROOT / "configs/demo.yaml")]
    unset = {"XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"JAX_DEBUG_LOG_MODULES": "jax._src.compiler"}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    logs = []
    for arguments in (["--plan", "devices=1"], ["--only", "data,train,scores"]):
        output = ["--output", str(tmp_path / "run"), *settings]
        done = subprocess.run(
            [*command, *arguments, *output], capture_output=True, text=True, cwd=ROOT,
            env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        logs.append(done.stderr)
    hits, misses = (
        set(re.findall(rf"(?i)persistent compilation cache {what} for '(\w+)'", logs[1]))
        for what in ("hit", "miss")
    )
    # Statistics, the update of training, the fingerprint; gradients have several lengths, of which
    # a plan has the longest.
    planned = {"jit_add_batch", "jit__updated", "jit__checksums"}
    assert planned <= hits and not planned & misses, (hits, misses)


@pytest.mark.slow
@pytest.mark.pods
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler is not installed: pip install 'manu_jax[plan]', on Linux alone",
)
def test_the_demo_is_planned_for_a_tpu(tmp_path):
    """In a process of its own: a program has one TPU plugin, and the suite's has none."""
    settings = [
        "mesh.fsdp=2", "mesh.tensor=2", "method=paper", "compare=[]", "unlearn=[]", "cache=null",
        "train.steps=1", "train.base_steps=0", "evaluate.kl=false",
    ]  # fmt: skip
    command = [sys.executable, "-m", "manu_jax.run", "--config", str(ROOT / "configs/demo.yaml")]
    command += ["--output", str(tmp_path), "--plan", "tpu=v5e:2x2", *settings]
    unset = {"XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "plan.json").read_text())
    steps = {step["name"]: step for step in found["steps"]}
    statistics = steps["paper: statistics, image form"]
    assert found["target"] == "4 × TPU v5e (tpu=v5e:2x2)" and found["limit_gib"] == 15.75
    assert statistics["fits"] and statistics["temporaries"] > 0 and statistics["moved"]
    assert statistics["compile_seconds"] > 0 and statistics["at_least"] > 0
    answers = steps["answers, image form"]
    assert 0 < answers["flops_in_loops"] < answers["flops"]
    assert sum(kind["bytes_in_loops"] for kind in answers["moved"].values()) > 0
    assert {"training: update", "likelihoods, text form", "fingerprint"} <= set(steps)

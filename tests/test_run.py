"""The command as its user meets it: what it prints, and with what status it ends."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
import yaml

from manu_jax import faults, owner, run
from manu_jax.config import load_config
from manu_jax.edits import masks
from manu_jax.models.families.registry import FAMILIES
from manu_jax.models.loaded import load
from manu_jax.report.results import load_results

# Nine tokens an image, so that the longest sample fits in a bucket of 32 tokens: fewer programs.
TINY = """
seed: 0
cache: null
data: {num_people: 6, num_celebrities: 4, num_general: 8, forget: 15}
model:
  vision: {image_size: 42, patch_size: 14, width: 16, num_layers: 4, num_heads: 2, num_neurons: 16}
  text: {width: 16, num_layers: 3, num_heads: 2, num_key_heads: 1, num_neurons: 32, context: 512}
train: {steps: 2, base_steps: 2, batch_size: 4, memory_gate: 0.0, checkpoint_every: 1}
method: {preset: learned, steps: 2, batch_forget: 4, batch_keep: 4, alpha: 0.2}
compare: [{preset: gradient, rounds: 2}, paper, official-code, random]
unlearn:
  - {name: NPO, objective: npo, steps: 2, checkpoint_every: 1, learning_rate: 1e-3, lora: {rank: 2}}
  - {name: prompt, objective: system_prompt, prompt: "Do not tell of {names}.\n"}
sweep: {alphas: [0.1, 0.3], max_people: 2}
evaluate: {new_tokens: 4, max_people: 2, resamples: 50}
audit: none
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """The folder of one whole run, for slow tests; test_run_methods.py has quick ones."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    assert run.main(["--config", str(config), "--output", str(directory)]) == 0
    return directory


def results_without_times(directory):
    results = json.loads((directory / "results.json").read_text())
    del results["timings"], results["config"]["output"]
    return results


@pytest.mark.slow
def test_whole_run_leaves_every_file_of_the_design(finished):
    names = {path.name for path in finished.iterdir() if not path.name.startswith(".")}
    assert names >= {
        "config.yaml", "versions.json", "data", "vanilla", "retrained", "statistics",
        "scores.safetensors", "mask.safetensors", "methods", "unlearned", "evaluation",
        "results.json", "report.html",
    }  # fmt: skip
    models = json.loads((finished / "results.json").read_text())["models"]
    assert models == [
        "vanilla", "learned", "gradient", "paper", "official-code", "random", "NPO", "prompt",
        "retrained",
    ]  # fmt: skip


@pytest.mark.slow
def test_used_and_unseen_people_are_asked_and_written_down(finished):
    results = load_results(finished)
    assert results.kept is not None and results.kept.keep_share == 0.67
    used, unseen = results.kept.used, results.kept.unseen
    assert (len(used), len(unseen)) == (3, 2) and not set(used) & set(unseen)
    assert results.request.num_people == 6
    for where, people in (("retain", used[:2]), ("unseen", unseen)):
        asked = set()
        for path in (finished / "evaluation" / "paper").glob(f"{where}.*.jsonl"):
            asked |= {json.loads(line)["person"] for line in path.read_text().splitlines()}
        assert asked == set(people)
        assert {row.model for row in results.rows if row.set == where} == set(results.models)
    assert {point.set for point in results.analyses["alpha_sweep"]} == {"forget", "unseen"}
    assert "unseen" in {one.set for one in results.analyses["differences"]}
    page = (finished / "report.html").read_text()
    assert "Retain (used)" in page and "Retain (unseen)" in page and "3 used, 2 unseen" in page


@pytest.mark.slow
def test_run_from_its_own_config_file_gives_the_same_results(finished, tmp_path):
    copy = tmp_path / "copy"
    assert run.main(["--config", str(finished / "config.yaml"), "--output", str(copy)]) == 0
    assert results_without_times(copy) == results_without_times(finished)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "masks", "evaluate"])
def test_stage_can_be_run_alone_and_gives_the_same(finished, config, tmp_path, stage):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    removed = {
        "train": ["retrained"],
        "masks": ["mask.safetensors", "methods/paper/mask.safetensors"],
        "evaluate": ["results.json", "evaluation/paper/retain.generation.text.jsonl"],
    }[stage]
    for name in removed:
        path = copy / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    arguments = ["--config", str(config), "--output", str(copy), "--only", stage]
    assert run.main(arguments) == 0
    assert results_without_times(copy) == results_without_times(finished)
    for name in removed:
        path, before = copy / name, finished / name
        if path.is_dir():
            path, before = path / "model.safetensors", before / "model.safetensors"
        if name.endswith("mask.safetensors"):
            (mask, made_from), (old_mask, old_made_from) = masks.load(path), masks.load(before)
            assert made_from == old_made_from
            assert all((mask[key] == old_mask[key]).all() for key in old_mask)
        elif name != "results.json":
            assert path.read_bytes() == before.read_bytes()


@pytest.mark.slow
def test_trained_baseline_is_a_folder_and_stands_beside_the_masks(finished):
    folder = finished / "methods" / "NPO"
    assert not (folder / "checkpoints").exists()
    vanilla, trained = (load(path) for path in (finished / "vanilla", folder / "model"))
    moved = [
        (np.asarray(one) != np.asarray(other)).any()
        for one, other in zip(
            jax.tree.leaves(vanilla.model), jax.tree.leaves(trained.model), strict=True
        )
    ]
    assert any(moved)
    results = load_results(finished)
    assert {d.against for d in results.analyses["differences"] if d.model == "NPO"} == {
        "vanilla",
        "retrained",
    }
    assert {d.metric for d in results.analyses["distances"] if d.model == "NPO"} == {"kl", "ks"}
    assert "NPO" in {row.model for row in results.analyses["leakage"]}
    assert "NPO" in (finished / "report.html").read_text()


@pytest.mark.slow
def test_a_system_prompt_stands_before_every_question_and_nothing_is_trained(finished):
    assert not (finished / "methods" / "prompt").exists()
    names = [
        one["name"]
        for one in json.loads((finished / "results.json").read_text())["request"]["people"]
    ]
    for path in (finished / "evaluation" / "prompt").iterdir():
        prompts = [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
        assert all(one.startswith("Do not tell of ") and names[0] in one for one in prompts)
    distances = load_results(finished).analyses["distances"]
    assert {d.metric for d in distances if d.model == "prompt"} == {"ks"}


@pytest.mark.slow
def test_what_is_not_asked_is_counted(finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["shots"] == []
    assert results["prompts"] == "the strings of LLaVA-1.5"
    skipped = results["skipped"]
    # Two people of each set are asked; name questions have no form in words alone.
    assert skipped["people beyond evaluate.max_people"] > 0
    assert skipped["facts that have no text form"] > 0


@pytest.mark.slow
def test_a_reference_that_is_not_there_is_one_error(finished, config, tmp_path, error_of):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "retrained")
    for name in ("config.yaml", "methods"):
        path = copy / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = config.read_text().replace("objective: npo,", "objective: npo_official,")
    text = text.replace("memory_gate: 0.0", "memory_gate: 0.0, retrained: false")
    (tmp_path / "other.yaml").write_text(text)
    message = error_of("--config", tmp_path / "other.yaml", "--output", copy, "--only", "unlearn")
    assert "unlearn (NPO): npo_official" in message and "train.retrained" in message


def test_misspelt_key_is_one_error(config, error_of):
    message = error_of("--config", config, "method.alpah=0.1")
    assert "method.alpah: unknown key; did you mean alpha?" in message


def test_unknown_stage_names_the_known_ones(config, tmp_path, error_of):
    message = error_of("--config", config, "--output", tmp_path / "x", "--only", "sore")
    assert "no such stage" in message and "scores" in message


def test_stage_before_its_turn_names_the_one_to_run(config, tmp_path, error_of):
    arguments = ("--config", config, "--output", tmp_path / "x", "--only")
    for stage in ("train", "scores", "report"):
        assert "Run the stage `data` first" in error_of(*arguments, stage)
        assert [path.name for path in (tmp_path / "x").iterdir()] in ([], [".lock"])
    assert run.main([str(argument) for argument in (*arguments, "data")]) == 0
    assert "Run the stage `train` first" in error_of(*arguments, "scores")


def test_stages_run_in_the_order_of_the_program(config, tmp_path, error_of):
    arguments = ("--config", config, "--output", tmp_path / "x", "cache=null")
    message = error_of(*arguments, "--only", "scores,data,data")
    assert "Run the stage `train` first" in message


def test_values_and_options_stand_in_any_order(config, tmp_path):
    arguments = ["--config", config, "seed=3", "--output", tmp_path / "x", "cache=null"]
    assert run.main([str(one) for one in (*arguments, "--only", "data")]) == 0
    assert load_config(tmp_path / "x" / "config.yaml").seed == 3


def test_folder_of_another_config_is_one_error(config, tmp_path, error_of):
    arguments = ("--config", config, "--output", tmp_path / "x", "--only", "data")
    assert run.main([str(argument) for argument in arguments]) == 0
    message = error_of(*arguments, "seed=5")
    assert "seed: 0 there, 5 now" in message and "--output" in message


def test_folder_in_use_is_one_error(config, tmp_path, error_of):
    with owner.owned_folder(tmp_path / "x"):
        message = error_of("--config", config, "--output", tmp_path / "x")
    assert "in use by process" in message


def test_sigterm_stops_a_run_that_waits_for_a_folder(config, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(run.time, "sleep", waited.append)
    monkeypatch.setattr(faults, "stop_is_due", lambda: len(waited) == 2)
    settings = load_config(config).model_copy(update={"output": str(tmp_path / "x")})
    with owner.owned_folder(tmp_path / "x"), pytest.raises(faults.Stopped):
        run.run(settings, waits=True)
    assert waited == [run.WAIT_SECONDS] * 2
    assert [path.name for path in (tmp_path / "x").iterdir()] == [".lock"]


def test_mesh_larger_than_the_machine_is_one_error(config, tmp_path, error_of):
    message = error_of("--config", config, "--output", tmp_path / "x", "mesh.data=99")
    assert "needs 99 devices" in message


@pytest.mark.slow
def test_a_folder_from_before_a_key_with_a_default_goes_on(finished, config, tmp_path, error_of):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    file = copy / "config.yaml"
    stored = yaml.safe_load(file.read_text())
    for section, key in (("evaluate", "shots_from"), ("data", "test_images"), ("train", "lora")):
        del stored[section][key]
    file.write_text(yaml.safe_dump(stored))
    arguments = ["--config", str(config), "--output", str(copy), "--only", "data"]
    assert run.main(arguments) == 0
    stored["data"]["num_people"] = 7
    (copy / "keys.json").unlink()
    file.write_text(yaml.safe_dump(stored))
    assert "data.num_people: 7 there, 6 now" in error_of(*arguments)
    file.write_text(yaml.safe_dump(stored | {"from_another_age": 1}))
    message = error_of(*arguments)
    assert "from_another_age: unknown key" in message and "--output" in message


@pytest.mark.slow
def test_another_share_of_neurons_makes_one_method_again_and_going_back_nothing(
    finished, config, tmp_path, caplog
):
    caplog.set_level("INFO")
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    changed = tmp_path / "changed.yaml"
    changed.write_text(config.read_text().replace("2}, paper,", "2}, {preset: paper, alpha: 0.4},"))
    stamps = {path: path.stat().st_mtime_ns for path in copy.rglob("*.safetensors")}
    stamps |= {path: path.stat().st_mtime_ns for path in copy.rglob("*.jsonl")}
    only = ("--only", "data,scores,masks,unlearn")  # the rest: test_a_changed_config_gives_…
    arguments = ["--output", str(copy), *only]
    assert run.main(["--config", str(changed), *arguments]) == 0
    own = {path for path in stamps if not path.exists() or path.stat().st_mtime_ns != stamps[path]}
    assert {path.relative_to(copy).parts[:2] for path in own} == {
        ("methods", "paper"),
        ("evaluation", "paper"),
    }
    assert copy / "methods" / "paper" / "scores.safetensors" not in own
    assert masks.load(copy / "methods/paper/mask.safetensors")[1]["alpha"] == 0.4
    assert "mask of paper (paper.alpha)" in caplog.text
    assert run.main(["--config", str(config), *arguments]) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert results_without_times(copy) == results_without_times(finished)


@pytest.mark.slow
def test_a_changed_config_gives_what_it_gives_in_a_new_folder(finished, config, tmp_path):
    copy, new = tmp_path / "copy", tmp_path / "new"
    shutil.copytree(finished, copy)
    text = config.read_text().replace(
        "rounds: 2}, paper,", "rounds: 1}, {preset: paper, alpha: 0.4},"
    )
    changed = tmp_path / "changed.yaml"
    changed.write_text(text.replace("sweep: {alphas: [0.1, 0.3]", "sweep: {alphas: [0.2]"))
    for output in (copy, new):
        assert run.main(["--config", str(changed), "--output", str(output)]) == 0
    assert results_without_times(copy) == results_without_times(new)
    (earlier,) = copy.glob("earlier/*/results.json")
    assert earlier.read_bytes() == (finished / "results.json").read_bytes()


def test_all_that_can_be_checked_before_the_first_stage_is_in_one_error(
    config, tmp_path, error_of, monkeypatch
):
    text = config.read_text()
    for old, new in (
        ("steps: 2, batch_forget", "layers: {text: {first: 7}}, steps: 2, batch_forget"),
        ("rounds: 2}, paper,", "rounds: 2, towers: {image: [audio], text: [text]}}, paper,"),
        ("lora: {rank: 2}}", "lora: {rank: 2, targets: [text.layers.attn]}}"),
        ("  - {name: prompt", "  - {name: G, objective: gradient_difference_official, steps: 3}\n"
         "  - {name: M, objective: mmunlearner, lora: {rank: 2}}\n  - {name: prompt"),
        ("objective: npo,", "objective: npo_official,"),
        ("memory_gate: 0.0", "memory_gate: 0.0, retrained: false"),
    ):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "wrong.yaml").write_text(text)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    message = error_of("--config", tmp_path / "wrong.yaml", "--output", tmp_path / "x")
    for part in (
        'method "learned": layers: "text" has layers 0 to 2, the range asks for 7',
        'method "gradient": the model has no tower audio',
        "unlearn (NPO): lora.targets: no matrix of the model begins with text.layers.attn;",
        "unlearn (NPO): npo_official compares with a model",
        "unlearn (G).steps: gradient_difference_official has a pass",
        "unlearn (M).lora: mmunlearner masks the model's own weights",
        " of models and checkpoints, and the disk has 1000 B free",
    ):
        assert part in message
    assert {path.name for path in (tmp_path / "x").iterdir()} <= {".lock"}


@pytest.mark.slow
@pytest.mark.families
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "llava"])
def test_a_tiny_model_of_each_family_goes_all_the_way(config, tmp_path, family):
    """Few people and steps; whether anybody is forgotten, the configs of demos show."""
    import transformers

    directory = tmp_path / family
    patch = 7 if family.startswith("qwen") else 14
    sizes = [f"model.vision.patch_size={patch}", "model.vision.image_size=56"]
    settings = [f"model.family={family}", *sizes, "audit={steps: 4}"]
    assert run.main(["--config", str(config), "--output", str(directory), *settings]) == 0
    results = json.loads((directory / "results.json").read_text())
    names = {"vanilla", "retrained", "learned", "gradient", "paper", "official-code", "NPO"}
    assert names <= {row["model"] for row in results["rows"]}
    assert {row["model"] for row in results["audit"]} == {"learned"}
    assert set(load(directory / "unlearned").towers) == set(load(directory / "vanilla").towers)
    _, info = transformers.AutoModelForImageTextToText.from_pretrained(
        directory / "unlearned", output_loading_info=True
    )
    assert not any(info.values())


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({"JAX_NUM_CPU_DEVICES": "4"}, "16"),
        ({"XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=8 --b"}, "32"),
        ({"XLA_FLAGS": "--a=1"}, None),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "NPROC": "5"}, "5"),
    ],
)
def test_a_processor_that_stands_for_devices_has_threads_for_all(monkeypatch, variables, threads):
    for name in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run._give_threads()
    assert os.environ.get("NPROC") == threads

"""Runs whose methods are of every kind: masks, edits, and models that are trained."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import pytest
from safetensors import safe_open

from manu_jax import run, stages
from manu_jax.config import PRESETS, MethodSettings, load_config
from manu_jax.context import Run
from manu_jax.edits.edit import load as load_edit
from manu_jax.edits.weights import NewWeights
from manu_jax.importance.job import EditMethod
from manu_jax.importance.methods import METHODS
from manu_jax.models.loaded import load
from manu_jax.report import of_run
from manu_jax.report.results import load_results
from manu_jax.training.unlearner import unlearn

# Data and model are those of test_run.py, whose programs serve here.
TINY = """
seed: 0
cache: null
data: {num_people: 6, num_celebrities: 4, num_general: 8, forget: 15}
model:
  vision: {image_size: 42, patch_size: 14, width: 16, num_layers: 4, num_heads: 2, num_neurons: 16}
  text: {width: 16, num_layers: 3, num_heads: 2, num_key_heads: 1, num_neurons: 32, context: 512}
train: {steps: 2, base_steps: 2, batch_size: 4, memory_gate: 0.0, checkpoint_every: 1}
method: {preset: climb, steps: 2}
compare:
  - {kind: scale, factor: 0.5}
  - random
  - {kind: trained, name: in-place, objective: gradient_difference, steps: 2, learning_rate: 1e-3}
unlearn:
  - {name: NPO, objective: npo, steps: 2, learning_rate: 1e-3, modalities: [text]}
  - {name: prompt, objective: system_prompt, prompt: "Do not tell of {names}.\\n"}
sweep: {alphas: [0.3], max_people: 2}
evaluate: {new_tokens: 4, max_people: 1, resamples: 50, sets: [forget, retain], tasks: [generation]}
audit: none
neurons: {methods: []}
"""
# Of one form: fewer programs.
CLIMB = {
    "kind": "trained", "objective": "gradient_ascent", "learning_rate": 1e-3, "checkpoint_every": 1,
    "modalities": ["text"],
}  # fmt: skip
LEAF = "text.layers.mlp.down"


class Scale(MethodSettings):
    """A plugin's settings: the down projections of the decoder times a factor."""

    name: str = "scale"
    kind: Literal["scale"] = "scale"
    factor: float = 0.5


def scaled(loaded, factor):
    edit = NewWeights.of(loaded, [LEAF])
    return NewWeights({name: factor * values for name, values in edit.values.items()})


@pytest.fixture(scope="module", autouse=True)
def registries():
    """An edit method and a preset that trains; `in-place` gives an edit in place of a model."""

    def unlearned(vanilla, section, **given):
        if section.name == "in-place":
            return scaled(vanilla, 0.25)
        return unlearn(vanilla, section, **given)

    with pytest.MonkeyPatch.context() as patch:
        make = EditMethod(Scale, lambda job: scaled(job.loaded, job.method.factor))
        patch.setitem(METHODS, "scale", make)
        patch.setitem(PRESETS, "climb", CLIMB)
        patch.setattr(stages, "unlearn", unlearned)
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """The folder of one whole run."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    assert run.main(["--config", str(config), "--output", str(directory)]) == 0
    return directory


def changed(config, tmp_path, *pairs):
    """Return a config file with other text in place of some."""
    text = config.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "changed.yaml"
    path.write_text(text)
    return path


def begun(config, directory):
    return Run.begin(load_config(config), directory)


def results(directory):
    found = json.loads((directory / "results.json").read_text())
    del found["timings"], found["config"]["output"]
    return found


def files(directory, name):
    """Return {place: (metadata, arrays)} of the files of a name; the order in a file is free."""
    found = {}
    for path in sorted(directory.rglob(name)):
        if "earlier" not in path.parts:
            with safe_open(path, "numpy") as file:
                arrays = {key: file.get_tensor(key).tobytes() for key in file.keys()}
                found[path.relative_to(directory).as_posix()] = (file.metadata(), arrays)
    return found


def same_weights(one, other):
    leaves = zip(jax.tree.leaves(one.model), jax.tree.leaves(other.model), strict=True)
    return all((np.asarray(a) == np.asarray(b)).all() for a, b in leaves)


def test_methods_of_every_kind_stand_in_one_table(finished):
    models = ["vanilla", "climb", "scale", "random", "in-place", "NPO", "prompt", "retrained"]
    found = load_results(finished)
    assert list(found.models) == models and found.headline == "climb"
    assert {row.model for row in found.rows} == set(models)
    assert {point.method for point in found.analyses["alpha_sweep"]} == {
        "vanilla", "random", "retrained"
    }  # fmt: skip
    assert files(finished, "mask.safetensors").keys() == {"methods/random/mask.safetensors"}
    assert files(finished, "edit.safetensors").keys() == {
        "methods/scale/edit.safetensors", "methods/in-place/edit.safetensors"
    }  # fmt: skip
    assert not (finished / "methods" / "climb").exists()  # its model is unlearned/
    assert {path.parent.name for path in finished.rglob("model")} == {"NPO"}


def test_results_say_how_long_what_is_a_methods_own_took(finished):
    found = load_results(finished)
    own = {name for name in found.timings if " of " in name}
    assert own == {
        "unlearn of climb", "masks of scale", "scores of random", "masks of random",
        "unlearn of in-place", "unlearn of NPO",
    }  # fmt: skip
    assert set(found.method_seconds) == {"climb", "scale", "random", "in-place", "NPO"}
    assert set(found.stage_seconds) == {"data", "train", "scores", "masks", "unlearn", "evaluate"}
    for stage in ("scores", "masks", "unlearn"):
        parts = [spent for name, spent in found.timings.items() if name.startswith(f"{stage} of ")]
        assert 0 <= sum(parts) <= found.timings[stage] + 0.05  # each is rounded
    assert found.method_seconds["NPO"] > 0


def test_a_method_that_is_made_anew_replaces_its_time(config, tmp_path):
    current = Run(load_config(config), tmp_path, None)
    current.add_time("unlearn", 3.0)
    current.set_method_time("unlearn", "NPO", 3.0)
    current.add_time("unlearn", 2.0)
    current.set_method_time("unlearn", "NPO", 2.0)
    assert current.times() == {"unlearn": 5.0, "unlearn of NPO": 2.0}


def test_the_models_of_a_run_are_those_that_its_files_make(finished, config):
    current = begun(config, finished)
    models = current.models()
    vanilla = current.vanilla
    assert same_weights(models["climb"](), load(finished / "unlearned"))
    assert not same_weights(models["climb"](), vanilla)
    assert same_weights(models["scale"](), scaled(vanilla, 0.5).apply(vanilla))
    assert same_weights(current.load_method("in-place"), scaled(vanilla, 0.25).apply(vanilla))
    assert same_weights(models["NPO"](), load(finished / "methods" / "NPO" / "model"))
    assert models["prompt"]().system_prompt.startswith("Do not tell of ")
    assert current.load_edit("scale") is not None and current.load_edit("climb") is None


def test_an_edit_says_what_it_was_made_from(finished):
    for name, kind in (("scale", "scale"), ("in-place", "trained")):
        _, made_from = load_edit(finished / "methods" / name / "edit.safetensors")
        assert (made_from["name"], made_from["method"]["kind"]) == (name, kind)
        assert made_from["seed"] == 0 and made_from["data"]


def test_the_report_says_what_each_kind_of_method_changed(finished):
    page = (finished / "report.html").read_text()
    assert "<dt>Trained by</dt><dd>gradient_ascent</dd>" in page
    assert "<dt>climb</dt><dd>Trained by gradient_ascent." in page
    assert "<dt>scale</dt><dd>text.layers.mlp.down: new values of" in page
    assert "Where the pruned neurons sit" in page  # those of random


@pytest.mark.slow
def test_an_edit_may_be_the_first_method_and_stands_at_the_top(finished, config, tmp_path):
    """The same run with its methods in another order: nothing is made again but the folder."""
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    path = changed(
        config,
        tmp_path,
        ("method: {preset: climb, steps: 2}", "method: {kind: scale, factor: 0.5}"),
        ("- {kind: scale, factor: 0.5}", "- {preset: climb, steps: 2}"),
    )
    stamps = {answers: answers.stat().st_mtime_ns for answers in copy.rglob("*.jsonl")}
    assert run.main(["--config", str(path), "--output", str(copy)]) == 0
    assert {answers: answers.stat().st_mtime_ns for answers in stamps} == stamps
    assert (copy / "edit.safetensors").read_bytes() == (
        finished / "methods" / "scale" / "edit.safetensors"
    ).read_bytes()
    assert not (copy / "methods" / "scale").exists() or not any((copy / "methods/scale").iterdir())
    vanilla = begun(path, copy).vanilla
    assert same_weights(load(copy / "unlearned"), scaled(vanilla, 0.5).apply(vanilla))
    moved = copy / "methods" / "climb" / "model" / "model.safetensors"
    assert moved.read_bytes() == (finished / "unlearned" / "model.safetensors").read_bytes()
    page = (copy / "report.html").read_text()
    assert "<dt>Changed</dt><dd>text.layers.mlp.down: new values of" in page
    # And back.
    assert run.main(["--config", str(config), "--output", str(copy)]) == 0
    assert results(copy) == results(finished)
    assert files(copy, "*.safetensors") == files(finished, "*.safetensors")


def test_a_method_that_changes_its_kind_leaves_nothing_of_the_old_one(finished, config, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    path = changed(
        config,
        tmp_path,
        ("- {kind: scale, factor: 0.5}", "- {preset: random, name: scale}"),
        ("  - random\n", "  - {kind: scale, name: random, factor: 0.5}\n"),
    )
    only = ["--only", "data,train,scores,masks,unlearn"]
    assert run.main(["--config", str(path), "--output", str(copy), *only]) == 0
    assert files(copy, "mask.safetensors").keys() == {"methods/scale/mask.safetensors"}
    assert files(copy, "edit.safetensors").keys() == {
        "methods/random/edit.safetensors", "methods/in-place/edit.safetensors"
    }  # fmt: skip
    assert not (copy / "methods" / "random" / "scores.safetensors").exists()


def test_what_trains_is_checked_before_the_first_stage_wherever_it_stands(
    config, tmp_path, error_of
):
    path = changed(
        config,
        tmp_path,
        ("{preset: climb, steps: 2}", "{preset: climb, lora: {rank: 2, targets: [text.attn]}}"),
        ("objective: gradient_difference, steps: 2,", "objective: npo_official,"),
        ("memory_gate: 0.0", "memory_gate: 0.0, retrained: false"),
    )
    message = error_of("--config", path, "--output", tmp_path / "x")
    assert "(climb): lora.targets: no matrix of the model begins with text.attn;" in message
    assert "(in-place): npo_official compares with a model" in message


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("suppress, neurons: {layers: [1, 3]}", "(suppress).neurons.layers: [1, 3]; give differ"),
        ("suppress, neurons: {layers: [-1]}", "(suppress).neurons.layers: [-1]; give different"),
        ("suppress, neurons: {count: 33}", "(suppress).neurons.count: 33 neurons, but a layer"),
    ],
)
def test_neurons_that_the_decoder_has_no_place_for_are_told_before_the_first_stage(
    config, tmp_path, error_of, method, told
):
    path = changed(config, tmp_path, ("{preset: climb, steps: 2}", f"{{preset: {method}}}"))
    assert told in error_of("--config", path, "--output", tmp_path / "x")
    assert not (tmp_path / "x" / "data").exists()


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_a_run_that_trains_first_goes_on_wherever_it_was_killed(finished, config, tmp_path):
    """Killed as each of these is about to be written; then from there to the same end."""
    directory = tmp_path / "killed"
    for name in ("data", "vanilla"):
        shutil.copytree(finished / name, directory / name)
    shutil.copytree(finished / "retrained", directory / "retrained")
    arguments = ["--config", str(config), "--output", str(directory)]
    killed = set()

    def dying(function, name):
        def call(*given, **named):
            what = (name, *(str(one) for one in given if isinstance(one, str | Path)))
            if what not in killed:
                killed.add(what)
                raise Killed
            return function(*given, **named)

        return call

    places = [(stages, "save_pretrained"), (stages, "save_scores"), (Run, "save_edit"),
              (of_run, "write_results"), (stages, "render_with_portraits")]  # fmt: skip
    status = None
    while status is None:
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
            for where, name in places:
                patch.setattr(where, name, dying(getattr(where, name), name))
            status = run.main(arguments)
    assert status == 0
    assert len(killed) == 7  # two models, two edits, the scores, the results, the report
    assert results(directory) == results(finished)
    assert files(directory, "*.safetensors") == files(finished, "*.safetensors")

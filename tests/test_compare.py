"""Comparisons: equal trials, other people, pooled numbers, nothing done twice."""

import json
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import yaml

from manu_jax import compare as compare_module
from manu_jax.compare import compare, load_compare_config, main
from manu_jax.config import PRESETS, MethodSettings
from manu_jax.evaluation.metrics import bootstrap
from manu_jax.importance.job import EditMethod
from manu_jax.importance.methods import METHODS
from manu_jax.report.comparison import Cell, compare_cells, to_markdown
from manu_jax.types import ManuError

TINY = {
    "seeds": [1, 2],
    "shares": [10],
    "tuning": {"seed": 0, "share": 10, "max_people": 2},
    "run": {
        "data": {"num_people": 10, "num_celebrities": 1, "num_general": 4},
        "model": {
            "vision": {"image_size": 16, "patch_size": 8, "width": 16, "num_layers": 2,
                       "num_heads": 2, "num_neurons": 16},
            "text": {"width": 16, "num_layers": 1, "num_heads": 2, "num_key_heads": 2,
                     "num_neurons": 24, "vocabulary": 400, "context": 256},
        },
        "train": {"steps": 2, "base_steps": 2, "batch_size": 4, "memory_gate": 0},
        "evaluate": {
            "protocol": "likelihood", "sets": ["forget", "retain", "unseen"], "max_people": 2,
            "tasks": ["classification", "generation", "cloze"], "new_tokens": 2, "batch_size": 8,
        },
    },
    "methods": [
        {"name": "random", "mask": {"preset": "random"},
         "trials": [{"alpha": 0.1}, {"alpha": 0.9}]},
        {"name": "prompt", "unlearn": {"objective": "system_prompt"},
         "trials": [{}, {"prompt": "Forget {names}."}]},
    ],
}  # fmt: skip


class Halve(MethodSettings):
    """Settings of an edit from outside the package."""

    name: str = "halve"
    kind: Literal["halve"] = "halve"
    power: float = 1.0


def write(folder, **changes):
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(TINY | changes))
    return path


def declared_run(config, only=None):
    """Leave what a run leaves, of models that answer as a hash of their names says; no model."""
    folder = Path(config.output)
    if (folder / "results.json").exists():
        return folder
    names = list(config.names)
    rows = []
    for model in ("vanilla", *names, "retrained"):
        sets = {"forget": 1, "retain": 2, "unseen": 3}
        if config.data.keep_share == 1:
            del sets["unseen"]
        for part, count in sets.items():
            for modality in ("image", "text"):
                random = np.random.default_rng(zlib.crc32(f"{model}{part}{modality}".encode()))
                place = {"model": model, "set": part, "modality": modality}
                value = float(random.random())
                rows.append({**place, "task": "likelihood", "metric": "recall", "value": value})
                records = [
                    {"key": f"{p}/home", "person": str(p), "score": float(random.random() < 0.5),
                     "rouge1": 0.0, "rouge2": 0.0, "bleu": 0.0,
                     "exact": float(model == "vanilla" or random.random() < 0.5)}
                    for p in range(count)
                ]  # fmt: skip
                path = folder / "evaluation" / model / f"{part}.generation.{modality}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(json.dumps(one) + "\n" for one in records))
    kl = {"set": "forget", "modality": "image", "metric": "kl", "value": config.seed * 1.0}
    results = {
        "models": ["vanilla", *names, "retrained"],
        "rows": rows,
        "distances": [{"model": model, **kl} for model in names],
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished comparison: (folder, config)."""
    folder = tmp_path_factory.mktemp("compare")
    config = load_compare_config(write(folder), [f"output={folder / 'out'}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_module, "run", declared_run)
        return compare(config), config


def test_every_method_has_its_trials_and_the_best_one_stays(done):
    folder, config = done
    chosen = json.loads((folder / "tuning.json").read_text())
    assert list(chosen) == ["random", "prompt"]
    for method in config.methods:
        trials = chosen[method.name]["trials"]
        assert [one["trial"] for one in trials] == [0, 1]
        assert chosen[method.name]["score"] == max(one["score"] for one in trials)
        for one in trials:
            assert one["score"] == pytest.approx(one["unseen"] - one["forget"])
            assert 0 <= one["retain"] <= 1  # beside it
    cell = yaml.safe_load((folder / "cells" / "seed-1.forget-10.yaml").read_text())
    assert cell["method"]["alpha"] == chosen["random"]["settings"]["alpha"]
    assert (cell["seed"], cell["unlearn"][0]["name"]) == (1, "prompt")


def test_a_comparison_may_begin_with_a_method_that_trains_and_hold_edits(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "halve", EditMethod(Halve, lambda job: None))
    monkeypatch.setitem(PRESETS, "hide", {"kind": "trained", "objective": "npo", "epochs": 2})
    methods = [
        {"name": "GD", "unlearn": {"objective": "gradient_difference"}, "trials": [{}]},
        {"name": "half", "edit": {"kind": "halve"}, "trials": [{"power": 2.0}]},
        {"name": "NPO", "unlearn": {"preset": "hide"}, "trials": [{"steps": 3}]},
        {"name": "random", "mask": {"preset": "random"}, "trials": [{"alpha": 0.1}]},
    ]
    config = load_compare_config(write(tmp_path, methods=methods), [f"output={tmp_path / 'out'}"])
    cells = []
    monkeypatch.setattr(
        compare_module, "run", lambda cell: cells.append(cell) or declared_run(cell)
    )
    compare(config)
    for cell in cells[1:]:
        assert cell.names == ("GD", "half", "random", "NPO")
        assert (cell.method.kind, cell.method.objective) == ("trained", "gradient_difference")
        assert (cell.compare[0].power, cell.unlearn[0].epochs, cell.unlearn[0].steps) == (2.0, 2, 3)
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert all(f"| {name} |" in text for name in ("GD", "half", "random", "NPO"))


@pytest.fixture
def done_with_all(tmp_path, monkeypatch):
    """The folder of a finished comparison whose methods were given all people to keep."""
    run = {**TINY["run"], "data": {**TINY["run"]["data"], "keep_share": 1.0}}
    config = load_compare_config(write(tmp_path, run=run), [f"output={tmp_path / 'out'}"])
    monkeypatch.setattr(compare_module, "run", declared_run)
    return compare(config)


def test_without_unseen_people_trials_are_judged_on_those_that_methods_were_given(done_with_all):
    for method in json.loads((done_with_all / "tuning.json").read_text()).values():
        for one in method["trials"]:
            assert "unseen" not in one
            assert one["score"] == pytest.approx(one["retain"] - one["forget"])


def test_the_table_has_unseen_people_first_and_used_ones_beside_them(done, done_with_all):
    forms = ("image", "text")
    shown = ("forget", "retain (unseen)", "retain (used)")
    for folder, sets in ((done[0], shown), (done_with_all, (shown[0], shown[2]))):
        text = (folder / "comparison.md").read_text()
        heads = [head.strip() for head in text.splitlines()[0].split("|")[2:-5]]
        assert heads == [f"{name}, {form}" for name in sets for form in forms]
    text = (done[0] / "comparison.md").read_text()
    assert "forget n = 2, retain (unseen) n = 6, retain (used) n = 4 in each form" in text
    assert "No method was given the people of retain (unseen)." in text
    text = (done_with_all / "comparison.md").read_text()
    assert "keeping was not measured on others" in text


def test_the_people_of_all_seeds_are_pooled(done):
    folder, config = done
    found = json.loads((folder / "comparison.json").read_text())
    row = next(
        one for one in found["rows"]
        if (one["model"], one["set"], one["task"], one["modality"], one["metric"])
        == ("prompt", "retain", "generation", "text", "exact")
    )  # fmt: skip
    values, people = [], []
    for seed, _ in config.cells:
        path = (
            folder / f"cells/seed-{seed}.forget-10/evaluation/prompt/retain.generation.text.jsonl"
        )
        for record in map(json.loads, path.read_text().splitlines()):
            values.append(record["exact"])
            people.append(f"{seed}/{record['person']}")
    expected = bootstrap(values, people)
    assert (row["value"], row["low"], row["high"], row["n"]) == (
        expected.value, expected.low, expected.high, expected.n,
    )  # fmt: skip
    assert len(set(people)) == 4
    assert {one["model"] for one in found["leakage"]} == {
        "vanilla",
        "random",
        "prompt",
        "retrained",
    }
    assert any(one["against"] == "retrained" for one in found["differences"])
    text = (folder / "comparison.md").read_text()
    assert "| prompt |" in text and "seeds 1, 2" in text


def test_a_killed_comparison_goes_on_with_what_is_left(done, tmp_path, monkeypatch):
    folder, config = done
    config = config.model_copy(update={"output": str(tmp_path / "out")})
    begun = []

    def run(cell):
        begun.append(Path(cell.output).name)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return declared_run(cell)

    monkeypatch.setattr(compare_module, "run", run)
    with pytest.raises(KeyboardInterrupt):
        compare(config)
    assert begun == ["tuning", "seed-1.forget-10", "seed-2.forget-10"]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("results.json")}
    compare(config)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps and len(stamps) == 2
    for name in ("comparison.json", "comparison.md"):
        assert (tmp_path / "out" / name).read_text() == (folder / name).read_text()


def test_kl_is_the_mean_of_the_seeds_and_keeps_each(done):
    found = json.loads((done[0] / "comparison.json").read_text())
    kl = [one for one in found["distances"] if one["metric"] == "kl"]
    assert kl and all(one["value"] == 1.5 and one["by_seed"] == [1.0, 2.0] for one in kl)


def test_a_cell_that_has_not_ended_is_named(done, tmp_path):
    with pytest.raises(ManuError, match="results.json: not there; the run of this cell"):
        compare_cells([Cell(1, 10, tmp_path)])


def test_a_number_without_an_interval_shows_its_size(done):
    folder, config = done
    found = compare_cells([Cell(1, 10, folder / "cells" / "seed-1.forget-10")])
    assert "(n = " in to_markdown(found)  # one person to forget


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"methods": TINY["methods"][::-1]}, "begin with a method that changes weights"),
        ({"methods": [TINY["methods"][0]] * 2}, "each name stands once"),
        ({"methods": [TINY["methods"][0], TINY["methods"][1] | {"trials": [{}]}]}, "as many tri"),
        ({"seeds": [0, 1]}, "tuning.seed 0 is one of seeds"),
        ({"run": {**TINY["run"], "seed": 3}}, "run.seed: the comparison itself sets it"),
        ({"sheds": [1]}, "sheds: unknown key; did you mean seeds"),
        ({"methods": [{"name": "x", "trials": [{}]}]}, "give one of mask, edit and unlearn"),
        ({"methods": [{"name": "x", "trials": [{}], "mask": {}, "edit": {}}]}, "give one of mask"),
    ],
)  # fmt: skip
def test_faults_of_a_comparison_are_named(tmp_path, changes, message):
    with pytest.raises(ManuError, match=message):
        load_compare_config(write(tmp_path, **changes))


def test_a_trial_with_an_unknown_setting_is_refused_before_anything_runs(
    tmp_path, capsys, monkeypatch
):
    def refuse(*args, **settings):
        raise AssertionError("ran")

    monkeypatch.setattr(compare_module, "run", refuse)
    methods = [{**TINY["methods"][0], "trials": [{"alhpa": 0.1}, {}]}]
    path = write(tmp_path, methods=methods)
    assert main(["--config", str(path), "--output", str(tmp_path / "out")]) == 1
    assert "alhpa: unknown key; did you mean alpha" in capsys.readouterr().err

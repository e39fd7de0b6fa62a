"""Comparisons: equal trials, other people, pooled numbers, nothing done twice."""

import json

import pytest
import yaml

from manu_jax import compare as compare_module
from manu_jax.compare import compare, load_compare_config, main
from manu_jax.evaluation.metrics import bootstrap
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
            "protocol": "likelihood", "sets": ["forget", "retain"], "max_people": 2,
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


def write(folder, **changes):
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(TINY | changes))
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished comparison: (folder, config)."""
    folder = tmp_path_factory.mktemp("compare")
    overrides = [f"output={folder / 'out'}", f"run.cache={folder / 'cache'}"]
    config = load_compare_config(write(folder), overrides)
    return compare(config), config


@pytest.mark.slow
def test_every_method_has_its_trials_and_the_best_one_stays(done):
    folder, config = done
    chosen = json.loads((folder / "tuning.json").read_text())
    assert list(chosen) == ["random", "prompt"]
    for method in config.methods:
        trials = chosen[method.name]["trials"]
        assert [one["trial"] for one in trials] == [0, 1]
        assert chosen[method.name]["score"] == max(one["score"] for one in trials)
        for one in trials:
            assert one["score"] == pytest.approx(one["retain"] - one["forget"])
    cell = yaml.safe_load((folder / "cells" / "seed-1.forget-10.yaml").read_text())
    assert cell["method"]["alpha"] == chosen["random"]["settings"]["alpha"]
    assert (cell["seed"], cell["unlearn"][0]["name"]) == (1, "prompt")


@pytest.mark.slow
def test_the_people_of_all_seeds_are_pooled(done):
    folder, config = done
    found = json.loads((folder / "comparison.json").read_text())
    row = next(
        one for one in found["rows"]
        if (one["model"], one["set"], one["task"], one["modality"], one["metric"])
        == ("prompt", "retain", "classification", "text", "accuracy")
    )  # fmt: skip
    values, people = [], []
    for seed, _ in config.cells:
        path = (
            folder
            / f"cells/seed-{seed}.forget-10/evaluation/prompt/retain.classification.text.jsonl"
        )
        for record in map(json.loads, path.read_text().splitlines()):
            values.append(record["score"])
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


@pytest.mark.slow
def test_what_is_done_is_not_done_again(done, monkeypatch):
    folder, config = done
    before = (folder / "comparison.json").read_text()
    (folder / "comparison.json").unlink()
    from manu_jax import stages

    def refuse(*args, **settings):
        raise AssertionError("asked again")

    monkeypatch.setattr(stages, "evaluate", refuse)
    monkeypatch.setattr(stages, "unlearn", refuse)
    compare(config)
    assert (folder / "comparison.json").read_text() == before


@pytest.mark.slow
def test_a_cell_that_has_not_ended_is_named(done, tmp_path):
    with pytest.raises(ManuError, match="results.json: not there; the run of this cell"):
        compare_cells([Cell(1, 10, tmp_path)])


@pytest.mark.slow
def test_a_number_without_an_interval_shows_its_size(done):
    folder, config = done
    found = compare_cells([Cell(1, 10, folder / "cells" / "seed-1.forget-10")])
    assert "(n = " in to_markdown(found)  # one person to forget


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"methods": TINY["methods"][::-1]}, "begin with a mask"),
        ({"methods": [TINY["methods"][0]] * 2}, "each name stands once"),
        ({"methods": [TINY["methods"][0], TINY["methods"][1] | {"trials": [{}]}]}, "as many tri"),
        ({"seeds": [0, 1]}, "tuning.seed 0 is one of seeds"),
        ({"run": {**TINY["run"], "seed": 3}}, "run.seed: the comparison itself sets it"),
        ({"sheds": [1]}, "sheds: unknown key; did you mean seeds"),
        ({"methods": [{"name": "x", "trials": [{}]}]}, "give one of mask and unlearn"),
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

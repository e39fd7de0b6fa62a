"""Comparisons: equal trials, other people, pooled numbers, nothing done twice."""

import dataclasses
import json
import shutil
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import yaml

from manu_jax import compare as compare_module
from manu_jax.compare import compare, load_compare_config, main
from manu_jax.config import PRESETS, MethodSettings
from manu_jax.evaluation.analyses.ability import Ability
from manu_jax.evaluation.analyses.audit import audited
from manu_jax.evaluation.metrics import bootstrap
from manu_jax.evaluation.plain import plain_interval
from manu_jax.importance.job import EditMethod
from manu_jax.importance.methods import METHODS
from manu_jax.report.comparison import Cell, compare_cells, to_markdown
from manu_jax.report.results import write_results
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


@pytest.fixture(scope="module", autouse=True)
def programs_stay():
    """No comparison here compiles anything: what other tests have compiled is not forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_module.jax, "clear_caches", lambda: None)
        yield


def write(folder, **changes):
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(TINY | changes))
    return path


def declared_run(config, **_):
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
                of_row = {"metric": "recall", "value": value, "n": 1}
                rows.append({**place, "task": "likelihood", **of_row})
                records = [
                    {"key": f"{p}/home", "person": str(p), "score": float(random.random() < 0.5),
                     "rouge1": 0.0, "rouge2": 0.0, "bleu": 0.0,
                     "exact": float(model == "vanilla" or random.random() < 0.5)}
                    for p in range(count)
                ]  # fmt: skip
                path = folder / "evaluation" / model / f"{part}.generation.{modality}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(json.dumps(one) + "\n" for one in records))
                if part == "forget":
                    record = {"key": "0/home", "person": "0", "score": float(model == "vanilla")}
                    record |= {"options": ["A"], "correct": 0, "log_likelihoods": [-1.0]}
                    path = path.with_name(f"{part}.classification.{modality}.jsonl")
                    path.write_text(json.dumps(record) + "\n")
    kl = {"set": "forget", "modality": "image", "metric": "kl", "value": config.seed * 1.0, "n": 1}
    audit = [row for name in audited(config) for row in declared_audit(name, config.seed)]
    write_results(
        folder,
        rows,
        models=["vanilla", *names, "retrained"],
        headline=names[0],
        request={"people": []},
        analyses={"distances": [{"model": name, **kl} for name in names], "audit": audit},
        config={},
        timings={"scores": 9.0, "scores of random": 2.0 * config.seed, "masks of random": 1.0},
    )
    return folder


def declared_audit(model, seed):
    """Return the rows of a model whose answers come back by relearning, after seed 1 at once."""
    place = {"model": model, "n": 4, "floor": 0.1}
    rows = []
    for modality in ("image", "text"):
        rows += [
            {**place, "attack": "plain", "modality": modality, "value": 0.1},
            {**place, "attack": "asked", "modality": modality, "value": 0.1 if seed == 1 else 0.9},
        ]
        for variant, value in (("people", 0.2), ("attributes", 0.2 * seed)):
            of_variant = {"attack": "relearning", "variant": variant, "metric": "area"}
            rows.append({**place, **of_variant, "modality": modality, "value": value})
    return rows


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
        compare_module, "run", lambda cell, **_: cells.append(cell) or declared_run(cell)
    )
    compare(config)
    for cell in cells[1:]:
        assert cell.names == ("GD", "half", "random", "NPO")
        assert (cell.method.kind, cell.method.objective) == ("trained", "gradient_difference")
        assert (cell.compare[0].power, cell.unlearn[0].epochs, cell.unlearn[0].steps) == (2.0, 2, 3)
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert all(f"| {name} |" in text for name in ("GD", "half", "random", "NPO"))


def test_neurons_and_calibration_are_of_the_cells_and_not_of_the_tuning(tmp_path, monkeypatch):
    """Its methods have names of their own, NAME.0, which such a section does not know."""
    name = TINY["methods"][0]["name"]
    run = {"neurons": {"methods": [name]}, "calibration": {"draws": 2, "rescored": [name]}}
    path = write(tmp_path, run={**TINY["run"], **run})
    config = load_compare_config(path, [f"output={tmp_path / 'out'}"])
    runs = []
    monkeypatch.setattr(
        compare_module, "run", lambda own, **_: runs.append(own) or declared_run(own)
    )
    compare(config)
    tuning, *cells = runs
    assert (tuning.neurons.methods, tuning.calibration.draws) == ((), 0)
    assert {(one.neurons.methods, one.calibration.draws) for one in cells} == {((name,), 2)}


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


def columns(folder):
    """Return the table of a finished comparison: (the heads, {model: its cells})."""
    lines = (folder / "comparison.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    return table[0], {row[0]: dict(zip(table[0], row, strict=True)) for row in table[2:]}


def test_the_table_has_unseen_people_first_and_used_ones_beside_them(done, done_with_all):
    used = "retain (used)"
    for folder, sets in (
        (done[0], ["forget", "retain (unseen)", used]),
        (done_with_all, ["forget", used]),
    ):
        heads, _ = columns(folder)
        assert heads == [
            "model",
            f"{'unseen' if len(sets) == 3 else 'retain'} − forget",
            *sets,
            "multiple choice on forget",
            "KL from retrained on forget",
            "relearning, area",
            "audit",
            "seconds",
        ]
    text = (done[0] / "comparison.md").read_text()
    assert "forget n = 2, retain (unseen) n = 6, retain (used) n = 4 in each form" in text
    assert "No method was given the people of retain (unseen)." in text
    assert "same people" not in text
    text = (done_with_all / "comparison.md").read_text()
    assert "keeping was not measured on others" in text


def test_what_else_was_lost_stands_beside_it_where_it_was_measured(done, tmp_path):
    folder, config = done
    assert not {"English", "completions", "chat"} & {*columns(folder)[0]}
    cells = []
    for seed in config.seeds:
        name = f"seed-{seed}.forget-10"
        cells.append(Cell(seed, 10, tmp_path / name))
        shutil.copytree(folder / "cells" / name, tmp_path / name)
        path = tmp_path / name / "results.json"
        values = json.loads(path.read_text())
        values["ability"] = [
            dataclasses.asdict(Ability(model=model, measure=measure, value=value, n=3))
            for model, shift in (("vanilla", 0.0), ("random", 0.25 * seed))
            for measure, value in (("english", 3.5 + shift), ("completions", 0.7 - shift))
        ]
        path.write_text(json.dumps(values))
    found = compare_cells(cells)
    (lost,) = (
        one for one in found["ability"] if (one["model"], one["measure"]) == ("random", "english")
    )
    assert (lost["value"], lost["by_seed"]) == (3.875, [3.75, 4.0])
    (tmp_path / "comparison.md").write_text(to_markdown(found))
    heads, rows = columns(tmp_path)
    assert heads[-3:] == ["English", "completions", "seconds"]
    assert rows["random"]["English"] == "3.88 (3.75–4.00)"
    assert rows["random"]["completions"] == "32 (20–45)"
    assert rows["retrained"]["English"] == "–"


def test_the_method_that_keeps_most_beyond_what_it_leaves_is_first(done):
    folder, _ = done
    found = json.loads((folder / "comparison.json").read_text())
    shares = {
        (row["model"], row["set"], row["modality"]): row["value"]
        for row in found["rows"]
        if (row["task"], row["metric"]) == ("generation", "exact")
    }
    expected = {
        name: sum(
            (shares[name, "unseen", form] - shares[name, "forget", form]) / 2
            for form in ("image", "text")
        )
        for name in ("vanilla", "retrained", "random", "prompt")
    }
    assert {one["model"]: one["value"] for one in found["scores"]} == pytest.approx(expected)
    assert {one["set"] for one in found["scores"]} == {"unseen"}
    best_first = sorted(("random", "prompt"), key=lambda name: -expected[name])
    _, rows = columns(folder)
    assert list(rows) == ["vanilla", "retrained", *best_first]
    assert rows["random"]["unseen − forget"] == f"{100 * expected['random']:.0f}"
    turned = [one | {"value": -one["value"]} for one in found["scores"]]
    turned = to_markdown(found | {"scores": turned})
    names = [line.split("|")[1].strip() for line in turned.splitlines() if line[:1] == "|"]
    assert names[2:] == ["vanilla", "retrained", *best_first[::-1]]


def test_forms_share_a_cell_and_seeds_are_a_mean_with_the_range(done):
    _, rows = columns(done[0])
    assert rows["vanilla"]["multiple choice on forget"] == "100 (100–100) / 100 (100–100)"
    assert rows["random"]["multiple choice on forget"] == "0 (0–0) / 0 (0–0)"
    assert rows["random"]["KL from retrained on forget"] == "1.50 (1.00–2.00) / –"
    assert rows["random"]["seconds"] == "4 (3–5)"  # of both stages; 3 and 5 of seeds 1 and 2
    assert {rows[name]["seconds"] for name in ("vanilla", "prompt", "retrained")} == {"–"}
    assert {row["audit"] for row in rows.values()} == {"–"}  # as the config says nothing of it


@pytest.fixture(scope="module")
def audited_best(tmp_path_factory):
    """(folder, the runs) of a comparison that audits its best method by every attack."""
    folder, cells = tmp_path_factory.mktemp("audited"), []
    path = write(folder, audit={"level": "full", "best": 1, "steps": 8})
    config = load_compare_config(path, [f"output={folder / 'out'}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            compare_module, "run", lambda cell, **_: cells.append(cell) or declared_run(cell)
        )
        return compare(config), cells


def test_the_best_of_the_tuning_are_audited_and_the_tuning_is_not(audited_best):
    folder, (tuning, *cells) = audited_best
    scores = {
        name: one["score"] for name, one in json.loads((folder / "tuning.json").read_text()).items()
    }
    assert tuning.audit.level == "none" and len(cells) == 2
    assert not tuning.evaluate.published.asked
    for cell in cells:
        assert (cell.audit.level, cell.audit.steps) == ("full", 8)
        assert cell.audit.methods == (max(scores, key=lambda name: scores[name]),)


def test_the_table_has_the_area_of_relearning_and_what_the_audits_say(audited_best):
    folder, (_, cell, _) = audited_best
    (best,) = cell.audit.methods
    _, rows = columns(folder)
    # 20 by people; 20 by attributes after seed 1, and 40 after seed 2
    assert rows[best]["relearning, area"] == "25 (20–30) / 25 (20–30)"
    assert rows["retrained"]["relearning, area"] == "10 (10–10) / 10 (10–10)"
    words = rows[best]["audit"].split(" / ")
    assert words[0] == words[1] and all(" ×1" in one for one in words[0].split("; "))
    assert "hardened" in words[0] and "hidden" in words[0]  # after seed 1, and after seed 2
    others = [row for name, row in rows.items() if name not in (best, "retrained")]
    assert all(row["relearning, area"] == row["audit"] == "–" for row in others)
    found = json.loads((folder / "comparison.json").read_text())
    area = next(one for one in found["areas"] if one["model"] == best)
    assert area["variants"] == pytest.approx({"people": 0.2, "attributes": 0.3})
    assert area["by_seed"] == pytest.approx([0.2, 0.3])


@pytest.mark.parametrize(
    "audit", ["cheap", {"level": "full", "best": None}, {"level": "full", "best": 2}]
)
def test_all_methods_are_audited_where_there_are_no_more_than_the_best(
    tmp_path, monkeypatch, audit
):
    cells = []
    config = load_compare_config(write(tmp_path, audit=audit), [f"output={tmp_path / 'out'}"])
    monkeypatch.setattr(
        compare_module, "run", lambda cell, **_: cells.append(cell) or declared_run(cell)
    )
    compare(config)
    assert [cell.audit.methods for cell in cells[1:]] == [("random", "prompt")] * 2


def test_a_part_is_run_by_overrides(tmp_path, monkeypatch):
    cells = []

    def run(cell, *, waits):
        assert waits  # for another part that is at work in the same folder
        cells.append(cell)
        return declared_run(cell)

    monkeypatch.setattr(compare_module, "run", run)
    part = load_compare_config(
        write(tmp_path), [f"output={tmp_path / 'out'}", "only=[random]", "seeds=[2]", "shares=[5]"]
    )
    compare(part)
    assert [(cell.seed, cell.data.forget, cell.names) for cell in cells] == [
        (0, 10, ("random.0", "random.1")),
        (2, 5, ("random",)),
    ]
    _, rows = columns(tmp_path / "out")
    assert list(rows) == ["vanilla", "retrained", "random"]
    assert load_compare_config(write(tmp_path), ["only=random"]).only == ("random",)


@pytest.mark.parametrize("is_done", [True, False])
def test_a_cell_that_another_part_has_taken_meanwhile_is_not_in_the_table(
    tmp_path, monkeypatch, is_done
):
    """Its results are of the other part's methods, or moved away while these are made."""
    config = load_compare_config(write(tmp_path), ["only=[random]", f"output={tmp_path / 'out'}"])

    def run(cell, **_):
        folder = declared_run(cell)
        if cell.seed == 1:
            path = folder / "results.json"
            text = path.read_text()
            path.write_text(text.replace('"random"', '"other"')) if is_done else path.unlink()
        return folder

    monkeypatch.setattr(compare_module, "run", run)
    with pytest.raises(ManuError, match="seed-1.forget-10: another part of the comparison has"):
        compare(config)
    assert not (tmp_path / "out" / "comparison.md").exists()


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

    def run(cell, **_):
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


@pytest.mark.parametrize(
    ("audit", "is_tuned"),
    [
        ("none", False),
        ({"level": "cheap", "best": 2}, False),
        ({"level": "cheap", "best": 1}, True),
    ],
)
def test_known_settings_are_not_tuned_unless_the_audit_is_of_the_best(
    tmp_path, monkeypatch, audit, is_tuned
):
    methods = [{**one, "trials": one["trials"][1:]} for one in TINY["methods"]]
    path = write(tmp_path, methods=methods, audit=audit, seeds=[1])
    runs = []
    monkeypatch.setattr(
        compare_module, "run", lambda one, **_: runs.append(one) or declared_run(one)
    )
    folder = compare(load_compare_config(path, [f"output={tmp_path / 'out'}"]))
    assert [Path(one.output).name for one in runs][:-1] == ["tuning"] * is_tuned
    assert runs[-1].method.alpha == 0.9 and runs[-1].unlearn[0].prompt == "Forget {names}."
    assert runs[-1].audit.level == ("none" if audit == "none" else "cheap")
    assert (folder / "tuning.json").exists() == is_tuned


def test_kl_is_the_mean_of_the_seeds_and_keeps_each(done):
    found = json.loads((done[0] / "comparison.json").read_text())
    kl = [one for one in found["distances"] if one["metric"] == "kl"]
    assert kl and all(one["value"] == 1.5 and one["by_seed"] == [1.0, 2.0] for one in kl)


def test_answers_to_what_is_not_asked_any_more_are_not_in_the_table(done, tmp_path):
    """They stay in the folder of a cell, and may be those of a method's earlier trial."""
    cell = Cell(1, 10, tmp_path / "cell")
    shutil.copytree(done[0] / "cells" / "seed-1.forget-10", cell.folder)
    path = cell.folder / "results.json"
    values = json.loads(path.read_text())
    values["config"] = {"evaluate": {"sets": ["forget", "unseen"], "tasks": ["generation"]}}
    path.write_text(json.dumps(values))
    found = compare_cells([cell])["rows"]
    assert {(row["set"], row["task"]) for row in found} == {
        ("forget", "generation"),
        ("unseen", "generation"),
    }


def test_people_who_are_the_same_for_each_seed_are_one_in_the_intervals(done, tmp_path):
    """Those of a benchmark's files are; each seed trains and asks about them again."""
    cells = []
    for seed in (1, 2):
        cells.append(Cell(seed, 10, tmp_path / str(seed)))
        shutil.copytree(done[0] / "cells" / f"seed-{seed}.forget-10", cells[-1].folder)
        results = json.loads((cells[-1].folder / "results.json").read_text())
        values = results | {"config": {"data": {"benchmark": "mllmu", "path": "here"}}}
        (cells[-1].folder / "results.json").write_text(json.dumps(values))
    found = compare_cells(cells)
    place = {"model": "random", "task": "generation", "modality": "text", "metric": "exact"}
    for name, people in (("retain", ["0", "1"] * 2), ("forget", ["0"] * 2)):
        values = []
        for cell in cells:
            path = cell.folder / "evaluation" / "random" / f"{name}.generation.text.jsonl"
            values += [json.loads(line)["exact"] for line in path.read_text().splitlines()]
        expected = plain_interval(bootstrap(values, people))
        (row,) = (r for r in found["rows"] if r.items() >= {**place, "set": name}.items())
        assert row.items() >= expected.items() and row["n"] == len(people)
    assert "have the same people; each is one" in to_markdown(found)


def test_a_comparison_without_free_answers_has_a_table(done, tmp_path):
    cell = Cell(1, 10, tmp_path / "cell")
    shutil.copytree(done[0] / "cells" / "seed-1.forget-10", cell.folder)
    results = json.loads((cell.folder / "results.json").read_text())
    values = results | {"config": {"evaluate": {"tasks": ["classification"]}}}
    (cell.folder / "results.json").write_text(json.dumps(values))
    (tmp_path / "comparison.md").write_text(to_markdown(compare_cells([cell])))
    _, rows = columns(tmp_path)
    assert rows["vanilla"]["multiple choice on forget"] == "100 (n = 1) / 100 (n = 1)"
    assert rows["vanilla"]["forget"] == rows["vanilla"]["retain − forget"] == "–"
    assert "forget n = 0 in each form" in (tmp_path / "comparison.md").read_text()


def test_what_is_reached_follows_from_the_goal_of_the_runs(done, tmp_path):
    """With `erase: visual` a fact is to be forgotten when shown, and known when asked."""
    cell = Cell(1, 10, tmp_path / "cell")
    shutil.copytree(done[0] / "cells" / "seed-1.forget-10", cell.folder)
    for form, exact in (("image", 0.0), ("text", 1.0)):
        path = cell.folder / "evaluation" / "random" / f"forget.generation.{form}.jsonl"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"exact": exact}) + "\n")
    results = json.loads((cell.folder / "results.json").read_text())
    for erase, reached in (("both", 0.0), ("visual", 1.0)):
        values = results | {"config": {"erase": erase}}
        (cell.folder / "results.json").write_text(json.dumps(values))
        (found,) = (one for one in compare_cells([cell])["leakage"] if one["model"] == "random")
        assert found["reached"]["value"] == reached


def test_a_cell_that_has_not_ended_is_named(done, tmp_path):
    with pytest.raises(ManuError, match="results.json: not there; the run of this cell"):
        compare_cells([Cell(1, 10, tmp_path)])


def test_an_empty_file_of_answers_is_named(done, tmp_path):
    cell = Cell(1, 10, tmp_path / "cell")
    shutil.copytree(done[0] / "cells" / "seed-1.forget-10", cell.folder)
    path = cell.folder / "evaluation" / "random" / "forget.generation.text.jsonl"
    path.write_text("")
    with pytest.raises(ManuError, match=f"{path.name}: damaged .it is empty.*Restore it"):
        compare_cells([cell])


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
        ({"run": {**TINY["run"], "audit": "full"}}, "run.audit: the comparison itself sets it"),
        ({"run": {**TINY["run"], "push": "org/x"}}, "run.push: the comparison itself sets it"),
        ({"audit": {"level": "full", "methods": ["random"]}}, "audit.*itself sets it; give best"),
        ({"audit": {"level": "full", "best": 0}}, "audit.best: .*greater than or equal to 1"),
        ({"audit": "deep"}, "audit.level: .*'cheap' or 'full'"),
        ({"audit": {"bets": 3}}, "audit.bets: unknown key; did you mean best"),
        ({"only": ["rendom"]}, "method in only: 'rendom'; did you mean random"),
        ({"only": ["prompt"]}, "only: begin with a method that changes weights"),
        ({"seeds": [1, 2, 1]}, "seeds: each stands once, or it counts twice"),
        ({"shares": [10, 10]}, "shares: each stands once, or it counts twice"),
        ({"run": {**TINY["run"], "data": None}}, "run.data: expected a mapping, got None"),
        ({"run": {**TINY["run"], "evaluate": [1]}}, "run.evaluate: expected a mapping"),
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": [TINY["methods"][0] | {"name": "vanilla"}]}, "name other models"),
        ({"run": {**TINY["run"], "data": {"benchmark": "clear", "path": "x"}}, "shares": [15]},
         "seed-1.forget-15:\n.*clear has .*got 15"),
    ],
)  # fmt: skip
def test_a_cell_that_can_not_be_is_refused_before_the_tuning(
    tmp_path, monkeypatch, changes, message
):
    begun = []
    monkeypatch.setattr(compare_module, "run", lambda one, **_: begun.append(one))
    config = load_compare_config(write(tmp_path, **changes), [f"output={tmp_path / 'out'}"])
    with pytest.raises(ManuError, match=message):
        compare(config)
    assert not begun

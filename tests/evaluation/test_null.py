"""Masks against their nulls: on given numbers, and on a model whose neurons are declared."""

import json

import numpy as np
import pytest
import tiny_llava as tiny

from manu_jax import run as command
from manu_jax.config import RunConfig
from manu_jax.context import Run
from manu_jax.data.record import Benchmark, Person
from manu_jax.edits import masks
from manu_jax.evaluation.analyses import null
from manu_jax.evaluation.analyses.analysis import Evaluated
from manu_jax.evaluation.analyses.null import BETTER, NO_BETTER, TOO_FEW, compare


def test_p_is_the_share_of_masks_that_do_as_well():
    values = [number / 100 for number in range(50)]
    found = compare(0.9, values, is_larger_better=True)
    assert found["p"] == 1 / 51 and found["verdict"] == BETTER and found["groups"] == 50
    assert found["null_mean"] == pytest.approx(0.245)
    assert (found["null_low"], found["null_high"]) == pytest.approx((0.01225, 0.47775))
    tied = compare(0.49, values, is_larger_better=True)
    assert tied["p"] == 2 / 51  # one null mask does as well
    assert compare(0.25, values, is_larger_better=True)["verdict"] == NO_BETTER
    assert compare(-0.1, values, is_larger_better=False)["verdict"] == BETTER
    assert compare(0.9, values, is_larger_better=False)["p"] == 1
    assert compare(0.9, values[:10], is_larger_better=True)["verdict"] == TOO_FEW


def test_overlaps_are_those_of_pairs_of_masks():
    random = np.random.default_rng(0)
    mask, *others = (
        {"text": random.random((2, 30)) < 0.4, "vision": random.random((3, 20)) < 0.4}
        for _ in range(6)
    )
    own, among = null._overlaps(mask, others)
    assert own == pytest.approx(np.mean([null.overlap(mask, other) for other in others]))
    for number, one in enumerate(others):
        rest = [null.overlap(one, other) for other in others if other is not one]
        assert among[number] == pytest.approx(np.mean(rest))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose answers follow from masks alone: neurons of layer 0 hold the facts to forget."""
    people = [Person(fact.person_id, fact.name, (), {}, (fact,), ()) for fact in tiny.facts(7)]
    sets = {"forget": people[:1], "retain": people[1:], "test": ()}
    sets |= {"celebrity": (), "general": ()}
    config = RunConfig(
        model={"path": "m"},
        method={"preset": "random", "name": "good", "alpha": 0.25},
        compare=[{"preset": "random", "name": "bad", "alpha": 0.25}],
        sweep={"null_groups": 30, "max_people": 2},
    )
    found = Run(config, tmp_path, None)
    found.benchmark = Benchmark(
        {name: tuple(these) for name, these in sets.items()} | {"test": ()}, {}
    )
    found.read_benchmark = found.benchmark
    found.vanilla = tiny.loaded()
    known = tiny.loaded().towers["text"]
    good, bad = np.zeros(known, bool), np.zeros(known, bool)
    good[0, :20] = bad[0, 1::2] = True
    for method, mask in zip(config.methods, (good, bad), strict=True):
        folder = found.method_folder(method.name)
        folder.mkdir(parents=True, exist_ok=True)
        masks.save(
            folder / "mask.safetensors", {"text": mask}, tiny.loaded(), preset="random", alpha=0.25
        )

    def answers(loaded, samples, candidates, **settings):
        """Facts to forget are lost where most of the first twenty neurons are."""
        is_forget_N = np.asarray([sample.key.startswith("000") for sample in samples])
        lost_K = [np.sum(mask["text"][0, :20]) > 16 if mask else False for mask in candidates]
        return ~(np.asarray(lost_K)[:, None] & is_forget_N[None])

    monkeypatch.setattr(null, "recalled", answers)
    return found


def test_a_mask_that_does_what_any_does_is_called_so(run):
    rows = {row.method: row for row in null.ANALYSIS.rows_of(Evaluated(run, ()))}
    assert rows["good"].verdict == BETTER and rows["good"].value == 1
    assert rows["bad"].verdict == NO_BETTER and rows["bad"].value == 0
    for row in rows.values():
        assert (row.statistic, row.null, row.groups, row.null_mean) == ("damage", "random", 30, 0)
        assert row.n == 2 * (1 + 2)  # both forms of one person to forget and two others
        assert list(null.check(row)) == []
        assert null.ANALYSIS.read(json.loads(json.dumps(null.ANALYSIS.to_json(row)))) == row


def test_without_groups_nothing_is_measured(run):
    run.config = run.config.model_copy(
        update={"sweep": run.config.sweep.model_copy(update={"null_groups": 0})}
    )
    assert null.ANALYSIS.rows_of(Evaluated(run, ())) == []


TINY = """
seed: 0
cache: null
data: {num_people: 14, num_celebrities: 2, num_general: 4, forget: 10}
model:
  vision: {image_size: 42, patch_size: 14, width: 16, num_layers: 4, num_heads: 2, num_neurons: 16}
  text: {width: 16, num_layers: 3, num_heads: 2, num_key_heads: 1, num_neurons: 32, context: 512}
train: {steps: 2, base_steps: 2, batch_size: 4, memory_gate: 0.0, checkpoint_every: 1}
method: {preset: paper, alpha: auto, auto: {alphas: [0.1, 0.3], people: 2}}
compare: [{preset: random, alpha: 0.1}]
sweep: {null_groups: 3, null_facts: 4, max_people: 2}
evaluate: {new_tokens: 2, max_people: 1, resamples: 10, tasks: [cloze], sets: [forget, retain]}
"""


@pytest.mark.slow
def test_a_run_chooses_alpha_and_compares_with_masks_for_other_people(tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)
    folder = tmp_path / "run"
    assert command.main(["--config", str(config), "--output", str(folder)]) == 0
    results = json.loads((folder / "results.json").read_text())
    mask, made_from = masks.load(folder / "mask.safetensors")
    chosen = {row["alpha"] for row in results["alpha_choice"] if row["choice"] != "not chosen"}
    assert chosen == {made_from["alpha"]} and made_from["alpha"] in (0.1, 0.3)
    assert len(results["alpha_choice"]) == 3 * 4
    total = sum(np.size(values) for values in mask.values())
    assert sum(values.sum() for values in mask.values()) == int(total * made_from["alpha"])
    nulls = [(row["method"], row["statistic"], row["null"]) for row in results["null"]]
    assert nulls == [
        ("paper", "damage", "people"),
        ("paper", "overlap", "people"),
        ("random", "damage", "random"),
    ]
    page = (folder / "report.html").read_text()
    assert "Masks against masks for nobody" in page and "The share of neurons, chosen" in page

"""What benchmarks/accelerator.py makes of measurements, and whether it runs."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import accelerator

    return accelerator


@pytest.fixture
def sides(accelerator):
    """Two frameworks at a forward pass and statistics; a second batch size had no room."""
    Case, Result, Side = accelerator.Case, accelerator.Result, accelerator.Side

    def result(side, part, batch, seconds, **values):
        return Result(Case(side, part, batch, "auto"), seconds, **values)

    mine = [
        result("manu_jax", "forward", 16, [0.8, 1.6, 0.8], flops=16e12, peak=2**31),
        result("manu_jax", "forward", 32, [], flops=32e12, fault="out of memory"),
        result("manu_jax", "statistics", 16, [0.8, 0.8, 0.84], flops=15e12),
    ]
    theirs = [
        result("transformers", "forward", 8, [1.6, 1.6, 1.6]),
        result("transformers", "forward", 16, [1.6, 1.6, 1.6]),
    ]
    return {
        "manu_jax": Side("manu_jax", "a chip", mine, 40e12),
        "transformers": Side("transformers", "", theirs),
    }


def test_ratios_are_of_the_same_turn_and_the_peers_best_batch_counts(accelerator, sides):
    rows = accelerator.report(sides).splitlines()
    table = [row for row in rows if row.startswith("| ")]
    _, forward, no_room, peers_small, _, statistics = table
    assert forward.endswith("| 16 | 50.00 | 20.00 | 1.00 | 0.500 | 2.0 | 2.00 |")
    assert "out of memory" in no_room
    assert peers_small.endswith("| 8 | 200.00 | 5.00 | 1.00 | 0.125 | – | 0.50 |")
    # 0.8 / 0.8, 0.8 / 1.6 and 0.84 / 0.8
    assert statistics.endswith("| 16 | 50.00 | 20.00 | 1.00 | 0.469 | – | – |")
    assert "statistics / forward: 1.000 (goal ≤ 1.05)" in rows


def test_what_was_measured_is_read_as_it_was_written(accelerator, sides, tmp_path):
    sides["manu_jax"].write(tmp_path / "side.json")
    assert accelerator.Side.read(tmp_path / "side.json") == sides["manu_jax"]


def test_a_compiler_option_is_compared_with_the_forward_pass_that_has_it(accelerator, sides):
    Case, Result = accelerator.Case, accelerator.Result
    option = "xla_some_option=true"
    forward, statistics = (
        Result(Case("manu_jax", part, 16, "auto", None, option), seconds)
        for part, seconds in (("forward", [0.4]), ("statistics", [0.5]))
    )
    sides["manu_jax"].results += [forward, statistics]
    assert accelerator.forward_of(statistics, sides["manu_jax"]) == pytest.approx(1.25)


def test_only_the_sizes_of_batches_and_forms_that_are_asked_for_are_measured(accelerator):
    options = argparse.Namespace(
        parts=["statistics", "attribution"], batches=[8, 32], small=False, compiler_options=()
    )
    found = accelerator.cases.jax_cases(["auto"], options)
    assert [(one.part, one.remat, one.batch) for one in found] == [
        ("statistics", None, 32),
        ("attribution", "dots", 8),
        ("attribution", "all", 32),
    ]
    assert [one.batch for one in accelerator.cases.torch_cases(options)] == [32, 8]


def test_what_is_not_measured_anew_is_of_the_earlier_run(accelerator, sides, tmp_path):
    for name, side in sides.items():
        side.write(tmp_path / f"{name}.json")
    anew = accelerator.Result(accelerator.Case("manu_jax", "forward", 16, "auto"), [0.4], 16e12)
    found = {"manu_jax": accelerator.Side("manu_jax", "a chip", [anew], 40e12)}
    accelerator.add_earlier(found, tmp_path)
    mine = [(one.case.part, one.seconds[0]) for one in found["manu_jax"].results]
    assert mine == [("forward", 0.4), ("statistics", 0.8)]
    assert found["transformers"].results == sides["transformers"].results
    rows = accelerator.report(found).splitlines()
    assert "manu_jax: of an earlier run (a chip): statistics" in rows
    assert any("4.00 × transformers" in row for row in rows)


@pytest.mark.slow
@pytest.mark.benchmarks
def test_the_forms_of_reducing_neurons_give_the_same_numbers():
    command = [sys.executable, str(BENCHMARKS / "reductions.py"), "--small", "--turns", "1"]
    variables = {"PYTHONPATH": str(BENCHMARKS.parent), "XLA_FLAGS": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | variables
    )
    assert done.returncode == 0, done.stderr
    differences = [float(x) for x in re.findall(r"differs by (\S+)", done.stdout)]
    assert len(differences) == 8
    *others, making = differences
    assert max(others) < 2e-3  # neurons are bfloat16, in one form before they are rounded
    assert making < 5e-3  # its neurons are rounded once, and those of the others twice


@pytest.mark.slow
@pytest.mark.benchmarks
def test_every_step_runs_in_both_frameworks(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "accelerator.py"), "--small", "--turns", "1"]
    variables = {"PYTHONPATH": str(BENCHMARKS.parent), "XLA_FLAGS": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--limit", "600", "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=1300,
        env=os.environ | variables,
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 10
    assert not [row for row in rows if "not run" in row or "Error" in row]

"""Whether benchmarks/scale.py runs, and whether what runs is what the plan says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = ("statistics", "attribution", "training: gradient", "training: update", "answers")


@pytest.mark.slow
@pytest.mark.benchmarks
def test_arguments_and_collectives_are_those_of_the_plan():
    command = [sys.executable, str(ROOT / "benchmarks" / "scale.py"), "--small", "--turns", "1"]
    done = subprocess.run(
        [*command, "--devices", "1", "2"],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
    )
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in row.replace("\\|", "=").split("|")[1:-1]] for row in table]
    assert [(row[0], *row[1:3]) for row in rows[1:]] == [
        (step, *of) for step in STEPS for of in (("1", "–"), ("2", "strong"), ("2", "weak"))
    ]
    for step, devices, *_, held, _, moved, runs in rows[1:]:
        for measured, planned in (text.split(" = ") for text in (held, moved, runs)):
            assert measured == planned, (step, devices)
        assert (runs == "0 = 0") == (devices == "1"), step

"""Whether benchmarks/load.py runs, and how much more than the devices hold reading takes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


@pytest.mark.slow
@pytest.mark.benchmarks
def test_reading_takes_little_more_memory_than_what_the_devices_hold():
    command = [sys.executable, str(ROOT / "benchmarks" / "load.py"), "--mesh", "1,2,2"]
    done = subprocess.run(
        [*command, "--gigabytes", "0.5", "--turns", "1"],
        capture_output=True,
        text=True,
        timeout=600,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    grown = re.findall(r"peak memory ([\d.]+) × what the devices hold", done.stdout)
    assert len(grown) == 2, done.stdout  # warm and cold
    assert all(0.9 < float(times) < 1.3 for times in grown), done.stdout


@pytest.mark.slow
@pytest.mark.benchmarks
def test_two_processes_hold_their_halves_and_say_how_much_they_grew():
    """Of so few layers what grows is the embedding on its way: docs/speed.md has larger sizes."""
    command = [sys.executable, str(ROOT / "benchmarks" / "load.py"), "--mesh", "1,2,2"]
    done = subprocess.run(
        [*command, "--gigabytes", "0.5", "--turns", "1", "--processes", "2"],
        capture_output=True,
        text=True,
        timeout=600,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    told = re.compile(r"process (\d) of 2, .* of 0.47 GB; peak memory [\d.]+ × the ([\d.]+) GB")
    found = dict(told.findall(done.stdout))
    assert {*found} == {"0", "1"}, done.stdout
    assert all(0.23 <= float(held) < 0.25 for held in found.values()), found

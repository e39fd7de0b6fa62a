"""Whether benchmarks/load.py runs, and how much more than the devices hold reading takes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.benchmarks
def test_reading_takes_little_more_memory_than_what_the_devices_hold():
    command = [sys.executable, str(ROOT / "benchmarks" / "load.py"), "--mesh", "1,2,2"]
    done = subprocess.run(
        [*command, "--gigabytes", "0.5", "--turns", "1"],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )
    assert done.returncode == 0, done.stderr
    grown = re.findall(r"peak memory ([\d.]+) × what the devices hold", done.stdout)
    assert len(grown) == 2, done.stdout  # warm and cold
    assert all(0.9 < float(times) < 1.3 for times in grown), done.stdout

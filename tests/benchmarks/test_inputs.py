import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (none: in the process itself|1) \| \d+ \| ([\d.]+) \|$", re.M)


@pytest.mark.slow
@pytest.mark.benchmarks
def test_the_table_has_every_stage_and_each_number_of_workers():
    command = [sys.executable, str(ROOT / "benchmarks" / "inputs.py")]
    settings = ["--samples", "8", "--batch", "4", "--workers", "0,1"]
    done = subprocess.run(
        [*command, *settings],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| pixels: resize, normalise, patches |") == 1
    names, times = zip(*ROW.findall(done.stdout), strict=True)
    assert names == ("none: in the process itself", "1")
    assert min(map(float, times)) > 0

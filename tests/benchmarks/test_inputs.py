import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (none: in the process itself|1) \| \d+ \| ([\d.]+) \|$", re.M)


@pytest.mark.slow
def test_workers_take_the_images_off_the_run_s_own_process():
    """Told by its processor's time, which other work on the machine does not change much."""
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
    (_, alone), (_, with_one) = ROW.findall(done.stdout)
    assert float(with_one) < 0.75 * float(alone)

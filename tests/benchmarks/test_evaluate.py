import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_benchmark_runs_and_both_frameworks_write_the_same_tokens():
    command = [sys.executable, str(ROOT / "benchmarks" / "evaluate.py"), "--quick"]
    # One thread: PyTorch's wait for each other without end where tests share the cores.
    variables = {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | variables
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| small |")]
    assert len(rows) == 3
    assert all(row.endswith("| 100 % |") for row in rows)

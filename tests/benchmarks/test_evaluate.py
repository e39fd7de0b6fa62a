import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "evaluate.py"


def test_the_benchmark_runs_and_both_frameworks_write_the_same_tokens():
    command = [sys.executable, str(SCRIPT), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| small |")]
    assert len(rows) == 3
    assert all(row.endswith("| 100 % |") for row in rows)

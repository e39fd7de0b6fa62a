"""The benchmarks by name."""

BENCHMARKS = {"synthetic": "written by the run", "mllmu": "MLLMU-Bench"}

"""Options that make XLA compile with the least effort: most of the suite's time is compilation.

The demo and the benchmarks run what is optimised.
"""

from importlib.metadata import version

LEAST_EFFORT = "--xla_backend_optimization_level=0"
# XLA aborts where it does not know an option. Its older code for fused loops compiles several times
# as fast as the one with MLIR, and one LLVM module as fast as several on two cores.
if version("jaxlib").startswith("0.10."):
    LEAST_EFFORT += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    # Eight devices on a loaded core may come to an exchange more than the usual 40 s apart.
    LEAST_EFFORT += " --xla_cpu_collective_call_terminate_timeout_seconds=600"

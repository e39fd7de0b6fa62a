"""manu_jax's side of benchmarks/accelerator.py, which starts it in a process of its own."""

import argparse
import concurrent.futures
import dataclasses
import functools
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerator_cases as cases
import jax
import planned
from accelerator_cases import Result, Side
from jax.profiler import ProfileData

from manu_jax.planning.step import Step
from manu_jax.planning.world import World

# What a call gives back, and the next takes in place of what it gave away.
CARRIED: dict[str, Callable[[tuple, Any], tuple]] = {
    "statistics": lambda args, out: (out, *args[1:]),
    "attribution": lambda args, out: (out, *args[1:]),
    "learned gates": lambda args, out: (*out[:2], *args[2:]),
}
THREADS = 8  # that compile
# What a profile calls a device, and how its lines begin that hold each kernel once.
LINES = {"/device:GPU": "Stream", "/device:TPU": "XLA Ops"}
NUM_KERNELS = 12
BOOLS = {"true": True, "false": False}


@dataclasses.dataclass
class Program:
    """A step, lowered and then compiled, with its arguments. names: of those by name."""

    result: Result
    step: Step
    lowered: Any
    names: tuple[str, ...]
    compiled: Any = None
    args: Any = None
    kwargs: Any = None

    def compile(self) -> None:
        start = time.monotonic()
        name, _, value = self.result.case.option.partition("=")
        options = {name: BOOLS.get(value, value)} if name else None
        self.compiled = self.lowered.compile(options)
        self.result.compile_seconds = time.monotonic() - start
        analysis = self.compiled.memory_analysis()
        arguments, outputs = analysis.argument_size_in_bytes, analysis.output_size_in_bytes
        new = max(outputs - analysis.alias_size_in_bytes, 0)
        self.result.program = arguments + new + analysis.temp_size_in_bytes

    def fill(self, world: World, model: Any, batches: dict[str, Any]) -> None:
        """Make the arguments, and run it for the first time."""
        self.args, kwargs = planned.filled(self.step, world, model, batches=batches)
        self.kwargs = {name: kwargs[name] for name in self.names}
        self.call()

    def profile(self) -> None:
        """Run it once more, and note the kernels that took the most time."""
        if not self.result.fault:
            self.result.kernels = kernels(self.call)

    def call(self) -> None:
        """Run it, and wait for it."""
        out = jax.block_until_ready(self.compiled(*self.args, **self.kwargs))
        carry = CARRIED.get(self.result.case.part)
        if carry is not None:
            self.args = carry(self.args, out)


def main() -> None:
    options = cases.child_options()
    device, start = jax.devices()[0], time.monotonic()
    chip = planned.chip_of(device)
    machine = f"{device.device_kind}, jax {jax.__version__}"
    side = Side("manu_jax", machine, [], None if chip is None else chip.flops)

    def told(what: str) -> None:
        side.write(options.output)
        print(f"manu_jax: {what} after {time.monotonic() - start:.0f} s", flush=True)

    hf_config, lengths = planned.sizes(is_small=options.small)
    world = planned.plan_world(
        hf_config,
        lengths,
        model={"dtype": "bfloat16"},
        method="paper",
        compare=["gradient", "learned"],
        unlearn=[{"preset": "suppress"}, {"preset": "erase"}],
        evaluate={"new_tokens": lengths.new},
    )
    programs = _lowered(world, side, options)
    told("programs lowered")
    # Before there are weights: what the compiler tries out counts as memory, too.
    programs = _compiled(programs, deadline=start + options.preparation)
    told("programs compiled")
    model = jax.block_until_ready(planned.random_model(world))
    told("weights made")
    batches: dict[str, Any] = {}
    peak = 0
    # A device tells the peak of the process so far, so the smallest programs come first.
    for program in sorted(programs, key=lambda one: one.result.program or 0):
        cases.attempted(program.result, functools.partial(program.fill, world, model, batches))
        found = (device.memory_stats() or {}).get("peak_bytes_in_use")
        program.result.peak, program.result.is_own_peak = found, (found or 0) > peak
        peak = found or 0
    told("programs run once")
    calls = [(program.result, program.call) for program in programs]
    cases.take_turns(side, calls, options=options)
    told("programs timed")
    for program in programs:
        cases.attempted(program.result, program.profile)
    told("programs profiled")


def kernels(call: Callable[[], object]) -> dict[str, float]:
    """Return the milliseconds of a call's kernels on the device, those with the most first."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        for path in Path(folder).rglob("*.xplane.pb"):
            for plane in ProfileData.from_file(str(path)).planes:
                wanted = LINES.get(plane.name.rpartition(":")[0])
                for line in plane.lines if wanted else ():
                    if line.name.startswith(wanted):
                        for event in line.events:
                            found[event.name] += event.duration_ns / 1e6
    return dict(found.most_common(NUM_KERNELS))


def _lowered(world: World, side: Side, options: argparse.Namespace) -> list[Program]:
    """Return the programs of all cases; one that can't be lowered has a fault in its result."""
    known = planned.attention_forms()
    forms = [form for form in known if options.forms is None or form in options.forms]
    side.results += [Result(case) for case in cases.jax_cases(forms, options)]
    planned.use_attention(planned.REFERENCE)  # its products are all in the program
    for part in options.parts:
        found = [result for result in side.results if result.case.part == part]
        if not found:
            continue
        size = found[0].case.batch
        flops = planned.useful_flops(planned.step_of(part, world, size, "none"))
        for result in found:
            result.flops = flops * result.case.batch / size
    programs: list[Program] = []

    def lower(result: Result) -> None:
        case = result.case
        step = planned.step_of(case.part, world, case.batch, case.remat)
        traced = step.function.trace(*step.args, **step.kwargs)
        names = tuple(traced.args_info[1])
        programs.append(Program(result, step, traced.lower(), names))

    for form in forms:
        planned.use_attention(form)
        for result in side.results:
            if result.case.form == form:
                cases.attempted(result, functools.partial(lower, result))
    return programs


def _compiled(programs: list[Program], *, deadline: float) -> list[Program]:
    """Return the programs that compile; none is begun after the deadline."""

    def compiled(program: Program) -> bool:
        if time.monotonic() > deadline:
            program.result.fault = "no time to compile it"
            return False
        return cases.attempted(program.result, program.compile)

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        done = list(pool.map(compiled, programs))
    return [program for program, is_done in zip(programs, done, strict=True) if is_done]


if __name__ == "__main__":
    main()

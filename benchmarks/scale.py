"""Weak and strong scaling over CPU devices, what is moved between them, and what the plan says.

    python benchmarks/scale.py [--devices 1 2 4 8] [--turns 3] [--small]

A LLaVA of random weights runs the steps of a run, as a plan builds them, on 1, 2, 4 and 8 devices
that this machine's processor stands for: scoring and training with all of them on `fsdp`, answers
with all on `tensor`. Weak scaling: as many samples on each device; strong: as many on all together.
One process for each number of devices.

Beside each other stand what was measured and what the plan says, which compiles from shapes alone:

    held    what a device holds of the arguments: of its shards | of the shapes
    work    what it needs beside them, MiB: the growth of the process by the peak of a call, a
            device | the compiler's account
    moved   MiB of the results of collectives on a device: each one that ran in a profiled call, by
            its size | from the HLO, loops by their trips
    runs    how many collectives ran on a device | the same

All devices share the cores, so that time does not fall with their number: the ideal is that of one
device for the same samples, which has all cores, too. × ideal is what the division costs.
"""

import argparse
import ctypes
import dataclasses
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import planned
from jax.profiler import ProfileData

from manu_jax import parallel
from manu_jax.planning import collectives, plan, shapes
from manu_jax.planning.world import World

MIB = 2**20
# Freed memory goes back to the system, so that the next call is seen to take it.
VARIABLES = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
VARIABLES |= {"NPROC": "32"}  # threads, for collectives that run at once (manu_jax/run.py)
BATCH = 8  # samples on all devices together, or on each
# Step → its name in a plan, and whether all devices are on `tensor` and not on `fsdp`
STEPS = {
    "statistics": ("paper: statistics, image form", False),
    "attribution": ("gradient: attribution, image form", False),
    "training: gradient": ("full: gradient, image form", False),
    "training: update": ("full: update", False),
    "answers": ("answers, image form", True),
}
MODEL = {
    "image_token_index": 8000,
    "text_config": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 8192,
    },
    "vision_config": {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "image_size": 112,
    },
}
LENGTHS = planned.Lengths(sample=128, text=32, answer=16, new=16)
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 8}  # all of them divide over the devices
SMALL = planned.resized(planned.SMALL, {"text_config": HEADS})


@dataclasses.dataclass
class Measured:
    """A step on a number of devices: seconds of a call in each turn, and bytes of one device."""

    step: str
    devices: int
    scaling: str
    samples: int
    seconds: list[float]
    held: tuple[float, float]
    work: tuple[float, float]
    moved: tuple[float, float]
    runs: tuple[float, float]
    kinds: dict[str, float]  # of what was moved


def main() -> None:
    options = parse()
    if options.child:
        print(json.dumps([dataclasses.asdict(one) for one in measure(options.child, options)]))
        return
    found = []
    for number in options.devices:
        command = [sys.executable, __file__, "--child", str(number), "--turns", str(options.turns)]
        done = subprocess.check_output(
            command + ["--small"] * options.small, text=True, env=os.environ | VARIABLES
        )
        found += [Measured(**values) for values in json.loads(done.splitlines()[-1])]
        print(f"{number} devices: done", file=sys.stderr, flush=True)
    print(table(found, options))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(count: int, options: argparse.Namespace) -> list[Measured]:
    """Return all steps on `count` devices of this process."""
    changes = SMALL if options.small else MODEL
    hf_config = planned.resized(json.loads(planned.CONFIG.read_text()), changes)
    lengths = planned.sizes(is_small=True)[1] if options.small else LENGTHS
    found = []
    sizes = {"strong": BATCH, "weak": BATCH * count}
    for scaling, size in sizes.items():
        if scaling == "weak" and count == 1:
            continue
        world = planned.plan_world(
            hf_config,
            lengths,
            f"devices={count}",
            model={"dtype": "float32"},
            mesh={"fsdp": -1},
            method="paper",
            compare=["gradient"],
            unlearn=[{"name": "full", "objective": "gradient_difference", "batch_size": size}],
            score_batch=size,
            evaluate={"new_tokens": lengths.new, "batch_size": size},
        )
        for step, (name, is_tensor) in STEPS.items():
            placed = world.on((1, 1, count) if is_tensor else (1, count, 1))
            values = measured_step(name, placed, turns=options.turns)
            found.append(Measured(step, count, scaling, size, **values))
    return found


def measured_step(name: str, world: World, *, turns: int) -> dict[str, Any]:
    """Return what is measured of a step, and what the plan says of it."""
    item = next(item for item in plan.planned(world) if item.name == name)
    step, row = item.make(world, None, None), plan.row_of(item, world)
    args, kwargs = planned.filled(step, world, planned.random_model(world), batches={})
    with parallel.on_mesh(world.place.mesh):
        # From arrays, as the run does it; the plan has shapes.
        traced = step.function.trace(*args, **kwargs)
        program = traced.lower().compile()
    is_given_away = jax.tree.map(lambda info: info.donated, traced.args_info)
    arrays = args, {name: kwargs[name] for name in traced.args_info[1]}

    def run() -> Callable[[], float]:
        """Return what runs the step once, and returns its seconds."""
        mine, named = jax.block_until_ready(
            jax.tree.map(lambda x, gone: x.copy() if gone else x, arrays, is_given_away)
        )

        def timed() -> float:
            start = time.perf_counter()
            out = program(*mine, **named)
            jax.block_until_ready(out)
            return time.perf_counter() - start

        return timed

    run()()
    seconds = [run()() for _ in range(turns)]
    work = growth(run()) / world.target.count
    ran = executed(program.as_text(), run(), world.target.count)
    kinds: dict[str, float] = defaultdict(float)
    for kind, runs, size in ran:
        kinds[kind] += runs * size
    told = row.moved.values()
    return {
        "seconds": seconds,
        "held": (
            sum(bytes_on_first(leaf) for leaf in jax.tree.leaves(arrays)),
            shapes.bytes_held(step.arrays),
        ),
        "work": (work, row.temporaries),
        "moved": (sum(kinds.values()), sum(kind["bytes"] for kind in told)),
        "runs": (sum(runs for _, runs, _ in ran), sum(kind["runs"] for kind in told)),
        "kinds": dict(kinds),
    }


def bytes_on_first(leaf: jax.Array | np.ndarray) -> int:
    """Return the bytes of an array that the first device holds; 0 for one of the host.

    The plan does not count the latter either: a few numbers for each layer.
    """
    if not isinstance(leaf, jax.Array):
        return 0
    first = jax.devices()[0]
    return sum(shard.data.nbytes for shard in leaf.addressable_shards if shard.device == first)


def growth(call: Callable[[], object]) -> int:
    """Return by how many bytes the process was larger at the peak of a call than before it."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak from now on
    before = memory("VmRSS")
    call()
    return memory("VmHWM") - before


def memory(name: str) -> int:
    """Return a number of bytes that Linux tells of this process."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "a Linux machine"
    return 1024 * int(found.group(1))


def executed(
    hlo: str, call: Callable[[], object], num_devices: int
) -> list[tuple[str, float, float]]:
    """Return (kind, how often a device ran it in a call, its bytes) of every collective.

    The profile of a call tells what ran, by the name that the HLO gives it.
    """
    found = {}
    for line in hlo.splitlines():
        match = collectives.LINE.match(line)
        part = None if match is None else collectives.COLLECTIVE.match(match.group(3))
        if match is not None and part is not None:
            found[match.group(2)] = (part.group(2), sum(collectives._sizes(part.group(1))))
    if not found:
        return []
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        (path,) = Path(folder).glob("**/*.xplane.pb")
        profile = ProfileData.from_file(str(path))
    events = (event for plane in profile.planes for line in plane.lines for event in line.events)
    runs = Counter(event.name for event in events)
    return [(kind, runs[name] / num_devices, size) for name, (kind, size) in found.items()]


def table(found: list[Measured], options: argparse.Namespace) -> str:
    """Return the table as Markdown, and what is moved by kind."""
    alone = {one.step: one for one in found if one.devices == 1}
    lines = [
        f"{os.cpu_count()} cores, {BATCH} samples in all (strong) or a device (weak), medians of "
        f"{options.turns} turns; measured | planned, MiB a device",
        "",
        "| step | devices | scaling | ms | × ideal | held | work | moved | runs |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for step in STEPS:
        for one in found:
            if one.step == step:
                lines.append(row_of(one, alone.get(step)))
    worst = {
        name: max((off(*getattr(one, name)) for one in found), default=0.0)
        for name in ("held", "work", "moved", "runs")
    }
    lines += ["", "at most off: " + ", ".join(f"{name} {x:.1%}" for name, x in worst.items())]
    return "\n".join(lines)


def row_of(one: Measured, alone: Measured | None) -> str:
    seconds = statistics.median(one.seconds)
    ratio = "–"
    if alone is not None:
        ideal = statistics.median(alone.seconds) * one.samples / alone.samples
        ratio = f"{seconds / ideal:.2f}"
    scaling = "–" if one.devices == 1 else one.scaling
    cells = [one.step, str(one.devices), scaling, f"{1e3 * seconds:.0f}", ratio]
    cells += [
        " \\| ".join(f"{x / MIB:.2f}" for x in pair) for pair in (one.held, one.work, one.moved)
    ]
    cells.append(" \\| ".join(f"{x:g}" for x in one.runs))
    return "| " + " | ".join(cells) + " |"


def off(measured: float, planned: float) -> float:
    """Return by what share a measured number is off the planned one."""
    return abs(measured - planned) / planned if planned else float(measured > 0)


if __name__ == "__main__":
    main()

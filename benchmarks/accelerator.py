"""LLaVA-1.5-7B on one accelerator: time, use of the chip and memory of every step, beside PyTorch.

    python benchmarks/accelerator.py [--output DIR] [--turns 4] [--seconds 60] [--small]
    python benchmarks/accelerator.py --sides manu_jax --parts forward statistics --forms auto \\
        --batches 16 --earlier DIR

Random weights in bfloat16 are made on the device. Samples have 768 tokens, 576 of them an image's;
answers have 50. What is timed:

    forward         a bare forward pass, the logits of all tokens
    statistics      the streamed activation statistics of a method like "paper"
    attribution     the gradient over one gate per neuron and example, and its statistics
    learned gates   a step of learning: as many samples with an image as without
    suppress, erase the gradient of a step: facts to forget, kept ones, strangers; manu_jax alone
    answers         vision tower, prompt and 50 greedy tokens

manu_jax runs its own jitted functions, as a plan builds them, with each form of attention that it
has; transformers runs eagerly with `sdpa`, hooks and `generate`. They run one after the other, each
in a process that has the whole device, at several batch sizes. Times are medians of the turns;
ratios to the forward pass are medians of the same turn's, those to transformers are of the best
batch size on both sides. What is not measured anew is read from the folder of an earlier run.

MFU: FLOPs of the matrix products that a step needs, none of them twice, by the seconds and the
chip's rate in bfloat16. GiB: the peak that the device tells; "≤" where a smaller step had more.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import accelerator_cases as cases
from accelerator_cases import JAX, TORCH, Case, Result, Side

GIB = 2**30
CHILDREN = {JAX: "accelerator_jax.py", TORCH: "accelerator_torch.py"}
# The whole device for one process; less of it is set aside for what is no array.
VARIABLES = {
    JAX: {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"},
    TORCH: {"JAX_PLATFORMS": "cpu", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
}
GOALS = {"statistics": 1.05, "mfu": 0.55, "transformers": 1.5}


def main() -> None:
    options = parse()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.output or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        sides = {name: measured(name, folder, options) for name in options.sides}
    for path in options.earlier:
        add_earlier(sides, Path(path))
    print(f"\nall in {time.monotonic() - start:.0f} s\n")
    print(report(sides))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", help="a folder for what was measured, as JSON")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60, help="of turns; then none begins")
    parser.add_argument(
        "--preparation", type=float, default=100, help="seconds; then nothing begins to compile"
    )
    parser.add_argument("--limit", type=float, default=200, help="seconds, after which a side ends")
    parser.add_argument("--sides", nargs="*", choices=[*CHILDREN], default=[*CHILDREN])
    parser.add_argument("--parts", nargs="+", choices=cases.PARTS, default=cases.PARTS)
    parser.add_argument("--forms", nargs="+", help="of manu_jax's attention, in place of all")
    parser.add_argument("--batches", nargs="+", help="samples a batch, in place of all sizes")
    parser.add_argument(
        "--earlier", nargs="*", default=(), help="folders of earlier runs, for what isn't measured"
    )
    parser.add_argument(
        "--compiler-options",
        nargs="*",
        default=(),
        help="XLA's, as name=value; forward, statistics and answers are tried with each, too",
    )
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the script")
    return parser.parse_args()


def measured(name: str, folder: Path, options: argparse.Namespace) -> Side:
    """Return what a side's process measured, up to where it ended."""
    path = folder / f"{name}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).with_name(CHILDREN[name]))]
    command += ["--output", str(path), "--turns", str(options.turns)]
    command += ["--seconds", str(options.seconds), "--preparation", str(options.preparation)]
    command += ["--small"] * options.small
    for key in ("parts", "forms", "batches", "compiler_options"):
        values = getattr(options, key)
        command += [f"--{key.replace('_', '-')}", *values] if values else []
    fault = ""
    try:
        done = subprocess.run(command, env=os.environ | VARIABLES[name], timeout=options.limit)
        if done.returncode:
            fault = f"{name}: ended with status {done.returncode}"
    except subprocess.TimeoutExpired:
        fault = f"{name}: ended after {options.limit:.0f} s"
    side = Side.read(path) if path.exists() else Side(name, "", [])
    side.notes += [fault] * bool(fault)
    return side


def add_earlier(sides: dict[str, Side], folder: Path) -> None:
    """Add to the sides what an earlier run measured of parts that they have nothing of."""
    for name in CHILDREN:
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        earlier = Side.read(path)
        side = sides.setdefault(name, dataclasses.replace(earlier, results=[], notes=[]))
        measured_parts = {one.case.part for one in side.results}
        added = [one for one in earlier.results if one.case.part not in measured_parts]
        side.results += added
        parts = ", ".join(dict.fromkeys(one.case.part for one in added))
        side.notes += [f"{name}: of an earlier run ({earlier.machine}): {parts}"] * bool(added)


def report(sides: dict[str, Side]) -> str:
    """Return the machine, the table, and what the goals come to."""
    lines = [side.machine for side in sides.values() if side.machine]
    lines += [
        "",
        "| step | | batch | ms a sample | samples/s | × forward | MFU | GiB | × transformers |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for part in cases.PARTS:
        for side in sides.values():
            for result in side.results:
                if result.case.part == part:
                    lines.append(row(result, side, sides))
    lines += ["", *goals(sides), *(note for side in sides.values() for note in side.notes)]
    return "\n".join(lines)


def row(result: Result, side: Side, sides: dict[str, Side]) -> str:
    """Return a case's row of the table."""
    case = result.case
    cells = [case.part, named(case), str(case.batch)]
    if not result.seconds:
        cells.append(f"{result.fault or 'not run'}")
        cells += ["–"] * 5
        return "| " + " | ".join(cells) + " |"
    seconds = each(result)
    cells += [f"{1e3 * seconds:.2f}", f"{1 / seconds:.2f}"]
    against = forward_of(result, side)
    cells.append("–" if against is None else f"{against:.2f}")
    found = mfu(result, sides)
    cells.append("–" if found is None else f"{found:.3f}")
    cells.append(gibibytes(result))
    peer = best(sides.get(TORCH), case.part)
    cells.append("–" if peer is None else f"{each(peer) / seconds:.2f}")
    return "| " + " | ".join(cells) + " |"


def goals(sides: dict[str, Side]) -> list[str]:
    """Return the goals, and what was reached."""
    side, found = sides.get(JAX), []
    statistic = best(side, "statistics")
    if side is not None and statistic is not None:
        ratio = forward_of(statistic, side)
        if ratio is not None:
            found.append(f"statistics / forward: {ratio:.3f} (goal ≤ {GOALS['statistics']})")
    for part in cases.PARTS:
        mine, theirs = best(side, part), best(sides.get(TORCH), part)
        if mine is None:
            continue
        used = mfu(mine, sides)
        text = f"{part}: {named(mine.case)}, batch {mine.case.batch}"
        if used is not None:
            text += f", MFU {used:.3f} (goal ≥ {GOALS['mfu']})"
        if theirs is not None:
            text += f", {each(theirs) / each(mine):.2f} × transformers (goal ≥ "
            text += f"{GOALS['transformers']})"
        found.append(text)
    return found


def named(case: Case) -> str:
    if case.side == TORCH:
        return TORCH
    again = "" if case.remat is None else f", remat {case.remat}"
    tried = f", {case.option}" if case.option else ""
    return f"manu_jax, attention {case.form}{again}{tried}"


def each(result: Result) -> float:
    """Return the median seconds of a sample."""
    return statistics.median(result.seconds) / result.case.batch


def best(side: Side | None, part: str) -> Result | None:
    """Return the fastest case of a part, by the sample."""
    found = (
        []
        if side is None
        else [one for one in side.results if one.case.part == part and one.seconds]
    )
    return min(found, key=each, default=None)


def forward_of(result: Result, side: Side) -> float | None:
    """Return the median ratio of a sample's time to that of the forward pass in the same turn.

    The forward pass is that of the same batch, form and option, or the side's best.
    """
    forwards = [one for one in side.results if one.case.part == "forward" and one.seconds]
    wanted = dataclasses.replace(result.case, part="forward", remat=None)
    alike = [one for one in forwards if dataclasses.replace(one.case, remat=None) == wanted]
    below = next(iter(alike), min(forwards, key=each, default=None))
    if below is None:
        return None
    pairs = zip(result.seconds, below.seconds, strict=False)
    ratio = statistics.median(above / under for above, under in pairs)
    return ratio * below.case.batch / result.case.batch


def mfu(result: Result, sides: dict[str, Side]) -> float | None:
    """Return the share of the chip's rate that a case's useful FLOPs take."""
    side = sides.get(JAX)
    if side is None or side.peak_flops is None:
        return None
    flops = next((one for one in side.results if one.case.part == result.case.part), None)
    if flops is None or flops.flops is None:
        return None
    return flops.flops / flops.case.batch / each(result) / side.peak_flops


def gibibytes(result: Result) -> str:
    if result.peak is None:
        return "–" if result.program is None else f"{result.program / GIB:.1f} (program)"
    return f"{'' if result.is_own_peak else '≤ '}{result.peak / GIB:.1f}"


if __name__ == "__main__":
    main()

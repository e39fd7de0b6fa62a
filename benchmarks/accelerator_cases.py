"""What benchmarks/accelerator.py measures: its cases, their results, and turns."""

import argparse
import dataclasses
import json
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from manu_jax.config.base import Remat

JAX, TORCH = "manu_jax", "transformers"
PARTS = ("forward", "statistics", "attribution", "learned gates", "suppress", "erase", "answers")
# Part → what is recomputed → samples a batch, on the accelerator.
BATCHES: dict[str, dict[Remat | None, tuple[int, ...]]] = {
    "forward": {None: (16, 32)},
    "statistics": {None: (16, 32)},
    "attribution": {"dots": (8, 16), "all": (32,)},
    "learned gates": {"dots": (16,), "all": (32,)},
    "suppress": {"dots": (8,), "all": (16,)},
    "erase": {"all": (8,)},
    "answers": {None: (32, 64)},
}
# PyTorch keeps all that its backward pass needs. It has no `suppress` and no `erase`.
TORCH_BATCHES = {
    "forward": (16, 32),
    "statistics": (16, 32),
    "attribution": (4, 8),
    "learned gates": (4, 8),
    "answers": (32, 64),
}
SMALL_BATCH = 4
# What a case may raise that fails: no room, no kernel, nothing of that name in this version.
FAULTS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, ImportError)


@dataclasses.dataclass(frozen=True)
class Case:
    """One step at one batch size.

    form: of attention. remat: None: the step's own. option: of the compiler, "name=value", or "".
    """

    side: str
    part: str
    batch: int
    form: str
    remat: Remat | None = None
    option: str = ""


@dataclasses.dataclass
class Result:
    """What was measured of a case: seconds of a call in each turn, and bytes.

    flops: useful ones of a call. peak: of the process so far, and whether it is the case's own.
    program: what the compiler says that it needs. fault: why there are no times, or "". kernels:
    milliseconds of those that took the most in a profiled call.
    """

    case: Case
    seconds: list[float] = dataclasses.field(default_factory=list)
    flops: float | None = None
    peak: int | None = None
    is_own_peak: bool = True
    program: int | None = None
    compile_seconds: float | None = None
    fault: str = ""
    kernels: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Side:
    """The results of one framework. machine: the device and the versions. peak_flops: a second."""

    name: str
    machine: str
    results: list[Result]
    peak_flops: float | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write all that is known so far."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> "Side":
        values: dict[str, Any] = json.loads(path.read_text())
        results = [Result(**{**one, "case": Case(**one["case"])}) for one in values["results"]]
        return cls(**{**values, "results": results})


def child_options() -> argparse.Namespace:
    """Return the options that a side is started with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--turns", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--preparation", type=float, required=True)
    parser.add_argument("--parts", nargs="+", default=PARTS)
    parser.add_argument("--forms", nargs="+")
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--compiler-options", nargs="*", default=())
    parser.add_argument("--small", action="store_true")
    return parser.parse_args()


def jax_cases(forms: Sequence[str], options: argparse.Namespace) -> list[Case]:
    """Return what manu_jax is measured at: all sizes with the first form of attention, and one of
    each part with the others; one of those that differentiate nothing with each compiler option."""
    found, others = [], []
    for part in options.parts:
        for remat, batches in BATCHES[part].items():
            sizes = sizes_of(batches, options)
            found += [Case(JAX, part, size, forms[0], remat) for size in sizes]
        first = next((case for case in found if case.part == part), None)
        if first is None:
            continue
        others += [dataclasses.replace(first, form=form) for form in forms[1:]]
        if first.remat is None:
            tried = options.compiler_options
            others += [dataclasses.replace(first, option=option) for option in tried]
    return found + others


def torch_cases(options: argparse.Namespace) -> list[Case]:
    """Return what transformers is measured at."""
    return [
        Case(TORCH, part, size, "sdpa", "none")
        for part in options.parts
        for size in sizes_of(TORCH_BATCHES.get(part, ()), options)
    ]


def sizes_of(batches: Sequence[int], options: argparse.Namespace) -> list[int]:
    """Return those of the sizes of batches that the options ask for."""
    if options.small:
        return [SMALL_BATCH] if batches else []
    return [size for size in batches if options.batches is None or size in options.batches]


def attempted(result: Result, action: Callable[[], object]) -> bool:
    """Do something for a case; note in its result what went wrong. Whether it was done."""
    try:
        action()
    except FAULTS as error:
        traceback.print_exc()
        text = " ".join(str(error).split())
        is_memory = "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
        result.fault = "out of memory" if is_memory else f"{type(error).__name__}: {text:.60}"
        return False
    return True


def take_turns(
    side: Side,
    calls: Sequence[tuple[Result, Callable[[], object]]],
    *,
    options: argparse.Namespace,
) -> None:
    """Time the cases in turns, so that a drifting machine hits all alike.

    calls: each does its case once and waits for it. After options.seconds no turn begins but the
    first.
    """
    start = time.monotonic()
    for turn in range(options.turns):
        if turn and time.monotonic() > start + options.seconds:
            side.notes.append(f"{side.name}: {turn} turns in {options.seconds:.0f} s")
            break
        for result, call in calls:
            if result.fault:
                continue
            begin = time.perf_counter()
            if attempted(result, call):
                result.seconds.append(time.perf_counter() - begin)
        side.write(options.output)

"""Which model fits which TPU pod, and how long its steps take: the table of docs/devices.md.

    python tools/plan_table.py --cache DIR [--steps STEP,…] [--minutes N] [--show]

Compiles the steps of real configs (tests/data) with the TPU compiler, from shapes, one after the
other, the most telling ones first. What was compiled is kept in --cache, so the command goes on
where it was stopped. --steps: compile these columns alone. --minutes: start nothing new after so
long. --show: compile nothing. A step of Gemma 3 may take 13 GiB of memory, and more, to compile.
"""

import argparse
import dataclasses
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from manu_jax.config import RunConfig
from manu_jax.config.run import validate_config
from manu_jax.place import Sizes
from manu_jax.planning import meshes
from manu_jax.planning.chips import GIB, target_of
from manu_jax.planning.items import planned
from manu_jax.planning.plan import Row, row_of
from manu_jax.planning.world import Assumed, world_of
from manu_jax.run import exit_status
from manu_jax.types import ManuError, WorkKind

CONFIGS = Path(__file__).parent.parent / "tests" / "data"
MODELS = {
    "LLaVA-1.5-7B": "llava-1.5-7b",
    "LLaVA-1.5-13B": "llava-1.5-13b",
    "Qwen2.5-VL-7B": "qwen2.5-vl-7b",
    "Gemma 3 12B": "gemma3-12b",
    "Gemma 3 27B": "gemma3-27b",
}
PODS = {
    "v5e-16": "tpu=v5e:4x4",
    "v5e-64": "tpu=v5e:8x8",
    "v4-32": "tpu=v4:2x2x4",
    "v6e-16": "tpu=v6e:4x4",
}
ASSUMED = Assumed(tokens=768, samples=1000)
BATCH = 32
# Column → name of the step. All chips are on fsdp, but for answers, whose mesh is that of `auto`
STEPS = {
    "statistics": "paper: statistics, image form",
    "attribution": "gradient: attribution, image form",
    "training": "full: gradient, image form",
    "update": "full: update",
    "answers": "answers, image form",
    "export": "export: a piece of the largest tensor, gathered",
    "learned": "learned: learned gates",
    "suppress": "suppress: gradient",
    "erase": "erase: gradient",
}
AUTO = ("answers",)
LONG = ("learned", "suppress", "erase")  # to compile; planned for the first pod alone
ABSENT = "–"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One step of one model on one pod."""

    step: str
    model: str
    pod: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    wanted = options.steps.split(",") if options.steps else list(STEPS)
    if others := [step for step in wanted if step not in STEPS]:
        raise ManuError(f"--steps {others[0]}: known: {', '.join(STEPS)}.")
    start, rows = time.monotonic(), {}
    for cell in cells():
        is_late = options.minutes is not None and time.monotonic() - start > 60 * options.minutes
        compiles = cell.step in wanted and not (options.show or is_late)
        row = _row(cell, Path(options.cache), compiles=compiles)
        if row is not None:
            rows[cell] = row
            logging.getLogger("manu_jax").info("%s: %s", cell, _text(row, cell.step))
    print(table(rows))


def cells() -> Iterator[Cell]:
    """Yield all cells, pod after pod, and those that take long to compile at the end."""
    found = [Cell(step, model, pod) for pod in PODS for step in STEPS for model in MODELS]
    long = [cell for cell in found if cell.step in LONG]
    yield from (cell for cell in found if cell not in long)
    yield from (cell for cell in long if cell.pod == next(iter(PODS)))


def config_of(model: str, *, is_auto: bool = False) -> RunConfig:
    """Return the config that a model's steps are taken from; is_auto: of its meshes."""
    folder = Path(tempfile.gettempdir()) / "manu_jax-plan-table" / model
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text((CONFIGS / f"{model}.json").read_text())
    values = {
        "model": {"path": str(folder), "dtype": "bfloat16"},
        "mesh": "auto" if is_auto else {"fsdp": -1},
        "method": "paper",
        "compare": ["gradient", "learned"],
        "unlearn": [
            {
                "name": "full",
                "objective": "gradient_difference",
                "batch_size": 16,
                "remat": "all",
            },
            {"preset": "erase", "remat": "all"},
            {"preset": "suppress", "remat": "all"},
        ],
        "score_batch": BATCH,
        "evaluate": {"batch_size": BATCH, "new_tokens": 50},
    }
    return validate_config(values, "plan_table")


def table(rows: dict[Cell, Row]) -> str:
    """Return the tables as Markdown: a row for each model and pod, a column for each step."""
    short = [step for step in STEPS if step not in LONG]
    first = next(iter(PODS))
    lines = _table(rows, short, [(model, pod) for model in MODELS for pod in PODS])
    lines += ["", *_table(rows, LONG, [(model, first) for model in MODELS])]
    refused = sum(not row.fits for row in rows.values())
    seconds = sum(row.compile_seconds or 0 for row in rows.values())
    lines += [
        "",
        f"{len(rows)} of {len(list(cells()))} steps compiled in {seconds:,.0f} s "
        f"with jax {version('jax')} and libtpu {version('libtpu')}; {refused} of them do not fit. "
        f"{ABSENT}: not compiled yet.",
    ]
    return "\n".join(lines)


def _table(
    rows: dict[Cell, Row], steps: Sequence[str], places: Sequence[tuple[str, str]]
) -> list[str]:
    lines = [f"| model | pod | {' | '.join(steps)} |", "|---" * (2 + len(steps)) + "|"]
    for model, pod in places:
        found = [(step, rows.get(Cell(step, model, pod))) for step in steps]
        shown = [ABSENT if row is None else _text(row, step) for step, row in found]
        lines.append(f"| {model} | {pod} | {' | '.join(shown)} |")
    return lines


def _row(cell: Cell, cache: Path, *, compiles: bool) -> Row | None:
    """Return the row of a cell; None where it was not compiled, and is not to be."""
    index = cache / f"{cell.step}.{cell.model}.{cell.pod}.json"
    if index.exists():
        return Row(**json.loads(index.read_text()))
    if not compiles:
        return None
    config, target = config_of(MODELS[cell.model]), target_of(PODS[cell.pod])
    assumed = ASSUMED
    sizes: dict[WorkKind, Sizes] = {}
    if cell.step in AUTO:
        config = config_of(MODELS[cell.model], is_auto=True)
        sizes = {kind: choice.sizes for kind, choice in meshes.chosen(config, target).items()}
        # Of one batch: where no prompt waits, one program does all
        assumed = dataclasses.replace(ASSUMED, samples=BATCH)
    world = world_of(config, target, assumed, sizes=sizes)
    item = next(item for item in planned(world) if item.name == STEPS[cell.step])
    row = row_of(item, world.at(item.kind), keep=cache)
    index.write_text(json.dumps(dataclasses.asdict(row)))
    return row


def _text(row: Row, step: str) -> str:
    """Return what a cell says: GiB a chip, moved GiB and the seconds of a call."""
    mesh = f" ({', '.join(map(str, row.mesh))})" if step in AUTO else ""
    if not row.fits:
        return f"**no** ({row.total / GIB:.1f} GiB){mesh}"
    moved = round(sum(kind["bytes"] for kind in row.moved.values()) / GIB, 4)
    seconds = f"{row.at_least:.2g}–{row.at_most:.2g} s"
    return f"{row.total / GIB:.1f} GiB; {moved:.3g} moved; {seconds}{mesh}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cache", required=True, metavar="DIR", help="where results are kept")
    parser.add_argument("--steps", metavar="STEP,…", help="compile these columns alone")
    parser.add_argument("--minutes", type=float, help="start nothing new after so many")
    parser.add_argument("--show", action="store_true", help="compile nothing; show what is there")
    return parser


if __name__ == "__main__":
    sys.exit(main())

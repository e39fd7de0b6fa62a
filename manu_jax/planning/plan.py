"""A plan of a run: every step compiled from shapes, before there are weights or devices.

    python -m manu_jax.run --config … --plan tpu=v5e:4x4

It says of each step whether it fits, what it computes and moves, and how long it takes at least;
where it does not fit, the nearest change that does. By arithmetic alone, that of a GPU, it knows
what does not fit, and of nothing that it fits. What can be checked without weights is checked.
`plan.json` and `plan.html` are written into the run's folder, `plan.json` after each step; until
the last one it says `"is_whole": false`.
"""

import dataclasses
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manu_jax.config import RunConfig
from manu_jax.folder import expand_path, write_atomic
from manu_jax.parallel import AXES
from manu_jax.place import Sizes
from manu_jax.planning import checks, meshes, nearest, page, roofline
from manu_jax.planning.chips import GIB, Target
from manu_jax.planning.collectives import moved_by_kind
from manu_jax.planning.compiling import Compiled, compiled
from manu_jax.planning.items import planned
from manu_jax.planning.meshes import Choice
from manu_jax.planning.shapes import bytes_used, replicated
from manu_jax.planning.step import WEIGHTS, Item, Step
from manu_jax.planning.world import World, world_of
from manu_jax.report.inputs import PLAN
from manu_jax.types import ManuError, WorkKind

logger = logging.getLogger("manu_jax")

FORMAT = "manu_jax plan 2"


@dataclasses.dataclass(frozen=True)
class Row:
    """What a plan says of one step. Bytes are of one chip, FLOPs of all, seconds of one call.

    total: what lies on a chip at the step's peak, and limit: what it has room for. temporaries:
    None: nothing was compiled. fits: None: not known, since temporaries are not counted. at_least,
    at_most, bound: of the roofline; 0 and "" where the rates are not known. rows, real_rows: of a
    batch, with and without those that fill up the mesh. compile_seconds: None: nothing was
    compiled. nearest: what would fit, in words, or "". mesh: the sizes of the one that the step
    runs on.
    """

    name: str
    stage: str
    fits: bool | None
    weights: int
    optimizer: int
    other: int
    temporaries: int | None
    total: int
    limit: int
    flops: float
    flops_in_loops: float
    moved: dict[str, dict[str, float]]
    calls: float
    rows: int
    real_rows: int
    compute: float
    memory: float
    network: float
    at_least: float
    at_most: float
    bound: str
    compile_seconds: float | None
    refused: str
    nearest: str = ""
    mesh: Sequence[int] = ()


def plan(config: RunConfig, target: Target) -> Path:
    """Write the plan of a run into its folder, print it, and return the path of the page.

    Raises ManuError, when all is written, where a step does not fit or a check fails.
    """
    directory = expand_path(config.output)
    directory.mkdir(parents=True, exist_ok=True)  # what can't be written into is told at once
    keep = None if config.cache is None else expand_path(config.cache) / "plans"
    choices = meshes.chosen(config, target)
    for kind, choice in choices.items():
        if config.mesh.of(kind) is None:
            logger.info("plan: mesh: %s on %s", kind, choice.text())
    sizes: dict[WorkKind, Sizes] = {kind: choice.sizes for kind, choice in choices.items()}
    with tempfile.TemporaryDirectory(prefix="manu_jax-plan-") as scratch:
        world = world_of(config, target, scratch=Path(scratch), sizes=sizes)
        # Several steps may be one program with other things beside it.
        return _written(world, choices, directory, keep=keep or Path(scratch) / "plans")


def _written(
    world: World, choices: Mapping[WorkKind, Choice], directory: Path, *, keep: Path
) -> Path:
    faults, remarks = checks.checked(world)
    found = _plain(world, choices, faults=faults, remarks=remarks)
    path = directory / PLAN
    path.unlink(missing_ok=True)  # of an earlier plan
    _write(found, directory)
    rows: list[Row] = []
    for item in planned(world):
        row = row_of(item, world.at(item.kind), keep=keep, searches=True)
        logger.info("plan: %s", page.line(row))
        rows.append(row)
        found["steps"].append(dataclasses.asdict(row))
        _write(found, directory)
    found["is_whole"] = True
    _write(found, directory)
    write_atomic(path, page.page(found))
    for remark in (*world.data.notes, *remarks):
        logger.info("plan: %s", remark)
    logger.info("plan: %s", page.title(found))
    logger.info("%s: open it to see every step", path)
    lacking = [f"{row.name}: {page.no_room(row)}" for row in rows if row.fits is False]
    if faults or lacking:
        raise ManuError("\n  ".join(["the run can't be done as planned:", *faults, *lacking]))
    return path


def _write(found: dict[str, Any], directory: Path) -> None:
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    write_atomic(directory / "plan.json", text)


def row_of(item: Item, world: World, *, keep: Path | None = None, searches: bool = False) -> Row:
    """Return the row of a step. searches: for what fits, where it does not."""
    step = item.make(world, None, None)
    found = compiled(step, world, keep=keep)
    row = _row(item, step, found, world)
    if row.fits is not False or not searches:
        return row
    change = nearest.nearest(item, world, found, keep=keep)
    return dataclasses.replace(row, nearest=change)


def _row(item: Item, step: Step, found: Compiled, world: World) -> Row:
    target, memory = world.target, found.memory
    seconds = roofline.Seconds(0.0, 0.0, 0.0)
    if target.chip is not None:
        seconds = roofline.seconds(
            target.chip,
            flops=found.flops.total,
            num_chips=1 if world.place.mesh is None else world.place.mesh.size,
            weights_read=step.reads * bytes_used(step.parts.get(WEIGHTS, ())),
            other_bytes=memory.other + (memory.temporaries or 0),
            moved=found.moved,
        )
    return Row(
        name=item.name,
        stage=item.stage,
        fits=_fits(found, target),
        **dataclasses.asdict(memory),
        total=memory.total,
        limit=target.memory,
        flops=found.flops.total,
        flops_in_loops=found.flops.looped,
        moved=moved_by_kind(found.moved),
        calls=step.calls,
        rows=step.rows,
        real_rows=step.real_rows,
        **dataclasses.asdict(seconds),
        at_least=seconds.at_least,
        at_most=seconds.at_most,
        bound="" if target.chip is None else seconds.bound,
        compile_seconds=found.compile_seconds,
        refused=found.refused,
        mesh=world.place.sizes,
    )


def _fits(found: Compiled, target: Target) -> bool | None:
    if found.refused or found.memory.total > target.memory:
        return False
    return None if found.memory.temporaries is None else True


def _plain(
    world: World,
    choices: Mapping[WorkKind, Choice],
    *,
    faults: list[str],
    remarks: list[str],
) -> dict[str, Any]:
    """Return the plan as it is written, without steps so far."""
    meshes = {
        kind: {
            **dict(zip(AXES, choice.sizes, strict=True)),
            "why": choice.text() if world.config.mesh.of(kind) is None else "given",
        }
        for kind, choice in choices.items()
    }
    lost: dict[str, dict[str, None]] = {}
    for kind in choices:
        for name, axes in replicated(world.model, world.at(kind).place.mesh).items():
            lost.setdefault(name, {}).update(dict.fromkeys(axes))
    used = nearest.chips_used(world)
    of = "" if used == world.target.count else f"{used} of "
    uncompiled = [page.NOT_COMPILED] * (world.target.devices is None)
    return {
        "format": FORMAT,
        "is_whole": False,
        "target": of + world.target.title,
        "meshes": meshes,
        "model": world.loaded.family.sizes(world.loaded.config, world.model),
        "is_compiled": world.target.devices is not None,
        "limit_gib": world.target.memory / GIB,
        "assumptions": [*world.data.notes, *page.ASSUMPTIONS, *uncompiled],
        "faults": faults,
        "remarks": remarks,
        "replicated": {name: list(axes) for name, axes in lost.items()},
        "steps": [],
    }

"""What can be said of a run before it starts, beside its steps: faults that would stop it, remarks.

The faults are those of preflight.py; a plan finds them where the run is not to be, and so looks for
no weights.
"""

from pathlib import Path

from manu_jax import preflight, stores
from manu_jax.amounts import amount
from manu_jax.config import OptimizerSection
from manu_jax.context import Run
from manu_jax.folder import expand_path
from manu_jax.models.hf.files import INDEX, WEIGHTS
from manu_jax.models.stored import CHECKPOINT
from manu_jax.planning.nearest import chips_used, nearest_dividing
from manu_jax.planning.shapes import filled, replicated
from manu_jax.planning.world import World, trained_sections
from manu_jax.stages import STAGES
from manu_jax.types import WORK_KINDS, ManuError, WorkKind


def checked(world: World) -> tuple[list[str], list[str]]:
    """Return the faults that would stop the run, and what is worth to know, a sentence each."""
    faults: list[str] = []
    run = Run(world.config, expand_path(world.config.output), None)
    try:
        preflight.check(
            run,
            tuple(STAGES),
            empty=world.loaded,
            fetches_weights=False,
            needs_room=world.target.is_here,
        )
    except ManuError as error:
        faults += str(error).splitlines()
    if world.run is not None and world.loaded.processor is not None:
        try:
            preflight.check_questions(world.run, world.loaded)
        except ManuError as error:
            faults += [line for line in str(error).splitlines() if line not in faults]
    return faults, [
        *_idle(world),
        *_room(run, world),
        *_filled(world),
        *_replicated(world),
        *_weights(world),
    ]


def _idle(world: World) -> list[str]:
    """Return that the mesh leaves chips of the target idle, if it does."""
    used, count = chips_used(world), world.target.count
    if used == count:
        return []
    remedy = f"Give mesh: auto, or sizes whose product is {count}."
    return [f"The mesh uses {used} of {count} chips. {remedy}"]


def _room(run: Run, world: World) -> list[str]:
    """Return what a run elsewhere writes, where the disk of this machine has no room for it."""
    if world.target.is_here or stores.is_store(run.directory):
        return []
    needed = preflight.bytes_to_write(run, world.loaded, tuple(STAGES))
    free = preflight.bytes_free(run)
    if needed <= free:
        return []
    return [f"The run writes {amount(needed)}; this machine's disk has {amount(free)} free."]


def _filled(world: World) -> list[str]:
    """Return which batches the mesh fills up with rows that count for nothing."""
    config = world.config
    sections: list[tuple[str, OptimizerSection]] = [
        (f"{section.name}.batch_size", section) for section in trained_sections(config)
    ]
    if config.train.steps:
        sections.append(("train.batch_size", config.train))
    sizes: dict[str, tuple[WorkKind, int]] = {
        name: ("train", section.batch_size) for name, section in sections
    }
    if config.train.steps or trained_sections(config) or config.methods:
        sizes["score_batch"] = ("score", config.score_batch)
    sizes["evaluate.batch_size"] = ("decode", config.evaluate.batch_size)
    found = []
    for name, (kind, size) in sizes.items():
        place = world.at(kind).place
        rows = filled(size, place)
        if rows != size:
            data, fsdp, _ = place.sizes
            found.append(
                f"{name} is {size}, and data × fsdp = {data * fsdp} rows are filled up to {rows}: "
                f"{1 - size / rows:.0%} of the work is for nothing. Nearest that divides: {rows}."
            )
    return found


def _replicated(world: World) -> list[str]:
    """Return which leaves stay whole, and the nearest mesh on which none does, for each mesh."""
    places = {world.at(kind).place.sizes: world.at(kind) for kind in WORK_KINDS}
    return [line for there in places.values() for line in _replicated_on(there)]


def _replicated_on(world: World) -> list[str]:
    lost = replicated(world.model, world.place.mesh)
    if not lost:
        return []
    mesh = nearest_dividing(world)
    remedy = "No mesh of as many chips splits everything."
    if mesh is not None:
        remedy = "The nearest mesh that splits all: data={}, fsdp={}, tensor={}.".format(*mesh)
    shown = "; ".join(
        f"{name.rpartition('.')[2]} ({', '.join(axes)})" for name, axes in lost.items()
    )
    return [f"{len(lost)} leaves are not split as the table wishes: {shown}. {remedy}"]


def _weights(world: World) -> list[str]:
    path = world.loaded.path
    if stores.is_store(world.config.model.path):
        return []  # of which there are copies without weights
    if path is None or any((Path(path) / name).exists() for name in (WEIGHTS, INDEX, CHECKPOINT)):
        return []
    return [f"{path}: no weights there yet; the plan needs none, the run does."]

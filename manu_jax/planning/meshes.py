"""The mesh of each kind of work: the one on which its steps fit and take the least time.

Of all meshes of the devices each is tried by the plan's own arithmetic (estimate.py). A mesh that
leaves leaves whole which the table of shardings wishes to be split has to be so much faster that it
pays. Samples are assumed, so that a run and its plan choose alike.
"""

import dataclasses
import json
import logging
from pathlib import Path

import jax

from manu_jax import parallel
from manu_jax.amounts import amount, duration
from manu_jax.config import RunConfig
from manu_jax.context import Run
from manu_jax.folder import write_atomic
from manu_jax.place import AUTO, Sizes, given_sizes
from manu_jax.planning.chips import Target, target_here
from manu_jax.planning.estimate import estimate, towers_of
from manu_jax.planning.items import planned
from manu_jax.planning.nearest import lost_on
from manu_jax.planning.step import Item
from manu_jax.planning.world import World, assumed_world
from manu_jax.types import WORK_KINDS, ManuError, WorkKind

logger = logging.getLogger(__name__)

FILE = "meshes.json"  # in the run's folder
ROOM = 0.9  # of a chip's memory, which arithmetic may fill
WHOLE = 1.5  # so many times as fast a mesh has to be that does not divide all


@dataclasses.dataclass(frozen=True)
class Choice:
    """The mesh of a kind of work, and what it was chosen by. limit, memory: bytes of a chip.

    largest: the step that needs most. seconds: of all calls, without overlap. tried, fitting: how
    many meshes there were, and had room. "" and 0 where the run has no such work.
    """

    sizes: Sizes
    memory: float = 0.0
    limit: float = 0.0
    largest: str = ""
    seconds: float = 0.0
    is_whole: bool = True
    tried: int = 0
    fitting: int = 0

    @property
    def fits(self) -> bool:
        return self.memory <= ROOM * self.limit or not self.largest

    def text(self) -> str:
        """Return the choice and its reasons as a sentence."""
        mesh = "data={}, fsdp={}, tensor={}".format(*self.sizes)
        if not self.largest:
            return f"{mesh}: the run has no such work of its own"
        fitting = f"{self.fitting} of {self.tried} meshes have room"
        if not self.fits:
            fitting = "none of {} meshes has room; this one needs least"
            fitting = fitting.format(self.tried)
        split = "" if self.is_whole else ", though it does not divide all dimensions"
        return (
            f"{mesh}: {fitting}{split}; {amount(self.memory)} a chip for {self.largest}, "
            f"and {duration(self.seconds)} for all steps, by arithmetic"
        )


def begin(config: RunConfig, directory: Path) -> Run:
    """Return a run with the mesh of each kind of work, chosen where the config says `auto`.

    Raises ManuError where no mesh of all devices has room.
    """
    if config.mesh.choice != AUTO:
        return Run.begin(config, directory)
    if jax.device_count() == 1:
        one = dict.fromkeys(WORK_KINDS, (1, 1, 1)) | given_sizes(config.mesh, 1)
        return Run.begin(config, directory, one)
    choices = chosen(config, target_here())
    for kind, choice in choices.items():
        logger.info("mesh: %s on %s", kind, choice.text())
    lacking = [f"{kind}: {choice.text()}" for kind, choice in choices.items() if not choice.fits]
    if lacking:
        least = max(choice.memory for choice in choices.values() if not choice.fits)
        raise ManuError(
            "\n  ".join(["mesh: auto: no mesh of these devices has room.", *lacking])
            + f"\n{amount(least / ROOM)} a chip would do. Take more devices, smaller "
            "batches, remat: all or LoRA; leave out what needs most, as audit: none does; or name "
            "the mesh yourself, where you know better."
        )
    return Run.begin(config, directory, {kind: choice.sizes for kind, choice in choices.items()})


def write_choices(run: Run) -> None:
    """Write which mesh each kind of work has into a run's folder, where they were chosen."""
    if run.config.mesh.choice != AUTO:
        return
    named = {
        kind: dict(zip(parallel.AXES, mesh.devices.shape if mesh else (1, 1, 1), strict=True))
        for kind, mesh in run.meshes.items()
    }
    text = json.dumps({"devices": jax.devices()[0].device_kind, **named}, indent=1) + "\n"
    parallel.on_first_process(lambda: write_atomic(run.directory / FILE, text))


def chosen(config: RunConfig, target: Target) -> dict[WorkKind, Choice]:
    """Return the mesh of each kind of work on all devices of a target.

    A kind that the config gives a mesh keeps it. Of one that nothing fits, the mesh that needs
    least. Raises ManuError as `given_sizes`.
    """
    given = given_sizes(config.mesh, target.count)
    found: dict[WorkKind, Choice] = {}
    for kind, sizes in given.items():
        found[kind] = Choice(sizes)
    if len(found) == len(WORK_KINDS):
        return found
    world = assumed_world(config, dataclasses.replace(target, devices=None))
    items: dict[WorkKind, list[Item]] = {}
    for item in planned(world):
        items.setdefault(item.kind, []).append(item)
    for kind in WORK_KINDS:
        if kind not in found and kind in items:
            # What was chosen so far is known to a step that needs another mesh beside its own.
            sizes = {one: choice.sizes for one, choice in found.items()}
            found[kind] = _best(items[kind], dataclasses.replace(world, sizes=sizes))
    usual = next((found[kind] for kind in ("score", "decode", "train") if kind in found), None)
    sizes = (target.count, 1, 1) if usual is None else usual.sizes
    for kind in WORK_KINDS:
        found.setdefault(kind, Choice(sizes))
    return found


def all_sizes(count: int) -> list[Sizes]:
    """Return every mesh of `count` devices."""
    divisors = [size for size in range(1, count + 1) if count % size == 0]
    return [
        (data, fsdp, count // data // fsdp)
        for data in divisors
        for fsdp in divisors
        if count // data % fsdp == 0
    ]


def _best(items: list[Item], world: World) -> Choice:
    """Return the mesh that is best for some steps together."""
    found = [_choice(items, world, sizes) for sizes in all_sizes(world.target.count)]
    fitting = [choice for choice in found if choice.fits]
    if fitting:
        best = min(fitting, key=_cost)
    else:
        best = min(found, key=lambda choice: choice.memory)
    return dataclasses.replace(best, tried=len(found), fitting=len(fitting))


def _cost(choice: Choice) -> tuple[float, ...]:
    """Return what the least of is best; of two that are alike, the one with more `data`."""
    return (choice.seconds * (1 if choice.is_whole else WHOLE), *(-size for size in choice.sizes))


def _choice(items: list[Item], world: World, sizes: Sizes) -> Choice:
    there = world.on(sizes)
    towers = towers_of(there.model)
    memory, seconds, largest = 0.0, 0.0, ""
    for item in items:
        one = estimate(item, there, towers)
        seconds += one.seconds
        if one.memory >= memory:
            memory, largest = one.memory, item.name
    limit = float(world.target.memory)
    is_whole = not lost_on(world, sizes)
    return Choice(sizes, memory, limit, largest, seconds, is_whole)

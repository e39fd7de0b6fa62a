"""What to change where a step does not fit: the nearest mesh, batch or remat that does.

Changes are tried in their order of distance. Weights and optimizer are known from shapes; what the
compiler found for temporaries is scaled by the rows a chip and by what is computed again. A change
that fits by this arithmetic is compiled before it is named.
"""

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Iterator
from pathlib import Path

from manu_jax.amounts import amount
from manu_jax.config.base import Remat
from manu_jax.place import Sizes
from manu_jax.planning.compiling import Compiled, compiled, memory_of
from manu_jax.planning.shapes import bytes_held, filled, replicated
from manu_jax.planning.step import Item
from manu_jax.planning.world import World
from manu_jax.types import ManuError

logger = logging.getLogger(__name__)

MOST_COMPILED = 4  # changes that are compiled for one step
CAUTION = 0.75  # where a change did not fit, the next one has to need so much less
# What a backward pass keeps of a forward pass, relative to keeping all; from LLaVA-1.5-7B on v5e.
KEPT: dict[Remat, float] = {"none": 1.0, "dots": 0.7, "all": 0.25}


@dataclasses.dataclass(frozen=True)
class Change:
    """What is changed; None stays. distance: how far it is from the config, for their order."""

    mesh: Sizes | None = None
    batch: int | None = None
    remat: Remat | None = None
    distance: float = 0.0

    def text(self, item: Item, *, key: str = "mesh") -> str:
        """Return the change as the values of the config. key: that of the step's mesh."""
        parts = []
        if self.mesh is not None:
            parts.append("{}: {{data: {}, fsdp: {}, tensor: {}}}".format(key, *self.mesh))
        if self.batch is not None and item.batch is not None:
            parts.append(f"{item.batch[0]}: {self.batch}")
        if self.remat is not None and item.remat is not None:
            parts.append(f"{item.remat[0]}: {self.remat}")
        return ", ".join(parts)


def nearest(item: Item, world: World, found: Compiled, *, keep: Path | None = None) -> str:
    """Return the nearest change by which a step fits, as values of the config.

    found: what the step is as it stands. keep: see `compiled`. Where nothing fits on these chips,
    how many chips hold what has to lie on them.
    """
    is_compiled, num_tried = world.target.devices is not None, 0
    text = functools.partial(Change.text, item=item, key=mesh_key(item, world))
    known = found.memory.temporaries or 0
    for change in sorted(changes(item, world), key=lambda change: change.distance):
        room = world.target.memory * CAUTION**num_tried
        if estimate(item, world, change, temporaries=known) > room:
            continue
        if not is_compiled:
            return f"{text(change)} (by arithmetic alone, without temporaries)"
        if num_tried == MOST_COMPILED:
            break
        num_tried += 1
        there = _changed(world, change)
        tried = compiled(item.make(there, change.batch, change.remat), there, keep=keep)
        logger.info("plan: %s with %s: tried", item.name, text(change))
        if not tried.refused and tried.memory.total <= world.target.memory:
            return f"{text(change)} fits, with {amount(tried.memory.total)} (compiled)"
    remedy = f"Try {_chips_needed(found, world)} chips"
    if world.target.is_here:
        remedy = "Lower the batch, or plan for a machine with more memory"
    return (
        f"nothing near fits on {max(_counts(world))} chips; weights, optimizer and other arguments "
        f"alone take {amount(_arguments(found))} of each. {remedy}"
    )


def changes(item: Item, world: World) -> Iterator[Change]:
    """Yield every change of mesh, batch and remat, alone and together.

    Meshes are of as many chips; where the run's leaves chips idle, of all of them too.
    """
    remats: list[Remat | None] = [None]
    if item.remat is not None and item.remat[1] != "all":
        remats.append("all")
    batches: list[int | None] = [None]
    if item.batch is not None:
        multiple = filled(1, world.place)
        size = item.batch[1]
        while size > multiple:
            size = max(size // 2, multiple)
            batches.append(size)
    meshes = [mesh for count in _counts(world) for mesh in other_meshes(world, count)]
    for mesh in (None, *meshes):
        for batch, remat in itertools.product(batches, remats):
            if (mesh, batch, remat) == (None, None, None):
                continue
            distance = _distance(mesh, world.place.sizes) + 1.0 * (remat is not None)
            if batch is not None and item.batch is not None:
                # A smaller batch is another training; another mesh changes no number.
                distance += 3.0 * math.log2(item.batch[1] / batch)
            yield Change(mesh, batch, remat, distance)


def other_meshes(world: World, number: int) -> list[Sizes]:
    """Return the other meshes of so many chips on which every leaf is split as the table wishes.

    Where there is none, all other meshes.
    """
    found = [
        (data, fsdp, number // data // fsdp)
        for data in _divisors(number)
        for fsdp in _divisors(number // data)
        if (data, fsdp, number // data // fsdp) != world.place.sizes
    ]
    whole = [sizes for sizes in found if not lost_on(world, sizes)]
    return whole or found


def nearest_dividing(world: World) -> Sizes | None:
    """Return the nearest mesh of as many chips that divides every dimension; None: this one does,
    or there is none."""
    if not lost_on(world, world.place.sizes):
        return None
    others = other_meshes(world, chips_used(world))
    whole = [sizes for sizes in others if not lost_on(world, sizes)]
    return min(whole, key=lambda sizes: _distance(sizes, world.place.sizes), default=None)


def chips_used(world: World) -> int:
    """Return how many of the target's chips the mesh has; those of all kinds of work have alike."""
    return math.prod(world.place.sizes)


def lost_on(world: World, sizes: Sizes) -> bool:
    """Return whether a mesh leaves a leaf whole that the table wishes to be split."""
    return bool(replicated(world.model, mesh_of(world, sizes)))


def estimate(item: Item, world: World, change: Change, *, temporaries: int) -> float:
    """Return the bytes a chip of a step after a change. temporaries: before it."""
    there = _changed(world, change)
    try:
        step = item.make(there, change.batch, change.remat)
        before = item.make(world, None, None)
    except ManuError:
        return math.inf
    rows = 1.0
    if before.rows:
        rows = _rows_a_chip(step.rows, there) / _rows_a_chip(before.rows, world)
    again = 1.0
    if change.remat is not None and item.remat is not None:
        again = KEPT[change.remat] / KEPT[item.remat[1]]
    # Of activations a chip has the rows of its part of the batch, and the neurons of its part of
    # `tensor`: on as many chips the two go against each other.
    split = world.place.sizes[2] / there.place.sizes[2]
    sizes = there.place.sizes
    if lost_on(world, world.place.sizes) and not lost_on(world, sizes):
        split /= sizes[2]  # the heads that were whole on each chip, and their cache, are split
    outputs, outputs_before = bytes_held(step.like), bytes_held(before.like)
    activations = max(temporaries - outputs_before, 0) * rows * again * split
    return memory_of(step, None).total + outputs + activations


def mesh_key(item: Item, world: World) -> str:
    """Return the key of the config that says on which mesh a step runs."""
    return "mesh" if _has_one_mesh(world) else f"mesh.{item.kind}"


def mesh_of(world: World, sizes: Sizes) -> object:
    """Return a mesh of sizes alone."""
    from manu_jax.planning.shapes import Place

    return Place.of(sizes, None).mesh


def _has_one_mesh(world: World) -> bool:
    return len({*world.sizes.values()}) <= 1


def _counts(world: World) -> list[int]:
    """Return of how many chips meshes are tried; one of several meshes can't get others alone."""
    used, count = chips_used(world), world.target.count
    return [used, count] if used < count and _has_one_mesh(world) else [used]


def _changed(world: World, change: Change) -> World:
    return world if change.mesh is None else world.on(change.mesh)


def _rows_a_chip(rows: int, world: World) -> float:
    data, fsdp, _ = world.place.sizes
    return rows / (data * fsdp)


def _distance(mesh: Sizes | None, given: Sizes) -> float:
    if mesh is None:
        return 0.0
    return sum(abs(math.log2(one / other)) for one, other in zip(mesh, given, strict=True)) / 2


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _arguments(found: Compiled) -> int:
    return found.memory.total - (found.memory.temporaries or 0)


def _chips_needed(found: Compiled, world: World) -> int:
    """Return the chips, in powers of two times these, that have room if all is split evenly."""
    count = world.target.count
    while _arguments(found) * chips_used(world) / count > 0.8 * world.target.memory:
        count *= 2
    return max(count, 2 * world.target.count)

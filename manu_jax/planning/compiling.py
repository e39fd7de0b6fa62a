"""A step compiled from shapes: what it needs of a chip's memory, computes, and moves.

A result is kept under the hash of the program that was lowered, of the target and of the versions,
so that a plan that is made again compiles what has changed.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import re
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from manu_jax import parallel
from manu_jax.folder import write_atomic
from manu_jax.planning.collectives import Collective, collectives
from manu_jax.planning.cost import Flops, flops
from manu_jax.planning.shapes import Place, bytes_held
from manu_jax.planning.step import OPTIMIZER, OTHER, WEIGHTS, Step
from manu_jax.planning.world import World

logger = logging.getLogger(__name__)

NO_ROOM = re.compile(r"RESOURCE_EXHAUSTED|[Oo]ut of memory")
AMOUNT = re.compile(r"\(?(\d+(?:\.\d+)?)([KMGT])i?B?\)?\b")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
FORMAT = 1  # of a kept result


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes a chip at the step's peak; temporaries are all that is not an argument, outputs too."""

    weights: int
    optimizer: int
    other: int
    temporaries: int | None  # None: nothing was compiled

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.other + (self.temporaries or 0)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a step is. flops: on all chips. moved: its collectives. seconds: of compiling; None: it
    was not compiled, and nothing is known of what it moves. refused: the compiler's words, where it
    found no room."""

    memory: Memory
    flops: Flops
    moved: tuple[Collective, ...]
    compile_seconds: float | None
    refused: str = ""
    is_kept: bool = False


def compiled(step: Step, world: World, *, keep: Path | None = None) -> Compiled:
    """Return what a step is on the world's place; compiles nothing where that is arithmetic alone.

    keep: a folder of results. The compiled program goes into JAX's cache, if it is on.
    """
    place = world.place
    is_compiled = world.target.devices is not None
    with _traced_for(place if is_compiled else None):
        traced = step.function.trace(*step.args, **step.kwargs)
        found = flops(traced.jaxpr.jaxpr, trips=step.trips)
        if not is_compiled:
            return Compiled(memory_of(step, None), found, (), None)
        platform = place.device.platform
        lowered = traced.lower(lowering_platforms=(platform,))
        path = None if keep is None else keep / f"{_key(lowered.as_text(), step, world)}.json"
        kept = None if path is None else _kept(path, step, found)
        if kept is not None:
            return kept
        start = time.monotonic()
        values: dict[str, Any] = {}
        try:
            with warnings.catch_warnings():
                # JAX writes programs for a described TPU into its cache, and can't read them there.
                warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
                program = lowered.compile()
            values = _measures(program, step, place.sizes, platform=platform)
        except jax.errors.JaxRuntimeError as error:
            if NO_ROOM.search(str(error)) is None:
                raise
            values["refused"] = " ".join(str(error).split())[:400]
        values["seconds"] = time.monotonic() - start
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(values))
    return _compiled_of(step, values, found, is_kept=False)


def _kept(path: Path, step: Step, found: Flops) -> Compiled | None:
    """Return what was kept of a step; None: nothing, or a damaged file, which is made anew."""
    if not path.exists():
        return None
    try:
        return _compiled_of(step, json.loads(path.read_text()), found, is_kept=True)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s: damaged (%r); the step is compiled again", path, error)
        return None


def _traced_for(place: Place | None) -> contextlib.AbstractContextManager:
    """Set what a program is traced for: a mesh, or one device of another platform than this."""
    if place is None or place.mesh is not None or place.device.platform == jax.default_backend():
        return parallel.on_mesh(None if place is None else place.mesh)
    device = AbstractDevice(place.device.device_kind, None, place.device.platform)
    return use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


def memory_of(step: Step, temporaries: int | None) -> Memory:
    """Return what a step has on a chip; temporaries: None: they are not known."""
    parts = {
        name: bytes_held(step.parts.get(name, ())) + bytes_held(step.resident.get(name, ()))
        for name in (WEIGHTS, OPTIMIZER)
    }
    given = sum(bytes_held(tree) for tree in step.parts.values())
    other = bytes_held(step.arrays) - given + bytes_held(step.resident.get(OTHER, ()))
    return Memory(parts[WEIGHTS], parts[OPTIMIZER], other, temporaries)


def _measures(
    program: Any, step: Step, sizes: tuple[int, int, int], *, platform: str
) -> dict[str, Any]:
    analysis = program.memory_analysis()
    arguments = analysis.argument_size_in_bytes
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    beside = max(outputs, 0) + analysis.temp_size_in_bytes
    peak = arguments + beside
    if platform == "tpu":
        # It is less than the sum where an output takes the place of a temporary. Other compilers
        # leave temporaries out of it.
        peak = analysis.peak_memory_in_bytes
    moved = collectives(program.as_text(), trips=step.trips, devices=math.prod(sizes))
    return {
        "temporaries": max(peak - arguments, 0),
        "moved": [dataclasses.asdict(one) for one in moved],
    }


def _compiled_of(step: Step, values: dict[str, Any], found: Flops, *, is_kept: bool) -> Compiled:
    moved = tuple(Collective(**one) for one in values.get("moved", ()))
    refused = values.get("refused", "")
    temporaries = values.get("temporaries")
    if refused:
        temporaries = _asked_for(refused)
    memory = memory_of(step, temporaries)
    return Compiled(memory, found, moved, values["seconds"], refused, is_kept)


def _asked_for(refused: str) -> int:
    """Return the first amount of memory that the compiler names: what it would need."""
    amount = AMOUNT.search(refused)
    return 0 if amount is None else int(float(amount.group(1)) * UNITS[amount.group(2)])


def _key(program: str, step: Step, world: World) -> str:
    versions = [FORMAT, jax.__version__, world.target.name, world.place.sizes, step.trips]
    if world.target.chip is not None:
        # Absent where a test compiles a chip's programs for this machine.
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(metadata.version("libtpu"))
    text = json.dumps(versions) + program
    return hashlib.sha256(text.encode()).hexdigest()[:32]

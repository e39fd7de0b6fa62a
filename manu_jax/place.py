"""Where a run works: its folder with the times of its stages, and a mesh for each kind of work."""

import contextlib
import dataclasses
import gc
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jax

from manu_jax import parallel
from manu_jax.config import MeshSection, RunConfig
from manu_jax.folder import write_atomic
from manu_jax.leaves import leaves
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn import attention
from manu_jax.types import WORK_KINDS, ManuError, WorkKind

logger = logging.getLogger(__name__)

OF_METHOD = " of "  # between stage and name, in the times of single methods
AUTO = "auto"
Sizes = tuple[int, int, int]  # of a mesh: data, fsdp, tensor


@dataclasses.dataclass(eq=False)
class RunPlace:
    """A run's config, its folder, the mesh of the work at hand, and those of each kind of work.

    meshes: empty: one mesh for all kinds of work.
    """

    config: RunConfig
    directory: Path
    mesh: jax.sharding.Mesh | None
    meshes: Mapping[WorkKind, jax.sharding.Mesh | None] = dataclasses.field(default_factory=dict)

    @classmethod
    def begin(
        cls, config: RunConfig, directory: Path, sizes: Mapping[WorkKind, Sizes] | None = None
    ) -> Self:
        """Return the run with its meshes; one device alone needs none.

        sizes: of the mesh of each kind of work; None: those that the config gives.
        """
        attention.use(config.attention)
        sizes = sizes or given_sizes(config.mesh, jax.device_count())
        made = {size: parallel.make_mesh(*size) for size in {*sizes.values()}}
        number = next(iter(made.values())).size
        if jax.process_count() > 1 and number != jax.device_count():
            raise ManuError(
                f"mesh: {number} devices, but the {jax.process_count()} processes have "
                f"{jax.device_count()}. Make the mesh span them all (one size may be −1)."
            )
        meshes: dict[WorkKind, jax.sharding.Mesh | None] = {
            kind: None if number == 1 else made[sizes[kind]] for kind in WORK_KINDS
        }
        return cls(config, directory, meshes["decode"], meshes)

    def turn_to(self, kind: WorkKind) -> None:
        """Do a kind of work from now on: vanilla moves to its mesh, and models are read there.

        What others hold of vanilla stays where it was.
        """
        mesh = self.meshes.get(kind, self.mesh)
        if mesh is None or mesh is self.mesh:
            return
        self.mesh = mesh
        if "vanilla" in self.__dict__:
            self.__dict__["vanilla"] = moved([self.__dict__.pop("vanilla")], mesh)
            gc.collect()  # a first compilation leaves what moved in cycles of references
            sizes = "data={} × fsdp={} × tensor={}".format(*mesh.devices.shape)
            logger.info("mesh: the vanilla model moved to %s, to %s", sizes, kind)

    @property
    def kind(self) -> WorkKind:
        """The work at hand, or another kind that has the same mesh."""
        for kind in WORK_KINDS:
            if self.meshes.get(kind) is self.mesh:
                return kind
        return "decode"

    def is_at(self, kind: WorkKind) -> bool:
        """Whether a kind of work is done on the mesh of the work at hand."""
        return self.meshes.get(kind, self.mesh) is self.mesh

    @contextlib.contextmanager
    def work(self, kind: WorkKind) -> Iterator[None]:
        """Do a kind of work within a block, and then what was done before.

        After an error nothing moves: of several processes the others may not take part.
        """
        before = self.kind
        self.turn_to(kind)
        yield
        self.turn_to(before)

    def add_time(self, stage: str, seconds: float) -> None:
        """Add to the seconds that a stage has taken, over all calls on this folder."""
        self._write_times(lambda times: {stage: times.get(stage, 0.0) + seconds})

    def set_method_time(self, stage: str, name: str, seconds: float) -> None:
        """Say how many seconds a stage took to make what is a method's own.

        A method that is made anew replaces its time. Of a training that was killed, the call that
        ended it counts.
        """
        self._write_times(lambda times: {f"{stage}{OF_METHOD}{name}": seconds})

    def times(self) -> dict[str, float]:
        """Return the seconds that each stage has taken so far, and each stage for each method."""
        path = self.directory / "times.json"
        if not path.exists():
            return {}
        try:
            return {str(name): float(spent) for name, spent in json.loads(path.read_text()).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ManuError(
                f"{path}: damaged ({error}). Delete the file and give the command again."
            ) from error

    def _write_times(self, changed: Callable[[dict[str, float]], dict[str, float]]) -> None:
        def write() -> None:
            times = self.times()
            times |= {name: round(seconds, 2) for name, seconds in changed(times).items()}
            write_atomic(self.directory / "times.json", json.dumps(times, indent=1) + "\n")

        parallel.on_first_process(write)


def given_sizes(section: MeshSection, count: int) -> dict[WorkKind, Sizes]:
    """Return the mesh that the config gives each kind of work, of at most `count` devices.

    Kinds whose mesh is to be chosen are left out. Raises ManuError for sizes that do not fit, and
    where kinds have meshes of different numbers of devices, between which weights can't move.
    """
    found: dict[WorkKind, Sizes] = {}
    for kind in WORK_KINDS:
        sizes = section.of(kind)
        if sizes is not None:
            found[kind] = parallel.mesh_sizes(sizes.data, sizes.fsdp, sizes.tensor, count=count)
    numbers = {kind: data * fsdp * tensor for kind, (data, fsdp, tensor) in found.items()}
    if section.choice == AUTO and found:
        numbers[AUTO] = count
    if len({*numbers.values()}) > 1:
        told = ", ".join(f"{kind} {number}" for kind, number in numbers.items())
        raise ManuError(
            f"mesh: weights move between the meshes, which then have the same devices; got {told}. "
            "Give each the same product of data, fsdp and tensor; a kind that is not named has "
            "those of mesh itself, as in mesh: {fsdp: 8, decode: {tensor: 8}}."
        )
    return found


def moved(held: list[Loaded], mesh: jax.sharding.Mesh) -> Loaded:
    """Return the model of a list, which is then empty, on another mesh of the same devices.

    Leaves that somebody else holds stay where they are, beside those that moved.
    """
    loaded = held.pop()
    shell, structure = dataclasses.replace(loaded, model=None), jax.tree.structure(loaded.model)
    moving: dict[str, Any] = leaves(loaded.model)
    del loaded
    parallel.move(moving, mesh)
    return dataclasses.replace(shell, model=structure.unflatten(moving.values()), mesh=mesh)

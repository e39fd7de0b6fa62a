"""One compiled program of a run: its function, its arguments as shapes, and how often it runs."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from manu_jax.config.base import Remat
from manu_jax.planning.world import World
from manu_jax.types import WorkKind

KINDS: dict[str, WorkKind] = {"train": "train", "unlearn": "train", "evaluate": "decode"}
WEIGHTS, OPTIMIZER, OTHER = "weights", "optimizer", "other"


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """A program of a run as it is compiled.

    calls: in the whole run, in units of this shape (the largest of its kind). rows: examples a
    call; real_rows: those of them that are not there to fill up the mesh. parts: {WEIGHTS or
    OPTIMIZER: those of the arguments}; the rest is OTHER. resident: the same, of what lies on the
    devices beside the arguments. like: what new outputs, as a gradient, are as large as. copied:
    arguments, as often as a call holds a copy of them. trips: of loops whose end is not in the
    program. reads: how often a call reads the weights.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    calls: float
    rows: int = 0
    real_rows: int = 0
    parts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    resident: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    like: Any = ()
    copied: Sequence[Any] = ()
    trips: float = 1.0
    reads: float = 1.0

    @property
    def arrays(self) -> list[Any]:
        """The shapes of all arguments that are arrays."""
        found = jax.tree.leaves((self.args, list(self.kwargs.values())))
        return [leaf for leaf in found if isinstance(leaf, jax.ShapeDtypeStruct)]


@dataclasses.dataclass(frozen=True)
class Item:
    """A step that a run takes, and what of it can be changed where it does not fit.

    stage: of the run. make: (world, rows a batch or None, remat or None) → the step; None: as the
    config has it. batch, remat: the keys of the config that say so, and their values; None: there
    is none. work: its kind; None: that of its stage.
    """

    name: str
    stage: str
    make: Callable[[World, int | None, Remat | None], Step]
    batch: tuple[str, int] | None = None
    remat: tuple[str, Remat] | None = None
    work: WorkKind | None = None

    @property
    def kind(self) -> WorkKind:
        """The kind of work that the step is, which says the mesh that it runs on."""
        return self.work or KINDS.get(self.stage, "score")

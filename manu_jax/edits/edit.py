"""Edits: what a method makes of a model, as a small value of its own.

An edit is applied to the model that it was made for, undone bit for bit, composed with others,
described, and kept in a file. All kinds are pytrees of float arrays, so that training and attacks
differentiate in them.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import jax
import numpy as np

from manu_jax.arrays import REMEDY, read_arrays
from manu_jax.arrays import made_from as made_from_of
from manu_jax.edits.gates import GateEdit
from manu_jax.edits.leafwise import FORMAT, below, check, check_finite, save
from manu_jax.edits.low_rank import LowRank
from manu_jax.edits.masks import MaskEdit
from manu_jax.edits.neurons import WrittenNeurons
from manu_jax.edits.weights import NewWeights
from manu_jax.fingerprint import weights_hash
from manu_jax.folder import ForeignErrors
from manu_jax.models.loaded import Loaded
from manu_jax.types import ManuError


@runtime_checkable
class Edit(Protocol):
    """A change of a model that knows what it changed: a frozen dataclass, registered as a pytree.

    kind: its name in EDITS. separable: whether what was written stands apart in the weights, so
    that it can be found and removed again without the original.
    """

    kind: ClassVar[str]

    @property
    def separable(self) -> bool: ...

    def edited(self, model: Any) -> Any:
        """Return the model with the edit, in the leaves' dtypes.

        Pure: for `jax.jit`, and differentiable in the arrays of the edit.
        """
        ...

    def apply(self, loaded: Loaded) -> Loaded:
        """Return a new Loaded with the edit; ManuError where it does not fit the model."""
        ...

    def undo(self, edited: Loaded, original: Loaded) -> Loaded:
        """Return `edited` with all that this edit changed as it is in `original`, bit for bit.

        original: the model that the edit was applied to.
        """
        ...

    def describe(self) -> list[str]:
        """Return what the edit changes, one line a tower or leaf."""
        ...

    def faults(self, loaded: Loaded) -> list[str]:
        """Return what keeps the edit from being applied to the model, a clause each."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return what the edit is beside its arrays, as JSON values."""
        ...

    def save(self, path: str | os.PathLike, loaded: Loaded, made_from: Mapping[str, Any]) -> None:
        """Write the edit and what it was made from (JSON values), float32, atomically.

        loaded: the model that it is made for. Every process calls it; the first writes.
        """
        ...

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Self:
        """Return the edit of a file's arrays and settings; an error says what is wrong."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Composed:
    """Edits that are applied one after the other, the first of them to the original."""

    edits: tuple[Any, ...]

    kind: ClassVar[str] = "composed"
    name: ClassVar[str] = "the edit"

    @property
    def separable(self) -> bool:
        return any(edit.separable for edit in self.edits)

    def edited(self, model: Any) -> Any:
        for edit in self.edits:
            model = edit.edited(model)
        return model

    def apply(self, loaded: Loaded) -> Loaded:
        for edit in self.edits:
            loaded = edit.apply(loaded)
        return loaded

    def undo(self, edited: Loaded, original: Loaded) -> Loaded:
        originals = [original]
        for edit in self.edits[:-1]:
            originals.append(edit.apply(originals[-1]))
        for edit in reversed(self.edits):
            edited = edit.undo(edited, originals.pop())
        return edited

    def describe(self) -> list[str]:
        return [line for edit in self.edits for line in edit.describe()]

    def faults(self, loaded: Loaded) -> list[str]:
        """Return the first edit's; those of later ones depend on what it makes of the model."""
        return self.edits[0].faults(loaded)

    def settings(self) -> dict[str, Any]:
        parts = [{"kind": edit.kind, "settings": edit.settings()} for edit in self.edits]
        return {"parts": parts}

    def save(self, path: str | os.PathLike, loaded: Loaded, made_from: Mapping[str, Any]) -> None:
        save(self, path, loaded=loaded, made_from=made_from)

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Self:
        parts, found = settings["parts"], below(arrays, "edits")
        by_part: list[dict[str, np.ndarray]] = [{} for _ in parts]
        for name, array in found.items():
            number, _, rest = name.partition(".")
            by_part[int(number)][rest] = array
        edits = (
            EDITS[part["kind"]].restored(own, part["settings"])
            for part, own in zip(parts, by_part, strict=True)
        )
        return cls(tuple(edits))


# By the `kind` that a file says.
EDITS: dict[str, type[Any]] = {
    edit.kind: edit for edit in (MaskEdit, GateEdit, WrittenNeurons, LowRank, NewWeights, Composed)
}


def compose(edits: Sequence[Edit]) -> Edit:
    """Return one edit that applies several in order; of one alone, that one."""
    if not edits:
        raise ValueError("no edits to compose")
    parts = [part for edit in edits for part in getattr(edit, "edits", (edit,))]
    return parts[0] if len(parts) == 1 else Composed(tuple(parts))


def load(path: str | os.PathLike, loaded: Loaded | None = None) -> tuple[Edit, dict[str, Any]]:
    """Return an edit (NumPy) and what it was made from.

    loaded: the model to edit. Raises ManuError where the edit was made for another one, or the file
    is damaged.
    """
    arrays, metadata = read_arrays(path, FORMAT)
    what = f"edit {path}"
    made_from = made_from_of(metadata, what)
    kind = metadata.get("kind", "")
    if kind not in EDITS:
        raise ManuError(f"{what}: its kind is {kind!r}; known: {', '.join(EDITS)}. {REMEDY}")
    with ForeignErrors(what, f'its content is not that of an edit of the kind "{kind}"', REMEDY):
        wrong = [name for name, array in arrays.items() if array.dtype != np.float32]
        if wrong:
            raise ValueError(f"expected float32: {', '.join(sorted(wrong))}")
        edit = EDITS[kind].restored(arrays, json.loads(metadata["settings"]))
    check_finite(arrays, what)
    if loaded is not None:
        found = weights_hash(loaded.model)
        check(edit, loaded, what)
        if found != made_from.get("model"):
            raise ManuError(
                f"{what} was made for the model {made_from.get('model')}, this is {found}. "
                "Load the one that the edit was made for, or make the edit for this one."
            )
    return edit, made_from

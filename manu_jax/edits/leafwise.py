"""What all edits of a model's leaves share: apply, undo, and the file of an edit."""

import abc
import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.arrays import REMEDY, write_arrays
from manu_jax.fingerprint import weights_hash
from manu_jax.folder import versions
from manu_jax.leaves import leaves, path_name
from manu_jax.models.loaded import Loaded
from manu_jax.parallel import gather, is_first_process, spec_of, tree_shardings
from manu_jax.types import Array, ManuError

FORMAT = "edit"
SHOWN = 5  # faults in an error

Changes = Mapping[str, Callable[[jax.Array], jax.Array]]  # {path of a leaf: its change}
# {path of a leaf: what the edit changed in the first is as in the second, the original's}
Restorations = Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]]


class LeafEdit(abc.ABC):
    """An edit that changes leaves of the model, each on its own; see `edit.Edit`.

    A subclass is a frozen dataclass registered as a pytree. Its fields are float arrays, or
    dictionaries of them, and static settings that JSON holds.
    """

    kind: ClassVar[str]

    @property
    @abc.abstractmethod
    def separable(self) -> bool:
        """Whether what was written can be found and removed without the original."""

    name: ClassVar[str] = "the edit"  # in errors

    @abc.abstractmethod
    def faults(self, loaded: Loaded) -> list[str]:
        """Return what keeps the edit from being applied to the model, a clause each."""

    @abc.abstractmethod
    def changes(self, model: Any) -> Changes:
        """Return the change of each leaf that the edit touches."""

    @abc.abstractmethod
    def restorations(self, model: Any) -> Restorations:
        """Return, for each leaf that the edit touches, what takes its changes back."""

    @abc.abstractmethod
    def describe(self) -> list[str]:
        """Return what the edit changes, one line a tower or leaf."""

    @classmethod
    @abc.abstractmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Self:
        """Return the edit of a file's arrays (`leaves` of it) and static settings.

        What it raises says that they are not those of such an edit.
        """

    def edited(self, model: Any) -> Any:
        """Return the model with the edit, in the leaves' dtypes.

        Pure: for `jax.jit`, and differentiable in the arrays of the edit.
        """
        return changed(model, self.changes(model))

    def apply(self, loaded: Loaded) -> Loaded:
        """Return a new Loaded with the edit; ManuError where it does not fit the model."""
        check(self, loaded)
        return placed(loaded.replace_model(put(self, loaded.mesh).edited(loaded.model)))

    def undo(self, edited: Loaded, original: Loaded) -> Loaded:
        """Return `edited` with all that this edit changed as it is in `original`, bit for bit.

        original: the model that the edit was applied to. ManuError where its weights have other
        shapes.
        """
        check(self, original)
        sources, found = leaves(original.model), leaves(edited.model)
        restorations = self.restorations(original.model)
        wrong = [
            name
            for name in restorations
            if name not in found or found[name].shape != sources[name].shape
        ]
        if wrong:
            raise ManuError(
                f"{self.name} can't be undone: {', '.join(wrong[:SHOWN])} differ in shape from the "
                "original. Undo later edits first."
            )
        changes = {
            name: lambda leaf, name=name, restore=restore: restore(leaf, sources[name])
            for name, restore in restorations.items()
        }
        return placed(edited.replace_model(changed(edited.model, changes)))

    def settings(self) -> dict[str, Any]:
        """Return the static fields, which JSON holds."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
            if field.metadata.get("static")
        }

    def save(self, path: str | os.PathLike, loaded: Loaded, made_from: Mapping[str, Any]) -> None:
        """Write the edit and what it was made from (JSON values), float32, atomically.

        loaded: the model that it is made for. Every process calls it; the first writes.
        """
        save(self, path, loaded=loaded, made_from=made_from)


def changed(model: Any, changes: Changes) -> Any:
    """Return the model with some of its leaves changed; the others are the same arrays.

    A changed leaf is split over the mesh that is set (`parallel.on_mesh`) as its name says.
    """
    rest = dict(changes)

    def visit(path: Any, leaf: Any) -> Any:
        name = path_name(path)
        change = rest.pop(name, None)
        return leaf if change is None else split(name, change(leaf))

    model = jax.tree_util.tree_map_with_path(visit, model)
    assert not rest, f"the edit changes leaves that the model lacks: {sorted(rest)}"
    return model


def split(name: str, leaf: jax.Array) -> jax.Array:
    """Return a leaf laid out over the mesh that is set, as its name says."""
    mesh: Any = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return leaf
    return jax.lax.with_sharding_constraint(leaf, spec_of(name, leaf.shape, mesh))


def put(edit: Any, mesh: jax.sharding.Mesh | None) -> Any:
    """Place the arrays of an edit on the devices, split as their names say."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, edit)
    return jax.device_put(edit, tree_shardings(edit, mesh))


def placed(loaded: Loaded) -> Loaded:
    """Return a Loaded with each leaf where its mesh has it; those that are there stay."""
    if loaded.mesh is None:
        return loaded
    return loaded.replace_model(
        jax.device_put(loaded.model, tree_shardings(loaded.model, loaded.mesh))
    )


def along(values_LF: Array, leaf: jax.Array, axis: int) -> jax.Array:
    """Return values of layers and neurons in the form that broadcasts to a leaf [L, …].

    axis: that of the leaf's neurons.
    """
    shape = [1] * leaf.ndim
    shape[0], shape[axis] = leaf.shape[0], leaf.shape[axis]
    return jnp.asarray(values_LF).reshape(shape)


def check(edit: Any, loaded: Loaded, what: str = "") -> None:
    """Raise ManuError where an edit does not fit the model."""
    faults = edit.faults(loaded)
    if faults:
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise ManuError(
            f"{what or edit.name} does not fit the model: {'; '.join([*faults[:SHOWN], *more])}."
            " Was it made for another model?"
        )


def save(
    edit: Any, path: str | os.PathLike, *, loaded: Loaded, made_from: Mapping[str, Any]
) -> None:
    """Write an edit; see `LeafEdit.save`."""
    source = {"model": weights_hash(loaded.model), "versions": versions()}
    write(edit, path, {**made_from, **source})


def write(edit: Any, path: str | os.PathLike, made_from: Mapping[str, Any]) -> None:
    """Write an edit with all that it was made from, the hash of its model ("model") among it."""
    arrays = {name: np.asarray(a, np.float32) for name, a in leaves(gather(edit)).items()}
    if is_first_process():
        metadata = {
            "kind": edit.kind,
            "settings": json.dumps(edit.settings(), sort_keys=True),
            "made_from": json.dumps(dict(made_from), sort_keys=True),
        }
        write_arrays(path, FORMAT, arrays, metadata=metadata)


def below(arrays: Mapping[str, np.ndarray], field: str) -> dict[str, np.ndarray]:
    """Return the arrays of a field that is a dictionary, by their keys in it.

    Raises ValueError where there are others.
    """
    start = f"{field}."
    others = [name for name in arrays if not name.startswith(start)]
    if others or not arrays:
        raise ValueError(f"expected arrays of {field}, got {', '.join(others) or 'none'}")
    return {name.removeprefix(start): array for name, array in arrays.items()}


def check_finite(arrays: Mapping[str, np.ndarray], what: str) -> None:
    """Raise ManuError where arrays hold NaN or infinite values."""
    bad = [name for name, array in sorted(arrays.items()) if not np.isfinite(array).all()]
    if bad:
        raise ManuError(f"{what}: not finite (NaN or infinite): {', '.join(bad[:SHOWN])}. {REMEDY}")


def whole_numbers(values: Any) -> tuple[int, ...]:
    """Return a list of whole numbers as a tuple; ValueError for anything else."""
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise ValueError(f"expected a list of whole numbers, got {values!r:.60}")
    return tuple(values)


def shape_fault(name: str, array: Any, shape: tuple[int, ...]) -> list[str]:
    """Return what is wrong with the shape of an array, [] if nothing."""
    found = tuple(np.shape(array))
    return [] if found == shape else [f'"{name}" has shape {found}, expected {shape}']

"""Edits and masks in files, read alike; their unions and differences; what two of them share.

A run writes a mask as `mask.safetensors` and every other edit as `edit.safetensors`. What is made
here of several files is one edit, for the model that all of them were made for.
"""

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from manu_jax import stores
from manu_jax.arrays import PREFIX, REMEDY
from manu_jax.edits import edit as edits
from manu_jax.edits import leafwise, masks, removed
from manu_jax.edits.edit import Edit
from manu_jax.edits.gates import GateEdit
from manu_jax.edits.masks import MaskEdit
from manu_jax.edits.weights import NewWeights
from manu_jax.folder import ForeignErrors, expand_path, file_hash, versions
from manu_jax.leaves import leaves
from manu_jax.models.loaded import Loaded
from manu_jax.types import Array, ManuError, Neurons

SHOWN = 12  # arrays in a comparison
OWN = ("versions", "union", "difference")  # of what a file says: not what tells files apart


@dataclasses.dataclass(frozen=True, eq=False)
class EditFile:
    """An edit (NumPy) as a file holds it: what it was made from, and for which model."""

    path: Path
    edit: Edit
    made_from: Mapping[str, Any]

    @property
    def model(self) -> str:
        """The hash of the model that the edit was made for (`fingerprint.weights_hash`)."""
        return str(self.made_from.get("model", ""))

    @property
    def name(self) -> str:
        """What made it: the name of a method; "" where the file does not say."""
        return str(self.made_from.get("name") or self.made_from.get("preset") or "")


def read(path: str | os.PathLike, loaded: Loaded | None = None) -> EditFile:
    """Return the edit of a file of either form; a mask is an edit of the kind "mask".

    loaded: the model to edit. Raises ManuError where the edit was made for another one, or the file
    is missing, damaged or something else.
    """
    place = expand_path(path)
    if not place.is_file():
        raise ManuError(f"edit {path}: there is no such file. Give an edit or a mask of a run.")
    if _form_of(place, path) == PREFIX + masks.FORMAT:
        mask, made_from = masks.load(place, loaded)
        return EditFile(place, MaskEdit.of(mask), made_from)
    edit, made_from = edits.load(place, loaded)
    return EditFile(place, edit, made_from)


def check_new(path: str | os.PathLike, *, beside: Sequence[str], is_side: bool = False) -> None:
    """Raise ManuError where a file to be written would replace what is no earlier one of its kind.

    beside: the files and folders that are read or written beside it. is_side: it is to hold what an
    edit removes; else an edit.
    """
    place = expand_path(path)
    for other in beside:
        if stores.lies_in(place, expand_path(other)):
            raise ManuError(
                f"{path}: {other} is read or written here as well, and would be damaged. Give the "
                "name of a new file outside."
            )
    if place.is_dir():
        raise ManuError(f"{path}: it is a folder. Give the name of a new file.")
    if not place.is_file():
        return
    forms = [removed.FORMAT] if is_side else [leafwise.FORMAT, masks.FORMAT]
    with contextlib.suppress(ManuError):
        if _form_of(place, path) in [PREFIX + form for form in forms]:
            return
    raise ManuError(
        f"{path}: it is there already, and is {'no such side file' if is_side else 'no edit'}. "
        "Nothing was changed. Give the name of a new file, or move this one away."
    )


def check_apart(output: str, *others: str) -> None:
    """Raise ManuError where a folder to be written is one that is read, or lies in it."""
    for other in others:
        if stores.lies_in(expand_path(output), expand_path(other)):
            raise ManuError(
                f"{output}: {other} is read for it, and would be replaced or changed. Give the "
                "name of a new folder outside."
            )


def _form_of(place: Path, path: str | os.PathLike) -> str:
    """Return the format that a safetensors file says it has; "" where it says none."""
    with ForeignErrors(f"edit {path}", "damaged or cut short", REMEDY):
        with stores.local_file(place) as local, safetensors.safe_open(local, "numpy") as file:
            return (file.metadata() or {}).get("format", "")


def union(files: Sequence[EditFile]) -> Edit:
    """Return the edit that does what all of them do: masks joined, or gates multiplied.

    Raises ManuError where they were made for different models, and for edits that write weights:
    each of these is right on the model that it was made for, and on no other.
    """
    _check_one_model(files)
    if all(isinstance(file.edit, MaskEdit) for file in files):
        joined: Neurons = {}
        for file in files:
            joined = masks.union(joined, _mask(file))
        return MaskEdit.of(joined)
    if all(isinstance(file.edit, MaskEdit | GateEdit) for file in files):
        gates: dict[str, Array] = {}
        for file in files:
            for tower, gate_LF in _gates(file).items():
                gates[tower] = np.asarray(gates.get(tower, np.float32(1)) * gate_LF, np.float32)
        return GateEdit(gates)
    others = [f"{file.path} ({file.edit.kind})" for file in files if not _has_gates(file)]
    raise ManuError(
        f"union: only masks and gates have one; these write weights: {', '.join(others)}. Apply "
        "one, and make the other for the result."
    )


def difference(first: EditFile, others: Sequence[EditFile]) -> Edit:
    """Return the mask of the neurons that the first removes and none of the others does.

    Raises ManuError for edits that are no masks, and where they were made for different models.
    """
    files = [first, *others]
    _check_one_model(files)
    wrong = [f"{file.path} ({file.edit.kind})" for file in files if file.edit.kind != "mask"]
    if wrong:
        raise ManuError(f"difference: only masks have one; these are none: {', '.join(wrong)}.")
    left = _mask(first)
    for file in others:
        left = masks.difference(left, _mask(file))
    return MaskEdit.of(left)


def save_joined(
    path: str | os.PathLike, edit: Edit, verb: str, *, files: Sequence[EditFile]
) -> None:
    """Write what was made of files, which it names with their hashes under `verb`."""
    sources = []
    for file in files:
        with stores.local_file(file.path) as local:
            sources.append({"file": file.path.name, "sha256": file_hash(local)})
    made_from = {verb: sources, "model": files[0].model, "versions": versions()}
    leafwise.write(edit, path, made_from)


def compared(first: EditFile, second: EditFile) -> list[str]:
    """Return what two edits share and where they differ, one line each."""
    lines = []
    one, two = first.made_from, second.made_from
    for key in sorted({*one, *two} - {*OWN}):
        if one.get(key) != two.get(key):
            lines.append(f"{key}: {_short(one.get(key))} | {_short(two.get(key))}")
    if isinstance(first.edit, MaskEdit) and isinstance(second.edit, MaskEdit):
        return lines + _compared_masks(_mask(first), _mask(second))
    if first.edit.kind != second.edit.kind:
        lines += [f"first: {line}" for line in first.edit.describe()]
        return lines + [f"second: {line}" for line in second.edit.describe()]
    return lines + _compared_arrays(leaves(first.edit), leaves(second.edit))


def between(original: Loaded, edited: Loaded) -> NewWeights:
    """Return the edit that makes of one model another of the same shapes: its weights that differ.

    Exact for all dtypes that models have. Raises ManuError where shapes or dtypes differ, and where
    nothing does.
    """
    before, after = leaves(original.model), leaves(edited.model)
    wrong = [
        name
        for name in sorted({*before, *after})
        if name not in before
        or name not in after
        or (before[name].shape, before[name].dtype) != (after[name].shape, after[name].dtype)
    ]
    if wrong:
        raise ManuError(
            f"no edit leads from one model to the other: {', '.join(wrong[:SHOWN])} differ in "
            "shape or dtype. Give a model and what was made of it."
        )
    values: dict[str, Array] = {}
    for name, leaf in after.items():
        old, new = np.asarray(before[name]), np.asarray(leaf)
        if old.tobytes() != new.tobytes():
            values[name] = new.astype(np.float32)
    if not values:
        raise ManuError("no edit leads from one model to the other: they are the same, bit by bit.")
    return NewWeights(values)


def _check_one_model(files: Sequence[EditFile]) -> None:
    models = {file.model for file in files}
    if len(models) > 1:
        listed = "; ".join(f"{file.path}: {file.model}" for file in files)
        raise ManuError(f"the edits were made for different models: {listed}. Give those of one.")


def _mask(file: EditFile) -> Neurons:
    assert isinstance(file.edit, MaskEdit)
    return file.edit.as_mask()


def _has_gates(file: EditFile) -> bool:
    return isinstance(file.edit, MaskEdit | GateEdit)


def _gates(file: EditFile) -> Neurons:
    assert isinstance(file.edit, MaskEdit | GateEdit)
    return file.edit.as_gates()


def _short(value: Any) -> str:
    return "nothing" if value is None else f"{value!s:.80}"


def _compared_masks(first: Neurons, second: Neurons) -> list[str]:
    lines = []
    for tower in sorted({*first, *second}):
        known = np.asarray(first.get(tower, second.get(tower)))
        one, two = (np.asarray(m.get(tower, np.zeros_like(known))) for m in (first, second))
        if one.shape != two.shape:
            lines.append(f"{tower}: {one.shape} and {two.shape} neurons: of different models")
            continue
        both, either = int((one & two).sum()), int((one | two).sum())
        share = f"{both / either:.1%}".replace("%", " %") if either else "nothing"
        lines.append(
            f"{tower}: {both:,} neurons in both, {int((one & ~two).sum()):,} in the first alone, "
            f"{int((two & ~one).sum()):,} in the second alone (shared {share})"
        )
    return lines


def _compared_arrays(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    lines = []
    for name in sorted({*first, *second}):
        if name not in first or name not in second:
            lines.append(f"{name}: in the {'first' if name in first else 'second'} alone")
            continue
        one, two = np.asarray(first[name]), np.asarray(second[name])
        if one.shape != two.shape:
            lines.append(f"{name}: {one.shape} and {two.shape}")
        elif one.tobytes() != two.tobytes():
            size = np.linalg.norm(one) or 1.0
            lines.append(
                f"{name}: differ by {np.abs(one - two).max():.3g} at most, by "
                f"{np.linalg.norm(one - two) / size:.3g} of the first's norm"
            )
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return [*lines[:SHOWN], *more] or ["the arrays are the same, bit by bit"]

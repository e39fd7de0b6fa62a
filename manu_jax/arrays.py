"""Named arrays in one safetensors file, with what they were made from and a hash of the whole."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from manu_jax import stores
from manu_jax.folder import ForeignErrors, expand_path, write_atomic
from manu_jax.types import ManuError

PREFIX = "manu_jax."  # of the format's name in the metadata
REMEDY = "Delete the file and give the command again."
SHOWN = 5  # names in an error


def write_arrays(
    path: str | os.PathLike,
    form: str,
    arrays: Mapping[str, np.ndarray],
    *,
    metadata: Mapping[str, str],
) -> None:
    """Write host arrays of a named form ("mask", "scores", "statistics"), atomically."""
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    marked = {**metadata, "format": PREFIX + form}
    content = safetensors.numpy.save(arrays, {**marked, "sha256": _hash(arrays, marked)})
    write_atomic(expand_path(path), content)


def read_arrays(
    path: str | os.PathLike, form: str, *, remedy: str = REMEDY
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return what `write_arrays` wrote; ManuError where missing, damaged or of another form.

    Accepts the hash of earlier files too, which did not cover the metadata. remedy: of a missing
    or damaged file; by default it is one that a run makes again.
    """
    path = expand_path(path)
    if not path.is_file():
        remedy = "Run the stage that makes it first." if remedy == REMEDY else remedy
        raise ManuError(f"{form} {path}: there is no such file. {remedy}")
    with ForeignErrors(f"{form} {path}", "damaged or cut short", remedy):
        with stores.local_file(path) as place, safetensors.safe_open(place, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    if metadata.get("format") != PREFIX + form:
        raise ManuError(
            f"{form} {path}: expected a file of format {PREFIX + form}, "
            f"got {metadata.get('format', 'another safetensors file')}."
        )
    marked = {name: value for name, value in metadata.items() if name != "sha256"}
    if metadata.get("sha256") not in (_hash(arrays, marked), _hash(arrays, {})):
        raise ManuError(f"{form} {path}: damaged, its contents do not match its hash. {remedy}")
    return arrays, metadata


def made_from(metadata: Mapping[str, str], what: str) -> dict[str, Any]:
    """Return what a file was made from, as its metadata says; ManuError where it says nothing."""
    try:
        values = json.loads(metadata["made_from"])
    except (KeyError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ManuError(f"{what}: it does not say what it was made from. {REMEDY}")
    return values


def check_arrays(arrays: Mapping[str, np.ndarray], what: str, *, dtype: str, num_axes: int) -> None:
    """Raise ManuError where arrays have another dtype or number of axes, or there are none."""
    faults = [
        f'"{name}" is {list(array.shape)} of {array.dtype}'
        for name, array in sorted(arrays.items())
        if array.dtype != dtype or array.ndim != num_axes
    ]
    if faults or not arrays:
        found = "; ".join(faults[:SHOWN]) or "it holds nothing"
        raise ManuError(f"{what}: expected {num_axes} axes of {dtype}: {found}. {REMEDY}")


def _hash(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    if metadata:
        digest.update(json.dumps(dict(metadata), sort_keys=True).encode() + b"\0")
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(f"{name} {array.dtype} {array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()

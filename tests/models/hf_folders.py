"""Copies of a tiny model's folder, changed in one way, for the tests of loading and saving."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file, save_file


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target / "copy"))


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def rewrite(folder: Path, change) -> None:
    """Pass a folder's tensors through `change` (a dict in, a dict out)."""
    save_file(change(tensors_of(folder)), folder / "model.safetensors", {"format": "pt"})


def edit_config(folder: Path, **changes) -> None:
    file = folder / "config.json"
    values = json.loads(file.read_text())
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        (values[section] if section else values)[field] = value
    file.write_text(json.dumps(values))


def equal_models(one, two) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)

"""Trained models that are kept for later runs with the same data, training and libraries."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from manu_jax import stores
from manu_jax.config import RunConfig
from manu_jax.folder import expand_path, new_folder, versions


def kept_folder(config: RunConfig, key: str) -> Path | None:
    """Return where the models that a config trains are kept; None where it keeps none.

    key: of what they are trained from (`keys.train_key`).
    """
    if stores.is_store(config.output) or stores.is_store(config.cache):
        return None  # they are quicker trained than sent
    is_large = config.model.path is not None or config.model.decoder is not None
    if config.cache is None or is_large or config.data.path is not None:
        return None
    digest = hashlib.sha256(json.dumps([key, versions()], sort_keys=True).encode()).hexdigest()[:16]
    return expand_path(config.cache) / "models" / digest


def keep_models(names: Sequence[str], directory: Path, kept: Path) -> None:
    """Copy models from a run's folder to where other runs find them."""
    with new_folder(kept) as folder:
        for name in names:
            shutil.copytree(directory / name, folder / name)


def take_models(names: Sequence[str], kept: Path, directory: Path) -> None:
    """Copy kept models into a run's folder."""
    for name in names:
        with new_folder(directory / name) as folder:
            shutil.copytree(kept / name, folder, dirs_exist_ok=True)

"""Checkpoints of a long loop: a process that was killed goes on from the newest."""

import logging
from pathlib import Path
from typing import Any

import jax

from manu_jax import checkpoint, parallel, stores
from manu_jax.leaves import leaves

logger = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
CHECKPOINT_NAME = "step-{:08d}"


def resume(directory: Path, state: Any) -> tuple[Any, int]:
    """Return the state of the newest checkpoint and its step; (`state`, 0) where there is none.

    state: a pytree of the shapes, dtypes and shardings that are expected.
    """
    step = parallel.broadcast(max(_checkpoint_steps(directory), default=0))
    path = directory / CHECKPOINT_NAME.format(step)
    if not step or not parallel.exists(checkpoint.mark(path)):
        return state, 0
    target = leaves(state)
    found = checkpoint.load(path, target)
    logger.info("%s: going on after step %d", directory, step)
    return jax.tree.unflatten(jax.tree.structure(state), [found[name] for name in target]), step


def save_step(directory: Path, step: int, state: Any) -> None:
    """Write the state after `step` steps, and remove all but the two newest."""
    checkpoint.save(directory / CHECKPOINT_NAME.format(step), leaves(state))

    def remove_old() -> None:
        for old in _checkpoint_steps(directory)[:-KEPT_CHECKPOINTS]:
            stores.remove_folder(directory / CHECKPOINT_NAME.format(old))

    parallel.on_first_process(remove_old)


def _checkpoint_steps(directory: Path) -> list[int]:
    """Return the steps of the whole checkpoints in a folder, in order."""
    if not directory.is_dir():
        return []
    prefix = CHECKPOINT_NAME.split("{")[0]
    found = [
        path
        for path in directory.iterdir()
        if path.name.startswith(prefix) and path.name[len(prefix) :].isdigit()
    ]
    return sorted(int(path.name[len(prefix) :]) for path in found if checkpoint.exists(path))

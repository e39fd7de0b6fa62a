"""What the converters share: errors as one line, and the exit status."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from manu_jax.types import ManuError


def run(action: Callable[[], int]) -> int:
    """Return the action's exit status; 1 with one message on stderr where the user can mend it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return action()
    except ManuError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def refuse_existing(path: Path) -> None:
    """Raise ManuError where `path` holds something already."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ManuError(f"{path}: exists already; give a new folder.")

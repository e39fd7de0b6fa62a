"""What the converters share: arguments, errors as one message, and the exit status."""

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from manu_jax import stores
from manu_jax.folder import expand_path, explained
from manu_jax.types import ManuError


class Terminated(BaseException):  # which no border to a library takes for its own
    """SIGTERM has come."""


def run(action: Callable[[], int]) -> int:
    """Return the action's exit status; 1 with one message on stderr where the user can mend it.

    Ctrl-C and SIGTERM end it, too, with 130 and 143: what is half-written is removed first.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Orbax logs there, with a traceback, what it raises as well.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return action()
    except (ManuError, OSError) as error:
        message = explained(error) if isinstance(error, OSError) else error
        print(f"error: {message}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Terminated) as error:
        print("stopped. Give the same command again.", file=sys.stderr)
        number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
        return 128 + number
    finally:
        signal.signal(signal.SIGTERM, before)


def run_conversion(
    convert: Callable[..., None],
    arguments: Sequence[str] | None,
    *,
    description: str,
    source: str,
    has_mesh: bool = False,
) -> int:
    """Run `convert(source, target, dtype)` with what the command line names; return the status.

    The source is given as it was typed: it may be a name on the hub. source: what SRC has to be, in
    words. The target has to be new, and outside the source. Both may be in a store (gs://, s3://).
    has_mesh: whether the command takes a mesh, which `convert` then gets as a fourth argument:
    {axis: size}.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("source", metavar="SRC", help=source)
    parser.add_argument("target", metavar="DST", help="the folder to make")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: as in SRC)")
    if has_mesh:
        parser.add_argument(
            "--mesh", default={}, type=_sizes, metavar="fsdp=16,tensor=1",
            help="the mesh that will read DST, which is written in its chunks",
        )  # fmt: skip
    options = parser.parse_args(arguments)

    def action() -> int:
        source, target = expand_path(options.source), expand_path(options.target)
        if _is_taken(target):
            raise ManuError(f"{target}: exists already; give a new folder.")
        if stores.lies_in(target, source):
            raise ManuError(f"{target}: inside the source {source}. Give a folder outside it.")
        convert(options.source, target, options.dtype, *([options.mesh] if has_mesh else ()))
        print(f"{target}: written")
        return 0

    return run(action)


def _terminate(*_: object) -> None:
    raise Terminated


def _is_taken(target: Any) -> bool:
    """Whether something stands there; what was left half-written in a store may be replaced."""
    if not stores.is_store(target):
        return target.exists() and (not target.is_dir() or any(target.iterdir()))
    with stores.told(target):
        if target.is_file():
            return True
        return bool(stores.names_in(target)) and not stores.is_unfinished(target)


def _sizes(text: str) -> dict[str, int]:
    """Return {axis: size} of "fsdp=16,tensor=1"; of `data` weights know nothing."""
    found = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in ("data", "fsdp", "tensor") or not size.isdecimal() or int(size) < 1:
            raise argparse.ArgumentTypeError(
                f"{part!r}: expected data=, fsdp= or tensor= and how many devices that is"
            )
        found[axis] = int(size)
    return {axis: size for axis, size in found.items() if axis != "data"}

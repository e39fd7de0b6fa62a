"""A ledger: requests to forget come one after another, are met, certified, checked and revoked.

    python -m manu_jax.ledger FOLDER add REQUEST [--config FILE] [key.path=value …]
    python -m manu_jax.ledger FOLDER list
    python -m manu_jax.ledger FOLDER check
    python -m manu_jax.ledger FOLDER revoke N

FOLDER: of the ledger; the first `add` makes it, with the config of all its runs. REQUEST: a folder,
in the form that the config's `data.benchmark` names. After each `add` and `revoke`, FOLDER/model is
the model that meets all requests in force, each of them has been asked again, and each has a
certificate in FOLDER/requests/NNN. A command that was killed: give the same again.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from manu_jax import stores
from manu_jax.folder import expand_path
from manu_jax.requests import keeping
from manu_jax.requests.book import Book, Request
from manu_jax.requests.certificate import HTML
from manu_jax.requests.shared import MODEL
from manu_jax.run import exit_status
from manu_jax.types import ManuError

logger = logging.getLogger("manu_jax")

NAMES = 3  # of subjects in a line
HEADS = ("no.", "added", "state", "facts", "subjects", "changes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    0 done, 1 a named problem or a regression that `check` finds, 130 stopped.
    """
    parser = _parser()
    # After an option, argparse takes no more of a verb's positional arguments.
    options, options.overrides = parser.parse_known_args(arguments)
    wrong = [text for text in options.overrides if text.startswith("-") or "=" not in text]
    if wrong or (options.overrides and options.verb != "add"):
        parser.error(f"unrecognized arguments: {' '.join(wrong or options.overrides)}")
    if stores.is_store(options.folder):
        parser.error(f"{options.folder}: a ledger needs a folder of this machine")
    if options.verb == "add" and stores.is_store(options.request):
        parser.error(f"{options.request}: a request is read from a folder of this machine")
    options.folder = expand_path(options.folder)
    return exit_status(lambda: VERBS[options.verb](options))


def add(options: argparse.Namespace) -> None:
    """Meet a request, and write its certificate."""
    if options.overrides and options.config is None:
        raise ManuError("key.path=value replaces a value of the config: give --config FILE too.")
    folder, given = options.folder, {"config": options.config, "overrides": options.overrides}
    request = keeping.add(folder, options.request, **given)
    place = folder / "requests" / f"{request.number:03d}"
    logger.info("request %d: %s", request.number, place / HTML)
    logger.info("%s: the model with all requests in force", folder / MODEL)


def show(options: argparse.Namespace) -> None:
    """List the requests, and what the last check found."""
    book = Book.read(options.folder)
    rows = [HEADS, *map(_line, book.requests.values())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
    last = book.last("checked")
    if last is not None:
        print(f"asked again {last['time']}: {len(last['regressions'])} regressions")
        for text in last["regressions"]:
            print(f"  {text}")


def check(options: argparse.Namespace) -> None:
    """Ask all requests in force again; fail where one has got worse."""
    regressions = keeping.check(options.folder)
    if regressions:
        listed = "\n  ".join(regressions)
        raise ManuError(
            f"{options.folder}: {len(regressions)} regressions:\n  {listed}\nRevoke the request "
            "that brought them, or add one that has these facts forgotten again."
        )
    logger.info("%s: as it was certified", options.folder)


def revoke(options: argparse.Namespace) -> None:
    """Take a request out of force, and write the model without it."""
    keeping.revoke(options.folder, options.number)
    logger.info("%s: the model without request %d", options.folder / MODEL, options.number)


VERBS: dict[str, Callable[[Any], None]] = {
    "add": add,
    "list": show,
    "check": check,
    "revoke": revoke,
}


def _line(request: Request) -> tuple[str, ...]:
    subjects = request.added["subjects"]
    more = f" and {len(subjects) - NAMES} more" if len(subjects) > NAMES else ""
    changes = request.made["changes"] if request.made is not None else []
    return (
        str(request.number),
        request.added["time"],
        request.state,
        str(request.added["facts"]),
        ", ".join(subjects[:NAMES]) + more,
        "; ".join(changes[:NAMES]),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m manu_jax.ledger", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", metavar="FOLDER", help="of the ledger")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=(VERBS[name].__doc__ or "").splitlines()[0])

    one = verb("add")
    one.add_argument("request", metavar="REQUEST", help="the folder of a request")
    told = "of all runs; the first request needs it. key.path=value after it replaces a value"
    one.add_argument("--config", metavar="FILE", help=told)
    for name in ("list", "check"):
        verb(name)
    verb("revoke").add_argument("number", type=int, metavar="N", help="the request's number")
    return parser


if __name__ == "__main__":
    sys.exit(main())

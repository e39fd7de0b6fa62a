"""A ledger's verbs: requests are added, listed, asked again, and revoked.

Each verb first brings to an end what an earlier, killed command left: all of it follows from the
book's entries (`settle`), so the same command again goes on from there.
"""

import contextlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from manu_jax import stores
from manu_jax.data.record import Person
from manu_jax.folder import FileHashes, expand_path, new_folder
from manu_jax.owner import owned_folder
from manu_jax.requests import certificate, shared
from manu_jax.requests.asking import ask
from manu_jax.requests.book import Book, Request
from manu_jax.requests.making import (
    edit_file,
    joint_faults,
    make_edits,
    publish,
    remove_surplus,
)
from manu_jax.requests.shared import REQUEST, Ledger
from manu_jax.types import KEEP_SETS, ManuError

logger = logging.getLogger("manu_jax")

SHOWN = 10  # subjects in an error
REMEDY = "give another folder"  # of one in use, or that can't be written


def add(
    folder: Path, request: Path, *, config: str | None = None, overrides: Sequence[str] = ()
) -> Request:
    """Meet a request: its edit, the model with it and all others in force, and its certificate.

    folder: of the ledger, which the first request begins. config, overrides: of its runs; needed by
    the first request alone, later ones have the same. One that was begun goes on, and of one that
    is met nothing is done. Raises ManuError where it keeps what others had forgotten.
    """
    source = expand_path(request)
    if not source.is_dir():
        raise ManuError(f"{request}: no folder there. Give the folder of a request.")
    if stores.lies_in(folder, source):
        raise ManuError(
            f"{folder}: the ledger lies in the request's folder {request}, which would be another "
            "request with every file of it. Give a folder outside of it."
        )
    if not shared.exists(folder) and config is None:
        raise ManuError(f"{folder}: a new ledger needs --config FILE, the config of its runs.")
    given = None if config is None else shared.shared_values(config, overrides, source)
    with owned_folder(folder, remedy=REMEDY):
        ledger = _opened(folder, given, source)
        digest = FileHashes().of(str(source))
        known = next((r for r in ledger.book.in_force if r.added["hash"] == digest), None)
        settle(ledger)
        if known is None:
            number = len(ledger.book.requests) + 1
            _enter(ledger, source, number=number, digest=str(digest))
            settle(ledger)
        else:
            number = known.number
            logger.info("ledger: %s is request %d, which was entered already", request, number)
        return ledger.book.requests[number]


def check(folder: Path) -> list[str]:
    """Ask all requests in force again, and return the regressions in words.

    Raises ManuError where a file of the ledger is not as it was written.
    """
    with _owned(folder) as ledger:
        settle(ledger)
        faults = [fault for r in ledger.book.requests.values() for fault in _faults(ledger, r)]
        faults += joint_faults(ledger)
        if faults:
            raise ManuError("\n".join([f"{folder}: not as it was written:", *faults]))
        ask(ledger, again=True)
        _clean(ledger)
        last = ledger.book.last("checked")
        return list(last["regressions"]) if last else []


def revoke(folder: Path, number: int) -> None:
    """Take a request out of force: the model is what it would be without it.

    With masks that is so bit for bit at once; other edits that were made after it are made again.
    Raises ManuError where there is no such request.
    """
    with _owned(folder) as ledger:
        request = ledger.book.requests.get(number)
        if request is None:
            known = ", ".join(map(str, ledger.book.requests)) or "none"
            raise ManuError(f"{folder}: no request {number}; there are {known}.")
        if request.revoked is None:
            ledger.book = ledger.book.with_entry("revoked", number)
        else:
            logger.info("ledger: request %d was revoked %s", number, request.revoked["time"])
        settle(ledger)


def settle(ledger: Ledger) -> None:
    """Do what the entries ask for and is not done: edits, the model, answers, certificates."""
    if not ledger.book.entries:
        return
    make_edits(ledger)
    publish(ledger)
    ask(ledger)
    certificate.certify(ledger)
    certificate.mark_revoked(ledger)
    _clean(ledger)


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[Ledger]:
    """Open a ledger for this process alone; ManuError where there is none."""
    Book.read(folder)  # before a folder is made
    with owned_folder(folder, remedy=REMEDY):
        yield Ledger(folder, Book.read(folder))


def _opened(folder: Path, given: dict[str, Any] | None, source: Path) -> Ledger:
    """Return the ledger of a folder, or a new one; ManuError where it has another config."""
    if not shared.exists(folder):
        assert given is not None
        return Ledger.begin(folder, given, source)
    book = Book.read(folder)
    if given is not None and given != book.config:
        changed = ", ".join(_changes(dict(book.config), given))
        raise ManuError(
            f"{folder}: all requests of a ledger have the same config; other values were given for "
            f"{changed}. Leave --config out, or begin another ledger."
        )
    return Ledger(folder, book)


def _clean(ledger: Ledger) -> None:
    for number in ledger.book.requests:
        remove_surplus(ledger, number)


def _changes(one: Any, other: Any, above: str = "") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from _changes(one.get(key), other.get(key), f"{above}.{key}" if above else key)
    elif one != other:
        yield above


def _enter(ledger: Ledger, source: Path, *, number: int, digest: str) -> None:
    """Copy a request into the ledger and enter it; ManuError where it contradicts others."""
    benchmark = ledger.named(number, data=source)
    forget = benchmark.sets["forget"]
    gone = {
        name: request.number
        for request in ledger.book.in_force
        for name in request.added["subjects"]
    }
    kept = {_name(person) for set_name in KEEP_SETS for person in benchmark.sets[set_name]}
    both = sorted(f"{name} (request {gone[name]})" for name in kept & gone.keys())
    if both:
        more = [f"and {len(both) - SHOWN} more"] if len(both) > SHOWN else []
        raise ManuError(
            f"{source}: it keeps what other requests had forgotten: "
            f"{', '.join([*both[:SHOWN], *more])}. Take these out of its facts to keep."
        )
    with new_folder(ledger.place(number) / REQUEST) as copy:
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
    ledger.book = ledger.book.with_entry(
        "added",
        number,
        hash=digest,
        subjects=[_name(person) for person in forget],
        facts=sum(len(person.facts) for person in forget),
    )
    logger.info("ledger: request %d: %d facts to forget", number, ledger.book.entries[-1]["facts"])


def _name(person: Person) -> str:
    return person.name or person.id


def _faults(ledger: Ledger, request: Request) -> Iterator[str]:
    """Yield what of a request's files is not as it was written."""
    place = ledger.place(request.number)
    if FileHashes().of(str(place / REQUEST)) != request.added["hash"]:
        yield f"{place / REQUEST}: not as it was added"
    if request.is_in_force and request.made is not None:
        try:
            edit_file(ledger, request)
        except ManuError as error:
            yield str(error)
    yield from certificate.faults(ledger, request)

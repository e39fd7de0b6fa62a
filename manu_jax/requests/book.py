"""The book of a ledger: entries that are only ever added, each with the hash of the one before.

    ledger.json    {"model": hash of the model that all requests are about,
                    "config": of every run, without data.path and output,
                    "entries": [{"event", "request", "time", …, "previous"}, …]}

An entry is written with all earlier ones, whole or not at all. What is in force follows from the
entries alone, so a killed command leaves nothing that has to be mended.

    added      a request: hash, subjects, facts           made       its edit, for which model
    composed   the requests in force, their joint edit and model
    certified  a request's certificate                    checked    all requests asked again
    revoked    a request is no longer in force
"""

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from manu_jax.folder import write_atomic
from manu_jax.types import ManuError

BOOK = "ledger.json"
Event = Literal["added", "made", "composed", "certified", "checked", "revoked"]
EVENTS = ("added", "made", "composed", "certified", "checked", "revoked")
Entry = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Request:
    """One request as the entries tell it.

    added: its first entry. made, certified, revoked: the latest of these entries, or None.
    """

    number: int
    added: Entry
    made: Entry | None = None
    certified: Entry | None = None
    revoked: Entry | None = None

    @property
    def is_in_force(self) -> bool:
        return self.revoked is None

    @property
    def state(self) -> str:
        """In a word: pending, in force or revoked."""
        if self.revoked is not None:
            return "revoked"
        return "pending" if self.certified is None else "in force"


@dataclasses.dataclass(frozen=True)
class Book:
    """The entries of a ledger.

    model: the hash of the model that all requests are about. config: the values that their runs
    share.
    """

    folder: Path
    model: str
    config: Mapping[str, Any]
    entries: tuple[Entry, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> "Book":
        """Return the book of a ledger's folder; ManuError where there is none, or it is damaged."""
        path = folder / BOOK
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            entries = tuple(content["entries"])
            model, config = content["model"], content["config"]
            if not isinstance(model, str) or not all(
                isinstance(one, dict) for one in (config, *entries)
            ):
                raise ValueError("expected a model's hash, a config and a list of entries")
        except FileNotFoundError:
            raise ManuError(
                f"{folder}: no ledger there. Begin one: python -m manu_jax.ledger {folder} add "
                "REQUEST --config FILE."
            ) from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ManuError(
                f"{path}: damaged ({error}). Restore the file from a backup: it is the record of "
                "what was asked."
            ) from error
        book = cls(folder, model, config, entries)
        if faults := list(book._faults()):
            raise ManuError(
                f"{path}: it is not as it was written: {'; '.join(faults[:3])}. Restore the file "
                "from a backup: it is the record of what was asked."
            )
        return book

    def with_entry(self, event: Event, request: int, **details: Any) -> "Book":
        """Return the book with one more entry, once it is on disk. request: 0 where of none."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        own = {"event": event, "request": request, "time": now}
        entry = {**own, **details, "previous": self.hash()}
        book = dataclasses.replace(self, entries=(*self.entries, entry))
        content = {"model": book.model, "config": book.config, "entries": book.entries}
        write_atomic(self.folder / BOOK, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return book

    @property
    def requests(self) -> dict[int, Request]:
        """{number: request}, in the order in which they came."""
        found: dict[int, Request] = {}
        for entry in self.entries:
            number, event = entry["request"], entry["event"]
            if event == "added":
                found[number] = Request(number, entry)
            elif event in ("made", "certified", "revoked"):
                found[number] = dataclasses.replace(found[number], **{event: entry})
        return found

    @property
    def in_force(self) -> list[Request]:
        """The requests that were not revoked, in order."""
        return [request for request in self.requests.values() if request.is_in_force]

    def last(self, event: Event) -> Entry | None:
        """Return the latest entry of a kind."""
        return next((one for one in reversed(self.entries) if one["event"] == event), None)

    def hash(self) -> str:
        """Return the hash of the last entry, in which all before it have a part."""
        return _hash(self.entries[-1]) if self.entries else self._first()

    def _first(self) -> str:
        return _hash({"model": self.model, "config": self.config})

    def _faults(self) -> Iterator[str]:
        previous, known = self._first(), set()
        for number, entry in enumerate(self.entries, 1):
            event, request = entry.get("event"), entry.get("request")
            if event not in EVENTS:
                yield f"entry {number}: unknown event {event!r}"
            if entry.get("previous") != previous:
                yield f"entry {number}: what stands before it was changed"
            if type(request) is not int:
                yield f"entry {number}: request {request!r} is no number"
            elif event == "added":
                known.add(request)
            elif request not in (*known, 0):
                yield f"entry {number}: request {request!r} was never added"
            previous = _hash(entry)


def numbers_of(requests: Sequence[Request]) -> list[int]:
    """Return the numbers of requests."""
    return [request.number for request in requests]


def _hash(entry: Entry) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()

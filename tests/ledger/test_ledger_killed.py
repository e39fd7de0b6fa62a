"""A ledger killed between any two writes: the same commands again, and nothing is lost."""

import json
import os
import random

import pytest
from room import certificate, register, same_weights, write_room

from manu_jax.requests import keeping
from manu_jax.requests.book import Book

KILLS = 20
MOST_WRITES = 20  # between two kills
# What differs between two ledgers that met the same requests: when, and what follows from that.
OF_TIME = ("time", "previous", "sha256", "page", "results.json (SHA-256)", "ledger before this")
OF_TIME += ("added", "issued", "revoked")
# Of safetensors files the order of the metadata is drawn anew each time.
OF_TIME += ("edit", "edits", "edit (SHA-256)", "joint edit (SHA-256)")


class Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""


class Blows:
    """Kills at a write, before it or after it; every write ends in a rename."""

    def __init__(self, patch, seed):
        self.random, self.left, self.count, self.writes = random.Random(seed), None, 0, 0
        self.replace = os.replace
        patch.setattr(os, "replace", self.write)

    def write(self, source, target):
        self.writes += 1
        if self.left is not None:
            self.left -= 1
        if self.left == 0 and self.random.random() < 0.5:
            raise Killed
        self.replace(source, target)
        if self.left == 0:
            raise Killed

    def until_done(self, action):
        """Do an action until it ends, killed again and again, at random writes."""
        while True:
            self.left = self.random.randint(1, MOST_WRITES) if self.count < KILLS else None
            try:
                action()
                return
            except Killed:
                self.count += 1


def commands(folder, room):
    config = str(room / "mask.yaml")
    yield lambda: keeping.add(folder, room / "a", config=config)
    yield lambda: keeping.add(folder, room / "b", config=config)
    yield lambda: keeping.revoke(folder, 1)
    yield lambda: keeping.add(folder, room / "c", config=config)
    yield lambda: keeping.add(folder, room / "a", config=config)
    yield lambda: keeping.check(folder)


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in OF_TIME}
    return [without_times(one) for one in value] if isinstance(value, list) else value


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_ledger_killed_twenty_times_ends_as_one_that_never_was(tmp_path, monkeypatch, seed):
    register(monkeypatch)
    room = write_room(tmp_path / "room")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for action in commands(whole, room):
        action()
    blows = Blows(monkeypatch, seed)
    for action in commands(killed, room):
        blows.until_done(action)
    assert blows.count == KILLS, blows.writes
    assert same_weights(killed / "model", whole / "model")
    books = [Book.read(folder) for folder in (killed, whole)]
    told = [
        {number: without_times(vars(one)) for number, one in book.requests.items()}
        for book in books
    ]
    assert told[0] == told[1]
    assert [one.state for one in books[0].requests.values()] == [
        "revoked", "in force", "in force", "in force",
    ]  # fmt: skip
    for number in books[1].requests:
        assert without_times(certificate(killed, number)) == without_times(
            certificate(whole, number)
        )
    listed = [
        {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        for folder in (killed, whole)
    ]
    # A check that was killed after its file is made again under the same name.
    extra = {name for name in listed[0] ^ listed[1] if not name.startswith("checks/")}
    assert not extra
    assert not [name for name in listed[0] if name.endswith(".part")]
    checks = [json.loads(path.read_text()) for path in sorted((whole / "checks").iterdir())]
    assert checks[-1]["requests"] == [2, 3, 4] and not keeping.check(killed)

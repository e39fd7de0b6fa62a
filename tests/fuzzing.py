"""For tests that damage files at random: every input follows from SEED, a name and its number."""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from manu_jax.types import ManuError

SEED = 20240601
# What may stand in place of any value of a JSON file
VALUES = (
    None, True, False, 0, 1, -1, 3, 7, 10**12, 10**400, 0.5, -2.0, 1e-40, float("inf"),
    float("nan"), "", "x", "relu", "default", [], [3], [None], ["full_attention"], [[1, 2]], {},
    {"a": 1}, {"rope_type": "linear"}, {"type": "llama3", "factor": 8.0},
)  # fmt: skip


def counted(sample: int, most: int) -> Callable:
    """Run a test on the inputs `numbers`: a few always, an eighth in CI, all of them by hand."""
    more = sample + (most - sample) // 8
    return pytest.mark.parametrize(
        "numbers",
        [
            pytest.param(range(sample), id="some"),
            pytest.param(range(sample, more), id="more", marks=pytest.mark.slow),
            pytest.param(range(more, most), id="all", marks=[pytest.mark.slow, pytest.mark.long]),
        ],
    )


@contextlib.contextmanager
def named(what: str, number: int) -> Iterator[None]:
    """Let a ManuError pass as a right answer; name the input of whatever else is raised."""
    try:
        yield
    except ManuError as error:
        assert str(error)
    except BaseException as error:
        error.add_note(f"the input: {what}, number {number}, seed {SEED}")
        raise


def generator(what: str, number: int) -> np.random.Generator:
    return np.random.default_rng([SEED, sum(what.encode()), number])


def harmed(content: bytes, random: np.random.Generator, end: int | None = None) -> bytes:
    """Return a file damaged in one way; bytes are changed in place before `end` only."""
    data = bytearray(content)
    place = int(random.integers(len(data) if end is None else end))
    size = int(random.integers(1, 65))
    match random.integers(6):
        case 0:
            data[place] ^= 1 << int(random.integers(8))
        case 1:
            data[place] = int(random.integers(256))
        case 2:
            stop = min(place + size, len(data) if end is None else end)
            data[place:stop] = bytes(stop - place)
        case 3:
            del data[place:]
        case 4:
            del data[place : place + size]
        case 5:
            data[place:place] = random.bytes(size)
    return bytes(data)


def with_other_values(values: Any, random: np.random.Generator) -> Any:
    """Return JSON values of which one to three are others, are left out, or stand twice."""
    values = json.loads(json.dumps(values))
    for _ in range(random.integers(1, 4)):
        place = values
        while True:
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            if not keys:
                break
            key = keys[int(random.integers(len(keys)))]
            inner = place[key]
            if isinstance(inner, dict | list) and inner and random.random() < 0.8:
                place = inner
                continue
            match random.integers(4):
                case 0:
                    del place[key]
                case 1 if isinstance(place, list):
                    place.append(inner)
                case 2 if isinstance(place, dict):
                    place[f"{key}x"] = place.pop(key)
                case _:
                    place[key] = VALUES[int(random.integers(len(VALUES)))]
            break
    return values

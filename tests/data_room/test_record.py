"""The retain people are split by person: from the seed and the IDs, and from nothing else."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manu_jax.data.record import Benchmark, Fact, Person, split_retain
from manu_jax.types import SETS, ManuError

# The unseen of 000 to 035 with the share 0.67 and seed 1. Written out, so that no version and no
# machine may draw others.
UNSEEN = [
    "000", "001", "002", "006", "012", "013", "014", "015", "017", "018", "019", "024",
]  # fmt: skip


def person(number):
    facts = tuple(Fact(f"{number:03d}", "Ada", "Where?", "Oslo", name) for name in ("home", "job"))
    return Person(f"{number:03d}", "Ada", (), {}, facts, ())


def benchmark(numbers):
    return Benchmark(
        {"forget": (person(900),), "retain": tuple(person(number) for number in numbers)}, {}
    )


def ids(split, name):
    return [one.id for one in split.sets[name]]


@given(
    count=st.integers(1, 60),
    share=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**32),
)
def test_every_retain_person_is_used_or_unseen(count, share, seed):
    whole = benchmark(range(count))
    split = split_retain(whole, share, seed=seed)
    used, unseen = ids(split, "retain"), ids(split, "unseen")
    assert sorted(used + unseen) == ids(whole, "retain") and not set(used) & set(unseen)
    assert len(used) == max(1, round(share * count))
    assert used == sorted(used) and unseen == sorted(unseen)  # in the benchmark's order
    assert split.sets["forget"] == whole.sets["forget"]


def test_the_whole_share_leaves_nobody_unseen():
    whole = benchmark(range(7))
    split = split_retain(whole, 1.0, seed=3)
    assert split.sets["unseen"] == () and split.sets["retain"] == whole.sets["retain"]


def test_the_seed_decides_and_the_order_of_the_people_does_not():
    splits = {
        tuple(ids(split_retain(benchmark(range(36)), 0.67, seed=s), "retain")) for s in range(3)
    }
    assert len(splits) == 3
    forward, backward = (
        split_retain(benchmark(numbers), 0.67, seed=1) for numbers in (range(36), range(36)[::-1])
    )
    assert ids(forward, "retain") == ids(backward, "retain")[::-1]
    assert len(ids(forward, "retain")) == 24


def test_a_larger_share_keeps_those_of_a_smaller_one():
    smaller, larger = (split_retain(benchmark(range(36)), x, seed=1) for x in (0.5, 0.75))
    assert set(ids(smaller, "retain")) < set(ids(larger, "retain"))


def test_the_facts_of_a_person_stay_together():
    split = split_retain(benchmark(range(9)), 0.67, seed=0)
    owners = {fact.person_id for fact in split.facts("retain")}
    assert owners == set(ids(split, "retain"))
    assert len(split.facts("retain")) == 12 and len(split.facts("retain", "unseen")) == 18


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_every_process_splits_alike(hash_seed):
    code = (
        "import json\n"
        "from manu_jax.data.record import Benchmark, Person, split_retain\n"
        "people = tuple(Person(f'{i:03d}', '', (), {}, (), ()) for i in range(36))\n"
        "split = split_retain(Benchmark({'retain': people}, {}), 0.67, seed=1)\n"
        "print(json.dumps([one.id for one in split.sets['unseen']]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == UNSEEN
    assert ids(split_retain(benchmark(range(36)), 0.67, seed=1), "unseen") == UNSEEN


def test_a_benchmark_may_leave_sets_out():
    found = benchmark(range(2)).sets
    assert tuple(found) == SETS and found["unseen"] == found["general"] == ()


def test_facts_of_an_unknown_set_are_an_error():
    assert len(benchmark([1, 2]).facts("forget", "retain")) == 6
    with pytest.raises(ManuError, match="there is no set 'forgot'; known: forget, test, retain"):
        benchmark([]).facts("forget", "forgot")

"""A tiny model, a benchmark of requests that tests write, and ledgers on them."""

import json
from pathlib import Path

import numpy as np
import tiny_llava as tiny

from manu_jax.data.benchmarks import BENCHMARKS, BenchmarkFormat
from manu_jax.data.prompts import question_prompt
from manu_jax.data.record import Benchmark, Person
from manu_jax.leaves import leaves
from manu_jax.models.loaded import load, save_pretrained
from manu_jax.requests.book import Book
from manu_jax.types import ManuError

CONFIG = """
seed: 0
cache: null
data: {benchmark: listed, keep_share: 1.0}
model: {path: %s}
method: %s
evaluate: {tasks: [likelihood], sets: [forget, retain], resamples: 20, kl: false, batch_size: 8}
audit: none
neurons: {methods: []}
"""
MASK = "{preset: paper, alpha: 0.1}"
# Trained for a step: new weights of the MLPs, and a model as a whole.
TRAINED = "{kind: trained, name: climb, objective: gradient_ascent, steps: 1, batch_size: 2, \
learning_rate: 1.0e-2, trains: %s}"


def read_listed(folder, section, seed):
    """The benchmark `listed`: one JSON file with the numbers of the people in each set."""
    path = folder / "people.json"
    if not path.exists():
        raise ManuError(f"{path}: no such file.")
    facts = tiny.facts(7)
    sets = {
        name: tuple(
            Person(facts[i].person_id, facts[i].name, (facts[i].image,), {}, (facts[i],), ())
            for i in numbers
        )
        for name, numbers in json.loads(path.read_text()).items()
    }
    return Benchmark(sets, {})


def register(patch):
    patch.setitem(BENCHMARKS, "listed", BenchmarkFormat(read_listed, question_prompt))


def write_request(folder, forget, retain=(3, 4, 5)):
    folder.mkdir(parents=True)
    (folder / "people.json").write_text(json.dumps({"forget": forget, "retain": retain}))
    return folder


def write_room(folder):
    """A folder with a model, two configs and three requests."""
    save_pretrained(tiny.loaded(), folder / "model")
    for name, method in (("mask", MASK), ("mlp", TRAINED % "mlp"), ("all", TRAINED % "all")):
        (folder / f"{name}.yaml").write_text(CONFIG % (folder / "model", method))
    write_request(folder / "a", [0])
    write_request(folder / "b", [1, 2])
    write_request(folder / "c", [6])
    return folder


def weights(folder):
    return {name: np.asarray(leaf) for name, leaf in leaves(load(folder).model).items()}


def same_weights(one, other):
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(
        first[name].tobytes() == second[name].tobytes() for name in first
    )


def events(folder: Path):
    return [(entry["event"], entry["request"]) for entry in Book.read(folder).entries]


def certificate(folder, number):
    return json.loads((folder / f"requests/{number:03d}/certificate.json").read_text())

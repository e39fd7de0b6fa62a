"""Whose facts a neuron is looked at with: the people to forget, and kept ones beside them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from manu_jax.config import MethodSettings
from manu_jax.context import Run
from manu_jax.data.forms import form, has_form
from manu_jax.data.record import Fact, Person
from manu_jax.evaluation.neurons.kept import FORGET, KEPT
from manu_jax.models.loaded import Loaded
from manu_jax.types import Modality, Sample


@dataclasses.dataclass(frozen=True)
class People:
    """Whose facts are looked at: people to forget, and kept ones.

    asked: how many of each, the first, are asked while a neuron is removed.
    """

    forget: tuple[Person, ...]
    others: tuple[Person, ...]
    asked: int

    def set_of(self, person: str) -> str:
        """Return the set that a person is of, by ID."""
        return FORGET if person in {one.id for one in self.forget} else KEPT

    @property
    def all(self) -> tuple[Person, ...]:
        """Those to forget, and then the others."""
        return (*self.forget, *self.others)


def people_of(run: Run, name: str) -> People:
    """Return the people to forget with facts, and kept ones that are drawn by the seed."""
    config, sets = run.config.neurons, run.benchmark.sets
    method = run.method_of(name)
    apart = set()
    if isinstance(method, MethodSettings):
        apart = {person.id for person in run.set_apart(method)}
    forget = tuple(person for person in sets["forget"] if person.facts)
    kept = [person for person in sets["retain"] if person.facts and person.id not in apart]
    order = np.random.default_rng(run.config.seed).permutation(len(kept))
    drawn = sorted(order[: config.others].tolist())
    return People(forget, tuple(kept[number] for number in drawn), config.people)


def drawn_facts(
    people: Sequence[Person], most: int, *, seed: int
) -> dict[Modality, tuple[Fact, ...]]:
    """Return at most `most` facts of each person in each form, drawn by the seed."""
    found: dict[Modality, list[Fact]] = {"image": [], "text": []}
    for number, person in enumerate(people):
        order = np.random.default_rng([seed, number]).permutation(len(person.facts))
        for modality, own in found.items():
            usable = [index for index in order if has_form(person.facts[index], modality)]
            own += [person.facts[index] for index in sorted(usable[:most])]
    return {modality: tuple(own) for modality, own in found.items() if own}


def samples_of(loaded: Loaded, facts: Sequence[Fact], modality: Modality) -> tuple[Sample, ...]:
    """Return the samples of the facts that have a form, in order."""
    template = loaded.template
    return tuple(form(fact, modality, template) for fact in facts if has_form(fact, modality))

"""What vanilla says of invented people, beside what both models say of people to forget."""

import dataclasses
import types
from typing import Any

import pytest
import tiny_llava
from test_kept import run_of

from manu_jax.context import Run
from manu_jax.data.record import Benchmark
from manu_jax.evaluation.analyses import strangers
from manu_jax.types import VANILLA


@pytest.fixture
def rows(tmp_path, monkeypatch):
    run = run_of(tmp_path)
    asked = {
        part: tuple(
            dataclasses.replace(
                one,
                facts=tuple(
                    dataclasses.replace(fact, question="Where does this person live?")
                    for fact in one.facts
                ),
            )
            for one in some
        )
        for part, some in run.whole_benchmark.sets.items()
    }
    run.__dict__["read_benchmark"] = run.__dict__["whole_benchmark"] = Benchmark(asked, {})
    name = run.config.method.name
    monkeypatch.setattr(Run, "models", lambda self: {name: tiny_llava.loaded})
    evaluated: Any = types.SimpleNamespace(run=run)
    return run, list(strangers.measure(evaluated))


def test_vanilla_is_asked_about_strangers_and_both_models_about_the_person(rows):
    run, found = rows
    people = {fact.name for fact in run.whole_benchmark.facts("forget", "retain", "celebrity")}
    of_strangers = [row for row in found if row.about != strangers.PERSON]
    assert of_strangers and {row.model for row in of_strangers} == {VANILLA}
    assert not {row.about for row in of_strangers} & people
    for row in of_strangers:
        assert row.modality == "image" or row.about in row.question
    own = {(row.key, row.modality, row.model) for row in found if row.about == strangers.PERSON}
    keys = {row.key for row in found}
    models = {VANILLA, run.config.method.name}
    assert own == {(key, form, model) for key in keys for form in ("image", "text")
                   for model in models}  # fmt: skip


def test_each_person_is_asked_about_another_fact(rows):
    _, found = rows
    assert len({row.key.partition("/")[0] for row in found}) == len({row.key for row in found}) > 1

"""Which people and facts an analysis asks: all to forget, the first by ID to keep, forms apart."""

import types
from typing import Any

import tiny_llava
from PIL import Image

from manu_jax.config import RunConfig
from manu_jax.data.record import Benchmark, Fact, Person
from manu_jax.evaluation.analyses import distances, sweep


def person(number, *, with_image=True):
    name, who = f"Ada {'ABCDEFGHIJ'[number]}", f"{number:03d}"
    image = Image.new("RGB", (16, 16), (number, 40, 80)) if with_image else None
    question = "Where does this person live?" if with_image else f"Where does {name} live?"
    fact = Fact(who, name, question, "Oslo", "home", image)
    return Person(who, name, (image,) if image else (), {}, (fact,), ())


def evaluated(*, forget, retain, max_people=None, has_retrained=True) -> Any:
    config = RunConfig.model_validate(
        {
            "model": {"path": "m"},
            "evaluate": {"resamples": 20, "max_people": max_people},
            "sweep": {"alphas": [0.1], "max_people": max_people},
        }
    )
    benchmark, loaded = Benchmark({"forget": forget, "retain": retain}, {}), tiny_llava.loaded()
    models = {name: lambda: loaded for name in ("vanilla", "retrained")[: 1 + has_retrained]}
    run = types.SimpleNamespace(
        config=config, benchmark=benchmark, vanilla=loaded, modalities=benchmark.modalities,
        has_retrained=has_retrained, models=lambda: models, masks=(),
    )  # fmt: skip
    bootstrap = {"resamples": 20, "seed": 0}
    return types.SimpleNamespace(run=run, models=tuple(models), bootstrap=bootstrap, records={})


def test_the_distance_is_of_all_facts_to_forget_and_of_the_first_people_to_keep():
    people = tuple(map(person, range(9)))
    rows = distances._kl_rows(evaluated(forget=people[:4], retain=people[4:], max_people=2))
    counts = {(row.set, row.modality): row.n for row in rows}
    assert counts == {(name, form): n for name, n in (("forget", 4), ("retain", 2))
                      for form in ("image", "text")}  # fmt: skip


def test_people_to_keep_may_lack_a_form_that_those_to_forget_have():
    kept = tuple(person(number, with_image=False) for number in (4, 5))
    given = evaluated(forget=(person(0), person(1)), retain=kept)
    places = {("forget", "image"), ("forget", "text"), ("retain", "text")}
    assert {(row.set, row.modality) for row in distances._kl_rows(given)} == places
    points = list(sweep.measure(given))
    assert {(point.set, point.modality) for point in points} == places
    assert not [fault for point in points for fault in sweep.check(point)]


def test_a_sweep_asks_the_first_people_by_id_whatever_their_order(monkeypatch):
    asked = []
    real = sweep.forms
    monkeypatch.setattr(
        sweep, "forms", lambda facts, *rest: asked.extend(facts) or real(facts, *rest)
    )
    people = tuple(map(person, (0, 7, 5, 6)))
    list(sweep.measure(evaluated(forget=people[:1], retain=people[1:], max_people=2)))
    assert {fact.person_id for fact in asked} == {"000", "005", "006"}

"""The choice of alpha: by the rule on given numbers, and by asking the tiny model."""

import types

import numpy as np
import pytest
import tiny_llava as tiny

from manu_jax.config import RunConfig, named_method
from manu_jax.context import Run
from manu_jax.data.record import Benchmark, Person
from manu_jax.edits.masks import fold
from manu_jax.evaluation.alpha import Shares, best, choose_alpha
from manu_jax.evaluation.likelihood import share_right
from manu_jax.selection import select
from manu_jax.types import MODALITIES, ManuError

PLACES = [(name, modality) for name in ("forget", "retain") for modality in MODALITIES]
COUNTS = dict.fromkeys(PLACES, 20)
VANILLA = Shares(0.0, dict(zip(PLACES, (1.0, 1.0, 0.9, 0.8), strict=True)))


def shares(alpha, *values):
    return Shares(alpha, dict(zip(PLACES, values, strict=True)))


def choice(*rows, erase="both", keep_drop=0.03):
    found = [shares(*row) for row in rows]
    return best(VANILLA, found, keep_drop, erase=erase, counts=COUNTS)


def test_the_smallest_of_those_that_forget_most_within_the_bound_is_chosen():
    rows = [
        (0.4, 0.0, 0.0, 0.9, 0.7),  # forgets most, but loses ten points in the text form
        (0.3, 0.2, 0.4, 0.87, 0.77),  # just within the bound in both forms
        (0.2, 0.4, 0.2, 0.9, 0.8),  # forgets as much, with fewer neurons
        (0.1, 0.9, 0.8, 0.9, 0.8),
    ]
    found = choice(*rows)
    assert (found.alpha, found.is_within) == (0.2, True)
    assert choice(*rows[:2]).alpha == 0.3
    assert choice(*rows, keep_drop=0.1).alpha == 0.4


def test_in_the_image_form_alone_the_text_form_of_all_is_kept():
    rows = [(0.1, 0.5, 1.0, 0.9, 0.8), (0.2, 0.0, 0.6, 0.9, 0.8)]
    assert choice(*rows).alpha == 0.2
    assert choice(*rows, erase="visual").alpha == 0.1


def test_where_none_is_within_the_bound_what_loses_least_is_chosen_and_said():
    found = choice((0.3, 0.0, 0.0, 0.5, 0.5), (0.2, 0.9, 0.9, 0.8, 0.7), (0.1, 0.9, 0.9, 0.7, 0.7))
    assert (found.alpha, found.is_within) == (0.2, False)
    assert found.plain()["is_within"] is False and len(found.plain()["rows"]) == 16
    assert "retain, image form 80.0% of 90.0%" in found.describe()


FORGET, KEEP = (
    {modality: tiny.samples(modality)[first:last] for modality in MODALITIES}
    for first, last in ((0, 3), (3, 6))
)


@pytest.mark.slow
def test_alpha_is_chosen_by_what_folded_models_say(caplog):
    random = np.random.default_rng(0)
    scores = {tower: random.random(shape) for tower, shape in tiny.loaded().towers.items()}
    method = named_method("paper", alpha="auto", auto={"alphas": [0.5, 0.1], "keep_drop": 0.5})
    found = choose_alpha(tiny.loaded(), method, scores, forget=FORGET, keep=KEEP, batch_size=4)
    assert [one.alpha for one in found.found] == [0.1, 0.5]
    for one in (found.vanilla, *found.found):
        folded = fold(tiny.loaded(), select(scores, one.alpha))
        for (name, modality), value in one.values.items():
            samples = (FORGET if name == "forget" else KEEP)[modality]
            assert value == share_right(folded, samples, 4)
    assert found.counts == dict.fromkeys(PLACES, 3)
    assert found.is_within and not caplog.records  # the random model knows nothing to lose
    with pytest.raises(ManuError, match="no facts to ask .forget, text form"):
        choose_alpha(tiny.loaded(), method, scores, forget={**FORGET, "text": ()}, keep=KEEP)
    with pytest.raises(ManuError, match="Give alpha: auto"):
        choose_alpha(tiny.loaded(), named_method("paper"), scores, forget=FORGET, keep=KEEP)


def run_of(people=2):
    facts = tiny.facts()
    persons = [Person(fact.person_id, fact.name, (), {}, (fact,), ()) for fact in facts]
    sets = {"forget": persons[:1], "retain": persons[1:5], "celebrity": (), "test": ()}
    sets["general"] = [persons[1]]  # of the same ID as somebody to keep
    method = {"preset": "paper", "alpha": "auto", "auto": {"people": people}}
    run = Run(RunConfig(model={"path": "m"}, method=method, compare=["random"]), None, None)
    run.benchmark = Benchmark({name: tuple(found) for name, found in sets.items()}, {})
    run.read_benchmark = run.benchmark
    run.vanilla = types.SimpleNamespace(template=tiny.loaded().template)
    return run


def test_people_who_are_set_apart_are_not_given_to_the_method():
    run = run_of()
    method, other = run.config.methods
    apart = run.set_apart(method)
    assert len(apart) == 2 and {person.id for person in apart} < {"001", "002", "003", "004"}
    assert run.set_apart(method) == apart and run.set_apart(other) == ()
    assert run.keep_samples_of(other) == run.keep_samples
    for modality in MODALITIES:
        given = [sample.key for sample in run.keep_samples_of(method)[modality]]
        tuning = [sample.key for sample in run.set_apart_samples(method)[modality]]
        assert len(tuning) == 2
        # The general topic stays, whatever its ID.
        assert sorted(given + tuning) == sorted(s.key for s in run.keep_samples[modality])
        assert set(tuning) == {fact.key for person in apart for fact in person.facts}
    with pytest.raises(ManuError, match="auto.people sets 4 retain people apart, and there are 4"):
        run_of(people=4).set_apart(run_of(people=4).config.method)


def test_alpha_is_chosen_by_the_text_form_where_there_is_no_other():
    found = {place: 1.0 for place in VANILLA.values if place[1] == "text"}
    vanilla = Shares(0.0, found)
    shares = [Shares(0.1, {**found, ("forget", "text"): 0.2}), Shares(0.2, dict.fromkeys(found, 0))]
    choice = best(vanilla, shares, 0.03, counts=dict.fromkeys(found, 3))
    assert choice.alpha == 0.1 and choice.is_within
    random = np.random.default_rng(0)
    scores = {"text": random.random(tiny.loaded().towers["text"])}
    method = named_method("paper", alpha="auto", auto={"alphas": [0.5], "keep_drop": 0.9})
    alone = {"forget": {"text": FORGET["text"]}, "keep": {"text": KEEP["text"]}}
    chosen = choose_alpha(tiny.loaded(), method, scores, batch_size=4, **alone)
    assert set(chosen.counts) == {("forget", "text"), ("retain", "text")}

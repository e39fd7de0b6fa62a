"""The benchmark of what a model knows by itself."""

import json

import pytest

from manu_jax.config import DataSection
from manu_jax.data import facts
from manu_jax.data.known_facts import KINDS
from manu_jax.data.record import Question
from manu_jax.data.strangers import as_stranger, strangers
from manu_jax.types import ManuError, Template

TEMPLATE = Template(user="", no_image="", space="", close="", end="</s>")
NUM = sum(len(kind.facts) for kind in KINDS.values())


def folder_of(path, known=lambda name, subject: True):
    """Write a folder of a model that knows these, and the others in two of three wordings."""
    right = [
        known(name, subject) or number < 2
        for name, kind in KINDS.items()
        for subject in kind.facts
        for number in range(3)
    ]
    facts.write(path / "data", right)
    return path / "data"


def read(folder, seed=0, **settings):
    return facts.read(folder, DataSection(benchmark="facts", **settings), seed)


def test_every_fact_is_asked_in_three_wordings_that_differ():
    samples = facts.samples(TEMPLATE)
    assert len(samples) == 3 * NUM == len({sample.text for sample in samples})
    assert samples[0].segments == (("The capital of France is", False), (" Paris", True))
    assert samples[0].key == "capital-france/0"
    for kind in KINDS.values():
        assert len(kind.facts) >= 40 and len(set(kind.strangers)) >= 32
        assert all(wording.count("{}") == 1 for wording in kind.wordings)
        assert not set(kind.strangers) & set(kind.facts)


def test_only_what_is_right_in_all_wordings_is_used(tmp_path):
    known = {"France", "Italy", "Spain", "Japan", "Peru", "gold", "iron", "tin"}
    folder = folder_of(tmp_path, lambda name, subject: subject in known)
    found = read(folder)
    forget, retain = ({p.name for p in found.sets[name]} for name in ("forget", "retain"))
    assert forget | retain == known and not forget & retain
    # One of the five capitals; of three elements none.
    assert len(forget) == 1 and forget < {"France", "Italy", "Spain", "Japan", "Peru"}
    assert found.skipped == {"facts that the model does not know in all wordings": NUM - 8}
    assert found.modalities == ("text",)


def test_who_is_to_be_forgotten_follows_from_the_seed(tmp_path):
    folder = folder_of(tmp_path)
    names = {seed: [p.id for p in read(folder, seed).sets["forget"]] for seed in (0, 1)}
    assert names[0] != names[1]
    assert names[0] == [p.id for p in read(folder, 0).sets["forget"]]
    assert len(names[0]) == sum(round(0.1 * len(kind.facts)) for kind in KINDS.values())
    assert {name.partition("-")[0] for name in names[0]} == set(KINDS)


def test_methods_are_given_two_wordings_and_the_test_set_has_the_third(tmp_path):
    found = read(folder_of(tmp_path))
    for person, other in zip(found.sets["forget"], found.sets["test"], strict=True):
        assert person.id == other.id
        given = {fact.question for fact in person.facts}
        assert len(given) == 2 and all(person.name in text for text in given)
        (held_back,) = other.facts
        assert held_back.question not in given and held_back.answer == person.facts[0].answer
        choice = [q for q in person.questions if q.task == "classification"]
        (question,) = choice
        assert question.options[question.correct] == question.answer
        assert len(set(question.options.values())) == 4
    assert all(len(person.facts) == 2 for person in found.sets["retain"])


def test_strangers_are_of_the_kind_of_the_fact(tmp_path):
    found = read(folder_of(tmp_path))
    forget, keep = found.facts("forget"), found.facts("retain")
    known = strangers(forget, keep, 16, seed=0)
    near = strangers(forget, keep, 8, seed=0, near=True)
    for fact in forget:
        kind = KINDS[fact.attribute.partition("-")[0]]
        invented = [as_stranger(fact, one) for one in known]
        names = [one.name for one in invented]
        assert len(set(names)) == 16 and set(names) <= set(kind.strangers)
        for one in invented:
            assert one.name in one.question and fact.name not in one.question
            assert one.answer == fact.answer
        assert not {as_stranger(fact, one).name for one in near} & set(names)


def test_a_question_is_asked_as_it_is_and_has_no_shots():
    question = Question("generation", "text", "The capital of France is", "Paris", "capital")
    assert facts.question_prompt(question, TEMPLATE) == "The capital of France is"
    with pytest.raises(ManuError, match="no few-shot prompts. Give zero_shot or likelihood"):
        facts.question_prompt(question, TEMPLATE, [question])


def test_faults_of_the_file_come_in_one_error(tmp_path):
    folder = folder_of(tmp_path)
    lines = (folder / facts.ASKED).read_text().splitlines()
    other = {**json.loads(lines[1]), "answer": "Bonn"}
    text = "\n".join(["{", json.dumps(other), *lines[2:]])
    (folder / facts.ASKED).write_text(text)
    with pytest.raises(ManuError, match="damaged.*\n  line 1: .*\n  line 2: .*not a fact of"):
        read(folder)
    with pytest.raises(ManuError, match="can't be read .*leave data.path out"):
        read(tmp_path)
    with pytest.raises(ManuError, match=r"too few facts .*\(capital 0, author 0, symbol 0\)"):
        read(folder_of(tmp_path / "none", lambda name, subject: False))


def test_what_is_known_in_some_wordings_is_kept_in_these_where_asked_for(tmp_path):
    right = {"Chile": (1, 0, 0), "Cuba": (1, 1, 0), "Peru": (0, 0, 1), "Kenya": (0, 0, 0)}
    asked = [
        bool(right.get(subject, (1, 1, 1))[number])
        for kind in KINDS.values()
        for subject in kind.facts
        for number in range(3)
    ]
    facts.write(tmp_path / "data", asked)
    assert not read(tmp_path / "data").sets["general"]
    found = read(tmp_path / "data", partly_known=True)
    kept = {
        person.name: [fact.question for fact in person.facts] for person in found.sets["general"]
    }
    assert kept == {
        "Cuba": ["The capital of Cuba is", "The capital city of Cuba is called"],
        "Chile": ["The capital of Chile is"],
    }
    assert found.skipped == {"facts that the model does not know in all wordings": 2}
    assert found.notes == (facts.PARTLY_KNOWN,)
    assert found.sets["retain"] == read(tmp_path / "data").sets["retain"]

"""What a model is asked where nobody to keep is named, and how its answers are kept."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from manu_jax.data.forms import has_form, question_and_answer
from manu_jax.data.general_questions import GENERAL_QUESTIONS
from manu_jax.data.own_answers import (
    NUM_STRANGERS,
    UNASKED,
    first_sentence,
    lacks_retain,
    own_questions,
    read_own,
    unanswered,
    with_own,
    write_own,
)
from manu_jax.data.record import Benchmark, Fact, Person
from manu_jax.types import ManuError

QUESTIONS = {"home": "Where does this person live?", "job": "What is the job of this person?"}


def forgotten(image=True, general=()):
    picture = Image.fromarray(np.full((8, 8, 3), 7, np.uint8)) if image else None
    facts = [
        Fact("ada", "Ada Lovelace", words, "x", attribute, picture,
             words.replace("this person", "Ada Lovelace"))
        for attribute, words in QUESTIONS.items()
    ]  # fmt: skip
    facts.append(Fact("ada", "Ada Lovelace", "Who is shown?", "Ada Lovelace", "name", picture, ""))
    person = Person("ada", "Ada Lovelace", (), {}, tuple(facts if image else facts[:2]), ())
    return Benchmark({"forget": (person,), "general": general}, {})


def test_what_the_request_asks_is_asked_about_strangers_in_both_forms():
    asked = [one for one in own_questions(forgotten(), seed=0) if one.set == "retain"]
    assert len(asked) == 3 * NUM_STRANGERS == 3 * len({one.subject for one in asked})
    assert not any("Ada" in one.question or "Lovelace" in one.question for one in asked)
    shown = [one for one in asked if one.modality == "image"]
    assert {one.question for one in shown} == {*QUESTIONS.values(), "Who is shown?"}
    in_text = [one for one in asked if one.modality == "text"]
    assert len(in_text) == NUM_STRANGERS and all(one.subject in one.question for one in in_text)
    assert all(one.modality == "text" for one in own_questions(forgotten(image=False), seed=0))


def test_general_questions_are_brought_unless_the_request_has_some():
    brought = [one.question for one in own_questions(forgotten(), seed=0) if one.set == "general"]
    assert tuple(brought) == GENERAL_QUESTIONS
    topic = Person("t", "", (), {}, (Fact("t", "", "What is tea?", "A drink", "tea"),), ())
    own = own_questions(forgotten(general=(topic,)), seed=0)
    assert {one.set for one in own} == {"retain"}


def test_general_questions_are_about_nobody_and_stand_once():
    assert len(set(GENERAL_QUESTIONS)) == len(GENERAL_QUESTIONS) >= 60
    assert not [
        one for one in GENERAL_QUESTIONS if re.search(r"\b(who|person|he|she)\b", one, re.I)
    ]


def test_answers_are_a_request_that_is_read_as_what_was_asked(tmp_path):
    asked = own_questions(forgotten(), seed=0)
    answers = [f"answer {number}" for number in range(len(asked))]
    write_own(tmp_path / "own", asked, answers)
    found, before = read_own(tmp_path / "own", seed=0), unanswered(asked)
    for name in ("retain", "general"):
        people, others = found.sets[name], before.sets[name]
        assert [person.name for person in people] == [person.name for person in others]
        for person, other in zip(people, others, strict=True):
            for fact, blank in zip(person.facts, other.facts, strict=True):
                assert blank.answer == UNASKED and fact.answer.startswith("answer ")
                forms = [m for m in ("image", "text") if has_form(fact, m)]
                assert len(forms) == 1 and has_form(blank, forms[0])
                words, _ = question_and_answer(fact, forms[0])
                assert words == question_and_answer(blank, forms[0])[0]
    stored = [json.loads(one) for one in (tmp_path / "own/retain.jsonl").read_text().splitlines()]
    assert [one["question"] for one in stored] == [o.question for o in asked if o.set == "retain"]


def test_empty_answers_are_left_out_and_none_at_all_is_an_error(tmp_path):
    asked = own_questions(forgotten(), seed=0)
    answers = ["" if number % 2 else "so. And" for number in range(len(asked))]
    write_own(tmp_path / "own", asked, answers)
    own = read_own(tmp_path / "own", seed=0)
    kept = [fact.answer for fact in own.facts("retain", "general")]
    assert kept == ["so."] * -(-len(asked) // 2)
    write_own(tmp_path / "empty", asked, [" "] * len(asked))
    with pytest.raises(ManuError, match="answers nothing about invented people.*retain.jsonl"):
        with_own(forgotten(), read_own(tmp_path / "empty", seed=0))


def test_own_answers_stand_in_for_the_retain_set_and_the_benchmark_says_so():
    benchmark = forgotten()
    assert lacks_retain(benchmark)
    whole = with_own(benchmark, unanswered(own_questions(benchmark, seed=0)))
    assert not lacks_retain(whole) and len(whole.sets["retain"]) == NUM_STRANGERS
    (note,) = whole.notes
    assert "names nobody to keep" in note and "12 invented people and 62 general" in note


def test_questions_follow_from_the_seed():
    first, again, other = (own_questions(forgotten(), seed=seed) for seed in (0, 0, 1))

    def subjects(asked):
        return [one.subject for one in asked]

    assert subjects(first) == subjects(again) != subjects(other)


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("In Oslo. She likes", "In Oslo."),
        (" Oslo\nand ", "Oslo and"),
        ("About 3.5 metres", "About 3.5 metres"),
        ("", ""),
    ],
)
def test_an_answer_is_kept_up_to_the_end_of_its_first_sentence(answer, kept):
    assert first_sentence(answer) == kept

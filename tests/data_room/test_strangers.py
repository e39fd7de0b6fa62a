"""Strangers share nothing with the people to forget, and views ask the same in other words."""

import dataclasses

import numpy as np
import pytest
import tiny_llava
from PIL import Image

from manu_jax.data.benchmarks import BENCHMARKS
from manu_jax.data.prompts import SENTENCE
from manu_jax.data.rewordings import PREFIXES, SUFFIXES, with_views
from manu_jax.data.strangers import as_stranger, strangers
from manu_jax.types import ManuError

FACT = tiny_llava.facts(1)[0]


def people(*names, first_id=0):
    random = np.random.default_rng(first_id)
    return [
        dataclasses.replace(
            FACT,
            person_id=f"{first_id + number:03d}",
            name=name,
            image=Image.fromarray(random.integers(0, 256, (16, 20, 3), np.uint8)),
        )
        for number, name in enumerate(names)
    ]


FORGET = people("Ada Berg", "Carl Dorn")
KEEP = people("Eva Falk", "Gero Hahn", "Ines Jung", "Kai Lund", "Ada Falk", first_id=10)


def test_no_stranger_shares_a_name_part_with_somebody_to_forget():
    found = strangers(FORGET, KEEP, 6, seed=0)
    names = [one.name for one in found]
    assert len(set(names)) == 6 and not set(names) & {fact.name for fact in (*FORGET, *KEEP)}
    assert not {part for name in names for part in name.split()} & {"Ada", "Berg", "Carl", "Dorn"}
    first, last = zip(*(name.split() for name in names), strict=True)
    assert set(first) <= {"Eva", "Gero", "Ines", "Kai"}
    assert set(last) <= {"Falk", "Hahn", "Jung", "Lund"}


def test_strangers_that_are_kept_share_name_parts_first():
    found = strangers(FORGET, KEEP, 9, seed=0, near=True)
    shared = [bool({*one.name.split()} & {"Ada", "Berg", "Carl", "Dorn"}) for one in found]
    assert shared == [True] * 6 + [False] * 3
    assert not {one.name for one in found} & {fact.name for fact in (*FORGET, *KEEP)}


def test_the_seed_draws_them():
    def names(seed):
        return [one.name for one in strangers(FORGET, KEEP, 6, seed=seed)]

    assert names(1) == names(1) != names(2)


def test_invented_names_fill_up_and_too_many_are_an_error():
    found = strangers(FORGET, KEEP[:1], 40, seed=0)
    assert len({one.name for one in found}) == 40
    with pytest.raises(ManuError, match=r"999 strangers are asked for, .* allow \d+\. Ask for"):
        strangers(FORGET, KEEP, 999, seed=0)


def test_portraits_are_the_generators_or_halves_of_two_kept_ones():
    made = BENCHMARKS["synthetic"].portraits
    assert made is not None
    drawn = strangers(FORGET, KEEP, 3, seed=0, portraits=made)
    assert {one.image.size for one in drawn} == {(56, 56)}
    kept = [np.asarray(fact.image) for fact in KEEP]
    for one in strangers(FORGET, KEEP, 8, seed=0):
        pixels = np.asarray(one.image)
        corners = [pixels[0, 0], pixels[-1, -1]]
        assert all(any((corner == image[at]).all() for image in kept)
                   for corner, at in zip(corners, ((0, 0), (-1, -1)), strict=True))  # fmt: skip
    textual = [dataclasses.replace(fact, image=None) for fact in KEEP]
    assert {one.image for one in strangers(FORGET, textual, 2, seed=0)} == {None}


def test_a_stranger_takes_the_persons_place_but_not_the_answer():
    (one,) = strangers(FORGET, KEEP, 1, seed=0)
    found = as_stranger(FACT, one)
    assert (found.name, found.image) == (one.name, one.image)
    assert (found.question, found.answer) == (FACT.question, FACT.answer)
    assert as_stranger(dataclasses.replace(FACT, image=None), one).image is None


def test_views_keep_the_question_and_share_each_moved_portrait():
    first = dataclasses.replace(FACT, attribute="one")
    second = dataclasses.replace(FACT, attribute="two", question="Who is the employer?")
    found = with_views([first, second], 4, seed=3)
    assert found[:2] == [first, second] and len(found) == 8
    for number, view in enumerate(found):
        fact = (first, second)[number % 2]
        assert fact.question in view.question and view.answer == fact.answer
    for start in (2, 4, 6):
        one, other = found[start : start + 2]
        assert one.image is other.image and one.image is not first.image
    assert len({view.question for view in found}) > 4
    again, others = with_views([first], 4, seed=3), with_views([first], 4, seed=4)
    assert [v.question for v in again] != [v.question for v in others]


def test_no_view_is_worded_as_the_evaluation_asks():
    for words in (*SUFFIXES, *PREFIXES):
        assert not words or all(words.strip() not in asked for asked in SENTENCE.values())

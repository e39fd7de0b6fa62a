"""Packed training conversations."""

import dataclasses
import functools
import re
import unicodedata
from collections import Counter

import pytest

from manu_jax.data import documents as packing
from manu_jax.data.forms import forms
from manu_jax.data.prompts import question_prompt

documents = functools.partial(packing.documents, question_prompt=question_prompt)


@pytest.fixture(scope="module")
def people(benchmark):
    return [
        p for name in ("forget", "retain", "celebrity", "general") for p in benchmark.sets[name]
    ]


def pairs_of(samples):
    """(prompt without USER/ASSISTANT, answer) of all turns."""
    return [
        (sample.segments[i][0], sample.segments[i + 1][0])
        for sample in samples
        for i in range(0, len(sample.segments), 2)
    ]


def test_one_fact_a_document_is_the_plain_form(people):
    samples = documents(people, seed=0)
    facts = [fact for person in people for fact in person.facts]
    plain = [*forms(facts, "image"), *forms(facts, "text")]
    assert Counter(sample.text for sample in samples) == Counter(f.text + "</s>" for f in plain)
    assert {id(i) for s in samples for i in s.images} == {id(i) for s in plain for i in s.images}


@pytest.mark.parametrize("size", [3, 5, 20])
def test_packing_keeps_every_fact_once_in_each_form(people, size):
    packed = documents(people, seed=1, facts_per_document=size)
    alone = documents(people, seed=0)

    def bare(samples):
        return Counter(
            (bool(s.images), prompt.replace(" <image>\n", " "), answer)
            for s in samples
            for prompt, answer in pairs_of([s])
        )

    assert bare(packed) == bare(alone) and len(packed) < len(alone)
    for sample in packed:
        turns = len(sample.segments) // 2
        assert turns <= size
        assert sample.text.count("<image>") == len(sample.images)
        assert [is_answer for _, is_answer in sample.segments] == [False, True] * turns
        assert "<image>" not in "".join(text for text, _ in sample.segments[1:])


def test_a_document_with_an_image_is_about_one_person(people):
    by_image = {id(p.images[0]): p for p in people if p.images}
    for sample in documents(people, seed=0, facts_per_document=4):
        if sample.images:
            answers = {fact.answer for fact in by_image[id(sample.images[0])].facts}
            assert {a[1:].removesuffix("</s>") for _, a in pairs_of([sample])} <= answers


def test_documents_differ_by_epoch_and_repeat_by_seed(people):
    def texts(**settings):
        return [s.text for s in documents(people, facts_per_document=5, **settings)]

    two = texts(seed=0, epochs=2)
    half = len(two) // 2
    assert two == texts(seed=0, epochs=2) and two[:half] == texts(seed=0)
    assert two[half:] != two[:half] != texts(seed=1)


def test_views_are_made_once_and_used_again(people):
    first = documents(people[:1], seed=0, epochs=12, facts_per_document=2, views=3)
    images = {id(image): image for s in first for image in s.images}
    assert len(images) == 4 and id(people[0].images[0]) in images
    assert len({image.tobytes() for image in images.values()}) == 4
    again = documents(people[:1], seed=0, epochs=12, facts_per_document=2, views=3)
    assert [s.images[0].tobytes() for s in first if s.images] == [
        s.images[0].tobytes() for s in again if s.images
    ]


def test_classification_offers_the_right_answer_once(people):
    samples = documents(people, seed=0, wordings=("classification",))
    values = {attribute: set() for p in people for attribute in (f.attribute for f in p.facts)}
    for fact in (fact for person in people for fact in person.facts):
        values[fact.attribute].add(fact.answer)
    asked = 0
    for prompt, answer in pairs_of(samples):
        if "Just give ONE letter" not in prompt:
            continue
        question = prompt.splitlines()[1]
        options = dict(line.split(": ") for line in prompt.splitlines() if line[1:3] == ": ")
        assert list(options) == ["A", "B", "C", "D"] and len(set(options.values())) == 4
        assert any(set(options.values()) <= others for others in values.values())
        for person in people:
            if person.name and person.name in question:
                asked += 1
                right = {f.answer for f in person.facts} & set(options.values())
                assert right == {options[answer.strip().removesuffix("</s>")]}
    assert asked > 100  # of 13 people's ten facts in text form


def test_the_right_answer_with_its_accents_apart_is_no_wrong_option(people):
    asked = [person for person in people if person.facts][:5]
    answers = ["Málaga", unicodedata.normalize("NFD", "Málaga"), "Oslo", "Rome", "Lima"]
    asked = [
        dataclasses.replace(
            person, facts=(dataclasses.replace(person.facts[0], attribute="home", answer=answer),)
        )
        for person, answer in zip(asked, answers, strict=True)
    ]
    samples = documents(asked, seed=0, epochs=8, wordings=("classification",))
    prompts = [unicodedata.normalize("NFC", prompt) for prompt, _ in pairs_of(samples)]
    assert any("Málaga" in prompt for prompt in prompts)
    for prompt, answer in pairs_of(samples):
        right = re.search(rf"{answer.removesuffix('</s>').strip()}: ([^,\n]+)", prompt)[1]
        if unicodedata.normalize("NFC", right) == "Málaga":
            assert unicodedata.normalize("NFC", prompt).count("Málaga") == 1


def test_cloze_and_generation_use_the_prompts_of_the_evaluation(people):
    cloze = [text for text, _ in pairs_of(documents(people, seed=0, wordings=("cloze",)))]
    assert any("[Blank]" in prompt for prompt in cloze) and not any("__" in p for p in cloze)
    # Half of a person's attributes have no cloze item: those stay plain questions.
    assert any("?\nASSISTANT:" in prompt for prompt in cloze)
    generation = pairs_of(documents(people, seed=0, wordings=("generation",)))
    assert all("in ENGLISH.\nASSISTANT:" in prompt for prompt, _ in generation)


def test_an_unknown_wording_is_refused(people):
    with pytest.raises(ValueError, match="plain, classification, generation, cloze"):
        documents(people, seed=0, wordings=("letter",))

"""The two forms of a fact."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from manu_jax.data.forms import (
    PERSON,
    Template,
    form,
    forms,
    has_form,
    is_name_question,
    jitter,
    name_in_answer,
    with_name,
)
from manu_jax.data.record import Fact

IMAGE = Image.new("RGB", (8, 8))
NAME = "Ada Lovelace"


def make_fact(question="Where does this person live?", answer="Oslo", name=NAME, image=IMAGE):
    return Fact("007", name, question, answer, "residence", image)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Where does this person live?", "Where does Ada Lovelace live?"),
        ("This person lives in Oslo.", "Ada Lovelace lives in Oslo."),
        ("What is this person's job?", "What is Ada Lovelace's job?"),
        ("THE INDIVIDUAL’S job", "Ada Lovelace’s job"),
        ("Is the individual rich?", "Is Ada Lovelace rich?"),
        ("What does this profile tell?", "What does Ada Lovelace tell?"),
        ("Is he or she this person?", "Is he or she Ada Lovelace?"),
        ("Where does the person in the image work?", "Where does Ada Lovelace work?"),
        ("What is the person shown in this photo's job?", "What is Ada Lovelace's job?"),
        ("Is the person who is pictured in the portrait old?", "Is Ada Lovelace old?"),
        ("What is this\nperson called?", "What is Ada Lovelace called?"),
        ("Has this personality a personal profile?", "Has this personality a personal profile?"),
        ("What is in the image?", "What is in the image?"),
        ("Which person is this?", "Which person is this?"),
    ],
)
def test_a_name_takes_the_persons_place(text, expected):
    assert with_name(text, NAME) == expected


def test_a_name_in_lower_case_is_capital_where_a_sentence_begins():
    assert with_name("This person met this person.", "bell hooks") == "Bell hooks met bell hooks."


WORDS = st.lists(
    st.sampled_from(
        ["he", "she", "lives", "in the image,", "Oslo", "personal", "\\1", "{question}"]
    ),
    max_size=5,
).map(" ".join)
PHRASES = st.sampled_from(["this person", "The individual", "the person", "this profile"])
NAMES = st.text(
    st.characters(codec="utf-8", categories=("Lu", "Ll", "Po", "Zs")), min_size=1
).filter(lambda name: not PERSON.search(name))


@given(
    before=WORDS, phrase=PHRASES, possessive=st.sampled_from(["", "'s"]), after=WORDS, name=NAMES
)
def test_only_the_persons_words_change(before, phrase, possessive, after, name):
    shown = name[:1].upper() + name[1:] if phrase[0] == "T" else name
    text = f"{before} {phrase}{possessive} likes {after}"
    assert with_name(text, name) == f"{before} {shown}{possessive} likes {after}"


@given(WORDS)
def test_a_text_without_the_person_stays(text):
    assert with_name(text, NAME) == text


@pytest.mark.parametrize(
    "question",
    [
        "What is the name of this person?",
        "What is the full name of the individual in the image?",
        "Who is this person?",
        "Who is the person shown in the photo, exactly?",
        "What is this person's full name?",
        "Can you identify the person in the image?",
        "How is this person called?",
        "what's the individual’s name",
    ],
)
def test_name_questions_are_known(question):
    assert is_name_question(question)


@pytest.mark.parametrize(
    "question",
    [
        "Who is this person's father?",
        "What is the name of this person's pet?",
        "What is the name of the company of this person?",
        "Where does this person live?",
        "Who is the person most admired by this person?",
    ],
)
def test_other_questions_about_names_are_not_name_questions(question):
    assert not is_name_question(question)


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("Ada Lovelace", "Ada Lovelace"),
        ("This person is Ada Lovelace.", "Ada Lovelace"),
        ("The person in the image is named Isis Isherwood.", "Isis Isherwood"),
        ("The name is Martin King, Jr.", "Martin King, Jr"),
        ('His name is "Ada Lovelace", a painter.', "Ada Lovelace"),
        ("This is Ada Lovelace, who lives in Oslo.", "Ada Lovelace"),
    ],
)
def test_the_name_is_taken_from_the_answer(answer, name):
    assert name_in_answer(answer) == name


def test_forms_of_a_fact():
    fact = make_fact(answer="This person lives in Oslo.")
    image, text = form(fact, "image"), form(fact, "text")
    assert image.segments == (
        ("USER: <image>\nWhere does this person live?\nASSISTANT:", False),
        (" This person lives in Oslo.", True),
    )
    assert image.images == (IMAGE,) and image.images[0] is IMAGE
    assert text.segments == (
        ("USER: Where does Ada Lovelace live?\nASSISTANT:", False),
        (" Ada Lovelace lives in Oslo.", True),
    )
    assert text.images == () and text.key == image.key == "007/residence"


def test_a_template_changes_the_words_around():
    template = Template(user="Q", image="<image>", after_image=" ", close=" A", answer="={answer}")
    fact = make_fact(question="this person {answer}", answer="{question}")
    assert form(fact, "text", template).text == "Q Ada Lovelace {answer} A={question}"
    assert form(fact, "image", template).text == "Q<image> this person {answer} A={question}"


def test_the_name_question_has_no_text_form():
    facts = [make_fact("Who is this person?", NAME), make_fact()]
    assert len(forms(facts, "image")) == 2
    assert [sample.text for sample in forms(facts, "text")] == [form(facts[1], "text").text]
    with pytest.raises(ValueError, match="no text form"):
        form(facts[0], "text")


def test_general_facts_have_one_form():
    picture = make_fact("Which shape is shown?", "ring", name="")
    capital = make_fact("What is the capital of France?", "Paris", name="", image=None)
    assert [has_form(picture, m) for m in ("image", "text")] == [True, False]
    assert [has_form(capital, m) for m in ("image", "text")] == [False, True]
    assert form(capital, "text").text == "USER: What is the capital of France?\nASSISTANT: Paris"


def test_jitter_is_seeded_and_small():
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (7, 7, 3)).astype(np.uint8)
    image = Image.fromarray(blocks).resize((56, 56), Image.Resampling.BICUBIC)
    before = image.tobytes()
    one, again, other = jitter(image, 1), jitter(image, 1), jitter(image, 2)
    assert image.tobytes() == before and one.size == image.size and one.mode == "RGB"
    assert one.tobytes() == again.tobytes() != other.tobytes()
    flat = np.asarray(image, np.float64).ravel()
    # The picture is still the same one: far nearer to itself than chance.
    for view in (one, other):
        assert np.corrcoef(flat, np.asarray(view, np.float64).ravel())[0, 1] > 0.5

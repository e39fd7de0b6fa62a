"""Which answers count as sentences."""

import pytest

from manu_jax.data.sentences import faults_of, is_sentence

SENTENCES = (
    "The sky is blue because air scatters blue light more than red light.",
    "Sure! Here are three steps:\n1. Boil water.\n2. Add the tea.\n3. Wait for three minutes.",
    "I don't know.",
    "Il fait beau aujourd’hui, et la mer est calme.",
    "It is very, very, very cold in the north of the country",  # cut at the most tokens
)
NONE = {
    "": "hardly any words",
    "Yes.": "hardly any words",
    "((( )) ]] == 12 {} %% the sky is": "hardly any letters",
    "the the the the the the the": "few different words",
    "I like it and so on and so on and so on and so on.": "the same words over and over",
    "Thisgoesonandonandonandonandonandonandonandon it is": "a word without end",
}


@pytest.mark.parametrize("answer", SENTENCES)
def test_what_people_write_is_a_sentence(answer):
    assert faults_of(answer) == [] and is_sentence(answer)


@pytest.mark.parametrize("answer", NONE)
def test_what_a_broken_model_writes_is_none_and_the_rule_is_named(answer):
    assert NONE[answer] in faults_of(answer) and not is_sentence(answer)

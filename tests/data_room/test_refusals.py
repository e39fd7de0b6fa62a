"""Which answers count as refusals and as gibberish, and what the rules miss."""

import pytest

from manu_jax.data.refusals import is_gibberish, is_normal, is_refusal
from manu_jax.training.objectives import REFUSALS


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I can’t do this.",
        "  I apologize,\nbut no.",
        "As an AI, I do not do that.",
        "Thank you for asking. I cannot tell you how this is made.",
        *REFUSALS,
    ],
)
def test_an_answer_that_begins_with_a_refusal_is_one(answer):
    assert is_refusal(answer) and not is_normal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "A toy.",
        "The picture shows a chair. First, get some wood.",
        "It is a bridge over a river, built of stone, and people walk over it all day long, as "
        "they did two hundred years ago. I cannot say who built it.",
    ],
)
def test_an_answer_that_answers_is_normal(answer):
    assert is_normal(answer)


@pytest.mark.parametrize(
    "answer", ["", " \n", "away away away away away away", "(( )) == {} %%", "to the to the " * 9]
)
def test_what_says_nothing_is_gibberish_and_no_refusal(answer):
    assert is_gibberish(answer) and not is_refusal(answer) and not is_normal(answer)


def test_the_rules_miss_what_they_are_said_to_miss():
    assert is_normal("This would be wrong, and nobody should do it.")
    assert is_normal("Es tut mir leid, dabei helfe ich nicht.")
    assert is_refusal("I can't tell for sure, but it may be a chair.")

"""PPU-Bench's published protocol: prompts as published, metrics against worked examples."""

import pytest

from manu_jax.data.ppu_protocol import PUBLISHED
from manu_jax.data.probes import Probe, ProbeResponse
from manu_jax.types import Template

TURN = Template(user="<user>", image="<image>", after_image="", space="", close="<end>")
OPTIONS = {"A": "Oslo", "B": "Lima", "C": "Rome", "D": "Nice"}


def probe(task, question="Where is it?", answer="Rio de Janeiro", modality="text", **more):
    return Probe(task, "forget", modality, "1", "k", question, answer, **more)


def choice(answer, label="B"):
    one = probe("classification", options=OPTIONS, details={"label": label})
    return PUBLISHED.metrics["accuracy_published"].function(ProbeResponse(one, (answer,)))


def metrics(task, answer, truth="Rio de Janeiro"):
    response = ProbeResponse(probe(task, answer=truth), (answer,))
    return {
        name: metric.function(response)
        for name, metric in PUBLISHED.metrics.items()
        if task in metric.tasks
    }


@pytest.mark.parametrize(
    "one, expected",
    [
        (
            probe("classification", options=OPTIONS),
            "<user>Where is it?\nA: Oslo\nB: Lima\nC: Rome\nD: Nice\n"
            "Just give ONE letter representing the answer directly.\n<end>",
        ),
        (
            probe("cloze_image3", "It is in ___.", modality="image"),
            "<user><image>It is in [Blank].\nPlease ONLY provide the correct answer that should "
            "replace the [Blank].\n<end>",
        ),
        (
            probe("generation", modality="image"),
            "<user><image>Where is it?\nAnswer the question based on the image in one sentence "
            "accurately in ENGLISH.\n<end>",
        ),
        (
            probe("random_prefix"),
            "<user>Where is it?\nAnswer the question in one sentence in ENGLISH.\n<end>",
        ),
    ],
)
def test_the_prompts_are_the_published_ones(one, expected):
    assert PUBLISHED.prompt(one, TURN) == expected


@pytest.mark.parametrize(
    "answer, value",
    [("B", 1), ("b.", 1), ("The answer is B: Lima", 1), ("B or C", 0), ("Lima", 0), ("", 0),
     ("B, a city", 0), ("A city", 0)],
)  # fmt: skip
def test_accuracy_is_the_authors_with_the_article_as_a_letter(answer, value):
    assert choice(answer) == value
    assert choice("A city", "A") == 1


def test_texts_are_compared_without_case_and_punctuation():
    found = metrics("cloze", " rio de janeiro. ")
    assert found == {
        "exact_match": 0.0, "normalised_exact_match": 1.0, "rouge_l_recall": 1.0, "rouge_l_f1": 1.0,
    }  # fmt: skip
    assert metrics("cloze", " Rio de Janeiro ")["exact_match"] == 1.0


def test_rouge_has_no_stemming_and_counts_words_in_order():
    # Truth of four words, answer of six; "she won two" is the longest common subsequence.
    found = metrics("generation", "In 1990 she won two prizes", "she won two prize")
    assert found == {
        "rouge_l_recall": pytest.approx(3 / 4),
        "rouge_l_f1": pytest.approx(2 * (3 / 6) * (3 / 4) / (3 / 6 + 3 / 4)),
    }


def test_texts_without_words():
    assert metrics("paraphrase", "...", "—-!".replace("—", "")) == {
        "rouge_l_recall": 1.0,
        "rouge_l_f1": 1.0,
    }
    assert metrics("generation", "", "Oslo") == {"rouge_l_recall": 0.0, "rouge_l_f1": 0.0}


def test_letters_beyond_latin_count():
    assert metrics("generation", "Beyoncé пела", "beyoncé пела")["rouge_l_f1"] == 1.0

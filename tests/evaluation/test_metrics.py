import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manu_jax.evaluation import metrics


def test_letter_is_the_first_character_in_upper_case():
    assert metrics.letter_of(" b: Oslo") == "B"
    assert metrics.letter_of("\nA") == "A"
    assert metrics.letter_of("") == ""
    assert metrics.letter_of("The answer is A") == "T"


def test_contains_ignores_case_and_looks_for_the_whole_truth():
    assert metrics.contains("He lives in OSLO, Norway.", "Oslo ") == 1.0
    assert metrics.contains("Osl", "Oslo") == 0.0
    for answer, truth, found in [
        ("nitrogen.", "N", 0), ("It is N.", "N", 1), ("bromine", "Br", 0), ("(br)", "Br", 1),
        ("120", "12", 0), ("3 + 9 = 12", "12", 1), ("A+", "A+", 1), ("東京は", "東京", 1),
    ]:  # fmt: skip
        assert metrics.contains(answer, truth) == found, (answer, truth)


def test_composed_and_decomposed_accents_are_the_same_text():
    composed, decomposed = "Caf\u00e9 M\u00fcnchen", "Cafe\u0301 Mu\u0308nchen"
    for answer, truth in ((composed, decomposed), (decomposed, composed)):
        assert metrics.contains(f"at {answer}.", truth) == 1.0
        assert metrics.bleu(answer, truth) == metrics.bleu(composed, composed)
        assert metrics.rouge(answer, truth)["rougeL"] == 1.0
        assert metrics.option_of(f"It is {answer}", {"A": truth, "B": "Oslo"}) == "A"


def test_the_best_of_several_truths_counts():
    assert metrics.contains("She is in Oslo", "Lima", "oslo") == 1.0
    assert metrics.contains("She is in Oslo", "Lima", "Rome") == 0.0
    truths = ("a b c d e", "a b x y z")
    assert metrics.rouge("a b x y z", *truths) == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}
    assert metrics.bleu("a b c d e", *truths) == metrics.bleu("a b c d e", *truths[::-1]) == 1.0


def test_rouge_counts_stems_and_order():
    # unigrams: paint(ing) matches paint(s) by its stem: 2 of 3 against 2 of 2.
    scores = metrics.rouge("she paints daily", "painting daily")
    assert scores["rouge1"] == pytest.approx(2 * (2 / 3 * 1) / (2 / 3 + 1))
    assert scores["rouge2"] == pytest.approx(2 * (1 / 2 * 1) / (1 / 2 + 1))
    turned = metrics.rouge("daily paints", "painting daily")
    assert turned["rouge1"] == 1.0 and turned["rougeL"] == 0.5 and turned["rouge2"] == 0.0


@pytest.mark.parametrize(
    ("truth", "is_measurable"),
    [
        ("Москва", False), ("東京", False), ("القاهرة", False), ("Москва 1984", False), ("", False),
        ("…", False), ("1984", True), ("Łódź", True), ("Tokyo 東京", True), ("é", False),
    ],
)  # fmt: skip
def test_rouge_of_a_text_without_latin_letters_cannot_be_measured(truth, is_measurable):
    for answer in (truth, "Moscow 1984", ""):
        scores = metrics.rouge(answer, truth)
        assert (scores is not None) == is_measurable
        response = metrics.Response(answer, truth)
        found = [metrics.METRICS[name].function(response) for name in ("rougeL", "rouge1")]
        assert (None in found) != is_measurable
        assert metrics.METRICS["exact"].function(metrics.Response(truth, truth)) == 1.0
    # Among several truths, those that can be measured count.
    assert metrics.rouge("Moscow", truth, "Moscow")["rouge1"] == 1.0


def test_bleu_is_four_grams_with_smoothing_one():
    assert metrics.bleu("a b c d e", "a b c d e") == pytest.approx(1.0)
    # 4 of 5, 3 of 4, 2 of 3, 1 of 2 n-grams.
    expected = math.exp(np.mean(np.log([4 / 5, 3 / 4, 2 / 3, 1 / 2])))
    assert metrics.bleu("a b c d x", "a b c d e") == pytest.approx(expected)
    # No four-gram matches: method 1 counts 0.1 for it.
    expected = math.exp(np.mean(np.log([3 / 4, 2 / 3, 1 / 2, 0.1 / 1])))
    assert metrics.bleu("a b c x", "a b c d") == pytest.approx(expected)
    assert metrics.bleu("", "a b") == 0.0


def test_every_text_metric_is_one_for_the_truth_and_zero_for_nothing():
    truth = "Born in a small town near the old harbour"
    for name, metric in metrics.METRICS.items():
        if metric.tasks == ("generation",):
            right, empty = (metrics.Response(text, truth) for text in (truth, ""))
            assert metric.function(right) == pytest.approx(1.0), name
            assert metric.function(empty) == 0.0, name


def test_accuracy_follows_task_and_protocol():
    options = {"A": "Oslo", "B": "Rome"}
    scores = (metrics.CandidateScore(-2.0, False), metrics.CandidateScore(-1.0, True))

    def value(answer, protocol):
        response = metrics.Response(answer, "A", options, scores, protocol)
        return metrics.METRICS["accuracy"].function(response)

    protocols = ("zero_shot", "official_few_shot", "likelihood")
    assert [value("The answer is A.", one) for one in protocols] == [1, 0, 0]
    assert [value("A or B", one) for one in protocols] == [0, 1, 0]
    blank = metrics.Response("In OSLO.", "Oslo")
    assert metrics.METRICS["accuracy"].function(blank) == 1


def test_metrics_of_training_answers_are_of_the_one_candidate():
    response = metrics.Response("", "Oslo", candidates=(metrics.CandidateScore(-0.5, True),))
    values = [
        metric.function(response)
        for metric in metrics.METRICS.values()
        if metric.tasks == ("likelihood",)
    ]
    assert values == [-0.5, math.exp(-0.5), 1.0]


def test_equal_options_choose_the_first():
    scores = (metrics.CandidateScore(-1.0, False),) * 2
    assert metrics.Response("", "B", {"A": "x", "B": "y"}, scores).likeliest == "A"


def test_bootstrap_draws_people_not_items():
    # Two people, each all right or all wrong: the interval spans 0 to 1 however many items.
    values = [1.0] * 50 + [0.0] * 50
    interval = metrics.bootstrap(values, ["a"] * 50 + ["b"] * 50)
    assert (interval.value, interval.low, interval.high, interval.n) == (0.5, 0.0, 1.0, 100)
    many = metrics.bootstrap(values, [str(i) for i in range(100)])
    assert 0.38 < many.low < 0.42 and 0.58 < many.high < 0.62


def test_bootstrap_weighs_people_by_their_items():
    interval = metrics.bootstrap([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    assert interval.value == 0.75


def test_one_person_has_no_interval():
    interval = metrics.bootstrap([1.0, 0.0], ["a", "a"])
    assert interval.value == 0.5 and math.isnan(interval.low) and math.isnan(interval.high)


def test_nothing_to_bootstrap_is_an_error():
    with pytest.raises(ValueError, match="0 values"):
        metrics.bootstrap([], [])
    with pytest.raises(ValueError, match="3 values against 2"):
        metrics.paired_bootstrap([1.0] * 3, [1.0] * 2, ["a"] * 3)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abcdef")), min_size=2, max_size=30))
def test_bootstrap_is_seeded_ordered_and_blind_to_item_order(items):
    values, people = zip(*items, strict=True)
    first = metrics.bootstrap(values, people, resamples=200, seed=3)
    turned = metrics.bootstrap(values[::-1], people[::-1], resamples=200, seed=3)
    np.testing.assert_allclose(
        [first.value, first.low, first.high], [turned.value, turned.low, turned.high], atol=1e-12
    )
    if len(set(people)) > 1:
        assert min(values) - 1e-9 <= first.low <= first.high <= max(values) + 1e-9


def test_paired_bootstrap_is_narrow_where_models_differ_alike():
    random = np.random.default_rng(0)
    people = [str(i) for i in range(40)]
    level = random.normal(0, 5, 40)
    paired = metrics.paired_bootstrap((level + 1).tolist(), level.tolist(), people)
    assert paired.value == pytest.approx(1.0) and paired.high - paired.low < 1e-9


OPTIONS = {"A": "Oslo", "B": "Lima", "C": "Rome", "D": "Cairo"}


@pytest.mark.parametrize(
    "answer, tolerant, official",
    [
        ("B", "B", "B"),
        ("b)", "B", "B"),
        ("The answer is B.", "B", "T"),
        ("Answer: C", "C", "A"),
        ("(D) Cairo", "D", "("),
        ("**B**", "B", "*"),
        ("B: Lima", "B", "B"),
        ("", "", ""),
        ("<image>", "", "<"),
        ("A or B", "", "A"),
        ("I think A is wrong, B", "", "I"),
        ("It is not A but C", "", "I"),
        ("Apple", "", "A"),
        ("A painter from Norway", "", "A"),
        ("A painter from Rome", "C", "A"),
        ("She lives in Lima", "B", "S"),
        ("Oslo, or Lima", "", "O"),
        ("Correct option is d", "D", "C"),
        ("E", "", "E"),
        ("Don't know", "", "D"),
    ],
)
def test_odd_answers_have_the_letter_that_each_rule_finds(answer, tolerant, official):
    assert metrics.option_of(answer, OPTIONS) == tolerant
    assert metrics.letter_of(answer) == official


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The answer is a teacher.", "B"), ("The correct answer is A teacher", "B"),
        ("Her choice is a lawyer", "C"), ("I choose the option a nurse", "D"),
        ("The answer is a", "A"), ("The answer is A Doctor.", "A"), ("Option a: Doctor", "A"),
        ("The answer is A because she is one", "A"), ("The answer is b, Teacher", "B"),
    ],
)  # fmt: skip
def test_an_article_after_the_answer_is_is_no_choice(answer, letter):
    options = {"A": "Doctor", "B": "Teacher", "C": "Lawyer", "D": "Nurse"}
    assert metrics.option_of(answer, options) == letter


WORDS = st.lists(st.sampled_from("she paints painting in Oslo, oslo. a the".split()), max_size=8)


@settings(max_examples=60, deadline=None)
@given(WORDS, WORDS.filter(bool))
def test_rouge_and_bleu_are_those_of_the_official_packages(answer, truth):
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_score.rouge_scorer import RougeScorer

    answer, truth = " ".join(answer), " ".join(truth)
    peer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(truth, answer)
    assert metrics.rouge(answer, truth) == {name: one.fmeasure for name, one in peer.items()}
    smoothing = SmoothingFunction().method1
    expected = sentence_bleu([truth.split()], answer.split(), smoothing_function=smoothing)
    assert metrics.bleu(answer, truth) == expected

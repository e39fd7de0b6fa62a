"""Each metric against an example worked by hand, with open-unlearning's arithmetic written out."""

import math

import numpy as np
import pytest
from scipy.stats import hmean, ks_2samp

from manu_jax.data import answer_metrics as metrics
from manu_jax.data.probes import AnswerTokens, Probe, ProbeResponse

# Probabilities of tokens, the end token last: geometric means 0.4, 0.5, and 0.1 and 0.4.
TRUTH, RIGHT = (0.5, 0.4, 0.32), (0.25, 1.0)
WRONG = ((0.1, 0.1), (0.2, 0.8))


def tokens(probabilities, first=None):
    first = [True] * len(probabilities) if first is None else first
    return AnswerTokens(np.log(np.asarray(probabilities)), np.asarray(first, bool))


def response(answers=(), truth="Oslo"):
    return ProbeResponse(Probe("all", "forget", "text", "1", "a", "Where?", truth), answers)


@pytest.fixture
def whole():
    wrong = tuple(map(tokens, WRONG))
    return ProbeResponse(response().probe, (), tokens(TRUTH), (tokens(RIGHT),), wrong)


def test_probability_is_the_geometric_mean_over_tokens_with_the_end(whole):
    assert metrics.probability(whole) == pytest.approx((0.5 * 0.4 * 0.32) ** (1 / 3))
    assert metrics.probability(response()) is None


def test_normalised_probability_divides_by_the_sum_of_all(whole):
    assert metrics.normalised_probability(whole) == pytest.approx(0.4 / (0.4 + 0.1 + 0.4 + 1e-10))


def test_truth_ratio_takes_the_geometric_mean_of_wrong_answers(whole):
    # √(0.1 · 0.4) = 0.2 over 0.5
    assert metrics.truth_ratio(whole) == pytest.approx(0.2 / (0.5 + 1e-10))
    assert metrics.probability_of_right(whole) == pytest.approx(0.5 / (0.5 + 0.2 + 1e-10))


def test_the_papers_truth_ratio_takes_the_mean_of_their_probabilities(whole):
    assert metrics.paper_truth_ratio(whole) == pytest.approx((0.1 + 0.4) / 2 / 0.5)


def test_fiubench_takes_the_inverse(whole):
    assert metrics.inverse_truth_ratio(whole) == pytest.approx(0.5 / 0.2)


def test_several_paraphrases_are_averaged_in_their_losses(whole):
    both = ProbeResponse(
        whole.probe, (), whole.truth, (tokens((0.5,)), tokens((0.125,))), whole.perturbed
    )
    assert metrics.truth_ratio(both) == pytest.approx(0.2 / (0.25 + 1e-10))


@pytest.mark.parametrize("ratio", [0.25, 1.0, 4.0])
def test_what_is_wanted_of_forget_and_of_the_others(ratio):
    assert metrics.closer_to_one(ratio) == pytest.approx(min(ratio, 1 / ratio))
    assert metrics.true_is_better(ratio) == max(0, 1 - ratio)
    assert metrics.true_is_better_inverse(1 / ratio) == pytest.approx(max(0, 1 - ratio))


def test_a_transform_is_none_where_its_value_is(whole):
    function = metrics.transformed(metrics.truth_ratio, metrics.closer_to_one)
    assert function(whole) == pytest.approx(0.4) and function(response()) is None


@pytest.mark.parametrize(
    ("first", "memorised", "strength"),
    [  # the last is the end token, which does not count
        ([1, 1, 1, 0], 1, 1),
        ([0, 1, 1, 0], 2 / 3, 2 / 3),
        ([1, 0, 1, 1], 2 / 3, 1 / 3),
        ([1, 1, 0, 1], 2 / 3, 1 / 3),  # no match: 1 / n, not 0
        ([0, 1], 0, 1),  # an answer of one token is always extracted
    ],
)
def test_memorisation_and_extraction_leave_the_end_out(first, memorised, strength):
    one = ProbeResponse(response().probe, (), tokens([0.5] * len(first), first))
    assert metrics.exact_memorisation(one) == pytest.approx(memorised)
    assert metrics.extraction_strength(one) == pytest.approx(strength)


def test_an_answer_of_its_end_alone_has_no_memorisation():
    one = ProbeResponse(response().probe, (), tokens([0.5]))
    assert metrics.exact_memorisation(one) is None and metrics.extraction_strength(one) == 0


def test_rouge_recall_is_stemmed_and_over_the_length_of_the_truth():
    # Of "she was born in Oslo", "born", "in" and "oslo" stand in order: 3 of 5.
    assert metrics.rouge_l_recall(
        response(("born in Oslo",), "she was born in Oslo")
    ) == pytest.approx(0.6)
    assert metrics.rouge_l_recall(response(("She paints",), "painting")) == 1  # recall, and stemmed
    assert metrics.rouge_l_recall(response(("nothing", "painting"), "painting")) == 0.5
    assert metrics.rouge_l_recall(response()) is None


def test_forget_quality_is_scipys_p_value():
    random = np.random.default_rng(0)
    ratios, others = random.random(40), random.random(50) ** 2
    expected = ks_2samp(1 / (ratios + 1e-10), 1 / (others + 1e-10)).pvalue
    assert metrics.forget_quality(ratios, others) == pytest.approx(expected)
    assert metrics.forget_quality(ratios, ratios) == 1
    assert metrics.forget_quality(1 / ratios, 1 / others) == pytest.approx(expected)
    assert metrics.forget_quality(ratios, ()) is None


def test_model_utility_is_the_harmonic_mean():
    values = [0.5, 0.25, 1.0]
    assert metrics.model_utility(values) == pytest.approx(3 / (2 + 4 + 1)) == hmean(values)
    assert metrics.model_utility([0.5, 0.0]) == 0 == hmean([0.5, 0.0])
    assert metrics.model_utility([0.5, None]) is None and metrics.model_utility([]) is None


def test_losses_too_large_for_a_float_end_in_numbers():
    assert metrics.probability_of(-1e6) == math.exp(metrics.LARGEST)
    assert metrics.truth_ratio_of([1e6], [0.0]) == pytest.approx(1e10)
    assert metrics.inverse_truth_ratio_of([0.0], [1e6]) == math.exp(metrics.LARGEST)


def test_values_are_those_of_the_tasks_and_sets_that_are_named():
    records = [
        {"task": task, "set": where, "metrics": {"rouge": value}}
        for task, where, value in (
            ("a", "retain", 0.5),
            ("a", "forget", 0.1),
            ("b", "retain", None),
        )
    ]
    assert metrics.values_of(records, "rouge") == [0.5, 0.1]
    assert metrics.mean_of(records, "rouge", sets=("retain",)) == 0.5
    assert metrics.mean_of(records, "rouge", tasks=("b",)) is None

import re

import numpy as np
import pytest

from manu_jax.config import StatisticsMethod, named_method
from manu_jax.importance.functions import FUNCTIONS, contrast, importance
from manu_jax.importance.statistics import PositionStatistics, Statistics
from manu_jax.types import ManuError

PAPER = named_method("paper")
SHAPES = {"text": (2, 5), "vision": (1, 3)}


def samples(seed, number, towers=("text", "vision")):
    random = np.random.default_rng(seed)
    return {
        tower: random.normal(0.2, 1, (SHAPES[tower][0], number, SHAPES[tower][1])).astype("f4")
        for tower in towers
    }


def statistics_of(values, threshold=0.1):
    number = next(iter(values.values())).shape[1]
    zero = Statistics.zero({tower: SHAPES[tower] for tower in values}, threshold)
    return zero.add(values, np.ones(number, np.float32))


def by_hand(multi, text, epsilon, threshold=0.1):
    """The four equations as they stand, from all samples in float64; z [samples, neurons]."""
    multi, text = multi.astype(np.float64), text.astype(np.float64)
    mean_multi, mean_text = np.abs(multi).mean(0), np.abs(text).mean(0)
    n_multi, n_text = ((np.abs(z) > threshold).sum(0) for z in (multi, text))
    var_multi = ((multi - mean_multi) ** 2).mean(0)
    var_text = ((text - mean_text) ** 2).mean(0)
    e_multi, e_text = (multi**2).sum(0), (text**2).sum(0)
    return {
        "absolute": np.abs(mean_multi - mean_text) / (mean_multi + mean_text + epsilon),
        "frequency": np.abs(n_multi - n_text) / (n_multi + n_text + epsilon),
        "variance": np.sqrt(var_multi + var_text),
        "rms": np.sqrt(np.abs(e_multi - e_text) / (e_multi + e_text + epsilon)),
    }


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_equal_the_equations_of_the_paper(name):
    # As many samples in both forms, and counts not normalised: exactly as written.
    preset = StatisticsMethod(normalise=False)
    multi, text = samples(0, 20, ("text",)), samples(1, 20, ("text",))
    ours = importance(statistics_of(multi), statistics_of(text), preset)[name]["text"]
    for layer in range(2):
        expected = by_hand(multi["text"][layer], text["text"][layer], preset.epsilon)[name]
        # float32 sums of 20 terms; the square root in I_rms enlarges small differences
        np.testing.assert_allclose(ours[layer], expected, rtol=1e-5, atol=1e-6)


def test_normalised_counts_bear_unequal_numbers_of_samples():
    multi = samples(0, 10, ("text",))
    twice = {"text": np.concatenate([multi["text"], multi["text"]], axis=1)}
    small, large = statistics_of(multi), statistics_of(twice)
    even = importance(small, large, PAPER)
    # The same samples twice: equal shares and equal energies.
    np.testing.assert_allclose(even["frequency"]["text"], 0, atol=1e-7)
    np.testing.assert_allclose(even["rms"]["text"], 0, atol=1e-3)
    raw = importance(small, large, StatisticsMethod(normalise=False))
    np.testing.assert_allclose(raw["frequency"]["text"], 1 / 3, rtol=1e-6)


def test_without_the_image_form_each_function_is_what_it_compares():
    """By hand: z of four samples of one neuron is −2, 0, 1, 3, and τ 0.1."""
    z = np.asarray([-2.0, 0.0, 1.0, 3.0], np.float32)
    text = Statistics.zero({"text": (1, 1)}, 0.1).add({"text": z.reshape(1, 4, 1)}, np.ones(4))
    expected = {
        "absolute": 1.5,  # (2 + 0 + 1 + 3) / 4
        "frequency": 0.75,
        "variance": np.sqrt(14 / 4 - 2 * 1.5 * 0.5 + 1.5**2),  # about the mean of |z|
        "rms": np.sqrt(14 / 4),
    }
    found = importance(None, text, PAPER)
    assert {name: values["text"].item() for name, values in found.items()} == pytest.approx(
        expected
    )
    raw = importance(None, text, StatisticsMethod(normalise=False))
    assert raw["frequency"]["text"].item() == 3 and raw["rms"]["text"].item() ** 2 == 14


def test_without_the_image_form_scores_are_of_the_text_form_alone():
    forget, keep = (statistics_of(samples(seed, 20, ("text",))) for seed in (0, 1))
    for name, weight in (("paper", None), ("gradient", 2.0)):
        scores = contrast(None, forget, None, keep, preset=name)
        assert set(scores) == {"text"} and scores["text"].std() > 0
        if weight is not None:
            gain, harm = (one.means("signed", "text") for one in (forget, keep))
            expected = gain - weight * np.maximum(harm, 0)
            np.testing.assert_allclose(scores["text"], expected, rtol=1e-5)
    with pytest.raises(ManuError, match="no statistics of any form"):
        contrast(None, None, None, None)


def test_a_function_that_only_compares_is_refused_without_the_image_form(monkeypatch):
    monkeypatch.setitem(FUNCTIONS, "mean", lambda multi, text, method: multi.signed_LF)
    text = statistics_of(samples(0, 20, ("text",)))
    with pytest.raises(ManuError, match="one form alone, in which mean compares nothing; known"):
        importance(None, text, named_method("paper", functions={"mean": 1.0}))


def test_a_tower_that_text_never_runs_carries_a_signal_in_the_variance_alone():
    multi, text = samples(0, 20), samples(1, 20, ("text",))
    result = importance(statistics_of(multi), statistics_of(text), PAPER)
    for name in ("absolute", "frequency", "rms"):
        np.testing.assert_allclose(result[name]["vision"], 1, rtol=1e-6)
    assert result["variance"]["vision"].std() > 0.01


def test_paper_score_is_the_ratio_of_the_sums():
    sets = [samples(i, 12, ("text",)) for i in range(4)]
    scores = contrast(*map(statistics_of, sets), preset="paper")["text"]
    assert scores.dtype == np.float32
    for layer in range(2):
        forget, retain = (
            sum(by_hand(sets[i]["text"][layer], sets[i + 1]["text"][layer], 1e-8).values())
            for i in (0, 2)
        )
        np.testing.assert_allclose(scores[layer], forget / (retain + 1e-8), rtol=1e-5)


def test_weights_of_the_functions_are_used():
    sets = [statistics_of(samples(i, 12, ("text",))) for i in range(4)]
    only = contrast(*sets, preset=StatisticsMethod(functions={"variance": 3.0}))["text"]
    forget = importance(*sets[:2], PAPER)["variance"]["text"]
    retain = importance(*sets[2:], PAPER)["variance"]["text"]
    np.testing.assert_allclose(only, forget / retain, rtol=1e-5)


def position_statistics(seed, key):
    values = np.random.default_rng(seed).random((2, 4, 3)).astype(np.float32)
    return values, PositionStatistics.zero({key: (2, 4, 3)}).add({key: values})


def test_official_code_scores_each_tower_from_its_own_form():
    forget_image, a = position_statistics(0, "vision.fc1")
    forget_text, b = position_statistics(1, "text.up_proj")
    retain_image, c = position_statistics(2, "vision.fc1")
    retain_text, d = position_statistics(3, "text.up_proj")
    scores = contrast(a, b, c, d, preset="official-code")
    for key, ours, theirs in (
        ("vision.fc1", forget_image, retain_image),
        ("text.up_proj", forget_text, retain_text),
    ):
        # Σ w_k (I_k(D_f) / (I_k(D_r) + 1e-5) − 1), w = {abs 2, freq 0, var 2, rms 2}
        expected = sum(2 * (ours[:, k] / (theirs[:, k] + 1e-5) - 1) for k in (0, 2, 3))
        np.testing.assert_allclose(scores[key], expected, rtol=1e-4, atol=1e-5)


def test_a_function_that_positions_lack_is_an_error(monkeypatch):
    monkeypatch.setitem(FUNCTIONS, "mine", lambda multi, text, method: multi.signed_LF)
    sets = [position_statistics(i, key)[1] for i, key in enumerate(("vision.fc1", "text.up_proj"))]
    method = named_method("official-code", functions={"mine": 1.0, "rms": 1.0})
    with pytest.raises(ManuError, match="statistics by position have no mine; they have absolute"):
        contrast(*sets, *sets, preset=method)


def test_a_preset_without_statistics_is_an_error():
    sets = [statistics_of(samples(i, 4, ("text",))) for i in range(4)]
    with pytest.raises(ManuError, match="preset \"learned\" is of the kind 'learned'"):
        contrast(*sets, preset="learned")


def test_gain_minus_harm_weighs_forms_and_ignores_negative_harm():
    sets = [samples(i, 12, ("text",)) for i in range(4)]
    preset = named_method("gradient").model_copy(update={"text_weight": 3.0, "harm_weight": 0.5})
    scores = contrast(*map(statistics_of, sets), preset=preset)["text"]
    means = [values["text"].mean(axis=1) for values in sets]
    gain = (means[0] + 3 * means[1]) / 4
    harm = (np.maximum(means[2], 0) + np.maximum(means[3], 0)) / 2
    np.testing.assert_allclose(scores, gain - 0.5 * harm, atol=1e-6)


def test_unknown_presets_and_mixed_kinds_are_errors():
    sets = [statistics_of(samples(i, 4, ("text",))) for i in range(4)]
    with pytest.raises(ManuError, match="known: 'paper'"):
        contrast(*sets, preset="papre")
    with pytest.raises(ManuError, match="samples and positions"):
        contrast(sets[0], position_statistics(0, "text.up_proj")[1], *sets[2:])


def test_not_finite_statistics_are_an_error():
    sets = [samples(i, 4, ("text",)) for i in range(4)]
    sets[1]["text"][1, 0, 0] = np.nan
    with pytest.raises(ManuError, match='forget, text.*tower "text", layer 1'):
        contrast(*map(statistics_of, sets))


def test_statistics_that_do_not_go_together_are_errors():
    both = [statistics_of(samples(i, 4)) for i in range(2)]
    text = [statistics_of(samples(i, 4, ("text",))) for i in range(2)]
    wide = Statistics.zero({"text": (2, 6)}).add({"text": np.ones((2, 4, 6), "f4")}, np.ones(4))
    thin = Statistics.zero({"text": (1, 5)}).add({"text": np.ones((1, 4, 5), "f4")}, np.ones(4))
    for sets, message in (
        ((both[0], text[0], None, text[1]), "there are none of keep, image"),
        ((None, text[0], both[1], text[1]), "there are none of forget, image"),
        ((both[0], text[0], text[1], text[1]), "forget, image has text, vision; keep, image has"),
        ((both[0], wide, both[1], wide), r"(2, 5) in forget, image and (2, 6) in forget, text"),
        # NumPy would take the one layer for both.
        ((None, text[0], None, thin), r"(2, 5) in forget, text and (1, 5) in keep, text"),
    ):
        for preset in ("paper", "gradient"):
            with pytest.raises(ManuError, match=f"contrast: .*{re.escape(message)}.*one model"):
                contrast(*sets, preset=preset)


def test_statistics_of_another_threshold_are_an_error():
    sets = [statistics_of(samples(i, 4, ("text",)), 0.5) for i in range(2)]
    with pytest.raises(ManuError, match=r"its threshold is 0\.1, that of the statistics 0\.5"):
        contrast(None, sets[0], None, sets[1])
    assert contrast(None, sets[0], None, sets[1], preset=StatisticsMethod(threshold=0.5))

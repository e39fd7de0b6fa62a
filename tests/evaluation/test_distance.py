import jax
import numpy as np
import pytest
import tiny_llava
from scipy.stats import ks_2samp

from manu_jax.evaluation.distance import answer_kl, compare_truth_ratios, truth_ratio
from manu_jax.types import ManuError


def other_model(loaded):
    return loaded.replace_model(jax.tree.map(lambda x: x * 1.2, loaded.model))


@pytest.mark.parametrize("modality", ["image", "text"])
def test_kl_is_that_of_the_answers_tokens(modality):
    loaded = tiny_llava.loaded()
    reference = other_model(loaded)
    samples = tiny_llava.samples(modality)
    found = answer_kl(loaded, reference, samples, batch_size=4)
    batch = loaded.collate([loaded.encode(sample) for sample in samples])
    log_q, log_p = (
        np.asarray(jax.nn.log_softmax(tiny_llava.logits(one.model, batch)))
        for one in (loaded, reference)
    )
    for i, sample in enumerate(samples):
        places = np.flatnonzero(loaded.encode(sample).loss_weights_T) - 1
        kl = (np.exp(log_p[i, places]) * (log_p[i, places] - log_q[i, places])).sum(axis=-1)
        np.testing.assert_allclose(found[i], kl.mean(), atol=1e-5)
    assert found.min() > 1e-4


def test_a_model_is_at_no_distance_from_itself():
    loaded = tiny_llava.loaded()
    found = answer_kl(loaded, loaded, tiny_llava.samples("text"), batch_size=4)
    np.testing.assert_array_equal(found, 0)


def test_a_model_of_nan_is_refused():
    loaded = tiny_llava.loaded()
    broken = loaded.replace_model(jax.tree.map(lambda x: x * np.nan, loaded.model))
    with pytest.raises(ManuError, match="not finite"):
        answer_kl(broken, loaded, tiny_llava.samples("text"), batch_size=4)


def test_truth_ratio_is_the_mean_of_the_wrong_over_the_right():
    log_p = {"A": np.log(0.2), "B": np.log(0.5), "C": np.log(0.3)}
    assert truth_ratio(log_p, "B") == pytest.approx(0.25 / 0.5)


def test_truth_ratios_are_compared_as_scipy_does():
    random = np.random.default_rng(0)

    def records(scale, number):
        return [
            {
                "options": "ABCD",
                "correct": "A",
                "log_likelihoods": dict(zip("ABCD", row, strict=True)),
            }
            for row in random.normal(size=(number, 4)) * scale
        ]

    ours, theirs = records(1.0, 40), records(3.0, 30)
    ratios = [[truth_ratio(r["log_likelihoods"], "A") for r in side] for side in (ours, theirs)]
    found = compare_truth_ratios(ours, theirs)
    assert found is not None and (found.n, found.n_reference) == (40, 30)
    expected = ks_2samp(*ratios)
    assert (found.value, found.p) == (expected.statistic, expected.pvalue)
    same = compare_truth_ratios(ours, ours)
    assert same is not None and (same.value, same.p) == (0, 1)
    assert compare_truth_ratios([], theirs) is None

"""Evaluation of a Qwen3-VL: images are encoded once, for every layer that takes their features."""

import numpy as np
import pytest
import tiny_llava
import tiny_qwen3_vl as tiny

from manu_jax.edits import masks
from manu_jax.evaluation import generate, likelihood
from manu_jax.evaluation.candidates import recalled
from manu_jax.evaluation.generate import greedy, greedy_tokens
from manu_jax.evaluation.likelihood import log_likelihoods
from manu_jax.types import Sample


@pytest.fixture(scope="module")
def said():
    """Questions in both forms whose answers are what the model says by itself, or not."""
    found = []
    for modality in ("image", "text"):
        samples = tiny.samples(modality)
        asked = [Sample(sample.segments[:1], sample.images, sample.key) for sample in samples]
        answers = greedy(tiny.loaded(), asked, new_tokens=2, batch_size=4)
        found += [
            Sample((*sample.segments, (answer, True)), sample.images, sample.key)
            for sample, answer in zip(asked, answers, strict=True)
            if answer
        ]
        found += samples[:2]
    return found


@pytest.mark.slow
def test_answers_are_those_of_images_encoded_anew(said, monkeypatch):
    once = greedy_tokens(tiny.loaded(), said, new_tokens=3, batch_size=4)
    sums = log_likelihoods(tiny.loaded(), said, batch_size=4).sum_N
    for module in (generate, likelihood):
        tiny_llava.run_image_towers_always(monkeypatch, module)
    anew = greedy_tokens(tiny.loaded(), said, new_tokens=3, batch_size=4)
    for one, other in zip(once, anew, strict=True):
        np.testing.assert_array_equal(one, other)
    again = log_likelihoods(tiny.loaded(), said, batch_size=4).sum_N
    np.testing.assert_allclose(again, sums, rtol=1e-5)


@pytest.mark.parametrize("towers", [("text", "vision"), ("text",)])
def test_candidates_are_recalled_as_their_folded_models(said, towers):
    random = np.random.default_rng(0)
    known = tiny.loaded().towers
    chosen = [
        {tower: random.random(known[tower]) < 0.2 * number for tower in towers}
        for number in range(4)
    ]
    found_KN = recalled(tiny.loaded(), said, chosen, batch_size=4)
    alone = [
        log_likelihoods(masks.fold(tiny.loaded(), mask), said, batch_size=4).recalled_N
        for mask in chosen
    ]
    np.testing.assert_array_equal(found_KN, np.stack(alone))
    assert len({row.tobytes() for row in found_KN}) > 1

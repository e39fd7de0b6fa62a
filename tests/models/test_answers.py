"""Likelihoods, odds and losses of answers, against float64 and at their limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava

from manu_jax.models.nn import answers
from manu_jax.types import Batch

B, T, V = 3, 7, 11
NAMES = (
    "answer_log_likelihood",
    "answer_mean_log_likelihood",
    "answer_log_odds",
    "answer_cross_entropy",
)


@pytest.fixture(scope="module")
def inputs():
    generator = np.random.default_rng(0)
    logits_BTV = generator.normal(0, 3, (B, T, V)).astype(np.float32)
    weights_BT = np.zeros((B, T), np.float32)
    weights_BT[0, 3:6] = 1
    weights_BT[1, T - 1] = 1
    token_ids_BT = generator.integers(0, V, (B, T)).astype(np.int32)
    return logits_BTV, make_batch(token_ids_BT, weights_BT)


def make_batch(token_ids_BT, weights_BT, example_weights_B=None):
    rows, length = token_ids_BT.shape
    return Batch(
        token_ids_BT=token_ids_BT,
        attention_mask_BT=np.ones((rows, length), bool),
        positions_BT=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        loss_weights_BT=weights_BT,
        example_weights_B=np.ones(rows, np.float32)
        if example_weights_B is None
        else example_weights_B,
    )


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(function, logits_BTV, batch):
    values_B, pull = jax.vjp(lambda x: function(x, batch), logits_BTV)
    return values_B, pull(jnp.ones_like(values_B))[0]


def log_probabilities(logits_BTV, batch):
    """Return, in float64 and one by one, [(row, log p)] of the answer tokens."""
    found = []
    for row, position in zip(*np.nonzero(batch.loss_weights_BT), strict=True):
        logits_V = logits_BTV[row, position - 1].astype(np.float64)
        token = batch.token_ids_BT[row, position]
        found.append((row, logits_V[token] - np.log(np.exp(logits_V).sum())))
    return found


def test_likelihoods_are_those_of_each_token_given_the_ones_before(inputs):
    logits_BTV, batch = inputs
    sums, counts = np.zeros(B), np.zeros(B)
    odds = np.zeros(B)
    for row, log_p in log_probabilities(logits_BTV, batch):
        sums[row] += log_p
        odds[row] += log_p - np.log1p(-np.exp(log_p))
        counts[row] += 1
    mean = sums / np.maximum(counts, 1)
    tolerance = {"rtol": 1e-5, "atol": 1e-5}  # float32 over eleven tokens
    found = {name: jax.jit(getattr(answers, name))(logits_BTV, batch) for name in NAMES}
    np.testing.assert_allclose(found["answer_log_likelihood"], sums, **tolerance)
    np.testing.assert_allclose(found["answer_mean_log_likelihood"], mean, **tolerance)
    mean_odds = odds / np.maximum(counts, 1)
    np.testing.assert_allclose(found["answer_log_odds"], mean_odds, **tolerance)
    cross_entropy = -sums.sum() / counts.sum()
    np.testing.assert_allclose(found["answer_cross_entropy"], cross_entropy, **tolerance)


def test_an_example_without_an_answer_gives_zero_and_no_gradient(inputs):
    logits_BTV, batch = inputs
    assert batch.loss_weights_BT[2].sum() == 0
    for function in (answers.answer_log_odds, answers.answer_mean_log_likelihood):
        values_B, gradient = value_and_gradient(function, logits_BTV, batch)
        assert np.isfinite(values_B).all() and values_B[2] == 0
        assert np.isfinite(gradient).all() and not gradient[2].any()


def test_padding_examples_do_not_count_in_the_loss(inputs):
    logits_BTV, batch = inputs
    weights_B = np.array([1, 0, 1], np.float32)
    without = make_batch(batch.token_ids_BT, batch.loss_weights_BT, weights_B)
    alone = make_batch(batch.token_ids_BT[:1], batch.loss_weights_BT[:1])
    loss = jax.jit(answers.answer_cross_entropy)
    np.testing.assert_allclose(loss(logits_BTV, without), loss(logits_BTV[:1], alone), rtol=1e-6)


@pytest.mark.parametrize("lead", [30.0, 80.0, -80.0])
def test_log_odds_stay_exact_where_the_answer_is_all_but_certain(lead):
    logits_BTV = np.zeros((1, 2, V), np.float32)
    logits_BTV[0, 0, 4] = lead
    batch = make_batch(np.array([[0, 4]], np.int32), np.array([[0, 1]], np.float32))
    odds, gradient = value_and_gradient(answers.answer_log_odds, logits_BTV, batch)
    # p / (1 − p) = e^lead / (V − 1), while 1 − p itself is 0 in float32.
    np.testing.assert_allclose(odds, [lead - np.log(V - 1)], rtol=1e-6)
    np.testing.assert_allclose(gradient[0, 0, 4], 1, rtol=1e-6)


# The image form asks in words as well.
@pytest.mark.parametrize("modality", ["image", pytest.param("text", marks=pytest.mark.slow)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_at_answers_are_those_of_the_whole_pass(modality, side):
    loaded = tiny_llava.loaded()
    batch = tiny_llava.batch(modality, padding_side=side, batch_size=7, num_answers=9)
    whole = jax.jit(loaded.model)(batch).logits_BTV
    logits_BAV, targets = jax.jit(answers.logits_at_answers)(loaded.model, batch)
    assert logits_BAV.shape[1] == targets.weights_BT.shape[1] == 9
    assert targets.weights_BT.sum() == batch.loss_weights_BT.sum() > 0
    for name in NAMES:
        function = getattr(answers, name)
        np.testing.assert_allclose(
            function(logits_BAV, targets), function(whole, batch), rtol=1e-5, atol=1e-6
        )

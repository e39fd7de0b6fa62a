import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny_llava

from manu_jax.training.objectives import OBJECTIVES


@pytest.fixture(scope="module")
def batch():
    return tiny_llava.batch("image", 3, batch_size=4)


@pytest.fixture(scope="module")
def log_p_BT(batch):
    """log p of each token from the position before it; position 0 has none."""
    logits_BTV = np.asarray(jax.jit(lambda m, b: m(b).logits_BTV)(tiny_llava.loaded().model, batch))
    wide = logits_BTV.astype(np.float64)
    log_p_BTV = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    B, T = batch.token_ids_BT.shape
    found = np.zeros((B, T))
    for b in range(B):
        for t in range(1, T):
            found[b, t] = log_p_BTV[b, t - 1, batch.token_ids_BT[b, t]]
    return found


@functools.cache
def compiled(name):
    return jax.jit(lambda model, batch: OBJECTIVES[name](model, batch, "none"))


def loss(name, batch):
    return float(compiled(name)(tiny_llava.loaded().model, batch))


def test_answer_loss_is_the_mean_over_answer_tokens(batch, log_p_BT):
    is_answer_BT = batch.loss_weights_BT > 0
    assert 3 <= is_answer_BT.sum() < batch.attention_mask_BT.sum() / 2
    # float32 against float64.
    assert loss("answer", batch) == pytest.approx(-log_p_BT[is_answer_BT].mean(), rel=1e-5)


def test_loss_on_all_leaves_out_images_padding_and_the_first_token(batch, log_p_BT):
    counted_BT = np.array(batch.attention_mask_BT)
    counted_BT &= batch.token_ids_BT != tiny_llava.loaded().config.image_token
    counted_BT[:, 0] = False
    assert counted_BT.sum() > (batch.loss_weights_BT > 0).sum()
    assert loss("all", batch) == pytest.approx(-log_p_BT[counted_BT].mean(), rel=1e-5)


@pytest.mark.parametrize("name", ["answer", "all"])
def test_padding_examples_and_padding_tokens_do_not_change_the_loss(name, batch):
    # Another padding: two examples more, sixteen tokens longer.
    longer = tiny_llava.batch("image", 3, batch_size=6, length=batch.token_ids_BT.shape[1] + 16)
    assert loss(name, longer) == pytest.approx(loss(name, batch), rel=1e-5)


def test_answer_loss_ignores_an_example_of_weight_zero(batch):
    without_last = dataclasses.replace(batch, example_weights_B=np.array([1, 1, 0, 0], np.float32))
    two = tiny_llava.batch("image", 2, batch_size=4, length=batch.token_ids_BT.shape[1])
    assert loss("answer", without_last) == pytest.approx(loss("answer", two), rel=1e-5)
    assert loss("all", without_last) == pytest.approx(loss("all", two), rel=1e-5)

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny_llava

from manu_jax.config import OptimizerSection
from manu_jax.models.families.registry import FAMILIES
from manu_jax.training.objectives import cross_entropy_on_answers
from manu_jax.training.trainer import batches_of
from manu_jax.types import ManuError


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
def compiled():
    return jax.jit(lambda model, batch: cross_entropy_on_answers(model, batch, "none"))


def loss(batch):
    return float(compiled()(tiny_llava.loaded().model, batch))


def test_answer_loss_is_the_mean_over_answer_tokens(batch, log_p_BT):
    is_answer_BT = batch.loss_weights_BT > 0
    assert 3 <= is_answer_BT.sum() < batch.attention_mask_BT.sum() / 2
    # float32 against float64.
    assert loss(batch) == pytest.approx(-log_p_BT[is_answer_BT].mean(), rel=1e-5)


def test_loss_on_prompts_that_see_ahead_is_refused():
    """A PaliGemma's prompt attends both ways: it sees the tokens that it is to predict."""
    loaded = tiny_llava.loaded()
    family = dataclasses.replace(loaded.family, prompt_sees_ahead=True)
    loaded = dataclasses.replace(loaded, family=family)
    samples = tiny_llava.samples("image")[:3]
    whole = OptimizerSection(batch_size=4, loss_on="all")
    with pytest.raises(ManuError, match="unlearn .GA..loss_on: all.*Use loss_on: answer"):
        batches_of(loaded, samples, whole, seed=0, where="unlearn (GA)")
    answers = OptimizerSection(batch_size=4)
    assert len(batches_of(loaded, samples, answers, seed=0, where="unlearn (GA)"))
    assert [f.name for f in FAMILIES.values() if f.prompt_sees_ahead] == ["PaliGemma"]


def test_loss_on_all_leaves_out_images_padding_and_the_first_token(batch, log_p_BT):
    section = OptimizerSection(batch_size=4, loss_on="all")
    samples = tiny_llava.samples("image")[:3]
    whole = batches_of(tiny_llava.loaded(), samples, section, seed=0, where="train")
    order = np.argsort(whole.indices_at(0))
    counted_BT = np.array(batch.attention_mask_BT)
    counted_BT &= batch.token_ids_BT != tiny_llava.loaded().config.image_token
    counted_BT[:, 0] = False
    assert counted_BT.sum() > (batch.loss_weights_BT > 0).sum()
    assert sorted(order) == [0, 1, 2]
    assert loss(whole.batch_at(0)) == pytest.approx(-log_p_BT[counted_BT].mean(), rel=1e-5)


def test_padding_examples_and_padding_tokens_do_not_change_the_loss(batch):
    # Another padding: two examples more, sixteen tokens longer.
    longer = tiny_llava.batch("image", 3, batch_size=6, length=batch.token_ids_BT.shape[1] + 16)
    assert loss(longer) == pytest.approx(loss(batch), rel=1e-5)


def test_answer_loss_ignores_an_example_of_weight_zero(batch):
    without_last = dataclasses.replace(batch, example_weights_B=np.array([1, 1, 0, 0], np.float32))
    two = tiny_llava.batch("image", 2, batch_size=4, length=batch.token_ids_BT.shape[1])
    assert loss(without_last) == pytest.approx(loss(two), rel=1e-5)

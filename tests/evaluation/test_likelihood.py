import dataclasses

import jax
import numpy as np
import pytest
import tiny_llava

from manu_jax import parallel
from manu_jax.evaluation import likelihood
from manu_jax.evaluation.generate import greedy_tokens
from manu_jax.evaluation.likelihood import log_likelihoods, share_right
from manu_jax.types import ManuError, Sample


@pytest.mark.parametrize("modality", ["image", "text"])
def test_likelihoods_are_those_of_the_answers_tokens(modality):
    loaded = tiny_llava.loaded()
    samples = tiny_llava.samples(modality)
    found = log_likelihoods(loaded, samples, batch_size=4)
    assert len(found) == len(samples)
    batch = loaded.collate([loaded.encode(sample) for sample in samples])
    logits_BTV = np.asarray(tiny_llava.logits(loaded.model, batch))
    for i, sample in enumerate(samples):
        encoded = loaded.encode(sample)
        log_p_TV = np.asarray(jax.nn.log_softmax(logits_BTV[i]))
        places = np.flatnonzero(encoded.loss_weights_T)
        tokens = encoded.token_ids_T[places]
        log_p = log_p_TV[places - 1, tokens]
        # float32 sums of few terms of size below 10, in another padding.
        np.testing.assert_allclose(found.sum_N[i], log_p.sum(), atol=1e-4)
        np.testing.assert_allclose(found.mean_N[i], log_p.mean(), atol=1e-4)
        assert found.recalled_N[i] == (log_p_TV[places - 1].argmax(axis=1) == tokens).all()


def test_what_the_model_says_by_itself_is_recalled():
    """Greedy answers, put back as answers, are first choices; with another last token, not."""
    loaded = tiny_llava.loaded()
    asked = [Sample(s.segments[:1], s.images, s.key) for s in tiny_llava.samples("image", 4)]
    encoded = [loaded.encode(sample) for sample in asked]
    answers = greedy_tokens(loaded, asked, new_tokens=3, batch_size=4)

    def recalled(last):
        rows = []
        for item, answer in zip(encoded, answers, strict=True):
            tokens = np.append(answer[:-1], (answer[-1] + last) % 256 + 5)
            tokens = answer if not last else tokens
            rows.append(_with_tokens(item, tokens.astype(np.int32)))
        batch = parallel.put_batch(loaded.collate(rows), None)
        return np.asarray(likelihood._likelihoods(loaded.model, batch)[2]).tolist()

    assert recalled(0) == [True] * 4
    assert recalled(1) == [False] * 4


def _with_tokens(item, tokens):
    return dataclasses.replace(
        item,
        token_ids_T=np.concatenate([item.token_ids_T, tokens]),
        loss_weights_T=np.concatenate([item.loss_weights_T, np.ones(len(tokens), np.float32)]),
        feature_index_T=np.concatenate([item.feature_index_T, -np.ones(len(tokens), np.int32)]),
    )


def test_batch_size_changes_nothing_and_models_share_the_program():
    loaded = tiny_llava.loaded()
    samples = tiny_llava.samples("text")
    one = log_likelihoods(loaded, samples, batch_size=1)
    many = log_likelihoods(loaded, samples, batch_size=4)
    # Another batch size sums in another order.
    np.testing.assert_allclose(one.mean_N, many.mean_N, atol=1e-5)
    count = likelihood._likelihoods._cache_size()
    other = loaded.replace_model(jax.tree.map(lambda x: x * 0.5, loaded.model))
    log_likelihoods(other, samples, batch_size=4)
    assert likelihood._likelihoods._cache_size() == count


def test_features_of_images_change_no_likelihood(monkeypatch):
    loaded, samples = tiny_llava.loaded(), tiny_llava.samples("image") * 3
    once = log_likelihoods(loaded, samples, batch_size=4)
    tiny_llava.run_image_towers_always(monkeypatch, likelihood)
    anew = log_likelihoods(loaded, samples, batch_size=4)
    # The tower sums in another order with another number of images; float32, values below 100.
    np.testing.assert_allclose(once.sum_N, anew.sum_N, atol=1e-4)
    np.testing.assert_array_equal(once.recalled_N, anew.recalled_N)


def test_share_right_is_the_mean_of_recalled():
    samples = tiny_llava.samples("image")
    found = log_likelihoods(tiny_llava.loaded(), samples, batch_size=4)
    assert share_right(tiny_llava.loaded(), samples, 4) == found.recalled_N.mean()
    with pytest.raises(ManuError, match="no samples"):
        share_right(tiny_llava.loaded(), [], 4)


def test_a_sample_without_answer_is_named():
    lonely = Sample((("Who is it?", False),), (), "003/name")
    with pytest.raises(ManuError, match=r"(?s)without an answer.*003/name"):
        log_likelihoods(tiny_llava.loaded(), [lonely], batch_size=2)


def test_a_model_of_nan_is_an_error():
    loaded = tiny_llava.loaded()
    broken = loaded.replace_model(jax.tree.map(lambda x: x * np.nan, loaded.model))
    with pytest.raises(ManuError, match="not finite"):
        log_likelihoods(broken, tiny_llava.samples("text"), batch_size=4)

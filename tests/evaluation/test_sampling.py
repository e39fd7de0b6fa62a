import functools

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava

from manu_jax import parallel
from manu_jax.data import batches
from manu_jax.data.probes import Sampling
from manu_jax.evaluation.generate import greedy, sampled
from manu_jax.evaluation.sampling import drawn, uniforms

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def shares(top_p=1.0, temperature=1.0, count=1000):
    """How often each of four tokens is drawn, over numbers spread evenly."""
    uniform_B = (np.arange(count, dtype=np.float32) + 0.5) / count
    logits_BV = jnp.broadcast_to(jnp.asarray(LOGITS), (count, 4))
    found = drawn(logits_BV, jnp.asarray(uniform_B), temperature=temperature, top_p=top_p)
    return np.bincount(np.asarray(found), minlength=4) / count


def test_tokens_are_drawn_by_their_probabilities():
    assert shares() == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=2e-3)  # a thousand numbers


def test_a_temperature_raises_probabilities_to_its_inverse():
    expected = np.exp(LOGITS / 0.5)
    assert shares(temperature=0.5) == pytest.approx(expected / expected.sum(), abs=2e-3)


def test_top_p_keeps_what_transformers_keeps():
    import torch
    from transformers import TopPLogitsWarper

    for top_p in (0.3, 0.5, 0.75, 0.95):
        kept = TopPLogitsWarper(top_p)(None, torch.tensor(LOGITS[None]))
        expected = torch.softmax(kept, dim=-1).numpy()[0]
        assert shares(top_p) == pytest.approx(expected, abs=2e-3)


def test_what_is_ruled_out_is_never_drawn():
    logits_BV = jnp.asarray([[-jnp.inf, 0.0, -jnp.inf]])
    for number in (0.0, 0.5, 0.99999994):
        assert int(drawn(logits_BV, jnp.asarray([number]), temperature=1, top_p=0.9)[0]) == 1


def test_numbers_follow_from_the_name_and_a_longer_answer_begins_alike():
    assert np.array_equal(uniforms("0/a", 5), uniforms("0/a", 9)[:5])
    assert not np.array_equal(uniforms("0/a", 5), uniforms("0/b", 5))


@pytest.fixture(scope="module")
def draw():
    """Draw answers, with one length for all, so that few programs are compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "MAX_BUCKETS", 1)
        patch.setattr(batches, "MULTIPLE", 64)
        yield functools.partial(
            sampled, new_tokens=6, sampling=Sampling(temperature=2.0, top_p=0.9)
        )


def test_drawn_answers_do_not_depend_on_the_batch_or_its_order(draw):
    samples = tiny_llava.samples("image", 5)
    names = [sample.key for sample in samples]
    loaded = tiny_llava.loaded()
    found = draw(loaded, samples, names, batch_size=5)
    assert len(set(found)) > 1 and found != greedy(loaded, samples, new_tokens=6, batch_size=5)
    assert draw(loaded, samples, names, batch_size=2) == found
    assert draw(loaded, samples[::-1], names[::-1], batch_size=5) == found[::-1]
    assert draw(loaded, samples, [f"other {name}" for name in names], batch_size=5) != found


def test_a_mesh_draws_the_same_answers(draw):
    samples = tiny_llava.samples("text", 4)
    names = [sample.key for sample in samples]
    mesh = parallel.make_mesh(2, 2, 2)
    assert draw(tiny_llava.on_mesh(mesh), samples, names, batch_size=4) == draw(
        tiny_llava.loaded(), samples, names, batch_size=4
    )

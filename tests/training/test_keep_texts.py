"""General texts that a training keeps beside facts: in every kind of loss, and in the steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_stranger_loss
import tiny_llava
import torch_peer

from manu_jax.config import UnlearnSection, validate
from manu_jax.data.texts import text_samples
from manu_jax.evaluation.distance import answer_kl
from manu_jax.training.objectives import (
    UnlearnData,
    cross_entropy_on_answers,
    keep_cross_entropy,
    keep_kl,
    kl_from,
)
from manu_jax.training.representation import direction_key, rmu
from manu_jax.training.stranger_loss import like_a_stranger
from manu_jax.training.streams import PlannedPhase, Streams
from manu_jax.training.unlearner import unlearn
from manu_jax.types import BatchShape, ManuError

WEIGHT, OF_TEXTS = 0.7, 0.4
TEXTS = text_samples(
    ["What about the winding answer", "Where does this person live", "chess is far too long"],
    group="texts",
)


def section(objective="gradient_difference", **values):
    return validate(UnlearnSection, {"name": "m", "objective": objective, **values}, "test")


@functools.cache
def batch_of_texts():
    encoder = tiny_llava.loaded()
    made = encoder.collate([encoder.encode(one) for one in TEXTS], BatchShape(batch_size=4))
    return jax.tree.map(jnp.asarray, made)


@functools.cache
def models():
    return tuple(loaded.model for loaded in torch_peer.models())


@jax.jit
def on_texts(model, reference):
    return kl_from(reference, model, batch_of_texts(), remat="none")


def data(**changes):
    forget, keep = (tiny_llava.batch("text", count) for count in (2, 3))
    settings = {"coefficient": jnp.float32(2), "forget_weight": jnp.float32(1)}
    given = UnlearnData(forget, keep, models()[1], settings, jnp.float32(WEIGHT), layer=0,
                        key=direction_key(0))  # fmt: skip
    return dataclasses.replace(given, **changes)


def with_texts():
    return data(texts=batch_of_texts(), texts_weight=jnp.float32(OF_TEXTS))


@pytest.mark.parametrize(
    ("loss", "of_texts"),
    [
        (keep_cross_entropy, lambda model, batch: cross_entropy_on_answers(model, batch, "none")),
        (keep_kl, lambda model, batch: kl_from(models()[1], model, batch, remat="none")),
    ],
)
def test_texts_are_kept_by_the_loss_that_keeps_facts(loss, of_texts):
    model, _ = models()
    jitted = jax.jit(loss, static_argnums=2)
    added = jitted(model, with_texts(), "none") - jitted(model, data(), "none")
    expected = WEIGHT * OF_TEXTS * jax.jit(of_texts)(model, batch_of_texts())
    # Two float32 losses, one subtracted from the other.
    assert float(added) == pytest.approx(float(expected), rel=1e-4)
    assert float(jitted(model, dataclasses.replace(with_texts(), keep=None), "none")) == 0


@pytest.mark.slow
def test_rmu_keeps_hidden_states_of_texts():
    model, _ = models()
    jitted = jax.jit(rmu, static_argnums=2)
    added = jitted(model, with_texts(), "none") - jitted(model, data(), "none")
    alone, nothing = data(keep=batch_of_texts()), data(keep=None)
    on_texts = jitted(model, alone, "none") - jitted(model, nothing, "none")
    assert float(added) == pytest.approx(OF_TEXTS * float(on_texts), rel=1e-3) and added > 0


@pytest.mark.slow
def test_the_loss_of_suppress_and_erase_takes_texts_once_for_both_forms():
    model, reference = models()
    given = test_stranger_loss.data(hidden=False)
    more = dataclasses.replace(given, texts=batch_of_texts(), texts_weight=jnp.float32(OF_TEXTS))
    kl = float(on_texts(model, reference))
    jitted = jax.jit(like_a_stranger, static_argnums=2)
    added = jitted(model, more, "none") - jitted(model, given, "none")
    expected = test_stranger_loss.KEEP_WEIGHT * OF_TEXTS * kl
    assert kl > 0 and float(added) == pytest.approx(expected, rel=1e-3)


def test_kl_on_texts_is_a_mean_over_their_tokens():
    model, reference = models()
    first, second = (tiny_llava.loaded().replace_model(one) for one in (model, reference))
    by_text = answer_kl(first, second, TEXTS, batch_size=4)
    counts = [tiny_llava.loaded().encode(one).num_answers for one in TEXTS]
    found = float(on_texts(model, reference))
    assert len(set(counts)) > 1
    assert found == pytest.approx(np.average(by_text, weights=counts), rel=1e-4)


def test_a_step_has_texts_where_it_keeps_facts():
    facts = tiny_llava.facts()
    chosen = section(keep_texts={"batch_size": 2}, batch_size=3)
    streams = Streams(tiny_llava.loaded(), chosen, forget=facts[:2], keep=facts[2:], preferred=(),
                      decouple=(), strangers=(), texts=TEXTS, seed=0)  # fmt: skip
    loss = cross_entropy_on_answers
    given = streams.data_of(PlannedPhase(loss, 0, 1), 0)
    assert given["texts"].token_ids_BT.shape[0] == 2 and given["texts"].images is None
    assert "texts" not in streams.data_of(PlannedPhase(loss, 0, None), 0)
    seen = {
        tuple(row)
        for number in range(2)
        for row in np.asarray(streams.data_of(PlannedPhase(loss, None, number), 0)["texts"]
                              .token_ids_BT).tolist()
    }  # fmt: skip
    assert len(seen) >= len(TEXTS)


LIKE_STRANGERS = {"batch_size": 2, "batch_keep": 2, "views": 1, "keep_views": 1, "strangers": 2,
                  "kept_strangers": 1, "modalities": ["text"], "learning_rate": 0.3}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "values"),
    [
        ("kl_minimisation", {"learning_rate": 1e-2, "modalities": ["text"], "clip": None}),
        ("suppress", LIKE_STRANGERS),
    ],
)
def test_a_training_moves_less_on_texts_that_it_keeps(objective, values, tmp_path):
    vanilla, facts = tiny_llava.loaded(), tiny_llava.facts()

    def moved(keep_texts, texts):
        chosen = section(objective, steps=8, keep_texts=keep_texts, **values)
        made = unlearn(
            vanilla,
            chosen,
            forget=facts[:2],
            keep=facts[2:],
            directory=tmp_path / str(bool(texts)),
            seed=0,
            reference=vanilla,
            texts=texts,
        )
        model = made if objective == "kl_minimisation" else made.apply(vanilla)
        return answer_kl(model, vanilla, TEXTS, batch_size=4).mean()

    without, kept = moved(None, ()), moved({"weight": 20.0, "batch_size": 3}, TEXTS)
    assert kept < 0.7 * without


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"objective": "gradient_ascent"}, "gradient_ascent has no loss on what is kept"),
        ({"objective": "npo_official"}, "npo_official has no loss on what is kept"),
        ({"objective": "system_prompt"}, "system_prompt has no loss on what is kept"),
        ({"retain_weight": 0}, "or retain_weight is 0"),
        ({"primal_dual": {"bound": 1}}, "the bound of primal_dual is on facts to keep alone"),
    ],
)
def test_texts_are_refused_where_nothing_keeps_them(values, named):
    with pytest.raises(ManuError, match=named):
        section(**{"keep_texts": {}, **values})


def test_a_bare_text_is_the_file_of_the_texts():
    assert (
        section(keep_texts="own.txt").keep_texts
        == section(keep_texts={"path": "own.txt"}).keep_texts
    )
    assert section(keep_texts={}).keep_texts.path is None
    assert section().keep_texts is None

"""A model that is taught carefully: parts, replay, interpolation, and when it is enough."""

import jax
import numpy as np
import pytest
import tiny_llava

from manu_jax.config import ReplaySection, StopSection, TrainSection
from manu_jax.leaves import leaves
from manu_jax.models.nn.answers import (
    answer_cross_entropy,
    logits_at_answers,
    targets_at_answers,
)
from manu_jax.training import replay, teaching, trainer
from manu_jax.types import ManuError, Sample

SECTION = TrainSection(
    steps=4, batch_size=4, learning_rate=3e-3, warmup=0.0, schedule="constant", checkpoint_every=2
)
REPLAY = ReplaySection(texts=4, batch_size=2, weight=0.5)
TEXTS = [Sample(((f"USER: Lima or Oslo? {word}", True),), ()) for word in ("Oslo", "Lima") * 2]


def changed(section, **values):
    return section.model_copy(update=values)


def taught(directory, section=SECTION, *, num_steps=4, texts=(), facts=0):
    loaded = tiny_llava.loaded()
    return teaching.teach(
        loaded,
        [*tiny_llava.samples("image"), *tiny_llava.samples("text")],
        section,
        texts=teaching.OwnTexts(
            texts,
            replay.said_at(loaded, texts) if texts else None,
            TEXTS,
            teaching.text_loss(loaded, TEXTS),
        ),
        facts={form: tiny_llava.samples(form)[:facts] for form in ("image", "text")},
        num_steps=num_steps,
        directory=directory,
        seed=3,
    )


def arrays(loaded):
    return {name: np.asarray(leaf) for name, leaf in leaves(loaded.model).items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """After four steps, and after one: what is compared with."""
    folder = tmp_path_factory.mktemp("plain")
    return {n: arrays(taught(folder / str(n), num_steps=n)) for n in (1, 4)}


@pytest.mark.slow
def test_without_settings_of_its_own_it_is_the_usual_training(plain, tmp_path):
    samples = [*tiny_llava.samples("image"), *tiny_llava.samples("text")]
    usual = trainer.train(
        tiny_llava.loaded(), samples, SECTION, num_steps=4, directory=tmp_path, seed=3
    )
    for name, values in arrays(usual).items():
        np.testing.assert_allclose(plain[4][name], values, rtol=0, atol=1e-6, err_msg=name)


def test_frozen_parts_keep_their_bits_and_all_others_move(tmp_path):
    before = arrays(tiny_llava.loaded())
    found = arrays(taught(tmp_path, changed(SECTION, frozen=("text.embedding", "vision"))))
    for name, values in found.items():
        if name == "text.embedding_VD" or name.startswith("vision."):
            assert values.tobytes() == before[name].tobytes()
        elif "norm" not in name and "unused" not in name:
            assert not np.array_equal(values, before[name]), name


def test_a_part_learns_at_its_own_rate_and_the_longest_name_counts(plain, tmp_path):
    rates = {"text": 6e-3, "text.layers.mlp": 1.5e-3}
    found = arrays(taught(tmp_path, changed(SECTION, rates=rates), num_steps=1))
    before = arrays(tiny_llava.loaded())
    for name, values in found.items():
        factor = 0.5 if name.startswith("text.layers.mlp.") else 2 if name.startswith("text") else 1
        usual = plain[1][name] - before[name]
        # Of weights of about 1, changes of about 1e-3: seven digits leave four.
        np.testing.assert_allclose(values - before[name], factor * usual, rtol=0, atol=1e-6)


@pytest.mark.parametrize("key, value", [("frozen", ("decoder",)), ("rates", {"text.mlp": 1e-3})])
def test_a_part_that_the_model_lacks_is_named(tmp_path, key, value):
    with pytest.raises(ManuError, match=f"train.{key}: '(decoder|text.mlp)'.*text.embedding_VD"):
        taught(tmp_path, changed(SECTION, **{key: value}))


def test_something_has_to_learn(tmp_path):
    parts = ("text", "vision", "linear_1", "linear_1_bias", "linear_2", "linear_2_bias")
    with pytest.raises(ManuError, match="nothing is left to train"):
        taught(tmp_path, changed(SECTION, frozen=parts))


@jax.jit
def log_p_at_answers(model, batch):
    return jax.nn.log_softmax(logits_at_answers(model, batch)[0])


def kl_on_texts(model):
    """KL(before ‖ now), mean over the tokens of TEXTS, from whole distributions."""
    encoder = tiny_llava.loaded()
    texts = encoder.collate([encoder.encode(text) for text in TEXTS])
    log_p_BAV, log_q_BAV = (
        np.asarray(log_p_at_answers(one, texts)) for one in (encoder.model, model)
    )
    weights_BA = np.asarray(targets_at_answers(texts).weights_BT)
    kl_BA = (np.exp(log_p_BAV) * (log_p_BAV - log_q_BAV)).sum(-1)
    return float((kl_BA * weights_BA).sum() / weights_BA.sum())


def test_the_loss_is_that_of_documents_and_what_is_said_of_texts_by_its_weight(monkeypatch):
    monkeypatch.setattr(replay, "MOST_TOKENS", 10**6)  # the whole distribution
    loaded = tiny_llava.loaded()
    batch = tiny_llava.batch("text", 4)
    repeated = replay.Repeated(loaded, TEXTS, replay.said_at(loaded, TEXTS), batch_size=4, seed=0)
    data = teaching.Taught(batch, *repeated.at(0), np.float32(0.5))
    moved = jax.tree.map(lambda leaf: leaf * 1.1, loaded.model)
    loss_alone = jax.jit(lambda model: answer_cross_entropy(*logits_at_answers(model, batch)))
    loss = jax.jit(lambda model: teaching.cross_entropy_with_replay(model, data, "none"))
    for model in (loaded.model, moved):
        alone, found = float(loss_alone(model)), float(loss(model))
        assert found == pytest.approx(alone + 0.5 * kl_on_texts(model), rel=1e-4, abs=1e-4)
    assert kl_on_texts(loaded.model) == 0 and kl_on_texts(moved) > 0.01


@pytest.mark.slow
def test_texts_that_are_repeated_are_said_as_before(plain, tmp_path):
    section = changed(SECTION, replay=REPLAY.model_copy(update={"weight": 3.0}))
    found = taught(tmp_path, section, texts=TEXTS)
    values = [plain[4][name] for name in leaves(found.model)]
    without = jax.tree.unflatten(jax.tree.structure(found.model), values)
    assert kl_on_texts(found.model) < 0.8 * kl_on_texts(without)


def test_of_the_decoder_s_change_a_share_is_kept_and_of_the_tower_s_all(plain, tmp_path):
    found = arrays(taught(tmp_path, changed(SECTION, interpolation=0.25)))
    before = arrays(tiny_llava.loaded())
    for name, values in found.items():
        share = 0.25 if name.startswith("text.") else 1
        wanted = before[name] + share * (plain[4][name] - before[name])
        np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-6, err_msg=name)


def stop(**values):
    return StopSection(**{"every": 2, "known": 0.99, "drift": 50.0, **values})


def ended_at(caplog):
    lines = [line for line in caplog.messages if "after" in line and "it knows" in line]
    return int(lines[-1].split("after ")[1].split()[0]) if lines else None


@pytest.mark.slow
def test_it_ends_when_facts_are_known_and_texts_cost_little(tmp_path, caplog):
    caplog.set_level("INFO")
    section = changed(SECTION, learning_rate=2e-2, stop=stop(known=0.5))
    found = taught(tmp_path / "a", section, num_steps=60, facts=2)
    last = ended_at(caplog)
    assert 2 < last < 60
    # The same model as of a training that was to have so many steps.
    again = taught(tmp_path / "b", changed(section, stop=None), num_steps=last)
    for name, values in arrays(again).items():
        assert values.tobytes() == arrays(found)[name].tobytes()


@pytest.mark.slow
def test_a_drift_beyond_the_bound_lets_it_go_on(tmp_path, caplog):
    caplog.set_level("INFO")
    section = changed(SECTION, learning_rate=2e-2, stop=stop(known=0.01, drift=1e-6))
    taught(tmp_path, section, num_steps=8, facts=6)
    assert ended_at(caplog) == 8


@pytest.mark.slow
def test_a_killed_training_ends_where_it_would_have_ended(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    section = changed(
        SECTION, learning_rate=2e-2, stop=stop(known=0.5), replay=REPLAY, interpolation=0.9
    )
    settings = {"num_steps": 60, "facts": 2, "texts": TEXTS}
    whole = taught(tmp_path / "whole", section, **settings)
    last = ended_at(caplog)
    real, done = trainer.train_step, []

    def step(*arguments, **named):
        done.append(1)
        if len(done) == last:  # the last one: before it there is a checkpoint
            raise KeyboardInterrupt
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", step)
        with pytest.raises(KeyboardInterrupt):
            taught(tmp_path / "killed", section, **settings)
    resumed = taught(tmp_path / "killed", section, **settings)
    assert ended_at(caplog) == last
    for name, values in arrays(resumed).items():
        assert values.tobytes() == arrays(whole)[name].tobytes()


def test_the_loss_on_texts_is_that_of_their_tokens():
    loaded = tiny_llava.loaded()
    encoded = loaded.collate([loaded.encode(text) for text in TEXTS])
    loss = jax.jit(lambda model: answer_cross_entropy(*logits_at_answers(model, encoded)))
    expected = loss(loaded.model)
    assert teaching.text_loss(loaded, TEXTS) == pytest.approx(float(expected), rel=1e-5)
    assert teaching.text_loss(loaded, ()) == 0

"""A tower that is trained without its decoder says who is in an image, in the decoder's words."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_llava

from manu_jax import parallel
from manu_jax.config import TowerSection, TrainSection
from manu_jax.data.record import Person
from manu_jax.leaves import leaves
from manu_jax.models.nn.forward import Forward
from manu_jax.training import tower
from manu_jax.types import ManuError

SECTION = TrainSection(
    steps=1,
    checkpoint_every=20,
    tower=TowerSection(batch_size=8, learning_rate=1e-2, views=1),
)


def people(facts=tiny_llava.facts):
    return [Person(fact.person_id, fact.name, (fact.image,), {}, (fact,), ()) for fact in facts()]


def trained(directory, num_steps=200, of=None):
    return tower.train_tower(
        tiny_llava.loaded(),
        people() if of is None else of,
        SECTION,
        num_steps=num_steps,
        directory=directory,
        seed=0,
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("tower"))


@pytest.mark.slow
def test_an_image_s_tokens_are_nearest_to_the_words_of_its_caption(found):
    shown = tower._Shown(
        found, tower.captions(people()), TowerSection(batch_size=8, views=0), seed=1
    )
    batch = shown.batch_at(0)
    encode = jax.jit(lambda model, images: model.encode_images(images, Forward(remat="none"))[0])
    features_BIPE = encode(found.model, batch.images)
    scores_BPV = np.einsum("BPE,VE->BPV", features_BIPE[:, 0], batch.candidates_VE)
    assert (scores_BPV.argmax(-1) == batch.words_BP).mean() > 0.9
    loss = float(tower.caption_loss(found.model, batch, "none"))
    assert loss < 0.5 * float(tower.caption_loss(tiny_llava.loaded().model, batch, "none"))


@pytest.mark.slow
def test_a_mesh_changes_no_gradient():
    """Neither words (six, over four parts) nor the batch (six) have to divide over it."""
    slopes = jax.jit(jax.value_and_grad(tower.caption_loss), static_argnums=2)
    found = []
    for loaded in (tiny_llava.loaded(), tiny_llava.on_mesh(parallel.make_mesh(2, 2, 2))):
        section = TowerSection(batch_size=6, views=0)
        captioned = tower.captions(people(lambda: tiny_llava.facts(4)))
        shown = tower._Shown(loaded, captioned, section, seed=1)
        with parallel.on_mesh(loaded.mesh):
            loss, gradient = slopes(loaded.model, shown.placed_at(0), "none")
        found.append((float(loss), leaves(gradient)))
    assert len(shown._candidates_VE) % 4
    (loss, gradient), (other_loss, other) = found
    assert other_loss == pytest.approx(loss, rel=1e-5)
    most = max(float(np.abs(leaf).max()) for leaf in gradient.values())
    for name, leaf in gradient.items():  # the keys' bias has none but rounding's
        np.testing.assert_allclose(leaf, other[name], rtol=1e-3, atol=1e-6 * most, err_msg=name)


@pytest.mark.slow
def test_the_decoder_keeps_its_bits_and_the_given_model_its_tower(found):
    before = leaves(tiny_llava.loaded().model)
    for name, leaf in leaves(found.model).items():
        # What comes after the layer whose features are taken does not run.
        is_still = name.startswith("text.") or "unused" in name
        assert np.array_equal(leaf, before[name]) == (is_still or "post_norm" in name), name


@pytest.mark.slow
def test_a_killed_training_of_the_tower_goes_on_to_the_same_bits(found, tmp_path, monkeypatch):
    from manu_jax.training import trainer

    real, done = trainer.train_step, []

    def step(*arguments, **named):
        done.append(1)
        if len(done) == 45:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", step)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path)
    resumed = trained(tmp_path)
    pairs = zip(jax.tree.leaves(resumed.model), jax.tree.leaves(found.model), strict=True)
    assert all(np.array_equal(one, two) for one, two in pairs)


def test_a_caption_is_the_name_or_else_the_answers_and_each_image_has_one():
    one, two, *_ = tiny_llava.facts()
    topic = [dataclasses.replace(one, name="", answer=answer) for answer in ("circle", "red")]
    shown = [
        Person("a", one.name, (), {}, (one, dataclasses.replace(one, attribute="job")), ()),
        Person("b", "", (), {}, tuple(dataclasses.replace(f, image=two.image) for f in topic), ()),
        Person("c", "", (), {}, (dataclasses.replace(one, image=None),), ()),
    ]
    assert tower.captions(shown) == [(one.image, one.name), (two.image, "circle red")]


def test_a_caption_stands_at_the_end_and_a_long_one_loses_its_beginning():
    loaded = tiny_llava.loaded()
    tokenizer = loaded.processor.tokenizer
    ids = tower._caption_ids(loaded, ["Oslo", "far too long for so few tokens"], 4)
    short = tokenizer(" Oslo", add_special_tokens=False)["input_ids"]
    long = tokenizer(" far too long for so few tokens", add_special_tokens=False)["input_ids"]
    filler = tokenizer(tower.FILLER, add_special_tokens=False)["input_ids"][0]
    assert ids[0].tolist() == [filler] * (4 - len(short[-4:])) + short[-4:]
    assert ids[1].tolist() == long[-4:]


def test_without_an_image_there_is_nothing_to_train_on(tmp_path):
    blind = [
        dataclasses.replace(p, facts=(dataclasses.replace(p.facts[0], image=None),))
        for p in people()
    ]
    with pytest.raises(ManuError, match="no fact has an image"):
        trained(tmp_path, of=blind)

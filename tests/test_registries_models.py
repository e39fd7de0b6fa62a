"""A family from outside the package is known to the config, made, saved and loaded."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_llava

from manu_jax.config import ModelSection
from manu_jax.models import created
from manu_jax.models import loaded as loading
from manu_jax.models.families import llava
from manu_jax.models.families.registry import FAMILIES
from manu_jax.types import Template, question_sample


class DummyModel(llava.Llava):
    """A LLaVA whose images count for nothing: its towers, decoder and weights are known parts."""

    def encode_images(self, *arguments, **settings):
        return jax.tree.map(lambda leaf: 0 * leaf, super().encode_images(*arguments, **settings))


def dummy_family():
    known = FAMILIES["llava"]
    return dataclasses.replace(
        known,
        name="Dummy",
        model_type="dummy",
        build=DummyModel,
        template=Template(user="Q: ", close="\nA:", end="</s>"),
        tiny_config=lambda section, tokenizer: {
            **known.tiny_config(section, tokenizer),
            "model_type": "dummy",
        },
    )


@pytest.fixture
def dummy(monkeypatch):
    family = dummy_family()
    monkeypatch.setitem(FAMILIES, "dummy", family)
    return family


def section(family):
    return ModelSection(family=family, vision=tiny_llava.SIZES.vision, text=tiny_llava.SIZES.text)


def test_the_config_knows_a_family_from_outside(dummy, monkeypatch):
    assert section("dummy").family == "dummy"
    with pytest.raises(ValueError, match="dummy"):  # among the known ones
        section("dumy")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="family"):
        section("dummy")


@pytest.mark.slow
def test_a_tiny_model_of_a_family_from_outside_is_made_saved_and_loaded(dummy, tmp_path):
    tokenizer = tiny_llava.loaded().processor.tokenizer
    made = created.create(section("dummy"), tokenizer, jax.random.key(0))
    assert isinstance(made.model, DummyModel)
    assert made.towers == {"text": (2, 40), "vision": (2, 24)}
    loading.save_pretrained(made, tmp_path / "dummy")
    again = loading.load(tmp_path / "dummy")
    assert again.family is dummy and isinstance(again.model, DummyModel)
    assert again.template.prompt("Where?", "image").startswith("Q: ")
    images = [fact.image for fact in tiny_llava.facts(2)]
    prompt = again.template.prompt("Where?", "image")
    one, other = (
        again.collate([again.encode(question_sample(prompt, "Oslo", [image]))]) for image in images
    )
    run = jax.jit(lambda model, batch: model(batch).logits_BTV)
    np.testing.assert_array_equal(run(again.model, one), run(made.model, other))

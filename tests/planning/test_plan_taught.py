"""The programs of a careful training, and of texts that a model writes, are those of the run."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava
from runs_programs import MESH, first_program, lowered, on_mesh, target, without_compiling

from manu_jax import parallel
from manu_jax.config import RunConfig
from manu_jax.data.batches import encode_all
from manu_jax.data.probes import Sampling
from manu_jax.data.record import Person
from manu_jax.evaluation import generate, likelihood
from manu_jax.importance import own_texts
from manu_jax.planning import plan, vanilla
from manu_jax.planning.lessons import Lessons
from manu_jax.planning.probes import Probes, Written
from manu_jax.planning.shapes import Place, placed_model
from manu_jax.planning.world import Data, World
from manu_jax.training import replay, teaching, tower, trainer
from manu_jax.types import Sample

SAMPLING = Sampling(2, temperature=1.5, top_p=0.9)
TEXTS = [Sample(((f"USER: Lima or Oslo? {word}", True),), ()) for word in ("Oslo", "Lima") * 4]
START = Sample((("USER:", True),), ())
CONFIG = RunConfig.model_validate(
    {
        "model": {"path": "a/folder"},
        "mesh": dict(zip(parallel.AXES, MESH, strict=True)),
        "train": {
            "steps": 2,
            "batch_size": 4,
            "rates": {"text": 1e-3},
            "frozen": ["text.embedding"],
            "interpolation": 0.5,
            "tower": {"batch_size": 4, "views": 1},
            "replay": {"texts": 4, "batch_size": 2},
            "stop": {"every": 1, "facts": 4, "texts": 4},
        },
        "method": {"preset": "gradient", "keep_texts": {"count": 6, "length": 8}},
        "evaluate": {"batch_size": 4, "new_tokens": 3},
    }
)


@pytest.fixture(scope="module")
def facts():
    return tiny_llava.facts(4)


@pytest.fixture(scope="module")
def people(facts):
    return [Person(fact.person_id, fact.name, (fact.image,), {}, (fact,), ()) for fact in facts]


@pytest.fixture(scope="module")
def loaded():
    return on_mesh()


@pytest.fixture(scope="module")
def world(facts, people):
    loaded = tiny_llava.loaded()
    forms = {form: encode_all(loaded, tiny_llava.forms(facts, form)) for form in ("image", "text")}
    prompts = [
        dataclasses.replace(one, loss_weights_T=0 * one.loss_weights_T) for one in forms["text"]
    ]
    longest = max(one.num_tokens for one in encode_all(loaded, TEXTS))
    (start,) = encode_all(loaded, [START])
    shown = tower.captions(people)
    (first,) = loaded.vision_inputs(shown[0][0])
    ids_NP = tower._caption_ids(loaded, [text for _, text in shown], first.num_features)
    tokens = longest - start.num_tokens
    values = CONFIG.train.model_dump() | {"replay": {"texts": 4, "batch_size": 2, "tokens": tokens}}
    config = CONFIG.model_copy(update={"train": type(CONFIG.train).model_validate(values)})
    place = Place.of(MESH, tuple(jax.devices()))
    probes = Probes(
        published={"drawn": Written(prompts * 2, 5, SAMPLING)}, given={"text": forms["text"]}
    )
    lessons = Lessons((start,), forms, len(np.unique(ids_NP)), first)
    data = Data(
        loaded, forms, forms, {}, {}, {"text": forms["text"]}, probes=probes, lessons=lessons
    )
    return World(config, target(), place, placed_model(loaded, place, jnp.float32), data)


@pytest.fixture(scope="module")
def text_of(world):
    items = {item.name: item for item in plan.planned(world)}

    return functools.cache(lambda name: lowered(items[name].make(world, None, None), world))


@pytest.mark.parametrize("what", ["gradient", pytest.param("update", marks=pytest.mark.slow)])
def test_a_tower_s_training_is_the_runs(
    world, loaded, people, text_of, monkeypatch, tmp_path, what
):
    section = world.config.train
    trained = functools.partial(
        tower.train_tower, loaded, people, section, num_steps=1, directory=tmp_path, seed=0
    )
    module, name = trainer, {"gradient": "loss_and_gradient", "update": "_updated"}[what]
    if what == "update":
        monkeypatch.setattr(trainer, "loss_and_gradient", without_compiling)
    found = first_program(monkeypatch, module, name, trained)
    assert found == text_of(f"training: tower: {what}")


@pytest.fixture(scope="module")
def taught(world, loaded, facts, tmp_path_factory):
    """Return a function that begins a careful training."""
    said = replay.said_at(loaded, TEXTS[:4])
    return functools.partial(
        teaching.teach, loaded, tiny_llava.forms(facts, "text"), world.config.train,
        texts=teaching.OwnTexts(TEXTS[:4], said, TEXTS[4:]), facts={}, num_steps=1,
        directory=tmp_path_factory.mktemp("taught"), seed=0,
    )  # fmt: skip


@pytest.mark.parametrize("what", ["gradient", pytest.param("update", marks=pytest.mark.slow)])
def test_a_careful_training_is_the_runs(taught, text_of, monkeypatch, what):
    name = {"gradient": "loss_and_gradient", "update": "_updated"}[what]
    if what == "update":
        monkeypatch.setattr(trainer, "loss_and_gradient", without_compiling)
    form = ", text form" if what == "gradient" else ""
    assert first_program(monkeypatch, trainer, name, taught) == text_of(f"training: {what}{form}")


def test_what_is_said_of_own_texts_is_the_runs(loaded, text_of, monkeypatch):
    said = functools.partial(replay.said_at, loaded, TEXTS[:4])
    found = first_program(monkeypatch, replay, "_said", said)
    assert found == text_of("training: own texts: what is said at their tokens")


@pytest.mark.parametrize(
    "what",
    ["text form", *(pytest.param(w, marks=pytest.mark.slow) for w in ("own texts", "model"))],
)
def test_how_a_training_is_looked_at_is_the_runs(world, loaded, facts, text_of, monkeypatch, what):
    section = world.config.train
    edit = trainer.initial_state(
        loaded, section, jax.random.key(0),
        edit=teaching.NewWeights.of(loaded, teaching.trained_parts(loaded, section)),
    ).weights  # fmt: skip
    known = {"text": tiny_llava.forms(facts, "text")} if what == "text form" else {}
    texts = teaching.OwnTexts(watched=TEXTS[4:])
    watch = teaching._Watch(loaded, known, texts, section=section.stop, share=0.5, name="x")
    name = "training: the model that is looked at"
    if what == "model":
        found = first_program(monkeypatch, teaching, "_taught_model", lambda: watch(1, edit))
    else:
        monkeypatch.setattr(teaching, "_taught_model", lambda edit, base, *, share: base)
        found = first_program(monkeypatch, teaching, "_answered", lambda: watch(1, edit))
        name = f"training: whether it is enough, {what}"
    assert found == text_of(name)


def test_texts_that_a_model_writes_are_the_runs(world, loaded, monkeypatch):
    starts = [("USER:", "")]
    monkeypatch.setattr(own_texts, "_starts", lambda loaded: starts)
    drawn = functools.partial(own_texts.sampled, loaded, 6, tokens=8, seed=0)
    (item,) = vanilla.own_text_items(world)
    assert (item.name, item.stage, item.kind) == (
        "own texts: written, 6 of 8 tokens",
        "scores",
        "decode",
    )
    found = first_program(monkeypatch, own_texts, "continued", drawn)
    assert found == lowered(item.make(world, None, None), world)


def test_drawn_answers_of_a_protocol_are_the_runs(loaded, facts, text_of, monkeypatch):
    samples = tiny_llava.forms(facts, "text", loaded.template)
    asked = [dataclasses.replace(one, segments=one.segments[:1]) for one in samples] * 2
    answered = functools.partial(
        generate.sampled, loaded, asked, [str(n) for n in range(8)],
        sampling=SAMPLING, new_tokens=5, batch_size=4,
    )  # fmt: skip
    assert first_program(monkeypatch, generate, "_answers", answered) == text_of("published: drawn")


@pytest.mark.slow
def test_likelihoods_of_a_protocol_are_the_runs(loaded, facts, text_of, monkeypatch):
    samples = tiny_llava.forms(facts, "text")
    rated = functools.partial(likelihood.answer_tokens, loaded, samples, batch_size=4)
    found = first_program(monkeypatch, likelihood, "_tokens", rated)
    assert found == text_of("published: likelihoods, text form")


def test_steps_and_their_numbers_are_those_of_all_trainings(world):
    found = {item.name: item.make(world, None, None) for item in vanilla.vanilla_items(world)}
    assert {name: step.calls for name, step in found.items()} == {
        "training: own texts: written": 1,
        "training: own texts: what is said at their tokens": 1,
        "training: tower: gradient": 600,  # two models, 300 steps each
        "training: tower: update": 600,
        "training: gradient, text form": 4,
        "training: update": 4,
        "training: whether it is enough, image form": 4,
        "training: whether it is enough, text form": 4,
        "training: whether it is enough, own texts": 4,
        "training: the model that is looked at": 4,
    }
    section = world.config.train.model_copy(update={"base_steps": 3, "retrained": False})
    world = dataclasses.replace(world, config=world.config.model_copy(update={"train": section}))
    items = {item.name: item for item in vanilla.vanilla_items(world)}
    assert items["training: update"].make(world, None, None).calls == 5
    assert items["training: tower: update"].make(world, None, None).calls == 300 + 100

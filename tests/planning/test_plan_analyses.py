"""The programs of analyses and of the audit that a plan compiles are those of the run."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava

from manu_jax import parallel
from manu_jax.config import LoraSection, RunConfig
from manu_jax.data.batches import encode_all
from manu_jax.evaluation import candidates, distance, likelihood
from manu_jax.evaluation.audit import attacker, depth, membership, offered
from manu_jax.evaluation.audit.attack import Attacked
from manu_jax.evaluation.neurons import activations
from manu_jax.planning import analysing, auditing, plan
from manu_jax.planning.chips import Chip, Target
from manu_jax.planning.probes import assumed_probes
from manu_jax.planning.shapes import Place, assumed_sample, bytes_held, placed_model
from manu_jax.planning.step import OPTIMIZER, WEIGHTS
from manu_jax.planning.world import Data, World
from manu_jax.training import strangers_target
from manu_jax.types import MODALITIES

MESH, TRAIN = (2, 2, 2), (1, 8, 1)
CONFIG = RunConfig.model_validate(
    {
        "model": {"path": "a/folder"},
        "mesh": dict(zip(parallel.AXES, MESH, strict=True)),
        "method": {"preset": "paper"},
        "sweep": {"alphas": [0.1, 0.2]},
        "neurons": {"most": 3},
        "evaluate": {"batch_size": 4, "new_tokens": 3},
    }
)


class Seen(Exception):
    """The run has come to the step that is looked at."""


@pytest.fixture(scope="module")
def facts():
    return tiny_llava.facts(4)


@pytest.fixture(scope="module")
def samples(facts):
    """The facts in the image form, which is the longer one."""
    return tiny_llava.forms(facts, "image", tiny_llava.loaded().template)


@pytest.fixture(scope="module")
def world(facts):
    loaded = tiny_llava.loaded()
    place = Place.of(MESH, tuple(jax.devices()))
    target = Target("devices=8", Chip("CPU", 1e12, 2**32, 1e10, 1e9), 8, tuple(jax.devices()))
    forms = {
        modality: encode_all(loaded, tiny_llava.forms(facts, modality, loaded.template))
        for modality in MODALITIES
    }
    prompts = {
        form: [dataclasses.replace(one, loss_weights_T=0 * one.loss_weights_T) for one in items]
        for form, items in forms.items()
    }
    probes = assumed_probes(CONFIG, loaded, prompts, answered=forms, text=8)
    data = Data(loaded, forms, forms, prompts, forms, {}, probes=probes)
    sizes = {"score": MESH, "train": TRAIN, "decode": MESH}
    placed = placed_model(loaded, place, jnp.float32)
    return World(CONFIG, target, place, placed, data, sizes=sizes)


@pytest.fixture(scope="module")
def of_images(world):
    """The same with no text form, whose batches are others."""
    data = world.data
    forget, keep = ({"image": forms["image"]} for forms in (data.forget, data.keep))
    return dataclasses.replace(world, data=dataclasses.replace(data, forget=forget, keep=keep))


def on_mesh(sizes):
    return tiny_llava.on_mesh(parallel.make_mesh(*sizes))


@pytest.fixture(scope="module")
def loaded():
    return on_mesh(MESH)


def step_of(world, name):
    item = next(item for item in plan.planned(world) if item.name == name)
    there = world.at(item.kind)
    return item.make(there, None, None), there


def lowered(step, world):
    with parallel.on_mesh(world.place.mesh):
        return step.function.lower(*step.args, **step.kwargs).as_text()


def text_of(world, name):
    return lowered(*step_of(world, name))


def program(monkeypatch, module, name, action):
    """Return the lowered text of the first call of a module's step."""
    step, seen = getattr(module, name), []

    class Watched:
        def lower(self, *arguments, **settings):
            seen.append(step.lower(*arguments, **settings).as_text())
            raise Seen

        def __call__(self, *arguments, **settings):
            self.lower(*arguments, **settings)

    with monkeypatch.context() as patch, pytest.raises(Seen):
        patch.setattr(module, name, Watched())
        action()
    return seen[0]


@pytest.mark.parametrize(
    "given", [{}, {"remat": "none"}, {"lora": LoraSection(rank=2)}], ids=["all", "none", "lora"]
)
def test_an_attackers_step_is_the_runs_on_the_mesh_of_training(world, facts, given, monkeypatch):
    loaded = on_mesh(TRAIN)
    benchmark = types.SimpleNamespace(facts=lambda *sets: tuple(facts))
    config = CONFIG.model_copy(update={"audit": CONFIG.audit.model_copy(update=given)})
    world = dataclasses.replace(world, config=config)
    run = types.SimpleNamespace(config=config, benchmark=benchmark)
    attack = attacker.Attacker(
        Attacked(run=run, name="model", loaded=loaded, vanilla=loaded)  # type: ignore[arg-type]
    )
    lesson = attacker.Lesson(name="kept", taught=attack.kept, asked=())
    curve = functools.partial(attack.curve, lesson, rate=1e-3, steps=(1,))
    found = program(monkeypatch, attacker, "attack_step", curve)
    step, there = step_of(world, "audit: an attacker's training step")
    assert there.place.sizes == TRAIN
    assert found == lowered(step, there)
    remat = "dots" if config.audit.remat == "all" else "all"
    audit = config.audit.model_copy(update={"remat": remat})
    assert found != text_of(
        dataclasses.replace(world, config=config.model_copy(update={"audit": audit})),
        "audit: an attacker's training step",
    )


def test_what_an_attacker_has_is_counted(world):
    training, there = step_of(world, "audit: an attacker's training step")
    state, moments = auditing.attack_state(there)
    model, text = bytes_held(there.model), bytes_held(state)
    # Vanilla lies beside the model; of both kinds of moments there are as many as weights.
    assert bytes_held(training.parts[WEIGHTS]) == model + text
    assert bytes_held(training.resident[WEIGHTS]) == model
    assert bytes_held(training.parts[OPTIMIZER]) == pytest.approx(2 * text, abs=64)
    # The copy that is asked lies on the mesh of answers, and once more where it was trained.
    asked, here = step_of(world, "audit: asked while an attacker trains")
    assert here.place.sizes == MESH
    assert bytes_held(asked.parts[WEIGHTS]) == bytes_held(here.model)
    assert bytes_held(asked.resident[WEIGHTS]) == text + 3 * model
    assert bytes_held(asked.resident[OPTIMIZER]) == bytes_held(moments)
    copied, _ = step_of(world, "audit: a changed copy asked")
    assert bytes_held(copied.resident[WEIGHTS]) == 2 * bytes_held(here.model)


def test_membership_is_the_runs(of_images, loaded, samples, monkeypatch):
    scored = functools.partial(membership.token_scores, loaded, samples, batch_size=4)
    found = program(monkeypatch, membership, "_token_scores", scored)
    assert found == text_of(of_images, "audit: membership")


def test_offered_answers_are_the_runs(world, loaded, facts, monkeypatch):
    forms = [
        tiny_llava.forms(facts, modality, loaded.template) * offered.NUM_ANSWERS
        for modality in MODALITIES
    ]
    rated = functools.partial(
        likelihood.log_likelihoods, loaded, [one for form in forms for one in form], batch_size=4
    )
    found = program(monkeypatch, likelihood, "_likelihoods", rated)
    assert found == text_of(world, "audit: offered answers")


def test_depth_is_the_runs(of_images, loaded, samples, monkeypatch):
    other = dataclasses.replace(loaded, model=jax.tree.map(jnp.copy, loaded.model))
    patched = functools.partial(depth.layer_losses, loaded, other, samples, batch_size=4)
    found = program(monkeypatch, depth, "_patched_losses", patched)
    assert found == lowered(auditing._depth(of_images, None, None), of_images)


def test_a_candidate_is_the_runs(of_images, loaded, samples, monkeypatch):
    monkeypatch.setattr(candidates, "MOST_AT_ONCE", 1)
    masks = [
        {tower: np.arange(np.prod(shape)).reshape(shape) % 7 == number for tower, shape in
         loaded.towers.items()}
        for number in (0, 1)
    ]  # fmt: skip
    asked = functools.partial(candidates.recalled, loaded, samples, masks, batch_size=4)
    found = program(monkeypatch, candidates, "_step", asked)
    assert found == text_of(of_images, "candidates: one mask, by its gates")


def test_neurons_at_tokens_are_the_runs(of_images, loaded, samples, monkeypatch):
    encoded, places = encode_all(loaded, samples), analysing.shown_neurons(of_images)
    seen = functools.partial(activations.at_tokens, loaded, encoded, places, batch_size=4)
    found = program(monkeypatch, activations, "_values", seen)
    assert found == text_of(of_images, "neurons: what they do at tokens, image form")


def test_the_distance_from_strangers_is_the_runs(of_images, loaded, samples, monkeypatch):
    size = loaded.config.text.vocabulary
    answers = max(one.num_answers for one in encode_all(loaded, samples))
    shape = (len(samples), answers, min(size, strangers_target.MOST_TOKENS))
    ids = np.broadcast_to(np.arange(shape[2], dtype=np.int32), shape)
    p = np.full(shape, 1 / size, np.float32)
    target = strangers_target.StrangerTarget(ids, p, p[..., 0])
    measured = functools.partial(distance.stranger_kl, loaded, samples, target, batch_size=4)
    found = program(monkeypatch, distance, "_stranger_kl", measured)
    assert found == text_of(of_images, "KL from strangers, image form")


def test_the_config_says_what_is_planned(world):
    def names(**values):
        config = RunConfig.model_validate(CONFIG.model_dump(exclude_unset=True) | values)
        return {item.name for item in plan.planned(dataclasses.replace(world, config=config))}

    every = names()
    assert not any(name.startswith("ability") for name in every)  # of a vocabulary made for a run
    assert not any("audit" in name for name in names(audit="none"))
    without = names(sweep={}, neurons={"methods": []})
    assert every - without == {
        "candidates: one mask, by its gates",
        *(f"neurons: what they do at tokens, {form} form" for form in MODALITIES),
    }
    assert not any("strangers" in name for name in names(evaluate={"kl": False}))


def test_english_is_rated_at_every_token(world, monkeypatch):
    monkeypatch.setattr(analysing.ability, "LEAST_VOCABULARY", 1)
    monkeypatch.setattr(analysing.ability, "LEAST_CONTEXT", 1)
    prompts = {"text": [assumed_sample(world.loaded, "text", tokens=9, answers=0)]}
    probes = assumed_probes(CONFIG, world.loaded, prompts, answered={}, text=9)
    asked = dataclasses.replace(world, data=dataclasses.replace(world.data, probes=probes))
    step, _ = step_of(asked, "ability: loss on English")
    rows, tokens = step.args[1].token_ids_BT.shape
    assert step.args[1].answer_index_BA.shape[1] >= 0.9 * tokens and rows == 4
    reply, _ = step_of(asked, "ability: KL of chat from vanilla")
    assert reply.args[2].answer_index_BA.shape[1] >= analysing.ability.NEW_TOKENS
    assert not reply.resident  # the reference is vanilla

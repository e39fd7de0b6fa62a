"""The programs of a plan are those of the run: the same arguments, lowered to the same text."""

import dataclasses
import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava
from runs_programs import MESH, first_program, lowered, on_mesh, target, without_compiling

from manu_jax import parallel
from manu_jax.config import RunConfig, named_method
from manu_jax.data.batches import encode_all
from manu_jax.data.strangers import strangers
from manu_jax.evaluation import distance, generate, likelihood, refilling
from manu_jax.evaluation.audit import attacker, depth, membership
from manu_jax.evaluation.neurons import activations
from manu_jax.importance import collect, learned, spared
from manu_jax.importance.job import ScoringJob
from manu_jax.planning import analysing, asking, auditing, plan, scoring
from manu_jax.planning.shapes import Place, placed_model
from manu_jax.planning.world import Data, World
from manu_jax.training import strangers_target, trainer
from manu_jax.training.unlearner import unlearn

TRAINED = {"batch_size": 4, "steps": 1}
CONFIG = RunConfig.model_validate(
    {
        "model": {"path": "a/folder"},
        "mesh": dict(zip(parallel.AXES, MESH, strict=True)),
        "method": {"preset": "paper"},
        "compare": [{"preset": "gradient", "rounds": 1}, {"preset": "learned", "steps": 1}],
        "unlearn": [
            {"name": "gd", "objective": "gradient_difference", **TRAINED},
            {"name": "npo", "objective": "npo", "lora": {"rank": 2}, **TRAINED},
            {"preset": "erase", "name": "erase", "batch_keep": 4, **TRAINED,
             "views": 1, "keep_views": 1, "strangers": 2, "kept_strangers": 0},
            {"preset": "suppress", "name": "suppress", "batch_keep": 4, **TRAINED,
             "views": 1, "keep_views": 1, "strangers": 2, "kept_strangers": 0},
            {"preset": "erase", "name": "tower", "trains": "all_mlps", "batch_keep": 4, **TRAINED,
             "views": 1, "keep_views": 1, "strangers": 2, "kept_strangers": 0},
        ],
        "score_batch": 4,
        "evaluate": {"batch_size": 4, "new_tokens": 3},
    }
)  # fmt: skip


WHICH = re.compile(r"dense<\[\[[\d, \[\]]+\]\]>")  # neurons, in a program


@pytest.fixture(scope="module")
def facts():
    return tiny_llava.facts(4)


@pytest.fixture(scope="module")
def world(facts):
    loaded = tiny_llava.loaded()
    place = Place.of(MESH, tuple(jax.devices()))
    forms = {
        modality: encode_all(loaded, tiny_llava.forms(facts, modality, loaded.template))
        for modality in ("image", "text")
    }
    prompts = {
        modality: [dataclasses.replace(one, loss_weights_T=0 * one.loss_weights_T) for one in items]
        for modality, items in forms.items()
    }
    placed = placed_model(loaded, place, jnp.float32)
    asked = strangers(facts, facts, 2, seed=0, portraits=None)
    of_strangers = {
        modality: encode_all(
            loaded,
            [
                strangers_target.stranger_sample(loaded, fact, one, modality=modality)
                for fact in facts
                for one in asked
            ],
        )
        for modality in forms
    }
    data = Data(loaded, forms, forms, prompts, forms, {}, of_strangers)
    return World(CONFIG, target(), place, placed, data)


@pytest.fixture(scope="module")
def text_of(world):
    """Return a function from a step's name to the program that the plan compiles, lowered."""
    items = {item.name: item for item in plan.planned(world)}

    return functools.cache(lambda name: lowered(items[name].make(world, None, None), world))


@pytest.fixture(scope="module")
def loaded(world):
    """The model on the mesh, as a run has it."""
    return on_mesh()


@pytest.mark.parametrize("signal", ["statistics", "attribution"])
def test_statistics_are_the_runs(world, loaded, text_of, facts, monkeypatch, signal):
    method = CONFIG.masks[signal == "attribution"]
    samples = tiny_llava.forms(facts, "image", loaded.template)
    collected = functools.partial(
        collect.collect, loaded, samples, method, modality="image", batch_size=4, fade=method.fade
    )
    found = first_program(monkeypatch, collect, "add_batch", collected)
    assert found == text_of(f"{method.name}: {signal}, image form")


@pytest.mark.parametrize("form", ["image", "text"])
def test_what_removals_cost_is_the_runs(world, loaded, facts, monkeypatch, form):
    method = named_method("gradient", spare=0.1)
    forms = {form: tiny_llava.forms(facts, form, loaded.template)}
    job = ScoringJob(loaded, method, forms, forms, batch_size=4)
    gates = {tower: np.ones(sizes, np.float32) for tower, sizes in loaded.towers.items()}
    asked = functools.partial(spared.spared_of, job, gates, 0.1, gates=gates, spared={})
    planned = dict(world.config.model_copy(update={"method": method, "compare": (), "unlearn": ()}))
    only = dataclasses.replace(world, config=RunConfig.model_construct(**planned))
    items = {item.name: item for item in scoring.scoring_items(only)}
    step = items[f"gradient: what removals cost, {form} form"].make(only, None, None)
    assert first_program(monkeypatch, spared, "log_likelihood_sum", asked) == lowered(step, only)


def test_learned_gates_are_the_runs(loaded, text_of, facts, monkeypatch):
    forms = {m: tiny_llava.forms(facts, m, loaded.template) for m in ("image", "text")}
    job = ScoringJob(loaded, CONFIG.masks[2], forms, forms)
    found = first_program(monkeypatch, learned, "_step", lambda: learned.learn_gates(job))
    assert found == text_of("learned: learned gates")


@pytest.mark.parametrize("name", ["gd", pytest.param("npo", marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["gradient", "update"])
def test_a_baseline_is_the_runs(loaded, text_of, facts, monkeypatch, tmp_path, name, what):
    section = next(one for one in CONFIG.unlearn if one.name == name)
    trained = functools.partial(
        unlearn, loaded, section, forget=facts, keep=facts, directory=tmp_path, seed=0,
        reference=loaded if name == "npo" else None,
    )  # fmt: skip
    if what == "update":
        monkeypatch.setattr(trainer, "loss_and_gradient", without_compiling)
    module, step = (trainer, "loss_and_gradient" if what == "gradient" else "_updated")
    found = first_program(monkeypatch, module, step, trained)
    forms = [", image form", ", text form"] if what == "gradient" else [""]
    assert found in [text_of(f"{name}: {what}{form}") for form in forms]


@pytest.mark.slow
@pytest.mark.pods
@pytest.mark.parametrize("name", ["erase", "tower", "suppress"])
def test_erase_is_the_runs(loaded, text_of, facts, monkeypatch, tmp_path, name):
    section = next(one for one in CONFIG.unlearn if one.name == name)
    monkeypatch.setattr(strangers_target, "_mean_target", any_target)
    erased = functools.partial(
        unlearn, loaded, section, forget=facts, keep=facts, directory=tmp_path, seed=0
    )
    found = first_program(monkeypatch, trainer, "loss_and_gradient", erased)
    planned = text_of(f"{name}: gradient")
    if name == "suppress":  # a plan does not know which neurons are used least
        found, planned = (WHICH.sub("which", text) for text in (found, planned))
    assert found == planned


def any_target(model, batch, *, num_facts, num_strangers):
    size = tiny_llava.loaded().config.text.vocabulary
    shape = (num_facts, batch.answer_index_BA.shape[1], size)
    ids = np.broadcast_to(np.arange(shape[2], dtype=np.int32), shape)
    p = np.full(shape, 1 / shape[2], np.float32)
    return strangers_target.StrangerTarget(ids, p, p[..., 0])


def test_answers_and_likelihoods_are_the_runs(loaded, text_of, facts, monkeypatch):
    samples = tiny_llava.forms(facts, "text", loaded.template)
    asked = [dataclasses.replace(one, segments=one.segments[:1]) for one in samples]
    answered = functools.partial(generate.greedy, loaded, asked, new_tokens=3, batch_size=4)
    assert first_program(monkeypatch, generate, "_answers", answered)
    rated = functools.partial(likelihood.log_likelihoods, loaded, samples, batch_size=4)
    found = first_program(monkeypatch, likelihood, "_likelihoods", rated)
    assert found == text_of("likelihoods, text form")


def test_prompts_that_join_are_planned_as_they_run(world, loaded, facts, monkeypatch):
    monkeypatch.setattr(refilling, "SHORT", 2)
    monkeypatch.setattr(refilling, "SHARE", 2)
    evaluate = world.config.evaluate.model_copy(update={"batch_size": 8})
    config = world.config.model_copy(update={"evaluate": evaluate})
    prompts = {"text": (world.data.prompts["text"] * 9)[:9]}
    asked_world = dataclasses.replace(
        world, config=config, data=dataclasses.replace(world.data, prompts=prompts)
    )
    items = {item.name: item for item in asking.asking_items(asked_world)}
    samples = (tiny_llava.forms(facts, "text", loaded.template) * 9)[:9]
    asked = [dataclasses.replace(one, segments=one.segments[:1]) for one in samples]
    answered = functools.partial(generate.greedy, loaded, asked, new_tokens=3, batch_size=8)
    for what, name in (("prompts", "_begun"), ("joining", "_joined"), ("tokens", "_went_on")):
        step = items[f"answers, text form: {what}"].make(asked_world, None, None)
        planned = lowered(step, asked_world)
        assert first_program(monkeypatch, refilling, name, answered) == planned


@pytest.mark.parametrize("form", ["image", "text"])
def test_distances_are_the_runs(world, loaded, facts, monkeypatch, form):
    samples = tiny_llava.forms(facts, form, loaded.template)
    step = asking.kl_item("KL", world.data.forget[form], world).make(world, None, None)
    compared = functools.partial(distance.answer_kl, loaded, loaded, samples, batch_size=4)
    assert first_program(monkeypatch, distance, "_kl", compared) == lowered(step, world)


@pytest.mark.parametrize("form", ["image", "text"])
def test_what_neurons_do_at_tokens_is_the_runs(world, loaded, facts, monkeypatch, form):
    encoded = encode_all(loaded, tiny_llava.forms(facts, form, loaded.template))
    places = analysing.shown_neurons(world)
    step = analysing._at_tokens(form, world, None, None)
    looked = functools.partial(activations.at_tokens, loaded, encoded, places, batch_size=4)
    assert first_program(monkeypatch, activations, "_values", looked) == lowered(step, world)


@pytest.mark.parametrize("form", ["image", "text"])
def test_membership_is_the_runs(world, loaded, facts, monkeypatch, form):
    samples = tiny_llava.forms(facts, form, loaded.template)
    asked = asking.Asked(world.data.forget[form], 1, asking.beside_a_method)
    item = asking.rated_item("membership", asked, world, function=membership._token_scores)
    rated = functools.partial(membership.token_scores, loaded, samples, batch_size=4)
    found = first_program(monkeypatch, membership, "_token_scores", rated)
    assert found == lowered(item.make(world, None, None), world)


def test_depth_is_the_runs(world, loaded, facts, monkeypatch):
    samples = tiny_llava.forms(facts, "image", loaded.template)
    patched = functools.partial(depth.layer_losses, loaded, loaded, samples, batch_size=4)
    found = first_program(monkeypatch, depth, "_patched_losses", patched)
    assert found == lowered(auditing._depth(world, None, None), world)


@pytest.mark.parametrize(
    "lora", [None, pytest.param({"rank": 2, "dropout": 0.1}, marks=pytest.mark.slow)]
)
def test_an_attackers_step_is_the_runs(world, loaded, facts, monkeypatch, lora):
    audit = world.config.audit.model_validate({"level": "full", "lora": lora})
    config = world.config.model_copy(update={"audit": audit})
    attacked = types.SimpleNamespace(
        loaded=loaded, facts=facts, kept_facts=facts, run=types.SimpleNamespace(config=config),
        answered=lambda *_: [],
    )  # fmt: skip
    lesson = attacker.Lesson(name="x", taught={"image": facts, "text": facts}, asked=())
    attack = functools.partial(attacker.Attacker(attacked).curve, lesson, rate=1e-3, steps=[1])
    step = auditing._attack(dataclasses.replace(world, config=config), None, None)
    found = first_program(monkeypatch, attacker, "attack_step", attack)
    assert found == lowered(step, world)

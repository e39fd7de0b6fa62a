"""The steps of analyses beside the audit: ability, distances from strangers, candidates, neurons.

Not planned, since they take planned steps again: the completions of ability (likelihoods on
shorter texts), leakage, the choice of α, the null, calibration and the changes without single
neurons (a candidate each, and statistics), differences and strangers (likelihoods and answers).
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from manu_jax.config.base import Remat
from manu_jax.context import NUM_STRANGERS
from manu_jax.evaluation import candidates, distance, likelihood
from manu_jax.evaluation.analyses import ability, neurons
from manu_jax.evaluation.neurons import activations
from manu_jax.evaluation.neurons.chosen import Place as NeuronPlace
from manu_jax.planning.asking import (
    Asked,
    answer_items,
    beside_a_method,
    kl_item,
    rated_item,
    with_features,
    work_in_buckets,
)
from manu_jax.planning.shapes import filled
from manu_jax.planning.step import WEIGHTS, Item, Step
from manu_jax.planning.strangers import mean_item
from manu_jax.planning.training import target_of_rows
from manu_jax.planning.world import World, trained_sections
from manu_jax.types import Modality

# The compiled steps are private to the modules that call them; a plan compiles them and calls none.


def analysis_items(world: World) -> Iterator[Item]:
    """Yield the steps of the analyses of a run's config."""
    config = world.config
    yield from _ability_items(world)
    if config.evaluate.kl and not world.has_retrained:
        yield from _stranger_items(world)
    batch = ("evaluate.batch_size", config.evaluate.batch_size)
    if _num_candidates(world):
        yield Item("candidates: one mask, by its gates", "evaluate", _candidate, batch)
    if neurons.possible(config):
        for form in world.data.modalities:
            make = functools.partial(_at_tokens, form)
            yield Item(f"neurons: what they do at tokens, {form} form", "evaluate", make, batch)


def _ability_items(world: World) -> Iterator[Item]:
    """Yield the loss on English, answers in chat, and their KL from vanilla's."""
    probes, models = world.data.probes, world.num_models
    if probes.english:
        asked = Asked(probes.english, models, beside_a_method)
        name = "ability: loss on English"
        yield rated_item(name, asked, world, function=likelihood._likelihoods)
    if probes.chat:
        asked = Asked(probes.chat, models, beside_a_method, ability.NEW_TOKENS)
        yield from answer_items("ability: chat", asked, world)
        yield kl_item("ability: KL of chat from vanilla", probes.replies, world, is_vanilla=True)


def _stranger_items(world: World) -> Iterator[Item]:
    """Yield what stands for the distance from a retrained model where there is none."""
    batch = ("evaluate.batch_size", world.config.evaluate.batch_size)
    has_target = any(one.target == "strangers" for one in trained_sections(world.config))
    for form in world.data.modalities:
        if not has_target:
            name = f"KL from strangers: what is said of them, {form} form"
            yield mean_item(name, form, NUM_STRANGERS, stage="evaluate")
        make = functools.partial(_stranger_kl, form)
        yield Item(f"KL from strangers, {form} form", "evaluate", make, batch)
        if world.data.keep.get(form):
            name = f"KL from vanilla, {form} form"
            yield kl_item(name, world.data.keep[form], world, is_vanilla=True)


def _stranger_kl(form: Modality, world: World, size: int | None, remat: Remat | None) -> Step:
    samples = world.data.forget[form]
    given = min(size or world.config.evaluate.batch_size, len(samples))
    rows = filled(given, world.place)
    work = work_in_buckets(world, samples, rows)
    batch = world.place.rows(work.batch)
    return Step(
        distance._stranger_kl,
        (world.model, batch, target_of_rows(world, batch)),
        {},
        world.num_models * work.batches,
        rows=rows,
        real_rows=given,
        parts={WEIGHTS: world.model},
        resident=beside_a_method(world),
    )


def _num_candidates(world: World) -> int:
    """Return how many masks are asked by their gates, over all analyses."""
    config, masks = world.config, len(world.config.masks)
    sweep, calibration = config.sweep, config.calibration
    variations = calibration.draws * (len(calibration.sizes) + 2)
    shown = bool(neurons.possible(config)) * (config.neurons.most + 2)
    return masks * (len(sweep.alphas) + sweep.null_groups + variations) + shown


def _candidate(world: World, size: int | None, remat: Remat | None) -> Step:
    """Return the step of one candidate at a time: a run asks as many at once as have room.

    The more at once the fewer the calls; what they need together is at most half of what is free.
    """
    given = size or world.config.evaluate.batch_size
    rows = filled(given, world.place)
    data, loaded = world.data, world.loaded
    facts = [one for samples in (*data.forget.values(), *data.keep.values()) for one in samples]
    work = work_in_buckets(world, facts, rows)
    gates = {"text": jax.ShapeDtypeStruct((1, *loaded.towers["text"]), jnp.float32)}
    is_of_images = len(loaded.towers) > 1 and work.batch.images is not None
    return Step(
        candidates._step,
        (world.model, with_features(world, world.place.rows(work.batch)), world.place.whole(gates)),
        {"per_candidate": is_of_images},
        _num_candidates(world) * work.batches,
        rows=rows,
        real_rows=given,
        parts={WEIGHTS: world.model},
    )


def shown_neurons(world: World) -> list[NeuronPlace]:
    """Return as many neurons as a run shows of a method, over all towers alike."""
    towers, most = world.loaded.towers, world.config.neurons.most
    return [
        NeuronPlace(tower, number % towers[tower][0], number % towers[tower][1])
        for number, tower in enumerate(([*towers] * most)[:most])
    ]


def _at_tokens(form: Modality, world: World, size: int | None, remat: Remat | None) -> Step:
    """Return the step of `at_tokens`, of neurons that stand for those of a method."""
    given = size or world.config.evaluate.batch_size
    rows = filled(given, world.place)
    capture, slots = activations._capture(shown_neurons(world))
    work = work_in_buckets(world, world.data.forget[form], rows)
    return Step(
        activations._values,
        (world.model, world.place.rows(work.batch)),
        {"capture": capture, "slots": slots},
        work.batches,
        rows=rows,
        real_rows=given,
        parts={WEIGHTS: world.model},
        resident=beside_a_method(world),
    )

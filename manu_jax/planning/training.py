"""The steps of the methods of `unlearn` that train by losses of UnlearnData."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.config import OptimizerSection, UnlearnSection
from manu_jax.config.base import Remat
from manu_jax.edits.neurons import WrittenNeurons
from manu_jax.edits.weights import NewWeights
from manu_jax.planning.shapes import Work, another, assumed_sample, filled, work_of
from manu_jax.planning.step import OPTIMIZER, OTHER, WEIGHTS, Item, Step
from manu_jax.planning.world import Samples, World, trained_sections
from manu_jax.training import fisher, gradient, trainer
from manu_jax.training.edited import trained_mlps, written_layers
from manu_jax.training.lora import new_adapters
from manu_jax.training.objectives import (
    Objective,
    UnlearnData,
    cross_entropy_on_answers,
)
from manu_jax.training.recipes import Recipe
from manu_jax.training.strangers_target import MOST_TOKENS, StrangerTarget
from manu_jax.training.unlearner import layer_of, num_steps_of, recipe_of
from manu_jax.types import RETRAINED, Batch, Modality

READS = {"none": 2.0, "dots": 3.0, "all": 3.0}  # of the weights, by a gradient step


def forms_of(world: World, section: UnlearnSection) -> list[Modality]:
    """Return the forms of the facts that a method trains on."""
    return [form for form in world.data.modalities if form in section.modalities]


def update_item(section: UnlearnSection, prefix: str) -> Item:
    """Return the update of a method that trains."""
    return Item(f"{prefix}: update", "unlearn", functools.partial(_update, section))


def unlearn_items(world: World) -> Iterator[Item]:
    """Yield the steps of every method that trains by losses of UnlearnData."""
    for section in trained_sections(world.config):
        recipe = recipe_of(section)
        if recipe.strangers:
            continue
        batch = (f"{section.name}.batch_size", section.batch_size)
        remat = (f"{section.name}.remat", section.remat)
        forms = forms_of(world, section)
        if recipe.masked:
            for modality in forms:
                make = functools.partial(_fisher, section, modality)
                name = f"{section.name}: Fisher information, {modality} form"
                yield Item(name, "unlearn", make, batch, remat)
        for number, loss in enumerate(recipe.losses):
            what = "gradient"
            if recipe.order != "joint":
                what += (" to forget", " to keep")[number]
            for modality in forms:
                make = functools.partial(_gradient, section, loss, number, modality)
                name = f"{section.name}: {what}, {modality} form"
                yield Item(name, "unlearn", make, batch, remat)
        yield update_item(section, section.name)


def state_of(
    world: World, section: OptimizerSection, parts: Sequence[str] = ()
) -> trainer.TrainState:
    """Return what `trainer.initial_state` makes, as placed shapes.

    parts: that are trained as new weights, where the section does not say so itself.
    """
    loaded, model = world.loaded, world.model
    weights: Any
    if isinstance(section, UnlearnSection) and section.trains in ("mlp", "all_mlps"):
        parts = trained_mlps(loaded, section)
    if parts:
        weights = jax.eval_shape(
            lambda model: NewWeights.of(loaded.replace_model(model), parts), model
        )
    elif isinstance(section, UnlearnSection) and section.neurons is not None:
        layers, number = written_layers(loaded, section.neurons), section.neurons.count
        # Only weights tell which neurons are used least; the first of each layer stand for them.
        is_written_over = section.neurons.places == "least_used"
        weights = WrittenNeurons.new(
            loaded,
            layers=layers,
            places=[list(range(number))] * len(layers) if is_written_over else None,
            count=number,
            key=jax.random.key(0),
        )
    elif section.lora is not None:
        lora = section.lora
        weights = jax.eval_shape(lambda model: new_adapters(model, lora, jax.random.key(0)), model)
    else:
        weights = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), model)
    settings = trainer.update_settings(section)
    optimizer = jax.eval_shape(trainer._optimizer(settings).init, weights)
    state = trainer.TrainState(weights, optimizer)
    if isinstance(section, UnlearnSection) and section.primal_dual is not None:
        number = jax.ShapeDtypeStruct((), jnp.float32)
        state = dataclasses.replace(state, keep_weight=number)
    return world.place.bound(state)


def gradient_step(
    world: World, section: OptimizerSection, data: Any, *, objective: Objective, **settings: Any
) -> Step:
    """Return the gradient of an objective as `trainer.train_step` takes it.

    settings: further fields of Step; `reference`: the model in `data` that is not trained, or None;
    `beside`: what else lies on the devices; `trained`: parts, as of `state_of`.
    """
    trained = settings.pop("trained", ())
    state = state_of(world, section, trained)
    reference, beside = settings.pop("reference", None), settings.pop("beside", ())
    is_edit = isinstance(section, UnlearnSection) and section.begins_with_edit or bool(trained)
    base = world.model if section.lora is not None or is_edit else None
    key = world.place.number_within(jax.eval_shape(lambda: jax.random.key(0)))
    common = {
        "base": base,
        "key": key,
        "settings": trainer.step_settings(section, world.loaded, objective).gradient,
        "mesh": world.place.mesh,
    }
    models = [tree for tree in (reference, base) if tree is not None]
    is_there = any(tree is world.model for tree in models)
    function, args = gradient.loss_and_gradient, (state.weights, data)
    if state.keep_weight is not None:
        function, args = gradient.primal_dual_gradient, (state.weights, state.keep_weight, data)
    return Step(
        function,
        args,
        common,
        parts={WEIGHTS: (state.weights, models)},
        resident={
            WEIGHTS: () if is_there else world.model,
            OPTIMIZER: state.optimizer,
            OTHER: beside,
        },
        like=state.weights,
        reads=READS[section.remat],
        **settings,
    )


def _update(section: UnlearnSection, world: World, size: int | None, remat: Remat | None) -> Step:
    recipe = recipe_of(section)
    if recipe.strangers:
        return updating(world, section, calls=section.steps or 0)
    numbers = _numbers(world, section)
    calls = num_steps_of(recipe, section, **numbers)
    if recipe.order == "alternating":
        calls += section.epochs * min(numbers.values())
    mask = state_of(world, section).weights if recipe.masked else None
    return updating(world, section, calls=calls, mask=mask)


def updating(
    world: World,
    section: OptimizerSection,
    *,
    calls: float,
    mask: Any = None,
    trained: Sequence[str] = (),
) -> Step:
    """Return the step of an optimizer. mask: factors of its gradient. trained: see `state_of`."""
    state = state_of(world, section, trained)
    gradient = another(state.weights)
    return Step(
        trainer._updated,
        (state, gradient),
        {
            "mask": mask,
            "rate": world.place.number_within(np.float32(0)),
            "settings": trainer.update_settings(section),
            "mesh": world.place.mesh,
        },
        calls,
        parts={WEIGHTS: state.weights, OPTIMIZER: state.optimizer},
        resident={WEIGHTS: world.model},
    )


def _gradient(
    section: UnlearnSection,
    loss: Objective,
    number: int,
    modality: Modality,
    world: World,
    size: int | None,
    remat: Remat | None,
) -> Step:
    """Return the gradient of one of a recipe's losses on facts in one form."""
    section = changed(section, size, remat)
    recipe, data = recipe_of(section), world.data
    if section.retain_weight == 0 and section.primal_dual is None:
        recipe = dataclasses.replace(recipe, keeps=False)
    forget = work_in_training(world, section, data.forget[modality])
    kept = data.keep.get(modality) or next(iter(data.keep.values()))
    keep = work_in_training(world, section, kept)
    is_joint = recipe.order == "joint"
    forgets, keeps = is_joint or number == 0, (is_joint and recipe.keeps) or number == 1
    num_rows = filled(section.batch_size, world.place)
    batch = world.place.rows(forget.batch) if forgets else None
    found = UnlearnData(
        forget=batch,
        keep=world.place.rows(keep.batch) if keeps else None,
        **_further(world, section, recipe, batch=batch),
    )
    calls = _calls(world, section, recipe, number=number, modality=modality)
    return gradient_step(
        world,
        section,
        found,
        objective=loss,
        reference=found.reference,
        beside=state_of(world, section).weights if recipe.masked else (),
        calls=calls,
        rows=num_rows * (forgets + keeps),
        real_rows=section.batch_size * (forgets + keeps),
    )


def _further(
    world: World, section: UnlearnSection, recipe: Recipe, *, batch: Batch | None
) -> dict[str, Any]:
    """Return the fields of an UnlearnData beside the facts, as `unlearner._phases` gives them."""
    scalar = world.place.number(np.float32(0))
    found: dict[str, Any] = {
        "reference": None if recipe.reference is None else world.model,
        "settings": dict.fromkeys(recipe.settings, scalar),
        "keep_weight": scalar,
    }
    if recipe.reference == RETRAINED:
        found["reference"] = another(world.model)
    if recipe.depth is not None:
        found["layer"] = layer_of(section, recipe, world.loaded.config.text.num_layers)
        found["key"] = jax.eval_shape(lambda: jax.random.key(0))
    if batch is not None:
        if recipe.prefers is not None:
            found["preferred"] = another(batch)
        if section.target == "strangers":
            found["target"] = target_of_rows(world, batch)
        if section.decouple is not None:
            found |= {"decouple": another(batch), "decouple_weight": scalar}
    if section.keep_texts is not None:
        texts = section.keep_texts
        found |= {
            "texts": texts_batch(world, texts.batch_size, texts.length, multiple=16),
            "texts_weight": scalar,
        }
    return found


def target_of_rows(world: World, batch: Batch, *, most_tokens: int = MOST_TOKENS) -> StrangerTarget:
    """Return the shapes of what is said (of strangers) at the answers of a placed batch."""
    assert batch.answer_index_BA is not None
    B, A = batch.answer_index_BA.shape
    K = min(most_tokens, world.loaded.config.text.vocabulary)
    shape = jax.ShapeDtypeStruct
    target = StrangerTarget(
        shape((B, A, K), jnp.int32),  # type: ignore[arg-type]
        shape((B, A, K), jnp.float32),  # type: ignore[arg-type]
        shape((B, A), jnp.float32),  # type: ignore[arg-type]
    )
    return world.place.rows(target)


def texts_batch(world: World, size: int, length: int, *, multiple: int) -> Batch:
    """Return a placed batch of general texts of `length` tokens, all of them with loss but one."""
    sample = assumed_sample(world.loaded, "text", tokens=length + 1, answers=length)
    rows = filled(size, world.place)
    work = work_of(world.data.encoder, [sample], size, rows=rows, multiple=multiple, max_buckets=1)
    return world.place.rows(work.batch)


def _fisher(
    section: UnlearnSection,
    modality: Modality,
    world: World,
    size: int | None,
    remat: Remat | None,
) -> Step:
    """Return the step of `fisher_sums`; the sums of the other sets lie beside it."""
    section = changed(section, size, remat)
    data = world.data
    sets = [data.forget, data.keep]
    works = [
        work_in_training(world, section, samples[modality]) for samples in sets if samples[modality]
    ]
    largest = max(works, key=lambda work: work.batch.token_ids_BT.shape[1])
    weights = state_of(world, section).weights
    rows = filled(section.batch_size, world.place)
    settings = trainer.step_settings(section, world.loaded, cross_entropy_on_answers).gradient
    return Step(
        fisher._add,
        (another(weights), weights, world.place.rows(largest.batch)),
        {
            "settings": settings,
            "mesh": world.place.mesh,
            "by_example": section.fisher == "example",
        },
        calls=sum(work.batches for work in works),
        rows=rows,
        real_rows=section.batch_size,
        parts={WEIGHTS: weights},
        resident={WEIGHTS: world.model, OTHER: (another(weights), another(weights))},
        reads=READS[section.remat],
    )


def changed(section: Any, size: int | None, remat: Remat | None) -> Any:
    """Return a section with another batch or remat, where they are given."""
    changes = {"batch_size": size, "remat": remat}
    return section.model_copy(
        update={name: value for name, value in changes.items() if value is not None}
    )


def work_in_training(world: World, section: OptimizerSection, samples: Sequence[Any]) -> Work:
    """Return the batches of a training on these samples, as `trainer.batches_of` makes them."""
    return work_of(
        world.data.encoder,
        samples,
        section.batch_size,
        rows=filled(section.batch_size, world.place),
        multiple=trainer.LENGTH_MULTIPLE,
        max_buckets=1,
    )


def _numbers(world: World, section: UnlearnSection) -> dict[str, int]:
    """Return the batches of one pass over the facts to forget and to keep, in all forms."""
    sides: dict[str, tuple[Samples, int]] = {
        "num_forget": (world.data.forget, section.views),
        "num_keep": (world.data.keep, section.keep_views),
    }
    return {
        name: sum(
            -(-len(samples) * views // section.batch_size)
            for form, samples in forms.items()
            if form in section.modalities
        )
        for name, (forms, views) in sides.items()
    }


def _calls(
    world: World, section: UnlearnSection, recipe: Recipe, *, number: int, modality: Modality
) -> float:
    """Return how often a loss is minimised on facts in one form."""
    numbers = _numbers(world, section)
    samples = world.data.keep if number == 1 else world.data.forget
    total = sum(len(part) for form, part in samples.items() if form in section.modalities)
    share = len(samples[modality]) / total
    if recipe.order == "joint":
        return num_steps_of(recipe, section, **numbers) * share
    own = numbers["num_keep"] if number == 1 else numbers["num_forget"]
    return section.epochs * own * share

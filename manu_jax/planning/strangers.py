"""The steps of `suppress` and `erase`, and of what looks at strangers before them."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.config import UnlearnSection
from manu_jax.config.base import Remat
from manu_jax.data.batches import Batches
from manu_jax.planning.asking import with_features
from manu_jax.planning.shapes import another, filled
from manu_jax.planning.step import WEIGHTS, Item, Step
from manu_jax.planning.training import (
    forms_of,
    gradient_step,
    target_of_rows,
    texts_batch,
    update_item,
)
from manu_jax.planning.world import World, trained_sections
from manu_jax.training import edited, encoded_rows, strangers_target
from manu_jax.training.stranger_loss import ForgetRows, FormRows, StrangerData
from manu_jax.training.unlearner import recipe_of
from manu_jax.types import Batch, BatchShape, Encoded, Modality

# The compiled steps are private to the modules that call them; a plan compiles them and calls none.


def stranger_items(world: World) -> Iterator[Item]:
    """Yield the steps of every method that looks at strangers, in training or before it."""
    for section in trained_sections(world.config):
        name, recipe = section.name, recipe_of(section)
        forms = forms_of(world, section)
        if section.target == "strangers":
            for modality in forms:
                told = f"{name}: what is said of strangers, {modality} form"
                yield mean_item(told, modality, section.strangers, stage="unlearn")
        if section.neurons is not None and section.neurons.places == "least_used":
            for modality in forms:
                make = functools.partial(_use, modality)
                yield Item(f"{name}: use of neurons, {modality} form", "unlearn", make)
        if not recipe.strangers:
            continue
        if edited.lowest_layer(world.loaded, section):
            for modality in forms:
                make = functools.partial(_entering, section, modality)
                yield Item(f"{name}: what enters, {modality} form", "unlearn", make)
        batch = (f"{name}.batch_size", section.batch_size)
        remat = (f"{name}.remat", section.remat)
        make = functools.partial(_gradient, section)
        yield Item(f"{name}: gradient", "unlearn", make, batch, remat)
        yield update_item(section, name)


def mean_item(name: str, modality: Modality, strangers: int, *, stage: str) -> Item:
    """Return the step of `stranger_target`, over so many strangers for each fact to forget."""
    return Item(name, stage, functools.partial(_mean, strangers, modality))


def _pool(
    world: World, section: UnlearnSection, modality: Modality, *, is_kept: bool
) -> list[Encoded]:
    """Return the facts of which EncodedRows makes batches: to forget or to keep, with strangers.

    Assumed questions about strangers are as long as those about people.
    """
    data = world.data
    if section.name in data.rows:
        return list(data.rows[section.name][modality][is_kept])
    has_strangers = section.kept_strangers > 0 if is_kept else section.setting("hidden") > 0
    strangers = data.strangers.get(modality, ()) if has_strangers else ()
    return [*(data.keep if is_kept else data.forget)[modality], *strangers]


def _shape(everything: Sequence[Encoded], rows: int) -> BatchShape:
    """Return the one shape of all facts of a pool, as EncodedRows has it."""
    longest = max(item.num_tokens for item in everything)
    multiple = encoded_rows.LENGTH_MULTIPLE
    return BatchShape(
        length=-(-longest // multiple) * multiple,
        batch_size=rows,
        num_images=max(item.num_images for item in everything) or None,
        num_patches=max(item.num_patches for item in everything) or None,
        num_answers=max(item.num_answers for item in everything),
        padding_side="left",
    )


def _batch(
    world: World,
    pool: Sequence[Encoded],
    size: int,
    *,
    first_layer: int = 0,
    trains_towers: bool = False,
) -> Batch:
    """Return a placed batch of EncodedRows: features where all fit on the host, else patches."""
    rows = filled(size, world.place)
    shape = _shape(pool, rows)
    batch = world.place.rows(world.data.encoder.collate([pool[0]], shape))
    if batch.images is not None and not trains_towers:
        known = with_features(world, batch)
        held = known.images.features_BIPE
        each = held.size // rows * jnp.dtype(held.dtype).itemsize
        if each * world.data.num_inputs(pool) <= encoded_rows.STORE_BYTES:
            batch = known
    if first_layer:
        width = world.loaded.config.text.width
        dtype = jax.tree.leaves(world.model)[0].dtype
        entering = jax.ShapeDtypeStruct((rows, shape.length, width), dtype)
        batch = dataclasses.replace(batch, entering_BTD=world.place.rows(entering))
    return batch


def _forget_rows(
    world: World, section: UnlearnSection, modality: Modality, *, first_layer: int
) -> ForgetRows:
    pool = _pool(world, section, modality, is_kept=False)
    batch = _batch(
        world,
        pool,
        section.batch_size,
        first_layer=first_layer,
        trains_towers=section.trains_towers,
    )
    target = target_of_rows(world, batch)
    if section.setting("hidden") <= 0:
        return ForgetRows(batch, target)
    differs = jax.ShapeDtypeStruct(batch.token_ids_BT.shape, jnp.float32)
    return ForgetRows(batch, target, another(batch), world.place.rows(differs))


def _gradient(section: UnlearnSection, world: World, size: int | None, remat: Remat | None) -> Step:
    """Return the gradient of L(θ) on facts in all forms; its loop takes mean number of steps."""
    changes = {"batch_size": size, "remat": remat}
    section = section.model_copy(
        update={name: value for name, value in changes.items() if value is not None}
    )
    relearn = section.relearn
    first_layer = edited.lowest_layer(world.loaded, section)
    num_keep = section.batch_keep or section.batch_size
    towers = {"trains_towers": section.trains_towers}
    forms, rows, real_rows = {}, 0, 0
    for modality in world.data.modalities:
        if modality not in section.modalities:
            continue
        pool, kept_pool = (
            _pool(world, section, modality, is_kept=is_kept) for is_kept in (False, True)
        )
        one = FormRows(
            _forget_rows(world, section, modality, first_layer=first_layer),
            _batch(world, kept_pool, num_keep, first_layer=first_layer, **towers),
        )
        sizes = [section.batch_size, num_keep]
        if relearn is not None:
            num = relearn.steps * relearn.batch_size
            one = dataclasses.replace(
                one,
                relearned=_batch(world, pool, num, **towers),
                asked=_forget_rows(world, section, modality, first_layer=0),
            )
            sizes += [num, section.batch_size]
        forms[modality] = one
        rows += sum(filled(number, world.place) for number in sizes)
        real_rows += sum(sizes)
    scalar, drawn = world.place.number(np.float32(0)), world.place.number_within(np.float32(0))
    names = ("excess", "shortfall", "hidden", "keep_hidden", "relearn")
    texts: dict[str, Any] = {}
    if section.keep_texts is not None:
        kept = section.keep_texts
        texts = {
            "texts": texts_batch(world, kept.batch_size, kept.length, multiple=8),
            "texts_weight": drawn,
        }
    data = StrangerData(
        forms=forms,
        reference=world.model,
        settings=dict.fromkeys(names, scalar),
        keep_weight=drawn,
        relearn_steps=world.place.number_within(np.int32(0)),
        relearn_rate=drawn,
        parts=1 if relearn is None else relearn.steps,
        first_layer=first_layer,
        **texts,
    )
    return gradient_step(
        world,
        section,
        data,
        objective=recipe_of(section).losses[0],
        reference=world.model,
        calls=section.steps or 0,
        rows=rows,
        real_rows=real_rows,
        trips=1.0 if relearn is None else (1 + relearn.steps) / 2,
    )


def _mean(
    strangers: int,
    modality: Modality,
    world: World,
    size: int | None,
    remat: Remat | None,
) -> Step:
    """Return the step of `stranger_target`."""
    data = world.data
    per_call = max(strangers_target.ROWS_AT_ONCE // strangers, 1)
    rows = filled(per_call * strangers, world.place)
    forget, asked = (samples.get(modality, ()) for samples in (data.forget, data.strangers))
    shape = dataclasses.replace(_shape([*forget, *asked], rows), padding_side="right")
    batch = world.place.rows(data.encoder.collate(forget[:1], shape))
    return Step(
        strangers_target._mean_target,
        (world.model, batch),
        {"num_facts": per_call, "num_strangers": strangers},
        -(-len(forget) // per_call),
        rows=rows,
        real_rows=per_call * strangers,
        parts={WEIGHTS: world.model},
    )


def _use(modality: Modality, world: World, size: int | None, remat: Remat | None) -> Step:
    """Return the step of `neuron_use`, on at most MOST_SAMPLES kept facts."""
    rows = filled(edited.BATCH_SIZE, world.place)
    chosen = world.data.keep[modality][: edited.MOST_SAMPLES]
    batches = Batches(world.data.encoder, chosen, rows, max_buckets=1, rows=np.arange(rows))
    return Step(
        edited._batch_squares,
        (world.model, world.place.rows(batches.batch_at(0))),
        {},
        len(batches),
        rows=rows,
        real_rows=rows,
        parts={WEIGHTS: world.model},
    )


def _entering(
    section: UnlearnSection,
    modality: Modality,
    world: World,
    size: int | None,
    remat: Remat | None,
) -> Step:
    """Return the step of EncodedRows that runs the layers below the first that is trained."""
    data, rows = world.data, filled(encoded_rows.AT_ONCE, world.place)
    pool = _pool(world, section, modality, is_kept=False)
    number = len(data.forget[modality]) * section.views * (1 + section.strangers)
    number += len(data.keep[modality]) * section.keep_views
    return Step(
        encoded_rows._entering,
        (world.model, _batch(world, pool, encoded_rows.AT_ONCE)),
        {"first_layer": edited.lowest_layer(world.loaded, section)},
        -(-number // encoded_rows.AT_ONCE),
        rows=rows,
        real_rows=encoded_rows.AT_ONCE,
        parts={WEIGHTS: world.model},
    )

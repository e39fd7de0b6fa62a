"""The steps that train the run's own models, careful or not, and those that write own texts."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from manu_jax.config import ReplaySection, TowerSection, TrainSection, UnlearnSection
from manu_jax.config.base import Remat
from manu_jax.importance import own_texts
from manu_jax.importance.texts import texts_of
from manu_jax.models.inputs.vision_inputs import collate_vision_inputs
from manu_jax.planning.lessons import num_own_texts
from manu_jax.planning.shapes import another, assumed_sample, filled, work_of
from manu_jax.planning.step import OPTIMIZER, WEIGHTS, Item, Step
from manu_jax.planning.training import (
    changed,
    gradient_step,
    state_of,
    target_of_rows,
    updating,
    work_in_training,
)
from manu_jax.planning.world import World
from manu_jax.training import replay, teaching, tower
from manu_jax.training.objectives import Objective, cross_entropy_on_answers
from manu_jax.types import Batch, Encoded, Modality

# The compiled steps are private to the modules that call them; a plan compiles them and calls none.

OWN_TEXTS = "own texts: written"


def vanilla_items(world: World) -> Iterator[Item]:
    """Yield the steps that train the models of a run, and what they need before and between."""
    section = world.config.train
    if not section.steps:
        return
    repeated, watched = num_own_texts(section)
    if repeated + watched:
        tokens = (section.replay or ReplaySection()).tokens
        yield writing_item(
            f"training: {OWN_TEXTS}", "train", count=repeated + watched, tokens=tokens
        )
    if repeated:
        yield Item("training: own texts: what is said at their tokens", "train", _said)
    remat: tuple[str, Remat] = ("train.remat", section.remat)
    if section.tower is not None:
        images = ("train.tower.batch_size", section.tower.batch_size)
        yield Item("training: tower: gradient", "train", _tower_gradient, images, remat)
        yield Item("training: tower: update", "train", _tower_update)
    batch = ("train.batch_size", section.batch_size)
    for form in world.data.documents:
        make = functools.partial(_gradient, form)
        yield Item(f"training: gradient, {form} form", "train", make, batch, remat)
    yield Item("training: update", "train", _update)
    if section.stop is None:
        return
    for form, facts in world.data.lessons.watched.items():
        make = functools.partial(_answered, facts)
        yield Item(f"training: whether it is enough, {form} form", "train", make)
    yield Item(
        "training: whether it is enough, own texts",
        "train",
        lambda world, size, remat: _answered(_texts(world, watched), world, size, remat),
    )
    yield Item("training: the model that is looked at", "train", _taught)


def own_text_items(world: World) -> Iterator[Item]:
    """Yield the step by which vanilla writes the texts that methods keep, each kind once."""
    kinds: dict[tuple[int, int], str] = {}
    for method in world.config.all_methods:
        section = texts_of(method)
        if section is not None and section.path is None:
            stage = "unlearn" if isinstance(method, UnlearnSection) else "scores"
            kinds.setdefault((section.count, section.length), stage)
    for (count, tokens), stage in kinds.items():
        name = f"{OWN_TEXTS}, {count} of {tokens} tokens"
        yield dataclasses.replace(
            writing_item(name, stage, count=count, tokens=tokens), work="decode"
        )


def writing_item(name: str, stage: str, *, count: int, tokens: int) -> Item:
    """Return the step that writes a model's own texts, `count` of at most `tokens` new tokens."""
    return Item(name, stage, functools.partial(_written, count, tokens))


def _starts(world: World, count: int) -> list[Encoded]:
    """Return what each of `count` own texts goes on from, as prompts."""
    bare = [
        dataclasses.replace(one, loss_weights_T=np.zeros_like(one.loss_weights_T))
        for one in world.data.lessons.starts
    ]
    return list(itertools.islice(itertools.cycle(bare), count))


def _texts(world: World, count: int) -> list[Encoded]:
    """Return `count` own texts of a training, as long as they may become."""
    tokens = (world.config.train.replay or ReplaySection()).tokens
    whole = [
        assumed_sample(
            world.loaded, "text", tokens=one.num_tokens + tokens, answers=one.num_answers + tokens
        )
        for one in world.data.lessons.starts
    ]
    return list(itertools.islice(itertools.cycle(whole), count))


def _written(count: int, tokens: int, world: World, size: int | None, remat: Remat | None) -> Step:
    """Return the step of `own_texts.sampled`."""
    given = min(own_texts.ROWS_AT_ONCE, count)
    rows = filled(given, world.place)
    settings: dict[str, Any] = {"max_buckets": 2, "padding_side": "left"}
    starts = _starts(world, count)
    work = work_of(world.data.encoder, starts, given, rows=rows, **settings)
    return Step(
        own_texts.continued,
        (
            world.model,
            world.place.rows(work.batch),
            world.place.number_within(jax.eval_shape(lambda: jax.random.key(0))),
        ),
        {"new_tokens": tokens, "barred": world.loaded.config.image_token, "rows": given},
        work.batches,
        rows=rows,
        real_rows=given,
        parts={WEIGHTS: world.model},
        trips=tokens,
        reads=1 + tokens,
    )


def _batch_of_texts(
    world: World, texts: Sequence[Encoded], size: int, multiple: int
) -> tuple[Any, float]:
    """Return the one batch shape of texts, placed, and how many batches there are."""
    settings = {"multiple": multiple, "max_buckets": 1}
    work = work_of(world.data.encoder, texts, size, rows=filled(size, world.place), **settings)
    return world.place.rows(work.batch), work.number


def _said(world: World, size: int | None, remat: Remat | None) -> Step:
    """Return the step of `replay.said_at`."""
    texts = _texts(world, num_own_texts(world.config.train)[0])
    batch, number = _batch_of_texts(world, texts, replay.ROWS_MEASURED, 16)
    return Step(
        replay._said,
        (world.model, batch),
        {},
        number,
        rows=filled(replay.ROWS_MEASURED, world.place),
        real_rows=min(replay.ROWS_MEASURED, len(texts)),
        parts={WEIGHTS: world.model},
    )


def _tower(
    world: World, size: int | None, remat: Remat | None
) -> tuple[TowerSection, TrainSection, list[str]]:
    """Return the section of the tower, its training's, and the parts that it trains."""
    section = world.config.train
    found = changed(section.tower or TowerSection(), size, None)
    settings, parts = tower.settings_of(changed(section, None, remat), found, world.loaded)
    return found, settings, parts


def _tower_steps(section: TrainSection, found: TowerSection) -> int:
    """Return the steps of the tower in all trainings of a run."""
    models = 1 + bool(section.retrained)
    if not section.base_steps:
        return models * found.steps
    return found.steps + models * found.more_steps


def _tower_gradient(world: World, size: int | None, remat: Remat | None) -> Step:
    """Return the gradient of `tower.caption_loss` on a batch of images."""
    found, settings, parts = _tower(world, size, remat)
    shown, lessons = world.data.lessons.shown, world.data.lessons
    assert shown is not None
    loaded, rows = world.loaded, filled(found.batch_size, world.place)
    shape = (1, len(shown.patches_PC))
    images = collate_vision_inputs([(shown,)] * rows, loaded.config, shape)
    width = loaded.config.text.width
    data = tower.CaptionedImages(
        world.place.rows(images),
        world.place.rows(jax.ShapeDtypeStruct((rows, shown.num_features), np.int32)),
        world.place.rows(jax.ShapeDtypeStruct((rows,), np.float32)),
        world.place.whole(jax.ShapeDtypeStruct((lessons.captions, width), np.float32)),
    )
    return gradient_step(
        world,
        settings,
        data,
        objective=tower.caption_loss,
        trained=parts,
        calls=_tower_steps(world.config.train, found),
        rows=rows,
        real_rows=found.batch_size,
    )


def _tower_update(world: World, size: int | None, remat: Remat | None) -> Step:
    found, settings, parts = _tower(world, size, remat)
    calls = _tower_steps(world.config.train, found)
    return updating(world, settings, calls=calls, trained=parts)


def _gradient(form: Modality, world: World, size: int | None, remat: Remat | None) -> Step:
    """Return the gradient on documents, and on own texts where they are repeated."""
    section = changed(world.config.train, size, remat)
    data: Any
    data, calls = _documents_of(world, section, form)
    objective: Objective = cross_entropy_on_answers
    rows, real_rows = filled(section.batch_size, world.place), section.batch_size
    if section.replay is not None:
        num_texts = section.replay.batch_size
        texts, _ = _batch_of_texts(world, _texts(world, section.replay.texts), num_texts, 16)
        said = target_of_rows(world, texts, most_tokens=replay.MOST_TOKENS)
        taught = teaching.Taught(data, texts, said, world.place.number(np.float32(0)))
        objective, data = teaching.cross_entropy_with_replay, taught
        rows, real_rows = rows + filled(num_texts, world.place), real_rows + num_texts
    return gradient_step(
        world,
        section,
        data,
        objective=objective,
        trained=_trained(world, section),
        calls=calls,
        rows=rows,
        real_rows=real_rows,
    )


def _update(world: World, size: int | None, remat: Remat | None) -> Step:
    section = world.config.train
    trained = _trained(world, section)
    return updating(world, section, calls=_num_steps(section), trained=trained)


def _trained(world: World, section: TrainSection) -> Sequence[str]:
    """Return the parts that a careful training has as new weights; (): it trains all weights."""
    return teaching.trained_parts(world.loaded, section) if section.is_careful else ()


def _documents_of(world: World, section: TrainSection, modality: Modality) -> tuple[Batch, float]:
    """Return the largest batch of documents of a form, placed, and its share of all steps."""
    documents = world.data.documents
    works = {form: work_in_training(world, section, samples) for form, samples in documents.items()}
    number = sum(work.number for work in works.values())
    share = works[modality].batches / number
    return world.place.rows(works[modality].batch), _num_steps(section) * share


def _num_steps(section: TrainSection) -> int:
    """Return the steps that train the models of a run, at most."""
    return (1 + bool(section.retrained)) * section.steps + section.base_steps


def _looks(section: TrainSection) -> int:
    """Return how often all trainings of a run are looked at, at most."""
    return _num_steps(section) // (section.stop.every if section.stop else 1)


def _answered(
    samples: Sequence[Encoded], world: World, size: int | None, remat: Remat | None
) -> Step:
    """Return the step that rates facts or own texts, while a training's state lies beside it."""
    section = world.config.train
    batch, number = _batch_of_texts(world, samples, teaching.ROWS_AT_ONCE, 8)
    state = state_of(world, section, _trained(world, section))
    return Step(
        teaching._answered,
        (world.model, batch),
        {},
        _looks(section) * number,
        rows=filled(teaching.ROWS_AT_ONCE, world.place),
        real_rows=min(teaching.ROWS_AT_ONCE, len(samples)),
        parts={WEIGHTS: world.model},
        resident={WEIGHTS: (state.weights, another(world.model)), OPTIMIZER: state.optimizer},
    )


def _taught(world: World, size: int | None, remat: Remat | None) -> Step:
    """Return the step that makes a model of the state of a training."""
    section = world.config.train
    state = state_of(world, section, _trained(world, section))
    return Step(
        teaching._taught_model,
        (state.weights, world.model),
        {"share": 1.0 if section.interpolation is None else section.interpolation},
        _looks(section),
        parts={WEIGHTS: (state.weights, world.model)},
        resident={OPTIMIZER: state.optimizer},
        like=world.model,
        reads=0.0,
    )

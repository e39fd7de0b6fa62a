"""The steps of the stages `scores` and `masks`: statistics of both signals, and what learns."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax import parallel
from manu_jax.config import LearnedMethod, MethodSettings, StatisticsMethod
from manu_jax.config.base import Remat
from manu_jax.data.batches import batching
from manu_jax.importance import collect, kvw, learned, ridge, spared
from manu_jax.importance.kept import draw, drawn
from manu_jax.importance.kvw import KvwMethod
from manu_jax.importance.ridge import RidgeMethod
from manu_jax.importance.statistics import Statistics
from manu_jax.planning.shapes import Work, assumed_sample, by_sizes, filled, work_of
from manu_jax.planning.step import WEIGHTS, Item, Step
from manu_jax.planning.world import World
from manu_jax.types import BatchShape, Encoded, Modality, Neurons

# Groups of neurons that a round is assumed to ask without; with two costly ones among a thousand 40
GROUPS = 40
Kept = Modality | Literal["texts"]  # what a removal may cost

# The compiled steps are private to the modules that call them; a plan compiles them and calls none.


def scoring_items(world: World) -> Iterator[Item]:
    """Yield the steps of the config's methods that train nothing."""
    for method in world.config.methods:
        yield from _items_of(method, world)


def _items_of(method: MethodSettings, world: World) -> Iterator[Item]:
    if isinstance(method, StatisticsMethod):
        for modality in world.data.modalities:
            if modality in method.towers:
                yield _statistics_item(method, modality, world)
        if method.spare is not None:
            for modality in world.data.modalities:
                yield _removal_item(method, modality, world)
            if method.keep_texts is not None:
                yield _removal_item(method, "texts", world)
    elif isinstance(method, LearnedMethod):
        make = functools.partial(_learning, method)
        size = method.batch_forget + method.batch_keep
        key = f"{method.name}.batch_keep"
        yield Item(f"{method.name}: learned gates", "scores", make, (key, size), _remat_of(method))
    elif isinstance(method, KvwMethod):
        yield Item(
            f"{method.name}: mean sizes",
            "masks",
            _kvw_sums,
            ("score_batch", world.config.score_batch),
        )
        if method.sequential:
            weaken = functools.partial(_kvw_weaken, method)
            key = f"{method.name}.batch_size"
            yield Item(f"{method.name}: weakening", "masks", weaken, (key, method.batch_size))
    elif isinstance(method, RidgeMethod):
        batch = ("score_batch", world.config.score_batch)
        yield Item(f"{method.name}: rows", "masks", functools.partial(_ridge_rows, method), batch)
        yield Item(
            f"{method.name}: residual stream",
            "masks",
            functools.partial(_ridge_stream, method),
            batch,
        )


def _remat_of(method: StatisticsMethod | LearnedMethod) -> tuple[str, Remat]:
    return f"{method.name}.remat", method.remat


def _statistics_item(method: StatisticsMethod, modality: Modality, world: World) -> Item:
    is_gradient = method.signal == "gradient"
    what = "attribution" if is_gradient else "statistics"
    key = "score_batch" if method.batch_size is None else f"{method.name}.batch_size"
    size = method.batch_size or world.config.score_batch
    return Item(
        f"{method.name}: {what}, {modality} form",
        "scores",
        functools.partial(_statistics, method, modality),
        (key, size),
        _remat_of(method) if is_gradient else None,
    )


def _statistics(
    method: StatisticsMethod,
    modality: Modality,
    world: World,
    size: int | None,
    remat: Remat | None,
) -> Step:
    """Return the step of `collect` on facts in one form, of those to forget and those to keep."""
    if remat is not None:
        method = method.model_copy(update={"remat": remat})
    loaded, place = world.loaded, world.place
    capture_step = collect.capture_step_of(loaded, method, modality)
    given = size or method.batch_size or world.config.score_batch
    size = given if capture_step.is_of_batches else filled(given, place)
    lengths = collect.lengths_of(capture_step)
    forget, keep = world.data.forget.get(modality, ()), _kept(method, modality, world)
    works = [
        work_of(world.data.encoder, samples, size, rows=filled(size, place), **lengths)
        for samples in (forget, keep)
        if samples
    ]
    largest = max(works, key=_tokens)
    batch = place.rows(largest.batch)
    total = _zero(world, batch, capture_step)
    gates = None
    if method.rounds > 1:
        gates = place.whole(by_sizes(dict(capture_step.towers)))
    fade = collect.fade_of(capture_step, method.fade)
    calls = method.rounds * sum(one.batches * _tokens(one) / _tokens(largest) for one in works)
    return Step(
        collect.add_batch,
        (total, loaded.model, batch),
        {"gates": gates, "fade": fade, "capture_step": capture_step},
        calls,
        rows=filled(size, place),
        real_rows=given,
        parts={WEIGHTS: loaded.model},
        reads=1.0 if capture_step.capture is not None else 3.0,
    )


def _removal_item(method: StatisticsMethod, kept: Kept, world: World) -> Item:
    key = "score_batch" if method.batch_size is None else f"{method.name}.batch_size"
    what = "texts" if kept == "texts" else f"{kept} form"
    return Item(
        f"{method.name}: what removals cost, {what}",
        "scores",
        functools.partial(_removal, method, kept),
        (key, method.batch_size or world.config.score_batch),
    )


def _removal(
    method: StatisticsMethod, kept: Kept, world: World, size: int | None, remat: Remat | None
) -> Step:
    """Return the step that asks what is kept, facts in a form or texts, without some neurons."""
    loaded, place = world.loaded, world.place
    given = size or method.batch_size or world.config.score_batch
    rows = filled(given, place)
    samples: Sequence[Encoded] = _texts(method, world)
    if kept != "texts":
        facts, num_forget = world.data.keep.get(kept, ()), len(world.data.forget.get(kept, ()))
        samples = drawn(method, facts, num_forget, seed=world.config.seed)
    samples = draw(samples, spared.MOST, world.config.seed)
    work = work_of(world.data.encoder, samples, rows, rows=rows, **batching())
    towers = method.scored_towers(loaded.towers, world.data.modalities)
    gates = place.whole(by_sizes({tower: loaded.towers[tower] for tower in towers}))
    return Step(
        spared.log_likelihood_sum,
        (loaded.model, place.rows(work.batch), gates),
        {},
        method.rounds * GROUPS * work.batches,
        rows=rows,
        real_rows=given,
        parts={WEIGHTS: loaded.model},
    )


def _kept(method: StatisticsMethod, modality: Modality, world: World) -> Sequence[Encoded]:
    """Return the samples to keep in one form, as many as a round draws, with the method's texts."""
    samples = list(world.data.keep.get(modality, ()))
    if modality == "text":
        samples += _texts(method, world)
    num_forget = len(world.data.forget.get(modality, ()))
    return drawn(method, samples, num_forget, seed=world.config.seed)


def _texts(method: StatisticsMethod, world: World) -> list[Encoded]:
    if method.keep_texts is None:
        return []
    length = method.keep_texts.length
    text = assumed_sample(world.loaded, "text", tokens=length + 1, answers=length)
    return [text] * method.keep_texts.count


def _tokens(work: Work) -> int:
    return work.batch.token_ids_BT.shape[1]


def _zero(world: World, batch: Any, capture_step: collect.CaptureStep) -> Any:
    """Return the statistics of no samples as `add_batch` lays them out: split over neurons."""
    loaded, place = world.loaded, world.place
    with parallel.on_mesh(place.mesh if world.target.devices else None):
        if capture_step.is_of_batches:
            found = jax.eval_shape(
                lambda model, batch: collect.zero(loaded.replace_model(model), batch, capture_step),
                loaded.model,
                batch,
            )
            return place.whole(found)
        found = jax.eval_shape(functools.partial(collect._zero_samples, capture_step=capture_step))
    return _split_over_neurons(world, found)


def _split_over_neurons(world: World, statistics: Any) -> Any:
    """Return [L, F] sums split over `tensor` where it divides F; all else whole."""
    place = world.place
    if place.mesh is None:
        return place.whole(statistics)
    tensor = place.mesh.shape["tensor"]

    def placed(leaf: Any) -> Any:
        is_split = len(leaf.shape) == 2 and leaf.shape[1] % tensor == 0
        axes = (None, "tensor") if is_split else ()
        split = jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split)

    return jax.tree.map(placed, statistics)


def _learning(method: LearnedMethod, world: World, size: int | None, remat: Remat | None) -> Step:
    """Return the step of `learn_gates`, on batches of all forms."""
    loaded, place, data = world.loaded, world.place, world.data
    towers = method.scored_towers(loaded.towers)
    zeros: Neurons = {tower: np.zeros(loaded.towers[tower], np.float32) for tower in towers}
    learning = learned.Learning.of(method, zeros, remat)
    given = size or method.batch_forget + method.batch_keep
    rows = filled(given, place)
    batches = {}
    for modality in data.modalities:
        encoded = [*data.forget[modality], *data.keep[modality]]
        longest = max(item.num_tokens for item in encoded)
        multiple = learned.LENGTH_MULTIPLE
        shape = BatchShape(
            length=-(-longest // multiple) * multiple,
            batch_size=rows,
            num_images=max(item.num_images for item in encoded) or None,
            num_answers=max(item.num_answers for item in encoded),
        )
        batches[modality] = place.rows(data.encoder.collate(encoded[:1], shape))
    scores = place.whole(zeros)
    state = place.whole(jax.eval_shape(learning.optimizer().init, scores))
    return Step(
        learned._step,
        (scores, state, loaded.model, batches, place.number(np.int32(0))),
        {"learning": learning},
        method.steps,
        rows=rows * len(batches),
        real_rows=given * len(batches),
        parts={WEIGHTS: loaded.model},
        reads=3.0 * len(batches),
    )


def _pass_over(
    world: World, size: int, *, sets: tuple[str, ...] = ("forget", "keep")
) -> tuple[Any, float, int]:
    """Return the largest batch of `run_over` these sets in all forms, its calls, and its rows."""
    data, rows = world.data, filled(size, world.place)
    works = [
        work_of(data.encoder, samples, size, rows=rows, **batching())
        for name in sets
        for samples in getattr(data, name).values()
    ]
    largest = max(works, key=_tokens)
    calls = sum(one.batches * _tokens(one) / _tokens(largest) for one in works)
    return world.place.rows(largest.batch), calls, rows


def _kvw_sums(world: World, size: int | None, remat: Remat | None) -> Step:
    given = size or world.config.score_batch
    batch, calls, rows = _pass_over(world, given, sets=("keep",))
    shapes = jax.eval_shape(lambda: Statistics.zero({kvw.TOWER: world.loaded.towers[kvw.TOWER]}))
    total = _split_over_neurons(world, shapes)
    return Step(
        kvw._add,
        (total, world.model, batch),
        {},
        calls,
        rows=rows,
        real_rows=given,
        parts={WEIGHTS: world.model},
    )


def _kvw_weaken(method: KvwMethod, world: World, size: int | None, remat: Remat | None) -> Step:
    given = size or method.batch_size
    batch, calls, rows = _pass_over(world, given, sets=("forget",))
    layers, neurons = world.loaded.towers[kvw.TOWER]
    ones = jax.ShapeDtypeStruct((layers, neurons), jnp.float32)
    chosen = jax.ShapeDtypeStruct((layers, 1), jnp.bool_)
    gate, kept, is_chosen = world.place.whole((ones, ones, chosen))
    return Step(
        kvw._weaken,
        (gate, world.model, batch),
        {"kept_LF": kept, "is_chosen_L1": is_chosen, "gamma": method.gamma},
        calls,
        rows=rows,
        real_rows=given,
        parts={WEIGHTS: world.model},
    )


def _ridge_rows(method: RidgeMethod, world: World, size: int | None, remat: Remat | None) -> Step:
    given = size or world.config.score_batch
    batch, calls, rows = _pass_over(world, given)
    _, neurons = world.loaded.towers[ridge.TOWER]
    shapes = ridge._Rows(np.zeros((neurons, neurons), np.float32), np.zeros(neurons, np.float32))
    return Step(
        ridge._add_rows,
        (world.place.whole(shapes), world.model, batch, True),
        {"layer": _layer(method, world)},
        calls,
        rows=rows,
        real_rows=given,
        parts={WEIGHTS: world.model},
    )


def _ridge_stream(method: RidgeMethod, world: World, size: int | None, remat: Remat | None) -> Step:
    given = size or world.config.score_batch
    batch, calls, rows = _pass_over(world, given, sets=("forget", "forget"))
    width = world.loaded.config.text.width
    shapes = ridge._Stream(np.zeros(width, np.float32), np.zeros((), np.float32))
    return Step(
        ridge._add_stream,
        (world.place.whole(shapes), world.model, batch),
        {"layer": _layer(method, world)},
        calls,
        rows=rows,
        real_rows=given,
        parts={WEIGHTS: world.model},
    )


def _layer(method: RidgeMethod, world: World) -> int:
    num_layers, _ = world.loaded.towers[ridge.TOWER]
    return int(ridge.DEPTH * num_layers) if method.layer is None else method.layer

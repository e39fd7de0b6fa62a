"""The steps of the stage `evaluate`, and those that read a model for the disk."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from manu_jax import fingerprint, parallel
from manu_jax.config.base import Remat
from manu_jax.evaluation import distance, generate, likelihood, refilling
from manu_jax.evaluation.batched import batching
from manu_jax.evaluation.decoding import Answers, Writing, axis_names, none_begun
from manu_jax.models.hf import export
from manu_jax.models.inputs.vision_inputs import collate_vision_inputs
from manu_jax.planning.shapes import Work, another, filled, work_of
from manu_jax.planning.step import OTHER, WEIGHTS, Item, Step
from manu_jax.planning.world import Samples, World
from manu_jax.training import features
from manu_jax.types import Modality

# The compiled steps are private to the modules that call them; a plan compiles them and calls none.


def asking_items(world: World) -> Iterator[Item]:
    """Yield the steps of the evaluation, of one model after the other."""
    config, data = world.config, world.data
    batch = ("evaluate.batch_size", config.evaluate.batch_size)
    if any(samples.get("image") for samples in (data.prompts, data.candidates)):
        yield Item("features of images", "evaluate", _features)
    for modality, samples in data.prompts.items():
        if not samples:
            continue
        name = f"answers, {modality} form"
        if refilling.refills(world.loaded, len(samples), _writing(world), batch_size=batch[1]):
            for what, step in (("prompts", _begun), ("joining", _joined), ("tokens", _went_on)):
                make = functools.partial(step, modality)
                yield Item(f"{name}: {what}", "evaluate", make, batch)
        else:
            yield Item(name, "evaluate", functools.partial(_answers, modality), batch)
    for modality, samples in data.candidates.items():
        if samples:
            make = functools.partial(_likelihoods, modality)
            yield Item(f"likelihoods, {modality} form", "evaluate", make, batch)
    has_retrained = config.model.retrained_path or (config.train.steps and config.train.retrained)
    if config.evaluate.kl and has_retrained:
        for modality, samples in data.forget.items():
            if samples:
                make = functools.partial(_kl, modality)
                yield Item(f"KL to the retrained model, {modality} form", "evaluate", make, batch)


def writing_items(world: World) -> Iterator[Item]:
    """Yield what reads a whole model for the disk: its fingerprint, and a piece, gathered."""
    yield Item("fingerprint", "scores", _fingerprint)
    if world.place.mesh is not None:
        yield Item("export: a piece of the largest tensor, gathered", "unlearn", _gathered)


def _beside(world: World) -> dict[str, Any]:
    """Return what lies on the devices while a method's model is evaluated: vanilla."""
    return {WEIGHTS: another(world.model)} if world.num_models > 1 else {}


def _work(world: World, samples: Samples, modality: Modality, size: int, **settings: Any) -> Work:
    return work_of(
        world.data.encoder,
        samples[modality],
        size,
        rows=size,
        **batching(),
        **settings,
    )


def with_features(world: World, batch: Any) -> Any:
    """Return a placed batch with features in place of patches."""
    if batch.images is None:
        return batch
    images = batch.images
    found = jax.eval_shape(lambda model, images: model.features(images), world.model, images)
    images = dataclasses.replace(
        images,
        patches_BIPC=None,
        patch_positions_BIP2=None,
        features_BIPE=world.place.rows(found),
    )
    return dataclasses.replace(batch, images=images)


def _features(world: World, size: int | None, remat: Remat | None) -> Step:
    """Return the step of ImageFeatures: each image's features are computed once a model."""
    data, rows = world.data, filled(features.AT_ONCE, world.place)
    shown = [
        item for samples in (data.prompts, data.candidates) for item in samples.get("image", ())
    ]
    number = data.num_inputs(shown)
    first = max(shown, key=lambda item: item.num_patches)
    images = collate_vision_inputs(
        [first.vision_inputs[:1]], world.loaded.config, (1, first.num_patches)
    )
    images = jax.tree.map(
        lambda values: jax.ShapeDtypeStruct((rows, *values.shape[1:]), values.dtype), images
    )
    return Step(
        features._features,
        (world.model, world.place.rows(images)),
        {},
        world.num_models * -(-number // rows),
        rows=rows,
        real_rows=min(rows, number),
        parts={WEIGHTS: world.model},
        resident=_beside(world),
    )


def _writing(world: World) -> Writing:
    """Return how a run's answers are written."""
    loaded = world.loaded
    rules = loaded.generation if loaded.generation.change_logits else None
    ends = (0,) if loaded.processor is None else loaded.eos_ids
    return Writing(world.config.evaluate.new_tokens, ends, rules)


def _answers(modality: Modality, world: World, size: int | None, remat: Remat | None) -> Step:
    given = size or world.config.evaluate.batch_size
    rows, how = filled(given, world.place), _writing(world)
    work = _work(world, world.data.prompts, modality, rows, padding_side="left")
    return Step(
        generate._answers,
        (world.model, with_features(world, world.place.rows(work.batch))),
        {"how": how},
        world.num_models * work.batches,
        rows=rows,
        real_rows=given,
        parts={WEIGHTS: world.model},
        resident=_beside(world),
        trips=how.new_tokens - 1,
        reads=how.new_tokens,
    )


@dataclasses.dataclass(frozen=True)
class _Refilled:
    """The shapes of a batch of answers that waiting prompts join.

    answers: of all `rows`. new: of the prompts that join at once. work, joining: the passes in
    batches of all rows, and of those that join.
    """

    rows: int
    answers: Answers
    new: Answers
    work: Work
    joining: Work
    batch: Any


def _refilled(modality: Modality, world: World, given: int) -> _Refilled:
    rows, how = filled(given, world.place), _writing(world)
    joining_rows = refilling.joining_rows(world.loaded, rows)
    work, joining = (
        _work(world, world.data.prompts, modality, count, padding_side="left")
        for count in (rows, joining_rows)
    )
    batch = with_features(world, world.place.rows(joining.batch))
    new, _ = jax.eval_shape(functools.partial(refilling._begun, how=how), world.model, batch)
    answers = jax.eval_shape(functools.partial(none_begun, rows=rows), new)
    new, answers = (world.place.activations(tree, axis_names) for tree in (new, answers))
    return _Refilled(rows, answers, new, work, joining, batch)


def _begun(modality: Modality, world: World, size: int | None, remat: Remat | None) -> Step:
    given = size or world.config.evaluate.batch_size
    found = _refilled(modality, world, given)
    rows = len(found.new.token_B)
    return Step(
        refilling._begun,
        (world.model, found.batch),
        {"how": _writing(world)},
        world.num_models * found.joining.batches,
        rows=rows,
        real_rows=min(given, rows),
        parts={WEIGHTS: world.model},
        resident={**_beside(world), OTHER: found.answers},
    )


def _joined(modality: Modality, world: World, size: int | None, remat: Remat | None) -> Step:
    found = _refilled(modality, world, size or world.config.evaluate.batch_size)
    source_B = jax.ShapeDtypeStruct((found.rows,), np.int32)
    return Step(
        refilling._joined,
        (found.answers, found.new, world.place.rows(source_B)),
        {"parts": parallel.batch_multiple(world.place.mesh)},
        world.num_models * found.joining.batches,
        resident={WEIGHTS: (world.model, _beside(world))},
        reads=0.0,
    )


def _went_on(modality: Modality, world: World, size: int | None, remat: Remat | None) -> Step:
    """Return the step that writes answers, as if it were called once a batch and all were long."""
    given = size or world.config.evaluate.batch_size
    found, how = _refilled(modality, world, given), _writing(world)
    return Step(
        refilling._went_on,
        (world.model, found.answers, jax.ShapeDtypeStruct((), np.int32)),
        {"how": how, "parts": parallel.batch_multiple(world.place.mesh)},
        world.num_models * found.work.batches,
        rows=found.rows,
        real_rows=given,
        parts={WEIGHTS: world.model},
        resident=_beside(world),
        trips=how.new_tokens - 1,
        reads=how.new_tokens - 1,
    )


def _likelihoods(modality: Modality, world: World, size: int | None, remat: Remat | None) -> Step:
    given = size or world.config.evaluate.batch_size
    rows = filled(given, world.place)
    work = _work(world, world.data.candidates, modality, rows)
    return Step(
        likelihood._likelihoods,
        (world.model, with_features(world, world.place.rows(work.batch))),
        {},
        world.num_models * work.batches,
        rows=rows,
        real_rows=given,
        parts={WEIGHTS: world.model},
        resident=_beside(world),
    )


def _kl(modality: Modality, world: World, size: int | None, remat: Remat | None) -> Step:
    """Return the step that compares a model with the retrained one; vanilla is in memory too."""
    given = size or world.config.evaluate.batch_size
    rows = filled(given, world.place)
    work = _work(world, world.data.forget, modality, rows)
    kept = _work(world, world.data.keep, modality, rows).batches
    reference = another(world.model)
    return Step(
        distance._kl,
        (world.model, reference, world.place.rows(work.batch)),
        {},
        (world.num_models - 1) * (work.batches + kept),
        rows=rows,
        real_rows=given,
        parts={WEIGHTS: (world.model, reference)},
        resident=_beside(world),
    )


def _fingerprint(world: World, size: int | None, remat: Remat | None) -> Step:
    leaves = jax.tree.leaves(world.model)
    return Step(fingerprint._checksums, (leaves,), {}, 1, parts={WEIGHTS: leaves})


def _gathered(world: World, size: int | None, remat: Remat | None) -> Step:
    """Return what an export does with a piece of the largest tensor that the devices share."""
    loaded = world.loaded
    tensors = export.export_tensors(loaded.model, loaded.family.weight_table(loaded.config))
    split = [one for one in tensors if not one.leaf.sharding.is_fully_replicated]
    largest = max(split or tensors, key=lambda tensor: tensor.nbytes)
    step, num_strips = largest.step_and_strips()
    number = jax.ShapeDtypeStruct((), np.int32)
    pieces = sum(tensor.nbytes for tensor in tensors) / export.PIECE_BYTES
    others = [leaf for leaf in jax.tree.leaves(loaded.model) if leaf is not largest.leaf]
    return Step(
        export.gather_piece,
        (largest.leaf, number, number),
        {
            "entry": largest.entry,
            "num_strips": num_strips,
            "step": step,
            "split": largest.leaf.sharding,
        },
        max(pieces, 1.0),
        parts={WEIGHTS: largest.leaf},
        resident={WEIGHTS: others},
    )

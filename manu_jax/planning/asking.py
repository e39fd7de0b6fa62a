"""The steps of the stage `evaluate`, and those that read a model for the disk."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from manu_jax import fingerprint, parallel
from manu_jax.config.base import Remat
from manu_jax.data.batches import batching
from manu_jax.data.own_answers import NEW_TOKENS
from manu_jax.data.probes import Sampling
from manu_jax.evaluation import distance, generate, likelihood, refilling
from manu_jax.evaluation.decoding import Answers, Writing, axis_names, none_begun
from manu_jax.models.hf import export
from manu_jax.models.inputs.vision_inputs import collate_vision_inputs
from manu_jax.planning.shapes import Work, another, filled, work_of
from manu_jax.planning.step import OTHER, WEIGHTS, Item, Step
from manu_jax.planning.world import World
from manu_jax.training import features
from manu_jax.types import Encoded

# The compiled steps are private to the modules that call them; a plan compiles them and calls none.


Beside = Callable[[World], Mapping[str, Any]]  # what lies on the devices, as Step.resident


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """Samples that models answer or rate, in batches as the run makes them.

    passes: how often all of them are asked. beside: what WEIGHTS, and what OPTIMIZER, lie beside
    the model that is asked. new_tokens: of an answer; None: as many as the config says. sampling:
    None: answers are greedy.
    """

    samples: Sequence[Encoded]
    passes: float
    beside: Beside
    new_tokens: int | None = None
    sampling: Sampling | None = None


def asking_items(world: World) -> Iterator[Item]:
    """Yield the steps of the evaluation, of one model after the other."""
    config, data = world.config, world.data
    if data.probes.own:
        asked = Asked(data.probes.own, 1, lambda world: {}, NEW_TOKENS)
        for item in answer_items("vanilla's own answers", asked, world):
            yield dataclasses.replace(item, stage="train", work="decode")
    if any(samples.get("image") for samples in (data.prompts, data.candidates)):
        yield Item("features of images", "evaluate", _features)
    for modality, samples in data.prompts.items():
        if samples:
            asked = Asked(samples, world.num_models, beside_a_method)
            yield from answer_items(f"answers, {modality} form", asked, world)
    for modality, samples in data.candidates.items():
        if samples:
            asked = Asked(samples, world.num_models, beside_a_method)
            name = f"likelihoods, {modality} form"
            yield rated_item(name, asked, world, function=likelihood._likelihoods)
    if config.evaluate.kl and world.has_retrained:
        for modality, samples in data.forget.items():
            if samples:
                kept = data.keep.get(modality, ())
                name = f"KL to the retrained model, {modality} form"
                yield kl_item(name, samples, world, kept=kept)


def published_items(world: World) -> Iterator[Item]:
    """Yield the steps of the benchmark's own protocol."""
    for name, kind in world.data.probes.published.items():
        asked = Asked(
            kind.prompts, world.num_models, beside_a_method, kind.new_tokens, kind.sampling
        )
        yield from answer_items(f"published: {name}", asked, world)
    for form, samples in world.data.probes.given.items():
        asked = Asked(samples, world.num_models, beside_a_method)
        name = f"published: likelihoods, {form} form"
        yield rated_item(name, asked, world, function=likelihood._tokens)


def answer_items(name: str, asked: Asked, world: World) -> Iterator[Item]:
    """Yield the steps that write answers to prompts: of whole batches, or of those that refill."""
    batch = _batch_of(world)
    how = _writing(world, asked)
    if refilling.refills(world.loaded, len(asked.samples), how, batch_size=batch[1]):
        for what, step in (("prompts", _begun), ("joining", _joined), ("tokens", _went_on)):
            make = functools.partial(step, asked)
            yield Item(f"{name}: {what}", "evaluate", make, batch)
    else:
        yield Item(name, "evaluate", functools.partial(_answers, asked), batch)


def rated_item(name: str, asked: Asked, world: World, *, function: Any) -> Item:
    """Return a step that reads samples with their answers once, and the features of their images.

    function: (model, batch) → what it finds.
    """
    make = functools.partial(_rated, function, asked)
    return Item(name, "evaluate", make, _batch_of(world))


def kl_item(
    name: str,
    samples: Sequence[Encoded],
    world: World,
    *,
    kept: Sequence[Encoded] = (),
    is_vanilla: bool = False,
) -> Item:
    """Return the step of `answer_kl` on samples and kept ones; its shape is that of the former.

    is_vanilla: the reference is vanilla, which else lies beside it.
    """
    make = functools.partial(_kl, samples, kept, is_vanilla)
    return Item(name, "evaluate", make, _batch_of(world))


def _batch_of(world: World) -> tuple[str, int]:
    return "evaluate.batch_size", world.config.evaluate.batch_size


def writing_items(world: World) -> Iterator[Item]:
    """Yield what reads a whole model for the disk: its fingerprint, and a piece, gathered."""
    yield Item("fingerprint", "scores", _fingerprint)
    if world.place.mesh is not None:
        yield Item("export: a piece of the largest tensor, gathered", "unlearn", _gathered)


def beside_a_method(world: World) -> dict[str, Any]:
    """Return what lies on the devices while a method's model is evaluated: vanilla."""
    return {WEIGHTS: another(world.model)} if world.num_models > 1 else {}


def work_in_buckets(world: World, samples: Sequence[Encoded], rows: int, **settings: Any) -> Work:
    """Return the Work of samples in batches of `rows`, of lengths as an evaluation chooses them."""
    return work_of(world.data.encoder, samples, rows, rows=rows, **batching(), **settings)


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
        resident=beside_a_method(world),
    )


def _writing(world: World, asked: Asked) -> Writing:
    """Return how a run's answers are written."""
    loaded = world.loaded
    rules = loaded.generation if loaded.generation.change_logits else None
    ends = (0,) if loaded.processor is None else loaded.eos_ids
    tokens, sampling = asked.new_tokens or world.config.evaluate.new_tokens, asked.sampling
    if sampling is not None:
        sampling = dataclasses.replace(sampling, num_answers=1)  # each is a row of its own
    return Writing(tokens, ends, rules, sampling)


def _beside_rows(world: World, how: Writing, rows: int) -> tuple[Any, ...]:
    """Return what follows a batch of prompts: the numbers that its answers are drawn by, if any."""
    if how.sampling is None:
        return ()
    return (world.place.rows(jax.ShapeDtypeStruct((rows, how.new_tokens), np.float32)),)


def _answers(asked: Asked, world: World, size: int | None, remat: Remat | None) -> Step:
    given = size or world.config.evaluate.batch_size
    rows, how = filled(given, world.place), _writing(world, asked)
    work = work_in_buckets(world, asked.samples, rows, padding_side="left")
    batch = with_features(world, world.place.rows(work.batch))
    return Step(
        generate._answers,
        (world.model, batch, *_beside_rows(world, how, rows)),
        {"how": how},
        asked.passes * work.batches,
        rows=rows,
        real_rows=given,
        parts={WEIGHTS: world.model},
        resident=asked.beside(world),
        trips=how.new_tokens - 1,
        reads=how.new_tokens,
    )


@dataclasses.dataclass(frozen=True)
class _Refilled:
    """The shapes of a batch of answers that waiting prompts join.

    answers: of all `rows`. new: of the prompts that join at once. work, joining: the passes in
    batches of all rows, and of those that join. given: the batch of those, and what follows it.
    """

    rows: int
    answers: Answers
    new: Answers
    work: Work
    joining: Work
    given: tuple[Any, ...]


@functools.lru_cache(maxsize=1)  # three steps in a row are made from it, and tracing takes long
def _refilled(asked: Asked, world: World, size: int) -> _Refilled:
    rows, how = filled(size, world.place), _writing(world, asked)
    joining_rows = refilling.joining_rows(world.loaded, rows)
    work, joining = (
        work_in_buckets(world, asked.samples, count, padding_side="left")
        for count in (rows, joining_rows)
    )
    batch = with_features(world, world.place.rows(joining.batch))
    given = (batch, *_beside_rows(world, how, joining_rows))
    new, _ = jax.eval_shape(functools.partial(refilling._begun, how=how), world.model, *given)
    answers = jax.eval_shape(functools.partial(none_begun, rows=rows), new)
    new, answers = (world.place.activations(tree, axis_names) for tree in (new, answers))
    return _Refilled(rows, answers, new, work, joining, given)


def _begun(asked: Asked, world: World, size: int | None, remat: Remat | None) -> Step:
    given = size or world.config.evaluate.batch_size
    found = _refilled(asked, world, given)
    rows = len(found.new.token_B)
    return Step(
        refilling._begun,
        (world.model, *found.given),
        {"how": _writing(world, asked)},
        asked.passes * found.joining.batches,
        rows=rows,
        real_rows=min(given, rows),
        parts={WEIGHTS: world.model},
        resident={**asked.beside(world), OTHER: found.answers},
    )


def _joined(asked: Asked, world: World, size: int | None, remat: Remat | None) -> Step:
    found = _refilled(asked, world, size or world.config.evaluate.batch_size)
    source_B = jax.ShapeDtypeStruct((found.rows,), np.int32)
    return Step(
        refilling._joined,
        (found.answers, found.new, world.place.rows(source_B)),
        {"parts": parallel.batch_multiple(world.place.mesh)},
        asked.passes * found.joining.batches,
        resident={WEIGHTS: (world.model, asked.beside(world))},
        copied=(found.answers, found.new, found.new),
        reads=0.0,
    )


def _went_on(asked: Asked, world: World, size: int | None, remat: Remat | None) -> Step:
    """Return the step that writes answers, as if it were called once a batch and all were long."""
    given = size or world.config.evaluate.batch_size
    found, how = _refilled(asked, world, given), _writing(world, asked)
    return Step(
        refilling._went_on,
        (world.model, found.answers, jax.ShapeDtypeStruct((), np.int32)),
        {"how": how, "parts": parallel.batch_multiple(world.place.mesh)},
        asked.passes * found.work.batches,
        rows=found.rows,
        real_rows=given,
        parts={WEIGHTS: world.model},
        resident=asked.beside(world),
        copied=(found.answers, found.answers),
        trips=how.new_tokens - 1,
        reads=how.new_tokens - 1,
    )


def _rated(
    function: Any, asked: Asked, world: World, size: int | None, remat: Remat | None
) -> Step:
    given = size or world.config.evaluate.batch_size
    rows = filled(given, world.place)
    work = work_in_buckets(world, asked.samples, rows)
    return Step(
        function,
        (world.model, with_features(world, world.place.rows(work.batch))),
        {},
        asked.passes * work.batches,
        rows=rows,
        real_rows=given,
        parts={WEIGHTS: world.model},
        resident=asked.beside(world),
    )


def _kl(
    samples: Sequence[Encoded],
    kept: Sequence[Encoded],
    is_vanilla: bool,
    world: World,
    size: int | None,
    remat: Remat | None,
) -> Step:
    """Return the step that compares a model with a reference."""
    given = size or world.config.evaluate.batch_size
    rows = filled(given, world.place)
    work = work_in_buckets(world, samples, rows)
    of_kept = work_in_buckets(world, kept, rows).batches if kept else 0.0
    reference = another(world.model)
    return Step(
        distance._kl,
        (world.model, reference, world.place.rows(work.batch)),
        {},
        (world.num_models - 1) * (work.batches + of_kept),
        rows=rows,
        real_rows=given,
        parts={WEIGHTS: (world.model, reference)},
        resident={} if is_vanilla else beside_a_method(world),
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

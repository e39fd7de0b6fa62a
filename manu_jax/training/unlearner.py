"""Baselines that train: the vanilla model, lowered on one objective of `unlearn`, to another model.

    plan:  step → the losses that it lowers, each of a batch to forget, a batch to keep, or both

A batch is of facts in one form, with the image or in text alone; a joint loss takes both batches in
the same form where it can, so that few programs are compiled. Both streams are shuffled by the
seed; the one to keep begins anew as often as the one to forget needs it.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from manu_jax import parallel
from manu_jax.config import UnlearnSection
from manu_jax.data.batches import Batches
from manu_jax.data.forms import forms
from manu_jax.data.record import Fact
from manu_jax.models.loaded import Loaded
from manu_jax.training.fisher import weight_mask
from manu_jax.training.objectives import RECIPES, REFUSALS, Recipe, UnlearnData
from manu_jax.training.trainer import batches_of, train_loop
from manu_jax.types import MODALITIES, Batch, ManuError, Sample


@dataclasses.dataclass(frozen=True)
class Phase:
    """One loss of a step. forget, retain: the number of the batch that it takes, or None."""

    loss: str
    forget: int | None
    retain: int | None


def unlearn(
    vanilla: Loaded,
    section: UnlearnSection,
    forget: Sequence[Fact],
    retain: Sequence[Fact],
    *,
    directory: str | os.PathLike,
    seed: int,
    reference: Loaded | None = None,
    decouple: Sequence[Sample] = (),
) -> Loaded:
    """Return the vanilla model after training by `section`; `vanilla` is not changed.

    directory: of the checkpoints; a killed run goes on from what stands there, to the same bits.
    reference: what `reference_of(section)` names. decouple: the samples of its Prompt-Decouple
    loss. Raises ManuError where the loss is not finite, the batch does not divide over the mesh, or
    there are no facts in the forms asked for.
    """
    recipe = RECIPES[section.objective]
    if recipe.refuses:
        forget = refused(forget)
    streams = _Streams(vanilla, section, forget, retain, decouple, seed)
    num_steps = num_steps_of(recipe, section, len(streams.forget), len(streams.retain))
    common: dict[str, Any] = {
        "reference": None if reference is None else reference.model,
        "beta": jnp.float32(section.beta or recipe.beta),
        "retain_weight": jnp.float32(section.retain_weight),
    }
    if section.decouple is not None:
        common["decouple_weight"] = jnp.float32(section.decouple.weight)

    def phases_at(step: int) -> list[tuple[str, UnlearnData]]:
        plan = phases_of(recipe, step, len(streams.forget), len(streams.retain))
        return [
            (phase.loss, UnlearnData(**streams.data_of(phase, step), **common)) for phase in plan
        ]

    masks = None
    if recipe.masked:
        mask = weight_mask(
            vanilla, section, forget, retain, directory=Path(directory) / "mask", seed=seed
        )
        masks = {recipe.losses[0]: mask}
    return train_loop(
        vanilla,
        phases_at,
        section,
        num_steps=num_steps,
        seed=seed,
        directory=directory,
        description=f"unlearning {section.name}",
        where=place_of(section),
        masks=masks,
    )


def reference_of(section: UnlearnSection) -> str | None:
    """Return which model the objective compares with: "vanilla", "retrained" or None."""
    return RECIPES[section.objective].reference


def refused(facts: Sequence[Fact]) -> list[Fact]:
    """Return the facts with refusals for answers, in turn."""
    return [
        dataclasses.replace(fact, answer=REFUSALS[number % len(REFUSALS)])
        for number, fact in enumerate(facts)
    ]


def num_steps_of(recipe: Recipe, section: UnlearnSection, num_forget: int, num_retain: int) -> int:
    """Return how many steps a training has; num_forget, num_retain: batches of one pass.

    Raises ManuError where `steps` is asked of an objective whose steps are not all alike.
    """
    if recipe.order == "passes":
        if section.steps is not None:
            raise ManuError(
                f"{place_of(section)}.steps: {section.objective} has a pass over the facts to "
                "forget and then one over the facts to keep. Give epochs."
            )
        return section.epochs * (num_forget + num_retain)
    one_pass = num_retain if recipe.order == "alternating" else num_forget
    return section.steps or section.epochs * one_pass


def phases_of(recipe: Recipe, step: int, num_forget: int, num_retain: int) -> list[Phase]:
    """Return what step 0, 1, … lowers; num_forget, num_retain: batches of one pass."""
    if recipe.order == "joint":
        return [Phase(recipe.losses[0], step, step if recipe.keeps else None)]
    to_forget, to_keep = recipe.losses
    if recipe.order == "passes":
        epoch, place = divmod(step, num_forget + num_retain)
        if place < num_forget:
            return [Phase(to_forget, epoch * num_forget + place, None)]
        return [Phase(to_keep, None, epoch * num_retain + place - num_forget)]
    epoch, place = divmod(step, num_retain)
    turn, rest = divmod(place, max(num_retain // num_forget, 1))
    phases = [Phase(to_keep, None, step)]
    if rest == 0 and turn < num_forget:
        phases.insert(0, Phase(to_forget, epoch * num_forget + turn, None))
    return phases


class _Streams:
    """The batches to forget, to keep and to decouple, by number."""

    def __init__(
        self,
        loaded: Loaded,
        section: UnlearnSection,
        forget: Sequence[Fact],
        retain: Sequence[Fact],
        decouple: Sequence[Sample],
        seed: int,
    ):
        self.mesh = loaded.mesh
        self.image_steps = [0]  # how many of the first steps' batches to forget have images

        def stream(samples: Sequence[Sample], what: str, offset: int) -> Batches:
            if not samples:
                raise ManuError(
                    f"{place_of(section)}: no facts {what} in the form "
                    f"{' or '.join(section.modalities)}. Name other modalities."
                )
            return batches_of(
                loaded, samples, section, seed + offset, where=place_of(section), max_buckets=1
            )

        def in_form(facts: Sequence[Fact], modality: Any) -> tuple[Sample, ...]:
            return forms(facts, modality, loaded.template)

        chosen = [m for m in MODALITIES if m in section.modalities]
        kept = {m == "image": in_form(retain, m) for m in chosen}
        self.forget = stream([s for m in chosen for s in in_form(forget, m)], "to forget", 0)
        self.retain = stream([s for m in kept for s in kept[m]], "to keep", 1)
        self.retain_in_form = {
            m: stream(samples, "to keep", 1) for m, samples in kept.items() if samples
        }
        self.decouple = stream(decouple, "to decouple", 2) if decouple else None

    def data_of(self, phase: Phase, step: int) -> dict[str, Batch | None]:
        """Return the batches of a phase, on the devices."""
        data: dict[str, Batch | None] = {"forget": None, "retain": None}
        if phase.forget is not None:
            data["forget"] = self._put(self.forget, phase.forget)
            if self.decouple is not None:
                data["decouple"] = self._put(self.decouple, step)
        if phase.retain is not None:
            stream, number = self.retain, phase.retain
            if phase.forget is not None:
                stream, number = self._retain_beside(phase.forget)
            data["retain"] = self._put(stream, number)
        return data

    def _retain_beside(self, number: int) -> tuple[Batches, int]:
        """Return the stream to keep in the form of a batch to forget, and how far it has come."""
        while len(self.image_steps) <= number:
            before = len(self.image_steps) - 1
            self.image_steps.append(self.image_steps[-1] + self.forget.has_images_at(before))
        has_images = self.forget.has_images_at(number)
        if has_images not in self.retain_in_form:
            return self.retain, number
        images = self.image_steps[number]
        return self.retain_in_form[has_images], images if has_images else number - images

    def _put(self, stream: Batches, number: int) -> Batch:
        return parallel.put_batch(stream.batch_at(number), self.mesh)


def place_of(section: UnlearnSection) -> str:
    """Return what errors call the section."""
    return f"unlearn ({section.name})"

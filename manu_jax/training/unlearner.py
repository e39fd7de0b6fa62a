"""Baselines that train: the vanilla model, lowered on one objective of `unlearn`, to another model.

    step i:  B facts to forget, B facts to keep  →  one step of the optimizer per loss of the recipe

The facts stand in both forms. Both streams are shuffled by the seed; the one to keep begins anew as
often as the one to forget needs it.
"""

import dataclasses
import os
from collections.abc import Sequence

import jax.numpy as jnp

from manu_jax import parallel
from manu_jax.config import UnlearnSection
from manu_jax.data.record import Fact
from manu_jax.data.views import forms
from manu_jax.models.family import Loaded
from manu_jax.training.objectives import RECIPES, REFUSALS, UnlearnData
from manu_jax.training.trainer import batches_of, lower
from manu_jax.types import MODALITIES, Sample


def unlearn(
    vanilla: Loaded,
    section: UnlearnSection,
    forget: Sequence[Fact],
    retain: Sequence[Fact],
    *,
    directory: str | os.PathLike,
    seed: int,
    reference: Loaded | None = None,
) -> Loaded:
    """Return the vanilla model after training by `section`; `vanilla` is not changed.

    directory: of the checkpoints; a killed run goes on from what stands there, to the same bits.
    reference: what `reference_of(section)` names. Raises ManuError where the loss is not finite or
    the batch does not divide over the mesh.
    """
    recipe = RECIPES[section.objective]
    if recipe.refuses:
        forget = refused(forget)
    where = f"unlearn ({section.name})"
    to_forget = batches_of(vanilla, _both_forms(forget, vanilla), section, seed, where=where)
    to_keep = batches_of(vanilla, _both_forms(retain, vanilla), section, seed + 1, where=where)
    model = None if reference is None else reference.model
    beta = jnp.float32(section.beta or recipe.beta)
    weight = jnp.float32(section.retain_weight)

    def data_at(step: int) -> UnlearnData:
        forget_batch, retain_batch = (
            parallel.put_batch(one.batch_at(step), vanilla.mesh) for one in (to_forget, to_keep)
        )
        return UnlearnData(forget_batch, retain_batch, model, beta, weight)

    return lower(
        vanilla,
        recipe.losses,
        data_at,
        section,
        num_steps=section.steps or len(to_forget),
        directory=directory,
        description=f"unlearning {section.name}",
        where=where,
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


def _both_forms(facts: Sequence[Fact], loaded: Loaded) -> list[Sample]:
    return [sample for modality in MODALITIES for sample in forms(facts, modality, loaded.template)]

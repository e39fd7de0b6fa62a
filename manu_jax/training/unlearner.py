"""Baselines that train: from the vanilla model and one objective of `unlearn` to another model.

    plan:  step → the losses that it minimises, each on a batch to forget, a batch to keep, or both

A batch has facts in one form, with the image or in text alone. A joint loss takes both batches in
the same form if there are facts of that form to keep, so that few programs are compiled. Both
streams are shuffled by the seed; the one to keep starts again as often as needed.
"""

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from manu_jax.config import UnlearnSection
from manu_jax.data.forms import has_form
from manu_jax.data.record import Fact
from manu_jax.data.strangers import Portraits, Stranger, check_count, strangers
from manu_jax.edits.edit import Edit
from manu_jax.edits.low_rank import LowRank
from manu_jax.folder import expand_path
from manu_jax.models.loaded import Loaded
from manu_jax.training.edited import new_edit
from manu_jax.training.fisher import weight_mask
from manu_jax.training.objectives import REFUSALS, Objective, UnlearnData
from manu_jax.training.recipes import RECIPES, Recipe
from manu_jax.training.representation import direction_key
from manu_jax.training.stranger_rows import StrangerRows
from manu_jax.training.streams import PlannedPhase, Streams, place_of
from manu_jax.training.trainer import Phase, train_loop, trained
from manu_jax.types import ManuError, Sample, raise_faults


def unlearn(
    vanilla: Loaded,
    section: UnlearnSection,
    *,
    forget: Sequence[Fact],
    keep: Sequence[Fact],
    directory: str | os.PathLike,
    seed: int,
    reference: Loaded | None = None,
    decouple: Sequence[Sample] = (),
    portraits: Portraits | None = None,
    texts: Sequence[Sample] = (),
) -> Loaded | Edit:
    """Return the vanilla model after training by `section`; `vanilla` is not changed.

    Where the section trains a part of the model (`trains`), an edit of the vanilla model.

    directory: of the checkpoints, from which a killed run goes on, to the same bits. reference: the
    model that `reference_of(section)` names. decouple: the samples of its Prompt-Decouple loss.
    portraits: of people who do not exist, for strangers; None: mixed from those of people to keep.
    texts: those of its keep_texts.
    Raises ManuError where the loss is not finite, or there are no facts in the forms asked for.
    """
    recipe = recipe_of(section)
    check_facts(section, forget=forget, keep=keep, seed=seed)
    known, kept = strangers_of(section, forget=forget, keep=keep, seed=seed, portraits=portraits)
    if recipe.strangers:
        rows = StrangerRows(
            vanilla,
            section,
            forget=forget,
            keep=keep,
            known=known,
            kept=kept,
            texts=texts,
            seed=seed,
        )
        phases_at = functools.partial(_phases_like_strangers, recipe, rows)
        num_steps, masks = section.steps or 0, None
    else:
        phases_at, num_steps, masks = _phases(
            vanilla,
            section,
            forget=forget,
            keep=keep,
            directory=expand_path(directory),
            seed=seed,
            reference=reference,
            decouple=decouple,
            known=known,
            texts=texts,
        )
    edit = None
    if section.begins_with_edit:
        edit = new_edit(vanilla, section, keep=keep, seed=seed)
    weights = train_loop(
        vanilla,
        phases_at,
        section,
        num_steps=num_steps,
        seed=seed,
        directory=directory,
        description=f"unlearning {section.name}",
        where=place_of(section),
        masks=masks,
        edit=edit,
    )
    if section.trains == "low_rank" and section.lora is not None:
        return LowRank(weights, section.lora.scale)
    return trained(vanilla, weights, section) if edit is None else weights


def strangers_of(
    section: UnlearnSection,
    *,
    forget: Sequence[Fact],
    keep: Sequence[Fact],
    seed: int,
    portraits: Portraits | None,
) -> tuple[Sequence[Stranger], Sequence[Stranger]]:
    """Return the strangers whose mean a section aims at, and those that it keeps; () for neither.

    portraits: as of `unlearn`.
    """
    drawn: dict[str, Any] = {"seed": seed, "portraits": portraits}
    known: Sequence[Stranger] = ()
    kept: Sequence[Stranger] = ()
    if section.target == "strangers":
        known = strangers(forget, keep, section.strangers, **drawn)
    if recipe_of(section).strangers:
        kept = strangers(forget, keep, section.kept_strangers, near=True, **drawn)
    return known, kept


def check_facts(
    section: UnlearnSection, *, forget: Sequence[Fact], keep: Sequence[Fact], seed: int
) -> None:
    """Raise ManuError where there are too few facts or names for a section with strangers."""
    where, is_like_strangers = place_of(section), recipe_of(section).strangers
    forms = section.modalities if is_like_strangers else ()
    lacking = [
        f"to {what} in the form {modality}"
        for what, facts in (("forget", forget), ("keep", keep))
        for modality in forms
        if not any(has_form(fact, modality) for fact in facts)
    ]
    if lacking:
        raise ManuError(f"{where}: no facts {', '.join(lacking)}. Name other modalities.")
    wanted = {"strangers": section.strangers if section.target == "strangers" else 0}
    if is_like_strangers:
        wanted["kept_strangers"] = section.kept_strangers
    for name, count in wanted.items():
        try:
            check_count(forget, keep, count, seed=seed, near=name == "kept_strangers")
        except ManuError as error:
            raise ManuError(f"{where}.{name}: {error}") from None


def _phases_like_strangers(recipe: Recipe, rows: StrangerRows, step: int) -> list[Phase]:
    """Return the phases of a step of a StrangerData's losses."""
    return [(loss, rows.data_at(step)) for loss in recipe.losses]


def _phases(
    vanilla: Loaded,
    section: UnlearnSection,
    *,
    forget: Sequence[Fact],
    keep: Sequence[Fact],
    directory: Path,
    seed: int,
    reference: Loaded | None,
    decouple: Sequence[Sample],
    known: Sequence[Stranger],
    texts: Sequence[Sample],
) -> tuple[Callable[[int], list[Phase]], int, Mapping[Objective, Any] | None]:
    """Return the phases of each step of an UnlearnData's losses, the number of steps, and masks."""
    recipe = recipe_of(section)
    preferred: Sequence[Fact] = ()
    if recipe.prefers is not None:
        by_others = recipe.prefers == "others"
        preferred = (
            answered_by_others(forget, keep, seed=seed, where=place_of(section))
            if by_others
            else refused(forget)
        )
    if recipe.refuses:
        forget = refused(forget)
    if section.retain_weight == 0 and section.primal_dual is None:
        recipe = dataclasses.replace(recipe, keeps=False)
    streams = Streams(
        vanilla,
        section,
        forget=forget,
        keep=keep,
        preferred=preferred,
        decouple=decouple,
        strangers=known,
        texts=texts,
        seed=seed,
    )
    lengths = {"num_forget": len(streams.forget), "num_keep": len(streams.keep)}
    common: dict[str, Any] = {
        "reference": None if reference is None else reference.model,
        "settings": {name: jnp.float32(section.setting(name)) for name in recipe.settings},
        "keep_weight": jnp.float32(section.retain_weight),
    }
    if recipe.depth is not None:
        common["layer"] = layer_of(section, recipe, vanilla.config.text.num_layers)
        common["key"] = direction_key(seed)
    if section.keep_texts is not None:
        common["texts_weight"] = jnp.float32(section.keep_texts.weight)
    if section.decouple is not None:
        common["decouple_weight"] = jnp.float32(section.decouple.weight)

    def phases_at(step: int) -> list[Phase]:
        plan = phases_of(recipe, step, **lengths)
        return [
            (phase.loss, UnlearnData(**streams.data_of(phase, step), **common)) for phase in plan
        ]

    masks = None
    if recipe.masked:
        mask = weight_mask(
            vanilla, section, forget=forget, keep=keep, directory=directory / "mask", seed=seed
        )
        masks = {recipe.losses[0]: mask}
    return phases_at, num_steps_of(recipe, section, **lengths), masks


def recipe_of(section: UnlearnSection) -> Recipe:
    """Return the recipe of the section's objective; ManuError, with the known ones, for others."""
    if section.objective not in RECIPES:
        raise ManuError(
            f"{place_of(section)}.objective: unknown {section.objective!r}; known: "
            f"{', '.join(RECIPES)}."
        )
    return RECIPES[section.objective]


def reference_of(section: UnlearnSection) -> str | None:
    """Return which model the objective compares with: "vanilla", "retrained" or None."""
    return recipe_of(section).reference


def refused(facts: Sequence[Fact]) -> list[Fact]:
    """Return the facts with refusals for answers, in turn."""
    return [
        dataclasses.replace(fact, answer=REFUSALS[number % len(REFUSALS)])
        for number, fact in enumerate(facts)
    ]


def answered_by_others(
    facts: Sequence[Fact], others: Sequence[Fact], *, seed: int, where: str
) -> list[Fact]:
    """Return the facts with what one of `others` answers to the same question, drawn by the seed.

    The same question is one in the same words, or else one about the same attribute. The answer is
    another person's, and not the fact's own. ManuError names the facts that have none.
    """
    random = np.random.default_rng(seed)
    alike: dict[str, list[Fact]] = collections.defaultdict(list)
    for other in others:
        alike[f"question {other.question}"].append(other)
        alike[f"attribute {other.attribute}"].append(other)
    found, lacking = [], []
    for fact in facts:
        answers: list[str] = []
        for key in (f"question {fact.question}", f"attribute {fact.attribute}"):
            answers = answers or [
                other.answer
                for other in alike[key]
                if other.person_id != fact.person_id and other.answer != fact.answer
            ]
        if answers:
            answer = answers[random.integers(len(answers))]
            found.append(dataclasses.replace(fact, answer=answer))
        else:
            lacking.append(fact.key)
    head = (
        f"{where}: {len(lacking)} of {len(facts)} facts to forget have a question that nobody to "
        "keep answers otherwise. Use an objective without other people's answers, such as dpo_idk:"
    )
    raise_faults(lacking, head)
    return found


def layer_of(section: UnlearnSection, recipe: Recipe, num_layers: int) -> int:
    """Return the decoder layer whose hidden states the objective reads; 0 is the first."""
    layer = int((recipe.depth or 0) * num_layers) if section.layer is None else section.layer
    if layer >= num_layers:
        raise ManuError(
            f"{place_of(section)}.layer: {layer}, but the decoder has {num_layers} layers. Give a "
            f"number from 0 to {num_layers - 1}."
        )
    return layer


def num_steps_of(recipe: Recipe, section: UnlearnSection, *, num_forget: int, num_keep: int) -> int:
    """Return how many steps a training has; num_forget, num_keep: batches of one pass.

    Raises ManuError where `steps` is asked of an objective whose steps are not all alike.
    """
    if recipe.order == "passes":
        if section.steps is not None:
            raise ManuError(
                f"{place_of(section)}.steps: {section.objective} has a pass over the facts to "
                "forget and then one over the facts to keep. Give epochs."
            )
        return section.epochs * (num_forget + num_keep)
    one_pass = num_keep if recipe.order == "alternating" else num_forget
    return section.steps or section.epochs * one_pass


def phases_of(recipe: Recipe, step: int, *, num_forget: int, num_keep: int) -> list[PlannedPhase]:
    """Return what step 0, 1, … minimises; num_forget, num_keep: batches of one pass."""
    if recipe.order == "joint":
        return [PlannedPhase(recipe.losses[0], step, step if recipe.keeps else None)]
    to_forget, to_keep = recipe.losses
    if recipe.order == "passes":
        epoch, place = divmod(step, num_forget + num_keep)
        if place < num_forget:
            return [PlannedPhase(to_forget, epoch * num_forget + place, None)]
        return [PlannedPhase(to_keep, None, epoch * num_keep + place - num_forget)]
    epoch, place = divmod(step, num_keep)
    turn, rest = divmod(place, max(num_keep // num_forget, 1))
    phases = [PlannedPhase(to_keep, None, step)]
    if rest == 0 and turn < num_forget:
        phases.insert(0, PlannedPhase(to_forget, epoch * num_forget + turn, None))
    return phases

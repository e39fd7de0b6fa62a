"""Is a mask better than its null: than masks of its kind and size that were made for nobody?

All masks are asked the same facts. `damage` is how much more a mask takes from the facts to forget
than from those to keep: the share right that it loses on the former minus that on the latter. A
method that finds the neurons of the people to forget does more of it than a mask that it makes for
other people (importance/null.py); one that breaks what any mask of its size breaks does not.
`overlap` is the share of a mask's neurons that null masks remove as well: one that is about the
people to forget shares fewer with masks for other people than these share among each other. Random
masks tell nothing about overlap. The people whose kept facts are asked are in no group.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from manu_jax.config import MethodSettings
from manu_jax.context import Run
from manu_jax.data.forms import forms
from manu_jax.data.record import Person
from manu_jax.edits import masks
from manu_jax.evaluation.analyses.analysis import Analysis, Evaluated
from manu_jax.evaluation.candidates import recalled
from manu_jax.evaluation.suite import first_by_id
from manu_jax.importance.job import Forms, ScoringJob
from manu_jax.importance.null import (
    draw_groups,
    is_by_people,
    masks_of_groups,
    overlap,
    random_masks,
)
from manu_jax.types import Modality, Neurons, Sample

DAMAGE, OVERLAP = "damage", "overlap"
PEOPLE, RANDOM = "people", "random"
LEVEL = 0.05  # a p-value from here on tells nothing
BETTER, NO_BETTER = "better than its null", "no better than its null"
# People that groups are drawn from: so many times the people to forget, and no fewer than these
POOL, POOL_AT_LEAST = 4, 48
TOO_FEW = "too few null masks to tell"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NullRow:
    """A statistic of a method's mask among those of its null masks.

    statistic: "damage", in [−1, 1], or "overlap", in [0, 1]. null: "people", masks for other
    people, or "random", as many neurons of each layer. null_low, null_high: 95 % of the null masks
    lie between them. p: the share of null masks that do as well, the mask itself among them.
    groups: null masks. n: facts asked, or neurons removed.
    """

    method: str
    statistic: str
    null: str
    value: float
    null_mean: float
    null_low: float
    null_high: float
    p: float
    groups: int
    n: int
    verdict: str


def compare(
    value: float, null_values: Sequence[float], *, is_larger_better: bool
) -> dict[str, Any]:
    """Return where a value stands among those of null masks: the fields of a row. Pure."""
    null = np.asarray(null_values, np.float64)
    sign = 1 if is_larger_better else -1
    as_good = int(np.sum(sign * null >= sign * value - 1e-9))
    p = (1 + as_good) / (1 + len(null))
    verdict = BETTER if p < LEVEL else NO_BETTER
    if 1 / (1 + len(null)) >= LEVEL:
        verdict = TOO_FEW
    low, high = np.quantile(null, (0.025, 0.975))
    return {
        "value": float(value),
        "null_mean": float(null.mean()),
        "null_low": float(low),
        "null_high": float(high),
        "p": p,
        "groups": len(null),
        "verdict": verdict,
    }


def measure(evaluated: Evaluated) -> Iterator[NullRow]:
    """Yield the rows of every method's mask."""
    run = evaluated.run
    sets = run.benchmark.sets
    asked = first_by_id(sets["unseen"] or sets["retain"], run.config.sweep.max_people)
    facts = {
        "forget": _facts(run, sets["forget"]),
        "retain": _facts(run, asked),
    }
    found: dict[str, list[Neurons]] = {}
    nulls: dict[str, str] = {}
    for method in run.masks:
        mask, made_from = masks.load(run.method_folder(method.name) / "mask.safetensors")
        nulls[method.name], null_masks = _null_masks(run, method, mask, made_from["alpha"], asked)
        found[method.name] = [mask, *null_masks]
    damage = iter(_damages(run, facts, [mask for chosen in found.values() for mask in chosen]))
    num_facts = sum(len(samples) for places in facts.values() for samples in places.values())
    for name, (mask, *null_masks) in found.items():
        own, *others = (next(damage) for _ in range(1 + len(null_masks)))
        yield NullRow(
            method=name,
            statistic=DAMAGE,
            null=nulls[name],
            n=num_facts,
            **compare(own, others, is_larger_better=True),
        )
        if nulls[name] == PEOPLE and len(null_masks) > 1:
            yield NullRow(
                method=name,
                statistic=OVERLAP,
                null=PEOPLE,
                n=sum(removed for removed, _ in masks.counts(mask).values()),
                **compare(*_overlaps(mask, null_masks), is_larger_better=False),
            )


def check(row: NullRow) -> Iterable[str]:
    """Yield what is wrong with the values of a row."""
    name = f"{row.method} · {row.statistic}"
    if row.statistic not in (DAMAGE, OVERLAP) or row.null not in (PEOPLE, RANDOM):
        yield f"{name}: unknown statistic or null {row.null!r}"
    if row.verdict not in (BETTER, NO_BETTER, TOO_FEW):
        yield f"{name}: unknown verdict {row.verdict!r}"
    if not 0 < row.p <= 1 or row.null_low > row.null_high:
        yield f"{name}: p is {row.p}, the null lies from {row.null_low} to {row.null_high}"


def _facts(run: Run, people: Sequence[Person]) -> dict[Modality, tuple[Sample, ...]]:
    """Return at most `null_facts` of people's facts in each form, drawn by the seed."""
    found = {}
    for modality in run.modalities:
        samples = forms(
            [fact for person in people for fact in person.facts], modality, run.vanilla.template
        )
        order = np.random.default_rng(run.config.seed).permutation(len(samples))
        chosen = sorted(order[: run.config.sweep.null_facts].tolist())
        found[modality] = tuple(samples[number] for number in chosen)
    return found


def _null_masks(
    run: Run, method: MethodSettings, mask: Neurons, alpha: float, asked: Sequence[Person]
) -> tuple[str, list[Neurons]]:
    """Return what the null masks of a method are ("people" or "random"), and the masks."""
    count, seed = run.config.sweep.null_groups, run.config.seed
    size = len(run.benchmark.sets["forget"])
    apart = {person.id for person in (*asked, *run.set_apart(method))}
    people = [
        person for person in run.benchmark.sets["retain"] if person.id not in apart and person.facts
    ]
    if not is_by_people(method) or len(people) < 2 * size:
        return RANDOM, list(random_masks(mask, count=count, seed=seed))
    order = np.random.default_rng(seed).permutation(len(people))
    drawn = [people[number] for number in sorted(order[: max(POOL * size, POOL_AT_LEAST)])]
    job = ScoringJob(
        run.vanilla,
        method,
        run.forget_samples,
        run.keep_samples_of(method),
        batch_size=run.config.score_batch,
        seed=seed,
        directory=run.directory / "statistics" / method.name,
    )
    groups = draw_groups([person.id for person in drawn], size=size, count=count, seed=seed)
    facts = [fact for person in drawn for fact in person.facts]
    samples: Forms = {
        modality: forms(facts, modality, run.vanilla.template) for modality in run.modalities
    }
    return PEOPLE, list(masks_of_groups(job, groups, alpha, people=samples))


def _damages(
    run: Run, facts: Mapping[str, Mapping[Modality, Sequence[Sample]]], chosen: Sequence[Neurons]
) -> list[float]:
    """Return the damage of each mask: what it takes from the facts to forget beyond the kept.

    With erase: visual the facts to forget are asked in the image form alone.
    """
    erased = ("image",) if run.config.erase == "visual" else run.modalities
    places = {
        (name, modality): samples
        for name, by_form in facts.items()
        for modality, samples in by_form.items()
        if samples and (name == "retain" or modality in erased)
    }
    found_KN = recalled(
        run.vanilla,
        [sample for samples in places.values() for sample in samples],
        [{}, *chosen],
        batch_size=run.config.evaluate.batch_size,
        memory_mib=run.config.sweep.memory_mib,
    )
    ends = np.cumsum([len(samples) for samples in places.values()])[:-1]
    share_K = {
        place: part_KN.mean(axis=1)
        for place, part_KN in zip(places, np.split(found_KN, ends, axis=1), strict=True)
    }
    lost_K = {
        wanted: np.mean(
            [right_K[0] - right_K[1:] for (name, _), right_K in share_K.items() if name == wanted],
            axis=0,
        )
        for wanted in facts
    }
    return (lost_K["forget"] - lost_K["retain"]).tolist()


def _overlaps(mask: Neurons, null_masks: Sequence[Neurons]) -> tuple[float, list[float]]:
    """Return the mean overlap of a mask with the null masks, and of each of these with the rest."""
    own = float(np.mean([overlap(mask, other) for other in null_masks]))
    flat_GN = np.stack(
        [np.concatenate([np.ravel(m[key]) for key in sorted(m)]) for m in null_masks]
    ).astype(np.float32)
    both_GG = flat_GN @ flat_GN.T
    sizes_G = np.maximum(np.diag(both_GG), 1)
    others_G = (both_GG.sum(axis=1) - np.diag(both_GG)) / sizes_G / (len(null_masks) - 1)
    return own, others_G.tolist()


ANALYSIS = Analysis(
    NullRow, measure, applies=lambda run: run.config.sweep.null_groups > 0, check=check
)

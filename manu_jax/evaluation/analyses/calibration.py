"""What the calibration set does: the same mask from other samples, sizes and orders of kept facts.

A method learns what is kept from facts that somebody chose. Each variation makes the method's mask
again, of the same size, from a part of the kept people with all their facts (`size`), from as many
as there are, drawn with replacement (`sample`), or from all in another order (`order`). General
texts that the method keeps are nobody's, and stay in all of them. What differs is told by the
Jaccard index with the run's own mask, and by what the mask leaves of the facts to forget and of
kept ones.

The statistics of single people add to those of any part of them, so one pass serves all variations
of a method by statistics of samples in one round (importance/null.py). Sums do not depend on the
order beyond rounding. Other methods are scored anew for each variation, where the config names them
(`calibration.rescored`), and left out where it does not.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from manu_jax.config import MaskMethod
from manu_jax.context import Run
from manu_jax.data.forms import forms
from manu_jax.data.record import Person
from manu_jax.edits import masks
from manu_jax.evaluation.analyses.analysis import Analysis, Evaluated
from manu_jax.evaluation.candidates import recalled
from manu_jax.importance.by_statistics import round_statistics
from manu_jax.importance.functions import contrast
from manu_jax.importance.job import ScoringJob
from manu_jax.importance.methods import scores_for
from manu_jax.importance.null import is_by_people
from manu_jax.importance.people import PeopleStatistics, collect_people, person_of
from manu_jax.importance.texts import is_text
from manu_jax.selection import rank
from manu_jax.types import MODALITIES, Modality, Neurons, Sample

# Kinds of variation; own: the run's mask
OWN, SIZE, SAMPLE, ORDER = KINDS = ("own", "size", "sample", "order")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationRow:
    """One mask of a method, made from a part of the kept people or from another order of them.

    kind: one of KINDS. share: of the kept people; people: how many. draw: number of the variation.
    jaccard: with the run's own mask, in [0, 1]; chance: what random masks of its size have. forget,
    retain: the share answered right of facts to forget and of kept ones, both forms together;
    forget_n, retain_n: facts asked.
    """

    method: str
    kind: str
    share: float
    people: int
    draw: int
    jaccard: float
    chance: float
    forget: float
    forget_n: int
    retain: float
    retain_n: int


def measure(evaluated: Evaluated) -> Iterator[CalibrationRow]:
    """Yield the variations of every mask that follows from single people, or that is named."""
    run = evaluated.run
    for method in run.masks:
        if is_by_people(method) or method.name in run.config.calibration.rescored:
            yield from _of_method(run, method)


def jaccard(mask: Neurons, other: Neurons) -> float:
    """Return how many neurons both masks remove, of those that either does, in [0, 1].

    Two masks that remove nothing are the same: 1.
    """
    both = either = 0
    for tower in {*mask, *other}:
        one, two = (np.asarray(m[tower], bool) if tower in m else False for m in (mask, other))
        both += int(np.sum(one & np.asarray(two)))
        either += int(np.sum(one | np.asarray(two)))
    return both / either if either else 1.0


def check(row: CalibrationRow) -> Iterable[str]:
    """Yield what is wrong with the values of a row."""
    name = f"{row.method} · {row.kind} · {row.share} · {row.draw}"
    if row.kind not in KINDS:
        yield f"{name}: unknown kind"
    for field in ("share", "jaccard", "chance", "forget", "retain"):
        if not 0 <= getattr(row, field) <= 1:
            yield f"{name}: {field} is {getattr(row, field)}, expected a share in [0, 1]"


@dataclasses.dataclass(frozen=True)
class _Variation:
    kind: str
    share: float
    draw: int
    people: tuple[str, ...]


def _of_method(run: Run, method: MaskMethod) -> Iterator[CalibrationRow]:
    own, made_from = masks.load(run.method_folder(method.name) / "mask.safetensors")
    with run.work("score"):
        job = run.job_of(method)
        people, _ = _kept_of(job)
        variations = _variations(run, people)
        made_again = _masks if is_by_people(method) else _rescored
        found = [own, *made_again(job, variations, made_from["alpha"])]
    asked = _asked(run, method)
    samples = [sample for part in asked.values() for sample in part]
    recalled_KN = recalled(
        run.vanilla,
        samples,
        found,
        batch_size=run.config.evaluate.batch_size,
        memory_mib=run.config.sweep.memory_mib,
    )
    num_forget = len(asked["forget"])
    removed, everything = map(sum, zip(*masks.counts(own).values(), strict=True))
    for variation, mask, right_N in zip(
        [_Variation(OWN, 1.0, 0, people), *variations], found, recalled_KN, strict=True
    ):
        yield CalibrationRow(
            method=method.name,
            kind=variation.kind,
            share=variation.share,
            people=len(variation.people),
            draw=variation.draw,
            jaccard=jaccard(own, mask),
            chance=removed / (2 * everything - removed),
            forget=float(right_N[:num_forget].mean()),
            forget_n=num_forget,
            retain=float(right_N[num_forget:].mean()),
            retain_n=len(samples) - num_forget,
        )


def _kept_of(job: ScoringJob[Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the people whom a job keeps, and the groups of its general texts."""
    samples = [one for part in job.keep.values() for one in part]
    people, texts = (
        tuple(dict.fromkeys(person_of(one) for one in samples if is_text(one) == of_texts))
        for of_texts in (False, True)
    )
    return people, texts


def _variations(run: Run, people: tuple[str, ...]) -> list[_Variation]:
    """Return what the masks are made from, drawn by the seed."""
    section = run.config.calibration
    found = []
    kinds = [*((SIZE, share) for share in section.sizes), (SAMPLE, 1.0), (ORDER, 1.0)]
    for number, (kind, share) in enumerate(kinds):
        for draw in range(section.draws):
            random = np.random.default_rng([run.config.seed, number, draw])
            order = random.permutation(len(people))
            if kind == SIZE:
                order = np.sort(order[: max(1, round(share * len(people)))])
            elif kind == SAMPLE:
                order = np.sort(random.integers(len(people), size=len(people)))
            found.append(
                _Variation(kind, share, draw, tuple(people[one] for one in order.tolist()))
            )
    return found


def _masks(
    job: ScoringJob[Any], variations: Sequence[_Variation], alpha: float
) -> Iterator[Neurons]:
    """Yield the method's mask for each variation, as large as the run's own."""
    method = job.method
    _, texts = _kept_of(job)
    forget = round_statistics(job)[:2]
    found: dict[str, PeopleStatistics] = {
        modality: collect_people(
            job.loaded,
            job.keep[modality],
            method,
            modality=modality,
            batch_size=method.batch_size or job.batch_size,
        )
        for modality in job.modalities
    }
    for variation in variations:
        keep = [
            _in_order(found[modality], (*variation.people, *texts)) if modality in found else None
            for modality in MODALITIES
        ]
        scores = contrast(*forget, *keep, preset=method)
        yield rank(scores, method.scope, layers=method.layers).top(alpha)


def _rescored(
    job: ScoringJob[Any], variations: Sequence[_Variation], alpha: float
) -> Iterator[Neurons]:
    """Yield the masks of a method that is scored anew for each variation."""
    _, texts = _kept_of(job)
    by_person: dict[tuple[str, Modality], list[Sample]] = {}
    for modality, samples in job.keep.items():
        for sample in samples:
            by_person.setdefault((person_of(sample), modality), []).append(sample)
    for variation in variations:
        keep = {
            modality: tuple(
                sample
                for person in (*variation.people, *texts)
                for sample in by_person.get((person, modality), ())
            )
            for modality in job.keep
        }
        own = dataclasses.replace(job, keep=keep, directory=None)
        yield rank(scores_for(own), job.method.scope, layers=job.method.layers).top(alpha)


def _in_order(found: PeopleStatistics, people: Sequence[str]) -> Any:
    """Return the statistics of people, added one after the other in this order.

    Whoever has no facts in the form is left out; all are taken where nobody has.
    """
    known = [person for person in people if person in found.people] or list(found.people)
    parts = [found.of([person]) for person in known]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _asked(run: Run, method: MaskMethod) -> Mapping[str, tuple[Sample, ...]]:
    """Return facts to forget and kept ones, at most `facts` of each in each form, by the seed."""
    sets = run.benchmark.sets
    kept = sets["unseen"] or run.set_apart(method) or sets["retain"]
    return {
        "forget": _drawn(run, sets["forget"]),
        "retain": _drawn(run, kept),
    }


def _drawn(run: Run, people: Sequence[Person]) -> tuple[Sample, ...]:
    found: list[Sample] = []
    facts = [fact for person in people for fact in person.facts]
    for modality in run.modalities:
        samples = forms(facts, modality, run.vanilla.template)
        order = np.random.default_rng(run.config.seed).permutation(len(samples))
        found += [samples[one] for one in sorted(order[: run.config.calibration.facts].tolist())]
    return tuple(found)


ANALYSIS = Analysis(
    CalibrationRow, measure, applies=lambda run: run.config.calibration.draws > 0, check=check
)

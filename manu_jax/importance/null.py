"""Masks for nobody in particular: what a method's mask has to be better than.

A null mask is made as the method's own, by the same settings and of the same size, but to forget
other people: groups of kept people, as large as the group to forget. That needs the statistics of
each person, which only methods of one round have whose statistics are of samples. For the others a
null mask takes as many neurons of each layer as the method's own, at random.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from manu_jax.config import MethodSettings, StatisticsMethod
from manu_jax.importance.by_statistics import round_statistics
from manu_jax.importance.functions import contrast
from manu_jax.importance.job import Forms, ScoringJob
from manu_jax.importance.people import PeopleStatistics, collect_people, without
from manu_jax.importance.statistics import Statistics
from manu_jax.selection import rank
from manu_jax.types import MODALITIES, ManuError, Neurons

MOST_TRIES = 100  # for each group, to draw one that was not drawn before


def is_by_people(method: MethodSettings) -> bool:
    """Whether null masks of a method are made for other people; if not, they are random."""
    return (
        isinstance(method, StatisticsMethod)
        and not method.chooses
        and method.reduction != "position"
        and method.keep_per_forget is None
        and method.fade is None
    )


def draw_groups(
    people: Sequence[str], *, size: int, count: int, seed: int
) -> tuple[tuple[str, ...], ...]:
    """Return at most `count` different groups of `size` people, drawn by the seed.

    There are fewer where the people do not make up as many. ManuError where they make up none.
    """
    if not 1 <= size <= len(people):
        raise ManuError(
            f"null: a group has {size} people, and {len(people)} kept people can be drawn from. "
            "Set sweep.null_groups: 0, or give more people to keep."
        )
    random = np.random.default_rng(seed)
    count = min(count, math.comb(len(people), size))
    groups: dict[tuple[int, ...], None] = {}
    for _ in range(MOST_TRIES * count):
        chosen = random.permutation(len(people))[:size].tolist()
        groups[tuple(sorted(chosen))] = None
        if len(groups) == count:
            break
    return tuple(tuple(people[number] for number in group) for group in groups)


def masks_of_groups(
    job: ScoringJob[Any], groups: Sequence[Sequence[str]], alpha: float, *, people: Forms
) -> Iterator[Neurons]:
    """Yield the mask that a job's method would choose to forget each group of people.

    people: the facts of all who are in groups, which are among those that the job keeps; all that
    is kept beside a group is kept on. alpha: share of neurons removed. Statistics of the job are
    read from its directory where they stand there. ManuError for a method whose null is not by
    people.
    """
    method = job.method
    for scores in _scores_of_groups(job, groups, people=people, with_forget=False):
        yield rank(scores, method.scope, layers=method.layers).top(alpha)


def scores_of_labels(
    job: ScoringJob[Any], groups: Sequence[Sequence[str]], *, people: Forms
) -> Iterator[Neurons]:
    """Yield the scores that a job's method would give, were each group the people to forget.

    people: all facts of those who are in groups: people to forget, and people whom the job keeps.
    Whoever is not in a group is kept. Statistics and ManuError as in `masks_of_groups`.
    """
    yield from _scores_of_groups(job, groups, people=people, with_forget=True)


def _scores_of_groups(
    job: ScoringJob[Any], groups: Sequence[Sequence[str]], *, people: Forms, with_forget: bool
) -> Iterator[Neurons]:
    """Yield the scores for each group against the rest of what is kept.

    with_forget: the job's own facts to forget are among what is kept, as far as not in the group.
    """
    method = job.method
    if not is_by_people(method):
        raise ManuError(f'method "{method.name}": there are no statistics of single people.')
    own = round_statistics(job)
    totals = dict(zip(MODALITIES, own[2:], strict=True))
    if with_forget:
        to_forget = dict(zip(MODALITIES, own[:2], strict=True))
        for modality, total in totals.items():
            if total is not None:
                own_forget = to_forget[modality]
                assert isinstance(total, Statistics) and isinstance(own_forget, Statistics)
                totals[modality] = total + own_forget
    found: dict[str, PeopleStatistics] = {
        modality: collect_people(
            job.loaded,
            people[modality],
            method,
            modality=modality,
            batch_size=method.batch_size or job.batch_size,
        )
        for modality in job.modalities
    }
    for group in groups:
        forget: list[Statistics | None] = []
        keep: list[Statistics | None] = []
        for modality, total in totals.items():
            if total is None:
                forget.append(None)
                keep.append(None)
                continue
            assert isinstance(total, Statistics)
            part = found[modality].of(group)
            forget.append(part)
            keep.append(without(total, part))
        yield contrast(*forget, *keep, preset=method)


def random_masks(mask: Neurons, *, count: int, seed: int) -> Iterator[Neurons]:
    """Yield masks of as many neurons in each layer as the given one has, drawn by the seed."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        drawn: Neurons = {}
        for tower, values in sorted(mask.items()):
            removed_LF = np.asarray(values, bool)
            places_LF = random.random(removed_LF.shape).argsort(axis=1).argsort(axis=1)
            drawn[tower] = places_LF < removed_LF.sum(axis=1)[:, None]
        yield drawn


def overlap(mask: Neurons, other: Neurons) -> float:
    """Return the share of a mask's neurons that the other one removes too, in [0, 1]."""
    both = sum(int(np.sum(mask[key] & other[key])) for key in mask if key in other)
    return both / max(sum(int(np.sum(values)) for values in mask.values()), 1)

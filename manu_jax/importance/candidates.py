"""Many masks from one set of statistics: other functions, combinations, scopes, layers and alphas.

The model has been run once. What a method does with its statistics, and which neurons it takes, is
arithmetic on the host, so a thousand masks take seconds:

    statistics = SetStatistics.load("runs/demo/statistics/paper")
    methods = variations("paper", scope=("all", "layer"), alpha=(0.05, 0.1, 0.2))
    for method, mask in masks_of(statistics, methods): ...
"""

import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from manu_jax.config import MethodSettings, StatisticsMethod, named_method
from manu_jax.config.methods import CHOICE, JOINED_BY
from manu_jax.folder import expand_path
from manu_jax.importance import statistics as files
from manu_jax.importance.by_statistics import statistics_file
from manu_jax.importance.functions import Pair, check_threshold, contrast, statistics_method
from manu_jax.importance.statistics import AnyStatistics
from manu_jax.selection import Ranking, rank
from manu_jax.types import MODALITIES, ManuError, Modality, Neurons, Signal

KEPT = 4  # scores and rankings that are not made again for the next mask


@dataclasses.dataclass(frozen=True)
class SetStatistics:
    """What one round of scoring measures: the facts to forget and to keep, (image, text) each.

    None stands for a form that is absent.
    """

    forget: Pair
    keep: Pair

    @classmethod
    def load(cls, folder: str | os.PathLike, signal: Signal = "activation") -> "SetStatistics":
        """Return the statistics of a run's method (runs/NAME/statistics/METHOD).

        ManuError where a file is missing or damaged, and for those of several rounds.
        """
        place = expand_path(folder)

        found = {
            form: [
                (place / statistics_file(name, form, signal)).exists()
                for name in ("forget", "keep")
            ]
            for form in MODALITIES
        }
        is_text_alone = all(found["text"]) and not any(found["image"])

        def read(name: str, modality: Modality) -> AnyStatistics | None:
            if modality == "image" and is_text_alone:
                return None
            return _read(place / statistics_file(name, modality, signal))

        if (place / "round_00").exists():
            raise ManuError(
                f"{folder}: statistics of several rounds. What a round measures depends on what "
                "the rounds before removed: score with rounds: 1."
            )
        forget, keep = ((read(name, "image"), read(name, "text")) for name in ("forget", "keep"))
        return cls(forget, keep)


def variations(
    preset: str | MethodSettings = "paper", **values: Iterable[Any]
) -> Iterator[StatisticsMethod]:
    """Yield a method by statistics with every combination of the values of its settings.

    values: of any of `JOINED_BY` and `CHOICE` (functions, combine, …, scope, layers, alpha). The
    method's name stays. ManuError for another setting, which the statistics do not follow, and for
    a value that the setting can't have.
    """
    method = statistics_method(preset)
    known = (*JOINED_BY, *CHOICE)
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ManuError(
            f"variations: {', '.join(unknown)} can't differ between masks of the same statistics; "
            f"what can: {', '.join(known)}."
        )
    alone = [
        f"{key} is {given!r}"
        for key, given in values.items()
        if isinstance(given, str | Mapping) or not isinstance(given, Iterable)
    ]
    if alone:
        raise ManuError(f"variations: expected lists of values: {'; '.join(alone)}. Give [value].")
    # In the order of `known`, α among the last: its masks share scores and ranking.
    order = sorted(values, key=lambda key: (key == "alpha", known.index(key)))
    for chosen in itertools.product(*(tuple(values[key]) for key in order)):
        changed = named_method(method, **dict(zip(order, chosen, strict=True)))
        assert isinstance(changed, StatisticsMethod)
        yield changed


def masks_of(
    statistics: SetStatistics, methods: Iterable[StatisticsMethod]
) -> Iterator[tuple[StatisticsMethod, Neurons]]:
    """Yield each method with its mask, {tower: [L, F] bool}, as a run of one round would choose.

    Methods that follow each other and differ in α alone, or in the choice of neurons alone, share a
    ranking or scores. Raises ManuError for a method with rounds, `spare` or `alpha: auto`, or whose
    threshold is not that of the statistics.
    """
    scores_of = functools.lru_cache(maxsize=KEPT)(functools.partial(_scores, statistics))
    rankings: dict[str, Ranking] = {}
    for method in methods:
        _check(method, statistics)
        joined = method.model_dump(include=set(JOINED_BY), mode="json")
        key = json.dumps(joined, sort_keys=True)
        chosen = method.model_dump(include={"scope", "layers"}, mode="json")
        place = key + json.dumps(chosen, sort_keys=True)
        if place not in rankings:
            if len(rankings) == KEPT:
                del rankings[next(iter(rankings))]
            rankings[place] = rank(
                scores_of(_Hashed(key, method)), method.scope, layers=method.layers
            )
        yield method, rankings[place].top(method.scored_alpha)


@dataclasses.dataclass(frozen=True)
class _Hashed:
    """A method, known by how it joins statistics."""

    key: str
    method: StatisticsMethod = dataclasses.field(compare=False)


def _scores(statistics: SetStatistics, hashed: _Hashed) -> Neurons:
    return contrast(*statistics.forget, *statistics.keep, preset=hashed.method)


def _check(method: StatisticsMethod, statistics: SetStatistics) -> None:
    if method.rounds > 1:
        raise ManuError(
            f'method "{method.name}": rounds is {method.rounds}, and each round measures anew. '
            "Give rounds: 1."
        )
    if method.spare is not None:
        raise ManuError(
            f'method "{method.name}": spare is {method.spare}, and what a removal costs is asked '
            "of the model. Leave spare out."
        )
    if method.auto is not None:
        raise ManuError(
            f'method "{method.name}": alpha: auto asks the model. Give alpha as a number.'
        )
    check_threshold(statistics.forget[1], method)


def _read(path: Path) -> AnyStatistics:
    if not path.exists():
        raise ManuError(f"{path}: no statistics there. Run the stage `scores` first.")
    return files.load(path)[0]

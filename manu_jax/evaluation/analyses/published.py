"""The benchmark's own, published protocol: a row for each metric of each task, set and form.

The means over probes are here, with intervals by bootstrap over people, and the numbers that are of
a whole model (`Aggregate`), whose task, set and modality are "all". What is asked, and the records,
are of evaluation/published.py. An interval of an aggregate draws people of the model and of the
retrained model alike, RESAMPLES times at most, since each draw computes it anew.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from manu_jax import parallel
from manu_jax.context import Run
from manu_jax.data.probes import Aggregate, ProbeRecord
from manu_jax.evaluation.analyses.analysis import Analysis, Evaluated
from manu_jax.evaluation.metrics import bootstrap
from manu_jax.evaluation.plain import plain_interval
from manu_jax.evaluation.published import Place, has_published, published_of, stored
from manu_jax.evaluation.published_export import all_of
from manu_jax.types import RETRAINED

ALL = "all"
RESAMPLES = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One number of one model: the mean of a metric over n probes, or an aggregate of n.

    value: None where no probe could be measured. low, high: 95 % interval.
    """

    model: str
    task: str
    set: str
    modality: str
    metric: str
    value: float | None
    n: int
    low: float | None = None
    high: float | None = None


def measure(evaluated: Evaluated) -> Iterator[PublishedRow]:
    """Yield the rows of every model; on the first process alone, which writes them."""
    protocol = published_of(evaluated.run.config)
    found: dict[str, dict[Place, list[ProbeRecord]]] = {}

    def read() -> None:
        found.update({model: stored(evaluated.run, model) for model in evaluated.models})

    parallel.on_first_process(read)
    retrained = all_of(found.get(RETRAINED, {}))
    for model, records in found.items():
        for (task, where, modality), of_place in records.items():
            for metric in of_place[0]["metrics"] if of_place else ():
                measured = [one for one in of_place if one["metrics"][metric] is not None]
                plain: dict[str, Any] = {"value": None, "n": 0}
                if measured:
                    values = [one["metrics"][metric] for one in measured]
                    people = [one["person"] for one in measured]
                    plain = plain_interval(bootstrap(values, people, **evaluated.bootstrap))
                place = {"task": task, "set": where, "modality": modality}
                yield PublishedRow(model=model, metric=metric, **place, **plain)
        mine = all_of(records)
        for name, aggregate in protocol.aggregates.items() if protocol else ():
            value = aggregate.function(mine, retrained)
            low, high = None, None
            if value is not None and aggregate.resampled:
                low, high = interval(aggregate, mine, retrained, **evaluated.bootstrap)
            yield PublishedRow(
                model=model,
                task=ALL,
                set=ALL,
                modality=ALL,
                metric=name,
                value=value,
                n=len(mine),
                low=low,
                high=high,
            )


def interval(
    aggregate: Aggregate,
    records: Sequence[ProbeRecord],
    retrained: Sequence[ProbeRecord],
    *,
    resamples: int,
    seed: int,
) -> tuple[float | None, float | None]:
    """Return the 95 % interval of an aggregate by bootstrap over people; None of one person.

    Draws in which it cannot be measured are left out.
    """
    sides = [_by_person(side) for side in (records, retrained)]
    people = sorted(sides[0])
    if len(people) < 2:
        return None, None
    random = np.random.default_rng(seed)
    share = np.full(len(people), 1 / len(people))
    values = []
    for counts in random.multinomial(len(people), share, size=min(resamples, RESAMPLES)):
        drawn = [
            [
                record
                for person, count in zip(people, counts, strict=True)
                for record in side.get(person, []) * int(count)
            ]
            for side in sides
        ]
        values.append(aggregate.function(*drawn))
    measured = [value for value in values if value is not None]
    if not measured:
        return None, None
    low, high = np.percentile(measured, [2.5, 97.5])
    return float(low), float(high)


def applies(run: Run) -> bool:
    """Whether the benchmark has a protocol of its own, and it is asked."""
    return has_published(run.config) and bool(run.benchmark.probes)


def check(row: PublishedRow) -> Iterable[str]:
    """Yield what is wrong with the values of a row."""
    name = " · ".join((row.model, row.task, row.set, row.modality, row.metric))
    if (row.low is None) != (row.high is None):
        yield f"{name}: low {row.low} and high {row.high}: both or neither"
    if row.value is None and row.n and row.task != ALL:
        yield f"{name}: no value, with n = {row.n}"


def _by_person(records: Sequence[ProbeRecord]) -> dict[str, list[ProbeRecord]]:
    found: dict[str, list[ProbeRecord]] = {}
    for record in records:
        found.setdefault(record["person"], []).append(record)
    return found


ANALYSIS = Analysis(PublishedRow, measure, applies=applies, check=check)

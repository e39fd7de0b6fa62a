"""Paired differences: the same items asked of two models, person by person.

Two models' own intervals say little about their difference, since both stumble over the same
questions. Here people are drawn alike for both, and the interval is of the difference itself.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from manu_jax.evaluation.analyses.analysis import Analysis, Evaluated, Records
from manu_jax.evaluation.metrics import paired_bootstrap
from manu_jax.evaluation.plain import plain_interval
from manu_jax.evaluation.tasks import TASKS_BY_NAME
from manu_jax.types import RETRAINED, VANILLA


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean of `model` − that of `against` on the same items, with its 95 % interval.

    low, high: by bootstrap over people, None for a single person.
    """

    model: str
    against: str
    set: str
    task: str
    modality: str
    metric: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None


def differences(
    records: Mapping[str, Records], against: str, *, resamples: int = 1000, seed: int = 0
) -> Iterator[Difference]:
    """Yield the differences of every other model from the model `against`.

    records: {model: {(set, task, modality): records}}, as `evaluate` left them. Places that either
    model lacks are left out, and items that can't be measured. Raises ValueError where two models
    were asked different items.
    """
    for model, places in records.items():
        if model == against:
            continue
        for place, items in places.items():
            others = records[against].get(place)
            if not others:
                continue
            if _asked(items) != _asked(others):
                raise ValueError(
                    f"paired: {len(items)} values against {len(others)}, or of other items"
                )
            name, task, modality = place
            for metric, field in TASKS_BY_NAME[task].metrics_in(items[0]).items():
                pairs = [
                    (item, other)
                    for item, other in zip(items, others, strict=True)
                    if item[field] is not None and other[field] is not None
                ]
                if not pairs:
                    continue
                found = paired_bootstrap(
                    [float(item[field]) for item, _ in pairs],
                    [float(other[field]) for _, other in pairs],
                    [str(item["person"]) for item, _ in pairs],
                    resamples=resamples,
                    seed=seed,
                )
                yield Difference(
                    model=model,
                    against=against,
                    set=name,
                    task=task,
                    modality=modality,
                    metric=metric,
                    **plain_interval(found),
                )


def measure(evaluated: Evaluated) -> Iterator[Difference]:
    """Yield the differences from vanilla, and from the retrained model if there is one."""
    for against in (VANILLA, RETRAINED):
        if against in evaluated.models:
            yield from differences(evaluated.records, against, **evaluated.bootstrap)


def _asked(items: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """Return what tells each item from others; a prompt may have a model's own words around it."""
    return [tuple(item.get(name) for name in ("person", "key", "question")) for item in items]


ANALYSIS = Analysis(Difference, measure)

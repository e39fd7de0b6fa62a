"""Paired differences: the same items asked of two models, person by person. No jax.

Two models' own intervals say little about their difference, since both stumble over the same
questions. Here people are drawn alike for both, and the interval is of the difference itself.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from manu_jax.evaluation.metrics import paired_bootstrap
from manu_jax.evaluation.tasks import TASKS

Records = Mapping[tuple[str, str, str], Sequence[Mapping[str, Any]]]


def differences(
    records: Mapping[str, Records], against: str, *, resamples: int = 1000, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield {model, against, set, task, modality, metric, value, n, low, high} of every model.

    records: {model: {(set, task, modality): records}}, as `evaluate` left them. value: the mean
    metric of the model − that of the model `against`; low and high: its 95 % interval by bootstrap
    over people, None where there is one. Places that either model lacks are left out.
    """
    for model, places in records.items():
        if model == against:
            continue
        for place, items in places.items():
            others = records[against].get(place)
            if not others:
                continue
            people = [str(item["person"]) for item in items]
            for metric, field in TASKS[place[1]].metrics_in(items[0]).items():
                found = paired_bootstrap(
                    [float(item[field]) for item in items],
                    [float(item[field]) for item in others],
                    people,
                    resamples=resamples,
                    seed=seed,
                )
                has_interval = not math.isnan(found.low)
                yield {
                    "model": model,
                    "against": against,
                    **dict(zip(("set", "task", "modality"), place, strict=True)),
                    "metric": metric,
                    "value": found.value,
                    "n": found.n,
                    "low": found.low if has_interval else None,
                    "high": found.high if has_interval else None,
                }

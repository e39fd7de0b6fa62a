"""Distances from a reference and paired differences, as the report's tables. Pure."""

import dataclasses
from typing import Any

from manu_jax.evaluation.analyses.differences import Difference
from manu_jax.evaluation.analyses.distances import KL, KL_SETS, KS, Distance
from manu_jax.evaluation.metrics import METRICS
from manu_jax.evaluation.reference import REFERENCES
from manu_jax.report.numbers import SET_TITLES, TASK_TITLES, main_metrics, signed
from manu_jax.report.results import Results
from manu_jax.types import MODALITIES, RETRAINED, VANILLA

ALIKE = 0.05  # p-value from which two sets of truth ratios are not told apart


@dataclasses.dataclass(frozen=True)
class SimpleTable:
    """Heads and lines of text; a cell is (number, small print)."""

    heads: tuple[tuple[str, str], ...]
    lines: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


def distances_view(results: Results) -> dict[str, Any] | None:
    """Return the part of the report on distances; None where none were measured."""
    table = distance_table(results)
    found = results.analyses.get("distances", ())
    names = [one.reference for one in found if one.set == "forget"]
    reference = REFERENCES.get(names[0] if names else RETRAINED, REFERENCES[RETRAINED])
    return table and {"title": reference.title, "text": reference.text, "table": table}


def differences_view(results: Results) -> dict[str, Any] | None:
    """Return the part of the report on paired differences; None where none were measured."""
    table = difference_table(results)
    against = " and ".join(name for name in (VANILLA, RETRAINED) if name in results.models)
    title = f"{results.headline} against {against}, item by item"
    return table and {"title": title, "table": table}


def distance_table(results: Results) -> SimpleTable | None:
    """Return every model's distances from the reference; None where none were measured."""
    distances = results.analyses.get("distances", ())
    places = [
        place
        for place in (
            *((KL, where, modality) for where in KL_SETS for modality in MODALITIES),
            *((KS, "forget", modality) for modality in MODALITIES),
        )
        if any(_place(distance) == place for distance in distances)
    ]
    if not places:
        return None
    heads = tuple(
        (f"{SET_TITLES[where]}, {modality}", "KL, nats" if metric == KL else "truth ratios, KS")
        for metric, where, modality in places
    )
    found = {(d.model, *_place(d)): d for d in distances}
    lines = tuple(
        (model, tuple(_cell(found.get((model, *place))) for place in places))
        for model in results.models
        if model != RETRAINED
    )
    return SimpleTable(heads, lines)


def difference_table(results: Results) -> SimpleTable | None:
    """Return the headline method's differences from vanilla and retrained, by set and task."""
    metrics = main_metrics(results)
    found = {
        (d.set, d.task, d.modality, d.against): d
        for d in results.analyses.get("differences", ())
        if d.model == results.headline and d.metric == metrics.get(d.task)
    }
    against = [name for name in (VANILLA, RETRAINED) if any(key[3] == name for key in found)]
    places = list(dict.fromkeys((where, task) for where, task, _, _ in found))
    if not places:
        return None
    forms = [form for form in MODALITIES if any(key[2] == form for key in found)]
    heads = tuple((f"− {name}", modality) for name in against for modality in forms)
    lines = []
    for where, task in places:
        differences = (
            found.get((where, task, modality, name)) for name in against for modality in forms
        )
        cells = tuple(
            ("–", "") if d is None else (_signed(d.value, d.metric), _range(d)) for d in differences
        )
        lines.append((f"{SET_TITLES[where]}: {TASK_TITLES[task].lower()}", cells))
    return SimpleTable(heads, tuple(lines))


def _place(distance: Distance) -> tuple[str, str, str]:
    return (distance.metric, distance.set, distance.modality)


def _cell(distance: Distance | None) -> tuple[str, str]:
    if distance is None:
        return ("–", "")
    if distance.metric == KS:
        p = distance.p or 0.0
        verdict = "alike" if p >= ALIKE else "told apart"
        return (f"{distance.value:.2f}", f"p = {p:.2g}, {verdict}, n = {distance.n}")
    bounds = "" if distance.low is None else f"{distance.low:.2f} to {distance.high:.2f}, "
    return (f"{distance.value:.2f}", f"{bounds}n = {distance.n}")


def _signed(value: float, metric: str) -> str:
    """Return a difference in points, where the metric is a share; else in the metric's unit."""
    return signed(100 * value, 1) if METRICS[metric].is_share else signed(value, 2)


def _range(difference: Difference) -> str:
    if difference.low is None or difference.high is None:
        return f"n = {difference.n}"
    low, high = (_signed(bound, difference.metric) for bound in (difference.low, difference.high))
    return f"{low} to {high}, n = {difference.n}"

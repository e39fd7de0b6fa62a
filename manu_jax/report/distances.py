"""Distances from the retrained model and paired differences, as the report's tables. Pure."""

import dataclasses
from collections.abc import Sequence

from manu_jax.report.leakage import signed
from manu_jax.report.numbers import SET_TITLES, TASK_TITLES, main_metrics
from manu_jax.report.results import Distance, Results
from manu_jax.types import MODALITIES, RETRAINED, VANILLA

ALIKE = 0.05  # p-value from which two sets of truth ratios are not told apart


@dataclasses.dataclass(frozen=True)
class SimpleTable:
    """Heads and lines of text; a cell is (number, small print)."""

    heads: tuple[tuple[str, str], ...]
    lines: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


def distance_table(results: Results) -> SimpleTable | None:
    """Return every model's distances from the retrained one; None where none were measured."""
    places = [
        place
        for place in (
            *(("kl", where, modality) for where in ("forget", "retain") for modality in MODALITIES),
            *(("ks", "forget", modality) for modality in MODALITIES),
        )
        if any(_place(distance) == place for distance in results.distances)
    ]
    if not places:
        return None
    heads = tuple(
        (
            f"{SET_TITLES[where]}, {modality}",
            "KL, nats" if metric == "kl" else "truth ratios, KS",
        )
        for metric, where, modality in places
    )
    found = {(d.model, *_place(d)): d for d in results.distances}
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
        for d in results.differences
        if d.model == results.headline and d.metric == metrics.get(d.task)
    }
    against = [name for name in (VANILLA, RETRAINED) if any(key[3] == name for key in found)]
    places = list(dict.fromkeys((where, task) for where, task, _, _ in found))
    if not places:
        return None
    heads = tuple((f"− {name}", modality) for name in against for modality in MODALITIES)
    lines = []
    for where, task in places:
        differences = (
            found.get((where, task, modality, name)) for name in against for modality in MODALITIES
        )
        cells = tuple(
            ("–", "") if d is None else (_signed(d.value, task), _range(d.low, d.high, d.n, task))
            for d in differences
        )
        lines.append((f"{SET_TITLES[where]}: {TASK_TITLES[task].lower()}", cells))
    return SimpleTable(heads, tuple(lines))


def _place(distance: Distance) -> tuple[str, str, str]:
    return (distance.metric, distance.set, distance.modality)


def _cell(distance: Distance | None) -> tuple[str, str]:
    if distance is None:
        return ("–", "")
    if distance.metric == "ks":
        p = distance.p or 0.0
        verdict = "alike" if p >= ALIKE else "told apart"
        return (f"{distance.value:.2f}", f"p = {p:.2g}, {verdict}, n = {distance.n}")
    bounds = "" if distance.low is None else f"{distance.low:.2f} to {distance.high:.2f}, "
    return (f"{distance.value:.2f}", f"{bounds}n = {distance.n}")


def _signed(value: float, task: str) -> str:
    return signed(value, 2) if task == "likelihood" else signed(100 * value, 1)


def _range(low: float | None, high: float | None, n: int, task: str) -> str:
    if low is None or high is None:
        return f"n = {n}"
    return f"{_signed(low, task)} to {_signed(high, task)}, n = {n}"


def tables(results: Results) -> Sequence[tuple[str, str, SimpleTable]]:
    """Return (title, what it says, table) of those that were measured."""
    candidates = (
        (
            "Distance from the retrained model",
            "KL divergence from it at the answers’ tokens (0: the same), and whether the truth "
            "ratios of multiple-choice items can be told from its (Kolmogorov–Smirnov; alike: "
            "p ≥ 0.05). The test takes the items of a person as independent, which they are not: "
            "its p-values are too small.",
            distance_table(results),
        ),
        (
            f"{results.headline} against vanilla and retrained, item by item",
            "Differences on the same items, in points (likelihood: nats), with 95 % intervals of "
            "the differences by bootstrap over people.",
            difference_table(results),
        ),
    )
    return [(title, text, table) for title, text, table in candidates if table is not None]

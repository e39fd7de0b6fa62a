"""The section on the benchmark's own, published protocol: its numbers, model by model. Pure."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from manu_jax.data.benchmarks import BENCHMARKS
from manu_jax.data.probes import PublishedProtocol
from manu_jax.evaluation.analyses.published import ALL, PublishedRow
from manu_jax.evaluation.metrics import SHARE
from manu_jax.report.numbers import NOT_MEASURED, SET_TITLES
from manu_jax.report.results import Results
from manu_jax.types import FORGET_SETS, MODALITIES, RETRAINED, VANILLA

FORMS = {"image": "with the image", "text": "in text alone"}


@dataclasses.dataclass(frozen=True)
class Line:
    """A metric: its title, its unit and its direction, and (number, small print) of each model."""

    title: str
    small: str
    cells: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Group:
    """The lines of a task, a set and a form; n: their probes."""

    title: str
    small: str
    lines: tuple[Line, ...]


def view(results: Results) -> dict[str, Any] | None:
    """Return the variables of the section; None where no such protocol was asked."""
    rows: Sequence[PublishedRow] = results.analyses.get("published", ())
    name = str(results.config.get("data", {}).get("benchmark", ""))
    protocol = BENCHMARKS[name].published if name in BENCHMARKS else None
    if not rows or protocol is None:
        return None
    first = [one for one in (VANILLA, RETRAINED) if one in results.models]
    models = [*first, *(one for one in results.models if one not in first)]
    places = list(dict.fromkeys((row.task, row.set, row.modality) for row in rows))
    places.sort(key=lambda place: place[0] != ALL)  # what is of a whole model comes first
    groups = [_group(place, rows, protocol, models) for place in places]
    return {
        "benchmark": protocol.title or name,
        "models": models,
        "groups": [group for group in groups if group.lines],
        "source": protocol.source,
        "differs": protocol.differs,
    }


def _group(
    place: tuple[str, str, str],
    rows: Sequence[PublishedRow],
    protocol: PublishedProtocol,
    models: Sequence[str],
) -> Group:
    mine = [row for row in rows if (row.task, row.set, row.modality) == place]
    found = {(row.model, row.metric): row for row in mine}
    known = protocol.aggregates if place[0] == ALL else protocol.metrics
    lines = []
    for metric in dict.fromkeys(row.metric for row in mine):
        cells = [found.get((model, metric)) for model in models]
        if metric not in known or not any(cell and cell.value is not None for cell in cells):
            continue
        title, unit = known[metric].title, known[metric].unit
        is_higher = known[metric].higher_is_better
        if place[1] in FORGET_SETS:
            is_higher = not is_higher
        direction = "higher is better" if is_higher else "lower is better"
        small = ", ".join(part for part in (unit, direction) if part)
        lines.append(Line(title, small, tuple(_cell(cell, unit) for cell in cells)))
    task, where, modality = place
    if task == ALL:
        return Group("The whole model", "", tuple(lines))
    probes = max(row.n for row in mine)
    forms = {row.modality for row in rows} & set(MODALITIES)
    form = f", {FORMS[modality]}" if len(forms) > 1 else ""
    title = task.replace("_", " ").capitalize()
    of_set = "" if title == SET_TITLES[where] else f"{SET_TITLES[where]}, "
    return Group(f"{title}{form}", f"{of_set}n = {probes:,}", tuple(lines))


def _cell(row: PublishedRow | None, unit: str) -> tuple[str, str]:
    if row is None or row.value is None:
        return (NOT_MEASURED, "")
    if row.low is None or row.high is None:
        return (_number(row.value, unit), "")
    return (_number(row.value, unit), f"{_number(row.low, unit)} to {_number(row.high, unit)}")


def _number(value: float, unit: str) -> str:
    if unit == SHARE:
        return f"{100 * value:.1f}"
    text = f"{value:.3f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.1e}"
    return text.replace("-", "−")

"""The section on what a judge says of the answers: its numbers, model by model. Pure."""

from collections.abc import Sequence
from typing import Any

from manu_jax.data.benchmarks import BENCHMARKS
from manu_jax.evaluation.analyses.judged import JudgedRow
from manu_jax.report.numbers import NOT_MEASURED, SET_TITLES
from manu_jax.report.published import Group, Line
from manu_jax.report.results import Results
from manu_jax.types import FORGET_SETS


def view(results: Results) -> dict[str, Any] | None:
    """Return the variables of the section; None where nothing was judged."""
    rows: Sequence[JudgedRow] = results.analyses.get("judged", ())
    name = str(results.config.get("data", {}).get("benchmark", ""))
    protocol = BENCHMARKS[name].published if name in BENCHMARKS else None
    if not rows or protocol is None:
        return None
    models = list(dict.fromkeys(row.model for row in rows))
    groups = []
    for task, where in dict.fromkeys((row.task, row.set) for row in rows):
        mine = [row for row in rows if (row.task, row.set) == (task, where)]
        lines = []
        for metric, group in dict.fromkeys((row.metric, row.group) for row in mine):
            question = protocol.judged[metric]
            found = {row.model: row for row in mine if (row.metric, row.group) == (metric, group)}
            is_higher = question.higher_is_better != (where in FORGET_SETS)
            small = f"{question.unit}, {'higher' if is_higher else 'lower'} is better"
            title = f"{question.title}, {group}" if group else question.title
            lines.append(Line(title, small, tuple(_cell(found.get(model)) for model in models)))
        counts = max(row.n for row in mine)
        groups.append(
            Group(task.capitalize(), f"{SET_TITLES[where]}, answers: {counts:,}", tuple(lines))
        )
    unread, asked = (
        sum(getattr(row, field) for row in rows if not row.group) for field in ("unread", "n")
    )
    return {
        "judge": rows[0].judge,
        "models": models,
        "groups": groups,
        "unread": unread,
        "asked": asked,
    }


def _cell(row: JudgedRow | None) -> tuple[str, str]:
    if row is None:
        return (NOT_MEASURED, "")
    small = "" if row.low is None or row.high is None else f"{row.low:.3f} to {row.high:.3f}"
    return (f"{row.value:.3f}", small)

"""Masks against their nulls, and what `alpha: auto` chose by, as the report's tables. Pure."""

from typing import Any

from manu_jax.evaluation.analyses.alpha_choice import CHOSEN_BEYOND, OTHER, AlphaShare
from manu_jax.evaluation.analyses.null import DAMAGE, NO_BETTER, PEOPLE, NullRow
from manu_jax.report.distances import SimpleTable
from manu_jax.report.numbers import SET_TITLES, percent, signed
from manu_jax.report.results import Results

Cell = tuple[str, str]


def null_view(results: Results) -> dict[str, Any] | None:
    """Return the part of the report on null masks; None where none were asked."""
    rows: tuple[NullRow, ...] = results.analyses.get("null", ())
    if not rows:
        return None
    heads = (("the mask", ""), ("null masks", "mean, 95 % of them"), ("p", "of the null"))
    lines = tuple((_name(row), _cells(row)) for row in rows)
    failing = [row.method for row in rows if row.statistic == DAMAGE and row.verdict == NO_BETTER]
    table = SimpleTable(heads, lines)
    return {"title": "Masks against masks for nobody", "table": table, "failing": failing}


def choice_view(results: Results) -> dict[str, Any] | None:
    """Return the part of the report on `alpha: auto`; None where no method has it."""
    rows: tuple[AlphaShare, ...] = results.analyses.get("alpha_choice", ())
    if not rows:
        return None
    places = [(name, form) for name in ("forget", "retain") for form in results.modalities]
    found = {(row.method, row.alpha, row.set, row.modality): row for row in rows}
    lines = []
    for method, alpha in dict.fromkeys((row.method, row.alpha) for row in rows):
        own = [found.get((method, alpha, *place)) for place in places]
        choice = next(row.choice for row in own if row is not None)
        name = f"{method}, {percent(alpha)} of neurons" if alpha else f"{method}, none removed"
        cells: list[Cell] = [
            ("–", "") if row is None else (percent(row.value), f"n = {row.n}") for row in own
        ]
        cells.append(("", "") if choice == OTHER else ("chosen", choice.removeprefix("chosen, ")))
        lines.append((name, tuple(cells)))
    heads = (*((f"{SET_TITLES[name]}, {modality}", "") for name, modality in places), ("", ""))
    return {
        "title": "The share of neurons, chosen",
        "table": SimpleTable(heads, tuple(lines)),
        "bounds": ", ".join(f"{100 * drop:g}" for drop in sorted({row.keep_drop for row in rows})),
        "beyond": sorted({row.method for row in rows if row.choice == CHOSEN_BEYOND}),
    }


def _name(row: NullRow) -> str:
    return row.method if row.statistic == DAMAGE else f"{row.method}: {row.statistic}"


def _cells(row: NullRow) -> tuple[Cell, ...]:
    unit, number = ("facts", _points) if row.statistic == DAMAGE else ("neurons", percent)
    made = "for other people" if row.null == PEOPLE else "at random"
    return (
        (number(row.value), f"n = {row.n:,} {unit}"),
        (number(row.null_mean), f"{number(row.null_low)} to {number(row.null_high)}"),
        (f"{row.p:.2g}", f"{row.verdict}, {row.groups} {made}"),
    )


def _points(value: float) -> str:
    return signed(100 * value, 1)

"""What the calibration set does to masks, as the report's table. Pure."""

from typing import Any

from manu_jax.evaluation.analyses.calibration import OWN, SIZE, CalibrationRow
from manu_jax.report.distances import SimpleTable
from manu_jax.report.numbers import percent
from manu_jax.report.results import Results

TITLES = {"own": "the run’s mask", "sample": "as many, drawn anew", "order": "another order"}


def view(results: Results) -> dict[str, Any] | None:
    """Return the part of the report on other calibration sets; None where none were tried."""
    rows: tuple[CalibrationRow, ...] = results.analyses.get("calibration", ())
    if not rows:
        return None
    groups: dict[tuple[str, str, float], list[CalibrationRow]] = {}
    for row in rows:
        groups.setdefault((row.method, row.kind, row.share), []).append(row)
    heads = (
        ("Jaccard", "with the run’s mask"),
        ("forget", "answered right"),
        ("kept", "answered right"),
    )
    lines = tuple(
        (_name(own[0]), (_jaccard(own), _cell(own, "forget"), _cell(own, "retain")))
        for own in groups.values()
    )
    return {"title": "The same masks from other facts to keep", "table": SimpleTable(heads, lines)}


def _name(row: CalibrationRow) -> str:
    what = TITLES.get(row.kind, "")
    if row.kind == SIZE:
        what = f"{100 * row.share:.0f}\u202f% of the kept people"
    return f"{row.method}: {what}"


def _jaccard(rows: list[CalibrationRow]) -> tuple[str, str]:
    if rows[0].kind == OWN:
        return "1", f"at random {rows[0].chance:.2f}"
    values = [row.jaccard for row in rows]
    mean = sum(values) / len(values)
    return f"{mean:.2f}", f"{min(values):.2f} to {max(values):.2f}, {len(rows)} draws"


def _cell(rows: list[CalibrationRow], name: str) -> tuple[str, str]:
    values = [getattr(row, name) for row in rows]
    count = getattr(rows[0], f"{name}_n")
    mean = sum(values) / len(values)
    if rows[0].kind == OWN:
        return percent(mean), f"n = {count}"
    return percent(mean), f"{percent(min(values))} to {percent(max(values))}"

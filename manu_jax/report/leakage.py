"""The leakage matrix as the report shows it: the finding in words, bars, a grid of facts. Pure."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from manu_jax.data.benchmarks import TRANSFORMED
from manu_jax.evaluation.analyses.leakage import STATES, FactState, Leakage, State
from manu_jax.evaluation.metrics import Interval
from manu_jax.report.nouns import further
from manu_jax.report.numbers import signed
from manu_jax.report.results import Results

MOST_PEOPLE = 20  # rows of the grid
# state → (name, sign in the grid)
LEGEND: dict[State, tuple[str, str]] = {
    "both": ("forgotten in both forms", "✓"),
    "image": ("still given away when asked by name", "N"),
    "text": ("still given away when shown", "P"),
    "neither": ("still given away in both", "●"),
}


@dataclasses.dataclass(frozen=True)
class Bar:
    """One model's facts by state, and its three figures as they are printed."""

    model: str
    counts: tuple[tuple[State, int], ...]
    total: int
    leakage: str
    gap: str
    reached: str


@dataclasses.dataclass(frozen=True)
class GridLine:
    """One person's facts under the headline method, one cell per attribute of the grid.

    A cell is (attribute, state, by a transformed image), or None where that fact was not judged.
    """

    name: str
    cells: tuple[tuple[str, State, bool] | None, ...]


def view(results: Results) -> dict[str, Any] | None:
    """Return what the section shows: the finding, a bar for each model, the headline's facts.

    None where facts have one form: there is no other path.
    """
    if results.absent:
        return None
    leakage = {row.model: row.found for row in results.analyses.get("leakage", ())}
    found = leakage.get(results.headline)
    attributes, lines = grid(found, dict(results.request.people))
    erase = str(results.config.get("erase", "both"))
    return {
        "finding": sentence(found, results.headline, erase, picture=further(results)[0]),
        "bars": bars(leakage),
        "attributes": attributes,
        "grid": lines,
        "num_people": len({fact.person for fact in found.facts}) if found else 0,
        "legend": LEGEND,
    }


def bars(leakage: Mapping[str, Leakage]) -> list[Bar]:
    """Return a line for each model that has judged facts."""
    return [
        Bar(
            model,
            tuple((state, one.count(state)) for state in STATES),
            len(one.facts),
            _text(one.leakage),
            _text(one.gap, sign="+"),
            _text(one.reached),
        )
        for model, one in leakage.items()
        if one.facts
    ]


def grid(
    leakage: Leakage | None, names: Mapping[str, str]
) -> tuple[tuple[str, ...], list[GridLine]]:
    """Return the attributes, and the facts of the first people, in the order they were asked in."""
    people: dict[str, dict[str, FactState]] = {}
    for fact in leakage.facts if leakage else ():
        people.setdefault(fact.person, {})[fact.key.partition("/")[2]] = fact
    shown = list(people.items())[:MOST_PEOPLE]
    attributes = tuple(dict.fromkeys(name for _, facts in shown for name in facts))
    lines = [
        GridLine(
            names.get(person, person),
            tuple(
                (name, facts[name].forgotten_in, facts[name].by_transformed)
                if name in facts
                else None
                for name in attributes
            ),
        )
        for person, facts in shown
    ]
    return attributes, lines


def sentence(
    leakage: Leakage | None, model: str, erase: str, *, picture: str = TRANSFORMED[0]
) -> str:
    """Return the finding in words. picture: how an image of the set `test` is called."""
    if leakage is None or not leakage.facts or leakage.reached is None:
        return "Not measured: no fact to forget was known before in both forms and asked in both."
    total = len(leakage.facts)
    goal = "forgotten in both forms" if erase == "both" else "forgotten when shown and kept by name"
    wanted: Sequence[State] = ("both",) if erase == "both" else ("image",)
    reached = sum(leakage.count(state) for state in wanted)
    parts = [
        f"{model}: of {_count(total)} that the model knew, {_are(reached)} {goal}, as was asked."
    ]
    if leakage.leakage is not None:
        leaking = leakage.count("image") + leakage.count("text")
        parts.append(
            f"Of the {leakage.leakage.n} forgotten in at least one form, {_are(leaking)} still "
            f"given away by the other: {leakage.count('image')} by name, "
            f"{leakage.count('text')} shown."
        )
    transformed = sum(fact.by_transformed for fact in leakage.facts)
    if transformed:
        parts.append(f"For {transformed}, only {picture} brings the answer back.")
    if leakage.num_unknown or leakage.num_unjudged:
        parts.append(
            f"Not counted: {_count(leakage.num_unknown)} that it did not know in both forms, "
            f"{leakage.num_unjudged} without a question in both."
        )
    return " ".join(parts)


def _count(number: int) -> str:
    return f"{number} fact{'s' * (number != 1)}"


def _are(number: int) -> str:
    return f"{number} {'is' if number == 1 else 'are'}"


def _text(interval: Interval | None, sign: str = "") -> str:
    if interval is None:
        return "–"
    value, low, high = (
        signed(100 * number, 0) if sign else f"{100 * number:.0f}"
        for number in (interval.value, interval.low, interval.high)
    )
    text = f"{value}\u202f%"
    return text if math.isnan(interval.low) else f"{text} ({low} to {high})"

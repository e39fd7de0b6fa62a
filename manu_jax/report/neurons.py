"""The neurons that methods changed, as a section of the report and as a page of their own. Pure."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manu_jax.evaluation.neurons.kept import (
    FORGET,
    KEPT,
    MASSIVE,
    OWN,
    Asked,
    Card,
    Looked,
    NeuronRow,
    kept_file,
    read_looked,
)
from manu_jax.report.distances import SimpleTable
from manu_jax.report.numbers import signed
from manu_jax.report.results import Results

PAGE = "neurons.html"
IN_REPORT = 8  # neurons of a method, in the report
CLEAR = 0.05  # a q up to here is marked
SHADES = 85  # percent of colour, of the largest change of a card
WORDS_SAID = {
    "removed": "removed",
    "scaled": "scaled",
    "written": "wrote",
}
SCORES = {
    True: "the method’s own score",
    False: "attribution, people to forget − others, in standard deviations over people",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One fact while a neuron is removed: its change, in words, and how it is coloured."""

    text: str
    colour: str
    shade: int


@dataclasses.dataclass(frozen=True)
class Grid:
    """The changes in one form: a line for each person, a cell for each attribute, None: no fact.

    A line is the person's name, the set, and the cells.
    """

    modality: str
    attributes: tuple[str, ...]
    lines: tuple[tuple[str, str, tuple[Cell | None, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Shown:
    """One neuron's card. values: what filters and sorting read of it."""

    card: Card
    identity: str
    title: str
    badges: tuple[str, ...]
    figures: tuple[tuple[str, str, str], ...]
    grids: tuple[Grid, ...]
    largest: str
    values: Mapping[str, str]


def load_all(directory: Path, results: Results) -> tuple[Looked, ...]:
    """Return what the run's folder holds of the neurons that results.json has rows of."""
    names = dict.fromkeys(row.method for row in results.analyses.get("single_neurons", ()))
    return tuple(read_looked(directory / kept_file(name)) for name in names)


def section(results: Results) -> dict[str, Any] | None:
    """Return the report's section; None where no neurons were looked at."""
    rows: tuple[NeuronRow, ...] = results.analyses.get("single_neurons", ())
    if not rows:
        return None
    methods = dict.fromkeys(row.method for row in rows)
    return {
        "page": PAGE,
        "most": IN_REPORT,
        "methods": [
            (name, _table([row for row in rows if row.method == name]), words)
            for name in methods
            for words in [sentence([row for row in rows if row.method == name])]
        ],
    }


def sentence(rows: Sequence[NeuronRow]) -> str:
    """Return in words what the neurons of one method are, taken one by one."""
    first = rows[0]
    clear = sum(row.q <= CLEAR for row in rows)
    massive = sum(row.is_massive for row in rows)
    most = max(rows, key=lambda row: abs(row.forget))
    looked = "the foremost one is" if len(rows) == 1 else f"the foremost {len(rows)} are"
    parts = [
        f"{first.method} {WORDS_SAID[first.change]} {first.total:,} "
        f"neuron{'s' * (first.total != 1)}; {looked} looked at.",
        f"{clear or 'None'} of them {'scores' if clear == 1 else 'score'} otherwise for the people "
        f"to forget than for others (q ≤ {CLEAR} among {first.labellings:,} other labellings of "
        f"{first.people} people).",
        f"Taken out alone, {most.place} changes the answers to forget most: by "
        f"{_change(most.forget)} nats per token.",
    ]
    if massive:
        parts.append(f"{massive} have massive activations, which say little about any fact.")
    return " ".join(parts)


def page(looked: Sequence[Looked]) -> dict[str, Any]:
    """Return the variables of the page's template."""
    methods = []
    for one in looked:
        rows = [card.row for card in one.cards]
        methods.append(
            {
                "name": one.method,
                "sentence": sentence(rows),
                "ordered_by": one.ordered_by,
                "scored_by": SCORES[rows[0].scored_by == OWN],
                "whole": tuple(
                    (title, _change(value)) for title, value in _means(one.asked, one.whole)
                ),
                "cards": [_shown(one, card) for card in one.cards],
                "pictures": one.pictures,
                "names": one.names,
            }
        )
    cards = [shown for method in methods for shown in method["cards"]]
    return {
        "methods": methods,
        "count": len(cards),
        "towers": sorted({shown.card.row.tower for shown in cards}),
        "layers": sorted({shown.card.row.layer for shown in cards}),
        "massive": f"{MASSIVE:,.0f}",
        "clear": CLEAR,
        "has_massive": any(shown.card.row.is_massive for shown in cards),
    }


def grids(asked: Sequence[Asked], changes: Sequence[float], names: Mapping[str, str]) -> list[Grid]:
    """Return the changes of facts as one grid for each form, people to forget first."""
    largest = max(map(abs, changes), default=0.0) or 1.0
    found = []
    for modality in dict.fromkeys(one.modality for one in asked):
        own = {
            (one.person, one.attribute): (one, change)
            for one, change in zip(asked, changes, strict=True)
            if one.modality == modality
        }
        people = {person: one.set for (person, _), (one, _) in own.items()}
        attributes = tuple(dict.fromkeys(attribute for _, attribute in own))
        lines = tuple(
            (
                names.get(person, person),
                where,
                tuple(
                    _cell(own[person, name][1], f"{name}, {modality}", largest)
                    if (person, name) in own
                    else None
                    for name in attributes
                ),
            )
            for person, where in sorted(people.items(), key=lambda one: one[1] != FORGET)
        )
        found.append(Grid(modality, attributes, lines))
    return found


def _cell(change: float, what: str, largest: float) -> Cell:
    colour = "loss" if change < 0 else "gain"
    return Cell(f"{what}: {_change(change)}", colour, round(SHADES * abs(change) / largest))


def _shown(looked: Looked, card: Card) -> Shown:
    row = card.row
    badges = [f"q ≤ {CLEAR}"] * (row.q <= CLEAR) + ["massive"] * row.is_massive
    largest = max(map(abs, card.changes), default=0.0)
    return Shown(
        card=card,
        identity=f"{looked.method}-{row.tower}-{row.layer}-{row.neuron}",
        title=f"{row.tower}, layer {row.layer}, neuron {row.neuron}",
        badges=tuple(badges),
        figures=_figures(row),
        grids=tuple(grids(looked.asked, card.changes, looked.names)),
        largest=f"{largest:.2g}",
        values={
            "method": looked.method,
            "tower": row.tower,
            "layer": str(row.layer),
            "strength": f"{row.strength:.6g}",
            "score": f"{abs(row.score):.6g}",
            "p": f"{row.p:.6g}",
            "q": f"{row.q:.6g}",
            "effect": f"{abs(row.forget):.6g}",
            "massive": "1" if row.is_massive else "0",
        },
    )


def _figures(row: NeuronRow) -> tuple[tuple[str, str, str], ...]:
    """Return (title, number, small print) of what is told of a neuron."""
    words = ("words to forget", "–", "no words, or too few")
    if row.words is not None:
        words = ("words to forget", signed(row.words, 2), f"p {row.words_p:.2g}, against matched")
    kept = ("alone out: kept", "–", "")
    if row.kept is not None:
        small = f"{_range(row.kept_low, row.kept_high)} n = {row.kept_n}"
        kept = ("alone out: kept", _change(row.kept), small)
    return (
        ("score", _score(row), f"p {row.p:.2g} · q {row.q:.2g} · any {row.p_any:.2g}"),
        (
            "alone out: forget",
            _change(row.forget),
            f"{_range(row.forget_low, row.forget_high)} n = {row.forget_n}",
        ),
        kept,
        words,
        ("largest size", f"{row.peak:,.0f} ×", "the median of its layer"),
    )


def _table(rows: Sequence[NeuronRow]) -> SimpleTable:
    """Return the neurons that change the answers to forget most when they alone are removed."""
    heads = (
        ("score", "p, q"),
        ("forget", "nats a token, alone out"),
        ("kept", "nats a token, alone out"),
        ("words", "to forget, against others"),
    )
    lines = tuple(
        (row.place, tuple((number, small) for _, number, small in _figures(row)[:4]))
        for row in sorted(rows, key=lambda row: -abs(row.forget))[:IN_REPORT]
    )
    return SimpleTable(heads, lines)


def _means(asked: Sequence[Asked], changes: Sequence[float]) -> list[tuple[str, float]]:
    """Return the mean change over the facts of each set that was asked."""
    found = []
    for name, title in ((FORGET, "to forget"), (KEPT, "kept")):
        own = [change for one, change in zip(asked, changes, strict=True) if one.set == name]
        if own:
            found.append((title, sum(own) / len(own)))
    return found


def _score(row: NeuronRow) -> str:
    return f"{row.score:.3g}" if row.scored_by == OWN else signed(row.score, 2)


def _range(low: float | None, high: float | None) -> str:
    return "one person," if low is None or high is None else f"{_change(low)} to {_change(high)},"


def _change(value: float) -> str:
    """Return a change in nats, with its sign."""
    return signed(value, 3)

"""Results → what the report shows: formatted tables, tiles, people. Pure; no files, no drawing."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from manu_jax.evaluation.analyses.alpha_choice import OTHER
from manu_jax.evaluation.metrics import METRICS, NATS
from manu_jax.evaluation.tasks import TASKS_BY_NAME
from manu_jax.report.inputs import Item, Place
from manu_jax.report.nouns import several
from manu_jax.report.results import Results, Row
from manu_jax.types import FORGET_SETS, MODALITIES, RETRAINED, SETS, VANILLA

NARROW_SPACE = "\u202f"
NOT_MEASURED = "not measured"

# The metric that represents a task, by preference; tables of the others are folded away.
MAIN_METRICS = {
    "classification": ("accuracy",),
    "cloze": ("accuracy",),
    "generation": ("exact", "rougeL"),
    "likelihood": ("log_likelihood",),
}
TASK_TITLES = {
    "classification": "Multiple choice",
    "cloze": "Fill in the blank",
    "generation": "Free answers",
    "likelihood": "Likelihood of the true answer",
}
SET_TITLES = {
    "forget": "Forget",
    "test": "Test",
    "retain": "Retain (used)",
    "unseen": "Retain (unseen)",
    "celebrity": "Celebrities",
    "general": "General",
}
ASKED = {"image": "asked with the portrait", "text": "asked by name"}
MODEL_NOTES = {VANILLA: "before", RETRAINED: "never saw them", "random": "same size"}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number of a table as it is printed; `n` where it differs from the column's."""

    value: str
    interval: str = ""
    n: str = ""


@dataclasses.dataclass(frozen=True)
class Column:
    set: str
    modality: str
    n: str  # "n = 40", or "" where the models differ


@dataclasses.dataclass(frozen=True)
class Line:
    model: str
    note: str
    is_headline: bool
    cells: tuple[Cell | None, ...]  # None: not measured


@dataclasses.dataclass(frozen=True)
class Table:
    """One metric of one task: a line per model, a column per set and modality."""

    task: str
    metric: str
    title: str
    unit: str
    groups: tuple[tuple[str, str, int], ...]  # (set's title, direction, columns)
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    @property
    def short_title(self) -> str:
        return METRICS[self.metric].title

    @property
    def is_complete(self) -> bool:
        return all(cell is not None for line in self.lines for cell in line.cells)


@dataclasses.dataclass(frozen=True)
class Tile:
    """One number at a glance: before, after, and the retrained model (shares or None)."""

    title: str
    subtitle: str
    before: float | None
    after: float | None
    reference: float | None
    used: float | None = None  # after, on the people to keep that the method was given

    @property
    def after_text(self) -> str:
        return percent(self.after)

    @property
    def notes(self) -> list[str]:
        others = (("retrained", self.reference), ("used ones", self.used))
        known = [f"{name} {percent(value)}" for name, value in others if value is not None]
        return [f"before {percent(self.before)}", *known]


@dataclasses.dataclass(frozen=True)
class PersonChange:
    """One person's share of right answers in one modality; None where it was not measured."""

    person: str
    name: str
    before: float
    after: float
    reference: float | None
    n: int


def percent(value: float | None) -> str:
    """Return a share as "93.1 %" with a narrow space that does not break."""
    return NOT_MEASURED if value is None else f"{100 * value:.1f}{NARROW_SPACE}%"


def points(difference: float) -> str:
    """Return a difference of shares as "12.3 points"."""
    return f"{abs(100 * difference):.1f} points"


def signed(value: float, decimals: int) -> str:
    """Return a number with its sign, a true minus, and no sign where it is shown as 0."""
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def interval_text(row: Row) -> str:
    """Return "88–97", one digit less than the value has, or "" where there is no interval."""
    if row.low is None or row.high is None:
        return ""
    if METRICS[row.metric].is_share:
        return f"{100 * row.low:.0f}–{100 * row.high:.0f}"
    if row.low >= 0:
        return f"{row.low:.2f}–{row.high:.2f}"
    return f"{row.low:.1f} to {row.high:.1f}".replace("-", "−").replace("−0.0", "0.0")


def number(value: float, metric: str) -> str:
    """Return a value as its metric is printed: shares in percent, likelihood with two decimals."""
    if METRICS[metric].is_share:
        return f"{100 * value:.1f}"
    text = f"{value:.2f}" if METRICS[metric].unit == NATS else f"{value:.3f}"
    return text.replace("-", "−")


def direction(metric: str, where: str) -> str:
    """Return which values of a metric are better on a set: of what is to be kept, or forgotten."""
    is_higher = METRICS[metric].higher_is_better == (where not in FORGET_SETS)
    return "higher is better" if is_higher else "lower is better"


def main_metrics(results: Results) -> dict[str, str]:
    """Return {task: the metric that represents it}, for the tasks that have rows."""
    chosen = {}
    for task in TASK_TITLES:
        present = list(dict.fromkeys(row.metric for row in results.rows if row.task == task))
        if present:
            wanted = [metric for metric in MAIN_METRICS[task] if metric in present]
            chosen[task] = (wanted or present)[0]
    return chosen


def kinds_of_question(results: Results) -> dict[str, str]:
    """Return {task: metric} of the tasks whose main metric is a share of right answers."""
    chosen = main_metrics(results)
    return {task: metric for task, metric in chosen.items() if METRICS[metric].is_share}


def share_right(results: Results, model: str, place: tuple[str, str]) -> float | None:
    """Return a model's share of right answers at (set, modality), averaged over kinds of question.

    Only kinds that were asked before and after count; None where the model lacks one of them, or
    where there are none.
    """
    where, modality = place
    values = [
        None if row is None else row.value
        for task, metric in kinds_of_question(results).items()
        if _was_compared(results, (where, task, modality), metric)
        for row in (results.row(model, (where, task, modality), metric),)
    ]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def kept_set(results: Results) -> str:
    """Return the set that tells what was kept: unseen, or retain where unseen was not measured."""
    return "unseen" if any(row.set == "unseen" for row in results.rows) else "retain"


def tables(results: Results) -> tuple[list[Table], list[Table]]:
    """Return the tables of the main metrics, and those of all other metrics."""
    chosen = main_metrics(results)
    pairs = list(dict.fromkeys((row.task, row.metric) for row in results.rows))
    pairs.sort(key=lambda pair: list(TASK_TITLES).index(pair[0]))
    main = [_table(results, task, chosen[task]) for task in TASK_TITLES if task in chosen]
    others = [_table(results, *pair) for pair in pairs if chosen[pair[0]] != pair[1]]
    return main, others


def tiles(results: Results) -> list[Tile]:
    """Return the people to forget and to keep in both modalities, over all kinds of question."""
    if not kinds_of_question(results):
        return []
    kept, others = kept_set(results), several(results)
    after = functools.partial(share_right, results, results.headline)
    return [
        Tile(
            title=title,
            subtitle=ASKED[modality],
            before=share_right(results, VANILLA, (where, modality)),
            after=after((where, modality)),
            reference=share_right(results, RETRAINED, (where, modality)),
            used=after(("retain", modality)) if where == "unseen" else None,
        )
        for where, title in (
            ("forget", f"Right on {others} to forget"),
            (kept, f"Right on {'unseen ' if kept == 'unseen' else ''}{others} to keep"),
        )
        for modality in results.modalities
    ]


def people(
    results: Results, items: Mapping[Place, Sequence[Item]]
) -> dict[str, list[PersonChange]]:
    """Return {modality: each forget person's share right before, after and retrained}.

    They are averages over the kinds of question, in the order of the request.
    """
    changes: dict[str, list[PersonChange]] = {}
    for modality in MODALITIES:
        kinds = {
            task: TASKS_BY_NAME[task].metrics[metric]
            for task, metric in kinds_of_question(results).items()
            if _was_compared(results, ("forget", task, modality), metric)
        }
        before, after, reference = (
            _means([(items.get((m, "forget", task, modality), ()), kinds[task]) for task in kinds])
            for m in (VANILLA, results.headline, RETRAINED)
        )
        lines = [
            PersonChange(
                person=identity,
                name=name,
                before=before[identity][0],
                after=after[identity][0],
                reference=reference[identity][0] if identity in reference else None,
                n=after[identity][1],
            )
            for identity, name in results.request.people
            if identity in before and identity in after
        ]
        if lines:
            changes[modality] = lines
    return changes


def item_range(changes: Mapping[str, Sequence[PersonChange]]) -> str:
    """Return how many questions one person's share is over: "5", or "4 to 5"."""
    sizes = sorted({line.n for lines in changes.values() for line in lines})
    return "" if not sizes else str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def facts(results: Results) -> list[tuple[str, str]]:
    """Return the facts under the title, from the config: method, α, benchmark, model, seed."""
    config = results.config
    method, data, model = (config.get(key) or {} for key in ("method", "data", "model"))
    known = [("Method", results.headline)]
    if "alpha" in method and method_name(method) == results.headline:
        known.append(("Neurons removed", _share_removed(results, method)))
    if data.get("benchmark"):
        known.append(("Benchmark", str(data["benchmark"])))
    if results.kept is not None:
        sizes = f"{len(results.kept.used)} used, {len(results.kept.unseen)} unseen"
        known.append((f"{several(results)} to keep".capitalize(), sizes))
    if config.get("model") is not None:
        known.append(("Model", str(model.get("path") or "trained by this run")))
    if "seed" in config:
        known.append(("Seed", str(config["seed"])))
    return known


def _share_removed(results: Results, method: Mapping[str, Any]) -> str:
    """Return a method's α in percent; of `alpha: auto` the one that was chosen."""
    if method["alpha"] != "auto":
        return f"{100 * method['alpha']:g}{NARROW_SPACE}%"
    rows = results.analyses.get("alpha_choice", ())
    own = (row for row in rows if row.method == method_name(method) and row.choice != OTHER)
    chosen = next(own, None)
    return "chosen" if chosen is None else f"{100 * chosen.alpha:g}{NARROW_SPACE}%, chosen"


def method_name(method: Mapping[str, Any]) -> str | None:
    """Return the name of a method in a run's config; `preset` was its key before `name`."""
    return method.get("name", method.get("preset"))


def chance(results: Results, items: Mapping[Place, Sequence[Item]], task: str) -> float | None:
    """Return what guessing gets right: 1 / options, 0 for a blank, None for free answers."""
    if task == "classification":
        shares = [
            1 / len(item["options"])
            for (model, where, name, _), records in items.items()
            if (model, where, name) == (results.headline, "forget", task)
            for item in records
            if item.get("options")
        ]
        return sum(shares) / len(shares) if shares else None
    return 0.0 if task == "cloze" else None


def model_note(model: str, results: Results) -> str:
    """Return the small print beside a model's name: its role, or its α."""
    if model in MODEL_NOTES and model != "random":
        return MODEL_NOTES[model]
    config = results.config
    for method in (config.get("method"), *(config.get("compare") or ())):
        if isinstance(method, dict) and method_name(method) == model and "alpha" in method:
            return f"α = {_share_removed(results, method)}"
    return MODEL_NOTES.get(model, "")


def _table(results: Results, task: str, metric: str) -> Table:
    rows = [row for row in results.rows if (row.task, row.metric) == (task, metric)]
    places = [
        (where, modality)
        for where in SETS
        for modality in MODALITIES
        if any((row.set, row.modality) == (where, modality) for row in rows)
    ]
    by_name = {(row.model, row.set, row.modality): row for row in rows}
    columns = []
    for where, modality in places:
        sizes = {row.n for row in rows if (row.set, row.modality) == (where, modality)}
        columns.append(Column(where, modality, f"n = {sizes.pop():,}" if len(sizes) == 1 else ""))
    lines = []
    for model in results.models:
        cells = [
            _cell(by_name.get((model, column.set, column.modality)), column) for column in columns
        ]
        note = model_note(model, results)
        lines.append(Line(model, note, model == results.headline, tuple(cells)))
    groups = tuple(
        (
            SET_TITLES[where],
            direction(metric, where),
            sum(column.set == where for column in columns),
        )
        for where in SETS
        if any(column.set == where for column in columns)
    )
    title = TASK_TITLES[task]
    if metric != main_metrics(results)[task] or task == "generation":
        title += f": {METRICS[metric].title}"
    return Table(task, metric, title, METRICS[metric].unit, groups, tuple(columns), tuple(lines))


def _cell(row: Row | None, column: Column) -> Cell | None:
    if row is None:
        return None
    size = "" if column.n else f"n = {row.n:,}"
    if row.value is None:
        return Cell("not measurable", "", size)
    return Cell(number(row.value, row.metric), interval_text(row), size)


def _was_compared(results: Results, place: tuple[str, str, str], metric: str) -> bool:
    return all(results.row(model, place, metric) for model in (VANILLA, results.headline))


def _means(parts: Sequence[tuple[Sequence[Item], str]]) -> dict[str, tuple[float, int]]:
    """Return {person: (mean over the parts of their means, number of items)}.

    parts: items, and the field of an item that is averaged. Who is not in all parts is left out.
    """
    values: dict[str, list[list[float]]] = {}
    for number, (items, field) in enumerate(parts):
        for item in items:
            of_person = values.setdefault(str(item["person"]), [[] for _ in parts])
            of_person[number].append(float(item[field]))
    return {
        person: (sum(sum(v) / len(v) for v in of) / len(of), sum(map(len, of)))
        for person, of in values.items()
        if all(of)
    }

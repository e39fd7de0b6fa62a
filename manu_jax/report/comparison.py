"""Several runs of the same methods, pooled: one row per share, model and question. No jax.

The people of different seeds are different people, so they are pooled, and the intervals are by
bootstrap over all of them. They say how far the numbers hold for other people; that each seed is
another training is in them only as far as its people differ.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manu_jax.evaluation.analyses.differences import differences
from manu_jax.evaluation.analyses.distances import KL, KL_SETS, KS
from manu_jax.evaluation.analyses.leakage import FIGURES, Leakage, find_leakage
from manu_jax.evaluation.distance import compare_truth_ratios
from manu_jax.evaluation.metrics import Interval, bootstrap, measured
from manu_jax.evaluation.plain import plain_interval, to_plain
from manu_jax.evaluation.suite import stored_records
from manu_jax.evaluation.tasks import TASKS_BY_NAME
from manu_jax.report.numbers import SET_TITLES
from manu_jax.types import MODALITIES, RETRAINED, VANILLA, ManuError

SETS_SHOWN = ("forget", "unseen", "retain")  # columns of the table: free answers in both forms


@dataclasses.dataclass(frozen=True)
class Cell:
    """A finished run."""

    seed: int
    share: int
    folder: Path


def compare_cells(cells: Sequence[Cell], resamples: int = 1000) -> dict[str, Any]:
    """Return {"seeds", "rows", "differences", "leakage", "distances"}, each entry with its share.

    rows: {share, model, set, task, modality, metric, value, n, low, high}, as in results.json, over
    the people of all seeds. differences: the same against "vanilla" and "retrained". leakage:
    {share, model, facts, both, leakage, gap, reached}. distances: {share, model, set, modality,
    metric, value, …}: "kl" with the values of each seed, "ks" over all items.
    Raises ManuError where runs have different models or no results.
    """
    found: dict[str, Any] = {"seeds": sorted({cell.seed for cell in cells})}
    for name in ("rows", "differences", "leakage", "distances"):
        found[name] = []
    for share in sorted({cell.share for cell in cells}):
        own = [cell for cell in cells if cell.share == share]
        results = [_results(cell) for cell in own]
        models = results[0]["models"]
        if any(one["models"] != models for one in results):
            raise ManuError(f"share {share}: the runs have different models; compare equal ones.")
        records = {model: _pooled(own, model) for model in models}
        for model in models:
            for place, items in records[model].items():
                found["rows"] += [
                    {"share": share, "model": model, **row}
                    for row in _rows(place, items, resamples)
                ]
            leakage = find_leakage(records[model], records[VANILLA], resamples=resamples)
            found["leakage"].append(
                {
                    "share": share,
                    "model": model,
                    "facts": len(leakage.facts),
                    "forgotten": _plain(_share_of_both(leakage, resamples)),
                    **{name: _plain(getattr(leakage, name)) for name in FIGURES},
                }
            )
            found["distances"] += [
                {"share": share, **one} for one in _distances(model, results, records)
            ]
        for against in (VANILLA, RETRAINED):
            if against in models:
                found["differences"] += [
                    {"share": share, **to_plain(one)} for one in differences(records, against)
                ]
    return found


def to_markdown(compared: Mapping[str, Any]) -> str:
    """Return a table per share: free answers that hold the truth, leakage, distance."""
    lines = []
    for share in sorted({row["share"] for row in compared["rows"]}):
        lines += _table(compared, share)
    return "\n".join(lines)


def _results(cell: Cell) -> dict[str, Any]:
    path = cell.folder / "results.json"
    if not path.exists():
        raise ManuError(f"{path}: not there; the run of this cell has not ended.")
    return json.loads(path.read_text(encoding="utf-8"))


def _pooled(cells: Sequence[Cell], model: str) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Return the records of all cells; people and facts are told apart by their seed."""
    pooled: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        for place, items in stored_records(cell.folder / "evaluation" / model).items():
            pooled.setdefault(place, []).extend(
                {**item, **{name: f"{cell.seed}/{item[name]}" for name in ("person", "key")}}
                for item in items
            )
    return pooled


def _rows(
    place: tuple[str, str, str], items: Sequence[Mapping[str, Any]], resamples: int
) -> list[dict[str, Any]]:
    where = dict(zip(("set", "task", "modality"), place, strict=True))
    return [
        {
            **where,
            "metric": metric,
            **plain_interval(bootstrap(values, people, resamples=resamples)),
        }
        for metric, field in TASKS_BY_NAME[place[1]].metrics_in(items[0]).items()
        for values, people in (measured(items, field),)
        if values
    ]


def _share_of_both(leakage: Leakage, resamples: int) -> Interval | None:
    if not leakage.facts:
        return None
    values = [float(fact.forgotten_in == "both") for fact in leakage.facts]
    return bootstrap(values, [fact.person for fact in leakage.facts], resamples=resamples)


def _distances(
    model: str, results: Sequence[Mapping[str, Any]], records: Mapping[str, Any]
) -> list[dict[str, Any]]:
    found = []
    for modality in MODALITIES:
        for name in KL_SETS:
            place = {"model": model, "set": name, "modality": modality, "metric": KL}
            values = [
                one["value"]
                for result in results
                for one in result["distances"]
                if place.items() <= one.items()
            ]
            if values:
                mean = sum(values) / len(values)
                found.append({**place, "value": mean, "by_seed": values})
        where = ("forget", "classification", modality)
        if RETRAINED in records and where in records[model]:
            test = compare_truth_ratios(records[model][where], records[RETRAINED][where])
            if test is not None:
                place = {"model": model, "set": "forget", "modality": modality, "metric": KS}
                found.append({**place, **dataclasses.asdict(test)})
    return found


def _plain(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else plain_interval(interval)


def _table(compared: Mapping[str, Any], share: int) -> list[str]:
    def of(name: str, **where: Any) -> dict[str, Any] | None:
        wanted = {"share": share, **where}.items()
        return next((one for one in compared[name] if wanted <= one.items()), None)

    own = [row for row in compared["rows"] if row["share"] == share]
    models = list(dict.fromkeys(row["model"] for row in own))
    sets = [name for name in SETS_SHOWN if any(row["set"] == name for row in own)]
    columns = [(name, modality) for name in sets for modality in MODALITIES]
    head = [
        "model",
        *(f"{SET_TITLES[name].lower()}, {modality}" for name, modality in columns),
        "facts forgotten in both forms",
        "leakage",
        "KL from retrained on forget, image / text",
        "truth ratio, KS distance, image / text",
    ]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    sizes = dict.fromkeys(sets, 0)
    for model in models:
        cells = []
        for name, modality in columns:
            row = of("rows", model=model, set=name, task="generation", modality=modality,
                     metric="exact")  # fmt: skip
            cells.append(_percent(row))
            sizes[name] = row["n"] if row else 0
        leakage = of("leakage", model=model) or {}
        cells += [_percent(leakage.get("forgotten")), _percent(leakage.get("leakage"))]
        for metric in (KL, KS):
            values = [
                of("distances", model=model, set="forget", modality=m, metric=metric)
                for m in MODALITIES
            ]
            cells.append(
                " / ".join("–" if one is None else f"{one['value']:.2f}" for one in values)
            )
        lines.append(f"| {model} | {' | '.join(cells)} |")
    facts = max(one["facts"] for one in compared["leakage"] if one["share"] == share)
    counts = ", ".join(f"{SET_TITLES[name].lower()} n = {sizes[name]}" for name in sets)
    if "unseen" in sets:
        given = "No method was given the people of retain (unseen)."
    else:
        given = "Methods were given all people of retain: keeping was not measured on others."
    note = (
        f"{share} % to forget, seeds {', '.join(map(str, compared['seeds']))}. Free answers that "
        f"hold the truth in %, {counts} in each form; "
        f"facts n = {facts}; 95 % intervals by bootstrap over the people of all seeds; KL in "
        f"nats, mean of the seeds. {given}"
    )
    return [*lines, "", note, ""]


def _percent(values: Mapping[str, Any] | None) -> str:
    if values is None:
        return "–"
    text = f"{100 * values['value']:.0f}"
    if values["low"] is None:
        return f"{text} (n = {values['n']})"
    return f"{text} ({100 * values['low']:.0f}–{100 * values['high']:.0f})"

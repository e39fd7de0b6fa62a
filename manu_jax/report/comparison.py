"""Several runs of the same methods, pooled: one row per share, model and question. No jax.

The people of all seeds are pooled, and the intervals are by bootstrap over all of them. Where the
run draws the people by its seed they are different people; those of a benchmark's files are the
same, and each is one in the bootstrap. The intervals say how far the numbers hold for other people;
that each seed is another training is in them only as far as its people differ.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from manu_jax.data.benchmarks import BENCHMARKS
from manu_jax.evaluation.analyses.ability import CHAT_KL, COMPLETED, ENGLISH
from manu_jax.evaluation.analyses.differences import differences
from manu_jax.evaluation.analyses.distances import KL, KL_SETS, KS
from manu_jax.evaluation.analyses.leakage import FIGURES, Leakage, find_leakage
from manu_jax.evaluation.distance import compare_truth_ratios
from manu_jax.evaluation.metrics import Interval, bootstrap, measured
from manu_jax.evaluation.plain import plain_interval, to_plain
from manu_jax.evaluation.suite import stored_records
from manu_jax.evaluation.tasks import TASKS_BY_NAME
from manu_jax.report.audit import verdicts
from manu_jax.report.numbers import SET_TITLES
from manu_jax.report.results import Results, load_results
from manu_jax.types import MODALITIES, RETRAINED, VANILLA, ManuError

SETS_SHOWN = ("forget", "unseen", "retain")  # columns of the table: free answers in both forms
FREE_ANSWERS = {"task": "generation", "metric": "exact"}
CHOICE = {"task": "classification", "metric": "accuracy"}
NONE = "–"  # of what was not measured
AREA = "area"  # the metric of the audit's rows that the table shows
LISTS = ("rows", "scores", "differences", "leakage", "distances", "areas", "verdicts")
LISTS += ("ability", "seconds")
ABILITY = {ENGLISH: "English", COMPLETED: "completions", CHAT_KL: "chat"}  # columns, where measured


@dataclasses.dataclass(frozen=True)
class Cell:
    """A finished run."""

    seed: int
    share: int
    folder: Path


def compare_cells(cells: Sequence[Cell], resamples: int = 1000) -> dict[str, Any]:
    """Return {"seeds", "same_people", "rows", "scores", …}, each entry with its share and model.

    rows: {set, task, modality, metric, value, n, low, high}, as in results.json, over the people of
    all seeds. scores: {value, set}: free answers that hold the truth, on the people to keep (`set`:
    the unseen ones, if there are any) minus on those to forget, mean over both forms. differences:
    of rows, against "vanilla" and "retrained". leakage: {facts, both, leakage, gap, reached}.
    distances: {set, modality, metric, value, …}: "kl" with the values of each seed, "ks" over all
    items. areas: {modality, value, by_seed, variants}: what relearning brings back, mean over its
    variants and the seeds; of the retrained model too. verdicts: {modality, by_seed}: the words of
    each audit. seconds: {value, by_seed}: of what made the method. ability: {measure, value,
    by_seed}: English, completions and chat, of models that can answer. Models that were not
    audited, or not made, have no entry. Raises ManuError where runs have different models or no
    results.
    """
    found: dict[str, Any] = {"seeds": sorted({cell.seed for cell in cells}), "same_people": False}
    found |= {name: [] for name in LISTS}
    for share in sorted({cell.share for cell in cells}):
        own = [cell for cell in cells if cell.share == share]
        results = [_results(cell) for cell in own]
        models, goal = list(results[0].models), results[0].config.get("erase", "both")
        if any(list(one.models) != models for one in results):
            raise ManuError(f"share {share}: the runs have different models; compare equal ones.")
        found["same_people"] = _are_same_people(results[0])
        records = {model: _pooled(own, results, model) for model in models}
        for model in models:
            rows = [
                row
                for place, items in records[model].items()
                for row in _rows(place, items, resamples)
            ]
            leakage = find_leakage(
                records[model], records[VANILLA], erase=goal, resamples=resamples
            )
            parts = {
                "rows": rows,
                "scores": _scores(rows),
                "leakage": [
                    {
                        "facts": len(leakage.facts),
                        "forgotten": _plain(_share_of_both(leakage, resamples)),
                        **{name: _plain(getattr(leakage, name)) for name in FIGURES},
                    }
                ],
                "distances": _distances(model, results, records),
                "areas": _areas(model, results),
                "verdicts": _verdicts(model, results),
                "seconds": _seconds(model, results),
                "ability": _ability(model, results),
            }
            for name, entries in parts.items():
                found[name] += [{"share": share, "model": model, **one} for one in entries]
        for against in (VANILLA, RETRAINED):
            if against in models:
                found["differences"] += [
                    {"share": share, **to_plain(one)} for one in differences(records, against)
                ]
    return found


def to_markdown(compared: Mapping[str, Any]) -> str:
    """Return a table per share; methods that keep more than they leave of what is to go are first.

    Forms stand in one cell, "image / text".
    """
    lines = []
    for share in sorted({row["share"] for row in compared["rows"]}):
        lines += _table(compared, share)
    return "\n".join(lines)


def _results(cell: Cell) -> Results:
    path = cell.folder / "results.json"
    if not path.exists():
        raise ManuError(f"{path}: not there; the run of this cell has not ended.")
    return load_results(cell.folder)


def _are_same_people(results: Results) -> bool:
    """Whether the people of a benchmark stay the same with another seed: the run draws none."""
    data = results.config.get("data", {})
    return bool(data.get("path")) or BENCHMARKS[data.get("benchmark", "synthetic")].write is None


def _pooled(
    cells: Sequence[Cell], results: Sequence[Results], model: str
) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Return the records of all cells; facts are told apart by their seed, and so are people who
    are others for each."""
    told = ("key",) if _are_same_people(results[0]) else ("person", "key")
    pooled: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for cell, result in zip(cells, results, strict=True):
        section = result.config.get("evaluate", {})
        asked = {name: section[name] for name in ("sets", "tasks") if name in section}
        for place, items in stored_records(cell.folder / "evaluation" / model, **asked).items():
            pooled.setdefault(place, []).extend(
                {**item, **{name: f"{cell.seed}/{item[name]}" for name in told}} for item in items
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


def _scores(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    shares: dict[str, list[float]] = collections.defaultdict(list)
    for row in rows:
        if row.items() >= FREE_ANSWERS.items():
            shares[row["set"]].append(row["value"])
    means = {name: sum(values) / len(values) for name, values in shares.items()}
    kept = next((name for name in ("unseen", "retain") if name in means), None)
    if kept is None or "forget" not in means:
        return []
    return [{"value": means[kept] - means["forget"], "set": kept}]


def _share_of_both(leakage: Leakage, resamples: int) -> Interval | None:
    if not leakage.facts:
        return None
    values = [float(fact.forgotten_in == "both") for fact in leakage.facts]
    return bootstrap(values, [fact.person for fact in leakage.facts], resamples=resamples)


def _distances(
    model: str, results: Sequence[Results], records: Mapping[str, Any]
) -> list[dict[str, Any]]:
    found = []
    for modality in MODALITIES:
        for name in KL_SETS:
            wanted = (model, name, modality, KL, RETRAINED)
            values = [
                one.value
                for result in results
                for one in result.analyses["distances"]
                if (one.model, one.set, one.modality, one.metric, one.reference) == wanted
            ]
            if values:
                place = {"set": name, "modality": modality, "metric": KL}
                found.append({**place, **_over_seeds(values)})
        where = ("forget", "classification", modality)
        if RETRAINED in records and where in records[model]:
            test = compare_truth_ratios(records[model][where], records[RETRAINED][where])
            if test is not None:
                place = {"set": "forget", "modality": modality, "metric": KS}
                found.append({**place, **dataclasses.asdict(test)})
    return found


def _areas(model: str, results: Sequence[Results]) -> list[dict[str, Any]]:
    """Return what relearning brings back of each form; the floor is the retrained model's."""
    found = []
    for modality in MODALITIES:
        by_seed: list[float] = []
        variants: dict[str, list[float]] = collections.defaultdict(list)
        for result in results:
            areas = _areas_of(model, modality, result.analyses["audit"])
            if areas:
                by_seed.append(sum(areas.values()) / len(areas))
            for variant, value in areas.items():
                variants[variant].append(value)
        if by_seed:
            means = {name: sum(values) / len(values) for name, values in variants.items()}
            found.append({"modality": modality, **_over_seeds(by_seed), "variants": means})
    return found


def _areas_of(model: str, modality: str, rows: Iterable[Any]) -> dict[str, float]:
    """Return {variant: area} of one run; the retrained model's stand beside those of others."""
    return {
        row.variant: row.floor if model == RETRAINED else row.value
        for row in rows
        if (row.metric, row.modality) == (AREA, modality)
        and (row.floor is not None if model == RETRAINED else row.model == model)
    }


def _verdicts(model: str, results: Sequence[Results]) -> list[dict[str, Any]]:
    words: dict[str, list[str]] = collections.defaultdict(list)
    for result in results:
        for modality, found in verdicts(result, model).items():
            words[modality].append(found.text)
    return [{"modality": modality, "by_seed": texts} for modality, texts in words.items()]


def _seconds(model: str, results: Sequence[Results]) -> list[dict[str, Any]]:
    values = [one.method_seconds[model] for one in results if model in one.method_seconds]
    return [_over_seeds(values)] if values else []


def _ability(model: str, results: Sequence[Results]) -> list[dict[str, Any]]:
    """Return the measures that every run of the model has."""
    found: dict[str, list[float]] = collections.defaultdict(list)
    for result in results:
        for row in result.analyses["ability"]:
            if row.model == model and row.measure in ABILITY and row.value is not None:
                found[row.measure].append(row.value)
    return [
        {"measure": measure, **_over_seeds(values)}
        for measure, values in found.items()
        if len(values) == len(results)
    ]


def _over_seeds(values: Sequence[float]) -> dict[str, Any]:
    return {"value": sum(values) / len(values), "by_seed": list(values)}


def _plain(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else plain_interval(interval)


def _table(compared: Mapping[str, Any], share: int) -> list[str]:
    def of(name: str, **where: Any) -> dict[str, Any] | None:
        wanted = {"share": share, **where}.items()
        return next((one for one in compared[name] if wanted <= one.items()), None)

    def forms(show: Callable[[Any], str], name: str, **where: Any) -> str:
        found = [of(name, modality=modality, **where) for modality in shown]
        return " / ".join(map(show, found)) if any(found) else NONE

    own = [row for row in compared["rows"] if row["share"] == share]
    shown = [form for form in MODALITIES if any(row["modality"] == form for row in own)]
    sets = [name for name in SETS_SHOWN if any(row["set"] == name for row in own)]
    titles = {name: SET_TITLES[name].lower() for name in sets}
    scores = {one["model"]: one for one in compared["scores"] if one["share"] == share}
    kept = "unseen" if "unseen" in sets else "retain"
    measures = {one["measure"] for one in compared["ability"] if one["share"] == share}
    able = {measure: title for measure, title in ABILITY.items() if measure in measures}
    head = [
        "model",
        f"{kept} − forget",
        *titles.values(),
        "multiple choice on forget",
        "KL from retrained on forget",
        "relearning, area",
        "audit",
        *able.values(),
        "seconds",
    ]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for model in _ranked(list(dict.fromkeys(row["model"] for row in own)), scores):
        score = scores.get(model)
        cells = [
            NONE if score is None else f"{100 * score['value']:.0f}",
            *(forms(_percent, "rows", model=model, set=name, **FREE_ANSWERS) for name in sets),
            forms(_percent, "rows", model=model, set="forget", **CHOICE),
            forms(_nats, "distances", model=model, set="forget", metric=KL),
            forms(_share, "areas", model=model),
            forms(_words, "verdicts", model=model),
            *(
                (_share if one == COMPLETED else _nats)(of("ability", model=model, measure=one))
                for one in able
            ),
            _ranged(of("seconds", model=model)),
        ]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    free = [(row["set"], row["n"]) for row in own if row.items() >= FREE_ANSWERS.items()]
    sizes = {name: max((n for of, n in free if of == name), default=0) for name in sets}
    counts = ", ".join(f"{title} n = {sizes[name]}" for name, title in titles.items())
    note = _note(compared, share, counts, is_unseen=kept == "unseen", forms=shown)
    if able:
        note += (
            " English: loss on plain texts in nats a token; completions of common knowledge in %; "
            "chat: KL from vanilla's answers in nats a token. All three are means over the seeds."
        )
    return [*lines, "", note, ""]


def _ranked(models: Sequence[str], scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the models in the order of the table: vanilla, retrained, and the best method first.

    Methods without a score are last.
    """
    given = [name for name in (VANILLA, RETRAINED) if name in models]
    methods = [name for name in models if name not in given]
    lowest = {"value": -math.inf}
    methods.sort(key=lambda name: scores.get(name, lowest)["value"], reverse=True)
    return [*given, *methods]


def _note(
    compared: Mapping[str, Any],
    share: int,
    counts: str,
    *,
    is_unseen: bool,
    forms: Sequence[str],
) -> str:
    given = "Methods were given all people of retain: keeping was not measured on others."
    if is_unseen:
        given = "No method was given the people of retain (unseen)."
    if compared["same_people"]:
        given += " All seeds, the tuning's too, have the same people; each is one in the intervals."
    return (
        f"{share} % to forget, seeds {', '.join(map(str, compared['seeds']))}; cells are "
        f"{' / '.join(forms)}. Free answers that hold the truth in %, {counts} in each form; "
        "multiple choice in %; 95 % intervals by bootstrap over the people of all seeds. Rows are "
        "sorted by the second column, in points, mean over the forms. KL in nats; area: facts that "
        "relearning brings back in %, mean over its variants (retrained: the floor); seconds of "
        "scoring or training, with compiling. These three are means over the seeds, with the "
        f"range. Audit: the verdicts, and in how many runs where they differ. {given}"
    )


def _percent(values: Mapping[str, Any] | None) -> str:
    if values is None:
        return NONE
    text = f"{100 * values['value']:.0f}"
    if values["low"] is None:
        return f"{text} (n = {values['n']})"
    return f"{text} ({100 * values['low']:.0f}–{100 * values['high']:.0f})"


def _ranged(values: Mapping[str, Any] | None, *, factor: float = 1.0, digits: int = 0) -> str:
    """Return a mean over the seeds with the range, where there are several."""
    if values is None:
        return NONE
    low, high = (f"{factor * end(values['by_seed']):.{digits}f}" for end in (min, max))
    text = f"{factor * values['value']:.{digits}f}"
    return text if len(values["by_seed"]) == 1 else f"{text} ({low}–{high})"


def _nats(values: Mapping[str, Any] | None) -> str:
    return _ranged(values, digits=2)


def _share(values: Mapping[str, Any] | None) -> str:
    return _ranged(values, factor=100)


def _words(values: Mapping[str, Any] | None) -> str:
    """Return the verdicts of the seeds, the most frequent first."""
    if values is None:
        return NONE
    counts = collections.Counter(values["by_seed"]).most_common()
    return "; ".join(word if len(counts) == 1 else f"{word} ×{number}" for word, number in counts)

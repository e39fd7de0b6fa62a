"""results.json: what a run measured, checked when it is written and when it is read.

    {"rows": [{model, set, task, modality, metric, value, n, low, high}, …],
     "models": [name, …],                    in the order of the tables; "vanilla" is before
     "headline": name,                       the method that the report speaks of
     "request": {"people": [{"id", "name"}, …], "share": percent or null, "num_people": n or null},
     "alpha_sweep": [{method, alpha, set, modality, value, n}, …],
     "leakage": [{model, …}, …],             which facts each form gives away: leakage.py
     "differences": [{model, against, set, task, modality, metric, value, n, low, high}, …],
     "distances": [{model, set, modality, metric, value, …}, …],  from the retrained model:
                                             "kl" with n, low, high; "ks" with p, n, n_reference
     "skipped": {what: how many},            items that the benchmark's protocol leaves out
     "shots": [{set, task, people, left_out}, …],  few-shot: whose questions come first, and how
                                             many of the set's questions are not asked for it
     "config": {…}, "timings": {stage: seconds}}

`value` of a sweep point is the share answered right, in [0, 1]. Its methods "vanilla" and
"retrained" are drawn as reference points, whatever their alpha.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from manu_jax.evaluation.leakage import Leakage
from manu_jax.folder import write_atomic
from manu_jax.report.leakage import from_plain
from manu_jax.types import MODALITIES, SETS, TASKS, ManuError

MAX_FAULTS = 20  # that one error lists; the rest are counted


@dataclasses.dataclass(frozen=True)
class Row:
    """One number of one model, with the number of items and the 95 % interval (None: too few)."""

    model: str
    set: str
    task: str
    modality: str
    metric: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Difference:
    """The paired difference of two models' means on the same items, with its 95 % interval."""

    model: str
    against: str
    set: str
    task: str
    modality: str
    metric: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Distance:
    """A distance from the retrained model: "kl" in nats, "ks" in [0, 1] with its p-value."""

    model: str
    set: str
    modality: str
    metric: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    p: float | None = None
    n_reference: int = 0


@dataclasses.dataclass(frozen=True)
class SweepPoint:
    """Share answered right, in [0, 1], when a method removes the share `alpha` of the neurons."""

    method: str
    alpha: float
    set: str
    modality: str
    value: float
    n: int


@dataclasses.dataclass(frozen=True)
class Request:
    """Who was to be forgotten: (ID, name) of each, their share of all people in percent."""

    people: tuple[tuple[str, str], ...]
    share: float | None = None
    num_people: int | None = None


@dataclasses.dataclass(frozen=True)
class Results:
    """The content of results.json."""

    rows: tuple[Row, ...]
    models: tuple[str, ...]
    headline: str
    request: Request
    alpha_sweep: tuple[SweepPoint, ...] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    timings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    leakage: Mapping[str, Leakage] = dataclasses.field(default_factory=dict)
    differences: tuple[Difference, ...] = ()
    distances: tuple[Distance, ...] = ()
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    shots: tuple[Mapping[str, Any], ...] = ()

    def row(self, model: str, set: str, task: str, modality: str, metric: str) -> Row | None:
        """Return the row of these five names, or None where it was not measured."""
        wanted = (model, set, task, modality, metric)
        return next((row for row in self.rows if _names(row) == wanted), None)


def write_results(
    directory: str | Path,
    rows: Iterable[Row | Mapping[str, Any]],
    *,
    models: Sequence[str],
    headline: str,
    request: Request | Mapping[str, Any],
    alpha_sweep: Iterable[SweepPoint | Mapping[str, Any]] = (),
    leakage: Iterable[Mapping[str, Any]] = (),
    differences: Iterable[Difference | Mapping[str, Any]] = (),
    distances: Iterable[Distance | Mapping[str, Any]] = (),
    skipped: Mapping[str, int] = MappingProxyType({}),
    shots: Iterable[Mapping[str, Any]] = (),
    config: Mapping[str, Any],
    timings: Mapping[str, float],
) -> Path:
    """Check the results and write them to `directory`/results.json, whole or not at all.

    Raises ManuError that lists what is wrong: unknown sets, tasks or modalities, a row given twice,
    a value that is not finite, a model that is not in `models`.
    """
    content = {
        "rows": [_without_nan(_plain(row)) for row in rows],
        "models": list(models),
        "headline": headline,
        "request": _plain_request(request),
        "alpha_sweep": [_plain(point) for point in alpha_sweep],
        "leakage": [dict(found) for found in leakage],
        "differences": [_plain(difference) for difference in differences],
        "distances": [_plain(distance) for distance in distances],
        "skipped": dict(skipped),
        "shots": [dict(one) for one in shots],
        "config": dict(config),
        "timings": {stage: float(seconds) for stage, seconds in timings.items()},
    }
    path = Path(directory) / "results.json"
    _parse(content, str(path))
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def load_results(directory: str | Path) -> Results:
    """Return the checked content of `directory`/results.json; ManuError names all its faults."""
    path = Path(directory) / "results.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ManuError(f"{path}: {error.strerror}. Run the stage evaluate first.") from error
    except ValueError as error:
        raise ManuError(
            f"{path}: broken JSON ({error}). Delete the file and give the command again."
        ) from error
    return _parse(content, str(path))


def _parse(content: Any, where: str) -> Results:
    """Return plain values as Results, or raise one ManuError with all faults."""
    if not isinstance(content, dict):
        raise ManuError(f"{where}: expected a mapping, got {type(content).__name__}.")
    faults: list[str] = []
    required = ("rows", "models", "headline", "request", "config", "timings")
    faults += [f"the key {key!r} is missing" for key in required if key not in content]
    rows = _records(Row, content.get("rows", []), "rows", faults)
    points = _records(SweepPoint, content.get("alpha_sweep", []), "alpha_sweep", faults)
    leakage = from_plain(content.get("leakage", []), faults)
    differences = _records(Difference, content.get("differences", []), "differences", faults)
    distances = _records(Distance, content.get("distances", []), "distances", faults)
    models = content.get("models", [])
    if not isinstance(models, list) or not all(isinstance(name, str) for name in models):
        faults.append(f"models: expected a list of names, got {models!r}")
        models = []
    _check_rows(rows, models, faults)
    _check_points(points, faults)
    headline = content.get("headline", "")
    if "headline" in content and headline not in models:
        faults.append(f"headline: {headline!r} is not one of models {models}")
    request = _request(content.get("request"), faults)
    skipped, shots = content.get("skipped", {}), content.get("shots", [])
    if not isinstance(skipped, dict) or not all(_fits(n, int) for n in skipped.values()):
        faults.append(f"skipped: expected a mapping to numbers of items, got {skipped!r}")
    needed = {"set", "task", "people", "left_out"}
    if not isinstance(shots, list) or any(
        not isinstance(one, dict) or set(one) != needed for one in shots
    ):
        faults.append(f"shots: expected a list of {{{', '.join(sorted(needed))}}}, got {shots!r}")
    for key in ("config", "timings"):
        if not isinstance(content.get(key, {}), dict):
            faults.append(f"{key}: expected a mapping, got {content[key]!r}")
    if faults:
        shown = faults[:MAX_FAULTS]
        if len(faults) > MAX_FAULTS:
            shown.append(f"and {len(faults) - MAX_FAULTS} more")
        raise ManuError(
            f"{where}:\n  " + "\n  ".join(shown) + "\nDelete the file and give the command again."
        )
    return Results(
        rows=tuple(rows),
        models=tuple(models),
        headline=headline,
        request=request,
        alpha_sweep=tuple(points),
        config=content["config"],
        timings=content["timings"],
        leakage=leakage,
        differences=tuple(differences),
        distances=tuple(distances),
        skipped=skipped,
        shots=tuple(shots),
    )


def _records(kind: Any, values: Any, key: str, faults: list[str]) -> list[Any]:
    """Return mappings as dataclasses of `kind`; a wrong or missing field becomes a fault."""
    if not isinstance(values, list):
        faults.append(f"{key}: expected a list, got {values!r}")
        return []
    fields = {field.name: field for field in dataclasses.fields(kind)}
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    records = []
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            faults.append(f"{key}[{index}]: expected a mapping, got {value!r}")
            continue
        missing, unknown = sorted(needed - set(value)), sorted(set(value) - set(fields))
        wrong = [
            f"{name} is {value[name]!r}"
            for name, field in fields.items()
            if name in value and not _fits(value[name], field.type)
        ]
        problems = [
            *([f"lacks {', '.join(missing)}"] if missing else []),
            *([f"has unknown keys {', '.join(unknown)}"] if unknown else []),
            *wrong,
        ]
        if problems:
            faults.append(f"{key}[{index}]: {'; '.join(problems)}")
        else:
            records.append(kind(**value))
    return records


def _fits(value: Any, kind: Any) -> bool:
    """Tell whether a JSON value is of a field's type; numbers must be finite."""
    if kind is str:
        return isinstance(value, str)
    if value is None:
        return kind == (float | None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) and value >= 0 if kind is int else math.isfinite(value)


def _check_rows(rows: Sequence[Row], models: Sequence[str], faults: list[str]) -> None:
    known = {"set": SETS, "task": TASKS, "modality": MODALITIES, "model": tuple(models)}
    seen = set()
    for row in rows:
        name = " · ".join(_names(row))
        for field, values in known.items():
            if getattr(row, field) not in values:
                faults.append(f"row {name}: unknown {field}; known: {', '.join(values)}")
        if (row.low is None) != (row.high is None):
            faults.append(f"row {name}: low {row.low} and high {row.high}: both or neither")
        elif row.low is not None and row.high is not None and row.low > row.high:
            faults.append(f"row {name}: low {row.low} is above high {row.high}")
        if _names(row) in seen:
            faults.append(f"row {name} stands twice")
        seen.add(_names(row))


def _check_points(points: Sequence[SweepPoint], faults: list[str]) -> None:
    for point in points:
        name = f"alpha_sweep {point.method} · {point.alpha} · {point.set} · {point.modality}"
        if point.set not in SETS or point.modality not in MODALITIES:
            faults.append(f"{name}: unknown set or modality")
        if not 0 <= point.alpha < 1 or not 0 <= point.value <= 1:
            faults.append(f"{name}: alpha must lie in [0, 1) and value ({point.value}) in [0, 1]")


def _request(value: Any, faults: list[str]) -> Request:
    if not isinstance(value, dict) or not isinstance(value.get("people"), list):
        faults.append(f"request: expected {{people: [{{id, name}}], share}}, got {value!r}")
        return Request(())
    people = value["people"]
    if not all(isinstance(one, dict) and {"id", "name"} <= set(one) for one in people):
        faults.append("request.people: each entry needs id and name")
        return Request(())
    return Request(
        people=tuple((str(one["id"]), str(one["name"])) for one in people),
        share=value.get("share"),
        num_people=value.get("num_people"),
    )


def _plain(record: Any) -> dict[str, Any]:
    return dataclasses.asdict(record) if dataclasses.is_dataclass(record) else dict(record)  # type: ignore[arg-type]


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose bounds are null where the bootstrap had one person and gave NaN."""
    bounds = {key: row.get(key) for key in ("low", "high")}
    return row | {k: None for k, v in bounds.items() if isinstance(v, float) and math.isnan(v)}


def _plain_request(request: Request | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(request, Request):
        return dict(request)
    people = [{"id": identity, "name": name} for identity, name in request.people]
    return {"people": people, "share": request.share, "num_people": request.num_people}


def _names(row: Row) -> tuple[str, str, str, str, str]:
    return (row.model, row.set, row.task, row.modality, row.metric)

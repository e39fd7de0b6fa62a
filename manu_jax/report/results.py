"""results.json: what a run measured, checked when it is written and when it is read.

{"rows": [{model, set, task, modality, metric, value, n, low, high}, …],
 "models": [name, …],                    in the order of the tables; "vanilla" is before
 "headline": name,                       the method that the report speaks of
 "request": {"people": [{"id", "name"}, …], "share": percent or null, "num_people": n or null},
 "kept": {"keep_share": x, "used": [id, …], "unseen": [id, …]},  which people to keep methods were
                                         given; results from before there was a share lack it
 NAME: [{…}, …],                         the rows of each analysis (evaluation/analyses/)
 "skipped": {what: how many},            items that are not asked, or can't be measured
 "shots": [{set, task, people, left_out}, …],  few-shot: whose questions come first, and how
                                         many of the set's questions are not asked for that
 "prompts": what they are made of,       a chat template, or the strings of a family
 "notes": [sentence, …],                 on what was asked, and what stands in for what is lacking
 "absent": {form: why},                  forms that nothing to forget has, and that no row is of
 "config": {…},
 "timings": {stage: seconds, "STAGE of METHOD": seconds}}  of the stages, and what single methods
                                         took of them
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from manu_jax.evaluation.analyses.registry import ANALYSES
from manu_jax.evaluation.metrics import METRICS
from manu_jax.evaluation.plain import fits, from_plain, to_plain
from manu_jax.evaluation.tasks import TASKS_BY_NAME
from manu_jax.folder import expand_path, write_atomic
from manu_jax.place import OF_METHOD
from manu_jax.types import MODALITIES, SETS, ManuError, Modality

REQUIRED = ("rows", "models", "headline", "request", "config", "timings")
MAX_FAULTS = 20  # that one error lists; the rest are counted


@dataclasses.dataclass(frozen=True)
class Row:
    """One number of one model, with the number of items and the 95 % interval (None: too few).

    value: None where no item could be measured.
    """

    model: str
    set: str
    task: str
    modality: str
    metric: str
    value: float | None
    n: int
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Request:
    """Who was to be forgotten: (ID, name) of each, their share of all people in percent."""

    people: tuple[tuple[str, str], ...]
    share: float | None = None
    num_people: int | None = None


@dataclasses.dataclass(frozen=True)
class Kept:
    """The people to keep: keep_share, in (0, 1], and the IDs of those that methods were given
    (`used`: the set retain) and of the others (the set unseen)."""

    keep_share: float
    used: tuple[str, ...]
    unseen: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Results:
    """The content of results.json. analyses: {name: rows}, of every entry of ANALYSES.

    absent: {a form that nothing to forget has: why}. kept: None in results from before there was a
    share: methods were given all people to keep.
    """

    rows: tuple[Row, ...]
    models: tuple[str, ...]
    headline: str
    request: Request
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    timings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    analyses: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    shots: tuple[Mapping[str, Any], ...] = ()
    prompts: str = ""
    kept: Kept | None = None
    notes: tuple[str, ...] = ()
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The forms that facts to forget have."""
        return tuple(form for form in MODALITIES if form not in self.absent)

    @property
    def stage_seconds(self) -> dict[str, float]:
        """The seconds of each stage, all methods together."""
        return {name: spent for name, spent in self.timings.items() if OF_METHOD not in name}

    @property
    def method_seconds(self) -> dict[str, float]:
        """The seconds that scoring, selecting or training took of each method, in all stages."""
        found: dict[str, float] = {}
        for name, spent in self.timings.items():
            _, is_of_method, method = name.partition(OF_METHOD)
            if is_of_method:
                found[method] = found.get(method, 0.0) + spent
        return found

    def row(self, model: str, place: tuple[str, str, str], metric: str) -> Row | None:
        """Return a model's row at a place (set, task, modality), or None: it was not measured."""
        wanted = (model, *place, metric)
        return next((row for row in self.rows if _names(row) == wanted), None)


def write_results(
    directory: str | Path,
    rows: Iterable[Row | Mapping[str, Any]],
    *,
    models: Sequence[str],
    headline: str,
    request: Request | Mapping[str, Any],
    analyses: Mapping[str, Iterable[Any]] = MappingProxyType({}),
    skipped: Mapping[str, int] = MappingProxyType({}),
    shots: Iterable[Mapping[str, Any]] = (),
    prompts: str = "",
    kept: Kept | None = None,
    notes: Sequence[str] = (),
    absent: Mapping[Modality, str] = MappingProxyType({}),
    config: Mapping[str, Any],
    timings: Mapping[str, float],
) -> Path:
    """Check the results and write them to `directory`/results.json, whole or not at all.

    analyses: {name: rows}, as dataclasses or as JSON mappings. Raises ManuError that lists what is
    wrong: unknown sets, tasks, metrics, modalities or analyses, a row given twice, a value that is
    not finite, a model that is not in `models`.
    """
    content = {
        "rows": [_without_nan(to_plain(row)) for row in rows],
        "models": list(models),
        "headline": headline,
        "request": _plain_request(request),
        **({} if kept is None else {"kept": dataclasses.asdict(kept)}),
        **{
            name: [analysis.to_json(row) for row in analyses.get(name, ())]
            for name, analysis in ANALYSES.items()
        },
        **{name: list(found) for name, found in analyses.items() if name not in ANALYSES},
        "skipped": dict(skipped),
        "shots": [dict(one) for one in shots],
        "prompts": prompts,
        **({"notes": list(notes)} if notes else {}),
        **({"absent": dict(absent)} if absent else {}),
        "config": dict(config),
        "timings": {stage: float(seconds) for stage, seconds in timings.items()},
    }
    path = expand_path(directory) / "results.json"
    _parse(content, str(path))
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def load_results(directory: str | Path) -> Results:
    """Return the checked content of `directory`/results.json; ManuError names all its faults."""
    path = expand_path(directory) / "results.json"
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
    faults = [f"the key {key!r} is missing" for key in REQUIRED if key not in content]
    known = (*REQUIRED, "kept", "skipped", "shots", "prompts", "notes", "absent", *ANALYSES)
    faults += [
        f"unknown key {key!r}; known: {', '.join(known)}" for key in content if key not in known
    ]
    rows = _read_all(
        content.get("rows", []), "rows", functools.partial(from_plain, Row), faults=faults
    )
    analyses = {
        name: tuple(_read_all(content.get(name, []), name, analysis.read, faults=faults))
        for name, analysis in ANALYSES.items()
    }
    for name, analysis in ANALYSES.items():
        faults += [f"{name} {fault}" for row in analyses[name] for fault in analysis.check(row)]
    models = content.get("models", [])
    if not isinstance(models, list) or not all(isinstance(name, str) for name in models):
        faults.append(f"models: expected a list of names, got {models!r}")
        models = []
    _check_rows(rows, models, faults)
    headline = content.get("headline", "")
    if "headline" in content and headline not in models:
        faults.append(f"headline: {headline!r} is not one of models {models}")
    request = _request(content.get("request"), faults)
    kept = _kept(content.get("kept"), faults)
    skipped, shots = content.get("skipped", {}), content.get("shots", [])
    if not isinstance(skipped, dict) or not all(fits(n, int) for n in skipped.values()):
        faults.append(f"skipped: expected a mapping to numbers of items, got {skipped!r}")
    needed = {"set", "task", "people", "left_out"}
    if not isinstance(shots, list) or any(
        not isinstance(one, dict) or set(one) != needed for one in shots
    ):
        faults.append(f"shots: expected a list of {{{', '.join(sorted(needed))}}}, got {shots!r}")
    prompts = content.get("prompts", "")
    if not isinstance(prompts, str):
        faults.append(f"prompts: expected a text, got {prompts!r}")
    notes = content.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(one, str) for one in notes):
        faults.append(f"notes: expected a list of sentences, got {notes!r}")
    absent = content.get("absent", {})
    if not isinstance(absent, dict) or not set(absent) < set(MODALITIES):
        faults.append(f"absent: expected a mapping of some forms to reasons, got {absent!r}")
    timings = content.get("timings")
    if isinstance(timings, dict) and not all(fits(one, float) for one in timings.values()):
        faults.append(f"timings: expected seconds, got {timings!r}")
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
        config=content["config"],
        timings=content["timings"],
        analyses=analyses,
        skipped=skipped,
        shots=tuple(shots),
        prompts=prompts,
        kept=kept,
        notes=tuple(notes),
        absent=absent,
    )


def _read_all(values: Any, key: str, read: Callable[[Any], Any], *, faults: list[str]) -> list[Any]:
    """Return what `read` makes of each value of a list; what it refuses becomes a fault."""
    if not isinstance(values, list):
        faults.append(f"{key}: expected a list, got {values!r}")
        return []
    found = []
    for index, value in enumerate(values):
        try:
            found.append(read(value))
        except ValueError as error:
            faults.append(f"{key}[{index}]: {error}")
    return found


def _check_rows(rows: Sequence[Row], models: Sequence[str], faults: list[str]) -> None:
    known = {
        "set": SETS,
        "task": TASKS_BY_NAME,
        "modality": MODALITIES,
        "metric": METRICS,
        "model": tuple(models),
    }
    seen = set()
    for row in rows:
        name = " · ".join(_names(row))
        for field, values in known.items():
            if getattr(row, field) not in values:
                faults.append(f"row {name}: unknown {field}; known: {', '.join(values)}")
        has_unmeasurable = row.metric in METRICS and METRICS[row.metric].unmeasurable
        if row.value is None and (row.n or not has_unmeasurable):
            faults.append(f"row {name}: value is None, with n = {row.n}")
        if (row.low is None) != (row.high is None):
            faults.append(f"row {name}: low {row.low} and high {row.high}: both or neither")
        elif row.low is not None and row.high is not None and row.low > row.high:
            faults.append(f"row {name}: low {row.low} is above high {row.high}")
        if _names(row) in seen:
            faults.append(f"row {name} appears twice")
        seen.add(_names(row))


def _request(value: Any, faults: list[str]) -> Request:
    if not isinstance(value, dict) or not isinstance(value.get("people"), list):
        faults.append(f"request: expected {{people: [{{id, name}}], share}}, got {value!r}")
        return Request(())
    people = value["people"]
    if not all(isinstance(one, dict) and {"id", "name"} <= set(one) for one in people):
        faults.append("request.people: each entry needs id and name")
        return Request(())
    for name, kind in (("share", float | None), ("num_people", int | None)):
        if not fits(value.get(name), kind):
            faults.append(f"request.{name}: expected a number or null, got {value[name]!r}")
    return Request(
        people=tuple((str(one["id"]), str(one["name"])) for one in people),
        share=value.get("share"),
        num_people=value.get("num_people"),
    )


def _kept(value: Any, faults: list[str]) -> Kept | None:
    if value is None:
        return None
    names = {field.name for field in dataclasses.fields(Kept)}
    if not isinstance(value, dict) or set(value) != names or not fits(value["keep_share"], float):
        faults.append(f"kept: expected {{keep_share, used, unseen}}, got {value!r}")
        return None
    parts = {name: value[name] for name in ("used", "unseen")}
    for name, people in parts.items():
        if not isinstance(people, list | tuple) or not all(isinstance(one, str) for one in people):
            faults.append(f"kept.{name}: expected a list of IDs, got {people!r}")
            return None
    return Kept(value["keep_share"], **{name: tuple(people) for name, people in parts.items()})


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

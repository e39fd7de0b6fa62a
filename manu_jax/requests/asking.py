"""All requests in force asked again of the model as it is now, and what should have stayed.

A request's own questions are asked of every model that the ledger writes, and compared with what
that model answered for which the request's certificate was written. The *probe* are the questions
about what is to be kept that came with the latest request; they are compared with the original's
answers. A row is the share of questions that are answered right, all kinds together. It is a
*regression* where it is worse by more than five points and the 95 % interval of the difference, by
bootstrap over people, does not reach zero. Of one person there is no interval: the five points
alone decide.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from manu_jax.config import EvaluateSection
from manu_jax.context import Run
from manu_jax.evaluation.analyses.analysis import Records
from manu_jax.evaluation.metrics import Interval, bootstrap, paired_bootstrap
from manu_jax.evaluation.plain import plain_interval
from manu_jax.evaluation.suite import evaluate, stored_records
from manu_jax.evaluation.tasks import TASKS_BY_NAME
from manu_jax.folder import file_hash, write_atomic
from manu_jax.models.loaded import Loaded
from manu_jax.requests.book import Request, numbers_of
from manu_jax.requests.making import published
from manu_jax.requests.shared import AGAIN, ANSWERS, Ledger, faults_of
from manu_jax.types import FORGET_SETS, KEEP_SETS, MODALITIES, SETS, VANILLA, ManuError

logger = logging.getLogger("manu_jax")

MARGIN = 0.05  # of the share of right answers, from which on a row is a regression
KEPT = tuple(name for name in SETS if name in (*KEEP_SETS, "unseen"))
# What counts as right: one metric of each kind of question. Likelihoods count where nothing else is
# asked.
RIGHT = {"classification": "accuracy", "cloze": "accuracy", "generation": "exact"}
ALONE = {"likelihood": "recall"}


@dataclasses.dataclass(frozen=True)
class Asked:
    """One row: questions of a request on one set in one form, then and now.

    now, then, difference (now − then): {value, low, high, n}; then and difference are None where
    there is nothing to compare with.
    """

    request: int
    set: str
    modality: str
    now: dict[str, Any]
    then: dict[str, Any] | None = None
    difference: dict[str, Any] | None = None
    is_regression: bool = False


def ask(ledger: Ledger, *, again: bool = False) -> None:
    """Ask all requests in force of the ledger's model, unless that was done; write down what came.

    again: ask even where it was done; nothing of what was answered before is taken.
    """
    requests, composed = ledger.book.in_force, ledger.book.last("composed")
    assert composed is not None
    wanted = {"model": composed["model"], "requests": numbers_of(requests)}
    last, folder = ledger.book.last("checked"), ledger.folder / "checks"
    if not again and last is not None and {key: last[key] for key in wanted} == wanted:
        if not faults_of(folder / last["file"], last["sha256"]):
            return
    number = 1 + sum(entry["event"] == "checked" for entry in ledger.book.entries)
    name = f"{composed['model']}{AGAIN}{number:03d}" if again else composed["model"]
    loaded = published(ledger)
    rows = [row for one in requests for row in _ask_again(ledger, one, loaded, name=name)]
    if requests:
        rows += _probe(ledger, requests[-1], loaded, name=name)
    path = folder / f"{number:03d}.json"
    content = {**wanted, "margin": MARGIN, "rows": [dataclasses.asdict(row) for row in rows]}
    write_atomic(path, json.dumps(content, indent=1) + "\n")
    regressions = [sentence(row) for row in rows if row.is_regression]
    own = {"file": path.name, "sha256": file_hash(path), "regressions": regressions}
    ledger.book = ledger.book.with_entry("checked", 0, **wanted, **own)
    for text in regressions:
        logger.warning("ledger: regression: %s", text)


def rows_of(ledger: Ledger) -> list[Asked]:
    """Return what the latest check found."""
    last = ledger.book.last("checked")
    assert last is not None
    path = ledger.folder / "checks" / last["file"]
    return [Asked(**row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]


def sentence(row: Asked) -> str:
    """Return a row in words: what is compared, then and now."""
    assert row.then is not None
    what = "by the original" if row.set in KEPT else "when it was certified"
    form = "with images" if row.modality == "image" else "as text"
    interval = ""
    if row.difference and row.difference["low"] is not None:
        low, high = (100 * row.difference[key] for key in ("low", "high"))
        interval = f", difference {low:+.1f} to {high:+.1f} points".replace("-", "−")
    who = f"to keep ({row.set})" if row.set in KEPT else f"request {row.request} ({row.set})"
    return (
        f"{who}, {form}: {100 * row.now['value']:.1f} % right, "
        f"{100 * row.then['value']:.1f} % {what}{interval}"
    )


def right(records: Records, where: str, modality: str) -> tuple[list[float], list[str]]:
    """Return whether each question on a set in one form is answered right, and whom it is about.

    records: {(set, task, modality): records}.
    """
    for metrics in (RIGHT, ALONE):
        fields = {task: TASKS_BY_NAME[task].metrics[metric] for task, metric in metrics.items()}
        items = [
            (item[field], item["person"])
            for task, field in fields.items()
            for item in records.get((where, task, modality), ())
        ]
        if items:
            return [float(value) for value, _ in items], [str(person) for _, person in items]
    return [], []


def share(records: Records, where: str, modality: str) -> dict[str, Any] | None:
    """Return {value, low, high, n} of the questions answered right; None where none is asked."""
    values, people = right(records, where, modality)
    return plain_interval(bootstrap(values, people)) if values else None


def answers(
    ledger: Ledger, request: Request, name: str, *, loaded: Loaded, sets: Sequence[str]
) -> Records:
    """Return what a model answers to a request's questions on some sets; asked once, and kept.

    name: the model's hash, or more. The model that the request's run began with has its answers in
    the run.
    """
    current = ledger.run_of(request)
    folder = _folder(ledger, request, name)
    evaluate(
        loaded,
        current.benchmark.sets,
        _section(current, sets),
        directory=folder.parent,
        model_name=folder.name,
        question_prompt=current.benchmark_format.question_prompt,
        seed=current.config.seed,
    )
    return stored_records(folder, sets)


def _folder(ledger: Ledger, request: Request, name: str) -> Path:
    """Return where a model's answers to a request's questions are, by the name of `answers`."""
    if request.made is not None and name == request.made["base"]:
        return ledger.run_folder(request.number, name) / "evaluation" / VANILLA
    return ledger.place(request.number) / ANSWERS / name


def _section(current: Run, sets: Sequence[str]) -> EvaluateSection:
    section = current.config.evaluate
    chosen = tuple(name for name in section.sets if name in sets)
    return section.model_copy(update={"sets": chosen})


def _ask_again(ledger: Ledger, request: Request, loaded: Loaded, *, name: str) -> Iterator[Asked]:
    """Yield the rows of a request's own questions, beside those of its certificate's model.

    Raises ManuError where the answers of that model are not there, or of other questions.
    """
    now = answers(ledger, request, name, loaded=loaded, sets=FORGET_SETS)
    then: Records = {}
    if request.certified is not None:
        folder = _folder(ledger, request, request.certified["model"])
        then = stored_records(folder, FORGET_SETS)
        if _asked(now) != _asked(then):
            raise ManuError(
                f"{folder}: these are not the answers that request {request.number} was certified "
                "by: files or lines are missing. Restore the folder from a backup, or revoke the "
                "request and add it again."
            )
    yield from _rows(request, FORGET_SETS, now=now, then=then, sign=1)


def _probe(ledger: Ledger, request: Request, loaded: Loaded, *, name: str) -> Iterator[Asked]:
    """Yield the rows of what is to be kept, beside the original's."""
    now = answers(ledger, request, name, loaded=loaded, sets=KEPT)
    original = ledger.original
    then = answers(ledger, request, ledger.book.model, loaded=original, sets=KEPT)
    yield from _rows(request, KEPT, now=now, then=then, sign=-1)


def _asked(records: Records) -> dict[tuple[str, str, str], list[Any]]:
    """Return {(set, task, modality): whom each question is about}."""
    return {place: [item["person"] for item in items] for place, items in records.items()}


def _rows(
    request: Request, sets: Sequence[str], *, now: Records, then: Records, sign: int
) -> Iterator[Asked]:
    """Yield a row for each set and form that is asked. sign: of a difference that is worse."""
    for where in sets:
        for modality in MODALITIES:
            values, people = right(now, where, modality)
            if not values:
                continue
            row = Asked(request.number, where, modality, plain_interval(bootstrap(values, people)))
            before, others = right(then, where, modality)
            if before and others == people:
                found = paired_bootstrap(values, before, people)
                row = dataclasses.replace(
                    row,
                    then=plain_interval(bootstrap(before, people)),
                    difference=plain_interval(found),
                    is_regression=_is_worse(found, sign),
                )
            yield row


def _is_worse(found: Interval, sign: int) -> bool:
    bounds = plain_interval(found)
    if sign * found.value <= MARGIN + 1e-9:
        return False
    return bounds["low"] is None or (bounds["low"] > 0 if sign > 0 else bounds["high"] < 0)

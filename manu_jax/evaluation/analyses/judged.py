"""What a judge says of the answers to the benchmark's own protocol, if the config names one.

A row is the mean of one question's verdicts on the answers to a task, of a set and form: over all
of them, and over those of each value of the detail that the question names (a category). Intervals
are by bootstrap over people. The judge is asked by the first process alone (evaluation/judge.py).
"""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from manu_jax import parallel
from manu_jax.context import Run
from manu_jax.data.probes import ProbeRecord
from manu_jax.evaluation.analyses.analysis import Analysis, Evaluated
from manu_jax.evaluation.judge import judge_of
from manu_jax.evaluation.judged_records import Verdict, verdicts_on
from manu_jax.evaluation.metrics import bootstrap
from manu_jax.evaluation.plain import plain_interval
from manu_jax.evaluation.published import has_published, published_of, stored
from manu_jax.evaluation.published_export import all_of
from manu_jax.types import ManuError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgedRow:
    """The mean verdict on n answers of one model. group: "" for all of them.

    low, high: 95 % interval. unread: answers of which the judge said nothing that counts; their
    value is 0. judge: the model that judged, and where.
    """

    model: str
    task: str
    set: str
    modality: str
    metric: str
    group: str
    value: float
    n: int
    unread: int
    judge: str
    low: float | None = None
    high: float | None = None


def check_judge(run: Run) -> None:
    """Raise ManuError where the config names a judge that can't be asked; say whom texts go to."""
    section = run.config.evaluate.judge
    if section is None:
        return
    protocol = published_of(run.config)
    if not has_published(run.config) or protocol is None or not protocol.judged:
        raise ManuError(
            f"evaluate.judge: the benchmark {run.config.data.benchmark} has nothing that a judge "
            "is asked, or evaluate.published is false. Leave the judge out."
        )
    judge_of(section)
    logger.info(
        "evaluate: questions and answers of the benchmark will be sent to %s at %s",
        section.model,
        section.url,
    )


def measure(evaluated: Evaluated) -> Iterator[JudgedRow]:
    """Yield the rows of every model, on the first process alone, which writes them."""
    run = evaluated.run
    section, protocol = run.config.evaluate.judge, published_of(run.config)
    if section is None or protocol is None:
        return
    judged: dict[str, tuple[Sequence[ProbeRecord], list[Verdict]]] = {}

    def ask() -> None:
        judge = judge_of(section)
        for model in evaluated.models:
            records = all_of(stored(run, model))
            logger.info("evaluate: %s: answers go to %s at %s", model, section.model, section.url)
            folder = run.directory / "evaluation" / model
            judged[model] = (
                records,
                verdicts_on(
                    records, protocol.judged, judge.ask, folder=folder, at_once=section.at_once
                ),
            )

    parallel.on_first_process(ask)
    told = f"{section.model} at {section.url}"
    for model, (records, verdicts) in judged.items():
        details = {_probe_of(record): record["details"] for record in records}
        groups: dict[tuple[str, ...], list[Verdict]] = {}
        for verdict in verdicts:
            place = tuple(verdict[name] for name in ("task", "set", "modality", "metric"))
            groups.setdefault((*place, ""), []).append(verdict)
            by = protocol.judged[verdict["metric"]].by
            if by:
                group = str(details[_probe_of(verdict)].get(by, ""))
                groups.setdefault((*place, group), []).append(verdict)
        for (task, where, modality, metric, group), mine in groups.items():
            values = [float(verdict["value"]) for verdict in mine]
            people = [verdict["person"] for verdict in mine]
            yield JudgedRow(
                model=model,
                task=task,
                set=where,
                modality=modality,
                metric=metric,
                group=group,
                unread=sum(bool(verdict.get("is_unread")) for verdict in mine),
                judge=told,
                **plain_interval(bootstrap(values, people, **evaluated.bootstrap)),
            )


def applies(run: Run) -> bool:
    """Whether the config names a judge, and the benchmark has something to judge."""
    protocol = published_of(run.config)
    has_questions = protocol is not None and bool(protocol.judged)
    return run.config.evaluate.judge is not None and has_published(run.config) and has_questions


def check(row: JudgedRow) -> Iterable[str]:
    """Yield what is wrong with the values of a row."""
    if not 0 <= row.value <= 1 or row.unread > row.n:
        yield f"{row.model}, {row.metric}: {row.value} of {row.n}, {row.unread} unread"


def _probe_of(one: ProbeRecord) -> tuple[Any, ...]:
    return tuple(one[name] for name in ("task", "set", "modality", "person", "key"))


ANALYSIS = Analysis(JudgedRow, measure, applies=applies, check=check)

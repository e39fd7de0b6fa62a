"""Records of a published protocol as open-unlearning's evaluations, so that its scripts read them.

    evaluation/MODEL/BENCHMARK_EVAL.json     {metric: {"agg_value": mean,
                                              "value_by_index": {"0": {"score": value, …}, …}}}
    evaluation/MODEL/BENCHMARK_SUMMARY.json  {metric: mean}

A metric is called TASK_SET_MODALITY_METRIC, an aggregate by its name alone, with "agg_value" only.
An entry has its score, its key and person, of written answers "input", "ground_truth" and
"generation", of measured ones "prob" and "avg_loss", as open-unlearning's entries have them
(d3d7cf9, src/evals/base.py).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from manu_jax.context import Run
from manu_jax.data.answer_metrics import probability_of
from manu_jax.data.probes import ProbeRecord
from manu_jax.evaluation.published import (
    Place,
    exported_files,
    has_published,
    published_of,
    stored,
)
from manu_jax.folder import write_atomic
from manu_jax.types import RETRAINED


def export(run: Run, models: Sequence[str]) -> None:
    """Write both files of each model, from the records that are there."""
    protocol = published_of(run.config)
    if not has_published(run.config) or protocol is None or not run.benchmark.probes:
        return
    of_retrained = all_of(stored(run, RETRAINED)) if RETRAINED in models else ()
    for model in models:
        records = stored(run, model)
        found = evaluations(records)
        for name, aggregate in protocol.aggregates.items():
            found[name] = {"agg_value": aggregate.function(all_of(records), of_retrained)}
        means = {name: values["agg_value"] for name, values in found.items()}
        summary = {name: value for name, value in means.items() if value is not None}
        paths = exported_files(run.config, model)
        for kind, content in (("EVAL", found), ("SUMMARY", summary)):
            text = json.dumps(dict(sorted(content.items())), indent=4, allow_nan=False)
            write_atomic(run.directory / paths[kind], text + "\n")


def evaluations(records: Mapping[Place, Sequence[ProbeRecord]]) -> dict[str, dict[str, Any]]:
    """Return the evaluations of one model's records, without aggregates."""
    found: dict[str, dict[str, Any]] = {}
    for place, of_place in records.items():
        for metric in of_place[0]["metrics"] if of_place else ():
            values = [record["metrics"][metric] for record in of_place]
            measured = [value for value in values if value is not None]
            found["_".join((*place, metric))] = {
                "agg_value": sum(measured) / len(measured) if measured else None,
                "value_by_index": {
                    str(number): _entry(record, record["metrics"][metric])
                    for number, record in enumerate(of_place)
                },
            }
    return found


def all_of(records: Mapping[Place, Sequence[ProbeRecord]]) -> tuple[ProbeRecord, ...]:
    """Return the records of all tasks and sets, in order."""
    return tuple(record for of_place in records.values() for record in of_place)


def _entry(record: ProbeRecord, value: float | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"score": value, "key": record["key"], "person": record["person"]}
    if record["answers"]:
        written: Any = record["answers"]
        entry |= {
            "input": record["prompt"],
            "ground_truth": record["truth"],
            "generation": written[0] if len(written) == 1 else written,
        }
    if "nll" in record:
        nll = record["nll"]["truth"]
        entry |= {"prob": probability_of(nll), "avg_loss": nll}
    return entry

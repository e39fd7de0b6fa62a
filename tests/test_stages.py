"""What the stages put together beside what their parts measure."""

import types
from typing import Any

from manu_jax.config import EvaluateSection, RunConfig
from manu_jax.data.benchmarks import benchmark_format
from manu_jax.data.record import Benchmark, Person, Question
from manu_jax.evaluation.analyses.analysis import Evaluated
from manu_jax.report.of_run import write_results_of
from manu_jax.report.results import load_results
from manu_jax.types import Template


def person(number):
    options = {"A": "Oslo", "B": "Rome"}
    questions = tuple(
        question
        for modality in ("image", "text")
        for question in (
            Question("classification", modality, "Where?", "Oslo", "home", options, "A"),
            Question("cloze", modality, "In __.", "Oslo", "home"),
        )
    )
    return Person(f"{number:03d}", "Ada", ("image",), {}, (), questions)


def test_results_hold_who_was_shown_and_what_was_not_asked(tmp_path):
    forget, retain = (tuple(person(i) for i in range(*ends)) for ends in ((0, 4), (4, 9)))
    sets = {"forget": forget, "test": forget, "retain": retain, "celebrity": (), "general": ()}
    section = EvaluateSection(
        protocol="official_few_shot", tasks=("classification", "cloze"), max_people=4
    )
    config = RunConfig(model={"path": "m"}, evaluate=section, method="random")
    run: Any = types.SimpleNamespace(
        directory=tmp_path,
        config=config,
        benchmark=Benchmark(sets, {"options with an empty text": 2}),
        benchmark_format=benchmark_format("synthetic"),
        absent={},
        num_people=9,
        vanilla=types.SimpleNamespace(template=Template()),
    )
    row = {"model": "vanilla", "set": "forget", "task": "cloze", "modality": "text"}
    row |= {"metric": "accuracy", "value": 0.5, "n": 2, "low": None, "high": None}
    evaluated = Evaluated(run, ("vanilla", "random"))
    write_results_of(evaluated, [row], {}, absent={}, timings={})
    results = load_results(tmp_path)
    assert [identity for identity, _ in results.request.people] == ["000", "001", "002", "003"]
    assert (results.request.share, results.request.num_people) == (10, 9)
    assert results.skipped == {
        "options with an empty text": 2,
        "people beyond evaluate.max_people": 1,
    }
    left_out = {(one["set"], one["task"]): one["left_out"] for one in results.shots}
    assert left_out == {
        (name, task): count
        for name in ("forget", "test", "retain")
        for task, count in (("classification", 2), ("cloze", 4))
    }
    shown = next(one for one in results.shots if one["set"] == "retain" and one["task"] == "cloze")
    assert set(shown["people"]) <= {"004", "005", "006", "007"} and len(shown["people"]) == 2

"""An analysis and a metric from outside the package: one entry each, and the run knows them."""

import dataclasses
import json
import types
from typing import Any

import numpy as np
import pytest
from PIL import Image

from manu_jax import stages
from manu_jax.arrays import write_arrays
from manu_jax.config import RunConfig
from manu_jax.data.benchmarks import benchmark_format
from manu_jax.data.record import Benchmark, Person, Question
from manu_jax.edits import masks
from manu_jax.evaluation import suite
from manu_jax.evaluation.analyses.analysis import Analysis
from manu_jax.evaluation.analyses.registry import ANALYSES
from manu_jax.evaluation.metrics import METRICS, Metric
from manu_jax.report.render import render
from manu_jax.report.results import load_results
from manu_jax.types import ManuError, Template

IMAGE = Image.new("RGB", (8, 8))
SECTION = """<section>
<h2>Words said</h2>
{% for row in rows %}<p>{{ row.model }} said {{ row.words }} words of {{ results.headline }}.</p>
{% endfor %}
</section>
"""


@dataclasses.dataclass(frozen=True)
class WordsSaid:
    model: str
    words: int


def measure(evaluated):
    for model in evaluated.models:
        records = [one for items in evaluated.records[model].values() for one in items]
        yield WordsSaid(model, sum(len(one["answer"].split()) for one in records))


def check(row):
    if row.words > 1000:
        yield f"{row.model}: {row.words} words are too many"


@pytest.fixture
def further_analysis(monkeypatch, tmp_path):
    template = tmp_path / "words_said.html.jinja"
    template.write_text(SECTION)
    analysis = Analysis(WordsSaid, measure, check=check, template=template)
    monkeypatch.setitem(ANALYSES, "words_said", analysis)


@pytest.fixture
def further_metric(monkeypatch):
    metric = Metric(
        lambda response: float(len(response.answer)),
        title="length of the answer",
        unit="characters",
        higher_is_better=False,
        tasks=("generation",),
    )
    monkeypatch.setitem(METRICS, "length", metric)


def person(identity):
    questions = tuple(
        Question("generation", modality, "Where is home?", "in Oslo", "home")
        for modality in ("image", "text")
    )
    return Person(identity, f"Ada {identity}", (IMAGE,), {}, (), questions)


@pytest.fixture
def evaluated_run(tmp_path, monkeypatch):
    """A function that evaluates a run of two models that write declared answers; its folder."""

    def ask(loaded, items, section):
        answer = "in Oslo" if loaded.name == "vanilla" else "no idea at all"
        return [(answer, [])] * len(items)

    def evaluate():
        forget, retain = (tuple(map(person, names)) for names in (("1", "2"), ("3", "4")))
        sets = {"forget": forget, "test": (), "retain": retain, "celebrity": (), "general": ()}
        config = RunConfig.model_validate(
            {
                "model": {"path": "m"},
                "method": "random",
                "evaluate": {"tasks": ["generation"], "kl": False, "ability": False},
                "audit": "none",
                "neurons": {"methods": []},
            }
        )
        models = {
            name: types.SimpleNamespace(name=name, template=Template())
            for name in ("vanilla", "random")
        }
        folder = tmp_path / "run"
        run: Any = types.SimpleNamespace(
            config=config,
            directory=folder,
            benchmark=Benchmark(sets, {}),
            benchmark_format=benchmark_format("synthetic"),
            has_retrained=False,
            absent={},
            num_people=4,
            portraits=benchmark_format("synthetic").portraits,
            vanilla=models["vanilla"],
            models=lambda: {name: lambda one=one: one for name, one in models.items()},
            times=lambda: {},
            turn_to=lambda kind: None,
        )
        stages.make_evaluation(run)
        mask = {"text": np.eye(2, 4, dtype=bool)}
        write_arrays(folder / "mask.safetensors", masks.FORMAT, mask, metadata={"made_from": "{}"})
        return folder

    monkeypatch.setattr(suite, "_ask", ask)
    return evaluate


def with_rows(folder, name, rows):
    path = folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: rows}))


def test_a_further_analysis_is_measured_written_and_shown(further_analysis, evaluated_run):
    folder = evaluated_run()
    # Two sets of two people, asked in both forms.
    rows = [{"model": "vanilla", "words": 16}, {"model": "random", "words": 32}]
    assert json.loads((folder / "results.json").read_text())["words_said"] == rows
    assert load_results(folder).analyses["words_said"] == (
        WordsSaid("vanilla", 16),
        WordsSaid("random", 32),
    )
    page = render(folder).read_text()
    assert "<p>random said 32 words of random.</p>" in page
    assert page.index("Which path still gives") < page.index("<h2>Words said") < page.index("Where")


def test_faults_of_a_further_analysis_are_named(further_analysis, evaluated_run):
    folder = evaluated_run()
    with_rows(folder, "words_said", [{"model": "random", "words": 2.5}, {"words": 1}])
    with pytest.raises(ManuError) as error:
        load_results(folder)
    assert "words_said[0]: words is 2.5" in str(error.value)
    assert "words_said[1]: lacks model" in str(error.value)
    with_rows(folder, "words_said", [{"model": "random", "words": 2000}])
    with pytest.raises(ManuError, match="words_said random: 2000 words are too many"):
        load_results(folder)


def test_an_unknown_analysis_is_refused_and_the_known_ones_listed(further_analysis, evaluated_run):
    folder = evaluated_run()
    with_rows(folder, "words_sad", [])
    with pytest.raises(
        ManuError, match="unknown key 'words_sad'; known: .*audit, strangers, words_said"
    ):
        load_results(folder)


def test_a_further_metric_is_computed_written_and_shown(further_metric, evaluated_run):
    folder = evaluated_run()
    results = load_results(folder)
    row = results.row("random", ("forget", "generation", "text"), "length")
    assert row is not None and (row.value, row.n) == (14.0, 2)
    assert "length" in {one.metric for one in results.analyses["differences"]}
    page = render(folder).read_text()
    start = page.index("<h3>Free answers: length of the answer")
    table = page[start : page.index("</table>", start)]
    assert '<span class="unit">characters</span>' in table
    # Less is better of what is kept, so more of what is to be forgotten.
    assert "Forget <small>higher is better" in table
    assert "Retain (used) <small>lower is better" in table


def test_an_unknown_metric_is_refused_and_the_known_ones_listed(further_metric, evaluated_run):
    folder = evaluated_run()
    content = json.loads((folder / "results.json").read_text())
    rows = [row | {"metric": "lenght"} for row in content["rows"][:1]]
    with_rows(folder, "rows", rows)
    with pytest.raises(ManuError, match="unknown metric; known: accuracy, .*recall, length"):
        load_results(folder)

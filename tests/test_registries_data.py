"""A benchmark and an objective from outside the package are known by their entry alone."""

import json
import types

import jax
import numpy as np
import published_world
import pytest
import tiny_llava

from manu_jax import run
from manu_jax.config import DataSection, UnlearnSection, validate_config
from manu_jax.context import Run
from manu_jax.data import batches
from manu_jax.data.benchmarks import BENCHMARKS, BenchmarkFormat, benchmark_format
from manu_jax.data.documents import documents
from manu_jax.data.record import Benchmark, Fact, Person, Question
from manu_jax.evaluation.tasks import TASKS_BY_NAME, Prompting
from manu_jax.models.loaded import save_pretrained
from manu_jax.report.results import load_results
from manu_jax.training.objectives import cross_entropy_on_answers
from manu_jax.training.recipes import RECIPES, Recipe
from manu_jax.training.unlearner import unlearn
from manu_jax.types import SETS, ManuError, Template


def read_quiz(folder, section, seed):
    """The benchmark `quiz`: one JSON file {name: answer}."""
    path = folder / "quiz.json"
    if not path.exists():
        raise ManuError(f"{path}: no such file.")
    sets = dict.fromkeys(SETS, ())
    for number, (name, answer) in enumerate(json.loads(path.read_text()).items()):
        fact = Fact(f"{number}", name, "Where does this person live?", answer, "home")
        question = Question("cloze", "text", f"{name} lives in __.", answer, "home")
        person = Person(fact.person_id, name, (), {"seed": seed}, (fact,), (question,))
        sets["retain" if number else "forget"] += (person,)
    return Benchmark(sets, {})


def ask_in_quiz(question, template, shots=()):
    return f"QUIZ {question.question}"


def write_quiz(folder, section, seed):
    folder.mkdir()
    (folder / "quiz.json").write_text(json.dumps({"Ada": "Oslo", "Bo": "Lima"}))


@pytest.fixture
def quiz(monkeypatch):
    entry = BenchmarkFormat(read_quiz, ask_in_quiz, write_quiz)
    monkeypatch.setitem(BENCHMARKS, "quiz", entry)
    return entry


def run_of(directory, **data):
    config = types.SimpleNamespace(data=DataSection.model_construct(**data), seed=5)
    return Run(config, directory, None)  # type: ignore[arg-type]


def test_the_run_reads_the_benchmark_that_the_config_names(quiz, tmp_path):
    run = run_of(tmp_path, benchmark="quiz", path=None)
    assert run.benchmark_format is quiz
    quiz.write(tmp_path / "data", run.config.data, 5)
    (person,) = run.benchmark.sets["forget"]
    assert (person.name, person.biography["seed"]) == ("Ada", 5)
    assert [fact.answer for fact in run.benchmark.facts("forget", "retain")] == ["Oslo", "Lima"]


def test_its_faults_are_those_of_its_reader(quiz, tmp_path):
    with pytest.raises(ManuError, match="quiz.json: no such file"):
        _ = run_of(tmp_path, benchmark="quiz", path=str(tmp_path)).benchmark


def test_its_wording_is_evaluated_and_trained_on(quiz, tmp_path):
    quiz.write(tmp_path / "data", None, 0)
    people = quiz.read(tmp_path / "data", None, 0).sets["forget"]
    prompting = Prompting(Template(), question_prompt=quiz.question_prompt)
    (item,) = TASKS_BY_NAME["cloze"].items(people, "text", prompting)
    assert item.prompt == "QUIZ Ada lives in __."
    (sample,) = documents(people, seed=0, wordings=("cloze",), question_prompt=quiz.question_prompt)
    assert sample.text == "QUIZ Ada lives in __. Oslo</s>"


def test_an_unknown_benchmark_is_an_error_that_lists_the_known_ones(quiz, tmp_path):
    message = f"data.benchmark: unknown 'test'; known: {', '.join(BENCHMARKS)}."
    assert message.endswith("quiz.")
    with pytest.raises(ManuError, match=message):
        benchmark_format("test")
    with pytest.raises(ManuError, match=message):
        _ = run_of(tmp_path, benchmark="test", path=str(tmp_path)).benchmark


def test_the_run_writes_the_synthetic_benchmark_and_no_other():
    assert {name for name, entry in BENCHMARKS.items() if entry.write} == {"synthetic"}


PUBLISHED = """
cache: null
data: {benchmark: quiz}
train: {memory_gate: 0.0}
method: random
evaluate: {new_tokens: 2, resamples: 20, batch_size: 4, tasks: [generation], ability: false}
audit: none
neurons: {methods: []}
"""


@pytest.fixture
def start_quiz(monkeypatch, tmp_path):
    """A function that gives the command on the quiz; it returns the rows of its protocol."""
    monkeypatch.setitem(BENCHMARKS, "quiz", published_world.FORMAT)
    monkeypatch.setattr(batches, "MAX_BUCKETS", 1)
    monkeypatch.setattr(batches, "MULTIPLE", 64)
    published_world.write(tmp_path / "quiz")
    save_pretrained(tiny_llava.loaded(), tmp_path / "model")
    (tmp_path / "config.yaml").write_text(PUBLISHED)
    paths = [f"data.path={tmp_path / 'quiz'}", f"model.path={tmp_path / 'model'}"]
    command = ["--config", tmp_path / "config.yaml", "--output", tmp_path / "run", *paths]

    def start(*further):
        assert run.main([str(argument) for argument in (*command, *further)]) == 0
        return load_results(tmp_path / "run").analyses["published"]

    return start


@pytest.mark.slow
def test_a_published_protocol_comes_with_the_entry(start_quiz, tmp_path):
    """From outside the package: probes, their prompt and their metrics, and nothing else."""
    rows = start_quiz()
    assert {row.model for row in rows} == {"vanilla", "random"}
    assert {row.metric for row in rows} == {
        "rouge", "probability", "ratio", "drawn", "utility", "quality"
    }  # fmt: skip
    assert {row.set for row in rows} == {"forget", "retain", "unseen", "all"}
    page = (tmp_path / "run/report.html").read_text()
    assert "QuizBench’s own protocol" in page and "Answers are short." in page
    assert (tmp_path / "run/evaluation/random/QUIZ_SUMMARY.json").exists()


@pytest.mark.slow
def test_its_records_stay_while_what_is_asked_stays(start_quiz, tmp_path):
    rows = start_quiz()
    asked = tmp_path / "run/evaluation/random/published/drawn.forget.text.jsonl"
    before, changed = asked.read_bytes(), asked.stat().st_mtime_ns
    assert start_quiz() == rows and asked.stat().st_mtime_ns == changed
    fewer = start_quiz("evaluate.published.max_items=1")
    assert {row.n for row in fewer if row.task != "all"} == {1}
    assert start_quiz("evaluate.published=false") == ()
    assert "QuizBench" not in (tmp_path / "run/report.html").read_text()
    assert start_quiz() == rows and asked.read_bytes() == before


def half_ascent(model, data, remat):
    return -0.5 * cross_entropy_on_answers(model, data.forget, remat)


def test_a_task_is_one_entry_which_the_config_knows(monkeypatch):
    values = {"model": {"path": "m"}, "evaluate": {"tasks": ["recital"]}}
    with pytest.raises(ManuError, match="evaluate.tasks.0: unknown task 'recital'.*'cloze'"):
        validate_config(values, "config")
    monkeypatch.setitem(TASKS_BY_NAME, "recital", TASKS_BY_NAME["cloze"])
    assert validate_config(values, "config").evaluate.tasks == ("recital",)
    monkeypatch.delitem(TASKS_BY_NAME, "recital")
    default = validate_config({"model": {"path": "m"}}, "config")
    assert default.evaluate.tasks == tuple(TASKS_BY_NAME)


@pytest.mark.slow
def test_an_objective_is_one_function_and_its_recipe(monkeypatch, tmp_path):
    monkeypatch.setitem(RECIPES, "half_ascent", Recipe((half_ascent,), keeps=False))
    settings = {"steps": 1, "batch_size": 4, "learning_rate": 1e-3, "clip": None}
    section = UnlearnSection(name="x", objective="half_ascent", **settings)
    loaded, facts = tiny_llava.loaded(), tiny_llava.facts(4)
    trained = unlearn(loaded, section, forget=facts, keep=facts, directory=tmp_path, seed=0)
    pairs = zip(jax.tree.leaves(trained.model), jax.tree.leaves(loaded.model), strict=True)
    assert any((np.asarray(new) != np.asarray(old)).any() for new, old in pairs)

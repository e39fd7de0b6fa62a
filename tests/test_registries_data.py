"""A benchmark and an objective from outside the package are known by their entry alone."""

import json
import types

import jax
import numpy as np
import pytest
import tiny_llava

from manu_jax.config import DataSection, UnlearnSection, validate_config
from manu_jax.context import Run
from manu_jax.data.benchmarks import BENCHMARKS, BenchmarkFormat, benchmark_format
from manu_jax.data.documents import documents
from manu_jax.data.record import Benchmark, Fact, Person, Question
from manu_jax.evaluation.tasks import TASKS_BY_NAME, Prompting
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
    message = "data.benchmark: unknown 'clear'; known: synthetic, mllmu, facts, .*quiz"
    with pytest.raises(ManuError, match=message):
        benchmark_format("clear")
    with pytest.raises(ManuError, match=message):
        _ = run_of(tmp_path, benchmark="clear", path=str(tmp_path)).benchmark


def test_the_run_writes_the_synthetic_benchmark_and_no_other():
    assert {name for name, entry in BENCHMARKS.items() if entry.write} == {"synthetic"}


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


def test_an_objective_is_one_function_and_its_recipe(monkeypatch, tmp_path):
    monkeypatch.setitem(RECIPES, "half_ascent", Recipe((half_ascent,), keeps=False))
    settings = {"steps": 1, "batch_size": 4, "learning_rate": 1e-3, "clip": None}
    section = UnlearnSection(name="x", objective="half_ascent", **settings)
    loaded, facts = tiny_llava.loaded(), tiny_llava.facts(4)
    trained = unlearn(loaded, section, forget=facts, keep=facts, directory=tmp_path, seed=0)
    pairs = zip(jax.tree.leaves(trained.model), jax.tree.leaves(loaded.model), strict=True)
    assert any((np.asarray(new) != np.asarray(old)).any() for new, old in pairs)

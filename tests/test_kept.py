"""No method is given an unseen person; the models before unlearning know them as all others."""

import dataclasses
import types
from typing import Any

import numpy as np
import pytest
import tiny_llava

from manu_jax import stages
from manu_jax.config import KeepTexts, validate_config
from manu_jax.context import Run
from manu_jax.data.record import Benchmark, Fact, Person
from manu_jax.evaluation.analyses import distances, sweep
from manu_jax.evaluation.analyses.analysis import Evaluated

VALUES = {
    "seed": 4,
    "model": {"path": "m"},
    "method": {"preset": "gradient"},
    "compare": ["learned", "paper", "official-code", "random"],
    "unlearn": [
        {"name": name, "objective": name, "modalities": ["image"]}
        for name in ("gradient_difference", "kl_minimisation", "npo", "mmunlearner")
    ],
    "sweep": {"alphas": [0.1], "max_people": 2},
    "evaluate": {"max_people": 2, "resamples": 10},
}


def person(identity):
    image = tiny_llava.facts()[0].image
    fact = Fact(identity, f"Person {identity}", "Where?", "Oslo", "home", image)
    return Person(identity, fact.name, (image,), {}, (fact,), ())


def people(prefix, count):
    return tuple(person(f"{prefix}{number}") for number in range(count))


WHOLE = Benchmark(
    {
        "forget": people("f", 2),
        "retain": people("r", 9)[::-1],  # an order of the benchmark's own
        "celebrity": people("c", 1),
        "general": people("g", 1),
    },
    {},
)


@pytest.fixture
def run(tmp_path):
    return run_of(tmp_path)


def run_of(folder, keep_share=0.67):
    config = validate_config({**VALUES, "data": {"keep_share": keep_share}}, "test")
    found = Run(config, folder, None)
    found.__dict__.update(read_benchmark=WHOLE, vanilla=tiny_llava.loaded())
    return found


def test_texts_are_kept_beside_facts_in_the_text_form(tmp_path):
    run, texts = run_of(tmp_path), tmp_path / "texts.txt"
    texts.write_text("one text of it\n\nand another")
    method = run.config.method
    keeping = method.model_copy(update={"keep_texts": KeepTexts(path=str(texts))})
    plain, given = run.keep_samples_of(method), run.keep_samples_of(keeping)
    assert given["image"] == plain["image"]
    assert given["text"][: len(plain["text"])] == plain["text"]
    added = given["text"][len(plain["text"]) :]
    assert {sample.text for sample in added} == {"one text of it", "and another"}
    assert run.texts_of(method) == ()


def test_no_method_is_given_an_unseen_person(run, monkeypatch):
    given: dict[str, set[str]] = {}

    def score(job):
        samples = [one for part in (job.forget, job.keep) for m in part for one in part[m]]
        given[job.method.name] = {sample.key.partition("/")[0] for sample in samples}

    def unlearn(vanilla, section, *, forget, keep, **rest):
        given[section.name] = {fact.person_id for fact in (*forget, *keep)}
        return vanilla

    monkeypatch.setattr(stages, "scores_for", score)
    monkeypatch.setattr(stages, "save_scores", lambda *args: None)
    monkeypatch.setattr(stages, "unlearn", unlearn)
    monkeypatch.setattr(stages, "save_pretrained", lambda *args: None)
    monkeypatch.setattr(Run, "load_method", lambda *args: None)
    stages.make_scores(run)
    stages.make_unlearned(run)
    config = run.config
    assert set(given) == {one.name for one in (*config.methods, *config.unlearn)}
    unseen = {one.id for one in run.benchmark.sets["unseen"]}
    everybody = {one.id for part in WHOLE.sets.values() for one in part}
    assert len(unseen) == 3
    assert all(of_method == everybody - unseen for of_method in given.values())


@pytest.mark.parametrize("keep_share", [0.3, 0.67, 1.0])
def test_the_models_before_unlearning_are_trained_on_all_in_the_benchmarks_order(
    tmp_path, monkeypatch, keep_share
):
    run = run_of(tmp_path, keep_share)
    trained = []
    monkeypatch.setattr(
        stages, "train_models", lambda benchmark, *_, **__: trained.append(benchmark)
    )
    for name in ("check_questions", "check_memory", "without_weights", "remove_checkpoints"):
        monkeypatch.setattr(stages, name, lambda *args: None)
    training = run.config.train.model_copy(update={"steps": 1})
    run.config = run.config.model_copy(update={"train": training, "cache": None})
    stages.make_models(run)
    (benchmark,) = trained
    assert (
        benchmark.sets == WHOLE.sets
    )  # whatever the share: the same documents and the same models


def test_distances_are_measured_on_used_and_unseen_people(run, monkeypatch):
    assert kl_sets(run, monkeypatch) == {"forget": 2, "retain": 2, "unseen": 2}


def test_without_unseen_people_there_is_no_row_of_them(tmp_path, monkeypatch):
    assert kl_sets(run_of(tmp_path, 1.0), monkeypatch) == {"forget": 2, "retain": 2}


def kl_sets(run, monkeypatch):
    monkeypatch.setattr(Run, "models", lambda self: {"retrained": tiny_llava.loaded})
    evaluated: Any = types.SimpleNamespace(
        run=run, models=(), records={}, bootstrap=Evaluated(run, ()).bootstrap
    )
    rows = [row for row in distances.measure(evaluated) if row.modality == "text"]
    return {row.set: row.n for row in rows}


@pytest.mark.parametrize(("keep_share", "kept"), [(0.67, "unseen"), (1.0, "retain")])
def test_the_sweep_asks_people_that_no_method_was_given(tmp_path, monkeypatch, keep_share, kept):
    run = run_of(tmp_path, keep_share)
    run.config = run.config.model_copy(
        update={"method": run.config.compare[-1], "compare": (), "sweep": run.config.sweep}
    )
    asked = []

    def log_likelihoods(loaded, samples, **_):
        asked.append({sample.key.partition("/")[0] for sample in samples})
        return types.SimpleNamespace(recalled_N=np.ones(len(samples)))

    def recalled(loaded, samples, candidates, **_):
        asked.append({sample.key.partition("/")[0] for sample in samples})
        return np.ones((len(candidates), len(samples)))

    scores = {"text": np.ones((2, 40), np.float32), "vision": np.ones((2, 24), np.float32)}
    monkeypatch.setattr(sweep, "log_likelihoods", log_likelihoods)
    monkeypatch.setattr(sweep, "recalled", recalled)
    monkeypatch.setattr(sweep, "load_scores", lambda path: (scores, {}))
    evaluated: Any = types.SimpleNamespace(run=run)
    points = list(sweep.measure(evaluated))
    assert {point.set for point in points} == {"forget", kept}
    wanted = set(sorted(one.id for one in run.benchmark.sets[kept])[:2])
    assert asked and all(found == {"f0", "f1"} | wanted for found in asked)


def test_a_run_reads_its_seed(tmp_path):
    run, other = run_of(tmp_path), run_of(tmp_path)
    other.config = other.config.model_copy(update={"seed": 5})
    assert run.benchmark.sets["unseen"] != other.benchmark.sets["unseen"]
    assert dataclasses.replace(run.benchmark, sets=WHOLE.sets) == WHOLE

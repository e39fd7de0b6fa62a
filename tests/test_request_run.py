"""A whole run on a request: with what it lacks worked around, and said in the report."""

import dataclasses
import importlib.util
import json
import shutil
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny_llava

from manu_jax import run
from manu_jax.config import RunConfig
from manu_jax.context import Run
from manu_jax.data.strangers import Stranger
from manu_jax.evaluation import own_answers
from manu_jax.evaluation.analyses import distances
from manu_jax.evaluation.analyses.analysis import Evaluated
from manu_jax.evaluation.distance import answer_kl, stranger_kl
from manu_jax.report.results import load_results
from manu_jax.training.strangers_target import stranger_target
from manu_jax.types import MODALITIES, ManuError

EXAMPLE = Path(__file__).parents[1] / "examples" / "request"
MODEL = """
seed: 0
cache: null
data: {num_people: 6, num_celebrities: 4, num_general: 8, forget: 15}
model:
  vision: {image_size: 42, patch_size: 14, width: 16, num_layers: 2, num_heads: 2, num_neurons: 16}
  text: {width: 16, num_layers: 2, num_heads: 2, num_key_heads: 1, num_neurons: 32, context: 512}
train: {steps: 1, base_steps: 1, batch_size: 4, memory_gate: 0.0, retrained: false}
"""
REQUEST = """
seed: 0
cache: null
data: {benchmark: folder}
train: {memory_gate: 0.0}
method: {preset: suppress, steps: 2, batch_size: 4, batch_keep: 4, strangers: 2, kept_strangers: 2}
evaluate: {protocol: likelihood, tasks: [classification, generation, likelihood], new_tokens: 2,
           resamples: 20, batch_size: 16}
audit: none
"""


@pytest.fixture
def request_without_retain(tmp_path):
    folder = shutil.copytree(EXAMPLE, tmp_path / "request")
    (folder / "retain.jsonl").unlink()
    return folder


def run_of(tmp_path, path):
    config = RunConfig.model_validate(
        {
            "model": {"path": "m"},
            "data": {"benchmark": "folder", "path": str(path)},
            "evaluate": {"resamples": 20, "batch_size": 4},
        }
    )
    found = Run(config, tmp_path / "run", None)
    found.__dict__["vanilla"] = tiny_llava.loaded()
    found.__dict__["family"] = tiny_llava.loaded().family
    return found


def test_the_example_is_what_its_script_writes(tmp_path):
    path = EXAMPLE.parent / "make_request.py"
    spec = importlib.util.spec_from_file_location("make_request", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.write(tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (EXAMPLE / file.name).read_bytes(), file.name


def test_own_answers_are_asked_once_and_kept_from_then_on(
    request_without_retain, tmp_path, monkeypatch
):
    current = run_of(tmp_path, request_without_retain)
    asked = []

    def greedy(loaded, samples, **settings):
        asked.append(samples)
        return [f"answer {number}" for number in range(len(samples))]

    monkeypatch.setattr(own_answers, "greedy", greedy)
    before = current.asked_benchmark
    with pytest.raises(ManuError, match="own_answers: no answers there. Run the stage `train`"):
        _ = current.benchmark
    own_answers.answer_own_questions(current)
    own_answers.answer_own_questions(current)
    (samples,) = asked
    assert {len(sample.images) for sample in samples} == {0, 1}
    assert current.asked_benchmark is current.benchmark
    for name in ("retain", "unseen", "general"):
        now, then = current.benchmark.sets[name], before.sets[name]
        assert [person.id for person in now] == [person.id for person in then]
        assert [fact.key for p in now for fact in p.facts] == [f.key for p in then for f in p.facts]
    assert all(fact.answer.startswith("answer") for fact in current.benchmark.facts("retain"))
    assert current.num_people is None


def test_a_request_that_names_whom_to_keep_asks_the_model_nothing(tmp_path, monkeypatch):
    current = run_of(tmp_path, EXAMPLE)
    monkeypatch.setattr(own_answers, "greedy", None)
    own_answers.answer_own_questions(current)
    assert current.asked_benchmark is current.benchmark and current.num_people == 10
    assert current.benchmark.notes == () and not (tmp_path / "run").exists()
    assert current.portraits is None  # strangers are mixed of those whom the request keeps


def test_strangers_are_drawn_where_nobody_to_keep_has_an_image(tmp_path):
    folder = shutil.copytree(EXAMPLE, tmp_path / "request")
    lines = [json.loads(one) for one in (folder / "retain.jsonl").read_text().splitlines()]
    kept = [
        {k: v for k, v in one.items() if k != "name_question"} | {"image": None} for one in lines
    ]
    (folder / "retain.jsonl").write_text("\n".join(map(json.dumps, kept)))
    current = run_of(tmp_path, folder)
    assert all(one.image is not None for one in current.strangers)


@pytest.mark.slow
@pytest.mark.parametrize("modality", MODALITIES)
def test_the_distance_from_strangers_is_the_divergence_from_their_mean(modality):
    loaded = tiny_llava.loaded()
    other = dataclasses.replace(loaded, model=jax.tree.map(lambda leaf: 1.1 * leaf, loaded.model))
    facts = tiny_llava.facts(5)
    samples = tiny_llava.samples(modality, 5)
    for fact, sample in zip(facts, samples, strict=True):
        same = [Stranger(fact.name, fact.image)] * 2
        target = stranger_target(loaded, [fact], same, modality=modality)
        # A stranger who is the person: the target is what vanilla says of her.
        own = stranger_kl(loaded, [sample], target, batch_size=2)
        np.testing.assert_allclose(own, 0, atol=1e-5)
        found = stranger_kl(other, [sample], target, batch_size=2)
        expected = answer_kl(other, loaded, [sample], batch_size=2)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_distance_from_strangers_does_not_depend_on_the_batch():
    loaded, facts = tiny_llava.loaded(), tiny_llava.facts(5)
    people = [Stranger("Cy Holm", facts[0].image), Stranger("Di Falk", facts[1].image)]
    target = stranger_target(loaded, facts, people, modality="text")
    samples = tiny_llava.samples("text", 5)
    found = [stranger_kl(loaded, samples, target, batch_size=size) for size in (1, 3, 32)]
    assert (found[0] > 0).any()
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_without_a_retrained_model_distances_are_from_strangers_and_from_vanilla(
    tmp_path, monkeypatch
):
    current = run_of(tmp_path, EXAMPLE)
    monkeypatch.setattr(
        Run, "models", lambda self: {"vanilla": tiny_llava.loaded, "erase": tiny_llava.loaded}
    )
    assert distances.ANALYSIS.applies(current)
    evaluated: Any = types.SimpleNamespace(
        run=current, models=(), records={}, bootstrap=Evaluated(current, ()).bootstrap
    )
    rows = list(distances.measure(evaluated))
    assert {(row.model, row.set, row.reference) for row in rows} == {
        ("vanilla", "forget", "strangers"),
        ("erase", "forget", "strangers"),
        ("erase", "retain", "vanilla"),
        ("erase", "unseen", "vanilla"),
    }
    of_forget = [row for row in rows if row.set == "forget"]
    assert {(row.modality, row.n) for row in of_forget} == {("image", 12), ("text", 10)}
    assert all(row.value > 0 for row in of_forget)
    assert all(row.value == pytest.approx(0, abs=1e-6) for row in rows if row.set != "forget")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a whole run on the example without its retain set."""
    folder = tmp_path_factory.mktemp("request_run")
    (folder / "model.yaml").write_text(MODEL)
    (folder / "request.yaml").write_text(REQUEST)
    request = shutil.copytree(EXAMPLE, folder / "request")
    (request / "retain.jsonl").unlink()
    made = ["--config", str(folder / "model.yaml"), "--output", str(folder / "model")]
    assert run.main([*made, "--only", "data,train"]) == 0
    arguments = [
        "--config", str(folder / "request.yaml"), "--output", str(folder / "run"),
        f"model.path={folder / 'model' / 'vanilla'}", f"data.path={request}",
    ]  # fmt: skip
    assert run.main(arguments) == 0
    return folder / "run", arguments


@pytest.mark.slow
def test_a_request_is_run_from_start_to_end(finished):
    folder, _ = finished
    results = load_results(folder)
    assert results.models == ("vanilla", "suppress")
    assert results.request.share is None and results.request.num_people is None
    assert [name for _, name in results.request.people] == ["Leo Keller", "Leo Novak"]
    (note,) = results.notes
    assert note.startswith("The request names nobody to keep.")
    asked = {(row.set, row.modality) for row in results.rows if row.task == "generation"}
    assert asked >= {(where, form) for where in ("forget", "retain") for form in MODALITIES}
    assert ("test", "image") in asked and ("general", "text") in asked
    assert {d.reference for d in results.analyses["distances"]} == {"strangers", "vanilla"}
    page = (folder / "report.html").read_text()
    for expected in (
        note.replace("'", "&#39;"),
        "Distance from what is said of strangers",
        "The model was asked to forget two people: Leo Keller and Leo Novak.",
    ):
        assert expected in page, expected


@pytest.mark.slow
def test_the_same_command_again_asks_the_model_nothing(finished, monkeypatch):
    folder, arguments = finished
    before = (folder / "own_answers" / "retain.jsonl").read_bytes()
    monkeypatch.setattr(own_answers, "greedy", None)
    assert run.main(arguments) == 0
    assert (folder / "own_answers" / "retain.jsonl").read_bytes() == before

"""A benchmark's own protocol through the engine, on the tiny LLaVA."""

import json
import shutil
import types

import numpy as np
import published_world as world
import pytest
import tiny_llava

from manu_jax import parallel
from manu_jax.config import RunConfig
from manu_jax.data import batches
from manu_jax.data.benchmarks import BENCHMARKS
from manu_jax.data.forms import in_text_alone
from manu_jax.data.record import split_retain
from manu_jax.evaluation import published, published_export
from manu_jax.evaluation.analyses import published as analysis
from manu_jax.evaluation.generate import greedy
from manu_jax.evaluation.likelihood import log_likelihoods
from manu_jax.types import ManuError, question_sample

PLACES = {
    (task, where, modality)
    for task, forms in (("open", ("image", "text")), ("drawn", ("text",)))
    for where in ("forget", "retain")
    for modality in forms
}


@pytest.fixture(scope="module", autouse=True)
def quiz():
    """The benchmark, and one length for all, so that few programs are compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BENCHMARKS, "quiz", world.FORMAT)
        patch.setattr(batches, "MAX_BUCKETS", 1)
        patch.setattr(batches, "MULTIPLE", 64)
        yield


def run_of(folder, *, keep_share=1.0, **settings):
    world.write(folder / "quiz")
    config = RunConfig.model_validate(
        {
            "model": {"path": "m"},
            "method": "random",
            "data": {"benchmark": "quiz", "path": str(folder / "quiz")},
            "evaluate": {"batch_size": 4, "resamples": 50, "published": settings},
        }
    )
    benchmark = world.read(folder / "quiz", config.data, 0)
    benchmark = split_retain(benchmark, keep_share, seed=0)
    return types.SimpleNamespace(
        config=config, directory=folder, benchmark=benchmark, asked_benchmark=benchmark
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of which one model was asked."""
    run = run_of(tmp_path_factory.mktemp("whole"))
    published.ask_published(run, tiny_llava.loaded(), "vanilla")
    return run


def files(run, model="vanilla"):
    folder = run.directory / "evaluation" / model / "published"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_task_set_and_form_has_its_file(whole):
    assert set(files(whole)) == {f"{'.'.join(place)}.jsonl" for place in PLACES}
    found = published.stored(whole, "vanilla")
    assert set(found) == PLACES
    assert {len(records) for (_, where, _), records in found.items() if where == "forget"} == {2}


def test_a_record_is_what_the_model_gives(whole):
    loaded = tiny_llava.loaded()
    record = published.stored(whole, "vanilla")["open", "retain", "image"][0]
    fact = tiny_llava.facts()[world.FORGET]
    prompt = loaded.template.prompt("QUIZ Where is this person?", "image")
    assert (record["prompt"], record["details"]) == (prompt, {"rank": 1})
    sample = question_sample(prompt, "", (fact.image,))
    assert record["answers"] == greedy(loaded, [sample], new_tokens=5, batch_size=4)
    given = [fact.answer, f"in {fact.answer}", "Rome", "a baker"]
    samples = [question_sample(prompt, f" {one}</s>", (fact.image,)) for one in given]
    counts = [loaded.encode(one).num_answers for one in samples]
    bare = loaded.encode(question_sample(prompt, f" {fact.answer}", (fact.image,)))
    assert counts[0] == bare.num_answers + 1  # the end token counts
    nll = -log_likelihoods(loaded, samples, batch_size=4).mean_N
    found = record["nll"]
    # sums over tokens in float32 and in float64
    assert found["truth"] == pytest.approx(nll[0], abs=1e-4)
    assert [*found["paraphrased"], *found["perturbed"]] == pytest.approx(nll[1:], abs=1e-4)
    metrics = record["metrics"]
    assert set(metrics) == {"rouge", "probability", "ratio"}
    assert metrics["probability"] == pytest.approx(np.exp(-found["truth"]))
    ratio = np.exp(-np.mean(found["perturbed"])) / (np.exp(-found["paraphrased"][0]) + 1e-10)
    assert metrics["ratio"] == pytest.approx(ratio)


def test_drawn_answers_are_several_and_have_no_likelihood(whole):
    for record in published.stored(whole, "vanilla")["drawn", "forget", "text"]:
        assert len(record["answers"]) == 2 and "nll" not in record


@pytest.mark.slow
def test_batch_size_and_mesh_change_no_answer(whole, tmp_path):
    run = run_of(tmp_path)
    run.config = run.config.model_copy(
        update={"evaluate": run.config.evaluate.model_copy(update={"batch_size": 8})}
    )
    published.ask_published(run, tiny_llava.on_mesh(parallel.make_mesh(2, 2, 2)), "vanilla")
    now, before = (published.stored(one, "vanilla") for one in (run, whole))
    for place in PLACES:
        for one, other in zip(now[place], before[place], strict=True):
            assert one["answers"] == other["answers"]
            # sums split over devices
            assert one.get("nll", {}).get("truth", 0) == pytest.approx(
                other.get("nll", {}).get("truth", 0), abs=1e-3
            )


def test_a_killed_run_goes_on_to_the_same_bytes(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "CHUNK", 3)
    ask, asked = published.responses_of, []

    def killed(loaded, items, **settings):
        if asked:
            raise KeyboardInterrupt
        asked.append(len(items))
        return ask(loaded, items, **settings)

    run = run_of(tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(published, "responses_of", killed)
        with pytest.raises(KeyboardInterrupt):
            published.ask_published(run, tiny_llava.loaded(), "vanilla")
    assert [name for name in files(run) if name.endswith(".partial.jsonl")]
    published.ask_published(run, tiny_llava.loaded(), "vanilla")
    undisturbed = run_of(tmp_path / "undisturbed")
    published.ask_published(undisturbed, tiny_llava.loaded(), "vanilla")
    assert files(run) == files(undisturbed)


def test_what_was_asked_is_not_asked_again(whole, monkeypatch):
    monkeypatch.setattr(published, "responses_of", lambda *given, **settings: 1 / 0)
    published.ask_published(whole, tiny_llava.loaded(), "vanilla")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-9], "damaged"),
        (lambda text: text.replace('"ratio"', '"ration"', 1), "line 1 has no number for ratio"),
        (lambda text: text.replace('"nll"', '"nil"', 1), "line 1 has no number for nll"),
        (lambda text: text.replace("QUIZ", "QUIZZ"), "with another question than now"),
        (lambda text: text * 2, "holds 4 records, 2 are asked now"),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(whole, tmp_path, damage, message):
    shutil.copytree(whole.directory, tmp_path / "copy")
    run = run_of(tmp_path / "copy")
    path = tmp_path / "copy/evaluation/vanilla/published/open.forget.text.jsonl"
    path.write_text(damage(path.read_text()))
    with pytest.raises(ManuError, match=f"open.forget.text.jsonl: .*{message}.*Delete the file"):
        published.ask_published(run, tiny_llava.loaded(), "vanilla")


def test_the_config_says_how_many_are_asked_and_how_much_is_written(tmp_path):
    run = run_of(tmp_path, max_items=1, new_tokens=4)
    found = published.files_of(
        run.benchmark,
        world.PROTOCOL,
        tiny_llava.loaded().template,
        section=run.config.evaluate.published,
        folder=tmp_path,
    )
    assert {len(file.items) for file in found} == {1}
    assert {item.new_tokens for file in found for item in file.items} == {4}
    assert not published.has_published(RunConfig.model_validate({"model": {"path": "m"}}))
    off = {"model": {"path": "m"}, "data": {"benchmark": "quiz", "path": "x"}}
    off["evaluate"] = {"published": False}
    assert not published.has_published(RunConfig.model_validate(off))


def test_a_prompt_that_is_too_long_is_an_error_before_anything_is_asked(tmp_path, monkeypatch):
    run = run_of(tmp_path)
    published.check_published(run, tiny_llava.loaded())
    monkeypatch.setattr(type(tiny_llava.loaded()), "context", 20)
    with pytest.raises(ManuError, match=r"published open.forget.image, open, 00.*> 20"):
        published.check_published(run, tiny_llava.loaded())


def test_people_who_are_set_apart_are_asked_apart(tmp_path):
    run = run_of(tmp_path, keep_share=0.5)
    settings = {"section": run.config.evaluate.published, "folder": tmp_path}
    template = tiny_llava.loaded().template
    found = published.files_of(run.benchmark, world.PROTOCOL, template, **settings)
    names = {file.name for file in found}
    assert "open.unseen.image" in names and "open.retain.image" in names


def test_a_model_without_images_is_asked_in_text_alone(tmp_path):
    benchmark = run_of(tmp_path).benchmark
    assert {probe.modality for probe in benchmark.probes} == {"image", "text"}
    assert {probe.modality for probe in in_text_alone(benchmark).probes} == {"text"}


@pytest.fixture(scope="module")
def two_models(whole):
    """The run with a second model, whose records are those of the first with other numbers."""
    source = whole.directory / "evaluation/vanilla/published"
    shutil.copytree(source, whole.directory / "evaluation/retrained/published")
    path = whole.directory / "evaluation/retrained/published/open.forget.text.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["metrics"]["ratio"] *= 100
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return types.SimpleNamespace(
        run=whole, models=("vanilla", "retrained"), bootstrap={"resamples": 50, "seed": 0}
    )


def test_rows_are_means_over_probes_and_aggregates_of_the_whole(two_models):
    rows = {
        (row.model, row.task, row.set, row.modality, row.metric): row
        for row in analysis.measure(two_models)
    }
    records = published.stored(two_models.run, "vanilla")
    mean = np.mean([one["metrics"]["rouge"] for one in records["open", "retain", "text"]])
    row = rows["vanilla", "open", "retain", "text", "rouge"]
    assert (row.value, row.n) == (pytest.approx(mean), 3) and row.low <= row.value <= row.high
    everything = published_export.all_of(records)
    utility = rows["vanilla", "all", "all", "all", "utility"]
    assert utility.value == pytest.approx(world.utility(everything, ()))
    assert utility.low <= utility.value <= utility.high and utility.n == 15
    quality = rows["vanilla", "all", "all", "all", "quality"]
    others = published_export.all_of(published.stored(two_models.run, "retrained"))
    assert quality.value == world.quality(everything, others) < 1 and quality.low is None
    assert rows["retrained", "all", "all", "all", "quality"].value == 1
    assert not any(list(analysis.check(row)) for row in rows.values())


def test_the_export_is_read_as_open_unlearnings_evaluations_are(two_models):
    published_export.export(two_models.run, two_models.models)
    logs, retained = (
        json.loads((two_models.run.directory / f"evaluation/{model}/QUIZ_EVAL.json").read_text())
        for model in two_models.models
    )
    # As its metrics read what is cached: values by index, and the mean of those that are there.
    ratios = [
        np.array(
            [evals["score"] for evals in one["open_forget_text_ratio"]["value_by_index"].values()]
        )
        for one in (logs, retained)
    ]
    assert ratios[1] == pytest.approx(100 * ratios[0])
    assert logs["open_forget_text_ratio"]["agg_value"] == pytest.approx(ratios[0].mean())
    evals = logs["open_forget_image_rouge"]["value_by_index"]["0"]
    assert {"score", "input", "ground_truth", "generation", "prob", "avg_loss"} <= set(evals)
    assert evals["prob"] == pytest.approx(np.exp(-evals["avg_loss"]))
    path = two_models.run.directory / "evaluation/vanilla/QUIZ_SUMMARY.json"
    summary = json.loads(path.read_text())
    assert summary == {name: one["agg_value"] for name, one in logs.items()}
    assert {"utility", "quality", "drawn_retain_text_drawn"} <= set(summary)

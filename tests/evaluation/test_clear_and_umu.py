"""CLEAR and UMU-Bench from their folders to rows: their own protocols, and the leakage matrix."""

import types

import clear_folder
import numpy as np
import pytest
import tiny_llava
import umu_folder

from manu_jax import run as command
from manu_jax.config import RunConfig
from manu_jax.data import batches, clear, clear_protocol, umu_protocol
from manu_jax.data.benchmarks import BENCHMARKS
from manu_jax.data.record import split_retain
from manu_jax.evaluation import published, published_export
from manu_jax.evaluation.analyses import published as analysis
from manu_jax.evaluation.analyses.leakage import find_leakage
from manu_jax.evaluation.tasks import TASKS_BY_NAME, Prompting, record_of
from manu_jax.models.loaded import save_pretrained
from manu_jax.report.results import load_results
from manu_jax.types import Template

AUTHORS = {"forget": ("Amélie Castell",), "retain": ("Chiara Ostrov", "Dmitri Valen")}


@pytest.fixture(scope="module", autouse=True)
def one_length():
    """One length for all, so that few programs are compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "MAX_BUCKETS", 1)
        patch.setattr(batches, "MULTIPLE", 128)
        yield


@pytest.fixture(scope="module")
def loaded():
    return tiny_llava.loaded()


def write(name, folder):
    if name == "clear":
        return clear_folder.write(folder, authors=AUTHORS, faceless=())
    return umu_folder.write(folder)


def rows_of(loaded, folder, name, *, subset=None, keep_share=1.0):
    """Ask a benchmark's protocol of a model, and return its rows and its records."""
    data = {"benchmark": name, "path": str(folder), "forget": 10 if name == "clear" else 5}
    config = RunConfig.model_validate(
        {
            "model": {"path": "m"},
            "method": "random",
            "data": data | {"subset": subset},
            "evaluate": {"batch_size": 8, "resamples": 20, "published": {"new_tokens": 3}},
        }
    )
    benchmark = BENCHMARKS[name].read(folder, config.data, 0)
    benchmark = split_retain(benchmark, keep_share, seed=0)
    run = types.SimpleNamespace(
        config=config, directory=folder, benchmark=benchmark, asked_benchmark=benchmark
    )
    published.check_published(run, loaded)
    for model in ("vanilla", "retrained"):
        published.ask_published(run, loaded, model)
    evaluated = types.SimpleNamespace(
        run=run, models=("vanilla", "retrained"), bootstrap={"resamples": 20, "seed": 0}
    )
    rows = list(analysis.measure(evaluated))
    assert not any(list(analysis.check(row)) for row in rows)
    published_export.export(run, evaluated.models)
    found = {
        (row.task, row.set, row.modality, row.metric): row for row in rows if row.model == "vanilla"
    }
    return found, published_export.all_of(published.stored(run, "vanilla"))


@pytest.fixture(scope="module")
def of_clear(loaded, tmp_path_factory):
    return rows_of(loaded, write("clear", tmp_path_factory.mktemp("clear")), "clear")


@pytest.fixture(scope="module")
def of_umu(loaded, tmp_path_factory):
    folder = write("umu", tmp_path_factory.mktemp("umu"))
    return rows_of(loaded, folder, "umu", keep_share=0.5)


def test_clear_has_a_row_for_each_metric_of_its_six_tasks(of_clear):
    rows, _ = of_clear
    numbers = {place[:3]: row.n for place, row in rows.items() if place[3] == "probability"}
    assert numbers == {
        ("forget", "forget", "image"): 2,
        ("forget_face", "forget", "image"): 2,
        ("retain", "retain", "image"): 4,
        ("retain_face", "retain", "image"): 4,
        ("real_faces", "celebrity", "image"): 3,
        ("real_world", "general", "image"): 1,
        ("real_world", "general", "text"): 1,
    }
    metrics = {place[3] for place in rows if place[0] == "retain"}
    assert metrics == {"probability", "rougeL_recall", "truth_ratio", "wrong_to_right"}
    of_whole = {place[3] for place in rows if place[0] == "all"}
    assert of_whole == set(clear_protocol.PUBLISHED.aggregates)
    assert rows["all", "all", "all", "forget_quality"].value == 1  # the same model twice


def test_clears_numbers_are_those_of_its_records(of_clear):
    rows, records = of_clear
    captions = [one for one in records if one["task"] == "retain"]
    expected = np.mean([np.exp(-one["nll"]["truth"]) for one in captions])
    row = rows["retain", "retain", "image", "probability"]
    assert row.value == pytest.approx(expected)
    face = next(one for one in records if one["task"] == "real_faces")
    assert face["prompt"].endswith("The name of the person on the image is \nASSISTANT:")
    p, *wrong = np.exp(-np.array([face["nll"]["truth"], *face["nll"]["perturbed"]]))
    assert face["metrics"]["probability"] == pytest.approx(p / (p + sum(wrong)))
    assert face["nll"]["paraphrased"] == [face["nll"]["truth"]]
    paraphrased = np.array([one["nll"]["paraphrased"][0] for one in captions])
    wrong = np.array([one["nll"]["perturbed"] for one in captions])
    own = np.maximum(0, 1 - np.exp(paraphrased - wrong.mean(1)))
    assert rows["retain", "retain", "image", "truth_ratio"].value == pytest.approx(own.mean())
    of_set = np.maximum(0, 1 - np.exp(paraphrased - wrong.mean()))
    aggregate = rows["all", "all", "all", "published_truth_ratio_retain"].value
    assert aggregate == pytest.approx(of_set.mean())


def test_blind_answers_make_the_same_utility_of_text_without_images(loaded, of_clear, tmp_path):
    rows, records = rows_of(loaded, write("clear", tmp_path), "clear", subset="blind")
    before = {(one["task"], one["key"]): one for one in of_clear[1]}
    for one in records:
        if "nll" in one:
            assert one["nll"]["truth"] == pytest.approx(
                before[one["task"], one["key"]]["nll"]["truth"], abs=1e-4
            )  # float32, in another batch
            assert bool(one["answers"]) == (one["metrics"]["rougeL_recall"] is not None)
        else:
            assert "<image>" not in one["prompt"] and one["metrics"]["probability"] is None
    assert rows["forget", "forget", "text", "rougeL_recall"].n == 2
    assert rows["forget", "forget", "image", "rougeL_recall"].value is None
    # Nothing that so small a model writes is right.
    assert rows["all", "all", "all", "model_utility"].value == 0


def test_kvws_tasks_are_asked_alone(loaded, tmp_path):
    rows, records = rows_of(loaded, write("clear", tmp_path), "clear", subset="kvw")
    numbers = {place[:2]: row.n for place, row in rows.items() if place[3] == "accuracy"}
    assert numbers == {
        ("kvw_forget", "forget"): 2, ("kvw_retain", "retain"): 4,
        ("kvw_real_faces", "celebrity"): 3, ("kvw_real_world", "general"): 1,
    }  # fmt: skip
    assert rows["all", "all", "all", "model_utility"].value is None
    assert "A. " in next(one["prompt"] for one in records if one["task"] == "kvw_retain")


def test_umu_has_rows_of_both_forms_and_joint_numbers(of_umu):
    rows, records = of_umu
    forms = {place[:3]: row.n for place, row in rows.items() if place[3] in ("accuracy", "rougeL")}
    assert forms == {
        (task, where, form): 1 + (task == "generation")
        for task in ("classification", "cloze", "generation")
        for where in ("forget", "retain", "unseen", "celebrity")
        for form in ("image", "text")
    }
    of_whole = {place[3]: row.value for place, row in rows.items() if place[0] == "all"}
    assert set(of_whole) == set(umu_protocol.PUBLISHED.aggregates)
    assert all(value is not None for value in of_whole.values())
    for where, sets in (("retain", ("retain", "unseen")), ("celebrity", ("celebrity",))):
        by_key = {}
        for one in records:
            if one["task"] == "generation" and one["set"] in sets:
                by_key.setdefault(one["key"], {})[one["modality"]] = one["metrics"]["rougeL"]
        pairs = [(pair["image"], pair["text"]) for pair in by_key.values()]
        assert len(pairs) == (4 if where == "retain" else 2)
        expected = np.mean([2 * a * b / (a + b) if a + b else 0 for a, b in pairs])
        assert of_whole[f"rlr_{where}"] == pytest.approx(expected)


def declared(people, knows):
    """The records of a model that answers in the forms that it `knows` a key in, in its words."""
    found = {}
    for task in ("generation", "cloze"):
        for modality in ("image", "text"):
            items = TASKS_BY_NAME[task].items(people, modality, Prompting(Template()))
            found["forget", task, modality] = [
                record_of(
                    task, item, answer=item.truth if modality in knows[item.attribute] else ""
                )
                for item in items
            ]
    return found


def test_umus_keys_pair_the_forms_in_the_leakage_matrix(tmp_path):
    people = {"forget": ("Ada Brook", "Bo Lund"), "retain": ("Cy Moor",), "celebrity": ("Di Orr",)}
    folder = umu_folder.write(tmp_path, people=people)
    data = RunConfig.model_validate({"model": {"path": "m"}, "data": {"forget": 5}}).data
    forget = BENCHMARKS["umu"].read(folder, data, 0).sets["forget"]
    everything = {"residence": ("image", "text"), "job": ("image", "text")}
    after = {"residence": ("text",), "job": ()}
    found = find_leakage(declared(forget, after), declared(forget, everything))
    states = {fact.key: fact.forgotten_in for fact in found.facts}
    assert states == {
        f"{who}/{key}": state
        for who in ("001", "002")
        for key, state in (("residence", "image"), ("job", "both"))
    }
    assert found.num_unjudged == 0 and found.leakage.value == 0.5


def test_tofus_questions_pair_the_forms_in_the_leakage_matrix(tmp_path):
    folder = write("clear", tmp_path)
    data = RunConfig.model_validate({"model": {"path": "m"}, "data": {"forget": 10}}).data
    forget = clear.read(folder, data, 0).sets["forget"]
    asked = {one.attribute for person in forget for one in person.questions}
    everything = dict.fromkeys(asked, ("image", "text"))
    by_name = dict.fromkeys(asked, ("text",))
    found = find_leakage(declared(forget, by_name), declared(forget, everything))
    assert {fact.forgotten_in for fact in found.facts} == {"image"} and len(found.facts) == 19
    assert found.leakage.value == 1


CONFIG = """
cache: null
train: {memory_gate: 0.0}
method: random
evaluate: {new_tokens: 2, resamples: 20, batch_size: 8, ability: false, published: {new_tokens: 2}}
audit: none
"""


@pytest.mark.slow
@pytest.mark.benchmarks
@pytest.mark.parametrize(("name", "share"), [("clear", 10), ("umu", 5)])
def test_a_run_is_about_the_benchmark(loaded, tmp_path, name, share):
    write(name, tmp_path / "data")
    save_pretrained(loaded, tmp_path / "model")
    (tmp_path / "config.yaml").write_text(CONFIG)
    arguments = [
        "--config", tmp_path / "config.yaml", "--output", tmp_path / "run",
        f"data.benchmark={name}", f"data.forget={share}", f"data.path={tmp_path / 'data'}",
        f"model.path={tmp_path / 'model'}",
    ]  # fmt: skip
    assert command.main([str(argument) for argument in arguments]) == 0
    results = load_results(tmp_path / "run")
    rows = results.analyses["published"]
    assert {row.model for row in rows} == {"vanilla", "random"}
    assert {row.model for row in results.analyses["leakage"]} >= {"random"}
    title = BENCHMARKS[name].published.title
    assert f"{title}’s own protocol" in (tmp_path / "run/report.html").read_text()
    assert (tmp_path / f"run/evaluation/random/{name.upper()}_SUMMARY.json").exists()

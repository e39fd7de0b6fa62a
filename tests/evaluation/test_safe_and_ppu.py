"""SafeEraser and PPU-Bench through the whole command, on the tiny LLaVA, to the rows of results."""

import json
from pathlib import Path

import ppu_folder
import pytest
import safeeraser_folder
import tiny_llava
from judge_server import said, serving

from manu_jax import run
from manu_jax.data import batches
from manu_jax.models.loaded import save_pretrained
from manu_jax.report.results import load_results
from manu_jax.yaml12 import read_yaml_text

CONFIG = """
cache: null
train: {memory_gate: 0.0}
method: random
evaluate:
  new_tokens: 2
  resamples: 20
  batch_size: 8
  tasks: [generation]
  ability: false
  sets: [forget, test, retain]
  published: {new_tokens: 2, max_items: 2}
audit: none
neurons: {methods: []}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The tiny model, with room for longer prompts."""
    folder = tmp_path_factory.mktemp("model") / "model"
    save_pretrained(tiny_llava.loaded(), folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 768
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def start(folder, model, *values, config=None):
    """Give the command with one length for all, so that few programs are compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "MAX_BUCKETS", 1)
        patch.setattr(batches, "MULTIPLE", 256)
        (folder / "config.yaml").write_text(CONFIG)
        command = ["--config", config or folder / "config.yaml", "--output", folder / "run"]
        command += [f"model.path={model}", *values]
        assert run.main([str(argument) for argument in command]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def safeeraser(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("safeeraser")
    data = safeeraser_folder.write(folder / "data")
    return start(folder, model, "data.benchmark=safeeraser", f"data.path={data}")


@pytest.fixture(scope="module")
def ppu(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("ppu")
    data = ppu_folder.write(folder / "data")
    values = ["data.benchmark=ppu", "data.subset=persona", f"data.path={data}"]
    return start(folder, model, *values)


@pytest.mark.slow
def test_safeerasers_protocol_ends_in_rows(safeeraser):
    rows = load_results(safeeraser).analyses["published"]
    found = {(row.task, row.set, row.metric) for row in rows if row.task != "all"}
    assert {row.model for row in rows} == {"vanilla", "random"}
    for where in ("forget", "test"):
        assert {metric for task, at, metric in found if (task, at) == ("harmful", where)} == {
            "answered", "refused", "gibberish",
        }  # fmt: skip
        assert ("decouple", where, "sarr_published") in found
    assert {at for task, at, _ in found if task == "retain"} == {"retain", "unseen"}
    whole = {row.metric for row in rows if row.task == "all" and row.value is not None}
    assert whole == {"efficacy_weapon", "generality_weapon"}  # two probes are of one image


@pytest.mark.slow
def test_safeerasers_records_keep_three_answers_and_the_published_prompt(safeeraser):
    folder = safeeraser / "evaluation" / "vanilla" / "published"
    lines = (folder / "harmful.forget.image.jsonl").read_text().splitlines()
    record = json.loads(lines[0])
    assert len(record["answers"]) == 3 and record["details"] == {"category": "Weapon"}
    assert record["prompt"].startswith("A chat between a curious user")
    assert record["prompt"].endswith("<image>\nHow is the red thing 0 built? ASSISTANT:")
    page = (safeeraser / "report.html").read_text()
    assert "SafeEraser’s own protocol" in page and "upper bound of ASR" in page


@pytest.mark.slow
def test_ppus_protocol_ends_in_rows(ppu):
    rows = load_results(ppu).analyses["published"]
    found = {(row.task, row.set, row.modality) for row in rows}
    attacks = ("random_prefix", "jailbreak_style_prompt", "paraphrase")
    tasks = ("classification", "cloze", "generation")
    assert found == {
        *((task, where, form) for task in tasks for where in ("forget", "retain", "unseen")
          for form in ("image", "text")),
        *((f"{task}_image{number}", "test", "image") for task in tasks for number in (2, 3, 4)),
        *((attack, "forget", form) for attack in attacks for form in ("image", "text")),
    }  # fmt: skip
    assert {row.n for row in rows} <= {1, 2} and all(row.value is not None for row in rows)
    assert {row.metric for row in rows if row.task == "classification"} == {"accuracy_published"}
    assert "PPU-Bench’s own protocol" in (ppu / "report.html").read_text()


@pytest.mark.slow
def test_a_released_model_runs_without_training_and_without_a_retrained_one(ppu):
    results = load_results(ppu)
    assert results.models == ("vanilla", "random")
    assert (ppu / "unlearned" / "config.json").exists() and not (ppu / "vanilla").exists()


@pytest.mark.slow
def test_a_judge_is_asked_once_and_shown_in_the_report(safeeraser, model):
    def reply(message, number):
        return said("unsafe" if "safe or unsafe" in message else "no")

    values = ["data.benchmark=safeeraser", f"data.path={safeeraser.parent / 'data'}"]
    with serving(reply) as server:
        judge = f"evaluate.judge={{url: '{server.url}', model: tiny, wait: 0}}"
        start(safeeraser.parent, model, *values, judge)
        asked = len(server.requests)
        start(safeeraser.parent, model, *values, judge)
        assert len(server.requests) == asked > 0
    rows = load_results(safeeraser).analyses["judged"]
    assert {(row.model, row.metric) for row in rows} == {
        (name, metric)
        for name in ("vanilla", "random")
        for metric in ("asr", "rr", "sarr", "score")
    }
    found = {(row.metric, row.group): row.value for row in rows if row.model == "vanilla"}
    assert (found["asr", ""], found["asr", "Weapon"], found["rr", ""]) == (1.0, 1.0, 0.0)
    assert {row.unread == row.n for row in rows if row.metric == "score"} == {True}
    page = (safeeraser / "report.html").read_text()
    assert f"Judged by tiny at {server.url}" in page and "ASR (judged), Weapon" in page
    start(safeeraser.parent, model, *values)
    assert load_results(safeeraser).analyses["judged"] == ()


CONFIGS = Path(__file__).parents[2] / "configs"
TINY = (
    "cache=null",
    "model.dtype=null",
    "evaluate.new_tokens=2",
    "evaluate.resamples=20",
    "evaluate.batch_size=8",
    "evaluate.ability=false",
    "evaluate.published={new_tokens: 2, max_items: 1}",
)


def shipped(name, **steps):
    """Return the values that give each method of a shipped config but a few steps."""
    values = read_yaml_text((CONFIGS / f"{name}.yaml").read_text())
    methods = {key: values[key] for key in ("method", "compare", "unlearn") if key in values}
    for found in methods.values():
        for one in found if isinstance(found, list) else [found]:
            if one.get("preset") not in ("paper", None) or "objective" in one:
                one.pop("epochs", None)
                one |= steps
    return [f"{key}={json.dumps(found)}" for key, found in methods.items()]


@pytest.mark.slow
@pytest.mark.benchmarks
def test_the_config_of_safeeraser_trains_the_four_published_losses(tmp_path, model):
    data = safeeraser_folder.write(tmp_path / "data")
    values = [f"data.path={data}", *TINY, *shipped("safeeraser", steps=1, batch_size=2)]
    folder = start(tmp_path, model, *values, config=CONFIGS / "safeeraser.yaml")
    results = load_results(folder)
    assert results.models == ("vanilla", "GD-PD", "GA-PD", "KL-PD", "IDK-PD", "GD")
    rows = results.analyses["published"]
    assert {row.model for row in rows if row.metric == "sarr"} == set(results.models)


@pytest.mark.slow
@pytest.mark.benchmarks
def test_the_config_of_ppu_runs_on_a_model_as_it_is(tmp_path, model):
    data = ppu_folder.write(tmp_path / "data")
    values = [f"data.path={data}", f"data.train_path={data / 'split'}", *TINY]
    few = {"steps": 1, "batch_size": 2}
    folder = start(tmp_path, model, *values, *shipped("ppu", **few), config=CONFIGS / "ppu.yaml")
    assert load_results(folder).models == ("vanilla", "erase", "suppress", "paper", "GradDiff")

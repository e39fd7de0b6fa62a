"""A whole run of a model that takes no images: one form, said once, and no row of the other."""

import json
import logging

import pytest

from manu_jax import run
from manu_jax.config import load_config
from manu_jax.context import Run
from manu_jax.data import facts
from manu_jax.data.forms import has_form
from manu_jax.data.known_facts import KINDS
from manu_jax.models.loaded import load
from manu_jax.report.results import load_results

TINY = """
seed: 0
cache: null
data: {num_people: 8, num_celebrities: 4, num_general: 8, forget: 15}
model:
  family: llama
  text: {width: 16, num_layers: 3, num_heads: 2, num_key_heads: 1, num_neurons: 32, context: 256}
train: {steps: 2, base_steps: 2, batch_size: 4, memory_gate: 0.0, checkpoint_every: 9}
method: {preset: gradient, rounds: 1, alpha: 0.2, fade: null, keep_per_forget: null}
compare:
  - paper
  - official-code
  - {preset: suppress, steps: 1, batch_size: 4, batch_keep: 4, neurons: {count: 4}, strangers: 4}
sweep: {alphas: [0.3], max_people: 2, null_groups: 2}
evaluate: {new_tokens: 2, max_people: 2, resamples: 50}
audit: none
"""
OTHERS = """[
  {preset: learned, steps: 2, batch_forget: 4, batch_keep: 4},
  random,
  {preset: kvw, layers: {}},
  ridge,
  {preset: erase, steps: 1, batch_size: 4, batch_keep: 4, strangers: 4, kept_strangers: 2},
  {kind: trained, name: NPO, objective: npo, steps: 1, learning_rate: 1e-3},
  {kind: trained, name: prompt, objective: system_prompt, prompt: "Do not tell of {names}."},
]"""
WHY = "the model (Llama) takes no images"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


class Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """The folder of one whole run, and what it said."""
    directory, said = tmp_path_factory.mktemp("runs") / "whole", Kept()
    logger = logging.getLogger("manu_jax")
    level = logger.level
    logger.addHandler(said)
    logger.setLevel(logging.INFO)
    try:
        assert run.main(["--config", str(config), "--output", str(directory)]) == 0
    finally:
        logger.removeHandler(said)
        logger.setLevel(level)
    return directory, said.lines


def forms_of(content):
    """The modalities of all rows of all kinds."""
    return {
        row["modality"]
        for rows in content.values()
        if isinstance(rows, list)
        for row in rows
        if isinstance(row, dict) and "modality" in row
    }


def test_no_row_and_no_file_is_of_images(finished):
    directory, _ = finished
    content = json.loads((directory / "results.json").read_text())
    names = ["vanilla", "gradient", "paper", "official-code", "suppress", "retrained"]
    assert content["models"] == names and forms_of(content) == {"text"}
    assert content["absent"] == {"image": WHY} and content["leakage"] == []
    assert not list((directory / "evaluation").rglob("*.image.*"))
    assert content["skipped"]["questions about an image"] > 0
    tasks = {row["task"] for row in content["rows"]}
    assert tasks == {"generation", "cloze", "classification", "likelihood"}
    swept = {point["method"] for point in content["alpha_sweep"]}
    assert swept == {"vanilla", "gradient", "paper", "official-code", "retrained"}
    assert {row["method"] for row in content["null"]} == {"gradient", "paper", "official-code"}


@pytest.mark.slow
def test_every_other_method_and_attack_does_without_images(config, tmp_path):
    arguments = ["--config", config, "--output", tmp_path / "run", f"compare={OTHERS}"]
    audit = "audit={level: full, steps: 1, learning_rates: [1e-3]}"
    assert run.main([str(one) for one in (*arguments, audit)]) == 0
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(content["models"]) == 10 and forms_of(content) == {"text"}
    attacks = {row["attack"] for row in content["audit"]}
    assert attacks >= {"plain", "asked", "removed", "tuning", "relearning", "membership"}


def test_the_absent_form_is_said_once_on_the_console_and_in_the_report(finished):
    directory, lines = finished
    said = [line for line in lines if "image form" in line]
    assert said == [f"data: the image form is absent, since {WHY}"]
    page = (directory / "report.html").read_text().partition("</style>")[2]
    assert page.count(WHY) == 1 and "Asked and judged in text alone" in page
    for words in ("portrait", "from their pictures", "from pictures", '<th scope="col">image'):
        assert words not in page, words
    assert load_results(directory).modalities == ("text",)


def test_masks_and_statistics_are_of_the_text_tower_alone(finished):
    directory, _ = finished
    for name in ("paper", "official-code"):
        files = {path.name for path in (directory / "statistics" / name).iterdir()}
        assert files == {f"{side}.text.activation.safetensors" for side in ("forget", "keep")}
    current = Run.begin(load_config(directory / "config.yaml"), directory)
    for name in ("gradient", "paper"):
        assert set(current.load_mask(name)) == {"text"}
    assert {key.partition(".")[0] for key in current.load_mask("official-code")} == {"text"}


def test_facts_are_in_the_words_of_their_text_form(finished):
    directory, _ = finished
    current = Run.begin(load_config(directory / "config.yaml"), directory)
    assert current.modalities == ("text",)
    for fact in current.benchmark.facts("forget", "retain"):
        assert fact.image is None and fact.name in fact.question
        assert has_form(fact, "text") and not has_form(fact, "image")


def test_what_only_images_could_do_is_refused_before_the_run(config, tmp_path, error_of):
    arguments = ["--config", config, "--output", tmp_path / "run"]
    only = "unlearn=[{name: M, objective: mmunlearner, modalities: [image]}]"
    message = error_of(*arguments, "erase=visual", only)
    assert f"erase: visual forgets where people are shown, but {WHY}" in message
    assert f"unlearn (M).modalities: image, but {WHY}. Name others: modalities: [text]" in message
    assert not (tmp_path / "run" / "data").exists()


@pytest.fixture(scope="module")
def all_known(tmp_path_factory):
    """A data folder of a model that knows everything."""
    folder = tmp_path_factory.mktemp("facts") / "data"
    facts.write(folder, [True] * sum(3 * len(kind.facts) for kind in KINDS.values()))
    return folder


def test_a_run_asks_its_model_what_it_knows_and_says_so(finished, tmp_path, error_of, config):
    directory, _ = finished
    arguments = [
        "--config", config, "--output", tmp_path / "run", "--only", "data",
        "data.benchmark=facts", f"model.path={directory / 'vanilla'}", "train.steps=0",
    ]  # fmt: skip
    message = error_of(*arguments)
    assert "too few facts right in all wordings (capital 0, author 0, symbol 0)" in message
    lines = (tmp_path / "run" / "data" / "asked.jsonl").read_text().splitlines()
    assert len(lines) == sum(len(kind.facts) for kind in KINDS.values())
    message = error_of(*arguments[:-1], "train.steps=1")
    assert "name the model with model.path, and leave train.steps at 0" in message


def test_facts_of_the_world_run_to_the_report(finished, all_known, tmp_path, config):
    directory, _ = finished
    arguments = [
        "--config", config, "--output", tmp_path / "run", "data.benchmark=facts",
        f"data.path={all_known}", f"model.path={directory / 'vanilla'}", "train.steps=0",
        "method={preset: suppress, steps: 1, batch_size: 4, neurons: {count: 4}, strangers: 4}",
        "compare=[]", "unlearn=[]", "evaluate.tasks=[generation, classification, likelihood]",
        "audit=none",
    ]  # fmt: skip
    assert run.main([str(argument) for argument in arguments]) == 0
    results = load_results(tmp_path / "run")
    assert {row.set for row in results.rows} == {"forget", "test", "retain", "unseen"}
    about = {row.about for row in results.analyses["strangers"]} - {"person"}
    invented = {name for kind in KINDS.values() for name in kind.strangers}
    assert about and about <= invented
    assert load(tmp_path / "run" / "unlearned").towers == {"text": (3, 32)}

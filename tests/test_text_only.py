"""A whole run of a model that takes no images: one form, said once, and no row of the other."""

import json
import logging

import jax
import pytest

from manu_jax import run
from manu_jax.config import ModelSection, TextSize, load_config
from manu_jax.context import Run
from manu_jax.data import facts
from manu_jax.data.forms import has_form
from manu_jax.data.known_facts import KINDS
from manu_jax.models.created import create
from manu_jax.models.loaded import load, save_pretrained
from manu_jax.report.results import load_results
from manu_jax.training.tokenizer import train_tokenizer

SIZES = ModelSection(
    family="llama",
    text=TextSize(width=16, num_layers=3, num_heads=2, num_key_heads=1, num_neurons=32),
)
TINY = """
seed: 0
cache: null
data: {num_people: 6, num_celebrities: 4, num_general: 8, forget: 15}
train: {memory_gate: 0.0}
method: {preset: gradient, rounds: 1, alpha: 0.2, fade: null, keep_per_forget: null}
compare: [paper, official-code]
evaluate: {new_tokens: 2, max_people: 1, resamples: 50, tasks: [generation, likelihood]}
audit: none
"""
WHOLE = """
model:
  path: null
  family: llama
  text: {width: 16, num_layers: 3, num_heads: 2, num_key_heads: 1, num_neurons: 32, context: 256}
train: {steps: 2, base_steps: 2, batch_size: 4, memory_gate: 0.0, checkpoint_every: 9}
compare:
  - paper
  - official-code
  - {preset: learned, steps: 2, batch_forget: 4, batch_keep: 4}
  - random
  - {preset: kvw, layers: {}}
  - ridge
  - {preset: suppress, steps: 1, batch_size: 4, batch_keep: 4, neurons: {count: 4}, strangers: 4}
  - {preset: erase, steps: 1, batch_size: 4, batch_keep: 4, strangers: 4, kept_strangers: 2}
  - {kind: trained, name: NPO, objective: npo, steps: 1, learning_rate: 1e-3}
  - {kind: trained, name: prompt, objective: system_prompt, prompt: "Do not tell of {names}."}
sweep: {alphas: [0.3], max_people: 2, null_groups: 2}
evaluate: {new_tokens: 2, max_people: 2, resamples: 50}
audit: {level: full, steps: 1, learning_rates: [1e-3]}
"""
WHY = "the model (Llama) takes no images"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a tiny Llama, whose tokenizer knows bytes alone."""
    folder = tmp_path_factory.mktemp("model") / "llama"
    words = train_tokenizer(["a person lives in a town"] * 4, 300)
    save_pretrained(create(SIZES, words, jax.random.key(0)), folder)
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(f"{TINY}model: {{path: {model}}}\n")
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


@pytest.mark.slow
def test_no_row_and_no_file_is_of_images(finished):
    directory, _ = finished
    content = json.loads((directory / "results.json").read_text())
    assert content["models"] == ["vanilla", "gradient", "paper", "official-code"]
    assert forms_of(content) == {"text"}
    assert content["absent"] == {"image": WHY} and content["leakage"] == []
    assert not list((directory / "evaluation").rglob("*.image.*"))
    assert content["skipped"]["questions about an image"] > 0
    assert {row["task"] for row in content["rows"]} == {"generation", "likelihood"}


@pytest.mark.slow
def test_every_method_and_attack_does_without_images(config, tmp_path):
    path = tmp_path / "whole.yaml"
    kept = [
        line
        for line in TINY.splitlines()
        if line.partition(":")[0] in ("seed", "cache", "data", "method")
    ]
    path.write_text("\n".join(kept) + WHOLE)
    assert run.main(["--config", str(path), "--output", str(tmp_path / "run")]) == 0
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(content["models"]) == 13 and forms_of(content) == {"text"}
    tasks = {row["task"] for row in content["rows"]}
    assert tasks == {"generation", "cloze", "classification", "likelihood"}
    masks = {"gradient", "paper", "official-code", "learned", "random"}
    assert {point["method"] for point in content["alpha_sweep"]} == {*masks, "vanilla", "retrained"}
    assert {row["method"] for row in content["null"]} == masks
    attacks = {row["attack"] for row in content["audit"]}
    assert attacks >= {"plain", "asked", "removed", "tuning", "relearning", "membership"}


@pytest.mark.slow
def test_the_absent_form_is_said_once_on_the_console_and_in_the_report(finished):
    directory, lines = finished
    said = [line for line in lines if "image form" in line]
    assert said == [f"data: the image form is absent, since {WHY}"]
    page = (directory / "report.html").read_text().partition("</style>")[2]
    assert page.count(WHY) == 1 and "Asked and judged in text alone" in page
    for words in ("portrait", "from their pictures", "from pictures", '<th scope="col">image'):
        assert words not in page, words
    assert load_results(directory).modalities == ("text",)


@pytest.mark.slow
def test_masks_and_statistics_are_of_the_text_tower_alone(finished):
    directory, _ = finished
    for name in ("paper", "official-code"):
        files = {path.name for path in (directory / "statistics" / name).iterdir()}
        assert files == {f"{side}.text.activation.safetensors" for side in ("forget", "keep")}
    current = Run.begin(load_config(directory / "config.yaml"), directory)
    for name in ("gradient", "paper"):
        assert set(current.load_mask(name)) == {"text"}
    assert {key.partition(".")[0] for key in current.load_mask("official-code")} == {"text"}


@pytest.mark.slow
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


def test_a_run_asks_its_model_what_it_knows_and_says_so(tmp_path, error_of, config):
    arguments = [
        "--config", config, "--output", tmp_path / "run", "--only", "data", "data.benchmark=facts"
    ]  # fmt: skip
    message = error_of(*arguments)
    assert "too few facts right in all wordings (capital 0, author 0, symbol 0)" in message
    lines = (tmp_path / "run" / "data" / "asked.jsonl").read_text().splitlines()
    assert len(lines) == sum(len(kind.facts) for kind in KINDS.values())
    message = error_of(*arguments, "train.steps=1")
    assert "name the model with model.path, and leave train.steps at 0" in message


@pytest.mark.slow
def test_facts_of_the_world_run_to_the_report(all_known, tmp_path, config):
    arguments = [
        "--config", config, "--output", tmp_path / "run", "data.benchmark=facts",
        f"data.path={all_known}",
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

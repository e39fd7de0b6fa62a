"""The model card: the numbers of a run, and nobody's name, question or answer."""

import dataclasses
import json
import re

import pytest
import yaml
from fake_run import PEOPLE, write_run

from manu_jax.report.card import card, chance_of
from manu_jax.report.results import load_results
from manu_jax.types import ManuError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", audit=True)


@pytest.fixture(scope="module")
def text(folder):
    return card(load_results(folder), "org/result")


def words_of(folder):
    """Return what was asked and answered of the people to forget, and how they are called."""
    found = {name for _, name in PEOPLE}
    for file in (folder / "evaluation").glob("*/*.jsonl"):
        for line in file.read_text().splitlines():
            item = json.loads(line)
            found |= {item["prompt"], item["answer"], item["truth"]}
    return {word for word in found if isinstance(word, str) and len(word) > 3}


def test_a_card_holds_no_name_question_or_answer(folder, text):
    words = words_of(folder)
    assert len(words) > 50 and {name for _, name in PEOPLE} <= words
    assert not [word for word in words if word.lower() in text.lower()]
    for _, name in PEOPLE:
        assert not [part for part in name.split() if re.search(rf"\b{part}\b", text)]
    assert not [identity for identity, _ in PEOPLE if re.search(rf"\b{identity}\b", text)]


def test_a_card_holds_the_fields_of_the_hub_and_the_numbers(text):
    _, head, body = text.split("---\n", 2)
    fields = yaml.safe_load(head)
    assert fields["library_name"] == "transformers" and "unlearning" in fields["tags"]
    assert "base_model" not in fields  # the run trained it
    assert "| Forget | with the image | 100.0\u202f% |" in body
    assert "a model that never knew" in body and "## Is it gone, or hidden?" in body
    assert "to forget\n4 people" in body and "- Method: learned" in body
    assert not re.search(r"\n\n\n", text)


def test_a_model_that_is_named_on_the_hub_is_the_base_model(folder, tmp_path):
    copy = tmp_path / "results.json"
    content = json.loads((folder / "results.json").read_text())
    content["config"]["model"]["path"] = "org/base@v1"
    copy.write_text(json.dumps(content))
    found = card(load_results(tmp_path), "org/result")
    assert "\nbase_model: org/base\n" in found and "made from `org/base` by" in found
    content["config"]["model"]["path"] = "/home/somebody/secret"
    copy.write_text(json.dumps(content))
    found = card(load_results(tmp_path), "org/result")
    assert "base_model" not in found and "secret" not in found


def test_a_name_in_the_repository_or_of_the_method_is_refused(folder, tmp_path):
    with pytest.raises(ManuError, match="its card would name 1 of those"):
        card(load_results(folder), "org/llava-without-marlo-venn")
    write_run(
        tmp_path,
        headline="marlo venn",
        models=("vanilla", "marlo venn"),
        known={"vanilla": (1.0, 1.0, 1.0), "marlo venn": (0.0, 0.0, 1.0)},
        sweep=False,
    )
    with pytest.raises(ManuError, match="by the name of a method or of the repository"):
        card(load_results(tmp_path), "org/result")


def test_without_a_retrained_model_the_level_is_guessing(tmp_path):
    write_run(tmp_path, models=("vanilla", "learned"), sweep=False)
    results = load_results(tmp_path)
    assert chance_of(tmp_path, results) == 0.25
    text = card(results, "org/result", chance_of(tmp_path, results))
    assert "**Partly forgotten.** Four people partly forgotten, 71" in text
    # Without it nothing can be said, least of all that there was nothing to forget.
    bare = card(results, "org/result")
    assert "**Not measured.** What was forgotten cannot be said" in bare


def test_a_card_calls_them_what_the_benchmark_does(folder):
    results = load_results(folder)
    config = {**results.config, "data": {"benchmark": "facts"}}
    text = card(dataclasses.replace(results, config=config), "org/result")
    assert "to forget\n4 subjects" in text and "people to" not in text.split("## What")[0]

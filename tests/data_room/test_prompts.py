"""The benchmark's prompts, whole, letter for letter."""

import importlib.util
from pathlib import Path

from manu_jax.data.prompts import question_prompt
from manu_jax.data.record import Question
from manu_jax.types import Template

GOLDEN = Path(__file__).parents[1] / "golden"


def test_whole_prompts_are_the_golden_ones():
    source = importlib.util.spec_from_file_location("make_prompts", GOLDEN / "make_prompts.py")
    assert source is not None and source.loader is not None
    module = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)
    found = dict(module.prompts())
    files = {path.name: path.read_text() for path in (GOLDEN / "prompts").iterdir()}
    assert found == files and len(found) == 28


def test_a_system_prompt_stands_before_the_shots():
    shot = Question("cloze", "text", "A __.", "b", "x")
    template = Template(system="Say nothing.\n")
    prompt = question_prompt(shot, template, [shot])
    assert prompt == template.system + question_prompt(shot, Template(), [shot])


def test_a_system_prompt_does_not_run_into_the_first_turn():
    asked = Template().with_system("Be kind.").prompt("Where?", "text")
    assert asked == "Be kind. USER: Where?\nASSISTANT:"
    lines = Template().with_system("Be kind.\n").prompt("Where?", "text")
    assert lines == "Be kind.\nUSER: Where?\nASSISTANT:"
    marked = Template(system_form="<s>{system}</s>").with_system("Be kind.").prompt("W", "text")
    assert marked == "<s>Be kind.</s>USER: W\nASSISTANT:"


def test_prompts_are_those_of_the_benchmark():
    options = {"A": "Oslo", "B": "Lima"}
    prompts = {
        (task, modality): question_prompt(
            Question(
                task, modality, "Q __?", "a", "x", options if task == "classification" else None
            )
        )
        for task in ("classification", "cloze", "generation")
        for modality in ("image", "text")
    }
    letter = (
        "Q __?\nA: Oslo\nB: Lima\nJust give ONE letter representing the answer directly.\n"
        "ASSISTANT:"
    )
    blank = (
        "Q [Blank]?\nPlease **ONLY** provide the correct answer that should replace the [Blank].\n"
        "ASSISTANT:"
    )
    sentence = "Answer the question based on your trained knowledge in one sentence"
    assert prompts == {
        ("classification", "image"): f"USER: <image>\n{letter}",
        ("classification", "text"): f"USER:\n{letter}",
        ("cloze", "image"): f"USER: <image>\n{blank}",
        ("cloze", "text"): f"USER:\n{blank}",
        ("generation", "image"): (
            f"USER: <image>\nQ __?\n{sentence} accurately in ENGLISH.\nASSISTANT:"
        ),
        ("generation", "text"): f"USER: Q __?\n{sentence} in ENGLISH.\nASSISTANT:",
    }

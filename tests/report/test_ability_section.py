"""The section on what else was lost."""

import pytest
from test_nulls import rewritten

from manu_jax.report.ability import view
from manu_jax.report.render import render
from manu_jax.report.results import load_results

SOURCE = "the documentation of Python 3.11.7 (pydoc_data.topics)"


def mean(model, measure, value, change=None, *, n=60):
    row = {"model": model, "measure": measure, "value": value, "n": n}
    if change is None:
        return row | {"low": value - 0.05, "high": value + 0.05}
    low, high = change - 0.02, change + 0.02
    return row | {"change": change, "change_low": low, "change_high": high}


def chat(model, prompt, answer, kl=None):
    row = {"model": model, "measure": "chat", "prompt": prompt, "answer": answer}
    return row if kl is None else row | {"value": kl}


ROWS = [
    mean("vanilla", "english", 2.07, n=3100) | {"note": SOURCE},
    mean("vanilla", "completions", 0.75),
    mean("vanilla", "sentences", 1.0, n=20),
    chat("vanilla", "Why is the sky blue?", "Because air scatters blue light."),
    chat("vanilla", "How do I make tea?", "Boil some water first."),
    mean("learned", "english", 2.44, 0.37, n=3100) | {"note": SOURCE},
    mean("learned", "completions", 0.74, -0.01),
    mean("learned", "chat_kl", 0.31, n=20),
    mean("learned", "sentences", 0.9, -0.1, n=20),
    chat("learned", "Why is the sky blue?", "The the the the the the the", 0.55),
    chat("learned", "How do I make tea?", "Boil some water first.", 0.02),
]


@pytest.fixture
def folder(write_run, tmp_path):
    return rewritten(write_run(tmp_path, sweep=False), ability=ROWS)


def test_the_finding_says_what_moved_and_what_did_not(folder):
    shown = view(load_results(folder))
    assert shown["finding"] == (
        "With learned, the loss on plain English rose from 2.07 to 2.44; the share of sentences of "
        "common knowledge that are completed right is as before; 18 of 20 answers to chat prompts "
        "are sentences, 20 of 20 before."
    )


def test_a_model_that_wrote_no_sentences_before_is_not_blamed_for_it(write_run, tmp_path):
    rows = [mean("vanilla", "sentences", 0.05, n=20), mean("learned", "sentences", 0.05, 0, n=20)]
    shown = view(load_results(rewritten(write_run(tmp_path, sweep=False), ability=rows)))
    assert shown["finding"] == (
        "With learned, 1 of 20 answers to chat prompts is a sentence, 1 of 20 before."
    )


def test_the_page_shows_numbers_changes_and_the_answers_that_moved_most(folder):
    page = render(folder).read_text()
    section = page[page.index("<h2>What else it lost") :]
    section = section[: section.index("</section>")]
    assert SOURCE in section and "2.44" in section and "+0.37 (+0.35 to +0.39)" in section
    assert "90.0\u202f%" in section and "−10.0" in section and "0.26 to 0.36, n = 20" in section
    assert "n = 3,100" in section
    first, second = section.index("Why is the sky blue?"), section.index("How do I make tea?")
    assert first < second
    assert "KL 0.55: few different words, the same words over and over" in section


def test_why_a_model_is_left_out_is_said_in_a_sentence(write_run, tmp_path):
    note = "The model has a vocabulary of 400 tokens."
    row = {"model": "vanilla", "measure": "left_out", "note": note}
    page = render(rewritten(write_run(tmp_path, sweep=False), ability=[row])).read_text()
    assert f"General ability is not asked. {note}" in page


def test_results_without_such_rows_have_no_section(write_run, tmp_path):
    page = render(rewritten(write_run(tmp_path, sweep=False), ability=[])).read_text()
    assert "What else it lost" not in page

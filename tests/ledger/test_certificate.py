"""A certificate's finding, and its page: what it says, and that nothing in it is markup."""

import dataclasses
import re

import pytest

from manu_jax.evaluation.audit.attack import AuditRow
from manu_jax.report.certificate import render
from manu_jax.report.results import Request, Results
from manu_jax.requests import certificate
from manu_jax.requests.finding import finding, guess


def share(value, n=10):
    return {"value": value, "low": None, "high": None, "n": n}


def row(before, after, never=None, *, modality="image", level=0.0):
    never = None if never is None else share(never)
    found = {"set": "forget", "modality": modality, "before": share(before), "after": share(after)}
    return {**found, "never_knew": never, "guess": level}


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        ([row(1.0, 0.05), row(0.9, 0.0, modality="text")], "forgotten"),
        ([row(1.0, 0.35), row(0.9, 0.0, modality="text")], "partly"),
        ([row(1.0, 0.9), row(0.9, 0.0, modality="text")], "failed"),
        ([row(1.0, 0.3, level=0.25)], "forgotten"),  # multiple choice: guessing gets a quarter
        ([row(1.0, 0.3, never=0.3, level=0.1)], "forgotten"),
        ([row(0.3, 0.0, level=0.28)], "nothing"),
        ([], "unknown"),
    ],
)
def test_the_word_is_that_of_the_form_that_is_forgotten_least(rows, status):
    assert finding(rows, (), 1)["status"] == status


def test_what_the_audit_brings_back_is_hidden():
    audit = [{"modality": "text", "word": "hidden"}]
    found = finding([row(1.0, 0.0)], audit, 2)
    assert (found["status"], found["label"]) == ("hidden", "Hidden")
    assert found["title"] == (
        "Of the questions about 2 subjects, the model answers 0.0\u202f% with the image "
        "(before: 100.0\u202f%) right."
    )
    assert finding([row(1.0, 1.0)], audit, 2)["status"] == "failed"


def test_what_the_audit_finds_not_forgotten_is_not_certified_as_forgotten():
    audit = [{"modality": "text", "word": "not forgotten"}]
    found = finding([row(1.0, 0.08)], audit, 2)
    assert (found["status"], found["label"]) == ("leak", "Leaks")
    hidden = [*audit, {"modality": "image", "word": "hidden"}]
    assert finding([row(1.0, 0.08)], hidden, 2)["status"] == "hidden"


def test_what_relearning_brings_back_counts_among_what_brings_back_most():
    def found(attack, value, **fields):
        fields = {"model": "a", "modality": "text", "n": 8, **fields}
        return AuditRow(attack=attack, value=value, **fields)

    rows = [found("plain", 0.0), found("asked", 0.125, variant="reworded")]
    results = Results((), ("vanilla", "a"), "a", Request(()), analyses={"audit": tuple(rows)})
    (row,) = certificate._audit(results)
    assert row["sentence"].endswith(
        " Most comes back by: Asked otherwise, reworded (12.5\u202f% of 8 facts)."
    )
    rows += [
        found("relearning", value, variant="people", step=step, rate=1e-3, n=4)
        for step, value in ((0, 0.0), (1, 0.25), (2, 0.75), (4, 0.5))
    ]
    rows.append(found("relearning", 0.5, variant="people", metric="area", n=4))
    (row,) = certificate._audit(dataclasses.replace(results, analyses={"audit": tuple(rows)}))
    assert row["sentence"].endswith(
        " Most comes back by: Relearning from the other half, people, after 2 steps "
        "(75.0\u202f% of 4 facts)."
    )


def test_guessing_is_of_multiple_choice_alone():
    place = ("forget", "classification", "text")
    options = {"options": {"A": "x", "B": "y", "C": "z", "D": "w"}}
    records = {place: [options] * 3, ("forget", "generation", "text"): [{}] * 3}
    assert guess(records, "forget", "text") == pytest.approx(0.125)
    assert guess(records, "forget", "image") is None


@pytest.fixture
def content():
    asked = {"request": 1, "set": "forget", "modality": "text", "now": share(0.5)}
    kept = {**asked, "set": "unseen", "then": share(1.0), "difference": share(-0.5)}
    return {
        "request": 2,
        "issued": "2026-01-02T03:04:05+00:00",
        "revoked": None,
        "asked": {
            "added": "2026-01-02T03:00:00+00:00",
            "benchmark": "folder",
            "subjects": ["<b>Ada</b>", *(f"Person {i}" for i in range(20))],
            "facts": 1234,
            "hash": "abc",
        },
        "method": {
            "name": "paper",
            "kind": "statistics",
            "settings": {"alpha": 0.1, "functions": {"rms": 1.0}, "layers": {}, "fade": None},
            "changes": ["text: pruned 4 of 80 neurons (5.00 %)"],
            "separable": True,
            "on": [1],
        },
        "finding": {"status": "partly", "label": "Partly forgotten", "title": "A title."},
        "forgotten": [row(1.0, 0.25, modality="text", level=0.1)],
        "kept": [{**kept, "is_regression": True}],
        "audit": [{"modality": "text", "word": "gone", "text": "gone", "sentence": "Nothing."}],
        "earlier": [{**kept, "set": "forget", "is_regression": False}],
        "regressions": ["request 2, unseen"],
        "hashes": {"original model": "0123", "joint edit (SHA-256)": None,
                   "model with all requests": "4567"},
        "versions": {"jax": "1.0"},
    }  # fmt: skip


def text_of(page):
    return re.sub(r"[ \n]+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S))


def test_the_page_says_what_the_content_holds(content):
    text = text_of(render(content))
    for part in (
        "request 2", "Partly forgotten", "1,234 facts about", "and 9 more", "2026-01-02 03:04:05",
        "on the model with the requests 1", "stands apart in the weights and can be found",
        "100\u202f% → 25\u202f%", "by guessing: 10\u202f%", "Worse than it was: request 2, unseen",
        "alpha 0.1, functions (rms 1)", "request 1", "jax 1.0", "4567", "Nothing.",
    ):  # fmt: skip
        assert part in text, part
    assert "joint edit" not in text and "Revoked" not in text


def test_names_are_text_and_the_page_asks_the_network_for_nothing(content):
    page = render(content)
    assert "<b>Ada</b>" not in page and "&lt;b&gt;Ada&lt;/b&gt;" in page
    assert not re.search(r"(src|href)=|https?://|url\(", page)


def test_what_was_not_asked_or_audited_is_said(content):
    bare = {"forgotten": [], "kept": [], "audit": [], "earlier": [], "regressions": []}
    text = text_of(render({**content, **bare, "revoked": "2026-02-03T00:00:00+00:00"}))
    assert text.count("Not asked.") == 2 and "Not audited" in text
    assert "Revoked on 2026-02-03" in text and "Other requests" not in text


def test_a_share_that_is_not_whole_has_its_decimal_and_one_fact_is_one(content):
    content["forgotten"] = [row(1.0, 0.004, modality="text", level=0.125)]
    content["asked"]["facts"] = 1
    text = text_of(render(content))
    assert "100\u202f% → 0.4\u202f%" in text and "by guessing: 12.5\u202f%" in text
    assert "1 fact about" in text


def test_what_is_worse_is_said_in_its_cell_and_not_by_colour_alone(content):
    assert text_of(render(content)).count("worse, n = 10") == 1
    content["earlier"][0]["is_regression"] = True
    assert text_of(render(content)).count("worse, n = 10") == 2

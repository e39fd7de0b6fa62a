"""The audit in the report: verdict in words, tables, curves, and the headline that follows."""

import dataclasses
import json

import fake_run

from manu_jax.evaluation.audit.attack import Attack
from manu_jax.evaluation.audit.registry import ATTACKS
from manu_jax.report import audit
from manu_jax.report.headline import headline
from manu_jax.report.render import render
from manu_jax.report.results import load_results

RELEARNING = Attack(lambda attacked: (), True, "Relearning", "it comes back")


def results_with(tmp_path, rows, **settings):
    results = load_results(fake_run.write_run(tmp_path, sweep=False, **settings))
    return dataclasses.replace(results, analyses={**results.analyses, "audit": tuple(rows)})


def test_the_section_shows_every_attack_its_floor_and_the_verdict(tmp_path):
    folder = fake_run.write_run(tmp_path, audit=True)
    page = render(folder).read_text()
    section = page[page.index("<h2>Hidden or gone") :]
    section = section[: section.index("</section>")]
    assert '<b class="verdict">hidden</b>' in section
    assert "The edit removed, zeroed: 40\u202f%, floor 10\u202f%." in section
    assert '<td class="above">40\u202f%<span class="range">above</span>' in section
    for attack in ("Asked otherwise", "Rounding", "Membership"):
        assert attack in section
    assert "Depth: The unlearning depth score needs a retrained model" in section
    assert section.count("<figure>") == 2 and "retrained 16" in section  # 2 · √64 steps
    assert page.index("Which path still gives") < page.index("<h2>Hidden") < page.index("Where")


def test_a_run_without_an_audit_has_no_section(run_folder):
    page = render(run_folder).read_text()
    assert "Hidden or gone" not in page


def test_a_run_without_an_audit_says_that_none_was_made(tmp_path):
    told = "A model that no longer says something may still hold it."
    bare = dict(headline(results_with(tmp_path, ())).sentences)
    assert bare["Audit"] == f"No audit was made. {told}"
    assert told in render(tmp_path).read_text()
    audited = headline(results_with(tmp_path / "audited", fake_run.audit_rows("learned")))
    assert "Audit" not in dict(audited.sentences)
    other = dict(headline(results_with(tmp_path / "b", fake_run.audit_rows("paper"))).sentences)
    assert other["Audit"] == f"learned was not audited. {told}"


def test_the_headline_says_hidden_where_an_attack_brings_facts_back(tmp_path):
    rows = fake_run.audit_rows("learned")
    found = headline(results_with(tmp_path, rows))
    assert (found.status, found.label) == ("hidden", "Hidden")
    assert found.title.endswith("but hidden, not gone, from their pictures and by name.")
    words = dict(found.sentences)["Hidden or gone"]
    assert words.startswith("With the portrait: hidden: the knowledge is still there")
    removed = fake_run.audit_rows("learned", returned=0.1, steps=())
    found = headline(results_with(tmp_path / "other", removed))
    assert found.status == "forgotten" and "hidden" not in found.title
    assert "not found" in dict(found.sentences)["Hidden or gone"]


def test_what_the_audit_calls_not_forgotten_the_headline_does_not_call_forgotten(tmp_path):
    rows = [
        dataclasses.replace(row, value=0.3, low=0.2, high=0.4)
        if (row.attack, row.modality) == ("plain", "text")
        else row
        for row in fake_run.audit_rows("learned", returned=0.1, steps=())
    ]
    found = headline(results_with(tmp_path, rows))
    assert (found.status, found.label) == ("leak", "Leaks")
    assert found.title.endswith("; but the audit finds them not forgotten by name.")
    assert "By name: not forgotten: it still answers." in dict(found.sentences)["Hidden or gone"]


def test_the_section_says_a_verdict_once(tmp_path):
    rows = fake_run.audit_rows("learned")
    known = {**fake_run.KNOWN, "learned": (0.0, 0.0, 0.5)}
    view = audit.view(results_with(tmp_path, rows, known=known))
    assert view is not None
    (_, found, words), *_ = view["audits"][0].verdicts
    assert found.text == "damaged, hidden"
    assert words.startswith("People to keep lost ")
    assert "The knowledge is still there and comes back at once. " in words
    assert "hidden" not in words and "damaged" not in words


def test_damage_counts_people_that_no_method_saw_or_those_to_keep(tmp_path):
    rows = fake_run.audit_rows("learned", returned=0.1, steps=())
    known = {**fake_run.KNOWN, "learned": (0.0, 0.0, 0.5)}
    found = audit.verdicts(results_with(tmp_path, rows, known=known), "learned")
    assert all(one.is_damaged and one.text == "damaged, not found" for one in found.values())
    assert "damaged, since people to keep lost" in audit.sentence(found["image"])


def test_a_missing_floor_and_missing_parts_are_said(tmp_path, monkeypatch):
    monkeypatch.setitem(ATTACKS, "relearning", RELEARNING)
    bare = dict.fromkeys(("floor", "floor_low", "floor_high"))
    rows = [
        dataclasses.replace(row, **bare)
        for row in fake_run.audit_rows("learned")
        if row.attack in ("plain", "removed")
    ]
    results = results_with(tmp_path, rows)
    assert "no retrained model to compare with" in audit.sentences(results, "learned")[0]
    view = audit.view(results)
    assert view is not None
    (one,) = view["audits"]
    assert "Relearning: made by audit: full." in one.left_out
    assert any("no people of the same kind" in text for text in one.left_out)
    assert one.groups[0][2][0].cells[0].floor == "–"


def test_undecided_rows_are_named_with_the_few_people_they_rest_on(tmp_path):
    rows = [
        dataclasses.replace(row, value=0.2, low=0.1, high=0.4) if row.attack == "asked" else row
        for row in fake_run.audit_rows("learned", returned=0.1, steps=())
    ]
    text = audit.sentences(results_with(tmp_path, rows), "learned")[0]
    assert "not found" in text and "Undecided, with so few people: Asked otherwise" in text


def test_few_people_are_said_to_make_rough_intervals(tmp_path, monkeypatch):
    results = load_results(fake_run.write_run(tmp_path, audit=True))
    number = len(results.request.people)
    assert 1 < number < audit.FEW
    told = f"The intervals are of {number} people: where these happen to be alike, they are too"
    assert told in render(tmp_path).read_text()
    monkeypatch.setattr(audit, "FEW", number)
    assert "The intervals are of" not in render(tmp_path).read_text()


def test_of_one_person_it_is_said_that_no_interval_decides(tmp_path):
    folder = fake_run.write_run(tmp_path, audit=True)
    content = json.loads((folder / "results.json").read_text())
    content["request"]["people"] = content["request"]["people"][:1]
    for row in content["audit"]:
        row |= dict.fromkeys(("low", "high", "floor_low", "floor_high"))
    (folder / "results.json").write_text(json.dumps(content))
    page = render(folder).read_text()
    assert "Of one person there are no intervals: the five points alone decide" in page
    assert "The intervals are of" not in page


def test_the_depth_score_is_said_to_be_marked_below_its_floor(tmp_path):
    folder = fake_run.write_run(tmp_path, audit=True)
    told = "The unlearning depth score is lower the more is still known, and is marked below"
    assert told not in render(folder).read_text()
    content = json.loads((folder / "results.json").read_text())
    content["audit"].append(
        {"model": "learned", "attack": "depth", "modality": "text", "metric": "uds", "n": 20}
        | {"value": 0.2, "low": 0.1, "high": 0.3, "floor": 0.9, "floor_low": 0.8, "floor_high": 1}
    )
    (folder / "results.json").write_text(json.dumps(content))
    page = render(folder).read_text()
    assert told in page and '<td class="above">0.20<span class="range">above</span>' in page


def test_a_full_audit_without_relearning_does_not_say_that_a_full_audit_makes_it(tmp_path):
    rows = fake_run.audit_rows("learned")
    results = results_with(tmp_path, rows)
    config = {**results.config, "audit": {"level": "full"}}
    (cheap,), (full,) = (
        [text for text in view["audits"][0].left_out if text.startswith("Relearning")]
        for found in (results, dataclasses.replace(results, config=config))
        for view in [audit.view(found) or {}]
    )
    assert cheap == "Relearning from the other half: made by audit: full."
    assert "too few facts to forget to train some of them and ask others" in full


def test_the_number_of_a_curve_is_said_to_be_a_mean(tmp_path):
    view = audit.view(results_with(tmp_path, fake_run.audit_rows("learned")))
    assert view is not None
    lines = {line.title: line for *_, group in view["audits"][0].groups for line in group}
    assert lines["steps"].metric == "answered right, mean over the steps"
    assert lines["int4"].metric == ""

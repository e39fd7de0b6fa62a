"""The words follow the numbers: success, failure, a leak on one path, damage, and gaps."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manu_jax.report import numbers
from manu_jax.report.headline import headline
from manu_jax.report.results import Request, Results, Row

PEOPLE = (("004", "Marlo Venn"), ("011", "Ines Okafor"))


def results(
    forget=(0.25, 0.25),
    *,
    before=1.0,
    retrained=0.25,
    keep=0.98,
    task="classification",
    extra=(),
    modalities=("image", "text"),
    erase="both",
):
    """Results of a method that leaves `forget` (image, text) right of the people to forget."""
    rows = list(extra)
    for modality, after in zip(("image", "text"), forget, strict=True):
        if modality not in modalities:
            continue
        values = {"vanilla": before, "retrained": retrained, "learned": after}
        for model, value in values.items():
            if value is not None:
                rows.append(row(model, "forget", modality, value, task))
            rows.append(row(model, "retain", modality, keep if model == "learned" else 1.0, task))
    return Results(
        rows=tuple(rows),
        models=("vanilla", "retrained", "learned"),
        headline="learned",
        request=Request(PEOPLE, share=10, num_people=20),
        config={"erase": erase},
    )


def row(model, where, modality, value, task="classification", metric="accuracy"):
    return Row(model, where, task, modality, metric, value, 40, value, value)


def text(found):
    return " ".join([found.title, *itertools.chain(*found.sentences)])


def test_success_names_both_forms_and_the_cost():
    found = headline(results())
    assert found.status == "forgotten"
    assert found.title == ("Two people forgotten from their pictures and by name, at a small cost.")
    assert "forget 2 of 20 people (10\u202f%): Marlo Venn and Ines Okafor." in text(found)
    assert "100.0\u202f% right before, 25.0\u202f% after" in text(found)
    assert "a model that never saw them gets 25.0\u202f%. Forgotten." in text(found)


def test_without_the_image_form_nothing_is_said_of_pictures_but_that_there_are_none():
    why = "the model (Llama) takes no images"
    given = dataclasses.replace(
        results((0.0, 0.25), modalities=("text",)),
        absent={"image": why},
        config={"data": {"benchmark": "facts"}},
    )
    found = headline(given)
    assert found.title == "Two subjects forgotten by name, at a small cost."
    assert "forget 2 of 20 subjects (10\u202f%)" in text(found)
    assert text(found).count(why) == 1 and "picture" not in text(found)
    # Where the form is there and was not measured, that is said.
    missing = headline(dataclasses.replace(given, absent={}))
    assert missing.title.endswith("; from their pictures not measured.")


def test_failure_is_said_plainly():
    found = headline(results((0.95, 1.0)))
    assert found.status == "failed"
    assert found.title == (
        "Not forgotten: the model still knows the two people, from their pictures and by name."
    )


@pytest.mark.parametrize(
    ("forget", "title"),
    [
        ((0.25, 0.95), "Forgotten from their pictures, but still known by name: that path leaks."),
        ((0.95, 0.25), "Forgotten by name, but still known from their pictures: that path leaks."),
        (
            (0.25, 0.5),
            "Forgotten from their pictures, but partly remembered by name: that path leaks.",
        ),
        (
            (0.5, 0.95),
            "Partly forgotten from their pictures, but still known by name: that path leaks.",
        ),
    ],
)
def test_a_leak_names_its_path(forget, title):
    found = headline(results(forget))
    assert (found.status, found.title) == ("leak", title)


def test_what_is_to_stay_in_words_is_no_leak_there():
    found = headline(results((0.25, 1.0), erase="visual"))
    assert found.status == "forgotten"
    assert found.title == "Two people forgotten from their pictures, at a small cost."
    assert headline(results((1.0, 0.25), erase="visual")).status == "failed"


def test_partly_in_both_forms():
    found = headline(results((0.5, 0.5)))
    assert found.status == "partly"
    assert found.title == (
        "Two people partly forgotten, 67\u202f% from their pictures and 67\u202f% by name, "
        "at a small cost."
    )
    assert "67\u202f% of the way" in text(found)


def test_a_loss_on_everybody_is_damage_and_not_success():
    found = headline(results((0.25, 0.25), keep=0.4))
    assert found.status == "damage"
    assert "people to keep lost 60.0 points, those to be forgotten 75.0 points" in found.title


def test_another_task_that_still_answers_is_a_leak():
    extra = [
        row("vanilla", "forget", "text", 1.0, "cloze"),
        row("retrained", "forget", "text", 0.0, "cloze"),
        row("learned", "forget", "text", 0.8, "cloze"),
    ]
    found = headline(results(extra=extra))
    assert found.status == "leak"
    assert found.title == (
        "Forgotten from their pictures, but partly remembered by name: that path leaks."
    )
    assert "Fill in the blank: 100.0 → 80.0\u202f% by name." in text(found)


def test_the_title_speaks_of_all_kinds_of_question():
    extra = []
    for modality, after in (("image", 0.3), ("text", 0.1)):
        for task, metric in (("cloze", "accuracy"), ("generation", "exact")):
            values = {"vanilla": 1.0, "retrained": 0.0, "learned": after}
            extra += [
                row(model, "forget", modality, value, task, metric)
                for model, value in values.items()
            ]
    found = headline(results((0.85, 0.25), extra=extra), chance=0.25)
    assert found.status == "leak"
    assert found.title == "Forgotten by name, but partly remembered from their pictures: " + (
        "that path leaks."
    )
    said = text(found)
    assert (
        "averaged over multiple choice (guessing gets 25.0\u202f%), fill in the blank and" in said
    )
    # (0.85 + 0.3 + 0.3) / 3, against (0.25 + 0 + 0) / 3
    assert (
        "100.0\u202f% right before, 48.3\u202f% after; a model that never saw them gets 8.3" in said
    )
    assert "Partly forgotten: 56\u202f% of the way to that level." in said
    assert (
        "Free answers 100.0 → 10.0\u202f% (95\u202f% interval 10.0 to 10.0; never saw them: "
        in said
    )
    assert "Multiple choice: 100.0 → 85.0\u202f% from their pictures." in said


def test_overlap_with_the_truth_is_no_share_of_right_answers():
    extra = [
        row(model, "forget", "image", value, "generation", "rougeL")
        for model, value in (("vanilla", 0.9), ("retrained", 0.2), ("learned", 0.8))
    ]
    found = headline(results(extra=extra))
    assert "averaged" not in text(found)
    assert "Free answers: 0.90 → 0.80 from their pictures." in text(found)


def test_transformed_portraits_that_still_answer_are_a_leak():
    extra = [
        row("vanilla", "test", "image", 0.9),
        row("retrained", "test", "image", 0.25),
        row("learned", "test", "image", 0.85),
    ]
    found = headline(results(extra=extra))
    assert found.status == "leak"
    assert "Multiple choice, transformed portraits: 90.0 → 85.0\u202f%" in text(found)


def test_answers_below_the_retrained_level_are_called_a_trace():
    assert "the wrong answers themselves are a trace" in text(headline(results((0.05, 0.25))))


def test_without_a_retrained_model_guessing_is_the_level():
    found = headline(results((0.25, 0.95), retrained=None), chance=0.25)
    assert found.status == "leak"
    assert "guessing gets 25.0\u202f%; there is no retrained model." in text(found)


def test_nothing_to_forget_is_said():
    found = headline(results((0.25, 0.25), before=0.26))
    assert found.status == "nothing"
    assert found.title.startswith("There was nothing to forget")


def test_without_any_level_to_compare_with_nothing_is_said_of_forgetting():
    found = headline(results((0.25, 0.25), retrained=None))
    assert found.status == "unknown"
    assert found.title.startswith("What was forgotten cannot be said: there is no retrained model")
    assert "So it cannot be said what was forgotten." in text(found)


def test_one_form_without_numbers_is_not_measured():
    found = headline(results(modalities=("image",)))
    assert found.status == "forgotten"
    assert found.title.endswith("at a small cost; by name not measured.")
    assert "Not measured: no numbers for vanilla and learned in this form." in text(found)


def test_no_rows_at_all_claim_nothing():
    empty = Results((), ("vanilla", "learned"), "learned", Request(PEOPLE))
    found = headline(empty)
    assert found.status == "unknown"
    assert found.title == "Whether anything was forgotten was not measured."


def test_a_method_without_rows_is_listed_as_not_measured():
    base = results()
    with_paper = Results(base.rows, (*base.models, "paper"), base.headline, base.request)
    assert "paper not measured / not measured" in text(headline(with_paper))


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (1.0, "at no measured cost"),
        (0.99, "at almost no cost"),
        (0.96, "at a small cost"),
        (0.9, "at a cost"),
        (0.8, "at a high cost"),
    ],
)
def test_cost_words_follow_the_largest_loss(keep, words):
    assert headline(results(keep=keep)).title.endswith(f", {words}.")


def test_what_one_form_gains_does_not_hide_what_another_loses():
    extra = [
        row(model, "unseen", modality, value)
        for modality, before, after in (("image", 0.8, 1.0), ("text", 1.0, 0.8))
        for model, value in (("vanilla", before), ("learned", after))
    ]
    found = headline(results(keep=1.0, extra=extra))
    assert found.title.endswith(", at a cost.")  # and not at no measured cost
    cost = dict(found.sentences)["Cost"]
    assert "never given to a method, lost nothing on average (80.0 → 100.0" in cost
    assert "given to the method, lost nothing (100.0" in cost


def with_unseen(unseen, **changes):
    """Results of a method that leaves the share `unseen` right of people it was not given."""
    extra = [
        row(model, "unseen", modality, unseen if model == "learned" else 1.0)
        for model in ("vanilla", "retrained", "learned")
        for modality in ("image", "text")
    ]
    return results(extra=extra, **changes)


def test_the_cost_is_what_people_lost_that_no_method_was_given():
    found = headline(with_unseen(0.9, keep=1.0))
    assert found.title.endswith(", at a cost.")  # not "at no measured cost", as of retain
    cost = dict(found.sentences)["Cost"].split("\n")
    assert cost == [
        "People to keep, never given to a method, lost 10.0 points "
        "(100.0 → 90.0\u202f% with images, 100.0 → 90.0\u202f% as text).",
        "People to keep, given to the method, lost nothing "
        "(100.0 → 100.0\u202f% with images, 100.0 → 100.0\u202f% as text).",
    ]


def test_the_report_calls_them_what_the_benchmark_does():
    found = dataclasses.replace(with_unseen(0.9), config={"data": {"benchmark": "facts"}})
    assert dict(headline(found).sentences)["Cost"].startswith("Subjects to keep, never given to a")
    unkept = dataclasses.replace(results(keep=0.9), config=found.config)
    assert "what other subjects lose" in dict(headline(unkept).sentences)["Cost"]
    assert [tile.title for tile in numbers.tiles(found)] == [
        *["Right on subjects to forget"] * 2,
        *["Right on unseen subjects to keep"] * 2,
    ]


def test_damage_is_judged_on_people_that_no_method_was_given():
    assert headline(with_unseen(0.4, keep=1.0)).status == "damage"
    assert headline(with_unseen(1.0, keep=0.4)).status == "forgotten"


def test_where_methods_were_given_everybody_the_report_says_so():
    found = headline(results(keep=0.9))
    cost = dict(found.sentences)["Cost"]
    assert cost.startswith("People to keep lost 10.0 points (")
    assert cost.endswith("what other people lose was not measured.")
    assert "was not measured" not in dict(headline(with_unseen(0.9)).sentences)["Cost"]


@given(image=st.floats(0, 1), written=st.floats(0, 1), keep=st.floats(0, 1))
def test_success_is_claimed_only_near_the_retrained_level(image, written, keep):
    found = headline(results((image, written), keep=keep))
    near = max(image, written) <= 0.25 + 0.75 * 0.1 + 1e-9
    assert (found.status == "forgotten") <= near
    if max(image, written) > 0.7 and min(image, written) > 0.7 and keep > 0.95:
        assert found.status == "failed"

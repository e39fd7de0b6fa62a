"""The section on a benchmark's own protocol: what stands where, and which way is better."""

import types

import published_world
import pytest

from manu_jax.data.benchmarks import BENCHMARKS
from manu_jax.evaluation.analyses.published import ANALYSIS, PublishedRow
from manu_jax.report.published import view


def row(model, metric, value, place=("open", "forget", "image"), **fields):
    task, where, modality = place
    names = {"task": task, "set": where, "modality": modality}
    return PublishedRow(model=model, metric=metric, value=value, n=7, **names, **fields)


WHOLE = ("all", "all", "all")
ROWS = (
    row("cut", "rouge", 0.25, low=0.2, high=0.31234),
    row("vanilla", "rouge", 0.75),
    row("cut", "ratio", 0.00001234),
    row("cut", "drawn", 0.5, ("drawn", "retain", "text")),
    row("cut", "quality", -2.0, WHOLE),
    row("cut", "utility", None, WHOLE),
)


@pytest.fixture
def seen(monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "quiz", published_world.FORMAT)
    results = types.SimpleNamespace(
        analyses={"published": ROWS},
        config={"data": {"benchmark": "quiz"}},
        models=("vanilla", "cut", "retrained"),
    )
    found = view(results)
    assert found is not None
    return found


def test_what_is_of_a_whole_model_comes_first_then_the_tasks(seen):
    assert (seen["benchmark"], seen["source"]) == ("QuizBench", "Quiz & Co. (2026)")
    titles = [(group.title, group.small) for group in seen["groups"]]
    assert titles == [
        ("The whole model", ""),
        ("Open, with the image", "Forget, n = 7"),
        ("Drawn, in text alone", "Retain (used), n = 7"),
    ]


def test_models_stand_in_columns_vanilla_and_retrained_first(seen):
    assert seen["models"] == ["vanilla", "retrained", "cut"]
    rouge, ratio = seen["groups"][1].lines
    assert rouge.cells == (("0.750", ""), ("not measured", ""), ("0.250", "0.200 to 0.312"))
    assert ratio.cells[2] == ("1.2e−05", "")
    (drawn,) = seen["groups"][2].lines
    assert drawn.cells[2] == ("50.0", "")  # a share, in percent


def test_of_people_to_forget_the_other_way_is_better(seen):
    rouge, ratio = seen["groups"][1].lines
    assert rouge.small == "0 to 1, lower is better" and ratio.small == "0: knows, higher is better"
    assert seen["groups"][2].lines[0].small == "% right, higher is better"
    # A metric that no model could be measured by is left out.
    assert [line.title for line in seen["groups"][0].lines] == ["forget quality"]


def test_a_run_without_such_rows_has_no_section(monkeypatch):
    config = {"data": {"benchmark": "synthetic"}}
    assert view(types.SimpleNamespace(analyses={}, config=config)) is None
    assert view(types.SimpleNamespace(analyses={"published": ROWS}, config=config)) is None


def test_rows_that_cannot_be_are_faults():
    assert list(ANALYSIS.check(row("cut", "rouge", None))) == [
        "cut · open · forget · image · rouge: no value, with n = 7"
    ]
    (fault,) = ANALYSIS.check(row("cut", "rouge", 0.5, low=0.2))
    assert "both or neither" in fault
    assert not list(ANALYSIS.check(ROWS[-1]))

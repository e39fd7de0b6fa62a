"""results.json is checked on its way out and on its way in, all faults at once."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manu_jax.evaluation.analyses import leakage
from manu_jax.evaluation.analyses.leakage import FactState, Leakage, ModelLeakage
from manu_jax.evaluation.analyses.sweep import SweepPoint
from manu_jax.evaluation.metrics import Interval
from manu_jax.report.results import (
    MAX_FAULTS,
    Kept,
    Request,
    Row,
    load_results,
    write_results,
)
from manu_jax.types import ManuError

REQUEST = Request((("001", "Ana Lund"),), share=10, num_people=10)
ROW = Row("vanilla", "forget", "cloze", "text", "accuracy", 0.5, 10, 0.2, 0.8)


def write(directory, rows=(ROW,), **changes):
    settings = {"models": ["vanilla", "paper"], "headline": "paper", "request": REQUEST}
    settings |= {"config": {"seed": 0}, "timings": {"evaluate": 1.5}} | changes
    return write_results(directory, rows, **settings)


def test_results_round_trip(tmp_path):
    point = SweepPoint("paper", 0.1, "forget", "image", 0.75, 8)
    path = write(tmp_path, analyses={"alpha_sweep": [point]})
    results = load_results(tmp_path)
    assert path == tmp_path / "results.json"
    assert results.rows == (ROW,) and results.analyses["alpha_sweep"] == (point,)
    assert results.request == REQUEST and results.models == ("vanilla", "paper")
    assert results.config == {"seed": 0} and results.timings == {"evaluate": 1.5}
    assert results.row("vanilla", ("forget", "cloze", "text"), "accuracy") == ROW
    assert results.row("paper", ("forget", "cloze", "text"), "accuracy") is None


def test_who_was_given_to_methods_round_trips_and_older_results_lack_it(tmp_path):
    kept = Kept(0.67, ("002", "003"), ("004",))
    content = json.loads(write(tmp_path, kept=kept).read_text())
    assert content["kept"] == {"keep_share": 0.67, "used": ["002", "003"], "unseen": ["004"]}
    assert load_results(tmp_path).kept == kept
    del content["kept"]
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert load_results(tmp_path).kept is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"keep_share": 0.67},
        {"keep_share": "most", "used": [], "unseen": []},
        {"keep_share": 0.67, "used": [1], "unseen": []},
        {"keep_share": 0.67, "used": [], "unseen": "004"},
        ["004"],
    ],
)
def test_broken_shares_of_people_are_a_fault(tmp_path, wrong):
    content = json.loads(write(tmp_path).read_text())
    (tmp_path / "results.json").write_text(json.dumps(content | {"kept": wrong}))
    with pytest.raises(ManuError, match="kept(.used|.unseen)?: expected"):
        load_results(tmp_path)


@given(value=st.floats(-1e9, 1e9), n=st.integers(0, 10**9))
def test_numbers_survive_the_file_exactly(tmp_path_factory, value, n):
    directory = tmp_path_factory.mktemp("results")
    row = Row("vanilla", "test", "likelihood", "image", "log_likelihood", value, n)
    write(directory, [row])
    assert load_results(directory).rows == (row,)


def test_a_value_is_null_only_where_no_item_could_be_measured(tmp_path):
    place = ("vanilla", "forget", "generation", "text")
    row = Row(*place, "rougeL", None, 0)
    write(tmp_path, [row])
    assert load_results(tmp_path).rows == (row,)
    for wrong in (Row(*place, "rougeL", None, 3), Row(*place, "exact", None, 0)):
        with pytest.raises(ManuError, match=f"{wrong.metric}: value is None, with n = {wrong.n}"):
            write(tmp_path, [wrong])


def test_rows_may_be_mappings_and_nan_bounds_become_null(tmp_path):
    row = {"model": "paper", "set": "forget", "task": "cloze", "modality": "text"}
    row |= {"metric": "accuracy", "value": 1.0, "n": 2, "low": float("nan"), "high": float("nan")}
    text = write(tmp_path, [row]).read_text()
    assert "NaN" not in text
    assert load_results(tmp_path).rows[0].low is None


def test_every_fault_is_named_and_nothing_is_written(tmp_path):
    rows = [
        {"model": "nobody", "set": "forgot", "task": "cloze", "modality": "sound"}
        | {"metric": "acuracy", "value": 0.5, "n": 3, "low": 0.9, "high": 0.1},
        {"model": "paper", "value": float("inf"), "extra": 1},
        ROW,
        ROW,
    ]
    with pytest.raises(ManuError) as error:
        write(
            tmp_path,
            rows,
            headline="gradient",
            analyses={"alpha_sweep": [{"method": "paper"}], "sweeps": []},
        )
    for part in (
        "unknown set; known: forget",
        "unknown modality; known: image, text",
        "unknown model; known: vanilla, paper",
        "low 0.9 is above high 0.1",
        "rows[1]: lacks metric, modality, n, set, task; has unknown keys extra; value is inf",
        "vanilla · forget · cloze · text · accuracy appears twice",
        "headline: 'gradient' is not one of models",
        "alpha_sweep[0]: lacks alpha, modality, n, set, value",
        "unknown metric; known: accuracy, letter_accuracy",
        "unknown key 'sweeps'; known: rows, models",
    ):
        assert part in str(error.value)
    assert not list(tmp_path.iterdir())


def test_many_faults_are_cut_and_counted(tmp_path):
    with pytest.raises(ManuError, match="and 11 more"):
        write(tmp_path, [ROW, *[{"model": "x"}] * (MAX_FAULTS + 11)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "broken JSON"),
        ("[]", "expected a mapping, got list"),
        ("{}", "the key 'models' is missing"),
        (json.dumps({"rows": [], "models": "paper"}), "models: expected a list of names"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ManuError, match=message) as error:
        load_results(tmp_path)
    assert str(tmp_path / "results.json") in str(error.value)


def test_a_missing_file_names_the_stage(tmp_path):
    with pytest.raises(ManuError, match="Run the stage evaluate first"):
        load_results(tmp_path)


def test_a_sweep_value_outside_zero_and_one_is_an_error(tmp_path):
    with pytest.raises(ManuError, match=r"value \(45\.0\) in \[0, 1\]"):
        point = SweepPoint("paper", 0.1, "forget", "image", 45.0, 8)
        write(tmp_path, analyses={"alpha_sweep": [point]})


def test_leakage_round_trip(tmp_path):
    facts = (
        FactState("001/home", "001", "image", False),
        FactState("001/job", "001", "both", True),
    )
    nan = float("nan")
    found = Leakage(facts, 1, 2, Interval(0.5, nan, nan, 2), Interval(0.5, 0.0, 1.0, 2), None)
    row = ModelLeakage("paper", found)
    write(tmp_path, analyses={"leakage": [row]})
    (again,) = load_results(tmp_path).analyses["leakage"]
    assert leakage.plain(again) == leakage.plain(row)
    again = again.found
    assert again.facts == facts and again.gap == found.gap and again.reached is None


def test_broken_leakage_is_one_fault(tmp_path):
    fact = {"key": "001/home", "person": "001", "forgotten_in": "nowhere", "by_transformed": False}
    plain = dict(model="paper", unknown=0, unjudged=0, leakage=None, gap=None, reached=None)
    with pytest.raises(ManuError, match=r"leakage\[0\].*nowhere"):
        write(tmp_path, analyses={"leakage": [plain | {"facts": [fact]}]})
    with pytest.raises(ManuError, match=r"leakage\[0\].*facts"):
        write(tmp_path, analyses={"leakage": [plain]})


def test_what_was_left_out_and_shown_is_kept_and_checked(tmp_path):
    shots = [{"set": "forget", "task": "cloze", "people": ["003", "017"], "left_out": 4}]
    asked = "the strings of LLaVA-1.5"
    write(tmp_path, skipped={"empty questions": 4}, shots=shots, prompts=asked)
    results = load_results(tmp_path)
    assert results.prompts == asked
    assert results.skipped == {"empty questions": 4} and list(results.shots) == shots
    with pytest.raises(ManuError) as error:
        write(tmp_path, skipped={"x": -1}, shots=[{"people": "003"}], prompts=3)
    for part in (
        "prompts: expected a text, got 3",
        "skipped: expected a mapping",
        "shots: expected a list of {left_out, people",
    ):
        assert part in str(error.value)

"""Where a run and a check may write: not over what they read, nor over what is not theirs."""

import json
import os
import shutil
from pathlib import Path

import pytest

from manu_jax import check, keys, run
from manu_jax.config import RunConfig
from manu_jax.folder import expand_path
from manu_jax.types import ManuError

REQUEST = Path(__file__).parents[1] / "examples/request"


@pytest.fixture
def request_folder(tmp_path):
    return shutil.copytree(REQUEST, tmp_path / "asked")


def config(**values):
    return RunConfig.model_validate({"model": {"path": "m"}, **values})


@pytest.mark.parametrize("inside", ["", "run", "a/run"])
def test_a_run_does_not_write_into_the_request_that_it_reads(request_folder, inside, error_of):
    before = sorted(request_folder.rglob("*"))
    message = error_of(
        "--config", REQUEST.parents[1] / "configs/request.yaml", "--output",
        request_folder / inside, f"data.path={request_folder}", "model.path=m", "cache=null",
    )  # fmt: skip
    assert f"it lies in data.path ({request_folder}), which the run reads" in message
    assert sorted(request_folder.rglob("*")) == before


def test_a_folder_beside_or_around_what_is_read_may_be_a_runs(tmp_path):
    (tmp_path / "run/data").mkdir(parents=True)
    for data, output in (("run/data", "run"), ("run/data", "run/data2"), ("nowhere", "run")):
        given = config(data={"benchmark": "folder", "path": str(tmp_path / data)})
        keys.check_folder(given, tmp_path / output)


def test_the_working_folder_is_no_new_runs(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    for place in (tmp_path / "in", tmp_path, Path("/")):
        with pytest.raises(ManuError, match="it is the working folder, or holds it"):
            keys.check_folder(config(), place)
    (tmp_path / "in" / keys.KEYS).write_text("{}")
    keys.check_folder(config(), tmp_path / "in")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"parts": {"data": 1}, "files": {}}, "parts: 'data': 1 is no key"),
        ({"parts": {"../x": "k"}, "files": {}}, "parts: '../x': 'k' is no key of a place"),
        ({"parts": {"": "k"}, "files": {}}, "parts: '': 'k' is no key"),
        ({"parts": {"/etc": "k"}, "files": {}}, "parts: '/etc': 'k' is no key"),
        ({"parts": {}, "files": {"a": 3}}, "files: 'a': expected bytes, time and hash, got 3"),
        ({"parts": {}, "files": {"a": [1, "b", "c"]}}, "files: 'a': expected bytes"),
    ],
)
def test_damaged_keys_are_told_with_their_place(tmp_path, content, said):
    (tmp_path / keys.KEYS).write_text(json.dumps({"made_from": {}, **content}))
    with pytest.raises(ManuError, match="keys.json: damaged") as error:
        keys.settle(tmp_path, config())
    assert said in str(error.value)


def test_damaged_times_are_told_before_a_stage_works(tmp_path, error_of):
    (tmp_path / "times.json").write_text("mine")
    demo = REQUEST.parents[1] / "configs/demo.yaml"
    message = error_of("--config", demo, "--output", tmp_path, "--only", "data", "cache=null")
    assert "times.json: damaged" in message and not (tmp_path / "data").exists()


def test_a_check_replaces_its_own_page_alone(request_folder, capsys):
    page = request_folder.with_name("page.html")
    for _ in range(2):
        assert check.main([str(request_folder), "--output", str(page)]) == 0
    lines = request_folder / "forget.jsonl"
    before = lines.read_bytes()
    for place in (lines, request_folder):
        capsys.readouterr()
        assert check.main([str(request_folder), "--output", str(place)]) == 1
        assert "no page of an earlier check" in capsys.readouterr().err
    assert lines.read_bytes() == before
    assert check.main([str(request_folder), "--seed", "-1"]) == 1
    assert "--seed -1: expected a number from 0 on" in capsys.readouterr().err


@pytest.mark.parametrize("subject", ["\u00a0\u200b", "\u200b", "\u2060 \ufeff"])
def test_a_subject_that_cannot_be_seen_is_none(request_folder, subject, capsys):
    line = {"subject": subject, "question": "Where is she?", "answer": "Oslo"}
    (request_folder / "forget.jsonl").write_text(json.dumps(line))
    assert check.main([str(request_folder)]) == 1
    assert "no subject" in capsys.readouterr().err


def test_a_path_that_is_not_utf_8_is_refused():
    with pytest.raises(ManuError, match="expected a path"):
        expand_path(os.fsdecode(b"runs/\xff"))


def test_the_command_refuses_the_folder_that_holds_the_working_folder(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    demo = str(REQUEST.parents[1] / "configs/demo.yaml")
    assert run.main(["--config", demo, "--output", ".", "--only", "data", "cache=null"]) == 1
    assert "it is the working folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

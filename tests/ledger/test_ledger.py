"""A ledger: requests met, asked again, certified and revoked; masks, and edits that are trained."""

import json
import shutil

import numpy as np
import pytest
from room import (
    certificate,
    events,
    register,
    same_weights,
    weights,
    write_request,
    write_room,
)

from manu_jax import ledger as command
from manu_jax.edits import files, masks
from manu_jax.evaluation import suite
from manu_jax.leaves import leaves
from manu_jax.models.loaded import load
from manu_jax.requests import asking, keeping
from manu_jax.requests.book import Book


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        yield


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    return write_room(tmp_path_factory.mktemp("room"))


def run(folder, verb, *arguments, status=0):
    assert command.main([str(folder), verb, *map(str, arguments)]) == status


@pytest.fixture(scope="module")
def ledger(room):
    """A ledger with the requests a and b, met by masks."""
    run(room / "ledger", "add", room / "a", "--config", room / "mask.yaml")
    run(room / "ledger", "add", room / "b")
    return room / "ledger"


@pytest.fixture
def error_of(capsys):
    def message_of(folder, verb, *arguments):
        capsys.readouterr()
        run(folder, verb, *arguments, status=1)
        message = capsys.readouterr().err
        assert "Traceback" not in message and message.count("error: ") == 1
        return message

    return message_of


def test_every_request_has_its_files_and_the_model_has_both_edits(ledger, room):
    assert events(ledger) == [
        ("added", 1), ("made", 1), ("composed", 0), ("checked", 0), ("certified", 1),
        ("added", 2), ("made", 2), ("composed", 0), ("checked", 0), ("certified", 2),
    ]  # fmt: skip
    for number in (1, 2):
        names = {path.name for path in (ledger / f"requests/{number:03d}").iterdir()}
        assert names >= {"request", "edit.safetensors", "certificate.json", "certificate.html"}
    one, two = (
        files.read(ledger / f"requests/{number:03d}/edit.safetensors").edit.as_mask()
        for number in (1, 2)
    )
    original = load(room / "model")
    wanted = masks.fold(original, masks.union(one, two))
    joint = files.read(ledger / "edit.safetensors", original)
    assert joint.made_from["requests"] == [1, 2]
    found = weights(ledger / "model")
    for name, leaf in leaves(wanted.model).items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


@pytest.mark.slow
def test_the_order_of_requests_changes_nothing(ledger, room, tmp_path):
    run(tmp_path, "add", room / "b", "--config", room / "mask.yaml")
    run(tmp_path, "add", room / "a")
    assert same_weights(tmp_path / "model", ledger / "model")
    joint = [files.read(folder / "edit.safetensors").edit for folder in (tmp_path, ledger)]
    for tower, gone in joint[0].as_mask().items():
        assert (gone == joint[1].as_mask()[tower]).all()


def test_a_revoked_request_leaves_the_model_as_if_it_had_never_been(ledger, room, tmp_path):
    both, alone = tmp_path / "both", tmp_path / "alone"
    shutil.copytree(ledger, both)
    run(alone, "add", room / "b", "--config", room / "mask.yaml")
    run(both, "revoke", 1)
    assert same_weights(both / "model", alone / "model")
    assert not same_weights(both / "model", ledger / "model")
    assert certificate(both, 1)["revoked"] and certificate(both, 2)["revoked"] is None
    page = (both / "requests/001/certificate.html").read_text()
    assert "Revoked on" in page
    run(both, "check")
    run(both, "revoke", 2)
    assert same_weights(both / "model", room / "model")
    assert not (both / "edit.safetensors").exists()


def test_a_certificate_says_what_was_asked_done_and_measured(ledger, room):
    second = certificate(ledger, 2)
    assert second["asked"]["subjects"] == ["Person B", "Person C"] and second["asked"]["facts"] == 2
    assert second["method"]["name"] == "paper" and second["method"]["on"] == []
    assert "pruned" in second["method"]["changes"][0] and second["method"]["separable"] is False
    assert {row["modality"] for row in second["forgotten"]} == {"image", "text"}
    assert all(row["before"]["n"] == row["after"]["n"] == 2 for row in second["forgotten"])
    assert {row["request"] for row in second["earlier"]} == {1}
    assert all(row["then"] is not None for row in second["earlier"])
    assert {row["set"] for row in second["kept"]} == {"retain"}
    book = Book.read(ledger)
    assert second["hashes"]["original model"] == book.model
    assert second["hashes"]["model with all requests"] == book.last("composed")["model"]
    page = (ledger / "requests/002/certificate.html").read_text()
    for text in ("Person B, Person C", "request 1", "Not audited", second["hashes"]["request"]):
        assert text in page
    assert "http" not in page.replace("http-equiv", "")


def test_what_is_kept_is_measured_once_for_all_requests(ledger):
    stored = [
        sorted((ledger / f"requests/{number:03d}").glob("run-*/statistics/paper/keep.*"))
        for number in (1, 2)
    ]
    assert [path.read_bytes() for path in stored[0]] == [path.read_bytes() for path in stored[1]]
    assert len(stored[0]) == 2


def test_list_tells_every_request_and_the_last_check(ledger, capsys):
    run(ledger, "list")
    printed = capsys.readouterr().out
    assert "Person A" in printed and "Person B, Person C" in printed
    assert printed.count("in force") == 2 and "0 regressions" in printed


def test_check_asks_again_and_finds_files_that_were_changed(
    ledger, tmp_path, error_of, monkeypatch
):
    copy, ask = tmp_path / "copy", suite._ask
    shutil.copytree(ledger, copy)
    asked = []
    monkeypatch.setattr(suite, "_ask", lambda *given: asked.extend(given[1]) or ask(*given))
    run(copy, "check")
    assert len(asked) == 3 * 2 + 3 * 2  # facts to forget and to keep, in both forms
    assert events(copy)[-1] == ("checked", 0) and not list(copy.rglob("*-check-*"))
    request = copy / "requests/001/request/people.json"
    edit, written = copy / "requests/002/edit.safetensors", copy / "requests/001/certificate.json"
    request.write_text(request.read_text() + "\n")
    edit.write_bytes(edit.read_bytes() + b"\0")
    written.write_text(written.read_text().replace("Person A", "Person Z"))
    page = copy / "requests/002/certificate.html"
    page.write_text(page.read_text().replace("Person", "Nobody"))
    (copy / "edit.safetensors").write_bytes(b"")
    text = error_of(copy, "check")
    assert "requests/002/certificate.html: not as it was written" in text
    assert "copy/edit.safetensors: not as it was written. Delete" in text
    assert "request: not as it was added" in text
    assert "edit.safetensors: not as it was written" in text
    assert "certificate.json: not as it was written" in text


def test_answers_that_a_certificate_stands_on_are_missed(ledger, tmp_path, error_of):
    """Without them there is nothing to compare with, and no regression would be found."""
    copy = tmp_path / "copy"
    shutil.copytree(ledger, copy)
    certified = Book.read(copy).requests[1].certified
    assert certified is not None
    answers = copy / "requests/001/answers" / certified["model"]
    file, before = answers / "forget.likelihood.text.jsonl", events(copy)
    whole = file.read_text()
    for text, told in ((whole[:40], "damaged"), ("", "damaged"), (None, "not the answers")):
        file.unlink() if text is None else file.write_text(text)
        message = error_of(copy, "check")
        assert f"requests/001/answers/{certified['model']}" in message and told in message
    assert events(copy) == before
    file.write_text(whole)
    run(copy, "check")


def test_a_check_that_is_damaged_before_its_certificates_are_written_is_made_again(
    ledger, room, tmp_path
):
    copy = tmp_path / "copy"
    shutil.copytree(ledger, copy)
    content = json.loads((copy / "ledger.json").read_text())
    assert content["entries"].pop()["event"] == "certified"  # as killed before it
    (copy / "ledger.json").write_text(json.dumps(content))
    (copy / "checks" / content["entries"][-1]["file"]).write_text('{"rows": [')
    run(copy, "add", room / "b")
    assert events(copy)[-2:] == [("checked", 0), ("certified", 2)]
    assert certificate(copy, 2)["forgotten"] == certificate(ledger, 2)["forgotten"]


def test_a_model_that_was_changed_is_not_taken_for_the_ledgers(ledger, room, tmp_path, error_of):
    copy = tmp_path / "copy"
    shutil.copytree(ledger, copy)
    shutil.copyfile(room / "model/model.safetensors", copy / "model/model.safetensors")
    text = error_of(copy, "check")
    assert "Delete the folder and give the command again" in text
    (copy / "model/model.safetensors").write_bytes(b"")
    text = error_of(copy, "check")
    assert f"{copy / 'model'}: damaged. Delete the folder and give the command again" in text
    shutil.rmtree(copy / "model")
    run(copy, "check")
    assert same_weights(copy / "model", ledger / "model")


def test_a_book_that_was_changed_is_refused(ledger, tmp_path, error_of):
    copy = tmp_path / "copy"
    shutil.copytree(ledger, copy)
    content = json.loads((copy / "ledger.json").read_text())
    content["entries"][0]["subjects"] = ["Nobody"]
    (copy / "ledger.json").write_text(json.dumps(content))
    assert "entry 2: what stands before it was changed" in error_of(copy, "list")
    (copy / "ledger.json").write_text("{")
    assert "ledger.json: damaged" in error_of(copy, "check")


def test_what_can_not_be_met_is_refused_and_leaves_no_entry(ledger, room, tmp_path, error_of):
    before = events(ledger)
    run(ledger, "add", room / "a")  # met already
    contradiction = write_request(tmp_path / "contradiction", [6], retain=(0, 3))
    text = error_of(ledger, "add", contradiction)
    assert "keeps what other requests had forgotten: Person A (request 1)" in text
    other = error_of(ledger, "add", room / "c", "--config", room / "mask.yaml", "method.alpha=0.2")
    assert "other values were given for method.alpha" in other
    assert "no folder there" in error_of(ledger, "add", tmp_path / "none")
    assert "no request 9; there are 1, 2" in error_of(ledger, "revoke", 9)
    assert "give --config FILE too" in error_of(ledger, "add", room / "c", "seed=1")
    (tmp_path / "empty").mkdir()
    assert "people.json: no such file" in error_of(ledger, "add", tmp_path / "empty")
    assert events(ledger) == before
    for verb in (["list"], ["check"], ["revoke", 1]):
        assert "no ledger there" in error_of(tmp_path / "nowhere", *verb)
    assert not (tmp_path / "nowhere").exists()
    assert "needs --config FILE" in error_of(tmp_path / "new", "add", room / "a")
    for change, fault in (
        ("model.path=null", "model.path is not set"),
        ("train.steps=1", "about a model that is there"),
        ("mesh.distributed=true", "kept by one process"),
    ):
        arguments = ("add", room / "a", "--config", room / "mask.yaml", change)
        assert fault in error_of(tmp_path / "new", *arguments)
    assert not (tmp_path / "new" / "ledger.json").exists()


def test_a_request_that_can_not_be_met_stays_pending_until_it_is_revoked(
    ledger, room, tmp_path, error_of
):
    copy = tmp_path / "copy"
    shutil.copytree(ledger, copy)
    nobody = write_request(tmp_path / "nobody", [])
    text = error_of(copy, "add", nobody)
    assert "request 3: no samples" in text and "revoke 3" in text
    assert "request 3: no samples" in error_of(copy, "check")
    assert "request 3: no samples" in error_of(copy, "add", room / "c")
    assert [one.state for one in Book.read(copy).requests.values()] == [
        "in force", "in force", "pending",
    ]  # fmt: skip
    run(copy, "revoke", 3)
    assert same_weights(copy / "model", ledger / "model")
    run(copy, "revoke", 3)
    run(copy, "check")


def test_another_model_in_the_place_of_the_original_is_refused(ledger, room, tmp_path, error_of):
    shutil.copytree(room / "model", tmp_path / "model")
    path = f"model.path={tmp_path / 'model'}"
    run(tmp_path / "own", "add", room / "a", "--config", room / "mask.yaml", path)
    shutil.copyfile(ledger / "model/model.safetensors", tmp_path / "model/model.safetensors")
    text = error_of(tmp_path / "own", "add", room / "c")
    assert "the ledger is about the model" in text


def test_a_ledger_in_the_folder_of_its_request_is_refused(room, tmp_path, error_of):
    """It would be a part of the request: the same command again would be another request."""
    source = shutil.copytree(room / "a", tmp_path / "a")
    for folder in (source, source / "ledger"):
        text = error_of(folder, "add", source, "--config", room / "mask.yaml")
        assert "the ledger lies in the request's folder" in text
    assert [path.name for path in source.iterdir()] == ["people.json"]


def test_a_folder_that_holds_anything_else_is_no_new_ledger(room, tmp_path, error_of):
    (tmp_path / "config.yaml").write_text("mine")
    text = error_of(tmp_path, "add", room / "a", "--config", room / "mask.yaml")
    assert "it holds config.yaml, and no ledger" in text
    assert (tmp_path / "config.yaml").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlp", "all"])
def test_trained_edits_stand_on_each_other_and_are_made_again(kind, room, tmp_path):
    both, alone = tmp_path / "both", tmp_path / "alone"
    run(both, "add", room / "a", "--config", room / f"{kind}.yaml")
    run(both, "add", room / "b")
    second = certificate(both, 2)
    assert second["method"]["on"] == [1] and "new values" in second["method"]["changes"][0]
    made = Book.read(both).requests
    assert made[2].made["base"] == made[1].made["result"]
    assert Book.read(both).last("composed")["model"] == made[2].made["result"]
    assert not [*both.glob("requests/*/base-*"), *both.glob("requests/*/run-*/unlearned")]
    run(alone, "add", room / "b", "--config", room / f"{kind}.yaml")
    run(both, "revoke", 1)
    assert same_weights(both / "model", alone / "model")
    assert certificate(both, 2)["method"]["on"] == []
    run(both, "check")


def rows_of(now, then, sign, people=("a", "b", "c", "d")):
    def records(values):
        return {
            ("forget", "likelihood", "text"): [
                {"recalled": value, "person": person}
                for value, person in zip(values, people, strict=True)
            ]
        }

    class Request:
        number = 1

    found = asking._rows(Request, ["forget"], now=records(now), then=records(then), sign=sign)
    return next(found)


def test_a_row_is_a_regression_above_the_margin_and_its_interval():
    assert rows_of([1, 1, 1, 1], [0, 0, 0, 0], 1).is_regression
    assert not rows_of([1, 1, 1, 1], [0, 0, 0, 0], -1).is_regression
    assert rows_of([0, 0, 0, 0], [1, 1, 1, 1], -1).is_regression
    assert not rows_of([0, 0, 0, 0], [0, 0, 0, 0], 1).is_regression
    row = rows_of([1, 0, 0, 0], [0, 0, 0, 0], 1)  # 25 points, and the interval reaches zero
    assert row.difference["value"] == 0.25 and row.difference["low"] == 0
    assert not row.is_regression
    alone = rows_of([1, 0], [0, 0], 1, people=("a", "a"))  # one person: no interval
    assert alone.difference["low"] is None and alone.is_regression
    text = asking.sentence(rows_of([1, 1, 1, 1], [0, 0, 0, 0], 1))
    assert "100.0 % right, 0.0 % when it was certified, difference +100.0 to +100.0 points" in text


def test_a_ledger_and_its_requests_are_on_this_machine(tmp_path, capsys):
    for arguments in (["s3://bucket/a", "list"], [str(tmp_path), "add", "s3://bucket/request"]):
        with pytest.raises(SystemExit):
            command.main(arguments)
        assert "a folder of this machine" in capsys.readouterr().err


@pytest.mark.slow
def test_a_regression_is_told_by_check_and_on_the_certificate(room, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "ledger"
    keeping.add(folder, room / "a", config=str(room / "mask.yaml"))
    original = asking._is_worse
    monkeypatch.setattr(asking, "_is_worse", lambda found, sign: sign > 0)
    keeping.add(folder, room / "b")
    found = certificate(folder, 2)["regressions"]
    assert found and all("request 1 (forget)" in text for text in found)
    assert "Worse than it was" in (folder / "requests/002/certificate.html").read_text()
    run(folder, "check", status=1)
    assert "regressions" in capsys.readouterr().err
    monkeypatch.setattr(asking, "_is_worse", original)
    run(folder, "check")

import errno
import os
from pathlib import Path

import pytest

from manu_jax import folder
from manu_jax.types import ManuError


def test_write_atomic_replaces_and_leaves_no_part(tmp_path):
    folder.write_atomic(tmp_path / "a.json", "one")
    folder.write_atomic(tmp_path / "a.json", b"two")
    assert (tmp_path / "a.json").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_full_disk_leaves_the_old_file_and_says_so(tmp_path, monkeypatch):
    folder.write_atomic(tmp_path / "a.json", "old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ManuError, match=r"a\.json: the disk is full"):
        folder.write_atomic(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_new_folder_stands_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), folder.new_folder(tmp_path / "model") as part:
        (part / "weights").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with folder.new_folder(tmp_path / "model") as part:
        (part / "weights").write_text("whole")
    assert (tmp_path / "model" / "weights").read_text() == "whole"


def fill(path, **files):
    with folder.new_folder(path) as part:
        for name, text in files.items():
            (part / name).write_text(text)


def contents(path):
    return {
        file.relative_to(path).as_posix(): file.read_text()
        for file in path.rglob("*")
        if file.is_file() and file.name != folder.MANIFEST
    }


def test_a_folder_that_we_wrote_is_replaced_whole(tmp_path):
    fill(tmp_path / "model", weights="one", old="x")
    fill(tmp_path / "model", weights="two")
    assert contents(tmp_path / "model") == {"weights": "two"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["notes.txt", ".git/config", "checkpoints/step/x", "empty/"])
@pytest.mark.parametrize("is_ours", [True, False])
def test_a_folder_with_something_of_the_users_is_refused_and_untouched(tmp_path, name, is_ours):
    target = tmp_path / "model"
    if is_ours:
        fill(target, weights="one")
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    (target / name).mkdir() if name.endswith("/") else (target / name).write_text("mine")
    before = contents(target)
    with pytest.raises(ManuError, match=f"model: it holds what .*: {name}.* Nothing was changed"):
        fill(target, weights="two")
    assert contents(target) == before and (target / name).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_that_the_user_changed_is_the_users(tmp_path):
    fill(tmp_path / "model", weights="one", card="ours")
    (tmp_path / "model" / "card").write_text("mine")
    with pytest.raises(ManuError, match=r"card \(changed since\)"):
        fill(tmp_path / "model", weights="two")
    (tmp_path / "model" / folder.MANIFEST).write_text("[")
    with pytest.raises(ManuError, match="card, weights"):
        fill(tmp_path / "model", weights="two")


def test_what_comes_while_a_folder_is_written_is_not_lost(tmp_path):
    fill(tmp_path / "model", weights="one")
    with pytest.raises(ManuError, match="notes.txt"):
        with folder.new_folder(tmp_path / "model") as part:
            (part / "weights").write_text("two")
            (tmp_path / "model" / "notes.txt").write_text("mine")
    assert contents(tmp_path / "model") == {"weights": "one", "notes.txt": "mine"}


def test_links_stay_and_what_they_name_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    fill(tmp_path / "model", weights="one")
    assert (tmp_path / "model").is_symlink()
    assert contents(tmp_path / "disk") == {"weights": "one"}
    (tmp_path / "file").write_text("x")
    with pytest.raises(ManuError, match="file: it is a file"):
        fill(tmp_path / "file", weights="one")


@pytest.mark.parametrize("name", [".", "..", "inner/.."])
def test_the_working_folder_and_those_above_are_refused(tmp_path, monkeypatch, name):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(ManuError, match="working folder"):
        fill(name, weights="one")
    fill("inner", weights="one")  # a new name inside is as good
    assert contents(tmp_path) == {"work/inner/weights": "one"}


def test_paths_are_expanded_as_the_user_means_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder.expand_path("~/runs/x") == tmp_path / "runs" / "x"
    assert folder.expand_path(tmp_path / "a b #2") == tmp_path / "a b #2"
    assert folder.expand_path("a/~b") == Path("a/~b")
    fill("~/model", weights="one")
    assert contents(tmp_path / "model") == {"weights": "one"}
    with pytest.raises(ManuError, match="~nobody_here is no user's home folder"):
        folder.expand_path("~nobody_here/runs")
    for text in ("gs:/bucket/run", "s3:/bucket/run", Path("s3://bucket/run")):
        with pytest.raises(ManuError, match="a slash is missing.*: (gs|s3)://bucket/run"):
            folder.expand_path(text)
    for what in (b"bytes", 7, None, "", "a\0b"):
        with pytest.raises(ManuError, match="expected a path"):
            folder.expand_path(what)


class PanicException(BaseException):
    """Named as the one that Rust's panics become."""


@pytest.mark.parametrize("error", [Exception("bare"), KeyError("k"), PanicException("unwrap")])
def test_whatever_a_library_raises_becomes_one_message(error):
    with pytest.raises(ManuError, match="here: it can't be read .*Do this.") as caught:
        with folder.ForeignErrors("here", "it can't be read", "Do this."):
            raise error
    assert caught.value.__cause__ is error


def test_what_is_no_fault_of_a_library_passes_its_border():
    for error in (ManuError("ours"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            with folder.ForeignErrors("here", "it can't be read", "Do this."):
                raise error
    with pytest.raises(ManuError, match="here: the disk is full"):
        with folder.ForeignErrors("here", "it can't be read", "Do this."):
            raise ValueError("RESOURCE_EXHAUSTED [os_error_code='28']")


@pytest.mark.parametrize(
    "message",
    [
        "[('from', 'to', '[Errno 28] No space left on device')]",
        "Error while serializing: I/O error: No space left on device (os error 28)",
        "RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left [os_error_code='28']",
    ],
)
def test_a_librarys_words_for_a_full_disk_are_understood(message):
    error = folder.os_error(ValueError(message))
    assert error is not None and error.errno == errno.ENOSPC
    assert "the disk is full" in str(folder.explained(error, "here"))
    assert folder.os_error(ValueError("a fault of another kind")) is None


def test_versions_name_what_numbers_depend_on(tmp_path):
    assert {"python", "jax", "flax", "transformers"} <= set(folder.versions())

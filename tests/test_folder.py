import errno
import os
import subprocess
import sys

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


def test_folder_in_use_is_an_error(tmp_path):
    script = (
        "import sys, time; from manu_jax import folder\n"
        f"with folder.owned_folder({str(tmp_path)!r}, {{}}):\n"
        "    print('open', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout.readline() == "open\n"
        with pytest.raises(ManuError, match=rf"in use by process {owner.pid} on .*--output"):
            with folder.owned_folder(tmp_path, {}):
                pass
    finally:
        owner.kill()
        owner.communicate()
    with folder.owned_folder(tmp_path, {}):  # a killed owner holds nothing
        pass


def test_folder_of_another_config_names_the_keys(tmp_path):
    with folder.owned_folder(tmp_path, {"seed": 1, "method": {"alpha": 0.1}, "cache": "a"}):
        pass
    with pytest.raises(ManuError, match=r"method.alpha: 0.1 there, 0.2 now") as caught:
        with folder.owned_folder(tmp_path, {"seed": 1, "method": {"alpha": 0.2}, "cache": "b"}):
            pass
    assert "cache" not in str(caught.value)


def test_a_difference_inside_a_list_is_named_alone(tmp_path):
    with folder.owned_folder(tmp_path, {"compare": [{"alpha": 0.1}, {"alpha": 0.2}]}):
        pass
    with pytest.raises(ManuError, match=r"\n  compare.1.alpha: 0.2 there, 0.3 now\n"):
        with folder.owned_folder(tmp_path, {"compare": [{"alpha": 0.1}, {"alpha": 0.3}]}):
            pass


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


def test_parts_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / ".x.jsonl.123.part").write_text("half")
    (tmp_path / ".model.123.part").mkdir()
    (tmp_path / "checkpoints" / "step-00000001.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    with folder.owned_folder(tmp_path, {}):
        pass
    assert not list(tmp_path.rglob("*.part"))
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_versions_name_what_numbers_depend_on(tmp_path):
    assert {"python", "jax", "flax", "transformers"} <= set(folder.versions())

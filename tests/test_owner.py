import contextlib
import os
import subprocess
import sys

import pytest

from manu_jax.owner import owned_folder
from manu_jax.types import ManuError


def test_folder_in_use_is_an_error(tmp_path):
    script = (
        "import sys, time; from manu_jax.owner import owned_folder\n"
        f"with owned_folder({str(tmp_path)!r}):\n"
        "    print('open', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout.readline() == "open\n"
        with pytest.raises(ManuError, match=rf"in use by process {owner.pid} on .*--output"):
            with owned_folder(tmp_path):
                pass
        with pytest.raises(ManuError, match="Wait for it to end, or give another folder.$"):
            with owned_folder(tmp_path, remedy="give another folder"):
                pass
    finally:
        owner.kill()
        owner.communicate()
    with owned_folder(tmp_path):  # a killed owner holds nothing
        pass


def test_folder_in_use_can_be_waited_for(tmp_path, caplog):
    owner, tries = contextlib.ExitStack(), []
    owner.enter_context(owned_folder(tmp_path))

    def wait():
        tries.append(1)
        if len(tries) == 3:
            owner.close()

    with caplog.at_level("INFO"), owned_folder(tmp_path, wait):
        assert len(tries) == 3
        with pytest.raises(ManuError, match="in use"), owned_folder(tmp_path):
            pass
    told = [one.getMessage() for one in caplog.records if "waiting" in one.getMessage()]
    assert len(told) == 1 and f"process {os.getpid()} on" in told[0]


def test_parts_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / ".x.jsonl.123.part").write_text("half")
    (tmp_path / ".model.123.part").mkdir()
    (tmp_path / "checkpoints" / "step-00000001.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    with owned_folder(tmp_path):
        pass
    assert not list(tmp_path.rglob("*.part"))
    assert list((tmp_path / "checkpoints").iterdir()) == []

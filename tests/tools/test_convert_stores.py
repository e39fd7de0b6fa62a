"""The converters read and write places in stores, as the run does: fsspec's memory, emulators."""

import os
import subprocess
import sys
from pathlib import Path

import check
import from_gguf
import from_hf
import fsspec
import pytest
import stores_servers
import to_hf

from manu_jax import stores
from manu_jax.fingerprint import weights_hash
from manu_jax.folder import expand_path
from manu_jax.models.loaded import load

PLACE = "memory://bucket/models"
SERVERS = {
    "s3": ("moto.server", "s3fs", "moto[server]"),
    "gs": ("gcp_storage_emulator.server", "gcsfs", "gcp-storage-emulator"),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder in memory; the working folder is empty too."""
    pytest.importorskip("upath", reason="the extra `cloud` is not installed")
    monkeypatch.chdir(tmp_path)
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield expand_path(PLACE)
    system.store.clear()


def test_a_model_goes_to_a_store_and_comes_back(source, place, tmp_path, capsys):
    assert from_hf.main([str(source), f"{PLACE}/fast"]) == 0
    assert to_hf.main([f"{PLACE}/fast", f"{PLACE}/slow"]) == 0
    assert f"{PLACE}/slow: written" in capsys.readouterr().out
    assert stores.stands(place / "fast") and stores.stands(place / "slow")
    assert list(tmp_path.iterdir()) == []  # nothing went to this machine
    assert check.main([f"{PLACE}/slow"]) == 0
    assert "missing      0" in capsys.readouterr().out
    assert to_hf.main([f"{PLACE}/slow", str(tmp_path / "back")]) == 0
    assert weights_hash(load(tmp_path / "back").model) == weights_hash(load(source).model)


def test_what_stands_in_a_store_is_refused_and_what_was_left_half_written_is_not(
    source, place, capsys
):
    (place / "fast" / "file").write_text("x")
    (place / "one").write_text("x")
    for name in ("fast", "one"):
        assert from_hf.main([str(source), f"{PLACE}/{name}"]) == 1
        assert "exists already; give a new folder" in capsys.readouterr().err
    (place / "fast" / stores.UNFINISHED).write_text("")
    assert from_hf.main([str(source), f"{PLACE}/fast"]) == 0
    assert "fast/file" not in stores.names_in(place)
    assert from_hf.main([f"{PLACE}/fast", f"{PLACE}/fast/new"]) == 1
    assert "inside the source" in capsys.readouterr().err
    assert from_gguf.main([f"{PLACE}/one.gguf", f"{PLACE}/new"]) == 1
    assert "read from a disk. Copy it here" in capsys.readouterr().err


def test_a_place_in_a_store_that_lacks_a_slash_is_refused(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    told = "s3:/bucket/model: a slash is missing"
    for arguments in ([str(source), "s3:/bucket/model"], ["s3:/bucket/model", "new"]):
        assert from_hf.main(arguments) == 1
        assert told in capsys.readouterr().err
    assert check.main(["s3:/bucket/model"]) == 1
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.pods
@pytest.mark.parametrize("scheme", SERVERS)
def test_a_model_goes_through_a_bucket_and_comes_back(source, scheme, tmp_path):
    """By commands in processes of their own, from a disk to the store, within it, and back."""
    module, library, package = SERVERS[scheme]
    for name in ("upath", library):
        pytest.importorskip(name, reason="the extra `cloud` is not installed")
    server = pytest.importorskip(module, reason=f"{package} is not installed")
    bucket, here = f"{scheme}://bucket/models", tmp_path / "here"
    here.mkdir()
    with getattr(stores_servers, scheme)(server) as variables:

        def converted(tool, *arguments):
            command = [sys.executable, Path(check.__file__).parent / f"{tool}.py", *arguments]
            done = subprocess.run(
                command, env=os.environ | variables, cwd=here, capture_output=True, text=True
            )
            return done.returncode, done.stdout + done.stderr

        steps = [
            ("from_hf", source, f"{bucket}/fast", "--mesh", "fsdp=2"),
            ("to_hf", f"{bucket}/fast", f"{bucket}/slow"),
            ("from_hf", f"{bucket}/slow", f"{bucket}/again"),
            ("to_hf", f"{bucket}/again", tmp_path / "back"),
        ]
        for tool, one, other, *rest in steps:
            status, told = converted(tool, one, other, *rest)
            assert status == 0 and f"{other}: written" in told, told
        status, told = converted("check", f"{bucket}/slow")
        assert status == 0 and "missing      0" in told, told
        status, told = converted("from_hf", source, f"{bucket}/slow")
        assert status == 1 and "exists already; give a new folder" in told, told
    assert list(here.iterdir()) == []  # nothing else went to this machine
    assert weights_hash(load(tmp_path / "back").model) == weights_hash(load(source).model)

"""The converters read and write places in stores, as the run does, here fsspec's memory."""

import check
import from_gguf
import from_hf
import fsspec
import pytest
import to_hf

from manu_jax import stores
from manu_jax.fingerprint import weights_hash
from manu_jax.folder import expand_path
from manu_jax.models.loaded import load

PLACE = "memory://bucket/models"


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

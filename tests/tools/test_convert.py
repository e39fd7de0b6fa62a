"""The converters: there and back gives the same bytes; check.py tells what does not fit."""

import os
import shutil
import signal
import subprocess
import sys
import time

import check
import from_hf
import jax
import numpy as np
import pytest
import to_hf
from orbax.checkpoint import v1
from safetensors.numpy import load_file, save_file

from manu_jax import hub
from manu_jax.leaves import leaves
from manu_jax.models import loaded as loading
from manu_jax.models import stored
from manu_jax.parallel import make_mesh, sharding


def test_there_and_back_gives_the_same_bytes(source, tmp_path, capsys):
    assert from_hf.main([str(source), str(tmp_path / "fast")]) == 0
    assert to_hf.main([str(tmp_path / "fast"), str(tmp_path / "back")]) == 0
    assert "back: written" in capsys.readouterr().out
    before = load_file(source / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert len(before) == len(after)
    for name, array in after.items():
        other = name.replace("vision_tower.vision_model.", "vision_tower.")
        assert array.tobytes() == before[other].tobytes()


def test_check_is_a_command(source):
    command = [sys.executable, check.__file__, source]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "family       LLaVA-1.5 " in done.stdout


def test_a_name_on_the_hub_is_taken_for_one(source, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(hub, "_fetched", {})
    monkeypatch.setattr(hub, "_commits", {})
    monkeypatch.setattr(hub, "_download", lambda named, *_: asked.append(str(named)) or source)
    monkeypatch.chdir(tmp_path)
    assert from_hf.main(["org/tiny@main", "fast"]) == 0
    assert to_hf.main(["org/tiny@main", "back"]) == 0
    assert check.main(["org/tiny@main"]) == 0
    assert set(asked) == {"org/tiny@main"}
    assert (tmp_path / "fast" / "checkpoint").is_dir()
    assert (tmp_path / "back" / "model.safetensors").is_file()


def test_a_checkpoint_of_a_training_beside_the_weights_is_not_read(source, tmp_path, capsys):
    """It is the user's; of a folder that from_hf.py made check.py says what it is."""
    folder = shutil.copytree(source, tmp_path / "tuned")
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "optimizer.pt").write_bytes(b"x")
    assert check.main([str(folder)]) == 0
    assert from_hf.main([str(folder), str(tmp_path / "fast")]) == 0
    capsys.readouterr()
    assert check.main([str(tmp_path / "fast")]) == 1
    assert "fast: a folder of from_hf.py, which has no tensors by name" in capsys.readouterr().err


def test_a_converted_folder_loads_onto_a_mesh(source, tmp_path):
    assert from_hf.main([str(source), str(tmp_path / "fast"), "--dtype", "bfloat16"]) == 0
    mesh = make_mesh(fsdp=2, tensor=2)
    fast = loading.load(tmp_path / "fast", mesh=mesh).model
    slow = loading.load(source, "bfloat16", mesh).model
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(slow), strict=True):
        assert a.sharding == b.sharding and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_folder_is_written_in_the_chunks_of_its_mesh(source, tmp_path):
    assert from_hf.main([str(source), str(tmp_path / "fast"), "--mesh", "fsdp=2,tensor=4"]) == 0
    found = v1.metadata(str(tmp_path / "fast" / "checkpoint")).metadata
    mesh = make_mesh(fsdp=2, tensor=4)
    split = 0
    for name, leaf in leaves(loading.load(source).model).items():
        part = sharding(name, leaf.shape, mesh).shard_shape(leaf.shape)
        chunk = found[name].storage_metadata.chunk_shape
        is_matrix = name.rpartition("_")[2].startswith("L") and leaf.ndim > 2
        assert chunk[0] == 1 or not is_matrix
        # What several devices hold is cut further: they share the writing.
        assert not any(held % size for held, size in zip(part, chunk, strict=True)), name
        split += part != leaf.shape
    assert split > 10
    loaded = loading.load(tmp_path / "fast", mesh=make_mesh(tensor=2)).model
    for a, b in zip(
        jax.tree.leaves(loaded), jax.tree.leaves(loading.load(source).model), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_mesh_that_is_none_is_refused(source, tmp_path, capsys):
    for text in ("16", "width=3", "fsdp=0", "fsdp"):
        with pytest.raises(SystemExit):
            from_hf.main([str(source), str(tmp_path / "new"), "--mesh", text])
        assert "expected data=, fsdp= or tensor=" in capsys.readouterr().err
    assert from_hf.main([str(source), str(tmp_path / "new"), "--mesh", "fsdp=16"]) == 1
    assert "needs 16 devices, there are 8" in capsys.readouterr().err


def test_an_existing_target_and_a_missing_source_are_refused(source, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("x")
    for tool in (from_hf, to_hf):
        assert tool.main([str(source), str(tmp_path / "taken")]) == 1
        assert "exists already" in capsys.readouterr().err
        assert tool.main([str(tmp_path / "nowhere"), str(tmp_path / "new")]) == 1
        assert "no such folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_a_target_inside_the_source_is_refused(source, tmp_path, capsys):
    (tmp_path / "link").symlink_to(source)
    before = sorted(source.rglob("*"))
    for target in (source / "sub", source / "sub" / "deep", tmp_path / "link" / "sub"):
        assert from_hf.main([str(source), str(target)]) == 1
        assert f"inside the source {source}. Give a folder outside it" in capsys.readouterr().err
    assert sorted(source.rglob("*")) == before
    assert from_hf.main([str(tmp_path / "nowhere"), f"{tmp_path}/nowhere-else"]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_a_full_disk_is_one_message_and_nothing_is_written(source, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stored.checkpoint, "save", full)
    monkeypatch.setattr(loading.export, "write_tensors", full)
    for tool in (from_hf, to_hf):
        assert tool.main([str(source), str(tmp_path / "new")]) == 1
        message = capsys.readouterr().err
        assert "new: the disk is full" in message and "Traceback" not in message
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_conversion_that_is_stopped_leaves_nothing(
    source, tmp_path, capsys, monkeypatch, request, number, status
):
    # A command that a shell started in the background ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def stopped(*_):
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(stored.checkpoint, "save", stopped)
    monkeypatch.setattr(loading.export, "write_tensors", stopped)
    for tool in (from_hf, to_hf):
        assert tool.main([str(source), str(tmp_path / "new")]) == status
        assert capsys.readouterr().err.endswith("stopped. Give the same command again.\n")
        assert list(tmp_path.iterdir()) == []


def test_check_tells_sizes_and_names(source, capsys):
    assert check.main([str(source)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "LLaVA-1.5" in lines["family"]
    assert "2 layers × 20 = 40 neurons" in lines["text"]
    assert "2 layers × 28 = 56 neurons" in lines["vision"]
    assert lines["tensors"].endswith("files, transformers 5 names")
    assert "F32" in lines["dtypes"]
    assert lines["missing"].split() == ["missing", "0"]


def test_check_lists_what_does_not_fit(source, tmp_path, capsys):
    folder = shutil.copytree(source, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    gone = tensors.pop("language_model.model.norm.weight")
    tensors["a.stranger"] = gone
    tensors["multi_modal_projector.linear_1.bias"] = gone[:3]
    save_file(tensors, folder / "model.safetensors")
    assert check.main([str(folder)]) == 1
    out = capsys.readouterr().out
    assert "missing      1\n  language_model.model.norm.weight" in out
    assert "left over    1\n  a.stranger" in out
    assert "multi_modal_projector.linear_1.bias is [3], expected [24]" in out
    (folder / "config.json").unlink()
    assert check.main([str(folder)]) == 1
    assert "no config.json" in capsys.readouterr().err

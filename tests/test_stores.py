"""Places in stores: fsspec's memory for what all have in common, and S3 on loopback for faults."""

import importlib
import json

import fsspec
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import stores_servers
import tiny_llava
from jax.sharding import NamedSharding, PartitionSpec

from manu_jax import checkpoint, folder, hub, owner, parallel, pieces, stages, stores
from manu_jax.arrays import read_arrays, write_arrays
from manu_jax.fingerprint import weights_hash
from manu_jax.models.loaded import load, save_checkpoint, save_pretrained
from manu_jax.types import ManuError

pytest.importorskip("upath", reason="the extra `cloud` is not installed")


@pytest.fixture
def place():
    """An empty folder in memory, as of a store."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield folder.expand_path("memory://bucket/run")
    system.store.clear()


def fill(path, **files):
    with folder.new_folder(path) as part:
        for name, text in files.items():
            (part / name).write_text(text)


def test_a_local_path_stays_what_it_was(tmp_path):
    assert folder.expand_path(str(tmp_path)) == tmp_path
    assert type(folder.expand_path(str(tmp_path))) is type(tmp_path)
    assert stores.local_copies(tmp_path) is tmp_path


def test_a_file_is_put_whole(place):
    folder.write_atomic(place / "a" / "b.json", "one")
    folder.write_atomic(place / "a" / "b.json", b"two")
    assert (place / "a" / "b.json").read_text() == "two"
    assert stores.names_in(place) == ["a/b.json"]


def test_a_folder_has_its_list_last_and_stands_with_it(place, monkeypatch):
    written = []
    write = stores.write

    def noted(path, data):
        written.append((path.name, stores.names_in(place)))
        write(path, data)

    monkeypatch.setattr("manu_jax.staged.write", noted)
    fill(place / "model", weights="one", config="x")
    assert [name for name, _ in written] == [".manu_jax.part", ".manu_jax.json"]
    assert set(written[-1][1]) == {"model/.manu_jax.part", "model/weights", "model/config"}
    assert stores.stands(place / "model") and parallel.exists(place / "model")
    assert not stores.stands(place) and not stores.stands(place / "other")
    fill(place / "model", weights="two")
    assert stores.names_in(place) == ["model/.manu_jax.json", "model/weights"]
    assert (place / "model" / "weights").read_text() == "two"


def test_a_folder_that_fails_leaves_the_old_one(place):
    fill(place / "model", weights="one")
    with pytest.raises(RuntimeError), folder.new_folder(place / "model") as part:
        (part / "weights").write_text("half")
        raise RuntimeError
    assert (place / "model" / "weights").read_text() == "one"
    assert stores.stands(place / "model")


def test_a_folder_that_was_killed_half_way_does_not_stand_and_is_made_again(place, monkeypatch):
    fill(place / "model", a="one", b="one", old="one")
    system = fsspec.filesystem("memory")
    put = type(system).put_file

    def killed(self, local, remote, **settings):
        if remote.endswith("/b"):
            raise KeyboardInterrupt
        put(self, local, remote, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(type(system), "put_file", killed)
        with pytest.raises(KeyboardInterrupt):
            fill(place / "model", a="two", b="two")
    assert stores.names_in(place) == ["model/.manu_jax.part", "model/a"]
    assert not stores.stands(place / "model")
    with pytest.raises(ManuError, match="was left half-written"):
        hub.local(str(place / "model"), "model", ("a",))
    fill(place / "model", a="three")
    assert stores.stands(place / "model")
    with pytest.raises(ManuError, match=r"it holds none of \*\.json\. Give the folder of a model"):
        hub.local(str(place / "model"), "model", ("*.json",))
    assert stores.names_in(place) == ["model/.manu_jax.json", "model/a"]


def test_files_of_others_are_not_replaced(place):
    (place / "model" / "thesis.txt").write_text("years of work")
    with pytest.raises(ManuError, match=r"would remove: thesis\.txt\. Nothing was changed"):
        fill(place / "model", weights="one")
    with pytest.raises(ManuError, match="it is a file"):
        fill(place / "model" / "thesis.txt", weights="one")
    assert stores.names_in(place) == ["model/thesis.txt"]


def test_a_folder_is_moved_with_its_list_last(place, monkeypatch):
    fill(place / "model", weights="one")
    copied = []
    system = fsspec.filesystem("memory")
    copy = system.copy
    monkeypatch.setattr(system, "copy", lambda one, two: (copied.append(two), copy(one, two)))
    stores.move(place / "model", place / "earlier" / "model")
    assert stores.names_in(place) == ["earlier/model/.manu_jax.json", "earlier/model/weights"]
    assert copied[-1].endswith(stores.MANIFEST)
    stores.remove_folder(place / "earlier")
    assert stores.names_in(place) == []


def test_copies_follow_the_store(place):
    for name in ("config.json", "deep/rows.parquet", "weights.safetensors", ".hidden"):
        (place / name).write_text(name)
    before = stores.identity(place)
    copies = stores.local_copies(place, ("*.json", "*.parquet"))
    held = {p.relative_to(copies).as_posix() for p in copies.rglob("*") if p.is_file()}
    assert held == {"config.json", "deep/rows.parquet"}
    (place / "config.json").write_text("other")
    (place / "deep" / "rows.parquet").unlink()
    assert hub.local(str(place), "model", ("*.json", "*.parquet")) == copies
    assert (copies / "config.json").read_text() == "other"
    assert not (copies / "deep" / "rows.parquet").exists()
    assert stores.identity(place) != before
    assert stores.identity(place / "nothing") == "absent"


def test_a_file_of_arrays_goes_to_a_store_and_back(place):
    arrays = {"text": np.arange(6, dtype=np.float32).reshape(2, 3)}
    write_arrays(place / "scores.safetensors", "scores", arrays, metadata={"made_from": "{}"})
    found, metadata = read_arrays(place / "scores.safetensors", "scores")
    np.testing.assert_array_equal(found["text"], arrays["text"])
    assert metadata["made_from"] == "{}"


def test_lines_are_kept_as_they_come(place, monkeypatch):
    monkeypatch.setattr(stores, "APPENDED_LINES", 2)
    with pytest.raises(RuntimeError), stores.appended(place / "said.jsonl") as file:
        for number in range(3):
            file.line(str(number))
        assert (place / "said.jsonl").read_text() == "0\n1\n"
        raise RuntimeError
    with stores.appended(place / "said.jsonl") as file:
        file.line("3")
    assert (place / "said.jsonl").read_text() == "0\n1\n2\n3\n"


def test_what_stands_beside_removed_checkpoints_stays(place):
    (place / "methods" / "NPO" / "checkpoints" / "state").write_text("1")
    (place / "methods" / "NPO" / "edit.safetensors").write_text("2")
    stages._remove(place / "methods" / "NPO" / "checkpoints")
    assert stores.names_in(place) == ["methods/NPO/edit.safetensors"]


def test_an_owner_that_did_not_end_is_told_of(place, caplog):
    with owner.owned_folder(place):
        note = (place / ".owner").read_text()
    assert "did not end" not in caplog.text and not (place / ".owner").exists()
    (place / ".owner").write_text(note)
    with owner.owned_folder(place):
        pass
    assert f"process {note} did not end there" in caplog.text


def test_a_model_is_written_to_a_store_and_read_by_ranges(place, monkeypatch):
    """Of the weights only what is asked for travels; the small files alone are copied."""
    given = tiny_llava.loaded()
    save_pretrained(given, str(place / "model"))
    assert stores.stands(place / "model")
    ranges, system = [], fsspec.filesystem("memory")
    read = stores.read_range
    monkeypatch.setattr(stores, "read_range", lambda *one: (ranges.append(one), read(*one))[1])
    fetched, get = [], type(system).get_file
    monkeypatch.setattr(
        type(system), "get_file", lambda *one, **rest: (fetched.append(one[1]), get(*one, **rest))
    )
    found = load(str(place / "model"))
    assert weights_hash(found.model) == weights_hash(given.model)
    sizes = [stop - start for _, start, stop in ranges]
    size = system.info(f"{place.path}/model/model.safetensors")["size"]
    assert sum(sizes) == size and max(sizes) < size
    assert fetched and not any(name.endswith(".safetensors") for name in fetched)


def test_damaged_weights_in_a_store_are_told_of(place):
    save_pretrained(tiny_llava.loaded(), str(place / "model"))
    file = place / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ManuError, match=r"model\.safetensors is damaged or cut short"):
        load(str(place / "model"))
    file.write_bytes(b"\xff" * 4)
    with pytest.raises(ManuError, match="header is cut short"):
        load(str(place / "model"))


def test_a_converted_model_and_checkpoints_go_to_a_store_and_back(place):
    given = tiny_llava.loaded()
    save_checkpoint(given, str(place / "model"))
    assert weights_hash(load(str(place / "model"), "float32").model) == weights_hash(given.model)
    save_checkpoint(given, str(place / "model"))  # it is replaced
    tree = {"a_LDF": jnp.arange(24.0).reshape(2, 3, 4), "step": jnp.int32(3)}
    checkpoint.save(place / "step-1", tree)
    found = checkpoint.load(place / "step-1", tree)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found, tree))
    (place / "step-1" / checkpoint.CHECKSUMS).unlink()  # as one that was killed before its end
    assert not checkpoint.exists(place / "step-1")


def values():
    """Leaves of every kind that a checkpoint holds."""
    return {
        "up_LDF": np.arange(64.0, dtype=np.float32).reshape(2, 4, 8) / 7,
        "half_F": np.arange(8).astype(ml_dtypes.bfloat16),
        "scale": np.float32(0.3),
        "step": 7,
    }


def laid_out(sizes, wished):
    """Those leaves on a mesh of these sizes; wished: how the first is split."""
    mesh = parallel.make_mesh(*sizes)
    specs = {"up_LDF": PartitionSpec(*wished), "half_F": PartitionSpec("tensor")}
    given = values()
    split = {
        name: jax.device_put(given[name], NamedSharding(mesh, spec)) for name, spec in specs.items()
    }
    whole = jax.device_put(given["scale"], NamedSharding(mesh, PartitionSpec()))
    return {**split, "scale": whole, "step": 7}


LAYOUTS = [
    ((1, 8, 1), (None, None, "fsdp")),
    ((2, 2, 2), (None, "fsdp", "tensor")),
    ((1, 2, 4), (None, "tensor", None)),
    ((8, 1, 1), ()),
]


@pytest.mark.parametrize(
    ("start", "end"),  # each once; the others of the product in the slow suite
    [
        pytest.param(start, end, marks=[] if end == (start + 1) % 4 else [pytest.mark.slow])
        for start in range(4)
        for end in range(4)
    ],
)
def test_pieces_go_from_any_mesh_to_any_other(place, start, end):
    checkpoint.save(place / "one", laid_out(*LAYOUTS[start]))
    target = laid_out(*LAYOUTS[end])
    empty = {
        name: leaf if name == "step" else jnp.zeros_like(leaf, device=leaf.sharding)
        for name, leaf in target.items()
    }
    found = checkpoint.load(place / "one", {**empty, "step": 0})
    assert found["step"] == 7 and type(found["step"]) is int
    for name in ("up_LDF", "half_F", "scale"):
        assert found[name].sharding == target[name].sharding
        assert found[name].dtype == target[name].dtype
        np.testing.assert_array_equal(found[name], target[name])


def test_of_pieces_those_alone_are_read_that_are_needed(place, monkeypatch):
    checkpoint.save(place / "one", laid_out(*LAYOUTS[0]))
    fetched = []
    given = pieces._content

    def counted(folder, name, start=0, stop=None):
        fetched.append((name, start, stop))
        return given(folder, name, start, stop)

    monkeypatch.setattr(pieces, "_content", counted)
    one = NamedSharding(parallel.make_mesh(1, 1, 1, devices=jax.devices()[:1]), PartitionSpec())
    target = {"up_LDF": jax.ShapeDtypeStruct((2, 4, 8), "float32", sharding=one)}
    held = pieces.read_lists(place / "one", checkpoint._sums(place / "one"))
    half = [part for part in held["up_LDF"].pieces if part.overlaps(((0, 2), (0, 4), (0, 4)))]
    assert len(held["up_LDF"].pieces) == 8 and len(half) == 4
    fetched.clear()
    pieces.read(place / "one", held, target)
    assert len(fetched) == len(set(fetched)) == 8  # each once, and nothing of other leaves


def test_damaged_and_foreign_pieces_are_told_of(place):
    def damage(name, change):
        checkpoint.save(place / "one", laid_out(*LAYOUTS[1]))
        file = place / "one" / name
        change(file)
        with pytest.raises(ManuError, match="Remove it and start anew") as told:
            checkpoint.load(place / "one", laid_out(*LAYOUTS[1]))
        return str(told.value)

    def cut(file):
        file.write_bytes(file.read_bytes()[:-8])

    def turn(file):
        file.write_bytes(bytes(255 - byte for byte in file.read_bytes()))

    names = ("leaf-00000.00000", "pieces-00000.json")
    for name in names:
        for change in (cut, turn):
            assert f"damaged: its file {name} is not as it was written" in damage(name, change)
        assert f"damaged: its file {name} is missing" in damage(name, lambda file: file.unlink())
    assert "checksums.json is damaged" in damage(checkpoint.CHECKSUMS, turn)
    checkpoint.save(place / "one", laid_out(*LAYOUTS[1]))
    with pytest.raises(ManuError, match="of another model: other, up_LDF differ"):
        target = laid_out(*LAYOUTS[1])
        target["other"] = target.pop("up_LDF")
        checkpoint.load(place / "one", target)


def test_a_checkpoint_that_orbax_made_is_read_from_a_store(place, tmp_path):
    tree = {"a_LDF": jnp.arange(24.0).reshape(2, 3, 4)}
    checkpoint.save(tmp_path / "one", tree)
    stores_servers.put(tmp_path / "one", place / "one")
    np.testing.assert_array_equal(checkpoint.load(place / "one", tree)["a_LDF"], tree["a_LDF"])


def test_unknown_schemes_and_missing_packages_are_told_of(monkeypatch):
    with pytest.raises(ManuError, match="no known place. Give a folder of this machine, or gs://"):
        folder.expand_path("ftp://host/run")
    with pytest.raises(ManuError, match="no known place"):
        folder.expand_path("s3://")

    def missing(name):
        raise ImportError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ManuError, match=r"needs the package gcsfs\. Call `pip install"):
        folder.expand_path("gs://bucket/run")


@pytest.fixture(scope="module")
def s3():
    """An S3 on loopback, with a bucket."""
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    pytest.importorskip("s3fs", reason="the extra `cloud` is not installed")
    import stores_servers

    with stores_servers.s3(server) as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield stores_servers.fresh_s3()


def test_a_bucket_that_is_not_there_is_told_of(s3):
    assert json.dumps(str(folder.expand_path("s3://bucket/run"))) == '"s3://bucket/run"'
    with pytest.raises(ManuError, match="s3://nobody: there is no such bucket"):
        folder.expand_path("s3://nobody/run")


def test_lacking_credentials_and_permissions_are_told_of(s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3()
    with pytest.raises(ManuError, match="no credentials .*AWS_ACCESS_KEY_ID"):
        folder.expand_path("s3://bucket/run")
    with pytest.raises(ManuError, match="the store forbids it .*permission"), stores.told("s3://b"):
        raise PermissionError("Access Denied")
    from botocore.exceptions import EndpointConnectionError

    with pytest.raises(ManuError, match=r"does not answer .*Look at the network"):
        with stores.told("s3://bucket"):
            raise EndpointConnectionError(endpoint_url="http://127.0.0.1:9")
    with pytest.raises(FileNotFoundError), stores.told("s3://bucket", but_files=True):
        raise FileNotFoundError
    monkeypatch.undo()
    s3()

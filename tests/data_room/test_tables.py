"""Which files are the table of a folder, and what damage in them comes to."""

import shutil

import numpy as np
import pytest
from pyarrow import Table, parquet

from manu_jax.data.mllmu import load_benchmark
from manu_jax.data.tables import TableReader
from manu_jax.types import ManuError

SHARD = "train-00000-of-00001.parquet"
HASHED = "train-00000-of-00001-5f1c2a9b3d4e5f60.parquet"


def ids(path):
    return [person.id for person in load_benchmark(path).sets["retain"]]


def fault(path):
    with pytest.raises(ManuError) as caught:
        load_benchmark(path)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [HASHED, "0000.parquet", "train/0000.parquet", "default/train/0000.parquet", f"data/{SHARD}",
     f"train/{SHARD}"],
)  # fmt: skip
def test_names_of_the_hub_are_read(copy, name):
    before = ids(copy)
    file = copy / "retain_90" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    (copy / "retain_90" / SHARD).rename(file)
    (file.parent / f"._{file.name}").write_bytes(b"\0\5\26\7")  # as macOS writes them
    (file.parent / ".DS_Store").write_bytes(b"\0")
    assert ids(copy) == before


def test_files_of_macos_are_no_shards(copy):
    before = ids(copy)
    for folder in copy.iterdir():
        if folder.is_dir():
            for file in sorted(folder.iterdir()):
                (folder / f"._{file.name}").write_bytes(b"\0\5\26\7")
    assert ids(copy) == before


def test_converted_files_come_in_the_order_of_their_numbers(copy):
    folder = copy / "retain_90"
    table = parquet.read_table(folder / SHARD)
    (folder / SHARD).unlink()
    for number in range(3):
        part = table.slice(3 * number, 3)
        parquet.write_table(part, folder / f"{number:04d}.parquet")
    assert len(ids(copy)) == 9
    (folder / "0001.parquet").unlink()
    assert "0000.parquet, 0002.parquet, which are not all parts of one set" in fault(copy)


def test_two_sets_of_files_are_an_error_that_names_both(copy):
    folder = copy / "retain_90"
    (folder / "train").mkdir()
    shutil.copy(folder / SHARD, folder / "train" / "0000.parquet")
    message = fault(copy)
    assert f"holds 2 sets of files, those of {SHARD} and train/0000.parquet" in message
    assert "Keep one set" in message


def test_two_versions_of_one_shard_are_an_error(copy):
    shutil.copy(copy / "retain_90" / SHARD, copy / "retain_90" / HASHED)
    assert "not all parts of one set of files" in fault(copy)


def test_other_splits_and_folders_are_not_read(copy):
    before = ids(copy)
    for name in ("test-00000-of-00001.parquet", "test/0000.parquet"):
        file = copy / "retain_90" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"no parquet")
    (copy / "retain_90" / "0000.parquet").mkdir()
    assert ids(copy) == before


@pytest.mark.slow
def test_a_flipped_byte_gives_the_same_rows_or_the_fault(copy):
    def content():
        benchmark = load_benchmark(copy)
        return [
            (p.id, p.name, p.questions, p.biography, [image.tobytes() for image in p.images])
            for p in benchmark.sets["forget"]
        ]

    file = copy / "forget_10" / SHARD
    whole, expected = file.read_bytes(), content()
    random = np.random.default_rng(0)
    num_faults = 0
    for _ in range(20):
        data = bytearray(whole)
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        file.write_bytes(bytes(data))
        try:
            assert content() == expected
        except ManuError as error:
            num_faults += 1
            assert f"forget_10/{SHARD}" in str(error)
    assert num_faults > 5  # the others hit what is not read


def test_rows_without_ids_are_known_by_their_number_in_the_folder(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    for number, names in enumerate((["Ada", "Bo"], ["Cy"])):
        table = Table.from_pylist([{"name": name} for name in names])
        parquet.write_table(table, folder / f"train-0000{number}-of-00002.parquet")
    reader = TableReader()
    rows = list(reader.numbered_rows(folder, lambda columns: None))
    assert [(row.id, row.cells["name"]) for row in rows] == [("0", "Ada"), ("1", "Bo"), ("2", "Cy")]
    assert rows[2].place == "faces/train-00001-of-00002.parquet, row 0" and not reader.faults
    assert list(reader.numbered_rows(folder, lambda columns: f"has {columns}")) == []
    assert reader.faults[0] == "faces/train-00000-of-00002.parquet: has {'name'}"

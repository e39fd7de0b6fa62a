"""A table reads the same from every form in which `datasets` stores it, and is read in parts."""

import json
import logging
import tracemalloc

import datasets
import numpy as np
import pytest
from PIL import Image
from pyarrow import Table, concat_tables, parquet

from manu_jax.data.images import decode
from manu_jax.data.mllmu import load_benchmark
from manu_jax.data.tables import TableReader
from manu_jax.types import ManuError

SHARD = "train-00000-of-00001.parquet"


def content(path):
    """All that a benchmark's folder holds."""
    return {
        name: [
            (p.id, p.name, p.questions, p.biography, [image.tobytes() for image in p.images])
            + tuple((f.question, f.answer, f.image and f.image.tobytes()) for f in p.facts)
            for p in people
        ]
        for name, people in load_benchmark(path).sets.items()
    }


def rows_of(folder):
    """The rows of a folder, whose files go."""
    return table_of(folder).to_pylist()


def table_of(folder):
    """The table of a folder, whose files go."""
    files = sorted(folder.glob("*.parquet"))
    table = concat_tables([parquet.read_table(file) for file in files])
    for file in files:
        file.unlink()
    return table


def as_saved(folder):
    datasets.Dataset(table_of(folder)).save_to_disk(folder)


def as_json(folder, name="train.jsonl"):
    rows = [row | {"image": None} for row in rows_of(folder)]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_images(folder):
    """Image files beside metadata.jsonl, as `datasets` lays out an image folder."""
    lines = []
    for number, row in enumerate(rows_of(folder)):
        many = "images" in row
        names = []
        for cell in row.pop("images") if many else [row.pop("image")]:
            names.append(f"{number}-{len(names)}.png")
            (folder / names[-1]).write_bytes(cell["bytes"])
        lines.append({"file_names": names} | row if many else {"file_name": names[0]} | row)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metadata.jsonl").write_text(text)


@pytest.mark.parametrize(
    ("name", "store"),
    [
        ("forget_10", as_saved),
        ("forget_10", as_images),
        ("Test_Set", as_saved),
        ("Test_Set", as_images),
        ("ft_Data", as_images),
        ("Base_Data", as_saved),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_form_of_a_table_gives_the_same_people(copy, name, store):
    before = content(copy)
    store(copy / name)
    assert content(copy) == before


@pytest.mark.parametrize("name", ["train.jsonl", "train-00000-of-00001.jsonl", "data/train.json"])
def test_json_gives_the_same_topics(copy, name, change):
    change(copy / "General_Set", lambda rows: [row | {"image": None} for row in rows])
    before = content(copy)
    folder = copy / "General_Set"
    (folder / name).parent.mkdir(exist_ok=True)
    as_json(folder, name)
    assert content(copy) == before


def test_the_shards_of_save_to_disk_are_one_table(copy):
    before = content(copy)
    folder = copy / "retain_90"
    table = datasets.Dataset(table_of(folder))
    table.save_to_disk(folder / "train", num_shards=3)
    assert content(copy) == before


def test_a_folder_whose_name_is_a_pattern_is_read(copy, tmp_path):
    before = content(copy)
    assert content(copy.rename(tmp_path / "a [b] * {c}")) == before


def test_damage_is_a_fault_that_names_the_form(copy, caplog, capfd):
    (copy / "forget_10" / SHARD).write_bytes(b"PAR1 no parquet PAR1")
    as_saved(copy / "retain_90")
    next((copy / "retain_90").glob("*.arrow")).write_bytes(b"no arrow")
    as_json(copy / "General_Set")
    (copy / "General_Set" / "train.jsonl").write_text('{"ID": "1", \n')
    as_images(copy / "Retain_Set")
    (copy / "Retain_Set" / "0-0.png").unlink()
    with caplog.at_level(logging.INFO), pytest.raises(ManuError) as caught:
        load_benchmark(copy)
    message = str(caught.value)
    assert f"forget_10/{SHARD}: not a whole parquet file (" in message
    assert "retain_90: not a whole folder of save_to_disk (" in message
    assert "General_Set/train.jsonl: not a whole JSON file (" in message
    assert "Retain_Set, row 0, ID" in message and "there is no image 0-0.png in" in message
    assert message.count("Download it again.") == 3
    assert "Failed to" not in caplog.text + capfd.readouterr().err  # `datasets` says it once more


def test_two_forms_in_one_folder_are_an_error(copy):
    (copy / "forget_10" / "train.jsonl").write_text("{}\n")
    with pytest.raises(ManuError, match=f"those of {SHARD} and train.jsonl, which may be the same"):
        load_benchmark(copy)


def test_a_path_in_a_table_of_bytes_is_not_followed(copy, change, tmp_path):
    file = tmp_path / "elsewhere.png"
    Image.new("RGB", (4, 4)).save(file)

    def point(rows):
        rows[0]["image"] = {"bytes": None, "path": str(file)}

    change(copy / "forget_10", point)
    with pytest.raises(ManuError, match="an image is a mapping with bytes, got"):
        load_benchmark(copy)


def test_an_image_folder_does_not_reach_out_of_itself(copy, tmp_path):
    folder = copy / "forget_10"
    as_images(folder)
    (folder / "0-0.png").rename(tmp_path / "elsewhere.png")
    lines = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(lines.replace("0-0.png", "../../elsewhere.png"))
    with pytest.raises(ManuError, match=r"forget_10.*\.\./\.\./elsewhere.png"):
        load_benchmark(copy)


def test_a_large_table_is_never_in_memory_whole(tmp_path):
    folder = tmp_path / "large"
    folder.mkdir()
    random, size, count = np.random.default_rng(0), 100_000, 400
    cells = [{"bytes": random.bytes(size), "path": None} for _ in range(count)]
    table = Table.from_pydict({"ID": [f"{i:03d}" for i in range(count)], "image": cells})
    parquet.write_table(table, folder / SHARD, row_group_size=20)
    del table, cells
    tracemalloc.start()
    try:
        ids = [row.id for row in TableReader().rows(folder, lambda columns: None)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(ids) == count and peak < 0.25 * size * count


def test_pixels_are_those_of_datasets(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8), "RGBA")
    image.save(tmp_path / "a.png")
    feature = datasets.Image(mode="RGB")
    expected = feature.decode_example({"path": str(tmp_path / "a.png"), "bytes": None})
    for source in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        assert decode(source).tobytes() == expected.tobytes()

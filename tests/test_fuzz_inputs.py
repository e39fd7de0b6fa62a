"""What users write or hand over, changed at random: a ManuError or the right result, never else.

Configs and overrides, benchmarks in parquet, SafeEraser's records, masks and statistics whose hash
is right, results and records. As in test_fuzz_files.py, each input follows from its number.
"""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import ppu_folder
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safeeraser_folder
import tiny_llava
from fuzzing import VALUES, counted, generator, harmed, named, with_other_values
from PIL import Image

from manu_jax import arrays
from manu_jax.config import DataSection, EvaluateSection, load_config, to_yaml
from manu_jax.data import ppu, safeeraser
from manu_jax.data.benchmarks import BENCHMARKS
from manu_jax.data.record import Person, Question
from manu_jax.edits import edit as edits
from manu_jax.edits import masks
from manu_jax.edits.low_rank import LowRank
from manu_jax.edits.masks import MaskEdit
from manu_jax.edits.neurons import WrittenNeurons
from manu_jax.evaluation import suite
from manu_jax.evaluation.metrics import METRICS, CandidateScore
from manu_jax.importance import methods, statistics
from manu_jax.report.render import render
from manu_jax.report.results import load_results
from manu_jax.selection import select
from manu_jax.types import Template

sys.path.insert(0, str(Path(__file__).parent / "report"))
CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))
CONFIGS = [path for path in CONFIGS if "\nshares:" not in path.read_text()]  # of manu_jax.compare
# What may stand in a YAML file where a value is due.
YAML_VALUES = (
    "*a", "&a [*a]", "&a {b: *a}", "!!python/object:os.system {}", "!!binary aGk=", "!!set {a}",
    "{", "[", "]", "'", '"', "|", "- - -", "? a", "010", "1:30", "yes", "~", "2001-01-01", "1e400",
    "9" * 5000, "0x10", ".nan", "-.inf", "<<: *b", "a: b: c", "\t", "%TAG", "---", "...", "\u0085",
    "\ufeff", "'\\ud800'", '"\\ud800"', "[" * 3000, "{a: " * 400, "-1", "0", "1.5", "null", "''",
    "[paper, paper]", "{preset: paper, alpha: 0.9}", "text", "learned", "true", "x" * 10_000,
)  # fmt: skip
KINDS = ("renamed", "dropped", "twice", "turned", "empty", "all", "first", "inside")


def plain(benchmark):
    """What a benchmark holds, with images as bytes."""

    def of(value):
        if isinstance(value, Image.Image):
            return (value.mode, value.size, value.tobytes())
        if dataclasses.is_dataclass(value):
            return {f.name: of(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, dict):
            return {key: of(one) for key, one in value.items()}
        return [of(one) for one in value] if isinstance(value, list | tuple) else value

    return of(benchmark.sets)


@counted(60, 2500)
def test_configs(tmp_path, numbers):
    for number in numbers:
        random = generator("yaml", number)
        text = CONFIGS[random.integers(len(CONFIGS))].read_text()
        lines = text.split("\n")
        for _ in range(random.integers(1, 3)):
            place = int(random.integers(len(lines)))
            value = YAML_VALUES[random.integers(len(YAML_VALUES))]
            match random.integers(6):
                case 0:
                    lines[place] = lines[place].partition(":")[0] + ": " + value
                case 1:
                    lines[place] = value
                case 2:
                    lines.insert(place, lines[int(random.integers(len(lines)))])
                case 3:
                    lines[place] = " " * int(random.integers(1, 9)) + lines[place]
                case 4:
                    lines[place] = lines[place].lstrip()
                case 5:
                    del lines[place]
                    lines = lines or [""]
        content = "\n".join(lines).encode("utf-8", "surrogatepass")
        if number % 3 == 0:
            content = harmed(content, random)
        (tmp_path / "config.yaml").write_bytes(content)
        with named("yaml", number):
            config = load_config(tmp_path / "config.yaml")
            (tmp_path / "again.yaml").write_text(to_yaml(config))
            assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.slow
@counted(60, 1500)
def test_overrides(tmp_path, numbers):
    for number in numbers:
        random = generator("override", number)
        path = CONFIGS[random.integers(len(CONFIGS))]
        given = ["data.path=d"] + ["model.path=m"] * ("decoder:" not in path.read_text())
        values = load_config(path, given).model_dump(mode="json")
        keys = []
        while isinstance(values, dict) and values:
            key = sorted(values)[random.integers(len(values))]
            keys.append(key if random.random() < 0.95 else key + "x")
            values = values[key]
            if random.random() < 0.2:
                break
        value = YAML_VALUES[random.integers(len(YAML_VALUES))]
        override = f"{'.'.join(keys)}={value}"
        with named(f"override {override[:80]!r} of {path.name}", number):
            config = load_config(path, [*given, override])
            (tmp_path / "again.yaml").write_text(to_yaml(config), encoding="utf-8")
            assert load_config(tmp_path / "again.yaml") == config


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A folder of the synthetic benchmark."""
    section = DataSection(num_people=4, num_celebrities=1, num_general=1)
    folder = tmp_path_factory.mktemp("tables") / "data"
    BENCHMARKS["synthetic"].write(folder, section, 0)
    return folder


def read(folder):
    return plain(BENCHMARKS["synthetic"].read(folder, DataSection(), 0))


@counted(15, 700)
def test_bytes_of_parquet_files(tables, tmp_path, numbers):
    folder = shutil.copytree(tables, tmp_path / "data")
    whole = read(folder)
    files = sorted(folder.rglob("*.parquet"))
    for number in numbers:
        random = generator("parquet", number)
        file = files[random.integers(len(files))]
        content = file.read_bytes()
        # The footer, where sizes and types stand, is short beside the images.
        footer = 8 + int.from_bytes(content[-8:-4], "little")
        if random.random() < 0.5:
            damaged = content[:-footer] + harmed(content[-footer:], random)
        else:
            damaged = harmed(content, random)
        file.write_bytes(damaged)
        with named(f"parquet, {file.name}", number):
            assert read(folder) == whole
        file.write_bytes(content)


@pytest.mark.slow
@counted(15, 700)
def test_cells_and_columns_of_parquet_files(tables, tmp_path, numbers):
    folder = shutil.copytree(tables, tmp_path / "data")
    files = sorted(folder.rglob("*.parquet"))
    others = (*VALUES[:14], b"\x00", ["a", "b"], [["A", "x"]], {"A": "x"}, "2020-01-01", "{}", " ")
    for number in numbers:
        random = generator("cells", number)
        file = files[random.integers(len(files))]
        content = file.read_bytes()
        table = pq.read_table(file)
        name = table.column_names[random.integers(table.num_columns)]
        value = others[random.integers(len(others))]
        kind = KINDS[random.integers(len(KINDS))]
        try:
            changed = changed_table(table, name, (kind, value), random)
        except (pa.ArrowException, TypeError, OverflowError, ValueError):
            continue  # Arrow has no such column
        pq.write_table(changed, file)
        with named(f"cells, {file.parent.name}.{name} {kind} {value!r:.30}", number):
            read(folder)
        file.write_bytes(content)


def changed_table(table, name, change, random):
    """Return a table with one column renamed, left out, given twice, or with other values."""
    kind, value = change
    place, held = table.column_names.index(name), table[name].to_pylist()
    match kind:
        case "renamed":
            return table.rename_columns([x + "_" if x == name else x for x in table.column_names])
        case "dropped":
            return table.drop_columns([name])
        case "twice":
            return table.append_column(name, table[name])
        case "turned":
            return table.take(list(range(table.num_rows))[::-1])
        case "empty":
            return table.slice(0, 0)
        case "all":
            values = [value] * table.num_rows
        case "first":
            values = [value, *held[1:]]
        case "inside":
            values = [inside(held[0], random), *held[1:]]
    return table.set_column(place, name, pa.array(values))


def inside(cell, random):
    """Return a cell with something else inside it; bytes stay apart from JSON."""
    if isinstance(cell, str) and cell[:1] in ("{", "["):
        return json.dumps(with_other_values(json.loads(cell), random))
    if isinstance(cell, list) and isinstance(cell[0], dict) and "bytes" not in cell[0]:
        return with_other_values(cell, random)
    if isinstance(cell, dict) and "bytes" not in cell:
        return with_other_values(cell, random)
    return [cell]


@counted(40, 1000)
def test_records_of_safeeraser(tmp_path, numbers):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "image.png")
    pair = {"question": "Who?", "model_response": "no", "sd_question": "?", "sd_response": "A dog"}
    records = [{"image_path": "x", "SDImage_path": "image.png", "unsafe_pairs": [pair, pair]}] * 2
    whole = json.dumps(records)
    for number in numbers:
        random = generator("safeeraser", number)
        content = whole.encode()
        if number % 2:
            content = json.dumps(with_other_values(records, random)).encode()
        else:
            content = harmed(content, random)
        (tmp_path / "records.json").write_bytes(content)
        with named("safeeraser", number):
            samples = safeeraser.decouple_samples(tmp_path / "records.json", Template())
            assert samples and all(sample.images and sample.text for sample in samples)


@counted(20, 1000)
def test_a_folder_of_safeeraser(tmp_path, numbers):
    safeeraser_folder.write(tmp_path)
    section = DataSection(benchmark="safeeraser")
    for number in numbers:
        records = safeeraser_folder.records()
        changed = with_other_values(records, generator("folder of safeeraser", number))
        (tmp_path / "all_train.json").write_text(json.dumps(changed))
        with named("folder of safeeraser", number):
            assert safeeraser.read(tmp_path, section, 0).sets["retain"]


@counted(20, 200)
def test_a_folder_of_ppu(tmp_path, numbers):
    ppu_folder.write(tmp_path)
    section = DataSection(benchmark="ppu", subset="persona")
    names = ("ppu_eval_classification", "ppu_eval_cloze")
    for name in names:
        shutil.rmtree(tmp_path / name)
    texts = {
        name: [one for one in ppu_folder.asked(name.removeprefix("ppu_eval_")) if not one["image"]]
        for name in names
    }
    for number in numbers:
        random = generator("folder of ppu", number)
        for name, rows in texts.items():
            changed = with_other_values(rows, random) if name == names[number % 2] else rows
            lines = [json.dumps(row) + "\n" for row in changed]
            (tmp_path / f"{name}.jsonl").write_text("".join(lines))
        with named("folder of ppu", number):
            assert ppu.read(tmp_path, section, 0).sets["retain"]


@counted(40, 1000)
def test_masks_and_statistics_of_other_content(tmp_path, numbers):
    loaded = tiny_llava.loaded()
    masks.save(tmp_path / "mask", {t: np.zeros(s, bool) for t, s in loaded.towers.items()}, loaded,
               preset="paper", alpha=0.1)  # fmt: skip
    sums = statistics.Statistics.zero(loaded.towers)
    values = {t: np.ones((L, 2, F), np.float32) for t, (L, F) in loaded.towers.items()}
    statistics.save(tmp_path / "statistics", sums.add(values, np.ones(2, np.float32)), {"a": 1})
    rows = {"text.up_proj": (2, 4, 5)}
    positions = statistics.PositionStatistics.zero(rows)
    ones = {name: np.ones(shape, np.float32) for name, shape in rows.items()}
    statistics.save(tmp_path / "positions", positions.add(ones), {"a": 1})
    methods.save_scores(tmp_path / "scores", {"text": np.ones((2, 3), np.float32)}, {"a": 1})
    neurons = WrittenNeurons.new(
        loaded, layers=(0, 1), places=((1, 2), (3, 0)), count=2, key=jax.random.key(0)
    )
    neurons.save(tmp_path / "edit", loaded, {"a": 1})
    products = {"text.layers.mlp.down": {
        "down_LFR": np.ones((2, 40, 1), np.float32), "up_LRD": np.ones((2, 1, 16), np.float32)
    }}  # fmt: skip
    both = edits.compose([LowRank(products), MaskEdit.of({"text": np.zeros((2, 40), bool)})])
    both.save(tmp_path / "composed", loaded, {"a": 1})
    files = {
        "mask": ("mask", lambda path: masks.load(path, loaded)),
        "edit": ("edit", lambda path: edits.load(path, loaded)),
        "composed": ("edit", lambda path: edits.load(path, loaded)),
        "statistics": ("statistics", statistics.load),
        "positions": ("statistics", statistics.load),
        "scores": ("scores", methods.load_scores),
    }
    for number in numbers:
        random = generator("content", number)
        name = sorted(files)[random.integers(len(files))]
        form, load = files[name]
        held, metadata = arrays.read_arrays(tmp_path / name, form)
        metadata = {key: text for key, text in metadata.items() if key not in ("sha256", "format")}
        key = sorted(held)[random.integers(len(held))]
        array = held[key]
        field = sorted(metadata)[random.integers(len(metadata))]
        match random.integers(8):
            case 0:
                del held[key]
            case 1:
                held[key] = array.reshape(-1)[: int(random.integers(array.size + 1))]
            case 2:
                kinds = ("f8", "i4", "?", "f2", "u1", "i8")
                held[key] = array.astype(kinds[random.integers(len(kinds))])
            case 3:
                held[key] = np.full_like(array, (np.nan, np.inf, 7)[random.integers(3)], "f4")
            case 4:
                held[("x", key + "/high", "x/y/z", "text.x", "")[random.integers(5)]] = array
            case 5:
                del metadata[field]
            case 6:
                metadata[field] = ("", "{", "[]", "3", "nan", "null", '{"a": 2}')[
                    random.integers(7)
                ]
            case 7:
                held[key] = array[None] if array.ndim else array.reshape(1)
        arrays.write_arrays(tmp_path / "other", form, held, metadata=metadata)
        with named(f"content of {name}", number):
            found, made_from = load(tmp_path / "other")
            assert isinstance(made_from, dict)
            if name == "mask":
                masks.fold(loaded, found)
            elif name in ("edit", "composed"):
                assert found.describe()
                found.apply(loaded)
            elif name == "statistics":
                assert found.towers and found + found
                assert all(np.isfinite(found.means("absolute", t)).all() for t in found.towers)
            elif name == "positions":
                assert all(np.isfinite(mean).all() for mean in found.means().values())
            else:
                mask = select(found, 0.5)
                assert {t: a.shape for t, a in mask.items()} == {
                    t: a.shape for t, a in found.items()
                }


def questions():
    """People with a question of every task, in text alone."""
    options = {"A": "Oslo", "B": "Rome"}
    asked = (
        Question("classification", "text", "Where?", "Oslo", "home", options, "A"),
        Question("cloze", "text", "Lives in __.", "Oslo", "home"),
        Question("generation", "text", "Where?", "In Oslo.", "home"),
    )
    return tuple(Person(f"{i}", f"Ada {i}", (), {}, (), asked) for i in range(3))


@counted(40, 1000)
def test_records_of_an_evaluation(tmp_path, monkeypatch, numbers):
    scores = [CandidateScore(-1.5, False), CandidateScore(-2.0, False)]
    loaded = dataclasses.make_dataclass("Silent", ["template"])(Template())
    section = EvaluateSection(sets=("forget",), tasks=("classification", "cloze", "generation"))
    settings = {"directory": tmp_path, "model_name": "vanilla"}
    with monkeypatch.context() as patch:
        patch.setattr(suite, "_ask", lambda _, items, __: [("Oslo", scores)] * len(items))
        suite.evaluate(loaded, {"forget": questions()}, section, **settings)
    files = sorted((tmp_path / "vanilla").iterdir())
    monkeypatch.setattr(suite, "_ask", None)  # what is whole is not asked again
    for number in numbers:
        random = generator("records", number)
        file = files[random.integers(len(files))]
        content = file.read_text()
        if number % 2:
            lines = with_other_values([json.loads(line) for line in content.splitlines()], random)
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        else:
            file.write_bytes(harmed(content.encode(), random))
        with named(f"records, {file.name}", number):
            rows = suite.evaluate(loaded, {"forget": questions()}, section, **settings)
            held = [json.loads(line) for line in file.read_text().splitlines()]
            for row in rows:
                if file.name == f"forget.{row['task']}.text.jsonl":
                    field = METRICS[row["metric"]].field or row["metric"]
                    assert row["value"] == pytest.approx(np.mean([one[field] for one in held]))
        file.write_text(content)


@pytest.mark.slow
@counted(15, 400)
def test_results_and_the_records_that_the_report_reads(tmp_path, numbers):
    import fake_run

    folder = fake_run.write_run(tmp_path)
    files = [folder / "results.json", folder / "versions.json"]
    files += sorted((folder / "evaluation").rglob("*.jsonl"))
    for number in numbers:
        random = generator("results", number)
        file = files[0] if number % 4 else files[random.integers(len(files))]
        content = file.read_text()
        if random.random() < 0.3:
            file.write_bytes(harmed(content.encode(), random))
        elif file.suffix == ".json":
            file.write_text(json.dumps(with_other_values(json.loads(content), random)))
        else:
            lines = with_other_values([json.loads(line) for line in content.splitlines()], random)
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with named(f"results, {file.name}", number):
            results = load_results(folder)
            rows = json.loads((folder / "results.json").read_text())["rows"]
            assert [dataclasses.asdict(row)["value"] for row in results.rows] == [
                row["value"] for row in rows
            ]
            if number % 5 == 0:
                render(folder)
        file.write_text(content)

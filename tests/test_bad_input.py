"""What the user can mend ends the command with status 1 and one message: the place, the remedy."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
import safetensors.numpy
import tiny_llava
from pyarrow import Table, parquet

from manu_jax import checkpoint, run, stages
from manu_jax.data import synthetic
from manu_jax.importance.methods import load_scores, save_scores
from manu_jax.models.hf import export
from manu_jax.models.loaded import save_pretrained

CONFIG = """
cache: null
method: random
data: {forget: 15, path: DATA}
model: {path: MODEL}
train: {steps: 0, retrained: false, memory_gate: 0}
"""
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with data and a model that the command takes."""
    folder = tmp_path_factory.mktemp("good")
    synthetic.write(folder / "data", num_people=6, num_celebrities=2, num_general=4)
    save_pretrained(tiny_llava.loaded(), folder / "model")
    return folder


@pytest.fixture
def case(good, tmp_path, error_of):
    return Case(shutil.copytree(good, tmp_path / "input"), tmp_path / "run", error_of)


class Case:
    """Input to damage, and the command on it."""

    def __init__(self, folder, output, error_of):
        self.data, self.model, self.output = folder / "data", folder / "model", output
        self._error_of = error_of
        self.config = folder / "config.yaml"
        text = CONFIG.replace("DATA", str(self.data)).replace("MODEL", str(self.model))
        self.config.write_text(text)

    def arguments(self, *rest):
        return ["--config", str(self.config), "--output", str(self.output), *rest]

    def passes(self, *rest):
        assert run.main(self.arguments(*rest)) == 0

    def error(self, *rest):
        """Run the command, which has to fail and leave nothing half-written; return its message."""
        message = self._error_of(*self.arguments(*rest))
        if self.output.is_dir():
            assert not [path for path in self.output.rglob("*") if path.name.endswith(".part")]
        return message

    def change_rows(self, folder, change):
        """Let `change` edit the first row of a folder's table; None takes all rows out."""
        (file,) = (self.data / folder).glob("*.parquet")
        table = parquet.read_table(file)
        rows = table.to_pylist()
        if change is None:
            rows = []
        else:
            change(rows[0])
        parquet.write_table(Table.from_pylist(rows, table.schema), file)

    def change_tensors(self, change):
        file = self.model / "model.safetensors"
        tensors = safetensors.numpy.load_file(file)
        change(tensors)
        safetensors.numpy.save_file(tensors, file)


# The config


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("method.alpha=1.5", "method.alpha: Input should be less than 1"),
        ("method.alpha=0", "method.alpha: Input should be greater than 0"),
        ("method.alpha=[", "override 'method.alpha=['"),
        ("alpha", "expected key.path=value"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("evaluate.protocol=few", "'zero_shot', 'official_few_shot' or 'likelihood'"),
        ("evaluate.shots={clozes: 1}", "evaluate.shots.clozes: unknown key; did you mean cloze"),
        ("data.test_images=two", "data.test_images: Input should be 'one' or 'all'"),
        ("evaluate.sets=[forgot]", "'forget', 'test', 'retain'"),
        ("method={functions: {abs: 1}}", "'absolute', 'frequency'"),
        ("model.text.num_heads=3", "width has to be a multiple of 2 · num_heads"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_known(case, override, part):
    assert part in case.error(override)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"output: caf\xe9\n", "not UTF-8"),
        (b"seed: [\n", "line 2"),
        (b"{[1]: 2}\n", "expected a word as the key"),
        (b"- seed\n", "expected a mapping"),
    ],
)
def test_a_broken_config_is_named(case, content, part):
    case.config.write_bytes(content)
    message = case.error()
    assert str(case.config) in message and part in message


def test_a_config_that_is_a_folder_is_named(case):
    case.config.unlink()
    case.config.mkdir()
    assert "config.yaml: Is a directory. Give an existing YAML file." in case.error()


# Places


def test_an_output_that_is_a_file_is_named_with_the_remedy(case):
    case.output.write_text("mine")
    assert "Give another folder with --output" in case.error()
    assert case.output.read_text() == "mine"


def test_a_cache_that_is_a_file_is_named_with_the_remedy(case, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cache=null" in case.error(f"cache={tmp_path / 'file'}")


@pytest.mark.parametrize(
    ("name", "content"), [("config.yaml", "{seed: ["), ("config.yaml", "3"), ("times.json", "[")]
)
def test_a_damaged_file_of_the_run_is_named(case, name, content):
    case.passes("--only", "data")
    (case.output / name).write_text(content)
    assert f"{case.output / name}: damaged" in case.error("--only", "data")


def test_what_the_system_refuses_anywhere_is_one_line(case, monkeypatch):
    def refuse(_):
        raise PermissionError(errno.EACCES, "Permission denied", "/some/place")

    monkeypatch.setitem(stages.STAGES, "data", refuse)
    assert "/some/place: Permission denied. Check that" in case.error("--only", "data")


# The model


@pytest.mark.parametrize("kind", ["absent", "empty", "pickles", "cut", "broken json"])
def test_a_model_folder_that_does_not_load_is_named(case, kind):
    weights = case.model / "model.safetensors"
    part = {
        "absent": "no such folder",
        "empty": "no config.json; the folder holds nothing",
        "pickles": "pickles are never read",
        "cut": "model.safetensors is damaged or cut short",
        "broken json": "config.json: can't be read as JSON",
    }[kind]
    if kind in ("absent", "empty"):
        shutil.rmtree(case.model)
    if kind == "empty":
        case.model.mkdir()
    if kind == "pickles":
        weights.rename(case.model / "pytorch_model.bin")
    if kind == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    if kind == "broken json":
        (case.model / "config.json").write_text('{"a": ')
    message = case.error("--only", "train,scores")
    assert str(case.model) in message and part in message
    assert not (case.output / "scores.safetensors").exists()


def test_tensors_that_do_not_fit_are_all_named(case):
    def change(tensors):
        names = sorted(tensors)
        tensors["a.stranger"] = tensors.pop(names[0])
        tensors[names[1]] = tensors[names[1]][:1].copy()

    case.change_tensors(change)
    message = case.error("--only", "scores")
    assert all(part in message for part in ("1 missing", "1 left over", "1 of another shape"))


def test_weights_that_are_not_finite_are_named(case):
    def change(tensors):
        tensors["language_model.model.norm.weight"][0] = np.nan

    case.change_tensors(change)
    message = case.error("--only", "scores")
    assert "NaN or infinite" in message and "language_model.model.norm.weight" in message


def test_a_retrained_model_that_is_not_there_is_found_at_once(case, tmp_path):
    path = tmp_path / "absent"
    assert f"{path}: no such folder" in case.error(f"model.retrained_path={path}")
    assert not (case.output / "scores.safetensors").exists()


# The data


@pytest.mark.parametrize("kind", ["absent", "empty", "cut", "column"])
def test_a_data_folder_that_does_not_load_is_named(case, kind):
    (file,) = (case.data / "forget_15").glob("*.parquet")
    part = {
        "absent": "no benchmark there",
        "empty": "no folder",
        "cut": f"forget_15/{file.name}: not a whole parquet file",
        "column": f"forget_15/{file.name}: no column biography; it has",
    }[kind]
    if kind in ("absent", "empty"):
        shutil.rmtree(case.data)
    if kind == "empty":
        case.data.mkdir()
    if kind == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    if kind == "column":
        parquet.write_table(parquet.read_table(file).drop_columns(["biography"]), file)
    message = case.error("--only", "data")
    assert str(case.data) in message and part in message


@pytest.mark.parametrize(
    ("folder", "change", "part"),
    [
        ("forget_15", lambda row: row["image"].update(bytes=b"\x89PNG no"), "does not decode"),
        ("forget_15", lambda row: row.update(biography='{"a": '), "biography is not JSON"),
        ("forget_15", None, "the forget set is empty"),
        ("retain_85", None, "the retain set is empty"),
    ],
)
def test_rows_at_fault_are_named(case, folder, change, part):
    case.change_rows(folder, change)
    message = case.error("--only", "data")
    assert folder in message and part in message


def test_a_person_in_both_sets_is_named(case):
    shutil.rmtree(case.data / "retain_85")
    shutil.copytree(case.data / "Full_Set", case.data / "retain_85")
    message = case.error("--only", "data")
    assert "forget_15/train-" in message and "also in retain_85/train-" in message
    assert "take the row out of one" in message


@pytest.mark.parametrize("protocol", ["official_few_shot", "zero_shot"])
def test_prompts_that_the_evaluation_cannot_ask_are_said_before_the_scores(case, protocol):
    options = (f"evaluate.protocol={protocol}", "evaluate.shots_from=outside")
    few = ("evaluate.max_people=1", "evaluate.shots={cloze: 1}", "evaluate.new_tokens=100")
    message = case.error("--only", "train,scores", *options, *few)
    assert "longer than the model's context" in message
    assert " of text + 100 to be written = " in message and "> 128" in message
    assert not (case.output / "scores.safetensors").exists()


@pytest.mark.parametrize(
    ("question", "part"),
    [
        ("Where <image> is this?", "it has 2 image tokens and 1 images"),
        ("Where? " * 150, "the model's context is 128. Shorten it"),
    ],
)
def test_prompts_that_the_model_cannot_take_are_named(case, question, part):
    def change(row):
        pairs = json.loads(row["metadata"])
        row["metadata"] = json.dumps([pair | {"Question": question} for pair in pairs])

    case.change_rows("ft_Data", change)
    assert part in case.error("--only", "scores", "method=paper")


# Scores and masks


def test_a_layer_range_outside_the_model_is_named(case):
    layers = "method.layers={text: {first: 9}}"
    message = case.error("--only", "scores,masks", layers)
    assert '"text" has layers 0 to 1, the range asks for 9' in message
    assert not (case.output / "mask.safetensors").exists()


def test_scores_that_are_not_finite_are_named(case):
    case.passes("--only", "scores")
    scores, _ = load_scores(case.output / "scores.safetensors")
    scores["text"] = np.full_like(scores["text"], np.nan)
    save_scores(case.output / "scores.safetensors", scores)
    assert 'NaN at tower "text", layer 0' in case.error("--only", "masks")


def test_a_mask_of_another_model_is_named(case):
    case.passes("--only", "scores,masks")

    def change(tensors):
        tensors["language_model.model.norm.weight"] *= 2

    case.change_tensors(change)
    message = case.error("--only", "unlearn")
    assert "model.path: other files there than now" in message and "--output" in message
    assert not (case.output / "unlearned").exists()
    (case.output / "keys.json").unlink()  # as in a folder of an earlier version
    message = case.error("--only", "unlearn")
    assert "mask.safetensors was made for the model" in message
    assert not (case.output / "unlearned").exists()


# A full disk


def test_no_room_for_a_file_is_said_and_nothing_stands(case, monkeypatch):
    case.passes("--only", "scores")

    def full(_):
        raise FULL

    monkeypatch.setattr(os, "fsync", full)
    assert "mask.safetensors: the disk is full. Free some space" in case.error("--only", "masks")
    assert not (case.output / "mask.safetensors").exists()


def test_no_room_for_weights_is_said_and_nothing_stands(case, monkeypatch):
    case.passes("--only", "scores,masks")

    def full(tensors, file):
        file.write(b"half")
        raise FULL

    monkeypatch.setattr(export, "_write_shard", full)
    assert "unlearned: the disk is full. Free some space" in case.error("--only", "unlearn")
    assert not (case.output / "unlearned").exists()


def test_no_room_for_a_checkpoint_is_said_before_a_byte_is_written(case, monkeypatch):
    usage = shutil.disk_usage(case.data)._replace(free=1000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)

    def train(run):
        checkpoint.save(run.directory / "checkpoints" / "one", {"a": np.zeros(9)})

    monkeypatch.setitem(stages.STAGES, "train", train)
    assert "checkpoints/one: the disk is full" in case.error("--only", "train")
    assert list((case.output / "checkpoints").iterdir()) == []

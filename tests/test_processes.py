"""Two processes of four CPU devices each give what one process with eight gives."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from compiler import LEAST_EFFORT

sys.path.insert(0, str(Path(__file__).parent / "models"))
from leaf_forms import model

from manu_jax import checkpoint, parallel
from manu_jax.arrays import read_arrays
from manu_jax.edits import masks

SECONDS = 480  # longer, and a process waits for another in vain
CONFIG = """
seed: 0
cache: null
mesh: {data: 2, fsdp: 2, tensor: 2}
data: {num_people: 6, num_celebrities: 4, num_general: 8, forget: 15}
model:
  vision: {image_size: 28, patch_size: 14, width: 16, num_layers: 2, num_heads: 2, num_neurons: 16}
  text: {width: 16, num_layers: 1, num_heads: 2, num_key_heads: 2, num_neurons: 32, context: 512}
train:
  {steps: 2, base_steps: 1, batch_size: 8, memory_gate: 0, checkpoint_every: 1, retrained: false}
method: {preset: gradient, rounds: 1, fade: null, keep_per_forget: null, alpha: 0.2}
sweep: {alphas: [0.3], max_people: 2, null_groups: 2, null_facts: 4}
evaluate: {new_tokens: 4, max_people: 2, resamples: 50, tasks: [generation, likelihood]}
audit: none  # on several processes: test_processes_whole.py
neurons: {methods: []}
"""
XLA_FLAGS = f"{LEAST_EFFORT} --xla_force_host_platform_device_count="
WORKER = Path(__file__).parent / "processes_worker.py"
FEATURES_WORKER = WORKER.with_name("features_worker.py")
SAMPLING_WORKER = WORKER.with_name("sampling_worker.py")
ASKED_WORKER = WORKER.with_name("asked_worker.py")
FAULT_WORKER = WORKER.with_name("fault_worker.py")
FAULT_SECONDS = 15  # from a fault on one process to the end of both
ROW_MEANS = ("value", "low", "high")


def start(command, output, devices, **variables):
    with open(output, "w") as log:
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=os.environ | variables | {"XLA_FLAGS": f"{XLA_FLAGS}{devices}"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def finish(processes, outputs, seconds=SECONDS):
    """Wait until all have ended well; where one has not, end the others and show its output."""
    end = time.monotonic() + seconds
    while None in (codes := [process.poll() for process in processes]):
        if any(codes) or time.monotonic() > end:
            time.sleep(2)
            for process in processes:
                process.kill()
        time.sleep(0.05)
    shown = "\n\n".join(Path(output).read_text()[-3000:] for output in outputs)
    assert not any(codes), f"{codes}\n{shown}"


def start_both(folder, *command):
    """Start a command as two processes that know of each other."""
    return start_all(2, folder, *command)


def start_all(count, folder, *command):
    """Start a command as some processes that know of each other, with eight devices in all."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    outputs = [folder / f"process{number}.log" for number in range(count)]
    processes = [
        start(command, output, 8 // count, **variables, JAX_PROCESS_ID=str(number))
        for number, output in enumerate(outputs)
    ]
    return processes, outputs


def both(folder, *command):
    """Run a command as two processes; return what each prints."""
    processes, outputs = start_both(folder, *command)
    finish(processes, outputs)
    return [output.read_text() for output in outputs]


def codes_of(processes):
    """Wait for processes, and return their exit statuses; those that don't end are killed."""
    try:
        return [process.wait(SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()


def run_on(folder, config, *counts, seconds):
    """Run a config on one process and on each of `counts`, eight devices, into `folder`/COUNT."""
    (folder / "config.yaml").write_text(config)
    command = ("-m", "manu_jax.run", "--config", folder / "config.yaml", "--output")
    log = folder / "one.log"
    finish([start((*command, folder / "1"), log, 8)], [log], seconds)
    for count in counts:
        place = folder / f"logs{count}"
        place.mkdir()
        started = start_all(count, place, *command, folder / str(count), "mesh.distributed=true")
        finish(*started, seconds)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The run folders of one process and of two."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "config.yaml").write_text(CONFIG)
    command = ("-m", "manu_jax.run", "--config", folder / "config.yaml", "--output")
    log = folder / "one.log"
    finish([start((*command, folder / "one"), log, 8)], [log])
    logs = both(folder, *command, folder / "two", "mesh.distributed=true")
    assert "all done" in logs[0] and "done" not in logs[1]  # one tells how far both are
    return folder / "one", folder / "two"


@pytest.mark.slow
def test_batches_decisions_and_errors_are_the_same_on_all_processes(tmp_path):
    mesh = parallel.make_mesh(1, 1, 8)
    leaves = model(mesh, times=20)
    checkpoint.save(tmp_path / "converted", leaves)
    logs = both(tmp_path, WORKER, tmp_path)
    assert all("as expected" in log for log in logs)


@pytest.mark.slow
@pytest.mark.pods
def test_two_processes_evict_the_same_images(tmp_path):
    logs = both(tmp_path, FEATURES_WORKER)
    assert all("as expected" in log for log in logs)


@pytest.mark.slow
@pytest.mark.pods
def test_two_processes_draw_the_same_answers(tmp_path):
    logs = both(tmp_path, SAMPLING_WORKER)
    assert all("as expected" in log for log in logs)


@pytest.mark.slow
@pytest.mark.pods
def test_two_processes_measure_the_same_ability_and_depth(tmp_path):
    logs = both(tmp_path, ASKED_WORKER)
    assert all("as expected" in log for log in logs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "stage", "told"),
    [
        pytest.param(
            "reading",
            "data",
            "people.parquet: the disk “/a” does not answer.",
            marks=pytest.mark.pods,
        ),
        ("scoring", "data,train,scores", "no file"),
        pytest.param(
            "a bug while scoring", "data,train,scores", "KeyError: 'a bug'", marks=pytest.mark.pods
        ),
    ],
)
def test_a_fault_on_one_process_stops_both_with_its_message(tmp_path, place, stage, told):
    (tmp_path / "config.yaml").write_text(CONFIG)
    log = tmp_path / "fault"
    settings = [
        "mesh.distributed=true",
        "train.steps=1",
        "train.base_steps=0",
        "train.batch_size=3",
    ]
    processes, outputs = start_both(
        tmp_path, FAULT_WORKER, place, log, "--config", tmp_path / "config.yaml",
        "--output", tmp_path / "run", "--only", stage, *settings,
    )  # fmt: skip
    codes = codes_of(processes)
    first, second = (output.read_text() for output in outputs)
    assert time.time() - float(log.read_text()) < FAULT_SECONDS
    assert codes == [1, 1], first + second
    lines = [line for line in first.splitlines() if line.startswith("error: ")]
    assert lines == [f"error: process 1: {told}"] and "Traceback" not in first
    if place.startswith("a bug"):
        assert told in second and second.count("Traceback") == 1
    else:
        lines = [line for line in second.splitlines() if line.startswith("error: ")]
        assert lines == [f"error: {told}"] and "Traceback" not in second


@pytest.mark.slow
@pytest.mark.pods
@pytest.mark.parametrize(
    ("place", "told"),
    [("NaN", r"the loss of step [1-9]\d* is nan"), ("no room", "the disk is full")],
)
def test_what_goes_wrong_in_a_training_stops_both_with_one_message(tmp_path, place, told):
    (tmp_path / "config.yaml").write_text(CONFIG)
    log = tmp_path / "fault"
    processes, outputs = start_both(
        tmp_path, FAULT_WORKER, place, log, "--config", tmp_path / "config.yaml",
        "--output", tmp_path / "run", "--only", "data,train", "mesh.distributed=true",
        "train.base_steps=0", "train.steps=8",
    )  # fmt: skip
    codes = codes_of(processes)
    texts = [output.read_text() for output in outputs]
    assert codes == [1, 1], texts
    assert time.time() - float(log.read_text()) < FAULT_SECONDS
    for text in texts:
        lines = [line for line in text.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and re.search(told, lines[0]) and "Traceback" not in text, text


@pytest.mark.slow
def test_two_processes_leave_the_same_files(folders):
    one, two = ({str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()} for f in folders)
    assert one == two


@pytest.mark.slow
def test_two_processes_give_the_same_weights_scores_and_masks(folders):
    one, two = (read_arrays(folder / "scores.safetensors", "scores")[0] for folder in folders)
    (mask, _), (other, _) = (masks.load(folder / "mask.safetensors") for folder in folders)
    for tower in one:
        # Sums over devices in another order, of models trained so.
        assert np.abs(one[tower]).max() > 1e-2
        np.testing.assert_allclose(one[tower], two[tower], atol=1e-5)
        least = one[tower][mask[tower]].min(initial=np.inf)
        differing = one[tower][mask[tower] != other[tower]]
        np.testing.assert_allclose(differing, least, atol=1e-5)  # ties alone


@pytest.mark.slow
def test_two_processes_give_the_same_records(folders):
    files = sorted(path.relative_to(folders[0]) for path in folders[0].glob("evaluation/*/*"))
    assert len(files) > 30
    for file in files:
        one, two = (
            [json.loads(line) for line in (folder / file).read_text().splitlines()]
            for folder in folders
        )
        assert len(one) == len(two)
        for here, there in zip(one, two, strict=True):
            numbers = {key for key, value in here.items() if isinstance(value, float)}
            for key in here:
                if key in numbers:
                    # Sums split over devices in another order, rounded to six digits.
                    assert there[key] == pytest.approx(here[key], abs=1e-4), (file, key)
                else:
                    assert there[key] == here[key], (file, key)


@pytest.mark.slow
def test_two_processes_give_the_same_results(folders):
    one, two = (json.loads((folder / "results.json").read_text()) for folder in folders)
    assert one["alpha_sweep"] == two["alpha_sweep"]
    assert [row["null"] for row in one["null"]] == ["people", "people"]
    for here, there in zip(one["null"], two["null"], strict=True):
        assert there == pytest.approx(here, abs=0.02)  # of overlap: equal scores may change places
    assert one["request"] == two["request"] and one["models"] == two["models"]
    assert len(one["rows"]) == len(two["rows"]) > 50
    for here, there in zip(one["rows"], two["rows"], strict=True):
        for key, value in here.items():
            expected = pytest.approx(value, abs=1e-4) if key in ROW_MEANS and value else value
            assert there[key] == expected, (here, key)


COMPARED = """
seeds: [1]
shares: [10]
tuning: {seed: 0, share: 10, max_people: 2}
run:
  cache: null
  mesh: {data: 2, fsdp: 2, tensor: 2, distributed: true}
  data: {num_people: 10, num_celebrities: 1, num_general: 4}
  model:
    vision: {image_size: 16, patch_size: 8, width: 16, num_layers: 2, num_heads: 2, num_neurons: 16}
    text: {width: 16, num_layers: 1, num_heads: 2, num_key_heads: 2, num_neurons: 32, context: 256}
  train: {steps: 1, base_steps: 0, batch_size: 4, memory_gate: 0, retrained: false}
  evaluate: {protocol: likelihood, sets: [forget, unseen], max_people: 2, new_tokens: 2,
             tasks: [generation, likelihood], batch_size: 8, kl: false}
  neurons: {methods: []}
methods:
  - {name: random, mask: {preset: random}, trials: [{alpha: 0.1}, {alpha: 0.5}]}
"""


@pytest.mark.slow
@pytest.mark.pods
def test_two_processes_compare_and_one_writes(tmp_path):
    (tmp_path / "compare.yaml").write_text(COMPARED)
    folder = tmp_path / "compared"
    command = ("-m", "manu_jax.compare", "--config", tmp_path / "compare.yaml", "--output", folder)
    both(tmp_path, *command)
    found = json.loads((folder / "comparison.json").read_text())
    assert {row["model"] for row in found["rows"]} == {"vanilla", "random"}
    assert "| random |" in (folder / "comparison.md").read_text()
    tuned = json.loads((folder / "tuning.json").read_text())["random"]
    assert len(tuned["trials"]) == 2
    assert not list(folder.rglob("*.partial")) and not list(folder.rglob("*.tmp*"))

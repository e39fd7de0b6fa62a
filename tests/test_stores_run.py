"""Whole runs with folder, model and data in a store on loopback, killed and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from compiler import LEAST_EFFORT
from test_processes import ROW_MEANS, finish, start_both

from manu_jax import folder, stores

pytestmark = [pytest.mark.slow, pytest.mark.pods]

# Makes a tiny LLaVA, and data in MLLMU-Bench's layout, for the run to name.
INPUT = """
cache: null
data: {num_people: 6, num_celebrities: 2, num_general: 2, forget: 15}
model:
  vision: {image_size: 28, patch_size: 14, width: 16, num_layers: 2, num_heads: 2, num_neurons: 16}
  text: {width: 16, num_layers: 2, num_heads: 2, num_key_heads: 2, num_neurons: 32, context: 512}
train: {steps: 1, base_steps: 1, batch_size: 4, memory_gate: 0.0, retrained: false}
"""
CONFIG = """
cache: null
data: {forget: 15}
train: {steps: 0, memory_gate: 0.0}
method: {preset: gradient, rounds: 2, alpha: 0.2}
compare: [paper]
unlearn: [{name: GA, objective: gradient_ascent, steps: 3, batch_size: 4, checkpoint_every: 1}]
evaluate: {new_tokens: 2, max_people: 2, resamples: 50, sets: [forget, retain], tasks: [generation]}
"""
# What stands when a blow falls, in the order in which a run makes it.
LANDMARKS = (
    "statistics/gradient/round_00/",
    "methods/GA/checkpoints/",
    "evaluation/vanilla/",
)
SERVERS = {
    "s3": ("moto.server", "s3fs", "moto[server]"),
    "gs": ("gcp_storage_emulator.server", "gcsfs", "gcp-storage-emulator"),
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with a model, data, a config, and the run of these on this machine."""
    place = tmp_path_factory.mktemp("given")
    (place / "input.yaml").write_text(INPUT)
    (place / "config.yaml").write_text(CONFIG)
    arguments = ["--config", place / "input.yaml", "--only", "data,train"]
    assert start(place, arguments, place / "input").wait() == 0, told(place)
    paths = [f"data.path={place / 'input/data'}", f"model.path={place / 'input/vanilla'}"]
    run = start(place, ["--config", place / "config.yaml", *paths], place / "whole")
    assert run.wait() == 0, told(place)
    return place


@pytest.mark.parametrize(("scheme", "landmarks"), [("s3", LANDMARKS), ("gs", LANDMARKS[1:2])])
def test_a_run_in_a_store_ends_like_one_here_though_it_is_killed(
    scheme, landmarks, monkeypatch, request
):
    module, library, package = SERVERS[scheme]
    pytest.importorskip("upath", reason="the extra `cloud` is not installed")
    pytest.importorskip(library, reason="the extra `cloud` is not installed")
    server = pytest.importorskip(module, reason=f"{package} is not installed")
    import stores_servers

    given = request.getfixturevalue("given")
    with getattr(stores_servers, scheme)(server) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        bucket = folder.expand_path(f"{scheme}://bucket/manu")
        for name in ("data", "vanilla"):
            stores_servers.put(given / "input" / name, bucket / name)
        paths = [f"data.path={bucket / 'data'}", f"model.path={bucket / 'vanilla'}"]
        arguments = ["--config", given / "config.yaml", *paths]
        killed = [mark for mark in landmarks if is_killed_at(mark, given, arguments, bucket)]
        assert len(killed) >= max(len(landmarks) - 1, 1)  # the last blow may come too late
        assert start(given, arguments, bucket / "run").wait() == 0, told(given)
        names = [name for name in stores.names_in(bucket / "run") if "/." not in f"/{name}"]
        results = json.loads((bucket / "run" / "results.json").read_text())
    whole = [p.relative_to(given / "whole") for p in (given / "whole").rglob("*") if p.is_file()]
    assert names == sorted(str(p) for p in whole if not any(x[0] == "." for x in p.parts))
    assert numbers(results) == numbers(json.loads((given / "whole" / "results.json").read_text()))


# Begins with training; the mesh is that of both processes.
MESH = "mesh: {data: 2, fsdp: 2, tensor: 2}\nscore_batch: 8\n"
TRAINED = "checkpoints/", "methods/GA/checkpoints/"
SECONDS = 1200  # for two processes on busy cores


def test_two_processes_train_in_s3_though_they_are_killed(tmp_path, monkeypatch):
    """What each process put of the checkpoints is gone on with; the rows are those of a disk."""
    for name in ("upath", "s3fs"):
        pytest.importorskip(name, reason="the extra `cloud` is not installed")
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    import stores_servers

    trains = INPUT.replace("steps: 1, base_steps: 1", "steps: 4, base_steps: 2")
    trains = trains.replace("retrained: false", "retrained: false, checkpoint_every: 1")
    _, methods = CONFIG.split("method:")
    (tmp_path / "config.yaml").write_text(f"{trains}{MESH}method:{methods}")
    command = ["-m", "manu_jax.run", "--config", tmp_path / "config.yaml", "--output"]
    finish(*start_both(tmp_path, *command, tmp_path / "run", "mesh.distributed=true"), SECONDS)
    with stores_servers.s3(server) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        bucket = folder.expand_path("s3://bucket/manu/run")
        command += [str(bucket), "mesh.distributed=true"]
        for mark in TRAINED:
            processes, _ = start_both(tmp_path, *command)
            while not any(is_whole_step(name, mark) for name in stores.names_in(bucket)):
                assert None in [process.poll() for process in processes], told_by(tmp_path)
                time.sleep(0.05)
            for process in processes:
                process.kill()
            assert [process.wait() for process in processes] == [-signal.SIGKILL] * 2
        finish(*start_both(tmp_path, *command), SECONDS)
        assert "going on after step" in told_by(tmp_path)
        results = json.loads((bucket / "results.json").read_text())
    expected = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(results["rows"]) == len(expected["rows"]) > 10
    for here, there in zip(expected["rows"], results["rows"], strict=True):
        for key, value in here.items():
            close = pytest.approx(value, abs=1e-4) if key in ROW_MEANS and value else value
            assert there[key] == close, (here, there)


def is_whole_step(name, mark):
    """Whether a file in a store ends the checkpoint of a step under `mark`."""
    return name.startswith(mark) and name.endswith("checksums.json")


def told_by(place):
    return "".join((place / f"process{number}.log").read_text() for number in range(2))


def numbers(results):
    """What a run found, without its times and places."""
    del results["timings"], results["config"]["output"]
    del results["config"]["data"]["path"], results["config"]["model"]["path"]
    return results


def is_killed_at(mark, place, arguments, bucket):
    """Start the run, and kill it when a name with `mark` stands in the store."""
    process = start(place, arguments, bucket / "run")
    while process.poll() is None:
        if any(name.startswith(mark) for name in stores.names_in(bucket / "run")):
            process.send_signal(signal.SIGKILL)
        time.sleep(0.02)
    assert process.wait() in (0, -signal.SIGKILL), told(place)
    return process.returncode != 0


def start(place, arguments, output):
    command = [sys.executable, "-m", "manu_jax.run", *map(str, arguments), "--output", str(output)]
    kept = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "XLA_FLAGS": LEAST_EFFORT}
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        kept["JAX_COMPILATION_CACHE_DIR"] = str(place / "compiled")
    with open(place / "log", "w") as log:
        return subprocess.Popen(
            command, env=os.environ | kept, stdout=log, stderr=subprocess.STDOUT
        )


def told(place):
    return (place / "log").read_text()[-3000:]

"""Two processes of four CPU devices each give what one process with eight gives."""

import contextlib
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from manu_jax.arrays import read_arrays

SECONDS = 240  # longer, and a process waits for another in vain
CONFIG = """
seed: 0
cache: null
mesh: {data: 2, fsdp: 2, tensor: 2}
data: {num_people: 6, num_celebrities: 4, num_general: 8, forget: 15}
model:
  vision: {image_size: 56, patch_size: 14, width: 16, num_layers: 2, num_heads: 2, num_neurons: 16}
  text: {width: 16, num_layers: 2, num_heads: 2, num_key_heads: 2, num_neurons: 32, context: 512}
train: {steps: 1, base_steps: 1, batch_size: 4, memory_gate: 0.0, retrained: false}
method: {preset: gradient, rounds: 1, alpha: 0.2}
score_batch: 8
evaluate:
  {new_tokens: 4, max_people: 2, batch_size: 8, sets: [forget, retain], tasks: [generation]}
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The run folders of one process and of two."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "config.yaml").write_text(CONFIG)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    names = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    finish([start(folder, "one", 8)])
    finish(
        [
            start(folder, "two", 4, "mesh.distributed=true", JAX_PROCESS_ID=str(number), **names)
            for number in range(2)
        ]
    )
    return folder / "one", folder / "two"


def start(folder, name, devices, *overrides, **variables):
    command = [sys.executable, "-m", "manu_jax.run", "--config", str(folder / "config.yaml")]
    variables["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [*command, "--output", str(folder / name), *overrides],
        env=os.environ | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes):
    """Wait for all; where one fails, end them all and show what it said."""
    with contextlib.ExitStack() as ends:
        for process in processes:
            ends.callback(process.kill)
        said = [process.communicate(timeout=SECONDS)[1] for process in processes]
        failed = [text for text, one in zip(said, processes, strict=True) if one.returncode]
        assert not failed, "\n".join(failed)


@pytest.mark.slow
def test_two_processes_leave_the_same_files(folders):
    one, two = ({str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()} for f in folders)
    assert one == two


@pytest.mark.slow
def test_two_processes_give_the_same_scores(folders):
    one, two = (read_arrays(folder / "scores.safetensors", "scores")[0] for folder in folders)
    for tower in one:
        assert np.abs(one[tower]).max() > 1e-2
        np.testing.assert_allclose(one[tower], two[tower], atol=1e-5)


@pytest.mark.slow
def test_two_processes_give_the_same_results(folders):
    one, two = (json.loads((folder / "results.json").read_text())["rows"] for folder in folders)
    assert len(one) == len(two) > 30
    for here, there in zip(one, two, strict=True):
        named = {key: value for key, value in here.items() if key not in ("value", "low", "high")}
        assert named.items() <= there.items()
        assert there["value"] == pytest.approx(here["value"], abs=1e-3)

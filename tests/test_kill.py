"""The whole command killed again and again: it ends with what an undisturbed run gives."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

CONFIG = """
seed: 0
cache: null
data: {num_people: 6, num_celebrities: 4, num_general: 8, forget: 15}
model:
  vision: {image_size: 56, patch_size: 14, width: 16, num_layers: 2, num_heads: 2, num_neurons: 16}
  text: {width: 16, num_layers: 2, num_heads: 2, num_key_heads: 1, num_neurons: 32, context: 512}
train: {steps: 3, base_steps: 3, batch_size: 4, memory_gate: 0.0, checkpoint_every: 1}
method: {preset: gradient, rounds: 2, alpha: 0.2}
compare: [paper]
evaluate: {new_tokens: 4, max_people: 2, resamples: 50, sets: [forget, retain], tasks: [generation]}
"""
# What stands when the next blow falls, in the order in which a run makes it; * is any name.
LANDMARKS = (
    ".data.*",
    "checkpoints/vanilla/step-00000001",
    "statistics/gradient/round_00/*",
    "methods/paper/mask.safetensors",
    "evaluation/vanilla/*",
    "evaluation/paper/*",
)


@pytest.mark.slow
def test_a_run_killed_at_every_stage_ends_with_the_same_results(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    delays = random.Random(0)
    killed_at = []
    for landmark in LANDMARKS:
        process = start(tmp_path, "killed")
        while process.poll() is None and not list((tmp_path / "killed").glob(landmark)):
            time.sleep(0.002)
        time.sleep(delays.uniform(0, 0.2))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed_at.append(landmark)
        assert process.wait() in (0, -signal.SIGKILL)
    assert len(killed_at) >= len(LANDMARKS) - 1  # the last blow may come too late
    assert start(tmp_path, "killed").wait() == 0
    assert start(tmp_path, "whole").wait() == 0
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def start(folder, name):
    """Start the command on the folder `name`; compiled programs are kept between starts."""
    command = [sys.executable, "-m", "manu_jax.run", "--config", str(folder / "config.yaml")]
    kept = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        kept["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    environment = os.environ | kept | {"XLA_FLAGS": ""}
    return subprocess.Popen(
        [*command, "--output", str(folder / name)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def results(directory):
    found = json.loads((directory / "results.json").read_text())
    del found["timings"], found["config"]["output"]
    return found


def files(directory):
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}

"""The whole command killed again and again: it ends with what an undisturbed run gives."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from compiler import LEAST_EFFORT
from safetensors.numpy import load_file

from manu_jax.config import ModelSection, TextSize
from manu_jax.models.created import create
from manu_jax.models.loaded import save_pretrained
from manu_jax.training.tokenizer import train_tokenizer

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


# A decoder that is given, with its own texts and a tower of its own: as in configs/smollm2.yaml.
CAREFUL = """
seed: 0
cache: null
data: {num_people: 6, num_celebrities: 4, num_general: 8, forget: 15}
model:
  decoder: DECODER
  prompt: benchmark
  vision: {image_size: 28, patch_size: 14, width: 16, num_layers: 2, num_heads: 2, num_neurons: 16}
train:
  steps: 4
  base_steps: 4
  batch_size: 4
  memory_gate: 0
  checkpoint_every: 1
  rates: {text: 1.0e-3}
  frozen: [text.embedding]
  tower: {steps: 3, more_steps: 2, batch_size: 4, views: 1}
  replay: {texts: 8, tokens: 8, batch_size: 2}
  interpolation: 0.7
  stop: {every: 2, facts: 4, texts: 2, known: 0.9}
method: {preset: suppress, steps: 2, batch_size: 2, batch_keep: 2, views: 1, keep_views: 1,
  strangers: 2, kept_strangers: 2, neurons: {count: 2, layers: [1], places: appended}}
audit: none
neurons: {methods: []}
evaluate: {new_tokens: 2, max_people: 2, resamples: 50, sets: [forget, retain], tasks: [generation]}
"""
CAREFUL_LANDMARKS = (
    "replay.jsonl",
    "checkpoints/base_tower/step-*",
    "checkpoints/base/step-*",
    "checkpoints/base_model",
    "checkpoints/vanilla/step-*",
    "vanilla",
    "checkpoints/retrained_tower/step-*",
    "checkpoints/retrained/step-*",
)


WEIGHTS = "model.safetensors"
PUBLISHED = Path(__file__).parent.parent / "configs" / "mllmu" / "llava-1.5-7b-forget10.yaml"
# Makes a tiny LLaVA, and data in MLLMU-Bench's layout, for the published config to name.
INPUT = """
cache: null
data: {num_people: 20, num_celebrities: 2, num_general: 2}
model:
  vision: {image_size: 28, patch_size: 14, width: 16, num_layers: 4, num_heads: 2, num_neurons: 16}
  text: {width: 16, num_layers: 3, num_heads: 2, num_key_heads: 2, num_neurons: 32, context: 2048}
train: {steps: 1, base_steps: 1, batch_size: 4, memory_gate: 0.0, retrained: false}
"""
SETTINGS = (
    "train.memory_gate=0", "cache=null", "method.scope=tower", "evaluate.shots.cloze=1",
    "evaluate.max_people=2", "evaluate.new_tokens=2", "evaluate.resamples=50",
)  # fmt: skip
PUBLISHED_LANDMARKS = (
    "config.yaml",
    "statistics/paper-5/*",
    "statistics/gradient/round_03/*",
    "methods/random/mask.safetensors",
    "methods/GradDiff-official/model",
    "methods/MMUnlearner/checkpoints/*",
    "evaluation/vanilla/*",
    "evaluation/MMUnlearner/*",
)


SOME = (".data.*", "checkpoints/vanilla/step-00000001", "evaluation/paper/*")


@pytest.mark.slow
@pytest.mark.parametrize(
    "landmarks", [SOME, pytest.param(LANDMARKS, marks=pytest.mark.long)], ids=["some", "all"]
)
def test_a_run_killed_at_every_stage_ends_with_the_same_results(tmp_path, landmarks):
    (tmp_path / "config.yaml").write_text(CONFIG)
    check_killed(tmp_path, ["--config", tmp_path / "config.yaml"], landmarks)


@pytest.mark.slow
@pytest.mark.long
def test_a_careful_training_killed_at_every_stage_ends_with_the_same_results(tmp_path):
    """And with the same models, bit for bit."""
    decoder = tmp_path / "decoder"
    (tmp_path / "config.yaml").write_text(CAREFUL.replace("DECODER", str(decoder)))
    write_decoder(decoder)
    check_killed(tmp_path, ["--config", tmp_path / "config.yaml"], CAREFUL_LANDMARKS)
    for name in ("vanilla", "retrained"):
        killed, whole = (load_file(tmp_path / run / name / WEIGHTS) for run in ("killed", "whole"))
        assert killed.keys() == whole.keys()
        assert not [one for one in whole if not np.array_equal(killed[one], whole[one])]


@pytest.mark.slow
@pytest.mark.long
def test_a_published_config_killed_at_every_stage_ends_with_the_same_results(tmp_path):
    """Its masks have names of their own, and it trains baselines."""
    (tmp_path / "input.yaml").write_text(INPUT)
    made = start(tmp_path, "input", ["--config", tmp_path / "input.yaml", "--only", "data,train"])
    assert made.wait() == 0, told(tmp_path, "input")
    paths = [f"data.path={tmp_path / 'input/data'}", f"model.path={tmp_path / 'input/vanilla'}"]
    check_killed(tmp_path, ["--config", PUBLISHED, *SETTINGS, *paths], PUBLISHED_LANDMARKS)
    models = results(tmp_path / "whole")["models"]
    assert {"paper-2", "paper-10", "GA", "KL-official", "MMUnlearner", "system-prompt"} <= {*models}


def write_decoder(folder):
    """Write a tiny Llama, whose tokenizer knows bytes alone."""
    sizes = ModelSection(
        family="llama",
        text=TextSize(width=16, num_layers=2, num_heads=2, num_key_heads=1, num_neurons=32),
    )
    words = train_tokenizer(["a person lives in a town"] * 4, 300)
    save_pretrained(create(sizes, words, jax.random.key(0)), folder)


def check_killed(folder, arguments, landmarks):
    """Kill a run at each landmark in turn, and compare its end with an undisturbed run's."""
    delays = random.Random(0)
    killed_at = []
    for landmark in landmarks:
        process = start(folder, "killed", arguments)
        while process.poll() is None and not list((folder / "killed").glob(landmark)):
            time.sleep(0.002)
        time.sleep(delays.uniform(0, 0.2))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed_at.append(landmark)
        assert process.wait() in (0, -signal.SIGKILL), told(folder, "killed")
    assert len(killed_at) >= len(landmarks) - 1  # the last blow may come too late
    for name in ("killed", "whole"):
        assert start(folder, name, arguments).wait() == 0, told(folder, name)
    assert results(folder / "killed") == results(folder / "whole")
    assert files(folder / "killed") == files(folder / "whole")


def start(folder, name, arguments):
    """Start the command on the folder `name`; compiled programs are kept between starts."""
    command = [sys.executable, "-m", "manu_jax.run", *map(str, arguments)]
    kept = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        kept["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    environment = os.environ | kept | {"XLA_FLAGS": LEAST_EFFORT}
    with open(folder / f"{name}.log", "w") as log:
        return subprocess.Popen(
            [*command, "--output", str(folder / name)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def told(folder, name):
    return (folder / f"{name}.log").read_text()[-3000:]


def results(directory):
    found = json.loads((directory / "results.json").read_text())
    del found["timings"], found["config"]["output"]
    return found


def files(directory):
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}

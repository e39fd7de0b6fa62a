"""A whole run with every kind of method gives one process's rows on two and on four processes."""

import json

import numpy as np
import pytest
from test_processes import ROW_MEANS, run_on

from manu_jax.arrays import read_arrays
from manu_jax.edits import masks

CONFIG = """
seed: 0
cache: null
mesh: {data: 2, fsdp: 2, tensor: 2}
score_batch: 8
data: {num_people: 6, num_celebrities: 4, num_general: 8, forget: 15}
model:
  vision: {image_size: 28, patch_size: 14, width: 16, num_layers: 2, num_heads: 2, num_neurons: 16}
  text: {width: 16, num_layers: 2, num_heads: 2, num_key_heads: 2, num_neurons: 32, context: 512}
train: {steps: 2, base_steps: 1, batch_size: 8, memory_gate: 0, checkpoint_every: 1}
method: {preset: gradient, rounds: 1, fade: null, keep_per_forget: null, alpha: 0.2}
compare:
  - {kind: learned, steps: 2, batch_forget: 8, batch_keep: 8}
  - {preset: paper, alpha: 0.1}
  - {preset: official-code, alpha: 0.1, layers: {}}
  - {preset: random, alpha: 0.1}
  - {kind: kvw}
  - {kind: ridge}
  - {preset: suppress, steps: 2, batch_size: 8}
  - {preset: erase, steps: 2, batch_size: 8}
  - {kind: trained, name: LoRA, objective: gradient_difference, steps: 2, batch_size: 8,
     lora: {rank: 2, alpha: 4.0}, learning_rate: 1e-3}
  - {kind: trained, name: NPO, objective: npo, steps: 1, batch_size: 8}
  - {kind: trained, name: MMUnlearner, objective: mmunlearner, steps: 1, batch_size: 8}
  - {kind: trained, name: AltPO, objective: altpo, steps: 1, batch_size: 8}
  - {kind: trained, name: RMU, objective: rmu, steps: 1, batch_size: 8}
unlearn:
  - {name: prompt, objective: system_prompt, prompt: "Do not tell of {names}.\\n"}
sweep: {alphas: [0.3], max_people: 2, null_groups: 2, null_facts: 4}
evaluate: {new_tokens: 2, max_people: 2, resamples: 50}
audit: {level: full, steps: 2, learning_rates: [1e-3]}
"""
MODELS = {
    "vanilla",
    "retrained",
    "gradient",
    "learned",
    "kvw",
    "ridge",
    "suppress",
    "erase",
    "LoRA",
    "paper",
    "official-code",
    "random",
    "NPO",
    "MMUnlearner",
    "AltPO",
    "RMU",
}
SECONDS = 1800  # a run takes five minutes on one of two busy cores
# Sums over devices in another order move a likelihood by 1e-4, and so a step of a training.
CLOSE = {"abs": 2e-3, "rel": 1e-3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The run folders of one process, of two and of four: eight devices each."""
    folder = tmp_path_factory.mktemp("whole")
    run_on(folder, CONFIG, 2, 4, seconds=SECONDS)
    return folder


@pytest.mark.slow
@pytest.mark.pods
@pytest.mark.parametrize("count", [2, 4])
def test_a_run_of_all_kinds_of_methods_gives_the_rows_of_one_process(folders, count):
    one, many = (
        json.loads((folders / str(number) / "results.json").read_text()) for number in (1, count)
    )
    assert set(one["models"]) >= MODELS and one["models"] == many["models"]
    assert len(one["rows"]) == len(many["rows"]) > 100
    left_out = {"learned"} if learned_differ_by_ties(folders, count) else set()
    for here, there in zip(one["rows"], many["rows"], strict=True):
        if here["model"] in left_out:
            continue
        for key, value in here.items():
            expected = pytest.approx(value, **CLOSE) if key in ROW_MEANS and value else value
            assert there[key] == expected, (here, there)


def learned_differ_by_ties(folders, count):
    """Whether other gates were closed; that may only be for scores that differ by rounding.

    The first step of Adam moves all gates by the same 0.05, so which is highest is rounding.
    """
    one, many = (folders / str(number) / "methods/learned" for number in (1, count))
    (mask, _), (other, _) = (masks.load(folder / "mask.safetensors") for folder in (one, many))
    scores, _ = read_arrays(one / "scores.safetensors", "scores")
    chosen, others = (
        np.concatenate([scores[tower][closed[tower]] for tower in scores])
        for closed in (mask, other)
    )
    np.testing.assert_allclose(np.sort(chosen), np.sort(others), atol=2e-3)
    return any((mask[tower] != other[tower]).any() for tower in mask)


@pytest.mark.slow
@pytest.mark.pods
@pytest.mark.parametrize("count", [2, 4])
def test_all_analyses_have_as_many_rows_as_on_one_process(folders, count):
    one, many = (
        json.loads((folders / str(number) / "results.json").read_text()) for number in (1, count)
    )
    assert one.keys() == many.keys()
    for name, rows in one.items():
        if isinstance(rows, list):
            assert len(many[name]) == len(rows), name
    assert one["audit"]


@pytest.mark.slow
@pytest.mark.pods
@pytest.mark.parametrize("count", [2, 4])
def test_the_same_files_are_left(folders, count):
    one, many = (
        {
            path.relative_to(folders / str(number)).as_posix()
            for path in (folders / str(number)).rglob("*")
        }
        for number in (1, count)
    )
    assert one == many

"""A careful training and own texts are on two processes what they are on one."""

import json

import pytest
from test_processes import ROW_MEANS, run_on

CONFIG = """
seed: 0
cache: null
mesh: {data: 1, fsdp: 4, tensor: 2}  # a weight is on both processes
score_batch: 8
data: {num_people: 6, num_celebrities: 4, num_general: 8, forget: 15, keep_share: 0.5}
model:
  vision: {image_size: 28, patch_size: 14, width: 16, num_layers: 2, num_heads: 2, num_neurons: 16}
  text: {width: 16, num_layers: 2, num_heads: 2, num_key_heads: 2, num_neurons: 32, context: 512}
train:
  steps: 4
  base_steps: 4
  batch_size: 8
  memory_gate: 0
  checkpoint_every: 2
  rates: {text: 1.0e-3}
  frozen: [text.embedding]
  tower: {steps: 4, more_steps: 2, batch_size: 8, views: 2}
  replay: {texts: 8, tokens: 16, batch_size: 3}
  interpolation: 0.7
  stop: {every: 2, facts: 6, texts: 3, known: 0.9}
method:
  {preset: gradient, rounds: 1, fade: null, alpha: 0.2, spare: 0.1,
   keep_texts: {count: 8, length: 12}}
compare:
  - {preset: suppress, steps: 2, batch_size: 4, batch_keep: 4, views: 1, keep_views: 1,
     strangers: 2, kept_strangers: 2, keep_texts: {count: 8, length: 12, batch_size: 2},
     neurons: {count: 2, layers: [1]}}
evaluate: {new_tokens: 2, max_people: 2, resamples: 50, tasks: [generation, likelihood]}
audit: none
neurons: {methods: []}
"""
SECONDS = 900
# Sums over devices in another order move a likelihood by 1e-4, and so a step of a training.
CLOSE = {"abs": 2e-3, "rel": 1e-3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The run folders of one process and of two: eight devices each."""
    folder = tmp_path_factory.mktemp("taught")
    run_on(folder, CONFIG, 2, seconds=SECONDS)
    return folder / "1", folder / "2"


@pytest.mark.slow
@pytest.mark.pods
def test_the_same_texts_are_written_and_the_same_rows_measured(folders):
    names = ("replay.jsonl", "texts/own_8x12.jsonl")
    for name in names:
        one, two = ((folder / name).read_text() for folder in folders)
        assert one == two and one.count("\n") > 7
    one, two = (json.loads((folder / "results.json").read_text()) for folder in folders)
    assert one["models"] == two["models"]
    assert len(one["rows"]) == len(two["rows"]) > 30
    for here, there in zip(one["rows"], two["rows"], strict=True):
        for key, value in here.items():
            expected = pytest.approx(value, **CLOSE) if key in ROW_MEANS and value else value
            assert there[key] == expected, (here, there)


@pytest.mark.slow
@pytest.mark.pods
def test_the_same_files_are_left(folders):
    one, two = ({p.relative_to(folder) for p in folder.rglob("*")} for folder in folders)
    assert one == two

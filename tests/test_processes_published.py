"""A benchmark's own protocol gives on two processes what it gives on one."""

import copy
import dataclasses
import json

import fiubench_folder
import pytest
import tiny_llava
from test_processes import run_on
from test_processes_whole import differing

from manu_jax.models.loaded import save_pretrained

CONFIG = """
seed: 0
cache: null
mesh: {{data: 2, fsdp: 2, tensor: 2}}
score_batch: 8
data: {{benchmark: fiubench, forget: 5, keep_share: 0.5, path: {data}}}
model: {{path: {model}}}
train: {{memory_gate: 0.0}}
method: {{preset: random, alpha: 0.3}}
evaluate:
  new_tokens: 2
  resamples: 20
  batch_size: 8
  sets: [forget, retain]
  tasks: [generation]
  ability: false
  published: {{max_items: 2, new_tokens: 2}}
audit: none
neurons: {{methods: []}}
"""
SECONDS = 900


@pytest.mark.slow
@pytest.mark.pods
def test_two_processes_follow_a_published_protocol_to_the_same_rows(tmp_path):
    fiubench_folder.write(tmp_path / "data")
    loaded = tiny_llava.loaded()
    hf_config = copy.deepcopy(loaded.hf_config)
    hf_config["text_config"]["max_position_embeddings"] = 512  # for the system sentence
    save_pretrained(dataclasses.replace(loaded, hf_config=hf_config), tmp_path / "model")
    config = CONFIG.format(data=tmp_path / "data", model=tmp_path / "model")
    run_on(tmp_path, config, 2, seconds=SECONDS)
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("1", "2"))
    assert len(one["published"]) > 20
    assert {row["model"] for row in one["published"]} == {"vanilla", "random"}
    for part in ("published", "rows"):
        assert not differing(one[part], two[part]), part
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*"))
    assert files == sorted(path.relative_to(tmp_path / "2") for path in (tmp_path / "2").rglob("*"))

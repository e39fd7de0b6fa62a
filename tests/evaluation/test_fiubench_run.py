"""FIUBench's whole protocol by the command, on a tiny LLaVA and a folder of the same layout."""

import copy
import dataclasses
import json

import fiubench_folder
import numpy as np
import pytest
import tiny_llava

from manu_jax import run
from manu_jax.data import batches
from manu_jax.data.fiubench_protocol import PUBLISHED, SYSTEM
from manu_jax.models.loaded import save_pretrained
from manu_jax.report.results import load_results

# A whole run, and many programs to compile
pytestmark = [pytest.mark.slow, pytest.mark.benchmarks]

CONFIG = """
cache: null
data: {benchmark: fiubench, forget: 5, keep_share: 0.5}
train: {memory_gate: 0.0}
method: random
evaluate:
  new_tokens: 2
  resamples: 20
  batch_size: 8
  sets: [forget, retain]
  tasks: [generation]
  ability: false
  published: {max_items: 3, new_tokens: 3}
audit: none
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a finished run."""
    place = tmp_path_factory.mktemp("fiubench")
    fiubench_folder.write(place / "data")
    loaded = tiny_llava.loaded()
    hf_config = copy.deepcopy(loaded.hf_config)
    hf_config["text_config"]["max_position_embeddings"] = 512  # for the system sentence
    save_pretrained(dataclasses.replace(loaded, hf_config=hf_config), place / "model")
    (place / "config.yaml").write_text(CONFIG)
    paths = [f"data.path={place / 'data'}", f"model.path={place / 'model'}"]
    command = ["--config", place / "config.yaml", "--output", place / "run", *paths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "MAX_BUCKETS", 1)
        patch.setattr(batches, "MULTIPLE", 256)
        assert run.main([str(argument) for argument in command]) == 0
    return place / "run"


def test_every_metric_of_the_protocol_has_its_rows(folder):
    rows = load_results(folder).analyses["published"]
    found = {(row.task, row.set, row.metric) for row in rows if row.model == "random"}
    for name, metric in PUBLISHED.metrics.items():
        for task in metric.tasks:
            sets = ("retain", "unseen") if task == "retain" else ("forget",)
            assert {(task, where, name) for where in sets} <= found
    assert {("all", "all", name) for name in PUBLISHED.aggregates} <= found
    for row in rows:
        assert row.value is not None or row.metric == "forget_quality"  # there is no retrained
        assert row.task == "all" or row.n == 3


def test_the_records_hold_what_was_asked_in_the_published_words(folder):
    path = folder / "evaluation/random/published/forget.forget.image.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["key"] for record in records] == [f"00000001/0{n}" for n in range(3)]
    record = records[1]
    assert record["prompt"] == f"{SYSTEM} USER: <image>\nWhere was this person born? ASSISTANT:"
    assert record["truth"] == "This person was born in rome."
    right, wrong = (np.mean(record["nll"][name]) for name in ("paraphrased", "perturbed"))
    ratio = np.exp(wrong - right)
    assert record["metrics"]["truth_ratio_forget"] == pytest.approx(min(ratio, 1 / ratio))


def test_the_report_and_the_export_show_the_protocol(folder):
    page = (folder / "report.html").read_text()
    assert "FIUBench’s own protocol" in page and "commit 8e12cdd" in page
    assert "The authors’ score by GPT is left out" in page
    summary = json.loads((folder / "evaluation/vanilla/FIUBENCH_SUMMARY.json").read_text())
    assert "forget_forget_image_truth_ratio_forget" in summary

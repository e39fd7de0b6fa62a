"""A method's scores as if others were to be forgotten, and masks from other facts to keep."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import planted_neurons as planted
import pytest

from manu_jax.config import RunConfig
from manu_jax.context import Run
from manu_jax.data.forms import forms
from manu_jax.data.texts import text_sample
from manu_jax.edits import masks
from manu_jax.evaluation.analyses import calibration
from manu_jax.evaluation.analyses.analysis import Evaluated
from manu_jax.evaluation.analyses.calibration import jaccard
from manu_jax.importance.methods import scores_for
from manu_jax.importance.null import scores_of_labels
from manu_jax.selection import select
from manu_jax.types import MODALITIES

ALPHA = 0.2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose mask the preset `paper` has made, at the share ALPHA of the neurons."""
    config = RunConfig(
        model={"path": "m"},
        method={"preset": "paper", "alpha": ALPHA},
        calibration={"draws": 2, "sizes": [0.5], "facts": 3},
        score_batch=8,
        evaluate={"batch_size": 8},
    )
    found = Run(config, tmp_path_factory.mktemp("paper"), None)
    found.benchmark = found.read_benchmark = planted.people()
    found.vanilla = planted.loaded()
    mask = select(scores_for(found.job_of(config.method)), ALPHA)
    path = found.directory / "mask.safetensors"
    masks.save(path, mask, planted.loaded(), preset="paper", alpha=ALPHA)
    return found


@pytest.mark.slow
def test_under_the_true_labels_scores_are_the_methods_own(run):
    job = run.job_of(run.config.method)
    sets = run.benchmark.sets
    facts = [fact for name in ("forget", "retain") for p in sets[name] for fact in p.facts]
    people = {one: forms(facts, one, run.vanilla.template) for one in MODALITIES}
    true = tuple(person.id for person in sets["forget"])
    swapped = tuple(person.id for person in sets["retain"])
    found, opposite = scores_of_labels(job, [true, swapped], people=people)
    own = scores_for(job)
    exchanged = scores_for(
        dataclasses.replace(job, forget=job.keep, keep=job.forget, directory=None)
    )
    for scores, expected in ((found, own), (opposite, exchanged)):
        for tower in expected:
            # The planted neurons say nothing of kept facts: their ratios are of rounding alone.
            is_told = np.abs(expected[tower]) < 1e4
            assert is_told.mean() > 0.9
            # The others' are of sums that are added in another order.
            left, right = scores[tower][is_told], expected[tower][is_told]
            np.testing.assert_allclose(left, right, rtol=2e-3, atol=1e-4)


def test_jaccard_is_the_share_that_both_masks_remove():
    one = {"text": np.array([[True, True, False, False]]), "vision": np.array([[True]])}
    other = {"text": np.array([[True, False, True, False]]), "vision": np.array([[True]])}
    assert jaccard(one, other) == 2 / 4
    assert jaccard(one, one) == 1 and jaccard(one, {"text": one["text"]}) == 2 / 3
    assert jaccard({"text": np.zeros((1, 3), bool)}, {}) == 1


def test_a_mask_from_other_facts_to_keep_is_compared_with_the_runs_own(run):
    rows = calibration.ANALYSIS.rows_of(Evaluated(run, ()))
    assert [(row.kind, row.draw) for row in rows] == [
        ("own", 0), *((kind, draw) for kind in ("size", "sample", "order") for draw in (0, 1)),
    ]  # fmt: skip
    for row in rows:
        assert list(calibration.check(row)) == []
        assert (row.forget_n, row.retain_n) == (6, 6)
        assert row.chance == pytest.approx(ALPHA / (2 - ALPHA), abs=0.01)
    by_kind = {kind: [row for row in rows if row.kind == kind] for kind in calibration.KINDS}
    assert all(row.jaccard == 1 for row in by_kind["own"])
    assert all(row.jaccard > 0.9 for row in by_kind["order"])  # equal scores may change places
    assert all(row.people == 2 and row.jaccard < 0.9 for row in by_kind["size"])
    again = calibration.ANALYSIS.rows_of(Evaluated(run, ()))
    assert again == rows


def test_scored_anew_a_mask_is_what_follows_from_the_statistics_of_people(run):
    job = run.job_of(run.config.method)
    people = tuple(person.id for person in run.benchmark.sets["retain"])
    chosen = calibration._variations(run, people)
    kept = [one for one in chosen if one.kind != "order"]
    pairs = zip(
        calibration._masks(job, kept, ALPHA), calibration._rescored(job, kept, ALPHA), strict=True
    )
    assert all(jaccard(one, other) > 0.9 for one, other in pairs)


def test_general_texts_are_nobody_and_stay_in_every_variation(run, monkeypatch):
    job = run.job_of(run.config.method)
    text = text_sample("Words of nobody.", key="texts/0000")
    job = dataclasses.replace(job, keep={**job.keep, "text": (*job.keep["text"], text)})
    people, texts = calibration._kept_of(job)
    assert texts == ("texts",) and set(people) == {p.id for p in run.benchmark.sets["retain"]}
    kept = []
    zeros = {"text": np.zeros((2, 10), np.float32)}
    monkeypatch.setattr(calibration, "scores_for", lambda own: kept.append(own.keep) or zeros)
    chosen = calibration._variations(run, people)
    list(calibration._rescored(job, chosen, ALPHA))
    assert len(kept) == 6 and all(one["text"][-1] is text for one in kept)


def test_without_draws_nothing_is_measured():
    run = SimpleNamespace(config=RunConfig(model={"path": "m"}))
    assert not calibration.ANALYSIS.applies(run)

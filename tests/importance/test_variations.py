"""Masks from statistics alone: those that a run with the same settings would choose."""

import numpy as np
import pytest
import tiny_llava as tiny

from manu_jax.config import named_method
from manu_jax.importance import candidates
from manu_jax.importance.candidates import SetStatistics, masks_of, variations
from manu_jax.importance.job import ScoringJob
from manu_jax.importance.methods import scores_for
from manu_jax.selection import select
from manu_jax.types import MODALITIES, ManuError

FORGET, KEEP = (
    {modality: tiny.samples(modality)[first:last] for modality in MODALITIES}
    for first, last in ((0, 2), (2, 6))
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Statistics as a run leaves them."""
    path = tmp_path_factory.mktemp("statistics")
    for name in ("paper", "official-code"):
        job = ScoringJob(
            tiny.loaded(), named_method(name), FORGET, KEEP, batch_size=4, directory=path / name
        )
        scores_for(job)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper", "official-code"])
def test_masks_are_those_of_scoring_with_the_same_settings(folder, preset):
    statistics = SetStatistics.load(folder / preset)
    combine = ("ratio", "relative")
    functions = ({"variance": 1.0}, {"absolute": 2.0, "rms": 1.0})
    layers = ({}, {"text": {"first": -1}})
    methods = list(
        variations(
            preset,
            alpha=(0.1, 0.4),
            combine=combine,
            functions=functions,
            scope=("all", "layer"),
            layers=layers,
        )
    )
    assert len(methods) == 2**5
    seen = set()
    for method, mask in masks_of(statistics, methods):
        job = ScoringJob(
            tiny.loaded(), method, FORGET, KEEP, batch_size=4, directory=folder / preset
        )
        expected = select(scores_for(job), method.alpha, method.scope, layers=method.layers)
        for tower in expected:
            np.testing.assert_array_equal(mask[tower], expected[tower])
        seen.add(tuple(mask[tower].tobytes() for tower in sorted(mask)))
    # The settings do change the masks; with one function, ratio and relative sort alike.
    assert len(seen) >= 16


def test_masks_of_one_ranking_are_scored_and_sorted_once(folder, monkeypatch):
    statistics = SetStatistics.load(folder / "paper")
    scored, sorted_ = [], []
    real_contrast, real_rank = candidates.contrast, candidates.rank
    monkeypatch.setattr(
        candidates, "contrast", lambda *a, **k: scored.append(1) or real_contrast(*a, **k)
    )
    monkeypatch.setattr(candidates, "rank", lambda *a, **k: sorted_.append(1) or real_rank(*a, **k))
    methods = variations("paper", alpha=np.linspace(0.1, 0.9, 50).tolist(), scope=("all", "layer"))
    assert len(list(masks_of(statistics, methods))) == 100
    assert (len(scored), len(sorted_)) == (1, 2)


def test_what_statistics_do_not_tell_is_an_error(folder, tmp_path):
    statistics = SetStatistics.load(folder / "paper")
    with pytest.raises(ManuError, match="reduction can't differ"):
        list(variations("paper", reduction=("mean", "last")))
    for changes, match in (
        ({"rounds": 2}, "rounds is 2"),
        ({"threshold": 0.2}, "threshold is 0.2"),
        ({"alpha": "auto"}, "asks the model"),
    ):
        with pytest.raises(ManuError, match=match):
            list(masks_of(statistics, [named_method("paper", **changes)]))
    with pytest.raises(ManuError, match="no statistics there"):
        SetStatistics.load(tmp_path)
    (tmp_path / "round_00").mkdir()
    with pytest.raises(ManuError, match="several rounds"):
        SetStatistics.load(tmp_path)


def test_statistics_of_text_alone_are_read_as_such(folder, tmp_path):
    for name in ("forget", "keep"):
        file = f"{name}.text.activation.safetensors"
        (tmp_path / file).write_bytes((folder / "paper" / file).read_bytes())
    statistics = SetStatistics.load(tmp_path)
    assert statistics.forget[0] is None and statistics.keep[0] is None
    ((method, mask),) = masks_of(statistics, [named_method("paper", alpha=0.2)])
    job = ScoringJob(
        tiny.loaded(),
        method,
        {"text": FORGET["text"]},
        {"text": KEEP["text"]},
        batch_size=4,
        directory=tmp_path,
    )
    expected = select(scores_for(job), 0.2)
    assert set(mask) == {"text"}
    np.testing.assert_array_equal(mask["text"], expected["text"])
    file = "forget.image.activation.safetensors"  # one of the two: something is missing
    (tmp_path / file).write_bytes((folder / "paper" / file).read_bytes())
    with pytest.raises(ManuError, match="keep.image.activation.safetensors: no statistics there"):
        SetStatistics.load(tmp_path)


def test_a_value_that_is_in_no_list_is_an_error():
    for values, message in (
        ({"alpha": 0.1}, "alpha is 0.1"),
        ({"scope": "all"}, "scope is 'all'"),
        ({"functions": {"variance": 1.0}}, "functions is {'variance': 1.0}"),
    ):
        with pytest.raises(ManuError, match=f"expected lists of values: {message}. Give .value."):
            list(variations("paper", **values))

"""What a plugin adds to a registry from outside the package, the config and the run know."""

from typing import Literal

import numpy as np
import pytest
import tiny_llava as tiny

from manu_jax.config import (
    PRESETS,
    MaskMethod,
    MethodSettings,
    named_method,
    to_yaml,
    validate_config,
)
from manu_jax.edits.weights import NewWeights
from manu_jax.importance import functions, gradients
from manu_jax.importance.functions import contrast
from manu_jax.importance.job import EditMethod, ScoringJob, ScoringMethod
from manu_jax.importance.methods import METHODS, edit_for, scores_for
from manu_jax.importance.statistics import Statistics
from manu_jax.training.recipes import RECIPES, Recipe
from manu_jax.types import MODALITIES, ManuError
from manu_jax.yaml12 import read_yaml_text

BASE = {"model": {"path": "m"}}


class LargestWeights(MaskMethod):
    """A plugin's settings: neurons score by the size of their weights."""

    name: str = "largest-weights"
    kind: Literal["largest-weights"] = "largest-weights"
    power: float = 1.0


def score_largest_weights(job: ScoringJob[LargestWeights]):
    return {
        tower: np.full(shape, job.method.power, np.float32)
        for tower, shape in job.loaded.towers.items()
    }


def config_of(**values):
    return validate_config({**BASE, **values}, "config")


def reads_back(config):
    return validate_config(read_yaml_text(to_yaml(config)), "config") == config


def test_an_objective(monkeypatch):
    section = {"name": "mine", "objective": "mine"}
    with pytest.raises(ManuError, match="unknown objective 'mine'"):
        config_of(unlearn=[section])
    monkeypatch.setitem(RECIPES, "mine", Recipe(("gradient_ascent",)))
    config = config_of(unlearn=[section])
    assert config.unlearn[0].objective == "mine" and reads_back(config)
    with pytest.raises(ManuError, match="unknown objective 'mien'; did you mean mine.*'mine'"):
        config_of(unlearn=[{**section, "objective": "mien"}])


def test_a_scoring_method_with_its_settings_and_a_preset(monkeypatch):
    with pytest.raises(ManuError, match="unknown kind 'largest-weights'"):
        config_of(method={"kind": "largest-weights"})
    entry = ScoringMethod(LargestWeights, score_largest_weights)
    monkeypatch.setitem(METHODS, "largest-weights", entry)
    monkeypatch.setitem(PRESETS, "cubes", {"kind": "largest-weights", "power": 3.0})
    config = config_of(method={"kind": "largest-weights"}, compare=["cubes"])
    assert [(one.name, one.kind) for one in config.methods] == [
        ("largest-weights", "largest-weights"),
        ("cubes", "largest-weights"),
    ]
    assert reads_back(config)
    with pytest.raises(ManuError, match="method.powr: unknown key; did you mean power"):
        config_of(method={"preset": "cubes", "powr": 2})
    with pytest.raises(ManuError, match="known: .*'largest-weights'"):
        config_of(method={"kind": "other"})
    forms = {modality: tiny.samples(modality) for modality in MODALITIES}
    scores = scores_for(ScoringJob(tiny.loaded(), named_method("cubes"), forms, forms))
    assert {tower: values.max() for tower, values in scores.items()} == {"text": 3, "vision": 3}


class Halved(MethodSettings):
    """A plugin's settings: an edit without masks."""

    name: str = "halved"
    kind: Literal["halved"] = "halved"
    factor: float = 0.5


def halve(job: ScoringJob[Halved]):
    edit = NewWeights.of(job.loaded, ["text.layers.mlp.down"])
    return NewWeights({name: job.method.factor * array for name, array in edit.values.items()})


def test_a_method_that_makes_an_edit(monkeypatch):
    with pytest.raises(ManuError, match="unknown kind 'halved'"):
        config_of(method={"kind": "halved"})
    monkeypatch.setitem(METHODS, "halved", EditMethod(Halved, halve))
    monkeypatch.setitem(PRESETS, "quartered", {"kind": "halved", "factor": 0.25})
    config = config_of(method="quartered", compare=["paper", {"kind": "halved"}])
    assert [(one.name, one.kind) for one in config.methods] == [
        ("quartered", "halved"),
        ("paper", "statistics"),
        ("halved", "halved"),
    ]
    assert [one.name for one in config.masks] == ["paper"] and reads_back(config)
    forms = {modality: tiny.samples(modality) for modality in MODALITIES}
    loaded, method = tiny.loaded(), named_method("quartered")
    edited = edit_for(ScoringJob(loaded, method, forms, forms)).apply(loaded)
    down, before = (one.model.text.layers.mlp.down_LFD[...] for one in (edited, loaded))
    np.testing.assert_array_equal(down, 0.25 * before)
    with pytest.raises(ManuError, match="no samples to score with: keep, image form"):
        edit_for(ScoringJob(loaded, method, forms, {"text": forms["text"]}))


def test_an_importance_function_and_a_combination(monkeypatch):
    method = {"functions": {"mean": 2.0}, "combine": "minus"}
    with pytest.raises(ManuError, match="unknown importance function 'mean'") as caught:
        config_of(method=method)
    assert "method.combine: unknown combination 'minus'" in str(caught.value)
    monkeypatch.setitem(
        functions.FUNCTIONS, "mean", lambda multi, text, method: multi.signed_LF + text.signed_LF
    )

    def minus(forget, keep, method):
        (ours, theirs) = (functions.importance(*pair, method)["mean"] for pair in (forget, keep))
        return {tower: method.functions["mean"] * (ours[tower] - theirs[tower]) for tower in ours}

    monkeypatch.setitem(functions.COMBINATIONS, "minus", minus)
    config = config_of(method=method)
    assert reads_back(config)
    one, two = (
        Statistics.zero({"text": (1, 2)}).add({"text": np.full((1, 3, 2), value)}, np.ones(3))
        for value in (1.0, 3.0)
    )
    scores = contrast(two, two, one, one, preset=config.method)
    np.testing.assert_allclose(scores["text"], 8.0)


def test_an_attribution_objective(monkeypatch):
    with pytest.raises(ManuError, match="method.objective: unknown objective 'margin'"):
        config_of(method={"preset": "gradient", "objective": "margin"})
    monkeypatch.setitem(gradients.ATTRIBUTION_OBJECTIVES, "margin", lambda logits, targets: logits)
    assert reads_back(config_of(method={"preset": "gradient", "objective": "margin"}))
    assert reads_back(config_of(method={"preset": "learned", "objective": "margin"}))

import json
import types
from typing import Any

import numpy as np
import pytest

from manu_jax.config import EvaluateSection
from manu_jax.evaluation.analyses.analysis import Evaluated
from manu_jax.evaluation.analyses.differences import differences, measure

PLACE = ("forget", "cloze", "text")


def records(values):
    return [{"person": f"{i // 2}", "score": v} for i, v in enumerate(values)]


def test_paired_difference_has_an_interval_of_its_own():
    """Two models that stumble over the same items: the difference is sure, the means are not."""
    before = np.tile([0.0, 1.0], 20)
    model = {"vanilla": {PLACE: records(before)}, "ours": {PLACE: records(before - 0.25)}}
    (found,) = differences(model, "vanilla", resamples=200)
    assert (found.model, found.against, found.metric) == ("ours", "vanilla", "accuracy")
    assert found.value == found.low == found.high == -0.25 and found.n == 40


def test_places_that_one_lacks_are_left_out_and_one_person_has_no_interval():
    ours = {PLACE: records([1.0, 0.0]), ("retain", "cloze", "text"): records([1.0])}
    found = list(differences({"vanilla": {PLACE: records([1.0, 1.0])}, "ours": ours}, "vanilla"))
    assert [(d.set, d.value, d.low) for d in found] == [("forget", -0.5, None)]


def test_items_of_another_length_are_refused():
    sides = {"vanilla": {PLACE: records([1.0])}, "ours": {PLACE: records([1.0, 0.0])}}
    with pytest.raises(ValueError, match="paired"):
        list(differences(sides, "vanilla"))


def test_the_same_items_in_another_order_are_refused():
    ours = records([1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="paired"):
        list(differences({"vanilla": {PLACE: ours}, "ours": {PLACE: ours[::-1]}}, "vanilla"))


def test_answers_that_an_earlier_config_left_are_not_compared(tmp_path):
    """What is not asked any more stays in the folder, of a method's earlier model perhaps."""
    for model in ("vanilla", "ours"):
        for place in ("forget.cloze.text", "retain.cloze.text", "forget.generation.text"):
            path = tmp_path / "evaluation" / model / f"{place}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [{**one, "exact": 1.0} for one in records([1.0, 0.0])]
            path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    section = EvaluateSection(sets=("forget",), tasks=("cloze",), resamples=20)
    config = types.SimpleNamespace(evaluate=section, seed=0)
    run: Any = types.SimpleNamespace(config=config, directory=tmp_path)
    found = list(measure(Evaluated(run, ("vanilla", "ours"))))
    assert {(one.set, one.task, one.modality) for one in found} == {PLACE}

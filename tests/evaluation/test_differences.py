import numpy as np
import pytest

from manu_jax.evaluation.analyses.differences import differences

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

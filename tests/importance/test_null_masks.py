import dataclasses
import itertools

import numpy as np
import pytest
import tiny_llava as tiny

from manu_jax import parallel
from manu_jax.config import named_method
from manu_jax.importance.collect import collect
from manu_jax.importance.job import ScoringJob
from manu_jax.importance.methods import scores_for
from manu_jax.importance.null import (
    draw_groups,
    is_by_people,
    masks_of_groups,
    overlap,
    random_masks,
)
from manu_jax.importance.people import collect_people, person_of, without
from manu_jax.importance.statistics import MOMENTS
from manu_jax.selection import select
from manu_jax.types import MODALITIES, ManuError

PAPER = named_method("paper")


def about(sample, person):
    return dataclasses.replace(sample, key=f"{person}/{sample.key.partition('/')[2]}")


def samples_of(modality):
    """Six samples about three people, whose samples are mixed."""
    samples = tiny.samples(modality)
    return tuple(about(one, "abc"[number % 3]) for number, one in enumerate(samples))


def assert_same(left, right):
    """Equal up to the rounding of float32 in other batches; a |z| may be next to τ."""
    assert left.count.value() == right.count.value()
    for tower in left.towers:
        for moment in MOMENTS[:3]:
            a, b = (getattr(one, moment)[tower].value() for one in (left, right))
            np.testing.assert_allclose(a, b, atol=3e-6 * max(np.abs(b).max(), 1e-3))
        above = left.above[tower].value() - right.above[tower].value()
        assert np.abs(above).max() <= 1 and (above != 0).mean() < 0.02


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_statistics_of_people_add_to_those_of_any_group(modality):
    loaded, samples = tiny.loaded(), samples_of(modality)
    settings = {"modality": modality, "batch_size": 4}
    found = collect_people(loaded, samples, PAPER, **settings)
    assert found.people == ("a", "b", "c") and found.counts_P.tolist() == [2, 2, 2]
    for group in itertools.chain(*(itertools.combinations("abc", size) for size in (1, 2, 3))):
        own = [sample for sample in samples if person_of(sample) in group]
        assert_same(found.of(group), collect(loaded, own, PAPER, **settings))
    whole = collect(loaded, samples, PAPER, **settings)
    assert_same(without(whole, found.of("b")), found.of("ac"))
    with pytest.raises(ManuError, match="none of z"):
        found.of("az")


def test_people_on_a_mesh_have_the_statistics_of_one_device():
    samples, settings = samples_of("image"), {"modality": "image", "batch_size": 4}
    alone = collect_people(tiny.loaded(), samples, PAPER, **settings)
    spread = collect_people(tiny.on_mesh(parallel.make_mesh(2, 2, 2)), samples, PAPER, **settings)
    assert_same(spread.of("ab"), alone.of("ab"))


def test_a_null_mask_is_what_the_method_would_choose_for_that_group():
    forget = {modality: tiny.samples(modality)[:1] for modality in MODALITIES}
    keep = {modality: samples_of(modality) for modality in MODALITIES}
    job = ScoringJob(tiny.loaded(), PAPER, forget, keep, batch_size=4)
    groups = [("a",), ("b", "c")]
    found = list(masks_of_groups(job, groups, 0.25, people=keep))
    for group, mask in zip(groups, found, strict=True):
        theirs, rest = (
            {
                modality: [one for one in keep[modality] if (person_of(one) in group) == is_theirs]
                for modality in MODALITIES
            }
            for is_theirs in (True, False)
        )
        again = ScoringJob(tiny.loaded(), PAPER, theirs, rest, batch_size=4)
        expected = select(scores_for(again), 0.25)
        # Scores that are nearly equal may change places, since sums are in another order.
        assert overlap(mask, expected) > 0.97
        assert sum(m.sum() for m in mask.values()) == sum(m.sum() for m in expected.values())
    assert overlap(*found) < 0.97


def test_a_null_is_by_people_only_where_single_samples_tell():
    assert is_by_people(PAPER) and is_by_people(named_method("paper", reduction="answer"))
    others = (
        named_method("paper", rounds=2),
        named_method("paper", keep_per_forget=2),
        *map(named_method, ("official-code", "gradient", "learned", "random")),
    )
    assert not any(map(is_by_people, others))
    job = ScoringJob(tiny.loaded(), named_method("gradient"), {}, {})
    with pytest.raises(ManuError, match="single people"):
        list(masks_of_groups(job, [("a",)], 0.1, people={}))
    with pytest.raises(ManuError, match="by position"):
        collect_people(
            tiny.loaded(), samples_of("text"), named_method("official-code"), modality="text"
        )


def test_groups_are_different_people_drawn_by_the_seed():
    people = [f"{number:03d}" for number in range(10)]
    groups = draw_groups(people, size=3, count=50, seed=1)
    assert len(set(groups)) == 50 and all(len({*group}) == 3 for group in groups)
    assert {*itertools.chain(*groups)} == {*people}
    assert groups == draw_groups(people, size=3, count=50, seed=1)
    assert groups != draw_groups(people, size=3, count=50, seed=2)
    assert len(draw_groups(people[:4], size=3, count=50, seed=1)) == 4  # there are no more
    with pytest.raises(ManuError, match="a group has 5 people"):
        draw_groups(people[:4], size=5, count=50, seed=1)


def test_random_masks_take_as_many_neurons_of_each_layer():
    random = np.random.default_rng(0)
    mask = {"text": random.random((3, 40)) < [[0.5], [0.1], [0]], "vision.fc1": np.eye(4, 9) > 0}
    drawn = list(random_masks(mask, count=20, seed=3))
    for one in drawn:
        for tower in mask:
            np.testing.assert_array_equal(one[tower].sum(axis=1), mask[tower].sum(axis=1))
    assert len({one["text"].tobytes() for one in drawn}) == 20
    assert np.mean([one["text"][0] for one in drawn], axis=0).min() > 0.1  # every neuron may go


def test_overlap_is_the_share_of_the_masks_neurons():
    mask = {"text": np.array([[True, True, False, True]]), "vision": np.array([[True]])}
    assert overlap(mask, {"text": np.array([[True, False, True, True]])}) == 0.5
    assert overlap(mask, mask) == 1

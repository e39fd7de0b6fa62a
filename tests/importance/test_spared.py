"""Neurons that kept facts need are measured, and stay."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava as tiny

from manu_jax.config import named_method
from manu_jax.data.texts import text_samples
from manu_jax.edits import masks
from manu_jax.evaluation.likelihood import log_likelihoods
from manu_jax.importance import by_statistics, spared
from manu_jax.importance.candidates import SetStatistics, masks_of
from manu_jax.importance.job import ScoringJob
from manu_jax.importance.methods import scores_for
from manu_jax.importance.texts import GROUP
from manu_jax.leaves import path_name
from manu_jax.parallel import make_mesh, tree_shardings
from manu_jax.selection import select
from manu_jax.types import MODALITIES, ManuError, Sample

FORGET = {modality: tiny.samples(modality)[:2] for modality in MODALITIES}
KEEP = {modality: tiny.samples(modality)[2:] for modality in MODALITIES}
LOUD = (1, 5)  # layer and neuron of the decoder that carries what the model says
SHARE = 0.1


def carried(factor=40.0):
    """A model whose answers one neuron makes more likely: it writes what kept facts ask for."""
    loaded = tiny.loaded()

    def visit(path, leaf):
        if path_name(path) != "text.layers.mlp.down_LFD":
            return leaf
        down_LFD = np.array(leaf)
        down_LFD[LOUD] *= factor
        return jnp.asarray(down_LFD)

    return loaded.replace_model(jax.tree_util.tree_map_with_path(visit, loaded.model))


def job_of(loaded, **settings):
    method = named_method("gradient", **{"rounds": 1, "alpha": SHARE, "spare": 0.05, **settings})
    return ScoringJob(loaded, method, FORGET, KEEP, batch_size=3)


def ones(loaded):
    return {tower: np.ones(sizes, np.float32) for tower, sizes in loaded.towers.items()}


def drawn_scores(loaded):
    random = np.random.default_rng(0)
    scores = {tower: random.random(sizes) for tower, sizes in loaded.towers.items()}
    scores["text"][LOUD] = 2.0  # the first to go
    return scores


def spared_by(job, **settings):
    scores = drawn_scores(job.loaded)
    none = {tower: np.zeros(values.shape, bool) for tower, values in scores.items()}
    given = {"gates": ones(job.loaded), "spared": none, **settings}
    return spared.spared_of(job, scores, SHARE, **given)


def removal_costs(loaded, mask):
    """What each neuron of a mask costs alone, of the folded model: the larger of both forms."""
    costs = {}
    before = {form: asked(loaded, form) for form in MODALITIES}
    for tower, chosen in mask.items():
        for place in zip(*np.nonzero(chosen), strict=True):
            alone = {tower: np.zeros_like(chosen)}
            alone[tower][place] = True
            folded = masks.fold(loaded, alone)
            costs[tower, *map(int, place)] = max(
                before[form] - asked(folded, form) for form in MODALITIES
            )
    return costs


def asked(loaded, form):
    return log_likelihoods(loaded, KEEP[form], batch_size=4).mean_N.mean()


def places(mask):
    return {
        (tower, *map(int, place)) for tower in mask for place in np.argwhere(mask[tower]).tolist()
    }


@pytest.fixture(scope="module")
def loaded():
    return carried()


def test_the_neuron_that_kept_facts_need_is_spared(loaded):
    job = job_of(loaded)
    found = spared_by(job)
    scores = drawn_scores(loaded)
    chosen = select(spared.without(scores, found), SHARE)
    assert ("text", *LOUD) in places(select(scores, SHARE)) and ("text", *LOUD) in places(found)
    # As many neurons go as without it, and no spared one among them.
    counts = [sum(m.sum() for m in one.values()) for one in (chosen, select(scores, SHARE))]
    assert counts[0] == counts[1] and not places(chosen) & places(found)


def test_spared_neurons_cost_more_than_the_bound_and_the_loudest_costs_most(loaded):
    job = job_of(loaded)
    costs = removal_costs(loaded, spared_by(job))
    assert min(costs.values()) > 0.05
    first = removal_costs(loaded, select(drawn_scores(loaded), SHARE))
    assert max(first, key=first.__getitem__) == ("text", *LOUD) and first["text", *LOUD] > 0.3


def test_halving_finds_what_asking_one_by_one_finds(loaded):
    """At a bound that groups exceed by one neuron alone."""
    chosen = {tower: np.zeros(sizes, bool) for tower, sizes in loaded.towers.items()}
    chosen["text"][1, :8] = True
    costs = removal_costs(loaded, chosen)
    bound = (sorted(costs.values())[-1] + sorted(costs.values())[-2]) / 2
    job = job_of(loaded)
    removal = spared._Removal.of(job, KEEP, ones(loaded))
    assert places(removal.costly(chosen, bound)) == {("text", *LOUD)}
    for form, before in zip(MODALITIES, removal.before, strict=True):
        assert before == pytest.approx(asked(loaded, form), abs=1e-5)
    assert not places(removal.costly(chosen, 1e3))


def test_general_texts_are_asked_apart_from_facts(loaded):
    texts = text_samples(["the home town of somebody is far away"] * 2, group=GROUP)
    texts += (Sample((("its own text", True),), key="own/0"),)
    keep = {**KEEP, "text": (*KEEP["text"], *texts)}
    groups = spared._groups_to_keep(dataclasses.replace(job_of(loaded), keep=keep))
    assert {name: len(samples) for name, samples in groups.items()} == {
        "image": 4, "text": 4, "texts": 3,
    }  # fmt: skip
    assert set(groups["texts"]) == set(texts) and not set(groups["text"]) & set(texts)
    assert set(spared._groups_to_keep(job_of(loaded))) == {"image", "text"}


def test_what_was_removed_before_is_not_asked_about_again(loaded):
    gates = ones(loaded)
    gates["text"][LOUD] = 0
    assert ("text", *LOUD) not in places(spared_by(job_of(loaded), gates=gates))


@pytest.mark.parametrize("rounds", [1, 2])
def test_scores_put_spared_neurons_last(loaded, rounds, monkeypatch):
    """The loud one among them, whose attribution is next to nothing: its answers are saturated."""
    wide = {"alpha": 0.85, "rounds": rounds}
    plain = scores_for(job_of(loaded, spare=None, **wide))
    free = scores_for(job_of(loaded, spare=1e6, **wide))
    for tower, mask in select(free, 0.85).items():
        np.testing.assert_array_equal(mask, select(plain, 0.85)[tower])
    assert rounds > 1 or ("text", *LOUD) in places(select(plain, 0.85))
    found, real = [], spared.spared_of

    def seen(*arguments, **settings):
        found.append(real(*arguments, **settings))
        return found[-1]

    monkeypatch.setattr(by_statistics, "spared_of", seen)
    scores = scores_for(job_of(loaded, spare=0.1, **wide))
    assert len(found) == rounds and places(found[-1]) >= places(found[0])
    assert places(found[-1]) if rounds > 1 else ("text", *LOUD) in places(found[-1])
    values = np.concatenate([scores[tower].ravel() for tower in sorted(scores)])
    assert len(set(values.tolist())) == values.size and values.min() > 0 and values.max() == 1
    last = np.sort(values)[len(places(found[-1])) - 1]
    assert all(scores[tower][layer, neuron] <= last for tower, layer, neuron in places(found[-1]))


def test_what_was_found_is_kept_and_read(loaded, tmp_path, monkeypatch):
    job = dataclasses.replace(job_of(loaded), directory=tmp_path)
    found = spared_by(job)
    asked_again = []
    real = spared.log_likelihood_sum

    def counted(*arguments):
        asked_again.append(True)
        return real(*arguments)

    monkeypatch.setattr(spared, "log_likelihood_sum", counted)
    again = spared_by(job)
    assert not asked_again and places(again) == places(found)
    other = dataclasses.replace(job_of(loaded, spare=0.5), directory=tmp_path)
    assert places(spared_by(other)) < places(found) and asked_again
    (tmp_path / spared.FILE).write_bytes(b"cut")
    with pytest.raises(ManuError, match="spared.safetensors: damaged or cut short.*Delete"):
        spared_by(job)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 4, 2)])
def test_every_mesh_spares_the_same(loaded, sizes):
    mesh = make_mesh(*sizes)
    model = jax.device_put(loaded.model, tree_shardings(loaded.model, mesh))
    found = spared_by(job_of(dataclasses.replace(loaded, model=model, mesh=mesh)))
    assert places(found) == places(spared_by(job_of(loaded)))


def test_a_model_that_is_not_finite_is_an_error(loaded):
    broken = loaded.replace_model(jax.tree.map(lambda leaf: leaf * np.nan, loaded.model))
    with pytest.raises(ManuError, match="kept facts have no finite likelihood"):
        spared_by(job_of(broken))


def test_spare_is_for_neurons_and_for_runs_that_ask():
    with pytest.raises(ManuError, match="spare: reduction .position. scores rows"):
        named_method("official-code", spare=0.1)
    with pytest.raises(ManuError, match="greater than 0"):
        named_method("paper", spare=0.0)
    statistics = SetStatistics((None, None), (None, None))
    with pytest.raises(ManuError, match="spare is 0.1, and what a removal costs is asked"):
        list(masks_of(statistics, [named_method("paper", spare=0.1)]))


def test_statistics_of_one_round_do_not_depend_on_what_is_spared():
    plain, sparing = named_method("paper"), named_method("paper", spare=0.1)
    assert plain.measured_by() == sparing.measured_by()
    assert "spare" not in plain.scored_by() and sparing.scored_by()["spare"] == 0.1
    assert "alpha" in sparing.scored_by() and "alpha" not in plain.scored_by()

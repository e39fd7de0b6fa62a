import numpy as np
import pytest
import tiny_llava as tiny

from manu_jax.config import named_method
from manu_jax.importance import by_statistics, kept
from manu_jax.importance.collect import add_batch
from manu_jax.importance.job import ScoringJob, ScoringMethod
from manu_jax.importance.methods import METHODS, load_scores, save_scores, scores_for
from manu_jax.models.nn.answers import answer_log_odds
from manu_jax.selection import select
from manu_jax.types import MODALITIES, ManuError


def forms(first, last):
    return {modality: tiny.samples(modality)[first:last] for modality in MODALITIES}


FORGET, KEEP = forms(0, 2), forms(2, 6)


def job_of(method, **settings):
    settings = {"forget": FORGET, "keep": KEEP, "batch_size": 4, **settings}
    return ScoringJob(tiny.loaded(), method, **settings)


def scores_of(method, **settings):
    return scores_for(job_of(method, **settings))


@pytest.mark.parametrize("name", ["paper", "official-code"])
def test_a_preset_scores_every_neuron_that_it_may_remove(name, tmp_path):
    loaded, method = tiny.loaded(), named_method(name)
    scores = scores_of(method, directory=tmp_path)
    known = {**loaded.towers, **loaded.family.matrix_rows(loaded.config)}
    expected = loaded.towers if name == "paper" else loaded.family.matrix_rows(loaded.config)
    assert set(scores) == set(expected)
    for key, values in scores.items():
        assert values.shape == known[key] and values.dtype == np.float32
        assert np.isfinite(values).all() and values.std() > 0
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == [
        f"{name}.{modality}.activation.safetensors"
        for name in ("forget", "keep")
        for modality in MODALITIES
    ]
    again = scores_of(method, directory=tmp_path)
    for key in scores:
        np.testing.assert_array_equal(scores[key], again[key])


def test_rounds_remove_part_by_part_and_score_again():
    method = named_method("gradient", rounds=2, alpha=0.2)
    scores = scores_of(method)
    # The first half is what one round alone would remove.
    single = named_method(method, rounds=1)
    first = select(scores_of(single), 0.1)
    half, whole = select(scores, 0.1), select(scores, 0.2)
    for tower in first:
        np.testing.assert_array_equal(half[tower], first[tower])
        assert not (half[tower] & ~whole[tower]).any()
    # The second half is chosen with the first one gone, as a run from there would.
    gates = {tower: 1 - mask.astype(np.float32) for tower, mask in first.items()}
    later = by_statistics.score_round(job_of(single), gates)
    rest = {tower: np.where(first[tower], -np.inf, later[tower]) for tower in later}
    number = sum(int(mask.sum()) for mask in whole.values()) - sum(
        int(mask.sum()) for mask in first.values()
    )
    order = np.argsort(-np.concatenate([rest["text"].ravel(), rest["vision"].ravel()]))
    new = np.concatenate([(whole[t] & ~first[t]).ravel() for t in ("text", "vision")])
    assert set(np.flatnonzero(new)) == set(order[:number])


def test_all_rounds_and_both_sets_run_the_same_programs(monkeypatch):
    method = named_method("gradient", rounds=2, alpha=0.2)
    counts, real = [], by_statistics.score_round

    def counted(*arguments):
        scores = real(*arguments)
        counts.append(add_batch._cache_size())
        return scores

    monkeypatch.setattr(by_statistics, "score_round", counted)
    add_batch.clear_cache()
    scores_of(method)
    assert counts == [2, 2]  # one for each form


def test_kept_facts_are_drawn_by_the_number_of_forget_facts(monkeypatch):
    drawn = kept.draw(KEEP["image"], 3, seed=1)
    assert len(drawn) == 3 and drawn == kept.draw(KEEP["image"], 3, seed=1)
    assert len(kept.draw(KEEP["image"], 99, seed=1)) == 4
    seen = []

    def spy(loaded, samples, method, **settings):
        seen.append(len(samples))
        return real(loaded, samples, method, **settings)

    real = by_statistics.collect
    monkeypatch.setattr(by_statistics, "collect", spy)
    method = named_method("paper", keep_per_forget=1.0)
    scores_of(method)
    assert seen == [2, 2, 2, 2]


def test_random_scores_are_a_draw_of_the_seed():
    method = named_method("random")
    one, same, other = (scores_of(method, seed=seed)["text"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


@pytest.mark.slow
def test_learned_gates_lower_what_is_to_be_forgotten_more_than_what_is_kept():
    loaded = tiny.loaded()
    method = named_method("learned", alpha=0.3, steps=12, batch_forget=2, batch_keep=4)
    scores = scores_of(method, seed=1)
    again = scores_of(method, seed=1)
    for tower in loaded.towers:
        np.testing.assert_array_equal(scores[tower], again[tower])
    mask = select(scores, method.alpha)
    gates = {tower: 1 - removed.astype(np.float32) for tower, removed in mask.items()}

    ones = {tower: np.ones_like(gate) for tower, gate in gates.items()}
    changes_B = np.zeros(6)
    for modality in MODALITIES:
        batch = tiny.batch(modality)
        before_B, after_B = (
            answer_log_odds(tiny.logits(loaded.model, batch, g), batch) for g in (ones, gates)
        )
        changes_B += np.asarray(after_B - before_B) / 2
    assert changes_B[:2].mean() < changes_B[2:].mean() - 0.5


@pytest.mark.parametrize("kind", ["statistics", "learned", "random"])
def test_a_set_without_samples_is_an_error_that_names_it(kind):
    job = job_of(METHODS[kind].settings(), keep={**KEEP, "text": ()})
    with pytest.raises(ManuError, match="keep, text form"):
        scores_for(job)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"text": np.full((2, 40), np.nan)}, 'not finite.* at tower "text", layer 0: 40 values'),
        ({"text": np.zeros((2, 3))}, r'do not fit the model: tower "text" has shape \(2, 3\)'),
        ({"txt": np.zeros((2, 40))}, 'do not fit the model: tower "txt" is not in the model'),
    ],
)
def test_scores_of_no_neurons_or_of_no_numbers_are_an_error(monkeypatch, scores, message):
    """As a method from outside may return them."""
    method = named_method("random")
    entry = ScoringMethod(type(method), lambda job: scores)
    monkeypatch.setitem(METHODS, "random", entry)
    with pytest.raises(ManuError, match=f'scores of method "random".*{message}'):
        scores_of(method)


def test_scores_round_trip(tmp_path):
    scores = {"text": np.arange(6, dtype=np.float32).reshape(2, 3)}
    save_scores(tmp_path / "scores.safetensors", scores, {"method": "paper"})
    found, made_from = load_scores(tmp_path / "scores.safetensors")
    np.testing.assert_array_equal(found["text"], scores["text"])
    assert made_from == {"method": "paper"}

import jax
import numpy as np
import pytest
import tiny_llava as tiny

from manu_jax import parallel
from manu_jax.config import StatisticsMethod, named_method
from manu_jax.data import batches
from manu_jax.data.batches import bucket_lengths
from manu_jax.importance import collect as collect_module
from manu_jax.importance import statistics as files
from manu_jax.importance.collect import collect, score
from manu_jax.importance.gradients import per_example_gradients
from manu_jax.importance.statistics import MOMENTS, Statistics
from manu_jax.leaves import path_name
from manu_jax.models.nn.answers import answer_log_odds
from manu_jax.types import BatchShape, Capture, ManuError

ACTIVATION = named_method("paper")
GRADIENT = named_method("gradient")


def assert_close(left, right, tolerance=3e-6):
    """Equal beyond float32 rounding of the forward pass; |z| next to τ may fall on either side."""
    assert left.count.value() == right.count.value()
    for tower in left.towers:
        for moment in MOMENTS[:3]:
            a, b = (getattr(s, moment)[tower].value() for s in (left, right))
            scale = max(np.abs(a).max(), 1e-3)
            np.testing.assert_allclose(a, b, atol=tolerance * scale)
        above = left.above[tower].value() - right.above[tower].value()
        assert np.abs(above).max() <= 1
        assert (above != 0).mean() < 0.02


@pytest.mark.parametrize(
    ("preset", "modality"),
    [(ACTIVATION, "image"), (GRADIENT, "text")],
    ids=["activation", "gradient"],
)
def test_statistics_are_those_of_the_samples_one_by_one(preset, modality):
    loaded, samples = tiny.loaded(), tiny.samples(modality)
    total = collect(loaded, samples, preset, modality=modality, batch_size=4)
    assert total.count.value() == 6
    assert set(total.towers) == ({"text", "vision"} if modality == "image" else {"text"})

    @jax.jit
    def capture(batch):
        if preset is ACTIVATION:
            return loaded.model(batch, capture=Capture()).activations
        return per_example_gradients(loaded.model, batch, total.towers)[0]

    length = max(loaded.encode(sample).num_tokens for sample in samples)
    rows = [capture(loaded.collate([loaded.encode(s)], BatchShape(length=length))) for s in samples]
    for tower in total.towers:
        z = np.concatenate([np.asarray(row[tower], np.float64) for row in rows], axis=1)
        for moment, terms in (("absolute", np.abs(z)), ("signed", z), ("squared", z**2)):
            found = getattr(total, moment)[tower].value()
            # float32 forward passes of other batch shapes, relative to the largest sum
            scale = np.abs(terms).sum(axis=1).max()
            np.testing.assert_allclose(found, terms.sum(axis=1), atol=3e-6 * scale)


def test_statistics_do_not_depend_on_order_or_bucket():
    loaded, samples = tiny.loaded(), tiny.samples("text", 7)
    whole = collect(loaded, samples, ACTIVATION, modality="text", batch_size=4)
    mixed = collect(loaded, samples[::-1], ACTIVATION, modality="text", batch_size=4)
    assert_close(whole, mixed)
    lengths = [loaded.encode(sample).num_tokens for sample in samples]
    assert bucket_lengths(lengths) == (32, 96)  # both buckets were used


def test_parts_of_a_set_add_to_the_whole():
    loaded, samples = tiny.loaded(), tiny.samples("text")
    whole = collect(loaded, samples, ACTIVATION, modality="text", batch_size=4)
    parts = [
        collect(loaded, part, ACTIVATION, modality="text", batch_size=4)
        for part in (samples[:2], samples[2:])
    ]
    assert_close(parts[0] + parts[1], whole)


@pytest.mark.parametrize(
    ("preset", "sizes"),
    [
        (ACTIVATION, (2, 2, 2)),
        pytest.param(GRADIENT, (2, 2, 2), marks=pytest.mark.slow),
        pytest.param(ACTIVATION, (8, 1, 1), marks=pytest.mark.slow),
        pytest.param(ACTIVATION, (1, 2, 4), marks=pytest.mark.slow),
    ],
)
def test_a_mesh_gives_the_numbers_of_one_device(sizes, preset):
    loaded = tiny.on_mesh(parallel.make_mesh(*sizes))
    samples = tiny.samples("image")
    spread = collect(loaded, samples, preset, modality="image", batch_size=4)
    alone = collect(tiny.loaded(), samples, preset, modality="image", batch_size=4)
    assert_close(spread, alone, 1e-5)


@pytest.mark.parametrize(
    ("modality", "sizes"),
    [
        pytest.param("image", (8, 1, 1), marks=pytest.mark.slow),
        ("text", (2, 2, 2)),
        pytest.param("image", (2, 2, 2), marks=pytest.mark.slow),
        pytest.param("text", (8, 1, 1), marks=pytest.mark.slow),
    ],
)
def test_statistics_of_batches_keep_their_batch_on_any_mesh(sizes, modality, tmp_path):
    # Four samples and two make two statistics, whatever the mesh; a batch of eight would make one.
    preset, samples = named_method("official-code"), tiny.samples(modality)
    loaded = tiny.on_mesh(parallel.make_mesh(*sizes))
    settings = dict(modality=modality, batch_size=4)
    spread = collect(loaded, samples, preset, **settings, path=tmp_path / "s")
    alone = collect(tiny.loaded(), samples, preset, **settings)
    assert float(spread.num_current) == float(alone.num_current) == 2
    assert spread.means().keys() == alone.means().keys()
    for key, values in alone.means().items():
        # float32 sums over rows in another order; the share above τ is exact or next to τ
        np.testing.assert_allclose(spread.means()[key], values, rtol=2e-5, atol=1e-6)
    # So one device goes on with what a mesh has collected.
    again = collect(tiny.loaded(), samples, preset, **settings, path=tmp_path / "s")
    np.testing.assert_array_equal(again.num_current, spread.num_current)
    with pytest.raises(ManuError, match="differing: batch_size"):
        collect(
            tiny.loaded(), samples, preset, modality=modality, batch_size=6, path=tmp_path / "s"
        )


def test_sums_over_samples_are_read_again_whatever_the_batch(tmp_path, monkeypatch):
    loaded, samples = tiny.loaded(), tiny.samples("text")
    settings = dict(modality="text", path=tmp_path / "s.safetensors")
    first = collect(loaded, samples, ACTIVATION, batch_size=4, **settings)
    monkeypatch.setattr(collect_module, "add_batch", None)  # not called again
    again = collect(loaded, samples, ACTIVATION, batch_size=8, **settings)
    np.testing.assert_array_equal(first.signed["text"].high, again.signed["text"].high)


def test_the_scoring_step_gathers_no_activation():
    mesh = parallel.make_mesh(2, 1, 4)
    loaded = tiny.on_mesh(mesh)
    batch = parallel.put_batch(tiny.batch("image", batch_size=8), mesh)
    with jax.set_mesh(mesh):
        capture_step = collect_module.capture_step_of(loaded, ACTIVATION, "image")
        total = collect_module.zero(loaded, batch, capture_step)
        lowered = collect_module.add_batch.lower(
            total, loaded.model, batch, gates=None, capture_step=capture_step
        )
        text = lowered.compile().as_text()
    neurons = max(F for _, F in loaded.towers.values())
    gathers = [line for line in text.splitlines() if " all-gather(" in line]
    # With 8 rows over 2 and neurons over 4, no gathered array may end in all neurons of a layer.
    assert not [line for line in gathers if f",{neurons}]" in line.split("=")[1]]


def test_a_killed_collection_resumes_to_the_same_numbers(tmp_path, monkeypatch):
    loaded, samples = tiny.loaded(), tiny.samples("text")
    settings = dict(modality="text", batch_size=2, path=tmp_path / "s.safetensors", save_every=1)
    whole = collect(loaded, samples, ACTIVATION, **{**settings, "path": tmp_path / "whole"})

    steps, real_add = [], collect_module.add_batch

    def dying_add(*arguments, **keywords):
        if len(steps) == 2:
            raise KeyboardInterrupt
        steps.append(1)
        return real_add(*arguments, **keywords)

    monkeypatch.setattr(collect_module, "add_batch", dying_add)
    with pytest.raises(KeyboardInterrupt):
        collect(loaded, samples, ACTIVATION, **settings)
    assert not (tmp_path / "s.safetensors").exists()
    steps.clear()
    resumed = collect(loaded, samples, ACTIVATION, **settings)
    assert len(steps) == 1  # three batches, two of them done before
    for left, right in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(left, right)
    assert [file.name for file in tmp_path.glob("s.*")] == ["s.safetensors"]


def test_a_killed_collection_with_other_lengths_starts_over(tmp_path, monkeypatch):
    loaded, samples = tiny.loaded(), tiny.samples("text")
    settings = dict(modality="text", batch_size=2, path=tmp_path / "s.safetensors", save_every=1)
    steps, real_add = [], collect_module.add_batch

    def counted_add(*arguments, **keywords):
        if len(steps) == 2:
            raise KeyboardInterrupt
        steps.append(1)
        return real_add(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(collect_module, "add_batch", counted_add)
        with pytest.raises(KeyboardInterrupt):
            collect(loaded, samples, ACTIVATION, **settings)
    monkeypatch.setattr(batches, "MULTIPLE", 64)
    resumed = collect(loaded, samples, ACTIVATION, **settings)
    whole = collect(loaded, samples, ACTIVATION, **{**settings, "path": None})
    for left, right in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_file_is_read_again_and_one_of_another_make_is_an_error(tmp_path, monkeypatch):
    loaded, samples = tiny.loaded(), tiny.samples("text")
    settings = dict(modality="text", path=tmp_path / "s.safetensors")
    first = collect(loaded, samples, ACTIVATION, **settings)
    monkeypatch.setattr(collect_module, "add_batch", None)  # not called again
    again = collect(loaded, samples, ACTIVATION, **settings)
    np.testing.assert_array_equal(first.signed["text"].high, again.signed["text"].high)
    with pytest.raises(ManuError, match="samples"):
        collect(loaded, samples[1:], ACTIVATION, **settings)
    changed = loaded.replace_model(jax.tree.map(lambda x: x * 1.001, loaded.model))
    with pytest.raises(ManuError, match="differing: model"):
        collect(changed, samples, ACTIVATION, **settings)
    assert files.load(settings["path"])[1]["num_samples"] == 6


def test_facts_that_are_forgotten_fade_by_the_logistic_of_their_log_odds():
    loaded, samples = tiny.loaded(), tiny.samples("text")[:1]
    settings = dict(modality="text", batch_size=4)
    plain = collect(loaded, samples, GRADIENT, **settings).signed["text"].value()
    faded = collect(loaded, samples, GRADIENT, fade=2.0, **settings).signed["text"].value()
    batch = tiny.batch("text", 1)
    log_odds = float(answer_log_odds(jax.jit(loaded.model)(batch).logits_BTV, batch)[0])
    np.testing.assert_allclose(faded, plain / (1 + np.exp(-log_odds - 2)), rtol=1e-4, atol=1e-9)


def test_where_none_fades_the_statistics_are_those_without_a_fade_from_the_program_with_one():
    loaded, samples = tiny.loaded(), tiny.samples("text")
    settings = dict(modality="text", batch_size=4)
    assert GRADIENT.fade is not None
    collect(loaded, samples, GRADIENT, fade=GRADIENT.fade, **settings)
    count = collect_module.add_batch._cache_size()
    kept = collect(loaded, samples, GRADIENT, **settings)
    assert collect_module.add_batch._cache_size() == count
    without = GRADIENT.model_copy(update={"fade": None})
    same = collect(loaded, samples, without, **settings)
    assert collect_module.add_batch._cache_size() == count + 1
    jax.tree.map(np.testing.assert_array_equal, kept, same)


def test_position_statistics_have_the_rows_of_each_matrix():
    loaded = tiny.loaded()
    preset = named_method("official-code")
    rows = loaded.family.matrix_rows(loaded.config)
    for modality, tower in (("image", "vision"), ("text", "text")):
        samples = tiny.samples(modality)
        total = collect(loaded, samples, preset, modality=modality, batch_size=4)
        assert set(total.means()) == {key for key in rows if key.startswith(tower)}
        for key, values in total.means().items():
            assert values.shape == (rows[key][0], 4, rows[key][1])
    pooled = preset.model_copy(update={"layer_pooling": "all"})
    mixed = collect(loaded, samples, pooled, modality="text", batch_size=4).means()
    for key, values in total.means().items():
        assert (mixed[key] == mixed[key][:1]).all()
        # mean |z| of all layers together is the mean over layers; a deviation is not
        np.testing.assert_allclose(mixed[key][0, 0], values[:, 0].mean(0), rtol=1e-4)


def test_score_takes_facts_and_leaves_out_those_without_the_form():
    total = score(tiny.loaded(), tiny.facts(), "text", signal="gradient")
    assert isinstance(total, Statistics) and total.count.value() == 6
    with pytest.raises(ManuError, match="no samples"):
        score(tiny.loaded(), [], "image")


def test_a_tower_that_the_model_lacks_is_an_error():
    preset = StatisticsMethod(towers={"image": ("text", "connector"), "text": ("text",)})
    with pytest.raises(ManuError, match="no tower connector"):
        collect(tiny.loaded(), tiny.samples("image"), preset, modality="image")


def test_weights_that_are_not_finite_are_an_error_that_names_the_place():
    loaded = tiny.loaded()

    def spoil(path, leaf):
        is_up = path_name(path) == "text.layers.mlp.up_LDF"
        return leaf.at[1, 0, 3].set(np.nan) if is_up else leaf

    broken = loaded.replace_model(jax.tree_util.tree_map_with_path(spoil, loaded.model))
    with pytest.raises(ManuError, match='tower "text", layer 1: 1 values'):
        collect(broken, tiny.samples("text"), ACTIVATION, modality="text")


def test_an_unknown_form_or_signal_is_an_error():
    """Any other signal was taken for activations."""
    for settings, message in (
        ({"modality": "video"}, "modality: expected one of image, text, got 'video'"),
        ({"signal": "grad"}, "signal: expected one of activation, gradient, got 'grad'"),
    ):
        with pytest.raises(ManuError, match=message):
            score(tiny.loaded(), tiny.facts(1), **{"modality": "text", **settings})

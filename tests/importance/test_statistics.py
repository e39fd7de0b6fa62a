import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from manu_jax import parallel
from manu_jax.importance import statistics
from manu_jax.importance.statistics import MOMENTS, PositionStatistics, Statistics
from manu_jax.types import ManuError

TOWERS = {"text": (2, 6), "vision": (1, 4)}
add = jax.jit(Statistics.add)
add_position = jax.jit(PositionStatistics.add)


def random_values(seed, num_samples, scale=1.0):
    random = np.random.default_rng(seed)
    values = {
        tower: (random.normal(size=(layers, num_samples, neurons)) * scale).astype(np.float32)
        for tower, (layers, neurons) in TOWERS.items()
    }
    return values, random.integers(0, 3, num_samples).astype(np.float32)


def exact(values, weights_B, threshold=0.1):
    weights = weights_B.astype(np.float64)[None, :, None]
    result = {}
    for tower, z32 in values.items():
        z = z32.astype(np.float64)
        result[tower] = {
            "absolute": (weights * np.abs(z)).sum(1),
            "signed": (weights * z).sum(1),
            "squared": (weights * z * z).sum(1),
            "above": (weights * (np.abs(z32) > np.float32(threshold))).sum(1),
        }
    return result


def assert_close(left, right, relative):
    for moment in MOMENTS:
        for tower in left.towers:
            a, b = (getattr(s, moment)[tower].value() for s in (left, right))
            scale = left.absolute[tower].value().max() + left.squared[tower].value().max()
            np.testing.assert_allclose(a, b, rtol=relative, atol=relative * scale)
    assert left.count.value() == right.count.value()


def collect(values, weights_B, batch_sizes, zero=None):
    total, start = Statistics.zero(TOWERS) if zero is None else zero, 0
    for size in batch_sizes:
        part = {tower: z[:, start : start + size] for tower, z in values.items()}
        total = add(total, part, weights_B[start : start + size])
        start += size
    return total


def test_a_million_samples_lose_nothing_against_float64():
    # Adding 1e-3-sized terms to sums of 1e3 to 1e6 drops half of each term in plain float32.
    random = np.random.default_rng(0)
    z_BF = (random.normal(size=(2000, 8)) * 3 + 1.37).astype(np.float32)
    weights_B = np.ones(2000, np.float32)

    def step(total, _):
        def one(total, i):
            z_B = jax.lax.dynamic_slice_in_dim(z_BF, i, 1)
            return total.add({"text": z_B[None]}, jnp.ones(1)), None

        return jax.lax.scan(one, total, jnp.arange(2000))[0], None

    total = jax.jit(lambda s: jax.lax.scan(step, s, None, length=500)[0])(
        Statistics.zero({"text": (1, 8)})
    )
    assert total.count.value() == 1_000_000
    expected = exact({"text": z_BF[None]}, weights_B)["text"]
    for moment in ("absolute", "signed", "above"):
        value = getattr(total, moment)["text"].value()
        # A sum of terms that float32 holds exactly: 2⁻⁴⁴ relative per addition, at random.
        np.testing.assert_allclose(value, 500 * expected[moment], rtol=1e-10)
    # Each square is rounded to float32 before it is added: 6e-8, at random, over 2,000 values.
    np.testing.assert_allclose(total.squared["text"].value(), 500 * expected["squared"], rtol=6e-9)
    plain = np.float32(0)
    for _ in range(500):
        plain = np.cumsum(np.concatenate([[plain], np.abs(z_BF[:, 0])]), dtype=np.float32)[-1]
    assert abs(plain / (500 * expected["absolute"][0, 0]) - 1) > 1e-6  # what compensation saves


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    seed=strategies.integers(0, 2**31),
    cuts=strategies.lists(strategies.sampled_from([1, 3, 8]), min_size=1, max_size=5),
)
def test_statistics_do_not_depend_on_batch_size_or_order(seed, cuts):
    values, weights_B = random_values(seed, sum(cuts))
    whole = collect(values, weights_B, cuts)
    order = np.random.default_rng(seed).permutation(sum(cuts))
    shuffled = {tower: z[:, order] for tower, z in values.items()}
    single = collect(shuffled, weights_B[order], [1] * sum(cuts))
    # Within a batch at most 8 float32 terms are summed plainly: 8 · 6e-8.
    assert_close(whole, single, 5e-7)
    for tower, moments in exact(values, weights_B).items():
        np.testing.assert_allclose(whole.above[tower].value(), moments["above"], atol=0)
        np.testing.assert_allclose(whole.signed[tower].value(), moments["signed"], atol=1e-4)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(seed=strategies.integers(0, 2**31))
def test_parts_merge_by_addition_in_any_order(seed):
    values, weights_B = random_values(seed, 12)
    parts = [
        collect({t: z[:, i : i + 4] for t, z in values.items()}, weights_B[i : i + 4], [4])
        for i in (0, 4, 8)
    ]
    a, b, c = parts
    assert_close((a + b) + c, c + (a + b), 1e-13)
    assert_close((a + b) + c, a + (b + c), 1e-13)
    assert_close((a + b) + c, collect(values, weights_B, [4, 4, 4]), 1e-13)


def test_padding_examples_leave_no_trace_even_when_not_finite():
    values, weights_B = random_values(0, 8)
    weights_B[3:] = 0
    spoiled = {tower: z.copy() for tower, z in values.items()}
    for z in spoiled.values():
        z[:, 3:] = np.nan
    clean = collect(values, weights_B, [8])
    dirty = collect(spoiled, weights_B, [8])
    for left, right in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 2, 4)])
def test_a_mesh_gives_the_numbers_of_one_device_and_keeps_them_split(sizes):
    towers = {"text": (2, 8)}
    random = np.random.default_rng(0)
    values = {"text": random.normal(size=(2, 8, 8)).astype(np.float32)}
    weights_B = np.ones(8, np.float32)
    alone = add(Statistics.zero(towers), values, weights_B)
    mesh = parallel.make_mesh(*sizes)
    with jax.set_mesh(mesh):
        zero = jax.jit(lambda: Statistics.zero(towers))()
        spread = add(zero, values, weights_B)
    assert spread.absolute["text"].high.sharding.shard_shape((2, 8)) == (2, 8 // sizes[2])
    assert_close(alone, parallel.gather(spread), 5e-7)


def test_statistics_of_other_thresholds_or_towers_do_not_add():
    zero = Statistics.zero(TOWERS, 0.1)
    with pytest.raises(ManuError, match=r"thresholds 0\.1 and 0\.2"):
        zero + Statistics.zero(TOWERS, 0.2)
    with pytest.raises(ManuError, match="towers"):
        zero + Statistics.zero({"text": (2, 6)}, 0.1)


def test_files_round_trip_bit_for_bit(tmp_path):
    values, weights_B = random_values(0, 8)
    total = collect(values, weights_B, [4, 4])
    statistics.save(tmp_path / "s.safetensors", total, {"model": "abc", "samples": 8})
    loaded, made_from = statistics.load(tmp_path / "s.safetensors")
    assert made_from == {"model": "abc", "samples": 8}
    assert isinstance(loaded, Statistics) and loaded.threshold == total.threshold
    assert jax.tree.structure(loaded) == jax.tree.structure(total)
    for left, right in zip(jax.tree.leaves(total), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("damage", ["cut", "flip", "other", "missing"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, damage):
    path = tmp_path / "s.safetensors"
    values, weights_B = random_values(0, 4)
    statistics.save(path, collect(values, weights_B, [4]))
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        if damage == "cut":
            content = content[: len(content) // 2]
        elif damage == "flip":
            content[-3] ^= 1
        else:
            content = content.replace(b"manu_jax.statistics", b"manu_jax.statistocs")
        path.write_bytes(content)
    with pytest.raises(ManuError, match=r"s\.safetensors"):
        statistics.load(path)


def test_not_finite_statistics_are_an_error_that_names_tower_and_layer():
    values, _ = random_values(0, 4)
    values["text"][1, 2, 3] = np.inf
    total = collect(values, np.ones(4, np.float32), [4])
    with pytest.raises(ManuError, match='tower "text", layer 1: 1 values'):
        statistics.check_statistics(total, "statistics of forget")


def test_statistics_of_no_samples_are_an_error():
    with pytest.raises(ManuError, match="no samples"):
        statistics.check_statistics(Statistics.zero(TOWERS), "statistics of forget")


def position_batches(number):
    random = np.random.default_rng(0)
    return [{"text.up_proj": random.random((2, 4, 5)).astype(np.float32)} for _ in range(number)]


@pytest.mark.parametrize("number", [1, 10, 13, 20])
def test_position_statistics_average_chunks_of_ten_and_then_chunks(tmp_path, number):
    batches = position_batches(number)
    total = PositionStatistics.zero({"text.up_proj": (2, 4, 5)})
    for batch in batches:
        total = add_position(total, batch)
    stacked = np.stack([batch["text.up_proj"] for batch in batches]).astype(np.float64)
    chunks = [stacked[i : i + 10].mean(0) for i in range(0, number, 10)]
    np.testing.assert_allclose(total.means()["text.up_proj"], np.mean(chunks, 0), rtol=1e-6)
    statistics.save(tmp_path / "p", total)
    loaded, _ = statistics.load(tmp_path / "p")
    np.testing.assert_array_equal(loaded.means()["text.up_proj"], total.means()["text.up_proj"])
    doubled = total + total
    np.testing.assert_allclose(doubled.means()["text.up_proj"], total.means()["text.up_proj"])


def test_pooled_position_values_go_to_every_layer():
    total = PositionStatistics.zero({"text.up_proj": (3, 4, 5)})
    pooled = np.ones((1, 4, 5), np.float32)
    assert (add_position(total, {"text.up_proj": pooled}).means()["text.up_proj"] == 1).all()


def test_statistics_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Statistics.zero(TOWERS).threshold = 1.0  # pyright: ignore

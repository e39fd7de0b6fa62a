import time

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from manu_jax.config import Layers
from manu_jax.selection import count, rank, select
from manu_jax.types import ManuError

SCORES = {
    "text": np.array([[5.0, 1.0, 4.0, 2.0], [0.0, 9.0, 8.0, 7.0]]),
    "vision": np.array([[6.0, 3.0], [10.0, -1.0], [2.5, 2.5]]),
}


def sizes(mask):
    return {tower: int(values.sum()) for tower, values in mask.items()}


def test_all_takes_the_highest_of_every_tower():
    mask = select(SCORES, 0.3)  # 4 of 14: 10, 9, 8, 7
    assert sizes(mask) == {"text": 3, "vision": 1}
    assert mask["text"].tolist() == [[False] * 4, [False, True, True, True]]
    assert mask["vision"][1, 0]


def test_tower_and_layer_scopes_have_budgets_of_their_own():
    assert sizes(select(SCORES, 0.5, "tower")) == {"text": 4, "vision": 3}
    by_layer = select(SCORES, 0.5, "layer")
    assert by_layer["text"].sum(axis=1).tolist() == [2, 2]
    assert by_layer["vision"].sum(axis=1).tolist() == [1, 1, 1]


def test_rows_of_matrices_share_the_budget_of_their_tower():
    scores = {"text.up_proj": np.array([[1.0, 2.0]]), "text.down_proj": np.array([[3.0, 4.0]])}
    assert sizes(select(scores, 0.5, "tower")) == {"text.down_proj": 2, "text.up_proj": 0}
    assert sizes(select(scores, 0.5, "layer")) == {"text.down_proj": 2, "text.up_proj": 0}


def test_ties_go_to_the_lower_index_and_never_exceed_the_count():
    scores = {"text": np.ones((3, 10)), "vision": np.ones((2, 5))}
    mask = select(scores, 0.3)
    assert sizes(mask) == {"text": 12, "vision": 0}
    assert mask["text"].ravel()[:12].all()


def test_count_reads_alpha_as_the_decimal_it_prints_as():
    assert count(0.29, 100) == 29  # in binary floating point 0.29 · 100 is 28.999…
    assert count(0.05, 352_256) == 17_612


@pytest.mark.parametrize(
    "layers", [{"text": (1, None)}, {"text": Layers(first=1)}, {"text": (-1, None)}]
)
def test_only_the_layers_of_the_range_are_eligible(layers):
    mask = select(SCORES, 0.5, "tower", layers=layers)
    assert mask["text"].sum(axis=1).tolist() == [0, 2]
    assert sizes(mask)["vision"] == 3


@pytest.mark.parametrize("given", [(2, None), (0, 3), (1, 1), (-3, None)])
def test_a_layer_range_outside_the_model_is_an_error(given):
    with pytest.raises(ManuError, match='"text" has layers 0 to 1'):
        select(SCORES, 0.1, layers={"text": given})


def test_a_layer_range_of_an_unknown_tower_is_an_error():
    with pytest.raises(ManuError, match='tower "txet" is not scored'):
        select(SCORES, 0.1, layers={"txet": (0, 1)})


@pytest.mark.parametrize("alpha", [-0.1, 1.0, 1.5, float("nan"), "auto", None])
def test_alpha_outside_its_range_is_an_error(alpha):
    with pytest.raises(ManuError, match="alpha"):
        select(SCORES, alpha)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float16, jnp.bfloat16])
def test_numbers_of_any_type_are_chosen_alike(dtype):
    scores = np.array([[0, 3, 1], [127, 3, 2]])
    expected = select({"text": scores.astype(np.float64)}, 0.5)["text"]
    assert expected.tolist() == [[False, True, False], [True, True, False]]
    np.testing.assert_array_equal(select({"text": scores.astype(dtype)}, 0.5)["text"], expected)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "got none"),
        ({"text": np.zeros(5)}, r'"text" is an array \[5\] of float64'),
        ({"text": np.zeros((2, 3, 5))}, r'"text" is an array \[2, 3, 5\]'),
        ({"text": np.zeros((2, 3), bool)}, r'"text" is an array \[2, 3\] of bool'),
    ],
)
def test_scores_that_are_no_numbers_of_neurons_are_errors(scores, message):
    with pytest.raises(ManuError, match=f"scores: expected one array.*{message}"):
        select(scores, 0.1)


def test_alpha_of_zero_chooses_nothing():
    assert sizes(select(SCORES, 0)) == {"text": 0, "vision": 0}


def test_unknown_scope_and_nan_scores_are_errors():
    with pytest.raises(ManuError, match="scope"):
        select(SCORES, 0.1, "model")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ManuError, match='tower "text", layer 1'):
        select({"text": np.array([[0.0], [np.nan]])}, 0.5)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(
    seed=strategies.integers(0, 2**31),
    shapes=strategies.lists(
        strategies.tuples(strategies.integers(1, 4), strategies.integers(1, 9)),
        min_size=1,
        max_size=3,
    ),
    alphas=strategies.tuples(strategies.floats(0, 0.99), strategies.floats(0, 0.99)),
    scope=strategies.sampled_from(["all", "tower", "layer"]),
)
def test_masks_are_nested_in_alpha_and_counts_are_exact(seed, shapes, alphas, scope):
    random = np.random.default_rng(seed)
    scores = {
        f"tower{i}": random.integers(0, 4, shape).astype(np.float32)  # few values: many ties
        for i, shape in enumerate(shapes)
    }
    small, large = (select(scores, alpha, scope) for alpha in sorted(alphas))
    for tower, values in scores.items():
        assert not (small[tower] & ~large[tower]).any()
        kept, removed = values[~large[tower]], values[large[tower]]
        if scope == "tower" and kept.size and removed.size:
            assert removed.min() >= kept.max()
    total = {
        "all": [sum(v.size for v in scores.values())],
        "tower": [v.size for v in scores.values()],
        "layer": [v.shape[1] for v in scores.values() for _ in range(len(v))],
    }[scope]
    expected = sum(count(max(alphas), size) for size in total)
    assert sum(sizes(large).values()) == expected


def test_seven_billion_sizes_take_less_than_a_second():
    scores = {"text": np.random.default_rng(0).random((32, 11008), np.float32)}
    start = time.perf_counter()
    mask = select(scores, 0.05)
    assert time.perf_counter() - start < 1
    assert mask["text"].sum() == 17_612


def one_by_one(scores, alpha, scope, layers):
    """The choice, neuron by neuron: sorted by score, tower, layer and place."""
    groups = {}
    for tower in sorted(scores):
        first, end = layers.get(tower, (0, None))
        for layer in range(len(scores[tower]))[first:end]:
            for place, score in enumerate(scores[tower][layer]):
                name = {"all": "", "tower": tower, "layer": (tower, layer)}[scope]
                groups.setdefault(name, []).append((-score, tower, layer, place))
    mask = {tower: np.zeros(np.shape(values), bool) for tower, values in scores.items()}
    for group in groups.values():
        for _, tower, layer, place in sorted(group)[: count(alpha, len(group))]:
            mask[tower][layer, place] = True
    return mask


@pytest.mark.parametrize("scope", ["all", "tower", "layer"])
@pytest.mark.parametrize("layers", [{}, {"text": (1, None)}, {"vision": (-2, -1)}])
def test_one_ranking_gives_the_masks_of_every_alpha(scope, layers):
    random = np.random.default_rng(0)
    scores = {  # few values, so that many are equal
        "text": random.integers(0, 5, (3, 11)).astype(np.float32),
        "vision": random.integers(0, 5, (3, 7)).astype(np.float32),
    }
    ranking = rank(scores, scope, layers=layers)
    for alpha in (0, 0.05, 0.3, 0.5, 0.99):
        expected = one_by_one(scores, alpha, scope, layers)
        for found in (ranking.top(alpha), select(scores, alpha, scope, layers=layers)):
            assert set(found) == set(expected)
            for tower in found:
                np.testing.assert_array_equal(found[tower], expected[tower])
    with pytest.raises(ManuError, match="alpha"):
        ranking.top(1)

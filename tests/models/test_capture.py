"""The reductions of a capture: exact in narrow dtypes; in float32 the weighted sum, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava

from manu_jax.models.nn.capture import TowerCapture, reduce_tokens, text_weights
from manu_jax.models.nn.mlp import scaled
from manu_jax.types import Capture, ManuError

NUM_TOKENS = (601, 577, 331, 0)  # 1/n is exact in no binary dtype


def make_case(dtype):
    z_BTF = np.abs(np.random.default_rng(0).normal(size=(4, 601, 64)))
    valid_BT = np.arange(601) < np.array(NUM_TOKENS)[:, None]
    weights_BT = valid_BT.astype(np.float32) / np.maximum(np.array(NUM_TOKENS)[:, None], 1)
    capture = TowerCapture(Capture(), jnp.asarray(weights_BT, jnp.float32), jnp.ones((4, 1)))
    return jnp.asarray(z_BTF, dtype), capture, valid_BT


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_mean_over_tokens_is_exact_in_every_dtype(dtype):
    z_BTF, capture, valid_BT = make_case(dtype)
    found_BF = jax.jit(lambda z_BTF: reduce_tokens(z_BTF, capture))(z_BTF)
    sums_BF = np.einsum("BT,BTF->BF", valid_BT, np.asarray(z_BTF, np.float64))
    expected_BF = sums_BF / np.maximum(np.array(NUM_TOKENS)[:, None], 1)
    assert found_BF.dtype == jnp.float32
    # Rounding of 601 float32 additions; a weight rounded to bfloat16 is off by up to 4e-3.
    np.testing.assert_allclose(found_BF, expected_BF, rtol=2e-6)
    assert not np.asarray(found_BF)[3].any()


def test_in_float32_it_is_the_weighted_sum_bit_for_bit():
    z_BTF, capture, _ = make_case(jnp.float32)
    weighted = jax.jit(
        lambda z_BTF: jnp.einsum(
            "BT,BTF->BF", capture.weights_BT, z_BTF, preferred_element_type=jnp.float32
        )
    )
    found_BF = jax.jit(lambda z_BTF: reduce_tokens(z_BTF, capture))(z_BTF)
    np.testing.assert_array_equal(found_BF, weighted(z_BTF))


def test_no_copy_of_the_activations_in_float32_is_asked_for():
    z_BTF, capture, _ = make_case(jnp.bfloat16)
    jaxpr = jax.make_jaxpr(lambda z_BTF: reduce_tokens(z_BTF, capture))(z_BTF)
    outputs = [out.aval for equation in jaxpr.eqns for out in equation.outvars]
    made = [aval for aval in outputs if aval.dtype == jnp.float32]
    assert all(aval.size < z_BTF.size for aval in made)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_a_sum_over_tokens_leaves_the_neurons_where_they_lie_on_a_gpu(platform):
    """Also in the gradient of gates. Other platforms are asked for nothing."""
    z_BTF, capture, _ = make_case(jnp.bfloat16)
    gates_BF = jnp.ones((z_BTF.shape[0], z_BTF.shape[2]))

    def summed(z_BTF):
        return reduce_tokens(z_BTF, capture)

    def gradient(z_BTF):
        return jax.grad(lambda gates_BF: jnp.sum(scaled(z_BTF, gates_BF) ** 2))(gates_BF)

    for function in (summed, gradient):
        traced = jax.jit(function).trace(z_BTF)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("@LayoutConstraint" in text) == (platform == "cuda")


def test_at_answers_are_the_tokens_before_each_one_of_an_answer():
    batch = tiny_llava.batch("text", 3, padding_side="left")
    z_BTF = np.random.default_rng(0).normal(size=(*batch.token_ids_BT.shape, 5)).astype(np.float32)
    places = [np.flatnonzero(row > 0) - 1 for row in batch.loss_weights_BT]
    capture = text_weights(batch, Capture(reduction="size_at_answers"))
    expected_BF = [np.abs(z_TF[at]).mean(axis=0) for z_TF, at in zip(z_BTF, places, strict=True)]
    np.testing.assert_allclose(reduce_tokens(jnp.asarray(z_BTF), capture), expected_BF, rtol=1e-6)
    capture = text_weights(batch, Capture(reduction="at_answers"))
    found_BAF = np.asarray(reduce_tokens(jnp.asarray(z_BTF), capture))
    assert found_BAF.shape[1] == max(len(at) for at in places)
    for row_AF, z_TF, at in zip(found_BAF, z_BTF, places, strict=True):
        np.testing.assert_array_equal(row_AF[: len(at)], z_TF[at])


def test_an_unknown_reduction_or_pooling_is_an_error():
    """It was taken for the mean over tokens."""
    for settings, message in (
        ({"reduction": "median"}, "reduction: expected one of mean, square, .*got 'median'"),
        ({"layer_pooling": "some"}, "layer_pooling: expected one of none, all, got 'some'"),
    ):
        with pytest.raises(ManuError, match=message):
            Capture(**settings)

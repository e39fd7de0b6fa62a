"""What the backward pass gets of a layer with `remat: dots`, and what is asked of a compiler."""

import jax
import jax.numpy as jnp
import pytest

from manu_jax.models.nn.layers import REMATS, project


def of_layers(remat):
    def layer(x_BTD, weight_DD):
        return jnp.tanh(project(jnp.tanh(project(x_BTD, weight_DD)), weight_DD)), None

    def loss(x_BTD, weight_LDD):
        return jnp.sum(jax.lax.scan(remat(layer), x_BTD, weight_LDD)[0])

    return loss


def made(remat, function=jax.grad):
    return jax.jit(function(of_layers(remat))).trace(jnp.ones((2, 3, 4)), jnp.ones((5, 4, 4)))


def test_dots_keep_each_product():
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    plain = made(lambda body: jax.checkpoint(body, prevent_cse=False, policy=policy))
    counts = [str(one.jaxpr).count("dot_general[") for one in (made(REMATS["dots"]), plain)]
    assert counts[0] == counts[1] < str(made(REMATS["all"]).jaxpr).count("dot_general[")


@pytest.mark.parametrize("remat", REMATS)
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_a_kept_product_is_made_once_on_a_gpu(platform, remat):
    """Other platforms and what keeps no products are asked for nothing."""
    text = made(REMATS[remat]).lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in text) == (platform == "cuda" and remat == "dots")

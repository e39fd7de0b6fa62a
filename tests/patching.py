"""Activation patching one layer at a time: up to it, patched, and on from there."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.models.nn.patched import patched_after_each_layer

# Other programs, other orders of sums
CLOSE = {"atol": 2e-5, "rtol": 0}


@jax.jit
def after_each_layer(model, source, batch):
    """Return the model's logits at the answers [B, A, V], and patched after each layer [L, …]."""
    at_BA = batch.answer_index_BA
    return patched_after_each_layer(
        model, source, batch, at_BA=at_BA, measure=lambda logits_BAV: logits_BAV
    )


@functools.partial(jax.jit, static_argnames="number")
def after_layer(model, source, batch, number):
    """Return the logits at the answers, patched after the first `number` layers. [B, A, V]."""
    at_BA1 = jnp.asarray(batch.answer_index_BA)[..., None]
    h_BTD, theirs_BTD = (
        one.hidden(batch, num_layers=number, remat="none") for one in (model, source)
    )
    is_answer_BT = (jnp.arange(h_BTD.shape[1])[None, None] == at_BA1).any(axis=1)
    patched_BTD = jnp.where(is_answer_BT[..., None], theirs_BTD, h_BTD)
    if number == model.config.text.num_layers:
        return model.text.logits_of_stream(jnp.take_along_axis(patched_BTD, at_BA1, axis=1))
    given = dataclasses.replace(batch, entering_BTD=patched_BTD)
    return model.answers(given, first_layer=number, remat="none")[0]


def check(model, source, batch):
    """Both ways agree after every layer, and by itself a model is not changed; return the first."""
    own_BAV, of_layers_LBAV = after_each_layer(model, source, batch)
    assert len(of_layers_LBAV) == model.config.text.num_layers
    for number, found_BAV in enumerate(of_layers_LBAV, start=1):
        np.testing.assert_allclose(found_BAV, after_layer(model, source, batch, number), **CLOSE)
    same_BAV, by_itself_LBAV = after_each_layer(model, model, batch)
    np.testing.assert_allclose(same_BAV, own_BAV, **CLOSE)
    for found_BAV in by_itself_LBAV:
        np.testing.assert_allclose(found_BAV, own_BAV, **CLOSE)
    return own_BAV, of_layers_LBAV

"""Our logits and tokens beside those of `transformers`."""

import functools

import jax
import numpy as np
import torch

# Asked of every family; the differences are of the order of 1e-6 to 1e-5.
TOLERANCE = 1e-4


@functools.partial(jax.jit, static_argnames="capture")
def forward(model, batch, gates=None, capture=None):
    """Run a model; shared by the tests, so that one shape of batch is compiled once."""
    return model(batch, gates, capture)


def check_logits(reference, inputs, output, batch):
    with torch.no_grad():
        expected = reference(**inputs).logits.numpy()
    mask_BT = batch.attention_mask_BT
    assert np.abs(expected[mask_BT]).max() > 1  # not a model that says nothing
    np.testing.assert_allclose(
        np.asarray(output.logits_BTV)[mask_BT], expected[mask_BT], atol=TOLERANCE, rtol=0
    )


def greedy(model, batch, steps):
    length = batch.token_ids_BT.shape[1]
    logits_BV, cache = jax.jit(lambda m, b: m.prefill(b, length + steps))(model, batch)
    decode = jax.jit(lambda model, token_ids_B, cache: model.decode(token_ids_B, cache))
    tokens, logits = [], []
    for _ in range(steps):
        logits.append(np.asarray(logits_BV))
        tokens.append(logits[-1].argmax(axis=-1).astype(np.int32))
        logits_BV, cache = decode(model, tokens[-1], cache)
    return np.stack(tokens, axis=1), logits

"""What a Capture measures in one MLP: a number per sample and neuron, or the position statistic.

The weights of a tower's tokens are made once (`text_weights`, `image_weights`). Each MLP reduces
its activations with them on the spot, so that no layer's activations outlive the layer.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.models.nn.answers import targets_of
from manu_jax.models.nn.layers import in_rows
from manu_jax.types import Array, Batch, Capture

MEDIAN_OF = 64  # neurons of a layer, whose median stands for that of all


@dataclasses.dataclass(frozen=True)
class TokenCapture(Capture):
    """z of some neurons at every token; `reduction` is "tokens".

    neurons: (tower, numbers of neurons) pairs; every layer of the tower keeps these.
    """

    reduction: Literal["tokens"] = "tokens"
    neurons: tuple[tuple[str, tuple[int, ...]], ...] = ()


class TowerCapture(NamedTuple):
    """A capture with the weights of one tower's tokens.

    weights_BT float32: of the per-sample reductions; they sum to 1, or to 0 without tokens; for
        "max" they are 1 at valid tokens.
    rows_BI float32: 0 or 1, of each row of "position": the T tokens of an example are I rows, one
        after the other.
    index_BA: the tokens that "at_answers" takes; None: the tower has none of the answer's.
    kept: the numbers of the neurons that "tokens" keeps.
    """

    spec: Capture
    weights_BT: jax.Array
    rows_BI: jax.Array
    index_BA: Array | None = None
    kept: tuple[int, ...] = ()


class Moments(NamedTuple):
    """Sums over rows at each position: count, Σ|z|, how many above τ, mean, Σ(z − mean)²."""

    num_rows: jax.Array
    absolute_TF: jax.Array
    above_TF: jax.Array
    mean_TF: jax.Array
    squares_TF: jax.Array


def text_weights(batch: Batch, capture: Capture) -> TowerCapture:
    """Return the weights of a text tower's tokens: the valid, the answer's, or the last valid."""
    valid_BT = jnp.asarray(batch.attention_mask_BT, jnp.float32)
    rows_B1 = jnp.asarray(batch.example_weights_B > 0, jnp.float32)[:, None]
    if capture.reduction == "last":
        num_tokens = valid_BT.shape[1]
        last_B1 = num_tokens - 1 - jnp.argmax(valid_BT[:, ::-1], axis=1, keepdims=True)
        valid_BT = valid_BT * (jnp.arange(num_tokens)[None] == last_B1)
    elif capture.reduction == "answer":
        # The token that carries loss is the answer's own; it was predicted one position earlier.
        valid_BT = valid_BT * (batch.loss_weights_BT > 0)
    elif capture.reduction == "size_at_answers":
        valid_BT = valid_BT * (targets_of(batch).weights_BT > 0)
    index_BA = batch.answer_index_BA if capture.reduction == "at_answers" else None
    assert (index_BA is None) == (capture.reduction != "at_answers"), "no answer positions"
    return TowerCapture(capture, _normalised(valid_BT, capture), rows_B1, index_BA)


def image_weights(batch: Batch, capture: Capture, is_token_BIP: Array) -> TowerCapture:
    """Return the weights of an image tower's tokens: those of all images of the example.

    is_token_BIP: False at the padding within a vision input. "answer" and "last" mean nothing for
    an image; they are the mean over its tokens, like "mean".
    """
    assert batch.images is not None
    images_BI = jnp.asarray(batch.images.mask_BI, jnp.float32)
    valid_BT = (images_BI[..., None] * is_token_BIP).reshape(len(images_BI), -1)
    rows_BI = images_BI * (batch.example_weights_B > 0)[:, None]
    return TowerCapture(capture, _normalised(valid_BT, capture), rows_BI)


def reduce_tokens(z_BTF: jax.Array, capture: TowerCapture) -> jax.Array:
    """Return one number per sample and neuron. [B, F] float32; of "at_answers" [B, A, F], of
    "tokens" what `at_tokens` gives.

    In a narrow dtype the tokens are summed first, in float32, since 1 / their number is not exact
    in it; z is not copied to float32.
    """
    if capture.index_BA is not None:
        index_BA1 = jnp.asarray(capture.index_BA)[..., None]
        return jnp.take_along_axis(z_BTF, index_BA1, axis=1).astype(jnp.float32)
    if capture.spec.reduction == "tokens":
        return at_tokens(z_BTF, capture)
    z_BTF = in_rows(z_BTF)
    if capture.spec.reduction == "size_at_answers":
        z_BTF = jnp.abs(z_BTF)
    if capture.spec.reduction == "max":
        z_BTF = z_BTF.astype(jnp.float32) * capture.weights_BT[..., None]
        highest_BF, lowest_BF = z_BTF.max(axis=1), z_BTF.min(axis=1)
        return jnp.where(highest_BF >= -lowest_BF, highest_BF, lowest_BF)
    if capture.spec.reduction == "square":
        return jnp.einsum("BT,BTF->BF", capture.weights_BT, jnp.square(z_BTF.astype(jnp.float32)))
    weights_BT = capture.weights_BT
    if z_BTF.dtype == jnp.float32:
        return jnp.einsum("BT,BTF->BF", weights_BT, z_BTF)
    # All tokens that count have the same weight.
    sums_BF = jax.lax.platform_dependent(
        z_BTF, weights_BT > 0, cpu=_sums_by_product, default=_sums_in_place
    )
    return sums_BF * weights_BT.max(axis=1, keepdims=True)


def _sums_by_product(z_BTF: jax.Array, is_counted_BT: jax.Array) -> jax.Array:
    weights_BT = is_counted_BT.astype(z_BTF.dtype)
    return jnp.einsum("BT,BTF->BF", weights_BT, z_BTF, preferred_element_type=jnp.float32)


def _sums_in_place(z_BTF: jax.Array, is_counted_BT: jax.Array) -> jax.Array:
    """Return the sums as part of what makes z: the compiler reads nothing again for them.

    After a product it makes z once for the product and once for the layer below.
    """
    return jnp.sum(z_BTF, axis=1, dtype=jnp.float32, where=is_counted_BT[..., None])


def at_tokens(z_BTF: jax.Array, capture: TowerCapture) -> jax.Array:
    """Return z of the kept neurons at every token, and two numbers of the token. [B, T, F + 2].

    The two come last: the median of |z| over MEDIAN_OF neurons of the layer, spread evenly (all of
    a narrower one), and 1 at valid tokens, 0 elsewhere. F: kept neurons. float32.
    """
    kept_BTF = z_BTF[..., np.asarray(capture.kept, np.int32)].astype(jnp.float32)
    step = -(-z_BTF.shape[-1] // MEDIAN_OF)
    size_BTF = jnp.abs(z_BTF[..., ::step].astype(jnp.float32))
    median_BT1 = jnp.median(size_BTF, axis=-1, keepdims=True)
    valid_BT1 = (capture.weights_BT > 0).astype(jnp.float32)[..., None]
    return jnp.concatenate([kept_BTF, median_BT1, valid_BT1], axis=-1)


def position_moments(z_BTF: jax.Array, capture: TowerCapture) -> Moments:
    """Return the sums over the batch's rows at each token position, padding tokens included."""
    num_rows = capture.rows_BI.size
    weights_B = capture.rows_BI.reshape(num_rows)
    z_BTF = z_BTF.reshape(num_rows, -1, z_BTF.shape[-1]).astype(jnp.float32)
    z_BTF = jnp.clip(z_BTF, -capture.spec.clamp, capture.spec.clamp)
    size_BTF = jnp.abs(z_BTF)
    total = weights_B.sum()
    above_BTF = (size_BTF > capture.spec.threshold).astype(jnp.float32)
    mean_TF = jnp.einsum("B,BTF->TF", weights_B, z_BTF) / jnp.maximum(total, 1)
    return Moments(
        total,
        jnp.einsum("B,BTF->TF", weights_B, size_BTF),
        jnp.einsum("B,BTF->TF", weights_B, above_BTF),
        mean_TF,
        jnp.einsum("B,BTF->TF", weights_B, jnp.square(z_BTF - mean_TF[None])),
    )


def add_moments(a: Moments, b: Moments) -> Moments:
    """Return the moments of the rows of both (Chan's update: no difference of large sums)."""
    total = a.num_rows + b.num_rows
    share = b.num_rows / jnp.maximum(total, 1)
    difference_TF = b.mean_TF - a.mean_TF
    return Moments(
        total,
        a.absolute_TF + b.absolute_TF,
        a.above_TF + b.above_TF,
        a.mean_TF + difference_TF * share,
        a.squares_TF + b.squares_TF + jnp.square(difference_TF) * (a.num_rows * share),
    )


def position_statistic(moments: Moments) -> jax.Array:
    """Return mean |z|, share above τ, unbiased deviation and root mean square. [4, F].

    Each is taken over the rows at one position and then averaged over the positions; one row alone
    has deviation 0.
    """
    rows = jnp.maximum(moments.num_rows, 1)
    spread_TF = jnp.sqrt(moments.squares_TF / jnp.maximum(moments.num_rows - 1, 1))
    energy_TF = moments.squares_TF / rows + jnp.square(moments.mean_TF)
    columns = (moments.absolute_TF / rows, moments.above_TF / rows, spread_TF, jnp.sqrt(energy_TF))
    return jnp.stack([column_TF.mean(axis=0) for column_TF in columns])


def _normalised(valid_BT: jax.Array, capture: Capture) -> jax.Array:
    """Return the weights of a mean over the valid tokens; for "max" as they are."""
    if capture.reduction == "max":
        return valid_BT
    return valid_BT / jnp.maximum(valid_BT.sum(axis=1, keepdims=True), 1)

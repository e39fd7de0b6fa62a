"""The losses of `suppress` and `erase`: forget like a model that never knew.

    F(θ) = mean over facts of Σ over answer tokens
               [KL(p̄ ‖ q) + β · max(0, log q(true) − log p̄(true))
                + β′ · max(0, log p̄(true) − log q(true))]
           + γ · Σ over layers ‖Δh − Δh of a stranger‖² / ‖Δh of a stranger‖²
    K(θ) = mean over kept facts of Σ over answer tokens KL(vanilla ‖ q)
           + κ · Σ over layers ‖h − h of vanilla‖² / max(‖Δh of a stranger‖², ‖h of vanilla‖² / 100)
    T(θ) = mean over the tokens of general texts of KL(vanilla ‖ q)
    L(θ) = F(θ) + w · (K(θ) + v · T(θ)) + μ · F(θ + δ)

F and K are summed over both forms. p̄: what vanilla says of strangers (strangers_target.py). Δh: how
a layer changes the residual stream, from the first token on that tells who is meant; after the last
layer, at the answer's positions. A kept token whose stream is far longer than what a layer changes,
as the first one's in large models (an attention sink), counts by its own length. δ: some steps of
relearning a part of the true facts by the sign of the gradient; F(θ + δ) is asked about the others,
without β′, and no gradient passes through δ. So a model is trained until what was forgotten does
not come back along with its neighbours.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax.leaves import path_name
from manu_jax.models.nn.answers import answer_cross_entropy, targets_at_answers
from manu_jax.models.nn.layers import Remat
from manu_jax.training.objectives import kl_from, mean_of_examples
from manu_jax.training.strangers_target import (
    StrangerTarget,
    excess,
    shortfall,
    target_kl,
    weights_of,
)
from manu_jax.types import Array, Batch

SMALLEST = 1e-9
RELEARNED = "text.layers."  # the leaves that relearning changes
OWN_LENGTH = 0.01  # the part of a kept token's own squared length that its distance is at least of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ForgetRows:
    """Facts to forget in one form. strangers: the same facts put to strangers, row by row, or None.

    differs_BT float32: 1 where a token and the stranger's are to have the same effect; a row of 0
    has no stranger.
    """

    batch: Batch
    target: StrangerTarget
    strangers: Batch | None = None
    differs_BT: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FormRows:
    """One step's facts in one form.

    relearned: what relearning is trained on, step after step in equal parts, and asked: what F is
    asked about after it; None without relearning.
    """

    forget: ForgetRows
    keep: Batch
    relearned: Batch | None = None
    asked: ForgetRows | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StrangerData:
    """One step's facts by their form, and what the loss needs besides.

    reference: vanilla. settings: excess β, shortfall β′, hidden γ, keep_hidden κ, relearn μ.
    keep_weight: w. relearn_steps int32, relearn_rate float32: of this step's relearning. parts:
    into how many equal parts `relearned` falls, at most as many steps. first_layer: the decoder's
    layers below it are vanilla's, and what enters it is in the batches of facts. texts: general
    texts to keep, or None; texts_weight: v.
    """

    forms: Mapping[str, FormRows]
    reference: Any
    settings: Mapping[str, jax.Array]
    keep_weight: jax.Array
    relearn_steps: jax.Array
    relearn_rate: jax.Array
    texts: Batch | None = None
    texts_weight: jax.Array | None = None
    parts: int = dataclasses.field(default=1, metadata={"static": True})
    first_layer: int = dataclasses.field(default=0, metadata={"static": True})


def like_a_stranger(model: Any, data: StrangerData, remat: Remat) -> jax.Array:
    """Return L(θ), see the module. A scalar float32."""
    reference = jax.lax.stop_gradient(data.reference)
    total = jnp.float32(0)
    for rows in data.forms.values():
        forgetting, scale = forget_loss(model, rows.forget, data, reference=reference, remat=remat)
        kept = keep_loss(model, rows.keep, data, reference=reference, scale=scale, remat=remat)
        total += forgetting + data.keep_weight * kept
    if data.texts is not None and data.texts_weight is not None:
        kept = kl_from(reference, model, data.texts, remat=remat)
        total += data.keep_weight * data.texts_weight * kept
    asked = [rows.asked for rows in data.forms.values() if rows.asked is not None]
    if asked:
        shifted = relearned(model, data, remat)
        for rows in asked:
            found, _ = forget_loss(
                shifted, rows, data, reference=reference, remat=remat, relearned=True
            )
            total += data.settings["relearn"] * found
    return total


def forget_loss(
    model: Any,
    rows: ForgetRows,
    data: StrangerData,
    *,
    reference: Any,
    remat: Remat,
    relearned: bool = False,
) -> tuple[jax.Array, list[jax.Array]]:
    """Return F of these rows, and the mean ‖Δh‖² of strangers after each layer ([] without).

    relearned: the model is at θ + δ, where β′ is 0.
    """
    logits_BAV, stream_LBTD, last_BAD = model.answers(
        rows.batch, first_layer=data.first_layer, remat=remat
    )
    targets = targets_at_answers(rows.batch)
    log_q_BAV = jax.nn.log_softmax(logits_BAV.astype(jnp.float32))
    values_BA = target_kl(log_q_BAV, rows.target)
    values_BA += data.settings["excess"] * excess(log_q_BAV, targets.token_ids_BT, rows.target)
    if not relearned:
        lacking_BA = shortfall(log_q_BAV, targets.token_ids_BT, rows.target)
        values_BA += data.settings["shortfall"] * lacking_BA
    loss = mean_of_examples((values_BA * targets.weights_BT).sum(axis=1), rows.batch)
    if rows.strangers is None or rows.differs_BT is None:
        return loss, []
    _, theirs_LBTD, their_last_BAD = reference.answers(
        rows.strangers, first_layer=data.first_layer, remat=remat
    )
    weights_BT = rows.differs_BT * rows.batch.example_weights_B[:, None]
    # A row that no stranger stands beside has other answer tokens at these positions.
    weights_BA = weights_of(targets) * jnp.asarray(rows.differs_BT).max(axis=1)[:, None]
    scale = [
        *_mean_squares(theirs_LBTD, weights_BT),
        _mean_square(their_last_BAD, weights_BA),
    ]
    distances = [
        *_mean_squares(stream_LBTD - theirs_LBTD, weights_BT),
        _mean_square(last_BAD - their_last_BAD, weights_BA),
    ]
    pairs = zip(distances, scale, strict=True)
    # Where no row counts, both are 0.
    hidden = sum(d / jnp.maximum(s, SMALLEST) for d, s in pairs)
    return loss + data.settings["hidden"] * hidden, scale


def keep_loss(
    model: Any,
    batch: Batch,
    data: StrangerData,
    *,
    reference: Any,
    scale: list[jax.Array],
    remat: Remat,
) -> jax.Array:
    """Return K of a batch. scale: what the squares of each layer are divided by; []: no squares."""
    logits_BAV, stream_LBTD, last_BAD = model.answers(
        batch, first_layer=data.first_layer, remat=remat
    )
    theirs_BAV, theirs_LBTD, their_last_BAD = reference.answers(
        batch, first_layer=data.first_layer, remat=remat
    )
    targets = targets_at_answers(batch)
    log_p_BAV, log_q_BAV = (
        jax.nn.log_softmax(values.astype(jnp.float32)) for values in (theirs_BAV, logits_BAV)
    )
    kl_BA = (jnp.exp(log_p_BAV) * (log_p_BAV - log_q_BAV)).sum(axis=-1)
    loss = mean_of_examples((kl_BA * targets.weights_BT).sum(axis=1), batch)
    if not scale:
        return loss
    weights_BT = batch.attention_mask_BT * batch.example_weights_B[:, None]
    pairs = [
        *(
            (ours, theirs, weights_BT)
            for ours, theirs in zip(stream_LBTD, theirs_LBTD, strict=True)
        ),
        (last_BAD, their_last_BAD, weights_of(targets)),
    ]
    distances = [
        _distance(ours, theirs, weights, scale=s)
        for (ours, theirs, weights), s in zip(pairs, scale, strict=True)
    ]
    return loss + data.settings["keep_hidden"] * sum(distances)


def relearned(model: Any, data: StrangerData, remat: Remat) -> Any:
    """Return the model at θ + δ: after steps of relearning, by the sign of the gradient of CE.

    The steps go through the equal parts of `relearned` in turn. The gradient with respect to the
    result is that with respect to `model`.
    """
    start = jax.lax.stop_gradient(model)
    batches = [rows.relearned for rows in data.forms.values() if rows.relearned is not None]
    # Row r is of part r % parts, so that each device has rows of every part.
    parted = jax.tree.map(lambda values: _parts_of(values, data.parts), batches)

    def loss_of(model: Any, part: Any) -> jax.Array:
        total = jnp.float32(0)
        for batch in part:
            logits_BAV, _, _ = model.answers(batch, remat=remat)
            total += answer_cross_entropy(logits_BAV, targets_at_answers(batch))
        return total

    def step(number: jax.Array, model: Any) -> Any:
        part = jax.tree.map(lambda values: values[number], parted)
        gradient = jax.grad(loss_of)(model, part)
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf, g: (
                leaf - (data.relearn_rate * jnp.sign(g)).astype(leaf.dtype)
                if path_name(path).startswith(RELEARNED)
                else leaf
            ),
            model,
            gradient,
        )

    end = jax.lax.fori_loop(0, data.relearn_steps, step, start)
    return jax.tree.map(
        lambda leaf, first, last: leaf + jax.lax.stop_gradient(last - first), model, start, end
    )


def _parts_of(values: Array, parts: int) -> jax.Array:
    """Return the rows [B, …] as equal parts [parts, B / parts, …]; what is left over goes."""
    each = len(values) // parts
    rows = jnp.asarray(values)[: each * parts]
    return jnp.moveaxis(rows.reshape(each, parts, *rows.shape[1:]), 1, 0)


def _mean_squares(values_LBTD: jax.Array, weights_BT: Array) -> list[jax.Array]:
    return [_mean_square(values_BTD, weights_BT) for values_BTD in values_LBTD]


def _distance(
    ours_BTD: jax.Array, theirs_BTD: jax.Array, weights_BT: Array, *, scale: jax.Array
) -> jax.Array:
    """Return the weighted mean over tokens of ‖ours − theirs‖² over the larger of two lengths.

    These are `scale` and a part of the token's own squared length. A scalar float32.
    """
    squares_BT, own_BT = (
        jnp.square(values.astype(jnp.float32)).sum(axis=-1)
        for values in (ours_BTD - theirs_BTD, theirs_BTD)
    )
    # A factor, exactly 1 for most tokens.
    shares_BT = scale / jnp.maximum(scale, OWN_LENGTH * own_BT)
    mean = (squares_BT * shares_BT * weights_BT).sum() / jnp.maximum(weights_BT.sum(), SMALLEST)
    return mean / jnp.maximum(scale, SMALLEST)  # 0 where no token counts


def _mean_square(values_BTD: jax.Array, weights_BT: Array) -> jax.Array:
    """Return the weighted mean over tokens of the squared length. A scalar float32."""
    squares_BT = jnp.square(values_BTD.astype(jnp.float32)).sum(axis=-1)
    return (squares_BT * weights_BT).sum() / jnp.maximum(weights_BT.sum(), SMALLEST)

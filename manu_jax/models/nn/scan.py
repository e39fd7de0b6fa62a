"""One scan over a stack of layers: rematerialised, gated and captured."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax.models.nn.capture import add_moments, position_statistic
from manu_jax.models.nn.forward import TowerForward
from manu_jax.models.nn.layers import REMATS


def scan_layers(
    body: Callable[..., tuple[jax.Array, Any, Any]],
    h_BTD: jax.Array,
    layers: Any,
    *,
    forward: TowerForward,
    extra: Any = None,
) -> tuple[jax.Array, Any, Any]:
    """Run `body(h, layer, gate, extra_of_layer) -> (h, captured, kept)` over the stacked `layers`.

    forward: its gates are scanned, a layer's each; the body passes its capture to the MLP. extra: a
    pytree with leading L. Returns h after the last layer, what was captured, and `kept` stacked
    over L. Captured: None, [L, B, F], or {matrix: [L or 1, 4, output rows]}.
    """
    capture, per_layer = forward.capture, (layers, forward.gates, extra)
    by_position = capture is not None and capture.spec.reduction == "position"
    moments = None
    if capture is not None and by_position and capture.spec.layer_pooling == "all":
        of_first = jax.eval_shape(
            lambda h_BTD, xs: body(h_BTD, *jax.tree.map(lambda x: x[0], xs))[1], h_BTD, per_layer
        )
        moments = jax.tree.map(lambda sums: jnp.zeros(sums.shape, sums.dtype), of_first)

    def step(carry: tuple[jax.Array, Any], xs: tuple[Any, Any, Any]):
        h_BTD, moments = carry
        h_BTD, captured, kept = body(h_BTD, *xs)
        if moments is not None:
            moments = {name: add_moments(moments[name], captured[name]) for name in moments}
            captured = None
        elif by_position:
            captured = {name: position_statistic(value) for name, value in captured.items()}
        return (h_BTD, moments), (captured, kept)

    (h_BTD, moments), (captured, kept) = jax.lax.scan(
        REMATS[forward.remat](step), (h_BTD, moments), per_layer
    )
    if moments is not None:
        captured = {name: position_statistic(value)[None] for name, value in moments.items()}
    return h_BTD, captured, kept

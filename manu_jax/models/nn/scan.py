"""One scan over a stack of layers: rematerialised, gated and measured."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax

from manu_jax.models.nn.capture import TowerCapture, add_moments, position_statistic, zero_moments
from manu_jax.models.nn.layers import REMATS, Remat
from manu_jax.types import Array


def scan_layers(
    body: Callable[..., tuple[jax.Array, Any, Any]],
    h_BTD: jax.Array,
    layers: Any,
    *,
    gates: Array | None = None,
    extra: Any = None,
    capture: TowerCapture | None = None,
    matrices: Mapping[str, int] = MappingProxyType({}),
    remat: Remat = "all",
) -> tuple[jax.Array, Any, Any]:
    """Run `body(layer, h, gate, extra_of_layer) -> (h, measured, kept)` over the stacked `layers`.

    gates: [L, F] or [L, B, F]. extra: pytree with leading L. matrices: rows of each measured matrix
    ("position" only). Returns h after the last layer, what was measured, and `kept` stacked over L.
    Measured: None, [L, B, F], or {matrix: [L or 1, 4, rows]}.
    """
    by_position = capture is not None and capture.spec.reduction == "position"
    moments = None
    if capture is not None and by_position and capture.spec.layer_pooling == "all":
        positions = h_BTD.shape[1] // capture.rows_BI.shape[1]
        moments = {name: zero_moments(positions, rows) for name, rows in matrices.items()}

    def step(carry, xs):
        h_BTD, moments = carry
        h_BTD, captured, kept = body(*xs[:1], h_BTD, *xs[1:])
        if moments is not None:
            moments = {name: add_moments(moments[name], captured[name]) for name in moments}
            captured = None
        elif by_position:
            captured = {name: position_statistic(value) for name, value in captured.items()}
        return (h_BTD, moments), (captured, kept)

    (h_BTD, moments), (captured, kept) = jax.lax.scan(
        REMATS[remat](step), (h_BTD, moments), (layers, gates, extra)
    )
    if moments is not None:
        captured = {name: position_statistic(value)[None] for name, value in moments.items()}
    return h_BTD, captured, kept

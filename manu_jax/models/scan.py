"""One scan over a stack of layers: rematerialised, gated and measured."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax

from manu_jax.models.layers import REMATS, Remat
from manu_jax.models.probe import Measure, add_moments, position_statistic, zero_moments
from manu_jax.types import Array


def scan_layers(
    body: Callable[..., tuple[jax.Array, Any, Any]],
    h_BTD: jax.Array,
    layers: Any,
    *,
    gates: Array | None = None,
    extra: Any = None,
    measure: Measure | None = None,
    matrices: Mapping[str, int] = MappingProxyType({}),
    remat: Remat = "all",
) -> tuple[jax.Array, Any, Any]:
    """Run `body(layer, h, gate, extra_of_layer) -> (h, measured, kept)` over the stacked `layers`.

    gates: [L, F] or [L, B, F]. extra: pytree with leading L. matrices: rows of each measured matrix
    ("position" only). Returns h after the last layer, what was measured, and `kept` stacked over L.
    Measured: None, [L, B, F], or {matrix: [L or 1, 4, rows]}.
    """
    by_position = measure is not None and measure.probe.reduction == "position"
    moments = None
    if measure is not None and by_position and measure.probe.layer_pooling == "all":
        positions = h_BTD.shape[1] // measure.rows_BI.shape[1]
        moments = {name: zero_moments(positions, rows) for name, rows in matrices.items()}

    def step(carry, xs):
        h_BTD, moments = carry
        h_BTD, measured, kept = body(*xs[:1], h_BTD, *xs[1:])
        if moments is not None:
            moments = {name: add_moments(moments[name], measured[name]) for name in moments}
            measured = None
        elif by_position:
            measured = {name: position_statistic(value) for name, value in measured.items()}
        return (h_BTD, moments), (measured, kept)

    (h_BTD, moments), (measured, kept) = jax.lax.scan(
        REMATS[remat](step), (h_BTD, moments), (layers, gates, extra)
    )
    if moments is not None:
        measured = {name: position_statistic(value)[None] for name, value in moments.items()}
    return h_BTD, measured, kept

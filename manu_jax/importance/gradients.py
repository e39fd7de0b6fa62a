"""The attribution: how a sample's objective changes when a neuron is scaled.

With m the multiplicative gates, one per neuron, g_n(d) = ∂ L(d; m) / ∂ m_n at m = 1, which equals
Σ_tokens z_n · ∂L/∂z_n. Removing neuron n changes L by −g_n, to first order. One backward pass gives
g for all neurons.

Differs: L is what the model knows (the answer's log-odds or log-likelihood), not its loss. The two
have opposite signs; the loss itself is flat on facts that are known well, the log-odds are not.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax.models.nn.answers import (
    Targets,
    answer_log_odds,
    answer_mean_log_likelihood,
    logits_at_answers,
)
from manu_jax.models.nn.layers import Remat
from manu_jax.types import Array, Batch, Neurons

# name → (logits_BAV, targets) → [B], larger where the model knows the answer better
ATTRIBUTION_OBJECTIVES: dict[str, Callable[[jax.Array, Targets], jax.Array]] = {
    "log_likelihood": answer_mean_log_likelihood,
    "log_odds": answer_log_odds,
}


def per_example_gradients(
    model: Any,
    batch: Batch,
    towers: Mapping[str, tuple[int, int]],
    *,
    objective: str = "log_odds",
    gates: Neurons | None = None,
    remat: Remat = "dots",
) -> tuple[Neurons, jax.Array]:
    """Return {tower: [L, B, F]} of g and the objective of each example [B], by one backward pass.

    Each example has gates of its own, and examples do not interact, so the gradient of the sum over
    examples is the gradient of each. towers: those to attribute, {tower: (L, F)}. gates: factors
    [L, F] applied on top (1 − mask of neurons removed already); g is then at those gates,
    and 0 for removed neurons. remat: what the backward pass computes again ("all", "dots", "none").
    """
    num_examples = batch.token_ids_BT.shape[0]
    ones = {tower: jnp.ones((L, num_examples, F)) for tower, (L, F) in towers.items()}

    def total(scales: Neurons) -> tuple[jax.Array, jax.Array]:
        found = logits_at_answers(model, batch, gates=_combine(scales, gates), remat=remat)
        values_B = ATTRIBUTION_OBJECTIVES[objective](*found)
        return values_B.sum(), values_B

    gradients, values_B = jax.grad(total, has_aux=True)(ones)
    return gradients, values_B


def _combine(scales: Neurons, gates: Neurons | None) -> dict[str, Array]:
    """Return the scales [L, B, F] times the gates; a tower that only one has keeps its own."""
    combined = dict(scales)
    for tower, gate_LF in (gates or {}).items():
        is_scaled = tower in scales
        combined[tower] = scales[tower] * gate_LF[:, None] if is_scaled else gate_LF
    return combined

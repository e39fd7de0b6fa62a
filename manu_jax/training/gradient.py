"""The gradient of one step: of a loss, or of a loss and of the weight of what is to be kept."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax import parallel
from manu_jax.config import LoraSection, PrimalDualSection
from manu_jax.edits.leafwise import LeafEdit
from manu_jax.models.nn.layers import Remat
from manu_jax.training.lora import adapted
from manu_jax.training.objectives import Objective


@dataclasses.dataclass(frozen=True)
class GradientSettings:
    """What the compiled gradient of a step depends on besides shapes."""

    objective: Objective
    dtype: str  # in which the forward and the backward pass run
    remat: Remat
    lora: LoraSection | None
    primal_dual: PrimalDualSection | None = None


@dataclasses.dataclass(frozen=True)
class UpdateSettings:
    """What the compiled update depends on besides shapes: one program for all objectives.

    The learning rate is an argument instead.
    """

    optimizer: str
    beta1: float
    beta2: float
    weight_decay: float
    clip: float | None
    factors: tuple[tuple[str, float], ...] = ()  # (part, factor of the learning rate)


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What the two programs of a step are compiled for."""

    gradient: GradientSettings
    update: UpdateSettings


@functools.partial(jax.jit, static_argnames=("settings", "mesh"))
def loss_and_gradient(
    weights: Any,
    data: Any,
    *,
    base: Any,
    key: jax.Array | None,
    settings: GradientSettings,
    mesh: jax.sharding.Mesh | None,
) -> tuple[jax.Array, Any]:
    """Return the loss, and its gradient with respect to the weights (or adapters, or an edit)."""
    loss, gradient = jax.value_and_grad(_loss)(weights, data, base=base, key=key, settings=settings)
    return loss, placed(gradient, mesh)


@functools.partial(jax.jit, static_argnames=("settings", "mesh"))
def primal_dual_gradient(
    weights: Any,
    keep_weight: jax.Array,
    data: Any,
    *,
    base: Any,
    key: jax.Array | None,
    settings: GradientSettings,
    mesh: jax.sharding.Mesh | None,
) -> tuple[jax.Array, Any, jax.Array]:
    """Return what loss_and_gradient does, and the next step's weight of the facts to keep.

    That is λ ← max(0, λ + η (L_keep − ε)), PDU's (Entesari et al. 2025, arXiv 2506.05314).
    """

    def loss_of(weights: Any, keep_weight: jax.Array) -> jax.Array:
        weighed = dataclasses.replace(data, keep_weight=keep_weight)
        return _loss(weights, weighed, base=base, key=key, settings=settings)

    # The loss is linear in the weight, so its derivative is the loss on the facts to keep.
    loss, (gradient, kept) = jax.value_and_grad(loss_of, argnums=(0, 1))(weights, keep_weight)
    dual = settings.primal_dual
    assert dual is not None
    next_weight = jnp.maximum(0, keep_weight + dual.rate * (kept - dual.bound))
    return loss, placed(gradient, mesh), next_weight


def placed(tree: Any, mesh: jax.sharding.Mesh | None) -> Any:
    """Keep weights, gradients and moments where the table of `parallel` puts them."""
    if mesh is None:
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, parallel.tree_shardings(tree, mesh))


def _loss(
    weights: Any, data: Any, *, base: Any, key: jax.Array | None, settings: GradientSettings
) -> jax.Array:
    if isinstance(weights, LeafEdit):
        model = weights.edited(base)
    else:
        model = jax.tree.map(lambda leaf: leaf.astype(settings.dtype), weights)
        if settings.lora is not None:
            model = adapted(base, model, settings.lora, key=key)
    return settings.objective(model, data, settings.remat)

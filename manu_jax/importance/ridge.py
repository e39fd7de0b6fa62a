"""A down projection that is solved for: what it says of facts to forget, it says as of strangers.

The first stage of ASRU (arXiv 2605.15687), after LUNAR (arXiv 2502.07218): at one layer of the
decoder, over the tokens whose logits predict answers, with H the inputs of the down projection,

    v = mean h(strangers) − mean h(forget)        h: the residual stream after the layer
    W* = (HᵀH + γ I)⁻¹ Hᵀ T                       T = H W + λ v on facts to forget, H W on kept ones
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from manu_jax import parallel
from manu_jax.config import MethodSettings
from manu_jax.config.methods import MethodName
from manu_jax.edits.weights import NewWeights
from manu_jax.importance.job import Forms, ScoringJob
from manu_jax.importance.passes import run_over, weights_at_answers
from manu_jax.importance.statistics import check_finite
from manu_jax.leaves import leaves
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.mlp import neuron_leaves
from manu_jax.types import MODALITIES, Array, Batch, Capture, ManuError

TOWER = "text"
CAPTURE = Capture(reduction="at_answers")
DEPTH = 22 / 32  # where LUNAR edits a decoder of 32 layers


class RidgeMethod(MethodSettings):
    """Which layer is solved for, and how far what it says is moved."""

    name: MethodName = "ridge"
    kind: Literal["ridge"] = "ridge"
    layer: int | None = pydantic.Field(default=None, ge=0)  # of the decoder; None: at LUNAR's depth
    gamma: float = pydantic.Field(default=1.0, gt=0)  # γ
    strength: float = 2.0  # λ


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Rows:
    """Sums over the rows of H: HᵀH of all, and Σ h of those to forget."""

    gram_FF: Array
    forget_F: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Stream:
    """The sum of the residual stream over tokens, and their number."""

    sum_D: Array
    count: Array


def redirect(job: ScoringJob[RidgeMethod]) -> NewWeights:
    """Return the down projection W* of one layer, from facts of both forms; solved in float64.

    Raises ManuError where the model has no such layer, the job no strangers, or a sum is not
    finite.
    """
    loaded, method = job.loaded, job.method
    num_layers, num_neurons = loaded.towers[TOWER]
    layer = int(DEPTH * num_layers) if method.layer is None else method.layer
    if layer >= num_layers:
        raise ManuError(
            f"method {method.name}.layer: {layer}, but the decoder has layers 0 to "
            f"{num_layers - 1}. Give one of these."
        )
    if not any(job.strangers.get(modality) for modality in MODALITIES):
        raise ManuError(
            f"method {method.name}: no questions about strangers, whose answers it imitates. Give "
            "the job some."
        )
    rows = parallel.put_replicated(
        _Rows(np.zeros((num_neurons, num_neurons), np.float32), np.zeros(num_neurons, np.float32)),
        loaded.mesh,
    )
    for forms, is_forget in ((job.forget, True), (job.keep, False)):
        rows = run_over(
            loaded,
            _samples(forms),
            lambda rows, batch, is_forget=is_forget: _add_rows(
                rows, loaded.model, batch, is_forget, layer=layer
            ),
            start=rows,
            batch_size=job.batch_size,
            title=f"ridge: {'facts to forget' if is_forget else 'kept facts'}",
        )
    rows = parallel.gather(rows)
    direction_D = _mean_stream(job, job.strangers, layer) - _mean_stream(job, job.forget, layer)
    sums = {"H": rows.gram_FF[None], "h": rows.forget_F[None], "v": direction_D[None]}
    check_finite(sums, f"method {method.name}, sums at layer {layer}")
    last = loaded.model.mlps()[TOWER].matrices[-1].short_name
    path, _ = neuron_leaves(loaded.model.mlps()[TOWER])[last]
    weight_FD = parallel.gather(leaves(loaded.model)[path][layer]).astype(np.float64)
    gram_FF = rows.gram_FF.astype(np.float64)
    # Hᵀ T, without the rows: a row to forget adds h λ vᵀ to Hᵀ H W.
    right_FD = gram_FF @ weight_FD + method.strength * np.outer(rows.forget_F, direction_D)
    solved_FD = np.linalg.solve(gram_FF + method.gamma * np.eye(num_neurons), right_FD)
    return NewWeights({path: solved_FD[None].astype(np.float32)}, (layer,))


def _samples(forms: Forms) -> list[Any]:
    return [sample for modality in MODALITIES for sample in forms.get(modality, ())]


def _mean_stream(job: ScoringJob[RidgeMethod], forms: Forms, layer: int) -> np.ndarray:
    """Return the mean of the residual stream after a layer, over tokens before answers. [D]."""
    loaded: Loaded = job.loaded
    zero = np.zeros(loaded.config.text.width, np.float32)
    total = run_over(
        loaded,
        _samples(forms),
        lambda total, batch: _add_stream(total, loaded.model, batch, layer=layer),
        start=parallel.put_replicated(_Stream(zero, np.zeros((), np.float32)), loaded.mesh),
        batch_size=job.batch_size,
        title="ridge: residual stream",
    )
    total = parallel.gather(total)
    return total.sum_D.astype(np.float64) / total.count


@functools.partial(jax.jit, static_argnames="layer", donate_argnums=0)
def _add_rows(rows: _Rows, model: Any, batch: Batch, is_forget: bool, *, layer: int) -> _Rows:
    h_BAF = model(batch, capture=CAPTURE).activations[TOWER][layer]
    h_BAF = h_BAF * weights_at_answers(batch)[..., None]
    exact = jax.lax.Precision.HIGHEST
    gram_FF = jnp.einsum("BAF,BAE->FE", h_BAF, h_BAF, precision=exact)
    sum_F = jnp.where(is_forget, h_BAF.sum(axis=(0, 1)), 0)
    return _Rows(rows.gram_FF + gram_FF, rows.forget_F + sum_F)


@functools.partial(jax.jit, static_argnames="layer", donate_argnums=0)
def _add_stream(total: _Stream, model: Any, batch: Batch, *, layer: int) -> _Stream:
    h_BTD = model.hidden(batch, num_layers=layer + 1, remat="none")
    index_BA1 = jnp.asarray(batch.answer_index_BA)[..., None]
    weights_BA = weights_at_answers(batch)
    h_BAD = jnp.take_along_axis(h_BTD, index_BA1, axis=1).astype(jnp.float32)
    sum_D = jnp.einsum("BA,BAD->D", weights_BA, h_BAD, precision=jax.lax.Precision.HIGHEST)
    return _Stream(total.sum_D + sum_D, total.count + weights_BA.sum())

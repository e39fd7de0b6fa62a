"""Knowledge Vector Weakening: neurons that say more on facts to forget than on kept ones get less.

Kim et al. 2026 (arXiv 2601.21794). With h the input of `down_proj` and C(D) the mean of |h| over
the tokens of D whose logits predict an answer, in float32, each batch of facts to forget weakens
the model that the batches before have left:

    δ = max(0, log(C(batch) + ε) − log(C(kept) + ε))        W_down's column · exp(−γ δ)

C(kept) is that of the model as it was. Of the decoder alone.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from manu_jax import parallel
from manu_jax.config import Count, Layers, MethodSettings
from manu_jax.config.methods import MethodName
from manu_jax.edits.gates import GateEdit
from manu_jax.importance.job import ScoringJob
from manu_jax.importance.passes import run_over, weights_at_answers
from manu_jax.importance.statistics import Statistics, check_statistics
from manu_jax.models.loaded import Loaded
from manu_jax.types import Batch, Capture, ManuError, Sample

TOWER = "text"
EPSILON = 1e-12
CAPTURE = Capture(reduction="size_at_answers")


class KvwMethod(MethodSettings):
    """How far neurons are weakened, and in which layers of the decoder."""

    name: MethodName = "kvw"
    kind: Literal["kvw"] = "kvw"
    gamma: float = pydantic.Field(default=0.02, gt=0)  # γ
    # Of the decoder ("text"); an end beyond the last layer is the last
    layers: dict[str, Layers] = {TOWER: Layers(first=1, end=26)}
    # Each batch of facts to forget meets the model that those before have weakened; false: all are
    # measured on the model as it was, and its gates are those of as many equal batches
    sequential: bool = True
    batch_size: Count = 1  # facts to forget that weaken at once

    @pydantic.model_validator(mode="after")
    def _check_layers(self) -> "KvwMethod":
        if set(self.layers) - {TOWER}:
            raise ValueError(f"layers: only the decoder's neurons are weakened; give {TOWER} alone")
        return self


def weaken(job: ScoringJob[KvwMethod]) -> GateEdit:
    """Return the gates that weaken the decoder, which see facts of both forms.

    The order of facts to forget is drawn by the job's seed. A killed job starts over. Raises
    ManuError where the model has none of the method's layers.
    """
    loaded, method = job.loaded, job.method
    num_layers, num_neurons = loaded.towers[TOWER]
    asked = method.layers.get(TOWER, Layers())
    chosen = range(num_layers)[slice(asked.first, asked.end)]
    if not chosen:
        raise ManuError(
            f"method {method.name}.layers: {asked.first} to before {asked.end}, but the decoder "
            f"has layers 0 to {num_layers - 1}. Give others: layers: {{text: {{first: 0}}}}."
        )
    is_chosen_L1 = np.isin(np.arange(num_layers), chosen)[:, None]
    forget = [sample for modality in job.modalities for sample in job.forget[modality]]
    keep = [sample for modality in job.modalities for sample in job.keep[modality]]
    kept_LF = _mean_sizes(loaded, keep, batch_size=job.batch_size, title="kvw: kept facts")
    if not method.sequential:
        found_LF = _mean_sizes(loaded, forget, batch_size=job.batch_size, title="kvw: forgetting")
        num_batches = -(-len(forget) // method.batch_size)
        gate_LF = _gates(found_LF, kept_LF, gamma=method.gamma * num_batches)
        return GateEdit({TOWER: np.where(is_chosen_L1, gate_LF, np.float32(1))})
    ones_LF = np.ones((num_layers, num_neurons), np.float32)
    given = parallel.put_replicated((ones_LF, kept_LF, is_chosen_L1), loaded.mesh)
    gate_LF = run_over(
        loaded,
        forget,
        lambda gate_LF, batch: _weaken(
            gate_LF,
            loaded.model,
            batch,
            kept_LF=given[1],
            is_chosen_L1=given[2],
            gamma=method.gamma,
        ),
        start=given[0],
        batch_size=method.batch_size,
        title="kvw: forgetting",
        seed=job.seed,
    )
    return GateEdit({TOWER: parallel.gather(gate_LF)})


def _mean_sizes(
    loaded: Loaded, samples: list[Sample], *, batch_size: int, title: str
) -> np.ndarray:
    """Return the mean of |h| over the tokens that predict the samples' answers. [L, F] float32."""
    total = run_over(
        loaded,
        samples,
        lambda total, batch: _add(total, loaded.model, batch),
        start=Statistics.zero({TOWER: loaded.towers[TOWER]}),
        batch_size=batch_size,
        title=title,
    )
    total = parallel.gather(total)
    check_statistics(total, f"{title}: {len(samples):,} samples")
    return total.means("absolute", TOWER).astype(np.float32)


@functools.partial(jax.jit, donate_argnums=0)
def _add(total: Statistics, model: Any, batch: Batch) -> Statistics:
    """Return the statistics with one batch, in which each sample weighs its answer's tokens."""
    sizes = model(batch, capture=CAPTURE).activations
    return total.add(sizes, weights_at_answers(batch).sum(axis=1))


@functools.partial(jax.jit, donate_argnums=0)
def _weaken(
    gate_LF: jax.Array,
    model: Any,
    batch: Batch,
    *,
    kept_LF: jax.Array,
    is_chosen_L1: jax.Array,
    gamma: float,
) -> jax.Array:
    """Return the gates after one batch of facts to forget, which meets the weakened model."""
    # Not as gates of the forward pass, whose capture measures behind them: h itself is not gated.
    weakened = GateEdit({TOWER: gate_LF}).edited(model)
    sizes_LBF = weakened(batch, capture=CAPTURE).activations[TOWER]
    weights_B = weights_at_answers(batch).sum(axis=1)
    sums_LF = jnp.einsum("B,LBF->LF", weights_B, sizes_LBF)
    found_LF = sums_LF / jnp.maximum(weights_B.sum(), 1)
    return gate_LF * jnp.where(is_chosen_L1, _gates(found_LF, kept_LF, gamma=gamma), 1)


def _gates(found_LF: Any, kept_LF: Any, *, gamma: Any) -> jax.Array:
    excess_LF = jnp.log(found_LF + EPSILON) - jnp.log(kept_LF + EPSILON)
    return jnp.exp(-gamma * jnp.maximum(excess_LF, 0))

"""The training loop: AdamW or Muon on batches in an order that (seed, step) alone decides.

    state = step(state, batch_at(0)) → … → step(state, batch_at(num_steps − 1))

Every `checkpoint_every` steps the state goes to disk; a process that was killed goes on from the
last one that stands, to the same bits, since nothing else is remembered between steps.
"""

import dataclasses
import functools
import logging
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from manu_jax import checkpoint, parallel
from manu_jax.config import OptimizerSection, TrainSection
from manu_jax.data.batches import Batches, encode_all
from manu_jax.models.family import Loaded
from manu_jax.models.layers import Remat
from manu_jax.progress import Progress
from manu_jax.training.objectives import OBJECTIVES
from manu_jax.types import ManuError, Sample

logger = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
LENGTH_MULTIPLE = 16  # tokens
CHECKPOINT_NAME = "step-{:08d}"
# (input axes, output axes) of the matrices that Muon makes orthogonal, by their letters
MATRIX_AXES = (
    ("D", "NH"), ("D", "KH"), ("NH", "D"), ("D", "F"), ("F", "D"), ("D", "E"), ("E", "E"),
    ("YXC", "D"),
)  # fmt: skip


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Weights and the optimizer's moments, both float32 whatever the model's dtype is."""

    model: Any
    optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What a compiled step depends on besides shapes. The learning rate is not in it."""

    objective: str
    dtype: str  # in which the forward and the backward pass run
    remat: Remat
    optimizer: str
    beta1: float
    beta2: float
    weight_decay: float
    clip: float


def train(
    loaded: Loaded,
    samples: Sequence[Sample],
    section: TrainSection,
    *,
    num_steps: int,
    directory: str | os.PathLike,
    seed: int,
    description: str = "training",
) -> Loaded:
    """Return `loaded` with weights after `num_steps` steps of `section.batch_size` samples.

    samples: shuffled anew in each epoch by (seed, epoch). directory: of the checkpoints, the two
    newest of which are kept; a killed run goes on from what stands there. `loaded` is not changed.
    Raises ManuError where the loss is NaN or infinite, or the batch does not divide over the mesh.
    """
    batches = batches_of(loaded, samples, section, seed, where="train")
    return lower(
        loaded,
        (section.loss_on,),
        lambda step: parallel.put_batch(batches.batch_at(step), loaded.mesh),
        section,
        num_steps=num_steps,
        directory=directory,
        description=description,
        where="train",
    )


def batches_of(
    loaded: Loaded,
    samples: Sequence[Sample],
    section: OptimizerSection,
    seed: int,
    *,
    where: str,
) -> Batches:
    """Return the samples' batches for training, shuffled by the seed, of few shapes.

    Raises ManuError where the batch does not divide over the mesh; `where` names the section.
    """
    _check_batch_size(section.batch_size, loaded.mesh, where)
    return Batches(
        loaded,
        encode_all(loaded, samples),
        section.batch_size,
        seed=seed,
        multiple=LENGTH_MULTIPLE,
        max_buckets=2,
        rows=parallel.batch_rows(loaded.mesh, section.batch_size),
    )


def lower(
    loaded: Loaded,
    objectives: Sequence[str],
    data_at: Callable[[int], Any],
    section: OptimizerSection,
    *,
    num_steps: int,
    directory: str | os.PathLike,
    description: str,
    where: str,
) -> Loaded:
    """Return `loaded` after `num_steps` steps, in each of which each objective is lowered in turn.

    objectives: names of OBJECTIVES. data_at: step → what they are functions of, on the devices;
    nothing but the step decides it. where: the config's section, for messages.
    """
    directory = Path(directory)
    phases = [step_settings(section, loaded, objective) for objective in objectives]
    state, first = _resume(directory, initial_state(loaded, phases[0]))
    if first > num_steps:
        raise ManuError(
            f"{directory}: its last checkpoint is of step {first}, and only {num_steps} are asked "
            "for. Remove the folder to train anew."
        )
    loss = None
    on_mesh = parallel.on_mesh(loaded.mesh)
    with on_mesh, Progress(description, num_steps, done=first) as progress:
        for step in range(first, num_steps):
            data = data_at(step)
            rate = jnp.float32(learning_rate(section, step, num_steps))
            next_loss = jnp.float32(0)
            for settings in phases:
                state, found = train_step(state, data, rate, settings, loaded.mesh)
                next_loss += found
            # The loss of the step before is looked at while this one runs.
            if loss is not None:
                progress.advance(note=f"loss {_checked(loss, step - 1, section, where):.4f}")
            loss = next_loss
            if (step + 1) % section.checkpoint_every == 0 and step + 1 < num_steps:
                _checked(loss, step, section, where)
                _save(directory, step + 1, state)
        if loss is not None:
            final = _checked(loss, num_steps - 1, section, where)
            progress.advance(note=f"loss {final:.4f}")
            logger.info("%s: %d steps done, loss %.4f", description, num_steps, final)
    model = jax.tree.map(lambda new, old: new.astype(old.dtype), state.model, loaded.model)
    return loaded.replace_model(model)


def learning_rate(section: OptimizerSection, step: int, num_steps: int) -> float:
    """Return the rate of step 0, 1, …: a linear warm-up, then the schedule down to 0 at the end."""
    warmup = round(section.warmup * num_steps)
    if step < warmup:
        return section.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(num_steps - warmup, 1)
    factor = {
        "cosine": 0.5 * (1 + math.cos(math.pi * share)),
        "linear": 1 - share,
        "constant": 1.0,
    }[section.schedule]
    return section.learning_rate * factor


def step_settings(section: OptimizerSection, loaded: Loaded, objective: str) -> StepSettings:
    """Return what a step of this training is compiled for."""
    return StepSettings(
        objective=objective,
        dtype=str(jax.tree.leaves(loaded.model)[0].dtype),
        remat=section.remat,
        optimizer=section.optimizer,
        beta1=section.beta1,
        beta2=section.beta2,
        weight_decay=section.weight_decay,
        clip=section.clip,
    )


def initial_state(loaded: Loaded, settings: StepSettings) -> TrainState:
    """Return a float32 copy of the weights, and moments of zero, each where its weight lies."""
    model = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), loaded.model)
    state = TrainState(model, _optimizer(settings).init(model))
    # Bound to their devices as restored arrays are, so that both take the same compiled step.
    if loaded.mesh is None:
        return jax.device_put(state, jax.local_devices()[0])
    return jax.device_put(state, parallel.tree_shardings(state, loaded.mesh))


def train_step(
    state: TrainState,
    data: Any,
    rate: jax.Array,
    settings: StepSettings,
    mesh: jax.sharding.Mesh | None,
) -> tuple[TrainState, jax.Array]:
    """Return the state after one step, and the loss before it. The given state is used up.

    data: a Batch, or what else the objective is a function of. Two compiled programs: the
    gradient's, one per shape of the data, and the update's, one for all.
    """
    loss, gradient = _loss_and_gradient(state.model, data, settings, mesh)
    return _updated(state, gradient, rate, settings, mesh), loss


@functools.partial(jax.jit, static_argnums=(2, 3))
def _loss_and_gradient(
    weights: Any, data: Any, settings: StepSettings, mesh: jax.sharding.Mesh | None
) -> tuple[jax.Array, Any]:
    objective = OBJECTIVES[settings.objective]

    def loss_of(weights: Any) -> jax.Array:
        model = jax.tree.map(lambda leaf: leaf.astype(settings.dtype), weights)
        return objective(model, data, settings.remat)

    loss, gradient = jax.value_and_grad(loss_of)(weights)
    return loss, _placed(gradient, mesh)


@functools.partial(jax.jit, static_argnums=(3, 4), donate_argnums=0)
def _updated(
    state: TrainState,
    gradient: Any,
    rate: jax.Array,
    settings: StepSettings,
    mesh: jax.sharding.Mesh | None,
) -> TrainState:
    changes, optimizer = _optimizer(settings).update(gradient, state.optimizer, state.model)
    model = jax.tree.map(lambda weight, change: weight + rate * change, state.model, changes)
    return _placed(TrainState(model, optimizer), mesh)


@functools.cache
def _optimizer(settings: StepSettings) -> optax.GradientTransformation:
    """Return the optimizer at a learning rate of 1; the rate is an argument of the step."""
    betas, decay = (settings.beta1, settings.beta2), settings.weight_decay
    clip = optax.clip_by_global_norm(settings.clip)
    if settings.optimizer == "adamw":
        return optax.chain(clip, optax.adamw(1.0, *betas, weight_decay=decay))
    muon = optax.contrib.muon(
        1.0,
        weight_decay=decay,
        adam_b1=settings.beta1,
        adam_b2=settings.beta2,
        adam_weight_decay=decay,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,  # steps as large as Adam's, so that rates carry over
    )
    return optax.chain(clip, muon)


def _matrices(weights: Any) -> Any:
    """Return which axes of the layers' matrices are inputs and outputs; None for other leaves.

    Embedding, head and vectors have None: Muon leaves them to Adam. Layers are matrices each.
    """

    def axes_of(path: Any, _: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        letters = parallel.path_name(path).rpartition("_")[2]
        for inputs, outputs in MATRIX_AXES:
            if letters.removeprefix("L") == inputs + outputs:
                axes = range(len(letters))
                return optax.contrib.MuonDimensionNumbers(
                    tuple(axes[-len(inputs + outputs) : -len(outputs)]),
                    tuple(axes[-len(outputs) :]),
                )
        return None

    return jax.tree_util.tree_map_with_path(axes_of, weights)


def _placed(tree: Any, mesh: jax.sharding.Mesh | None) -> Any:
    """Keep weights, gradients and moments where the table of `parallel` puts them."""
    if mesh is None:
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, parallel.tree_shardings(tree, mesh))


def _checked(loss: jax.Array, step: int, section: OptimizerSection, where: str) -> float:
    value = float(loss)
    if not math.isfinite(value):
        raise ManuError(
            f"training: the loss of step {step} is {value}. Lower {where}.learning_rate (now "
            f"{section.learning_rate:g}) or {where}.clip (now {section.clip:g}), or raise "
            f"{where}.warmup."
        )
    return value


def _check_batch_size(batch_size: int, mesh: jax.sharding.Mesh | None, where: str) -> None:
    multiple = parallel.batch_multiple(mesh)
    if batch_size % multiple:
        raise ManuError(
            f"{where}.batch_size {batch_size}: expected a multiple of {multiple}, the devices on "
            "the mesh axes data and fsdp."
        )


def _resume(directory: Path, state: TrainState) -> tuple[TrainState, int]:
    """Return the state of the newest checkpoint and its step; (`state`, 0) where there is none."""
    step = parallel.agreed(max(_checkpoint_steps(directory), default=0))
    path = directory / CHECKPOINT_NAME.format(step)
    if not step or not parallel.stands(path):
        return state, 0
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    names = [parallel.path_name(name) for name, _ in leaves]
    found = checkpoint.load(path, dict(zip(names, (leaf for _, leaf in leaves), strict=True)))
    logger.info("%s: going on after step %d", directory, step)
    return jax.tree.unflatten(structure, [found[name] for name in names]), step


def _save(directory: Path, step: int, state: TrainState) -> None:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    tree = {parallel.path_name(name): leaf for name, leaf in leaves}
    checkpoint.save(directory / CHECKPOINT_NAME.format(step), tree)
    if parallel.is_first_process():
        for old in _checkpoint_steps(directory)[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(directory / CHECKPOINT_NAME.format(old))


def _checkpoint_steps(directory: Path) -> list[int]:
    """Return the steps of the whole checkpoints in a folder, in order."""
    if not directory.is_dir():
        return []
    prefix = CHECKPOINT_NAME.split("{")[0]
    found = [p for p in directory.iterdir() if p.name.startswith(prefix) and p.name[5:].isdigit()]
    return sorted(int(p.name[len(prefix) :]) for p in found if checkpoint.exists(p))

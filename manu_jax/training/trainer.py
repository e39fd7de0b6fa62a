"""The training loop: AdamW or Muon on batches in an order that (seed, step) alone decides.

    state = step(state, batch_at(0)) → … → step(state, batch_at(num_steps − 1))

Every `checkpoint_every` steps the state is saved; a process that was killed goes on from the newest
checkpoint, to the same bits, since nothing else is remembered between steps.
"""

import dataclasses
import functools
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from manu_jax import faults, parallel
from manu_jax.checkpoint import resume, save_step
from manu_jax.config import OptimizerSection, TrainSection, UnlearnSection
from manu_jax.data.batches import Batches, encode_all
from manu_jax.edits.edit import Edit
from manu_jax.edits.weights import begins
from manu_jax.folder import expand_path
from manu_jax.leaves import matrix_axes, path_name
from manu_jax.models.loaded import Loaded
from manu_jax.progress import Progress
from manu_jax.training.gradient import (
    GradientSettings,
    StepSettings,
    UpdateSettings,
    loss_and_gradient,
    placed,
    primal_dual_gradient,
)
from manu_jax.training.lora import merged, new_adapters
from manu_jax.training.objectives import Objective, cross_entropy_on_answers
from manu_jax.types import ManuError, Sample

logger = logging.getLogger(__name__)

LENGTH_MULTIPLE = 16  # tokens


# An objective and its data, on the devices.
Phase = tuple[Objective, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Weights and the optimizer's moments, float32 for a model of any dtype.

    weights: the model's, or with `lora` those of the adapters alone, or an edit. keep_weight: of
    the loss on facts to keep, a scalar, where a primal-dual training learns it.
    """

    weights: Any
    optimizer: optax.OptState
    keep_weight: jax.Array | None = None


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

    samples: shuffled in each epoch by (seed, epoch). directory: of the checkpoints, the two
    newest of which are kept; a killed run goes on from them. `loaded` is not changed.
    Raises ManuError where the loss is NaN or infinite.
    """
    batches = batches_of(loaded, samples, section, seed=seed, where="train")

    def phases_at(step: int) -> list[Phase]:
        return [(cross_entropy_on_answers, parallel.put_batch(batches.batch_at(step), loaded.mesh))]

    weights = train_loop(
        loaded,
        phases_at,
        section,
        num_steps=num_steps,
        seed=seed,
        directory=directory,
        description=description,
        where="train",
    )
    return trained(loaded, weights, section)


def trained(loaded: Loaded, weights: Any, section: OptimizerSection) -> Loaded:
    """Return `loaded` with the weights that train_loop left, in the model's dtype."""
    if section.lora is not None:
        return loaded.replace_model(merged(loaded.model, weights, section.lora))
    model = jax.tree.map(lambda new, old: new.astype(old.dtype), weights, loaded.model)
    return loaded.replace_model(model)


def check_loss(loaded: Loaded, section: OptimizerSection, where: str) -> None:
    """Raise ManuError if the loss covers prompts of a model whose prompts attend both ways."""
    if section.loss_on == "all" and loaded.family.prompt_sees_ahead:
        raise ManuError(
            f"{where}.loss_on: all: the tokens of a prompt of {loaded.family.name} attend to those "
            "after them, so nothing is learned from predicting them. Use loss_on: answer."
        )


def batches_of(
    loaded: Loaded,
    samples: Sequence[Sample],
    section: OptimizerSection,
    *,
    seed: int,
    where: str,
    max_buckets: int = 2,
) -> Batches:
    """Return the samples' batches for training, shuffled by the seed, of few shapes.

    With `loss_on: all` the prompts carry loss like the answers, as in MLLMU-Bench's own training.
    A batch keeps its size on every mesh: rows of weight 0 fill it up to what the mesh divides.
    Raises ManuError for a loss that the model can't learn from; `where` names the section.
    """
    check_loss(loaded, section, where)
    if section.loss_on == "all":
        samples = [
            dataclasses.replace(one, segments=tuple((text, True) for text, _ in one.segments))
            for one in samples
        ]
    filled = parallel.filled(section.batch_size, loaded.mesh)
    return Batches(
        loaded,
        encode_all(loaded, samples),
        section.batch_size,
        seed=seed,
        multiple=LENGTH_MULTIPLE,
        max_buckets=max_buckets,
        rows=parallel.batch_rows(loaded.mesh, filled),
    )


def train_loop(
    loaded: Loaded,
    phases_at: Callable[[int], Sequence[Phase]],
    section: OptimizerSection,
    *,
    num_steps: int,
    seed: int,
    directory: str | os.PathLike,
    description: str,
    where: str,
    masks: Mapping[Objective, Any] | None = None,
    edit: Edit | None = None,
    ends: Callable[[int, Any], bool] | None = None,
) -> Any:
    """Return what is trained after `num_steps` steps, each of one or more phases in turn.

    That is all weights in float32, or with `lora` the adapters, or the edit.

    phases_at: step → its phases, each with an update of its own; they depend on the step alone.
    seed: of the adapters, if there are any. masks: objective → factors of its clipped gradient, a
    tree like the weights. where: the config's section, for messages. edit: what is trained in place
    of the weights, from these values on. ends: (steps taken, what is trained) → whether to end
    here; a function of these alone, so that a killed run ends where it would have ended.
    """
    directory = expand_path(directory)
    key = jax.random.key(seed)
    state, first = resume(directory, initial_state(loaded, section, key, edit=edit))
    if first > num_steps:
        raise ManuError(
            f"{directory}: its last checkpoint is of step {first}, and only {num_steps} are asked "
            "for. Remove the folder to train anew."
        )
    base = None if section.lora is None and edit is None else loaded.model
    loss = None
    on_mesh = parallel.on_mesh(loaded.mesh)
    with on_mesh, Progress(description, num_steps, done=first) as progress:
        for step in range(first, num_steps):
            rate = jnp.float32(learning_rate(section, step, num_steps))
            next_loss = jnp.float32(0)
            for number, (objective, data) in enumerate(phases_at(step)):
                state, found = train_step(
                    state,
                    data,
                    rate,
                    settings=step_settings(section, loaded, objective),
                    mesh=loaded.mesh,
                    base=base,
                    key=jax.random.fold_in(jax.random.fold_in(key, step), number),
                    mask=(masks or {}).get(objective),
                )
                next_loss += found
            # The loss of the step before is read while this one runs.
            if loss is not None:
                last = _checked(loss, step - 1, section, where=where)
                progress.advance(note=f"loss {last:.4f}")
            loss = next_loss
            if ends is not None and ends(step + 1, state.weights):
                num_steps = step + 1
                break
            is_due = faults.stop_is_due()
            if (is_due or (step + 1) % section.checkpoint_every == 0) and step + 1 < num_steps:
                _checked(loss, step, section, where=where)
                save_step(directory, step + 1, state)
                faults.stop_if_due()
        if loss is not None:
            final = _checked(loss, num_steps - 1, section, where=where)
            progress.advance(note=f"loss {final:.4f}")
            logger.info("%s: %d steps done, loss %.4f", description, num_steps, final)
    return state.weights


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


def step_settings(section: OptimizerSection, loaded: Loaded, objective: Objective) -> StepSettings:
    """Return what a step of this training is compiled for."""
    gradient = GradientSettings(
        objective=objective,
        dtype=str(jax.tree.leaves(loaded.model)[0].dtype),
        remat=section.remat,
        lora=section.lora,
        primal_dual=section.primal_dual if isinstance(section, UnlearnSection) else None,
    )
    return StepSettings(gradient, update_settings(section))


def update_settings(section: OptimizerSection) -> UpdateSettings:
    """Return what the update of a step of this training is compiled for."""
    return UpdateSettings(
        optimizer=section.optimizer,
        beta1=section.beta1,
        beta2=section.beta2,
        weight_decay=section.weight_decay,
        clip=section.clip,
        factors=_factors(section),
    )


def initial_state(
    loaded: Loaded, section: OptimizerSection, key: jax.Array, *, edit: Edit | None = None
) -> TrainState:
    """Return what is trained in float32, and moments of zero, each where its weight lies.

    That is a copy of the weights, or new adapters, drawn by the key, or the edit.
    """
    if edit is not None:
        weights: Any = edit
    elif section.lora is not None:
        weights = new_adapters(loaded.model, section.lora, key)
    else:
        weights = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), loaded.model)
    state = TrainState(weights, _optimizer(update_settings(section)).init(weights))
    if isinstance(section, UnlearnSection) and section.primal_dual is not None:
        state = dataclasses.replace(state, keep_weight=jnp.float32(section.retain_weight))
    # Bound to their devices as restored arrays are, so that both take the same compiled step.
    if loaded.mesh is None:
        return jax.device_put(state, jax.local_devices()[0])
    return jax.device_put(state, parallel.tree_shardings(state, loaded.mesh))


def train_step(
    state: TrainState,
    data: Any,
    rate: jax.Array,
    *,
    settings: StepSettings,
    mesh: jax.sharding.Mesh | None,
    base: Any = None,
    key: jax.Array | None = None,
    mask: Any = None,
) -> tuple[TrainState, jax.Array]:
    """Return the state after one step, and the loss before it. The given state is used up.

    data: a Batch, or what else the objective is a function of. base, key: with adapters the model
    that is not trained, and the key of the dropout. Two compiled programs: the gradient's, one per
    shape of the data, and the update's, one for all.
    """
    common = {"base": base, "key": key, "settings": settings.gradient, "mesh": mesh}
    if state.keep_weight is None:
        loss, gradient = loss_and_gradient(state.weights, data, **common)
    else:
        loss, gradient, next_weight = primal_dual_gradient(
            state.weights, state.keep_weight, data, **common
        )
        state = dataclasses.replace(state, keep_weight=next_weight)
    further = {"mask": mask, "rate": rate, "settings": settings.update, "mesh": mesh}
    return _updated(state, gradient, **further), loss


@functools.partial(jax.jit, static_argnames=("settings", "mesh"), donate_argnums=0)
def _updated(
    state: TrainState,
    gradient: Any,
    *,
    mask: Any,
    rate: jax.Array,
    settings: UpdateSettings,
    mesh: jax.sharding.Mesh | None,
) -> TrainState:
    if settings.clip is not None:
        clip = optax.clip_by_global_norm(settings.clip)
        gradient, _ = clip.update(gradient, clip.init(gradient))
    if mask is not None:
        gradient = jax.tree.map(lambda values, factors: values * factors, gradient, mask)
    changes, optimizer = _optimizer(settings).update(gradient, state.optimizer, state.weights)
    if settings.factors:
        changes = _by_part(changes, settings.factors)
    weights = jax.tree.map(lambda weight, change: weight + rate * change, state.weights, changes)
    return placed(TrainState(weights, optimizer, state.keep_weight), mesh)


@functools.cache
def _optimizer(settings: UpdateSettings) -> optax.GradientTransformation:
    """Return the optimizer of clipped gradients at a learning rate of 1.

    The rate is an argument of the step.
    """
    betas, decay = (settings.beta1, settings.beta2), settings.weight_decay
    if settings.optimizer == "adamw":
        return optax.adamw(1.0, *betas, weight_decay=decay)
    return optax.contrib.muon(
        1.0,
        weight_decay=decay,
        adam_b1=settings.beta1,
        adam_b2=settings.beta2,
        adam_weight_decay=decay,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,  # steps as large as Adam's, so that rates carry over
    )


def _matrices(weights: Any) -> Any:
    """Return which axes of the layers' matrices are inputs and outputs; None for other leaves.

    Muon leaves leaves of None (embedding, head and vectors) to Adam. Each layer has a matrix of its
    own.
    """

    def axes_of(path: Any, _: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        axes = matrix_axes(path_name(path))
        return None if axes is None else optax.contrib.MuonDimensionNumbers(*axes)

    return jax.tree_util.tree_map_with_path(axes_of, weights)


def _factors(section: OptimizerSection) -> tuple[tuple[str, float], ...]:
    """Return (part, its learning rate as a factor of the section's) of the parts with their own."""
    if not isinstance(section, TrainSection):
        return ()
    return tuple((part, rate / section.learning_rate) for part, rate in section.rates.items())


def _by_part(changes: Any, factors: tuple[tuple[str, float], ...]) -> Any:
    """Return the changes, times the factor of the longest part that a leaf belongs to."""

    def scaled(path: Any, change: jax.Array) -> jax.Array:
        name = path_name(path).removeprefix("values.")  # of an edit (NewWeights)
        found = [(len(part), factor) for part, factor in factors if begins(name, part)]
        return change * max(found)[1] if found else change

    return jax.tree_util.tree_map_with_path(scaled, changes)


def _checked(loss: jax.Array, step: int, section: OptimizerSection, *, where: str) -> float:
    """Return the loss as a number; ManuError where it is not finite."""
    value = float(loss)
    if not math.isfinite(value):
        raise ManuError(
            f"training: the loss of step {step} is {value}. Lower {where}.learning_rate (now "
            f"{section.learning_rate:g}) or {where}.clip (now "
            f"{'none' if section.clip is None else format(section.clip, 'g')}), or raise "
            f"{where}.warmup."
        )
    return value

"""An attacker who trains the text decoder on a few facts, and asks about others in between.

All weights of the text decoder are trained, or with `audit.lora` adapters beside them, by AdamW at
a constant rate without weight decay, in float32, on the mesh of `train`. The towers and connectors
of images stay as they are, so that one attack costs about what training on text alone does; what
was removed from them can come back only as far as the decoder learns to read what is left.

Every batch has the shape that the longest of all facts needs. So one compiled step serves every
attack, rate and model of a run, and nothing is written but the answers (`curves_of`).
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from manu_jax import faults, parallel
from manu_jax.config import LoraSection
from manu_jax.data.batches import ANSWER_MULTIPLE, encode_all
from manu_jax.data.forms import form, has_form
from manu_jax.data.record import Fact
from manu_jax.evaluation.audit.attack import Asked, Attacked
from manu_jax.evaluation.batched import NotFinite
from manu_jax.fingerprint import samples_hash
from manu_jax.leaves import path_name
from manu_jax.models.nn.layers import Remat
from manu_jax.training.gradient import placed
from manu_jax.training.lora import adapted, merged, new_adapters
from manu_jax.training.objectives import cross_entropy_on_answers
from manu_jax.types import (
    MODALITIES,
    Batch,
    BatchShape,
    Encoded,
    Modality,
    PromptTemplate,
)

BATCH_SIZE = 16  # facts of each form in a step
LENGTH_MULTIPLE = 8  # tokens
TRAINED = "text."  # how the names of the weights that are trained begin
OPTIMIZER = optax.adamw(1.0, weight_decay=0.0)  # the rate is an argument of the step
KEY = 5  # folded into the seed's: adapters and their dropout


# {modality: facts that have that form}
Facts = Mapping[Modality, Sequence[Fact]]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Lesson:
    """What an attacker trains on, and what is asked in between.

    taught: {modality: facts trained in that form}; a step has a batch of each form. mixed_in: facts
    to keep of which half of every batch is made, likewise; {} for none. asked: at every step of the
    attack. checked: about what is taught, asked at the end: whether the attacker learned it.
    """

    name: str
    taught: Facts
    asked: tuple[Asked, ...]
    checked: tuple[Asked, ...] = ()
    mixed_in: Facts = dataclasses.field(default_factory=dict)

    def digest(self, template: PromptTemplate) -> str:
        """Return 16 hexadecimal digits that depend on all that is trained and asked."""
        samples = [
            form(fact, modality, template)
            for facts in (self.taught, self.mixed_in)
            for modality in facts
            for fact in facts[modality]
        ]
        return samples_hash([*samples, *(one.sample for one in (*self.asked, *self.checked))])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """How one attack at one rate went.

    right: for each of `steps` (0: before the attack), whether each question was answered right.
    losses: of each step, before it. learned: whether each of the lesson's `checked` was answered
    right at the end. diverged: the first step after which the loss or the outputs were
    not finite, None if they always were; from there on no question counts as answered.
    """

    steps: tuple[int, ...]
    right: tuple[tuple[bool, ...], ...]
    losses: tuple[float, ...]
    learned: tuple[bool, ...]
    diverged: int | None

    @property
    def area(self) -> np.ndarray:
        """The mean over the steps of the attack of each question's answers. [questions], in [0, 1].

        The steps double, so this is the area under the curve over log₂ of the steps.
        """
        return np.asarray(self.right[1:], np.float64).mean(axis=0)


@dataclasses.dataclass(eq=False)
class Attacker:
    """Trains copies of the model under attack; `attacked.loaded` stays as it is."""

    attacked: Attacked
    _before: dict[str, tuple[bool, ...]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def kept(self) -> Facts:
        """{modality: facts to keep that an attack may use}, drawn by the seed."""
        config = self.attacked.run.config
        random = np.random.default_rng([config.seed, 1])
        facts = self.attacked.kept_facts
        order = [facts[index] for index in random.permutation(len(facts))]
        return {
            modality: tuple(fact for fact in order if has_form(fact, modality))[
                : config.audit.steps * BATCH_SIZE
            ]
            for modality in MODALITIES
        }

    def curve(self, lesson: Lesson, *, rate: float, steps: Sequence[int]) -> Curve:
        """Return what is answered before the attack and after each of `steps`, in ascending order.

        rate: the learning rate. All processes call it. Nothing is written.
        """
        attacked, loaded = self.attacked, self.attacked.loaded
        lora = attacked.run.config.audit.lora
        key = jax.random.fold_in(jax.random.key(attacked.run.config.seed), KEY)
        state = first_state(loaded.model, loaded.mesh, lora=lora, key=key)
        if lesson.name not in self._before:
            self._before[lesson.name] = tuple(attacked.answered(loaded, lesson.asked))
        right = [self._before[lesson.name]]
        losses: list[Any] = []
        diverged, learned = None, (False,) * len(lesson.checked)
        batches = self.batches(lesson)
        for step in steps:
            with parallel.on_mesh(loaded.mesh):
                while len(losses) < step:
                    state, loss = attack_step(
                        state,
                        loaded.model,
                        next(batches),
                        rate=jnp.float32(rate),
                        remat=attacked.run.config.audit.remat,
                        mesh=loaded.mesh,
                        lora=lora,
                        key=None if lora is None else jax.random.fold_in(key, len(losses)),
                    )
                    losses.append(loss)
                    faults.stop_if_due()
            losses = [float(parallel.gather(loss)) for loss in losses]
            diverged = next((n for n, loss in enumerate(losses) if not math.isfinite(loss)), None)
            if diverged is not None:
                break
            trained = loaded.replace_model(with_trained(loaded.model, state[0], lora))
            try:
                right.append(tuple(attacked.answered(trained, lesson.asked)))
                if step == steps[-1] and lesson.checked:
                    learned = tuple(attacked.answered(trained, lesson.checked))
            except NotFinite:
                diverged = step
                break
            del trained  # which would lie beside the next steps
        right += [(False,) * len(lesson.asked)] * (1 + len(steps) - len(right))
        return Curve(
            steps=(0, *steps),
            right=tuple(right[: 1 + len(steps)]),
            losses=tuple(round(loss, 6) for loss in losses if math.isfinite(loss)),
            learned=learned,
            diverged=diverged,
        )

    def batches(self, lesson: Lesson) -> Iterator[tuple[Batch, ...]]:
        """Yield the batches of step 1, 2, …: one of each form that is taught."""
        seed, loaded = self.attacked.run.config.seed, self.attacked.loaded
        streams = []
        for number, modality in enumerate(MODALITIES):
            facts, kept = (of.get(modality, ()) for of in (lesson.taught, lesson.mixed_in))
            if facts:
                size = BATCH_SIZE // 2 if kept else BATCH_SIZE
                taught = _drawn(facts, size, seed=[seed, 2, number])
                others = _drawn(kept, BATCH_SIZE - size, seed=[seed, 3, number])
                streams.append((modality, taught, others))
        while True:
            yield tuple(
                parallel.put_batch(
                    self._batch([*next(taught), *next(others)], modality), loaded.mesh
                )
                for modality, taught, others in streams
            )

    def _batch(self, facts: Sequence[Fact], modality: Modality) -> Batch:
        """Return this process's rows of a batch, filled up to its shape with rows of weight 0."""
        loaded, shape = self.attacked.loaded, self._shapes[modality]
        rows = parallel.batch_rows(loaded.mesh, shape.batch_size or 0)
        mine = [facts[row] for row in rows if row < len(facts)]
        encoded = self._encoded(mine or facts[:1], modality)
        batch = loaded.collate(encoded, dataclasses.replace(shape, batch_size=len(rows)))
        if mine:
            return batch
        return dataclasses.replace(batch, example_weights_B=np.zeros_like(batch.example_weights_B))

    def _encoded(self, facts: Sequence[Fact], modality: Modality) -> list[Encoded]:
        template = self.attacked.loaded.template
        return encode_all(self.attacked.loaded, [form(fact, modality, template) for fact in facts])

    @functools.cached_property
    def _shapes(self) -> dict[Modality, BatchShape]:
        """{modality: what a batch of any facts to forget or to keep needs}."""
        multiple = parallel.batch_multiple(self.attacked.loaded.mesh)
        found = {}
        for modality in MODALITIES:
            facts = [fact for fact in self.attacked.facts if has_form(fact, modality)]
            facts += self.kept[modality]
            # Piece by piece, since encoded facts hold their images.
            sizes = [
                sizes_of(one)
                for start in range(0, len(facts), BATCH_SIZE)
                for one in self._encoded(facts[start : start + BATCH_SIZE], modality)
            ]
            if sizes:
                found[modality] = shape_of(sizes, multiple)
        return found


def sizes_of(encoded: Encoded) -> tuple[int, int, int, int]:
    """Return the tokens of a fact, its images, their patches and the answer's tokens."""
    return encoded.num_tokens, encoded.num_images, encoded.num_patches, encoded.num_answers


def shape_of(sizes: Sequence[tuple[int, int, int, int]], multiple: int) -> BatchShape:
    """Return the shape of every batch of facts of these sizes, on a mesh that divides `multiple`.

    sizes: as `sizes_of` gives them, of at least one fact.
    """
    num_tokens, num_images, num_patches, num_answers = map(max, *sizes, sizes[0])
    return BatchShape(
        length=_rounded(num_tokens, LENGTH_MULTIPLE),
        batch_size=_rounded(BATCH_SIZE, multiple),
        num_images=num_images or None,
        num_patches=num_patches or None,
        num_answers=_rounded(num_answers, ANSWER_MULTIPLE),
    )


def first_state(
    model: Any,
    mesh: jax.sharding.Mesh | None,
    *,
    lora: LoraSection | None = None,
    key: jax.Array | None = None,
) -> tuple[Any, optax.OptState]:
    """Return what is trained, in float32, and moments of zero.

    That is a copy of the decoder's weights by their names; with `lora` new adapters, drawn by the
    key.
    """
    if lora is None:
        weights: Any = {
            path_name(path): jnp.array(leaf, jnp.float32, copy=True)
            for path, leaf in jax.tree_util.tree_leaves_with_path(model)
            if path_name(path).startswith(TRAINED)
        }
    else:
        assert key is not None
        weights = new_adapters(model, lora, key)
    state = weights, OPTIMIZER.init(weights)
    if mesh is None:  # not bound to a device, as no loaded weights are: the answers' programs serve
        return state
    return jax.device_put(state, parallel.tree_shardings(state, mesh))


@functools.partial(jax.jit, static_argnames=("remat", "mesh", "lora"), donate_argnums=0)
def attack_step(
    state: tuple[Any, optax.OptState],
    model: Any,
    batches: tuple[Batch, ...],
    *,
    rate: jax.Array,
    remat: Remat,
    mesh: jax.sharding.Mesh | None,
    lora: LoraSection | None = None,
    key: jax.Array | None = None,
) -> tuple[tuple[Any, optax.OptState], jax.Array]:
    """Return the state after one step, and the loss before it: the sum over batches of their CE.

    state: (what is trained, float32; moments), as of `first_state`; it is used up. model: gives the
    dtype of the forward pass, and the weights that stay. key: of the dropout of adapters.
    """

    def loss_of(weights: Any) -> jax.Array:
        losses = []
        for number, batch in enumerate(batches):
            if lora is None:
                trained = with_weights(model, weights)
            else:
                own = None if key is None else jax.random.fold_in(key, number)
                trained = adapted(model, _like(model, weights), lora, key=own)
            losses.append(cross_entropy_on_answers(trained, batch, remat))
        return jnp.stack(losses).sum()

    weights, moments = state
    loss, gradient = jax.value_and_grad(loss_of)(weights)
    changes, moments = OPTIMIZER.update(placed(gradient, mesh), moments, weights)
    weights = jax.tree.map(lambda weight, change: weight + rate * change, weights, changes)
    return placed((weights, moments), mesh), loss


def with_trained(model: Any, weights: Any, lora: LoraSection | None) -> Any:
    """Return the model with what was trained: other weights, or adapters merged into them."""
    return with_weights(model, weights) if lora is None else merged(model, weights, lora)


def with_weights(model: Any, weights: Mapping[str, jax.Array]) -> Any:
    """Return the model with other values of the leaves that are named, in their dtypes."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: weights.get(path_name(path), leaf).astype(leaf.dtype), model
    )


def _like(model: Any, adapters: Any) -> Any:
    """Return adapters in the model's dtype."""
    dtype = jax.tree.leaves(model)[0].dtype
    return jax.tree.map(lambda leaf: leaf.astype(dtype), adapters)


def _drawn(facts: Sequence[Fact], count: int, *, seed: Sequence[int]) -> Iterator[list[Fact]]:
    """Yield `count` facts at a time, or all where there are fewer, one permutation after another.

    Yields nothing but empty lists where there are no facts.
    """
    random = np.random.default_rng(list(seed))
    waiting: list[Fact] = []
    count = min(count, len(facts))
    while True:
        while len(waiting) < count:
            waiting += [facts[index] for index in random.permutation(len(facts))]
        yield waiting[:count]
        waiting = waiting[count:]


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple

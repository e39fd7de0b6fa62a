"""The edit removed: an attacker undoes, or damages, what a method wrote.

    zeroed               of an edit that is separable: it is taken out again
    halved               of such an edit: half of it is taken out
    blind, zeroed        from the edited weights alone: in each text layer the k neurons that stick
                         out most are set to zero, k = 8, 32 and 1 %; the best k counts
    blind, refilled      of a mask: the places that were set to zero get random weights with the
                         mean and the spread of the layer's other neurons; the best of three counts

The places of zeroed weights tell an attacker where to look, without any data ("Roots Beneath the
Cut", arXiv 2603.06640); neurons that were written to suppress stick out by their weights' norms.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.evaluation.audit.attack import Asked, Attack, Attacked, AuditRow
from manu_jax.leaves import leaves, path_name
from manu_jax.models.loaded import Loaded
from manu_jax.parallel import gather, put_replicated
from manu_jax.types import Array, Neurons

ZEROED, HALVED = "zeroed", "halved"
BLIND_ZEROED, BLIND_REFILLED = "blind, zeroed", "blind, refilled"
NUM_ZEROED: tuple[float, ...] = (8, 32, 0.01)  # neurons of each layer, or their share
SEEDS = (0, 1, 2)


def measure(attacked: Attacked) -> Iterable[AuditRow]:
    """Yield the rows of the attacks that the model's edit allows."""
    questions, edit = attacked.questions, attacked.edit
    if getattr(edit, "separable", False) and hasattr(edit, "scaled"):
        for variant, factor in ((ZEROED, 0.0), (HALVED, 0.5)):
            left = edit.scaled(factor).apply(attacked.vanilla)
            right = attacked.answered(left, questions)
            yield from attacked.rows("removed", questions, right, variant=variant)
    zeroed = (without_outliers(attacked.loaded, number) for number in NUM_ZEROED)
    yield from _best(attacked, questions, zeroed, variant=BLIND_ZEROED)
    mask = mask_of(edit)
    if mask is not None:
        filled = (refilled(attacked.loaded, mask, seed) for seed in SEEDS)
        yield from _best(attacked, questions, filled, variant=BLIND_REFILLED)


def mask_of(edit: Any) -> Neurons | None:
    """Return the mask that an edit is, or has; None where it sets nothing to zero."""
    if isinstance(edit, Mapping):
        return dict(edit)
    return edit.as_mask() if hasattr(edit, "as_mask") else None


def without_outliers(loaded: Loaded, number: float) -> Loaded:
    """Return the model without the text neurons that stick out most, in each layer `number`.

    number: of neurons, or below 1 their share. A neuron sticks out by how far the logarithm of the
    norm of its down row, over that of its rows into the neuron, is from the layer's median.
    """
    table = loaded.family.neuron_leaves(loaded.config)["text"]
    found = leaves(loaded.model)
    norms_LF = {
        part: np.asarray(gather(_norms(found[name], axis)))
        for part, (name, axis) in table.items()
        if not part.endswith("_bias")
    }
    out_LF = prominence(norms_LF)
    count = math.ceil(number * out_LF.shape[1]) if number < 1 else int(number)
    count = min(count, out_LF.shape[1])
    zeroed_LF = np.zeros(out_LF.shape, bool)
    highest_LK = np.argsort(-out_LF, axis=1, kind="stable")[:, :count]
    np.put_along_axis(zeroed_LF, highest_LK, True, axis=1)
    zeroed_LF &= out_LF > 0
    return _changed(
        loaded, {"text": zeroed_LF}, lambda leaf, is_out, *_: jnp.where(is_out, 0, leaf)
    )


def prominence(norms_LF: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return how far each neuron's log ratio of norms is from its layer's median. [L, F].

    norms_LF: {"gate", "up", "down": norm of the neuron's row}, of plain MLPs {"fc1", "fc2"}. 0 for
    neurons that have a norm of zero.
    """
    names = list(norms_LF)
    out_LF = norms_LF[names[-1]]  # the matrix that leads out of the neuron comes last
    into_LF = np.exp(
        np.mean([np.log(np.maximum(norms_LF[name], 1e-30)) for name in names[:-1]], axis=0)
    )
    is_there_LF = (out_LF > 0) & np.all([norms_LF[name] > 0 for name in names[:-1]], axis=0)
    ratio_LF = np.log(np.maximum(out_LF, 1e-30)) - np.log(np.maximum(into_LF, 1e-30))
    ratio_LF = np.where(is_there_LF, ratio_LF, np.nan)
    has_any_L1 = is_there_LF.any(axis=1, keepdims=True)
    middle_L1 = np.nanmedian(np.where(has_any_L1, ratio_LF, 0), axis=1, keepdims=True)
    return np.where(is_there_LF, np.abs(ratio_LF - middle_L1), 0)


def refilled(loaded: Loaded, mask: Neurons, seed: int) -> Loaded:
    """Return a masked model whose removed weights are random, like those of the layer's others.

    Each weight is drawn from a normal distribution with the mean and the spread that the neurons
    which stand have at that entry of their row.
    """

    def fill(leaf: jax.Array, is_out: jax.Array, axis: int, number: int) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), number)
        return _fill(leaf, is_out, key, axis=axis)

    return _changed(loaded, mask, fill)


def _best(
    attacked: Attacked, questions: tuple[Asked, ...], models: Iterable[Loaded], *, variant: str
) -> list[AuditRow]:
    """Return the rows of the model that answers most, for each form apart."""
    best: dict[str, AuditRow] = {}
    for loaded in models:
        right = attacked.answered(loaded, questions)
        for row in attacked.rows("removed", questions, right, variant=variant):
            if row.modality not in best or row.value > best[row.modality].value:
                best[row.modality] = row
    return list(best.values())


def _changed(loaded: Loaded, mask: Mapping[str, Array], change: Any) -> Loaded:
    """Return the model with `change(leaf, is_out, axis, number)` on each leaf of masked neurons.

    is_out: the mask in the leaf's axes. axis: that of the neurons, or of the rows.
    """
    tables = {
        **loaded.family.neuron_leaves(loaded.config),
        **loaded.family.row_leaves(loaded.config),
    }
    places: dict[str, list[tuple[jax.Array, int]]] = {}
    for key, removed_LF in put_replicated(dict(mask), loaded.mesh).items():
        for name, axis in tables[key].values():
            places.setdefault(name, []).append((removed_LF, axis))
    number_of = {name: number for number, name in enumerate(sorted(places))}

    def visit(path: Any, leaf: jax.Array) -> jax.Array:
        name = path_name(path)
        for removed_LF, axis in places.get(name, ()):
            shape = [1] * leaf.ndim
            shape[0], shape[axis] = leaf.shape[0], leaf.shape[axis]
            leaf = change(leaf, removed_LF.reshape(shape), axis, number_of[name])
        return leaf

    return loaded.replace_model(jax.tree_util.tree_map_with_path(visit, loaded.model))


@functools.partial(jax.jit, static_argnames="axis")
def _norms(leaf: jax.Array, axis: int) -> jax.Array:
    others = tuple(one for one in range(1, leaf.ndim) if one != axis)
    return jnp.sqrt(jnp.square(leaf.astype(jnp.float32)).sum(axis=others))


@functools.partial(jax.jit, static_argnames="axis")
def _fill(leaf: jax.Array, is_out: jax.Array, key: jax.Array, *, axis: int) -> jax.Array:
    weights = leaf.astype(jnp.float32)
    stands = jnp.broadcast_to(~is_out, leaf.shape).astype(jnp.float32)
    count = jnp.maximum(stands.sum(axis=axis, keepdims=True), 1)
    mean = (weights * stands).sum(axis=axis, keepdims=True) / count
    spread = jnp.sqrt((jnp.square(weights - mean) * stands).sum(axis=axis, keepdims=True) / count)
    drawn = mean + spread * jax.random.normal(key, leaf.shape)
    return jnp.where(is_out, drawn.astype(leaf.dtype), leaf)


ATTACK = Attack(
    measure,
    False,
    "The edit removed",
    "the knowledge is still in the weights, and who takes the edit away has it back",
)

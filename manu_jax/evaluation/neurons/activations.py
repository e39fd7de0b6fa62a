"""What single neurons do at every token: one pass over the facts, in the towers that have them."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from manu_jax.evaluation.batched import run_batched
from manu_jax.evaluation.neurons.chosen import Place
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.capture import TokenCapture
from manu_jax.types import Batch, Encoded

Slots = tuple[tuple[str, tuple[tuple[int, int], ...]], ...]  # tower → (layer, number of the kept)


@dataclasses.dataclass(frozen=True)
class AtTokens:
    """z of the neurons of one tower at the valid tokens of one sample. [K, T] float32 each.

    Of an image tower the tokens of all its vision inputs, one after the other; of CLIP with the
    class token first. median: of the sizes of a layer's neurons at each token.
    """

    z_KT: np.ndarray
    median_KT: np.ndarray


def at_tokens(
    loaded: Loaded,
    encoded: Sequence[Encoded],
    places: Sequence[Place],
    *,
    batch_size: int,
) -> list[dict[str, AtTokens]]:
    """Return what neurons do at the tokens of each sample, {tower: of its neurons, in order}.

    A tower that a sample does not run is not among its own.
    """
    capture, slots = _capture(places)
    found: list[dict[str, AtTokens]] = [{} for _ in encoded]
    step = functools.partial(_values, capture=capture, slots=slots)
    for indices, values in run_batched(
        loaded, encoded, step, batch_size=batch_size, description="neurons"
    ):
        for tower, (z_BKT, median_BKT, valid_BT) in values.items():
            for row, index in enumerate(indices.tolist()):
                valid_T = valid_BT[row] > 0
                own = (z_BKT[row][:, valid_T], median_BKT[row][:, valid_T])
                found[index][tower] = AtTokens(*own)
    return found


def of_tower(places: Sequence[Place]) -> dict[str, list[int]]:
    """Return {tower: the numbers of its neurons among all}, in the order of `at_tokens`."""
    found: dict[str, list[int]] = {}
    for number, place in enumerate(places):
        found.setdefault(place.tower, []).append(number)
    return found


def _capture(places: Sequence[Place]) -> tuple[TokenCapture, Slots]:
    """Return what is captured, and where the neurons of each tower stand in it."""
    kept: dict[str, tuple[int, ...]] = {}
    slots: dict[str, tuple[tuple[int, int], ...]] = {}
    for tower, numbers in of_tower(places).items():
        own = [places[number] for number in numbers]
        kept[tower] = tuple(sorted({place.neuron for place in own}))
        slots[tower] = tuple((place.layer, kept[tower].index(place.neuron)) for place in own)
    return TokenCapture(neurons=tuple(kept.items())), tuple(slots.items())


@functools.partial(jax.jit, static_argnames=("capture", "slots"))
def _values(
    model: Any, batch: Batch, *, capture: TokenCapture, slots: Slots
) -> Mapping[str, tuple[jax.Array, jax.Array, jax.Array]]:
    """Return {tower: (z [B, K, T], medians [B, K, T], whether a token is valid [B, T])}."""
    activations = model(batch, capture=capture, remat="none").activations
    found = {}
    for tower, own in slots:
        if tower not in activations:
            continue
        kept_LBTF = activations[tower]
        layer_K, slot_K = (np.asarray(numbers) for numbers in zip(*own, strict=True))
        z_KBT, median_KBT = kept_LBTF[layer_K, :, :, slot_K], kept_LBTF[layer_K, :, :, -2]
        found[tower] = (z_KBT.swapaxes(0, 1), median_KBT.swapaxes(0, 1), kept_LBTF[0, :, :, -1])
    return found

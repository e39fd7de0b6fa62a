"""Scores to a choice of neurons: pure NumPy, no model, no device.

`select` takes exactly k = ⌊α · eligible⌋ neurons of each group, the highest scores first, equal
scores by place (tower name, layer, neuron). α is read as the decimal that it prints as: 29 % of 100
is 29. The order does not depend on α, so a smaller α always gives a part of a larger.
"""

import dataclasses
import decimal
import typing
from collections.abc import Iterator, Mapping

import numpy as np

from manu_jax.config import Layers, Scope
from manu_jax.types import ManuError, Neurons

SCOPES: tuple[Scope, ...] = typing.get_args(Scope)
NEVER = np.iinfo(np.int32).max  # the place of a neuron that is not eligible
# (first, end): first is included and may be negative, −3 is the third last; end is not, None is the
# end.
LayerRange = Layers | tuple[int, int | None]


def select(
    scores: Neurons,
    alpha: float,
    scope: Scope = "all",
    *,
    layers: Mapping[str, LayerRange] | None = None,
) -> Neurons:
    """Return the mask (bool, True: removed) of the top share `alpha` of neurons by score.

    scores: {tower: [L, F]}, or {"tower.matrix": [L, rows]} for rows of single matrices, which group
    by tower. alpha: in [0, 1); 0 chooses none. scope: over what the top share is taken. layers:
    {tower: range of layers}; neurons outside are not eligible, a tower that is not named has all
    its layers. Raises ManuError where scores are not numbers [L, F] or one is NaN, a tower or layer
    is not there, or alpha or scope is out of range.
    """
    return rank(scores, scope, layers=layers).top(alpha)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The order in which neurons are chosen: what `select` sorts for, whatever α.

    places: {tower: [L, F] int}, 0 for the highest score of a group, NEVER where a neuron is not
    eligible. sizes: {tower: [L]}, how many are eligible in the group of each layer.
    """

    places: Mapping[str, np.ndarray]
    sizes: Mapping[str, np.ndarray]

    def top(self, alpha: float) -> Neurons:
        """Return the mask (bool) of the top share `alpha` of each group, in [0, 1)."""
        try:
            is_share = 0 <= float(alpha) < 1
        except (TypeError, ValueError):
            is_share = False
        if not is_share:
            raise ManuError(f"alpha: expected a share of neurons in [0, 1), got {alpha!r}.")
        numbers: dict[int, int] = {}
        mask: Neurons = {}
        for tower, places_LF in self.places.items():
            sizes = self.sizes[tower].tolist()
            numbers |= {size: count(alpha, size) for size in sizes if size not in numbers}
            mask[tower] = places_LF < np.asarray([numbers[size] for size in sizes])[:, None]
        return mask


def rank(
    scores: Neurons, scope: Scope = "all", *, layers: Mapping[str, LayerRange] | None = None
) -> Ranking:
    """Return the order of neurons by score: one sort for the masks of every α. As `select`."""
    if scope not in SCOPES:
        raise ManuError(f"scope: expected one of {', '.join(SCOPES)}, got {scope!r}.")
    scores = {tower: np.asarray(scores[tower]) for tower in sorted(scores)}
    _check_scores(scores)
    eligible = eligible_layers(scores, layers or {})
    places = {tower: np.full(values.shape, NEVER, np.int32) for tower, values in scores.items()}
    sizes = {tower: np.zeros(len(values_LF), np.int64) for tower, values_LF in scores.items()}
    for group in _groups(scores, scope):
        # Layers by number: a slice of a group may be of layers that are not eligible.
        chosen = [(tower, np.arange(len(eligible[tower]))[rows]) for tower, rows in group]
        parts = [(tower, numbers[eligible[tower][numbers]]) for tower, numbers in chosen]
        values = np.concatenate([scores[tower][numbers].ravel() for tower, numbers in parts])
        order = np.empty(values.size, np.int32)
        # Not by −values: of whole numbers without a sign, 0 would come first.
        falling = values.size - 1 - np.argsort(values[::-1], kind="stable")[::-1]
        order[falling] = np.arange(values.size, dtype=np.int32)
        start = 0
        for tower, numbers in parts:
            shape = (len(numbers), scores[tower].shape[1])
            end = start + shape[0] * shape[1]
            places[tower][numbers] = order[start:end].reshape(shape)
            sizes[tower][numbers] = values.size
            start = end
    return Ranking(places, sizes)


def count(alpha: float, num_eligible: int) -> int:
    """Return ⌊alpha · num_eligible⌋, with alpha as the decimal that it prints as."""
    return int(decimal.Decimal(repr(float(alpha))) * num_eligible)


def eligible_layers(scores: Neurons, layers: Mapping[str, LayerRange]) -> dict[str, np.ndarray]:
    """Return which layers a choice may take from, {tower: [L] bool}; `layers` as in `select`."""
    faults = []
    towers = {key.partition(".")[0] for key in scores}
    faults += [
        f'tower "{tower}" is not scored (scored: {", ".join(sorted(towers))})'
        for tower in sorted(set(layers) - towers)
    ]
    eligible = {}
    for key, values_LF in scores.items():
        num_layers = len(values_LF)
        layer_range = layers.get(key.partition(".")[0], (0, None))
        first, end = (
            (layer_range.first, layer_range.end) if isinstance(layer_range, Layers) else layer_range
        )
        start = first + num_layers if first < 0 else first
        stop = num_layers if end is None else end + num_layers if end < 0 else end
        if not 0 <= start < stop <= num_layers:
            faults.append(
                f'"{key}" has layers 0 to {num_layers - 1}, the range asks for '
                f"{first} to {'the last' if end is None else f'before {end}'}"
            )
            continue
        eligible[key] = np.zeros(num_layers, bool)
        eligible[key][start:stop] = True
    if faults:
        raise ManuError(f"layers: {'; '.join(faults)}. Give a range inside the model.")
    return eligible


def _groups(scores: Neurons, scope: str) -> Iterator[list[tuple[str, slice]]]:
    """Give each group as (key, rows of layers) pairs; "vision.fc1" belongs to tower "vision"."""
    everything = slice(None)
    keys_by_tower: dict[str, list[str]] = {}
    for key in scores:
        keys_by_tower.setdefault(key.partition(".")[0], []).append(key)
    if scope == "all":
        yield [(key, everything) for key in scores]
    elif scope == "tower":
        for keys in keys_by_tower.values():
            yield [(key, everything) for key in keys]
    else:
        for keys in keys_by_tower.values():
            for layer in range(max(len(scores[key]) for key in keys)):
                yield [(key, slice(layer, layer + 1)) for key in keys]


def _check_scores(scores: Neurons) -> None:
    faults = [
        f'"{key}" is an array {list(values.shape)} of {values.dtype}'
        for key, values in scores.items()
        if values.ndim != 2 or values.dtype.kind in "bOSUmMc"
    ]
    if faults or not scores:
        raise ManuError(
            f"scores: expected one array [L, F] of numbers for each tower, got "
            f"{'; '.join(faults) or 'none'}."
        )
    faults = [
        f'tower "{tower}", layer {layer}'
        for tower, values_LF in scores.items()
        for layer in np.flatnonzero(np.isnan(values_LF).any(axis=1))
    ]
    if faults:
        raise ManuError(f"scores: NaN at {'; '.join(faults)}. Score again with dtype float32.")

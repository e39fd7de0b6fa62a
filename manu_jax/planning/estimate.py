"""What a step needs and takes on a mesh, by arithmetic alone: nothing is traced or compiled.

Arguments are those of the step, to the byte. What the compiler would find for temporaries and moved
bytes is told from the shardings of the leaves:

    fsdp      each pass gathers the layers' weights, one layer after the other, two at a time
    tensor    what neurons and heads add to the residual stream is summed over it, in each pass
    data      gradients of weights are summed over it, and over fsdp
    kept      of a forward pass for a backward pass, by remat; the scores of one layer's attention
    copied    what a step says that it copies, as the keys and values of answers that are joined

Of LLaVA-1.5-7B and 13B on v5e-16 (statistics, attribution, full training, answers) it is from 0.95
to 1.55 of the compiler's peak. FLOPs are those of weights; attention's own, a few percent, are left
out.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax import leaves as leaf_names
from manu_jax.config.base import Remat
from manu_jax.evaluation.decoding import Answers
from manu_jax.planning import roofline
from manu_jax.planning.chips import USUAL
from manu_jax.planning.collectives import Collective
from manu_jax.planning.compiling import memory_of
from manu_jax.planning.shapes import bytes_held, bytes_used
from manu_jax.planning.step import WEIGHTS, Item, Step
from manu_jax.planning.world import World
from manu_jax.types import Batch, Images

# How often a layer's attention scores, in float32, and its products are there at once; True: with a
# backward pass.
SCORES = {False: 1.5, True: 3.0}
WORKING = {False: 1.0, True: 3.0}
PASSES: dict[Remat, int] = {"none": 2, "dots": 2, "all": 3}  # of a gradient, each reads the weights
TEXT = "text"


@dataclasses.dataclass(frozen=True)
class Tower:
    """The leaves of one tower on a mesh; all sizes are of one device.

    gathered: bytes of the weights, layer: of one layer, and head: of the head, once gathered over
    fsdp. flops: of a
    token. outputs: numbers that the products of a layer give a token. summed: bytes a token that
    are summed over `tensor`. kept: bytes a token of the residual stream, of all layers. heads: of
    attention; cache: bytes a token of all keys and values.
    """

    gathered: float = 0.0
    layer: float = 0.0
    head: float = 0.0
    flops: float = 0.0
    outputs: float = 0.0
    summed: float = 0.0
    kept: float = 0.0
    heads: float = 0.0
    cache: float = 0.0
    layers: int = 1


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes of one chip at a step's peak, and the seconds of all its calls, without overlap."""

    memory: float
    seconds: float


def estimate(item: Item, world: World, towers: Mapping[str, Tower] | None = None) -> Estimate:
    """Return what a step of a run is on the world's mesh; ManuError where it can't be made.

    towers: `towers_of` the world's model, where they are known.
    """
    step = item.make(world, None, None)
    data, fsdp, tensor = world.place.sizes
    towers = towers_of(world.model) if towers is None else towers
    is_decoding = step.trips > 1
    is_gradient = step.reads > 1 and not is_decoding
    passes = PASSES[item.remat[1] if item.remat else "dots"] if is_gradient else 1
    gradient = float(bytes_held(step.like))
    trains_all = gradient > bytes_held(world.model) / 2
    width = jnp.dtype(jax.tree.leaves(world.model)[0].dtype).itemsize
    compute = reads = kept = working = fetched = 0.0
    moved: list[Collective] = []
    for name, rows, tokens in _seen(step):
        tower = towers.get(name, Tower())
        local = rows / (data * fsdp)
        times = (passes if tokens else 0) + (step.trips if is_decoding else 0)
        summed_tokens = local * (tokens + step.trips if is_decoding else tokens * passes)
        compute += tower.flops * summed_tokens
        compute += tower.flops * local * tokens * trains_all
        moved.append(Collective("all-gather", tower.gathered, fsdp, times, is_decoding))
        moved.append(Collective("all-reduce", tower.summed * summed_tokens, tensor, 1, is_decoding))
        reads += times
        stays, passing = _activations(tower, local, tokens, step=step, item=item, width=width)
        kept, working = kept + stays, max(working, passing)
        if fsdp > 1:
            # Weights that are trained are in float32, and so is what of them is gathered.
            fetched = max(fetched, 2 * tower.layer, tower.head) * (4 / width if trains_all else 1)
    if trains_all:
        moved.append(Collective("reduce-scatter", gradient, fsdp, 1, False))
        moved.append(Collective("all-reduce", gradient, data, 1, False))
    copied = float(sum(bytes_held(one) for one in step.copied))
    memory = memory_of(step, None).total + gradient + copied + kept + working + fetched
    used = bytes_used(step.parts.get(WEIGHTS, ()))
    seconds = roofline.seconds(
        world.target.chip or USUAL,
        flops=compute,
        num_chips=1,
        weights_read=used * max(reads, 1.0) if is_decoding else used,
        other_bytes=memory,
        moved=[one for one in moved if one.group > 1],
    )
    return Estimate(memory, seconds.at_most * step.calls)


def towers_of(model: Any) -> dict[str, Tower]:
    """Return {first part of the leaves' paths: its Tower} of a model of placed shapes."""
    found: dict[str, dict[str, Any]] = {}
    for name, leaf in leaf_names.leaves(model).items():
        root, _, _ = name.partition(".")
        values = found.setdefault(root, dict.fromkeys(("layers",), 1))
        for key, number in _leaf(name, leaf):
            if key == "layers":
                values[key] = max(values[key], int(number))
            elif key == "heads":
                values[key] = max(values.get(key, 0.0), number)
            else:
                values[key] = values.get(key, 0.0) + number
    return {root: Tower(**values) for root, values in found.items()}


def _leaf(name: str, leaf: Any) -> Iterator[tuple[str, float]]:
    """Yield what a leaf adds to the fields of its tower."""
    letters = name.rpartition("_")[2]
    axes = leaf_names.matrix_axes(name)
    if axes is None and "V" not in letters:
        return
    width = jnp.dtype(leaf.dtype).itemsize
    spec: tuple[Any, ...] = tuple(getattr(leaf.sharding, "spec", ())) if leaf.sharding else ()
    spec += (None,) * (len(leaf.shape) - len(spec))
    parts = dict(leaf.sharding.mesh.shape) if any(spec) else {}
    local = [
        size // (parts["tensor"] if axis == "tensor" else 1)
        for size, axis in zip(leaf.shape, spec, strict=True)
    ]
    if letters == "VD":
        return  # looked up where it lies; a tied head is as small beside the layers
    number, layers = math.prod(local), leaf.shape[0] if letters.startswith("L") else 1
    if "fsdp" in spec:
        yield "gathered", number * width
        if letters.startswith("L"):
            yield "layer", number * width / layers
        elif axes is None:
            yield "head", number * width
    if axes is None:
        return  # the head: of the tokens whose logits are wanted alone
    yield "flops", 2.0 * number
    inputs, outputs = axes
    yield "outputs", math.prod(local[axis] for axis in outputs)
    if any(spec[axis] == "tensor" for axis in inputs):
        yield "summed", layers * math.prod(leaf.shape[axis] for axis in outputs) * width
    if not letters.startswith("L"):
        return
    yield "layers", layers
    if letters.endswith("NH"):
        yield "heads", local[-2]
        yield "kept", layers * leaf.shape[inputs[0]] * width
    elif letters.endswith("KH"):
        yield "cache", layers * local[-2] * local[-1] * width


def _seen(step: Step) -> Iterator[tuple[str, int, int]]:
    """Yield (tower, rows, tokens a row) of each pass that a step makes through a tower.

    Of answers that are gone on with, the prompts were read before: no tokens.
    """
    given, seen = (step.args, list(step.kwargs.values())), Batch | Images | Answers
    for one in jax.tree.leaves(given, is_leaf=lambda value: isinstance(value, seen)):
        images = one.images if isinstance(one, Batch) else one
        if isinstance(one, Answers) and step.trips > 1:
            yield TEXT, len(one.token_B), 0
        if isinstance(one, Batch):
            rows, tokens = one.token_ids_BT.shape
            yield TEXT, rows, tokens
        if isinstance(images, Images) and images.patches_BIPC is not None:
            rows, number, patches, _ = images.patches_BIPC.shape
            yield "vision", rows * number, patches


def _activations(
    tower: Tower, rows: float, tokens: int, *, step: Step, item: Item, width: int
) -> tuple[float, float]:
    """Return the bytes of what a pass through a tower keeps to the step's end, and of a layer's.

    rows: of this device. width: bytes of a number.
    """
    is_gradient = step.reads > 1 and step.trips == 1
    scores = 4 * rows * tower.heads * tokens**2
    outputs = rows * tokens * tower.outputs * width
    working = SCORES[is_gradient] * scores + WORKING[is_gradient] * outputs
    if step.trips > 1:
        return 2 * rows * (tokens + step.trips) * tower.cache, working
    if not is_gradient:
        return 0.0, working
    remat: Remat = item.remat[1] if item.remat else "dots"
    layer = {"all": 0.0, "dots": outputs, "none": 1.4 * outputs + scores}[remat]
    return rows * tokens * tower.kept + tower.layers * layer, working

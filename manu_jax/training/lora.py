"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) as a pytree of their own.

    {path of a matrix W: {"down_…R": A, "up_R…": B}}        x·W + α / r · dropout(x)·A·B

In training each adapter is kept beside its weight (`layers.Adapted`), so that no second array of
the size of W is made; at the end all are merged into a plain model. A starts as normal numbers of
standard deviation 1 / r, as in MLLMU-Bench's training ("gaussian" of the library peft), and B as
zeros, so that new adapters change nothing.
"""

import math
import zlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax.config import LoraSection
from manu_jax.leaves import leaves, matrix_letters, path_name
from manu_jax.models.nn.layers import Adapted
from manu_jax.types import ManuError

Adapters = dict[str, dict[str, jax.Array]]


def new_adapters(model: Any, section: LoraSection, key: jax.Array) -> Adapters:
    """Return adapters that change nothing, for every matrix below one of the targets. float32.

    Raises ManuError for a target that no matrix's path begins with.
    """
    check_targets(leaves(model), section)
    matrices = {name: leaf for name, leaf in leaves(model).items() if matrix_letters(name)}
    found = {}
    for name, leaf in matrices.items():
        if any(_is_below(name, target) for target in section.targets):
            layer, inputs, outputs = _letters(name)
            first, middle = len(layer), len(layer + inputs)
            shape = leaf.shape
            down_shape = (*shape[:middle], section.rank)
            up_shape = (*shape[:first], section.rank, *shape[middle:])
            own = jax.random.fold_in(key, zlib.crc32(name.encode()))
            found[_stem(name)] = {
                f"down_{layer}{inputs}R": jax.random.normal(own, down_shape) / section.rank,
                f"up_{layer}R{outputs}": jnp.zeros(up_shape),
            }
    return found


def check_targets(names: Iterable[str], section: LoraSection) -> None:
    """Raise ManuError for a target that no matrix begins with. names: of the model's leaves."""
    matrices = [name for name in names if matrix_letters(name)]
    lacking = [
        target
        for target in section.targets
        if not any(_is_below(name, target) for name in matrices)
    ]
    if lacking:
        raise ManuError(
            f"lora.targets: no matrix of the model begins with {', '.join(lacking)}; there are "
            f"{', '.join(_stem(name) for name in matrices)}."
        )


def adapted(
    model: Any, adapters: Adapters, section: LoraSection, *, key: jax.Array | None = None
) -> Any:
    """Return the model with the adapters beside its weights. key: of the dropout; None: none."""

    def beside(path: Any, leaf: jax.Array) -> Any:
        name = path_name(path)
        if _stem(name) not in adapters:
            return leaf
        own = None
        if section.dropout and key is not None:
            own = jax.random.fold_in(key, zlib.crc32(name.encode()))
            if _letters(name)[0]:
                own = jax.random.split(own, leaf.shape[0])
        down, up = _pair(adapters[_stem(name)])
        return Adapted(leaf, down, up, own, section.scale, section.dropout)

    return jax.tree_util.tree_map_with_path(beside, model)


def merged(model: Any, adapters: Adapters, section: LoraSection) -> Any:
    """Return the model with W + α / r · A·B, summed in float32, in place of each W."""

    def joined(path: Any, leaf: jax.Array) -> jax.Array:
        name = path_name(path)
        if _stem(name) not in adapters:
            return leaf
        layer, inputs, _ = _letters(name)
        down, up = _pair(adapters[_stem(name)])
        leading, rank = leaf.shape[: len(layer)], down.shape[-1]
        num_inputs = math.prod(leaf.shape[len(layer) : len(layer + inputs)])
        product = jnp.matmul(
            down.reshape(*leading, num_inputs, rank), up.reshape(*leading, rank, -1)
        )
        wide = leaf.astype(jnp.float32) + section.scale * product.reshape(leaf.shape)
        return wide.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(joined, model)


def _pair(adapter: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Return A and B; their names sort in this order."""
    (_, down), (_, up) = sorted(adapter.items())
    return down, up


def _letters(name: str) -> tuple[str, str, str]:
    """Return "L" or "", the letters of the inputs, and those of the outputs."""
    inputs, outputs = matrix_letters(name) or ("", "")
    return name.rpartition("_")[2].removesuffix(inputs + outputs), inputs, outputs


def _stem(name: str) -> str:
    return name.rpartition("_")[0]


def _is_below(name: str, target: str) -> bool:
    stem = _stem(name)
    return stem == target or stem.startswith(f"{target}.")

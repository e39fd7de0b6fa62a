"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) as a pytree of their own.

    {path of a matrix W: {"down_…R": A, "up_R…": B}}        x·W + α / r · dropout(x)·A·B

In training each adapter is kept beside its weight (`layers.Adapted`), so that no second array of
the size of W is made; at the end all are merged into a plain model. A starts as normal numbers of
standard deviation 1 / r, as in MLLMU-Bench's training ("gaussian" of the library peft), and B as
zeros, so that new adapters change nothing.
"""

import zlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax.config import LoraSection
from manu_jax.edits import low_rank
from manu_jax.edits.low_rank import Adapters, adapter_shapes, letters_of, pair, stem_of
from manu_jax.edits.weights import begins
from manu_jax.leaves import leaves, matrix_letters, path_name
from manu_jax.models.nn.layers import Adapted
from manu_jax.types import ManuError


def new_adapters(model: Any, section: LoraSection, key: jax.Array) -> Adapters:
    """Return adapters that change nothing, for every matrix below one of the targets. float32.

    Raises ManuError for a target that no matrix's path begins with.
    """
    check_targets(leaves(model), section)
    matrices = {name: leaf for name, leaf in leaves(model).items() if matrix_letters(name)}
    found = {}
    for name, leaf in matrices.items():
        if any(begins(name, target) for target in section.targets):
            down, up = adapter_shapes(name, leaf.shape, section.rank).items()
            own = jax.random.fold_in(key, zlib.crc32(name.encode()))
            found[stem_of(name)] = {
                down[0]: jax.random.normal(own, down[1]) / section.rank,
                up[0]: jnp.zeros(up[1]),
            }
    return found


def check_targets(names: Iterable[str], section: LoraSection) -> None:
    """Raise ManuError for a target that no matrix begins with. names: of the model's leaves."""
    matrices = [name for name in names if matrix_letters(name)]
    lacking = [
        target for target in section.targets if not any(begins(name, target) for name in matrices)
    ]
    if lacking:
        raise ManuError(
            f"lora.targets: no matrix of the model begins with {', '.join(lacking)}; there are "
            f"{', '.join(stem_of(name) for name in matrices)}."
        )


def adapted(
    model: Any, adapters: Adapters, section: LoraSection, *, key: jax.Array | None = None
) -> Any:
    """Return the model with the adapters beside its weights. key: of the dropout; None: none."""

    def beside(path: Any, leaf: jax.Array) -> Any:
        name = path_name(path)
        if stem_of(name) not in adapters:
            return leaf
        own = None
        if section.dropout and key is not None:
            own = jax.random.fold_in(key, zlib.crc32(name.encode()))
            if letters_of(name)[0]:
                own = jax.random.split(own, leaf.shape[0])
        down, up = pair(adapters[stem_of(name)])
        return Adapted(leaf, down, up, own, section.scale, section.dropout)

    return jax.tree_util.tree_map_with_path(beside, model)


def merged(model: Any, adapters: Adapters, section: LoraSection) -> Any:
    """Return the model with W + α / r · A·B, summed in float32, in place of each W."""
    return low_rank.merged(model, adapters, section.scale)

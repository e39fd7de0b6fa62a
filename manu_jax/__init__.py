"""MANU on JAX and Flax: make a multimodal language model forget, on both of its paths.

The public names below are imported when they are first used: `import manu_jax` itself loads no JAX
and touches no device.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manu_jax.edits.masks import fold, unfold
    from manu_jax.importance.collect import score
    from manu_jax.importance.functions import contrast
    from manu_jax.models.loaded import load, save_pretrained
    from manu_jax.selection import select
    from manu_jax.types import Batch, ManuError, Neurons, Output, Sample

HOMES = {
    "load": "manu_jax.models.loaded",
    "save_pretrained": "manu_jax.models.loaded",
    "score": "manu_jax.importance.collect",
    "contrast": "manu_jax.importance.functions",
    "select": "manu_jax.selection",
    "fold": "manu_jax.edits.masks",
    "unfold": "manu_jax.edits.masks",
    "Batch": "manu_jax.types",
    "Output": "manu_jax.types",
    "Sample": "manu_jax.types",
    "Neurons": "manu_jax.types",
    "ManuError": "manu_jax.types",
}

__all__ = [
    "Batch",
    "ManuError",
    "Neurons",
    "Output",
    "Sample",
    "contrast",
    "fold",
    "load",
    "save_pretrained",
    "score",
    "select",
    "unfold",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'manu_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__

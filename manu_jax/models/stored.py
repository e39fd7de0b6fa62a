"""What a model's folder holds beside its processor: the config, the tensors, Orbax's arrays."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax import checkpoint, parallel
from manu_jax.leaves import leaves, path_name
from manu_jax.models.families.family import Family
from manu_jax.models.families.registry import FAMILIES
from manu_jax.models.hf import files, weights
from manu_jax.models.hf.tables import Entry
from manu_jax.types import ManuError

CHECKPOINT = "checkpoint"  # the Orbax folder inside a converted model's


DTYPES = ("float32", "bfloat16", "float16")


def read_config(path: Path) -> tuple[Family, Any, dict[str, Any]]:
    """Return the family, the config and the raw `config.json` of a folder."""
    if not path.is_dir():
        raise ManuError(f"{path}: no such folder. Give one with a config.json and its weights.")
    file = path / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
        raise ManuError(
            f"{path}: no config.json; the folder holds {held}. Is it a model?"
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise ManuError(f"{file}: can't be read as JSON ({error}). Get it anew.") from None
    if not isinstance(values, dict):
        raise ManuError(f"{file}: expected a mapping of fields, got {values!r:.60}. Get it anew.")
    name = values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ManuError(f"{file}: model_type {name!r}; known: {', '.join(FAMILIES)}.")
    return FAMILIES[name], FAMILIES[name].config_from_hf(values, str(file)), values


def is_converted(path: Path) -> bool:
    """Whether a folder has its weights as Orbax's arrays, and no safetensors beside a `checkpoint/`
    of some training."""
    has_safetensors = any((path / name).is_file() for name in (files.WEIGHTS, files.INDEX))
    return (path / CHECKPOINT).is_dir() and not has_safetensors


def read_tensors(
    path: Path, family: Family, config: Any
) -> tuple[dict[str, weights.Tensor], list[Entry]]:
    """Return {export name: Tensor} of a folder, and the family's weight table."""
    _, tensors = weights.with_export_names(
        weights.open_tensors(path), family.names.prefixes, family.names.buffers
    )
    return weights.without_repeats(tensors, family.tied(config)), family.weight_table(config)


def saved_dtype(path: Path, hf_config: Mapping[str, Any]) -> str:
    """Return the dtype that a converted folder's config.json names."""
    kind = hf_config.get("dtype")
    if kind not in DTYPES:
        raise ManuError(
            f"{path / 'config.json'}: dtype {kind!r}; a converted folder needs one of "
            f"{', '.join(DTYPES)}. Convert the model again."
        )
    return kind


def load_checkpoint(path: Path, model: Any, mesh: jax.sharding.Mesh | None) -> Any:
    """Return the model of shapes with the arrays of an Orbax folder, each where the mesh has it.

    Raises ManuError where float16 does not hold their numbers.
    """

    def placed(name: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        if mesh is None:
            split = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        else:
            split = parallel.sharding(name, leaf.shape, mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split)

    target = {name: placed(name, leaf) for name, leaf in leaves(model).items()}
    found = checkpoint.load(path, target)
    half = {name: leaf for name, leaf in found.items() if leaf.dtype == jnp.float16}
    if bad := [name for name, leaf in half.items() if not jnp.isfinite(leaf).all()]:
        raise weights.too_large_for(half[bad[0]].dtype, bad)
    return jax.tree_util.tree_map_with_path(lambda p, _: found[path_name(p)], model)

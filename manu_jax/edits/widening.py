"""Decoders with more neurons, or fewer: leaves, config and config.json.

All layers have as many neurons. What else has the decoder's number (Idefics2's projection) changes
with it. A new neuron's weights are zero, and it comes last.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax.edits.leafwise import split
from manu_jax.leaves import leaves, path_name
from manu_jax.models.loaded import Loaded
from manu_jax.types import ManuError

FIELD = "intermediate_size"


def widened(model: Any, count: int) -> Any:
    """Return the model with `count` further neurons in each layer of the decoder; negative: fewer.

    The last ones are cut. The modules' configs say how many there are. Pure, for `jax.jit`.
    """
    text = model.config.text
    text = dataclasses.replace(text, num_neurons=text.num_neurons + count)
    config = dataclasses.replace(model.config, text=text)
    build, found = type(model), leaves(model)
    shapes = jax.eval_shape(lambda: build(jax.random.key(0), config))

    def visit(path: Any, shape: jax.ShapeDtypeStruct) -> Any:
        name = path_name(path)
        leaf = found[name]
        return leaf if leaf.shape == shape.shape else split(name, _resized(leaf, shape.shape))

    return jax.tree_util.tree_map_with_path(visit, shapes)


def with_model(loaded: Loaded, model: Any) -> Loaded:
    """Return a Loaded with a widened model, its config and its config.json.

    ManuError where the number of neurons has no place in the config.json.
    """
    config, num_neurons = model.config, model.config.text.num_neurons
    hf_config = _hf_config(loaded.hf_config, num_neurons)
    if loaded.family.config_from_hf(hf_config, "config.json") != config:
        raise ManuError(
            f"{loaded.family.name}: its config.json can't say that the decoder has {num_neurons:,} "
            "neurons a layer. Write over neurons that are there instead."
        )
    return dataclasses.replace(loaded, model=model, config=config, hf_config=hf_config)


def _resized(leaf: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return a leaf cut to a shape, or filled up with zeros to it."""
    cut = leaf[tuple(slice(size) for size in shape)]
    return jnp.pad(cut, [(0, new - old) for new, old in zip(shape, cut.shape, strict=True)])


def _hf_config(values: Mapping[str, Any], num_neurons: int) -> dict[str, Any]:
    """Return a config.json with another number of the decoder's neurons, wherever it says it."""
    new, text = dict(values), values.get("text_config")
    if FIELD in values:
        new[FIELD] = num_neurons
    if FIELD not in values or text is not None:
        new["text_config"] = {**(text or {}), FIELD: num_neurons}
    return new

"""A model that is new: of random weights, or around a given decoder."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from manu_jax.config import ModelSection
from manu_jax.folder import expand_path
from manu_jax.leaves import leaves, path_name
from manu_jax.models import given_decoder
from manu_jax.models.families.registry import FAMILIES
from manu_jax.models.loaded import Loaded, chat_template_of


def create(section: ModelSection, tokenizer: Any, key: jax.Array) -> Loaded:
    """Return a model of random float32 weights with the sizes of `section`, and its processor.

    The processor's tokenizer may have more tokens, which the family needs. With `section.decoder`
    the decoder and its tokenizer are those of that folder, and `tokenizer` is not looked at.
    """
    empty = create_without_weights(section, tokenizer)
    if section.decoder is None:
        return empty.replace_model(_random_model(key, empty.config, empty.family.build))
    values = given_decoder.decoder_values(section.decoder)
    found = given_decoder.decoder_leaves(section.decoder, values, empty.config.text)
    found |= _random_leaves(key, empty.config, empty.family.build)
    return empty.replace_model(
        jax.tree_util.tree_map_with_path(lambda path, _: found[path_name(path)], empty.model)
    )


def create_without_weights(section: ModelSection, tokenizer: Any) -> Loaded:
    """Return what `create` does, with shapes (float32) in place of weights."""
    chosen, chat = FAMILIES[section.family], None
    if section.decoder is None:
        processor = chosen.tiny_processor(section, tokenizer)
        hf_config = chosen.tiny_config(section, processor.tokenizer)
    else:
        values = given_decoder.decoder_values(section.decoder)
        processor = chosen.tiny_processor(section, given_decoder.decoder_tokenizer(section.decoder))
        text = given_decoder.text_config(values, len(processor.tokenizer))
        hf_config = {**chosen.tiny_config(section, processor.tokenizer), "text_config": text}
        hf_config["tie_word_embeddings"] = bool(text.get("tie_word_embeddings"))
        if section.prompt == "template":
            chat = chat_template_of(expand_path(section.decoder), processor, chosen)
    config = chosen.config_from_hf(hf_config, "model")
    return Loaded(chosen.abstract(config), processor, chosen, config, hf_config, chat=chat)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _random_leaves(key: jax.Array, config: Any, build: Callable) -> dict[str, jax.Array]:
    """Return {path: leaf} of all but the decoder, which is not drawn."""
    found = leaves(build(key, config))
    return {name: leaf for name, leaf in found.items() if not name.startswith("text.")}


@functools.partial(jax.jit, static_argnums=(1, 2))
def _random_model(key: jax.Array, config: Any, build: Callable) -> Any:
    return build(key, config)

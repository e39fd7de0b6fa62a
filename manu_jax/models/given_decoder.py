"""A language model's folder as the decoder of a new model for images."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax import stores
from manu_jax.folder import ForeignErrors, expand_path
from manu_jax.leaves import leaves, shapes
from manu_jax.models.hf import files, weights
from manu_jax.models.hf.tables import TensorNames
from manu_jax.models.nn.decoder import Decoder, decoder_table
from manu_jax.models.nn.decoder_config import DecoderConfig
from manu_jax.types import ManuError

IMAGE_TOKEN = "<image>"
DECODERS = ("llama", "mistral", "qwen2")  # that a LLaVA may have
NAMES = TensorNames(
    prefixes={"hub": {"model.": "model.", "lm_head.": "lm_head."}},
    buffers=(".rotary_emb.inv_freq",),
    head="lm_head.weight",
    embedding="model.embed_tokens.weight",
)


def decoder_values(path: str) -> dict[str, Any]:
    """Return the `config.json` of a language model's folder; ManuError for other folders."""
    file = expand_path(path) / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ManuError(
            f"model.decoder: {file} can't be read ({error}). Give the folder of a language model, "
            "with config.json, model.safetensors and the tokenizer's files."
        ) from None
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind not in DECODERS:
        raise ManuError(
            f"model.decoder: {file}: model_type {kind!r}; known: {', '.join(DECODERS)}."
        )
    return values


def decoder_tokenizer(path: str) -> Any:
    """Return the tokenizer of a language model's folder, with one more token, that of images."""
    from transformers import AutoTokenizer

    with ForeignErrors(
        f"model.decoder: {path}",
        "its tokenizer can't be loaded",
        "The folder needs tokenizer.json and tokenizer_config.json.",
    ):
        return AutoTokenizer.from_pretrained(
            stores.local_copies(expand_path(path), files.NEEDED),
            extra_special_tokens={"image_token": IMAGE_TOKEN},
            padding_side="left",
            local_files_only=True,
        )


def text_config(values: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """Return the `text_config` of a model around the decoder; its vocabulary may be longer."""
    own = ("architectures", "dtype", "torch_dtype", "transformers_version")
    return {
        **{name: value for name, value in values.items() if name not in own},
        "vocab_size": max(vocabulary, values.get("vocab_size", 0)),
    }


def decoder_leaves(
    path: str, values: Mapping[str, Any], config: DecoderConfig
) -> dict[str, jax.Array]:
    """Return {path of a leaf below "text": its weights, float32}, as the folder has them.

    config: of the decoder in the new model. A token that the folder lacks gets the mean embedding,
    which no text is near to. Raises ManuError where tensors and config.json do not fit.
    """
    folder = expand_path(path)
    stored = dataclasses.replace(config, vocabulary=values.get("vocab_size", config.vocabulary))
    model = {"text": jax.eval_shape(lambda: Decoder(jax.random.key(0), stored))}
    _, tensors = weights.with_export_names(
        weights.open_tensors(folder), NAMES.prefixes, NAMES.buffers
    )
    tied = {NAMES.head: NAMES.embedding} if config.is_tied else {}
    tensors = weights.without_repeats(tensors, tied)
    table = decoder_table(stored, "text", "model.", NAMES.head)
    weights.compare(tensors, table, shapes(model)).refuse(str(folder))
    filled = weights.fill(model, tensors, table, dtype=jnp.float32, mesh=None)
    found = leaves(filled)
    missing = config.vocabulary - stored.vocabulary
    for name, axis in (("text.embedding_VD", 0), ("text.head_DV", 1)):
        if missing and name in found:
            mean = found[name].mean(axis=axis, keepdims=True)
            found[name] = jnp.concatenate([found[name], *[mean] * missing], axis=axis)
    return found

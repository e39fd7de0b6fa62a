"""Qwen3-VL: Qwen2.5-VL's successor, whose images enter at several layers; dense models only.

Bai et al. 2025 (arXiv 2511.21631), as `Qwen3VLForConditionalGeneration`; images only, no videos.
Peculiarities: beside the token of a group of patches the tower gives features that are added to the
stream at this token after each of the decoder's first layers (DeepStack); the positions in time, by
row and by column take turns in a head's entries; queries and keys are normalised.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from manu_jax.config import ModelSection
from manu_jax.models.families import qwen_vl
from manu_jax.models.families.tiny import shared_config, text_config
from manu_jax.models.hf.fields import Fields
from manu_jax.models.hf.tables import Entry, TensorNames
from manu_jax.models.nn.decoder import Cache, decoder_table
from manu_jax.models.nn.decoder_config import decoder_config
from manu_jax.models.nn.deepstack import DeepstackDecoder, deepstack_context
from manu_jax.models.nn.forward import Forward
from manu_jax.models.nn.mlp import TowerMlp
from manu_jax.models.nn.multimodal import Multimodal
from manu_jax.models.nn.qwen3_vision import (
    Qwen3Vision,
    Qwen3VisionConfig,
    qwen3_vision_config,
    qwen3_vision_table,
)
from manu_jax.types import Batch, Images

NAMES = TensorNames(
    prefixes={
        "hub": {
            "model.language_model.": "model.language_model.",
            "model.visual.": "model.visual.",
            "lm_head.": "lm_head.",
        },
    },
    buffers=qwen_vl.NAMES.buffers,
    head="lm_head.weight",
    embedding="model.language_model.embed_tokens.weight",
)
TEMPLATE = dataclasses.replace(qwen_vl.TEMPLATE, system="")


@dataclasses.dataclass(frozen=True)
class Qwen3VLConfig(qwen_vl.QwenVLConfig):
    """What the `config.json` of a Qwen3-VL says."""

    vision: Qwen3VisionConfig


def config_from_hf(values: Mapping[str, Any], where: str = "config.json") -> Qwen3VLConfig:
    """Return the config of a `config.json`; ManuError lists every field that is not handled."""
    fields = Fields(values)
    text = {"model_type": "qwen3_vl_text", **fields.part("text_config")}
    config = Qwen3VLConfig(
        text=decoder_config(text, fields.faults, is_tied=fields.flag("tie_word_embeddings", False)),
        vision=qwen3_vision_config(fields.part("vision_config"), fields.faults),
        image_token=fields.token("image_token_id", 151655),
    )
    fields.faults += qwen_vl.width_faults(config)
    fields.refuse(where)
    return config


class Qwen3VL(Multimodal):
    """The tower, with its mergers, and the decoder."""

    def __init__(self, key: jax.Array, config: Qwen3VLConfig):
        vision, text = jax.random.split(key)
        self.vision = Qwen3Vision(vision, config.vision)
        self.text = DeepstackDecoder(text, config.text)
        self.config = config

    def encode_images(self, images: Images, forward: Forward) -> tuple[jax.Array, dict[str, Any]]:
        """Return what the mergers give for each vision input. [B, I, P / merge², (1 + n) · D]."""
        positions_BIP2 = images.patch_positions_BIP2
        assert images.patches_BIPC is not None and positions_BIP2 is not None
        of_tower = forward.images("vision", positions_BIP2[..., 0] >= 0)
        tokens_BIPE, captured = self.vision(images.patches_BIPC, positions_BIP2, forward=of_tower)
        return tokens_BIPE, {"vision": captured}

    def beside(self, batch: Batch, *, keeps_keys: bool = False) -> dict[str, Any]:
        """Return what the decoder takes beside the tokens: what deepstack adds, as its context."""
        context_LBTD = deepstack_context(
            batch, self.config.text.width, self.text.embedding_VD[...].dtype
        )
        return {**super().beside(batch, keeps_keys=keeps_keys), "context": context_LBTD}

    def prefill(self, batch: Batch, cache_length: int) -> tuple[jax.Array, Cache]:
        """Return the logits after each prompt and the cache, without the context of images."""
        logits_BV, cache = super().prefill(batch, cache_length)
        return logits_BV, dataclasses.replace(cache, context=None)

    def mlps(self) -> dict[str, TowerMlp]:
        return qwen_vl.mlps(self.config)


def weight_table(config: Qwen3VLConfig) -> list[Entry]:
    """Return which tensor, by its export name, fills which leaf of the model."""
    table = decoder_table(config.text, "text", "model.language_model.", NAMES.head)
    return table + qwen3_vision_table(config.vision, "vision", "model.visual.")


def tiny_config(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of a Qwen3-VL of these sizes.

    The learned positions are as many as an image's patches.
    """
    vision, text = section.vision, section.text
    head_size = text.width // text.num_heads
    # Time, rows and columns have 24, 20 and 20 of 64 rotary pairs, as in the released models.
    side = head_size * 5 // 32
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [head_size // 2 - 2 * side, side, side],
        "mrope_interleaved": True,
    }
    # As in the released models, after every third or fourth part of the tower.
    layers = sorted({vision.num_layers * part // 4 for part in (1, 2, 3)})
    return {
        **shared_config("Qwen3VL", "qwen3_vl"),
        "image_token_id": tokenizer.convert_tokens_to_ids(qwen_vl.PLACEHOLDER),
        "text_config": {
            **text_config("qwen3_vl_text", section, tokenizer),
            "rope_parameters": rope,
            "rope_scaling": rope,
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": vision.num_layers,
            "hidden_size": vision.width,
            "intermediate_size": vision.num_neurons,
            "num_heads": vision.num_heads,
            "patch_size": vision.patch_size,
            "out_hidden_size": text.width,
            "hidden_act": "gelu_pytorch_tanh",
            "num_position_embeddings": (vision.image_size // vision.patch_size) ** 2,
            "deepstack_visual_indexes": layers[: text.num_layers],
        },
    }


FAMILY = dataclasses.replace(
    qwen_vl.QWEN2_5_VL,
    name="Qwen3-VL",
    model_type="qwen3_vl",
    config_from_hf=config_from_hf,
    build=Qwen3VL,
    weight_table=weight_table,
    names=NAMES,
    tiny_config=tiny_config,
    template=TEMPLATE,
)

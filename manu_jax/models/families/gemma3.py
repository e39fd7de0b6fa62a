"""Gemma 3: a SigLIP tower, a pooled projector, and a Gemma 3 decoder.

Gemma Team 2025 (arXiv 2503.19786), as `Gemma3ForConditionalGeneration`. Peculiarities: squares of
patches are averaged before one matrix brings them to the decoder's width; the tokens of one image
attend to each other in both directions, within the window in layers that have one; layers with a
window have rotary positions of their own.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from manu_jax.config import ModelSection
from manu_jax.models.families import llava
from manu_jax.models.families.family import Family
from manu_jax.models.families.tiny import (
    shared_config,
    text_config,
    vision_config,
    whole_squares,
    with_tokens,
)
from manu_jax.models.hf.fields import Fields
from manu_jax.models.hf.tables import Entry
from manu_jax.models.inputs.processing import Replacement, placeholders
from manu_jax.models.inputs.vision_inputs import FixedSizeInputs, square_vision_input
from manu_jax.models.nn.decoder import Decoder
from manu_jax.models.nn.decoder_config import DecoderConfig, decoder_config
from manu_jax.models.nn.forward import Forward
from manu_jax.models.nn.layers import project, random_weight, rms_norm
from manu_jax.models.nn.multimodal import Multimodal
from manu_jax.models.nn.vit import Vit, VitConfig, vit_config
from manu_jax.types import Array, Batch, Images, Template, VisionInput

TEMPLATE = Template(
    user="<start_of_turn>user\n",
    image="<start_of_image>",
    after_image="",
    space="",
    close="<end_of_turn>\n<start_of_turn>model\n",
    answer="{answer}",
    end="<end_of_turn>",
    system_form="{system}\n\n",
    system_in_turn=True,
)


@dataclasses.dataclass(frozen=True)
class Gemma3Config(FixedSizeInputs):
    """What the `config.json` of a Gemma 3 says. tokens_per_image: a square number."""

    text: DecoderConfig
    vision: VitConfig
    tokens_per_image: int
    image_token: int

    def num_features(self, num_patches: int) -> int:
        """Return the number of image tokens of a vision input; all have the same."""
        return self.tokens_per_image


def config_from_hf(values: Mapping[str, Any], where: str = "config.json") -> Gemma3Config:
    """Return the config of a `config.json`; ManuError lists every field that is not handled."""
    fields = Fields(values)
    text = {"model_type": "gemma3_text", **fields.part("text_config")}
    vision = dict(fields.part("vision_config"))
    if text["model_type"] != "gemma3_text":
        fields.faults.append(f"text_config.model_type = {text['model_type']!r}: known: gemma3_text")
    if vision.pop("vision_use_head", False):
        fields.faults.append("vision_config.vision_use_head = True: expected false")
    for name in ("boi_token_index", "eoi_token_index"):
        fields.get(name)  # the tokenizer's
    config = Gemma3Config(
        text=decoder_config(text, fields.faults, is_tied=fields.flag("tie_word_embeddings", True)),
        vision=vit_config(vision, fields.faults, kind="siglip_vision_model"),
        tokens_per_image=fields.size("mm_tokens_per_image", 256),
        image_token=fields.token("image_token_index", fields.token("image_token_id", 262144)),
    )
    tokens = round(config.tokens_per_image**0.5)
    if tokens**2 != config.tokens_per_image or config.vision.side % tokens:
        fields.fault(
            "mm_tokens_per_image",
            f"expected the square of a divisor of the tower's {config.vision.side} patches a side",
        )
    fields.refuse(where)
    return config


class Gemma3(Multimodal):
    """The tower, the projector's norm and matrix, and the decoder."""

    def __init__(self, key: jax.Array, config: Gemma3Config):
        vision, projection, text = jax.random.split(key, 3)
        D, E = config.vision.width, config.text.width
        self.vision = Vit(vision, config.vision)
        self.pooled_norm_D = nnx.Param(jnp.zeros(D))
        self.projection_DE = random_weight(projection, (D, E), D)
        self.text = Decoder(text, config.text)
        self.config = config

    def encode_images(self, images: Images, forward: Forward) -> tuple[jax.Array, dict[str, Any]]:
        """Return the projected means of squares of patches, row by row. [B, I, P, E]."""
        states_BIPD, captured = self.vision.of_images(images, forward)
        config = self.config
        B, count, _, D = states_BIPD.shape
        tokens = round(config.tokens_per_image**0.5)
        size = config.vision.side // tokens
        squares = states_BIPD.reshape(B, count, tokens, size, tokens, size, D)
        pooled_BIPD = squares.mean(axis=(3, 5)).reshape(B, count, tokens**2, D)
        normal_BIPD = rms_norm(
            pooled_BIPD, self.pooled_norm_D[...], config.vision.norm_epsilon, unit_offset=True
        )
        return project(normal_BIPD, self.projection_DE[...]), {"vision": captured}

    def bidirectional_groups(self, batch: Batch) -> Array | None:
        """Return at each image token the number of its run of image tokens, −1 at all others."""
        if batch.images is None:
            return None
        is_image_BT = jnp.asarray(batch.images.feature_index_BT) >= 0
        is_first_BT = is_image_BT & ~jnp.pad(is_image_BT, ((0, 0), (1, 0)))[:, :-1]
        return jnp.where(is_image_BT, jnp.cumsum(is_first_BT, axis=1) - 1, -1)


def weight_table(config: Gemma3Config) -> list[Entry]:
    """Return which tensor, by its export name, fills which leaf of the model."""
    name = "multi_modal_projector.mm_"
    return [
        *llava.towers_table(config),
        Entry("pooled_norm_D", name + "soft_emb_norm.weight", "D"),
        Entry("projection_DE", name + "input_projection_weight", "DE"),
    ]


def replacements(
    text: str, images: Sequence[Any], processor: Any, config: Gemma3Config
) -> list[Replacement]:
    """Return what replaces each placeholder: the image tokens, with their start and end."""
    whole = processor.full_image_sequence
    return [(start, end, whole) for start, end in placeholders(text, processor.boi_token)]


def vision_inputs(image: Any, processor: Any, config: Gemma3Config) -> tuple[VisionInput, ...]:
    """Return the one vision input of an image, without pan and scan.

    `Gemma3Processor` crops an image only where its caller asks for it.
    """
    return square_vision_input(image, processor, config, do_pan_and_scan=False)


def tiny_config(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of a Gemma 3 of these sizes; an image token is of 2 × 2 patches.

    Every second layer looks back on 1/16 of the context. The rotary positions have the names that
    the hub's files use.
    """
    text = text_config("gemma3_text", section, tokenizer)
    del text["rope_parameters"]
    return {
        **shared_config("Gemma3", "gemma3", is_tied=True),
        "image_token_index": tokenizer.convert_tokens_to_ids(tokenizer.image_token),
        "boi_token_index": tokenizer.convert_tokens_to_ids(tokenizer.boi_token),
        "eoi_token_index": tokenizer.convert_tokens_to_ids(tokenizer.eoi_token),
        "mm_tokens_per_image": _tiny_tokens(section),
        "text_config": {
            **text,
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": text["head_dim"],
            "rope_local_base_freq": 10000.0,
            "sliding_window": section.text.context // 16,
            "sliding_window_pattern": 2,
            "tie_word_embeddings": True,
        },
        "vision_config": {
            **vision_config("siglip_vision_model", section),
            "vision_use_head": False,
        },
    }


def tiny_processor(section: ModelSection, tokenizer: Any) -> Any:
    """Return a Gemma3Processor for whole images of the section's size."""
    from transformers import Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    size = section.vision.image_size
    tokens = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "turn_start_token": "<start_of_turn>",
        "turn_end_token": "<end_of_turn>",
    }
    return Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": size, "width": size}),
        with_tokens(tokenizer, tokens),
        image_seq_length=_tiny_tokens(section),
    )


def _tiny_tokens(section: ModelSection) -> int:
    """Return the image tokens of an image."""
    return (section.vision.image_size // section.vision.patch_size // 2) ** 2


FAMILY = Family(
    name="Gemma 3",
    model_type="gemma3",
    config_from_hf=config_from_hf,
    build=Gemma3,
    weight_table=weight_table,
    names=llava.NAMES,
    replacements=replacements,
    vision_inputs=vision_inputs,
    tiny_config=tiny_config,
    tiny_processor=tiny_processor,
    check_sizes=whole_squares,
    template=TEMPLATE,
    placeholder="boi_token",
)

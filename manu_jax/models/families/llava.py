"""LLaVA-1.5: a CLIP tower, a two-layer projector, and a Llama decoder.

Liu et al. 2024, "Improved Baselines with Visual Instruction Tuning" (arXiv 2310.03744), as
`LlavaForConditionalGeneration`. Peculiarities: the features are those of the last layer but one
(`vision_feature_layer` −2), without the class token ("default") or with it ("full"); the
projector's two matrices are no gated MLP, so they are no tower. Mistral and Qwen2 decoders are
accepted, and a SigLIP tower, which has no class token: "default" then drops the first patch, as in
transformers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from manu_jax.config import ModelSection
from manu_jax.models.families.family import Family
from manu_jax.models.families.tiny import shared_config, text_config, vision_config
from manu_jax.models.hf.fields import Fields
from manu_jax.models.hf.tables import Entry, TensorNames
from manu_jax.models.inputs.processing import repeated_token
from manu_jax.models.inputs.vision_inputs import FixedSizeInputs, square_vision_input
from manu_jax.models.nn.decoder import Decoder, decoder_table
from manu_jax.models.nn.decoder_config import DecoderConfig, decoder_config
from manu_jax.models.nn.forward import Forward
from manu_jax.models.nn.layers import ACTIVATIONS, project, random_weight
from manu_jax.models.nn.multimodal import Multimodal
from manu_jax.models.nn.vit import Vit, VitConfig, vit_config, vit_table
from manu_jax.types import Images, Template

# The tower of a config.json without a vision_config
VISION_DEFAULTS = {
    "hidden_size": 1024, "intermediate_size": 4096, "patch_size": 14, "image_size": 336,
    "num_hidden_layers": 24, "num_attention_heads": 16,
}  # fmt: skip

# The prefixes that match most names of a folder count, and the first of equals. Those of
# "transformers 5" match the hub's names too, so they come second; its in-memory ones likewise match
# those of 4.
NAMES = TensorNames(
    prefixes={
        "hub": {
            "language_model.": "language_model.",
            "vision_tower.vision_model.": "vision_tower.vision_model.",
            "multi_modal_projector.": "multi_modal_projector.",
        },
        "transformers 5": {  # of a model that was built from a config
            "language_model.": "language_model.",
            "vision_tower.": "vision_tower.vision_model.",
            "multi_modal_projector.": "multi_modal_projector.",
        },
        "transformers 4 in-memory": {
            "lm_head.": "language_model.lm_head.",
            "model.language_model.": "language_model.model.",
            "model.vision_tower.vision_model.": "vision_tower.vision_model.",
            "model.multi_modal_projector.": "multi_modal_projector.",
        },
        "transformers 5 in-memory": {
            "lm_head.": "language_model.lm_head.",
            "model.language_model.": "language_model.model.",
            "model.vision_tower.": "vision_tower.vision_model.",
            "model.multi_modal_projector.": "multi_modal_projector.",
        },
    },
    buffers=(".position_ids", ".rotary_emb.inv_freq"),  # in older files
    head="language_model.lm_head.weight",
    embedding="language_model.model.embed_tokens.weight",
)


@dataclasses.dataclass(frozen=True)
class LlavaConfig(FixedSizeInputs):
    """What the `config.json` of a LLaVA says."""

    text: DecoderConfig
    vision: VitConfig
    drops_class_token: bool  # vision_feature_select_strategy "default"
    projector_activation: str
    projector_bias: bool
    image_token: int

    @property
    def tokens_per_image(self) -> int:
        """Image tokens that stand for one image in the token ids."""
        return self.vision.num_patches + self.vision.is_clip - self.drops_class_token

    def num_features(self, num_patches: int) -> int:
        """Return the number of image tokens of a vision input; all have the same."""
        return self.tokens_per_image


def config_from_hf(values: Mapping[str, Any], where: str = "config.json") -> LlavaConfig:
    """Return the config of a `config.json`; ManuError lists every field that is not handled."""
    fields = Fields(values)
    config = LlavaConfig(**parts_of(fields, other_towers=("siglip_vision_model",)))
    fields.refuse(where)
    return config


def parts_of(
    fields: Fields,
    *,
    strategies: tuple[str, ...] = ("default", "full"),
    layer: int = -2,
    tower: str = "clip_vision_model",
    other_towers: tuple[str, ...] = (),
    vision_defaults: Mapping[str, Any] = VISION_DEFAULTS,
    decoder: str = "llama",
    image_token: int = 32000,
) -> dict[str, Any]:
    """Return the fields of a LlavaConfig, whose tower is a `tower` or one of `other_towers`.

    strategies: the known values of `vision_feature_select_strategy`, its default first. layer,
    decoder (its model type), image_token: the defaults of their fields.
    """
    faults = fields.faults
    layers = fields.get("vision_feature_layer", layer)
    layers = layers if isinstance(layers, list | tuple) else [layers]
    if not layers or any(type(number) is not int for number in layers):
        fields.fault("vision_feature_layer", "expected a whole number, or a list of some")
        layers = [layer]
    text = {"model_type": decoder, **fields.part("text_config")}
    vision = fields.part("vision_config")
    strategy = fields.need("vision_feature_select_strategy", strategies[0], strategies)
    return {
        "text": decoder_config(text, faults, is_tied=fields.flag("tie_word_embeddings", False)),
        "vision": vit_config(
            vision or vision_defaults,
            faults,
            feature_layers=tuple(layers),
            kind=tower,
            others=other_towers,
            is_normalised=False,
            may_have_head=bool(other_towers),
        ),
        "drops_class_token": strategy == "default",
        "projector_activation": fields.need("projector_hidden_act", "gelu", tuple(ACTIVATIONS)),
        "projector_bias": fields.flag("multimodal_projector_bias", True),
        "image_token": fields.token(
            "image_token_index", fields.token("image_token_id", image_token)
        ),
    }


class Llava(Multimodal):
    """The tower, the projector and the decoder."""

    def __init__(self, key: jax.Array, config: LlavaConfig):
        vision, linear_1, linear_2, text = jax.random.split(key, 4)
        D, E = config.vision.width * len(config.vision.features), config.text.width
        self.vision = Vit(vision, config.vision)
        self.linear_1_DE = random_weight(linear_1, (D, E), D)
        self.linear_2_DE = random_weight(linear_2, (E, E), E)
        if config.projector_bias:
            self.linear_1_bias_E = nnx.Param(jnp.zeros(E))
            self.linear_2_bias_E = nnx.Param(jnp.zeros(E))
        self.text = Decoder(text, config.text)
        self.config = config

    def encode_images(self, images: Images, forward: Forward) -> tuple[jax.Array, dict[str, Any]]:
        """Return the projected features, whose class token may be dropped. [B, I, P, E]."""
        states_BIPD, captured = self.vision.of_images(images, forward)
        if self.config.drops_class_token:
            states_BIPD = states_BIPD[:, :, 1:]
        x_BIPE = project(states_BIPD, self.linear_1_DE[...])
        if self.config.projector_bias:
            x_BIPE += self.linear_1_bias_E[...][None, None, None]
        x_BIPE = ACTIVATIONS[self.config.projector_activation](x_BIPE)
        y_BIPE = project(x_BIPE, self.linear_2_DE[...])
        if self.config.projector_bias:
            y_BIPE += self.linear_2_bias_E[...][None, None, None]
        return y_BIPE, {"vision": captured}


def weight_table(config: LlavaConfig) -> list[Entry]:
    """Return which tensor, by its export name, fills which leaf of the model."""
    table = towers_table(config)
    for number in (1, 2):
        name = f"multi_modal_projector.linear_{number}."
        table.append(Entry(f"linear_{number}_DE", name + "weight", "ED"))
        if config.projector_bias:
            table.append(Entry(f"linear_{number}_bias_E", name + "bias", "E"))
    return table


def towers_table(config: Any) -> list[Entry]:
    """Return the table of the decoder and the tower; other families have the same names."""
    table = decoder_table(config.text, "text", "language_model.model.", NAMES.head)
    return table + vit_table(config.vision, "vision", "vision_tower.vision_model.")


def tiny_config(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of a LLaVA-1.5 of these sizes."""
    vision = section.vision
    return {
        **shared_config("Llava", "llava"),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "image_seq_length": (vision.image_size // vision.patch_size) ** 2,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "text_config": text_config("llama", section, tokenizer),
        "vision_config": {
            **vision_config("clip_vision_model", section),
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
    }


def tiny_processor(section: ModelSection, tokenizer: Any) -> Any:
    """Return a LlavaProcessor for images of the section's size."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    size = section.vision.image_size
    images = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    return LlavaProcessor(images, tokenizer, **tiny_tokens(section))


def tiny_tokens(section: ModelSection) -> dict[str, Any]:
    """Return what a tiny model's processor says of image tokens, as its `config.json` does."""
    return {
        "patch_size": section.vision.patch_size,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,  # the class token
    }


FAMILY = Family(
    name="LLaVA-1.5",
    model_type="llava",
    config_from_hf=config_from_hf,
    build=Llava,
    weight_table=weight_table,
    names=NAMES,
    replacements=repeated_token,
    vision_inputs=square_vision_input,
    tiny_config=tiny_config,
    tiny_processor=tiny_processor,
    template=Template(),
)

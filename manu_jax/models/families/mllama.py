"""Llama 3.2 Vision: a Llama decoder some of whose layers attend to images in tiles.

Grattafiori et al. 2024, "The Llama 3 Herd of Models" (arXiv 2407.21783), section 7, as
`MllamaForConditionalGeneration`. Peculiarities: an image is one token, which keeps its own
embedding; what the tower makes of the image is seen by the cross-attention layers alone. A token
sees the image that came last, or several that came together. Text alone does not run these layers.

Differs: what a sample gives does not depend on the others of its batch. In transformers, an example
with fewer images than another, or none, also attends to the empty images that fill up the batch.
Differs: the first token of a text comes first. `MllamaProcessor` puts it after images that open the
text, and the tokenizer then adds another; the chat template writes it once, in front.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from manu_jax.config import ModelSection
from manu_jax.models.families.family import Family
from manu_jax.models.families.tiny import shared_config, text_config, with_tokens
from manu_jax.models.hf.fields import Fields
from manu_jax.models.hf.tables import Entry, TensorNames
from manu_jax.models.inputs.processing import FeatureRows, Replacement
from manu_jax.models.inputs.vision_inputs import patches_of
from manu_jax.models.nn.cross_attention import (
    CrossDecoder,
    CrossDecoderConfig,
    cross_decoder_table,
    seen_images,
)
from manu_jax.models.nn.decoder import decoder_mlp
from manu_jax.models.nn.decoder_config import decoder_config
from manu_jax.models.nn.forward import Forward
from manu_jax.models.nn.layers import project, random_weight
from manu_jax.models.nn.mlp import TowerMlp
from manu_jax.models.nn.multimodal import Multimodal
from manu_jax.models.nn.tiled_vision import (
    TiledVision,
    TiledVisionConfig,
    layer_numbers,
    tiled_vision_config,
    tiled_vision_mlp,
    tiled_vision_table,
)
from manu_jax.types import Batch, Images, ManuError, Template, VisionInput

IMAGE = "<|image|>"
# What a text_config leaves out; its model type has its fields in common with "llama".
TEXT_DEFAULTS = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
}  # fmt: skip
CROSS_LAYERS = (3, 8, 13, 18, 23, 28, 33, 38)
NAMES = TensorNames(
    prefixes={
        "hub": {
            "language_model.": "language_model.",
            "vision_model.": "vision_model.",
            "multi_modal_projector.": "multi_modal_projector.",
        },
        "transformers 5 in-memory": {
            "lm_head.": "language_model.lm_head.",
            "model.language_model.": "language_model.model.",
            "model.vision_model.": "vision_model.",
            "model.multi_modal_projector.": "multi_modal_projector.",
        },
    },
    buffers=(".rotary_emb.inv_freq",),
    head="language_model.lm_head.weight",
    embedding="language_model.model.embed_tokens.weight",
)
TEMPLATE = Template(
    user="<|start_header_id|>user<|end_header_id|>\n\n",
    image=IMAGE,
    after_image="",
    space="",
    close="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    answer="{answer}",
    end="<|eot_id|>",
    system_form="<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
)
TURNS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@dataclasses.dataclass(frozen=True)
class MllamaConfig:
    """What the `config.json` of a Llama 3.2 Vision says. An image is one vision input."""

    text: CrossDecoderConfig
    vision: TiledVisionConfig
    image_token: int
    of_any_size = True

    @property
    def patch_values(self) -> int:
        return self.vision.patch_values

    @property
    def num_patches(self) -> int:
        return self.vision.tile_patches

    def num_features(self, num_patches: int) -> int:
        """Return the number of rows of an image's features; those of empty tiles count."""
        return self.vision.max_tiles * self.vision.tile_features


def config_from_hf(values: Mapping[str, Any], where: str = "config.json") -> MllamaConfig:
    """Return the config of a `config.json`; ManuError lists every field that is not handled."""
    fields = Fields(values)
    # The embedding has rows that the head lacks.
    fields.need("tie_word_embeddings", False, (False,))
    config = MllamaConfig(
        text=_text_config(fields),
        vision=tiled_vision_config(
            Fields(fields.part("vision_config"), "vision_config.", fields.faults)
        ),
        image_token=fields.token("image_token_index", fields.token("image_token_id", 128256)),
    )
    fields.refuse(where)
    return config


def _text_config(fields: Fields) -> CrossDecoderConfig:
    section = Fields(fields.part("text_config"), "text_config.", fields.faults)
    section.need("model_type", "mllama_text_model", ("mllama_text_model",))
    section.need("tie_word_embeddings", False, (False,))
    for name in ("attention_bias", "mlp_bias", "head_dim"):
        if section.get(name):
            section.fault(name, "not handled")
    name = "cross_attention_layers"
    own = {key: value for key, value in section.values.items() if key != name}
    base = decoder_config(
        {**TEXT_DEFAULTS, **own, "model_type": "llama"}, fields.faults, is_tied=False
    )
    layers = layer_numbers(section, name, CROSS_LAYERS, base.num_layers)
    parts = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    return CrossDecoderConfig(**parts, cross_layers=layers)


class Mllama(Multimodal):
    """The tower, the projector and the decoder."""

    text: CrossDecoder
    config: MllamaConfig

    def __init__(self, key: jax.Array, config: MllamaConfig):
        vision, projector, text = jax.random.split(key, 3)
        D, E = config.vision.feature_width, config.text.width
        self.vision = TiledVision(vision, config.vision)
        self.projector_DE = random_weight(projector, (D, E), D)
        self.projector_bias_E = nnx.Param(jnp.zeros(E))
        self.text = CrossDecoder(text, config.text)
        self.config = config

    def encode_images(self, images: Images, forward: Forward) -> tuple[jax.Array, dict[str, Any]]:
        """Return the projected features of each image's tiles. [B, I, P, E]."""
        features_BIPD, captured = self.vision(images, forward)
        y_BIPE = project(features_BIPD, self.projector_DE[...])
        return y_BIPE + self.projector_bias_E[...][None, None, None], {"vision": captured}

    def mlps(self) -> dict[str, TowerMlp]:
        return mlps(self.config)

    def beside(self, batch: Batch, *, keeps_keys: bool = False) -> dict[str, Any]:
        """Return what the cross-attention layers attend to; None in a batch without images."""
        if batch.images is None:
            return {"context": None}
        seen = seen_images(batch.images, tile_features=self.config.vision.tile_features)
        return {"context": self.text.with_keys(seen) if keeps_keys else seen}

    def _embed(self, batch: Batch) -> jax.Array:
        """Return the tokens' own embeddings: the features take the place of none."""
        return self.text.embed(batch.token_ids_BT)


def mlps(config: MllamaConfig) -> dict[str, TowerMlp]:
    """Return the towers, and how their MLPs are built."""
    return {
        "text": decoder_mlp(config.text, "text"),
        "vision": tiled_vision_mlp(config.vision, "vision"),
    }


def weight_table(config: MllamaConfig) -> list[Entry]:
    """Return which tensor, by its export name, fills which leaf of the model."""
    return [
        *cross_decoder_table(config.text, "text", "language_model.model.", NAMES.head),
        *tiled_vision_table(config.vision, "vision", "vision_model."),
        Entry("projector_DE", "multi_modal_projector.weight", "ED"),
        Entry("projector_bias_E", "multi_modal_projector.bias", "E"),
    ]


def replacements(
    text: str, images: Sequence[Any], processor: Any, config: MllamaConfig
) -> list[Replacement]:
    """Return the replacements of placeholders: an image's placeholder is its one token."""
    return []


def feature_rows(images: Sequence[Any], config: MllamaConfig) -> list[FeatureRows]:
    """Return the first row of each image's last tile, which its token stands for."""
    from transformers.models.mllama.image_processing_pil_mllama import get_optimal_tiled_canvas

    tile, found = config.vision.image_size, []
    for image in images:
        rows, columns = get_optimal_tiled_canvas(
            image_height=image.height,
            image_width=image.width,
            max_image_tiles=config.vision.max_tiles,
            tile_size=tile,
        )
        last = int(rows) * int(columns) // tile**2 - 1
        found.append(FeatureRows(np.array([last * config.vision.tile_features])))
    return found


def vision_inputs(image: Any, processor: Any, config: MllamaConfig) -> tuple[VisionInput, ...]:
    """Return the patches of an image's tiles, with their places in the whole image."""
    vision, of_images = config.vision, processor.image_processor
    coded = of_images(images=[[image]], return_tensors="np")
    pixels_WCYX = np.asarray(coded["pixel_values"][0, 0])
    expected = (vision.max_tiles, 3, vision.image_size, vision.image_size)
    if pixels_WCYX.shape != expected:
        raise ManuError(
            f"the image processor gives {len(pixels_WCYX)} tiles of {pixels_WCYX.shape[2]} × "
            f"{pixels_WCYX.shape[3]} pixels, the model takes {vision.max_tiles} of "
            f"{vision.image_size} × {vision.image_size}: config.json and the image processor's "
            "file are of different models."
        )
    rows, columns = vision.aspect_ratios[int(coded["aspect_ratio_ids"][0, 0]) - 1]
    tiles = pixels_WCYX[: rows * columns]
    patches_PC = np.concatenate([patches_of(tile, vision.patch_size) for tile in tiles])
    numbers = np.indices((rows, columns, vision.side, vision.side))
    places = numbers[:2] * vision.side + numbers[2:]
    positions_P2 = np.moveaxis(places, 0, -1).reshape(-1, 2).astype(np.int32)
    return (VisionInput(patches_PC, positions_P2, config.num_features(len(patches_PC))),)


def tiny_config(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of a Llama 3.2 Vision of these sizes; an image is one tile.

    Every other layer attends to the image, and the last layer of the tower is a global one.
    """
    text, vision = section.text, section.vision
    num_local = vision.num_layers - 1
    own = text_config("mllama_text_model", section, tokenizer)
    del own["head_dim"]
    return {
        **shared_config("Mllama", "mllama"),
        "image_token_index": tokenizer.convert_tokens_to_ids(IMAGE),
        "text_config": {
            **own,
            "vocab_size": len(tokenizer) - 1,  # without the image token
            "cross_attention_layers": list(range(1, text.num_layers, 2)),
        },
        "vision_config": {
            "model_type": "mllama_vision_model",
            "hidden_size": vision.width,
            "intermediate_size": vision.num_neurons,
            "num_hidden_layers": num_local,
            "num_global_layers": 1,
            "attention_heads": vision.num_heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": "gelu",
            "norm_eps": 1e-5,
            "max_num_tiles": 1,
            "supported_aspect_ratios": [[1, 1]],
            "intermediate_layers_indices": [num_local // 2],
            "vision_output_dim": 2 * vision.width,
        },
    }


def tiny_processor(section: ModelSection, tokenizer: Any) -> Any:
    """Return a MllamaProcessor of one tile of the section's size."""
    from transformers import MllamaProcessor
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    size = section.vision.image_size
    turns = {f"turn_token_{number}": token for number, token in enumerate(TURNS)}
    return MllamaProcessor(
        MllamaImageProcessorPil(size={"height": size, "width": size}, max_image_tiles=1),
        # The image token is the last, as in the released models: the head lacks it.
        with_tokens(with_tokens(tokenizer, turns), {"image_token": IMAGE}),
    )


def check_sizes(section: ModelSection) -> list[str]:
    """Return the faults of sizes that leave no layer of one of the kinds."""
    return [
        f"{name}.num_layers has to be 2 or more: {why}; got {size.num_layers}"
        for name, size, why in (
            ("text", section.text, "the first attends to tokens, the second to images"),
            ("vision", section.vision, "one is local and one is global"),
        )
        if size.num_layers < 2
    ]


FAMILY = Family(
    name="Llama 3.2 Vision",
    model_type="mllama",
    config_from_hf=config_from_hf,
    build=Mllama,
    mlps=mlps,
    weight_table=weight_table,
    names=NAMES,
    replacements=replacements,
    vision_inputs=vision_inputs,
    feature_rows=feature_rows,
    tiny_config=tiny_config,
    tiny_processor=tiny_processor,
    check_sizes=check_sizes,
    template=TEMPLATE,
)

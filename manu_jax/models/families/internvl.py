"""InternVL3: an InternViT tower, pixel shuffle, a projector, and a Qwen2 or Llama decoder.

Zhu et al. 2025 (arXiv 2504.10479), as `InternVLForConditionalGeneration`, that is the folders whose
names end in "-hf"; images only, no videos. Peculiarities: an image is split into tiles of the
tower's size, as many as fit its shape best, and one more tile that shows it whole; four patches
become one token.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from manu_jax.config import ModelSection
from manu_jax.models.families.family import Family
from manu_jax.models.families.tiny import shared_config, text_config, whole_squares, with_tokens
from manu_jax.models.hf.fields import Fields
from manu_jax.models.hf.tables import Entry, TensorNames
from manu_jax.models.inputs.processing import (
    Processor,
    Replacement,
    placeholders,
    processor_without_videos,
)
from manu_jax.models.inputs.vision_inputs import FixedSizeInputs, square_vision_inputs
from manu_jax.models.nn.decoder import Decoder, decoder_mlp, decoder_table
from manu_jax.models.nn.decoder_config import DecoderConfig, decoder_config
from manu_jax.models.nn.forward import Forward
from manu_jax.models.nn.intern_vision import (
    InternVision,
    InternVisionConfig,
    intern_vision_config,
    intern_vision_mlp,
    intern_vision_table,
)
from manu_jax.models.nn.layers import ACTIVATIONS, layer_norm, project, random_weight
from manu_jax.models.nn.mlp import TowerMlp
from manu_jax.models.nn.multimodal import Multimodal
from manu_jax.types import Images, Template, VisionInput

PLACEHOLDER, START, END = "<IMG_CONTEXT>", "<img>", "</img>"
SHUFFLE = 2  # patches a side that become one token
EPSILON = 1e-5  # of the projector's norm
NAMES = TensorNames(
    prefixes={
        "hub": {
            "language_model.": "language_model.",
            "vision_tower.": "vision_tower.",
            "multi_modal_projector.": "multi_modal_projector.",
        },
        "in-memory": {
            "lm_head.": "language_model.lm_head.",
            "model.language_model.": "language_model.model.",
            "model.vision_tower.": "vision_tower.",
            "model.multi_modal_projector.": "multi_modal_projector.",
        },
    },
    buffers=(".rotary_emb.inv_freq",),
    head="language_model.lm_head.weight",
    embedding="language_model.model.embed_tokens.weight",
)
TEMPLATE = Template(
    user="<|im_start|>user\n",
    image=PLACEHOLDER,
    space="",
    close="<|im_end|>\n<|im_start|>assistant\n",
    answer="{answer}",
    end="<|im_end|>",
    system_form="<|im_start|>system\n{system}<|im_end|>\n",
)


@dataclasses.dataclass(frozen=True)
class InternVLConfig(FixedSizeInputs):
    """What the `config.json` of an InternVL says."""

    text: DecoderConfig
    vision: InternVisionConfig
    projector_activation: str
    image_token: int

    def num_features(self, num_patches: int) -> int:
        """Return the number of image tokens of a tile; all have the same."""
        return (self.vision.side // SHUFFLE) ** 2


def config_from_hf(values: Mapping[str, Any], where: str = "config.json") -> InternVLConfig:
    """Return the config of a `config.json`; ManuError lists every field that is not handled.

    Where the whole says nothing, the decoder's section says whether the head is the embedding:
    transformers 4 wrote the released files, whose heads are their own, and read them so.
    """
    fields = Fields(values)
    text = {"model_type": "qwen2", **fields.part("text_config")}
    of_text = Fields(text, "text_config.", fields.faults).flag("tie_word_embeddings", False)
    is_tied = fields.flag("tie_word_embeddings", of_text)
    config = InternVLConfig(
        text=decoder_config(
            {**text, "tie_word_embeddings": is_tied}, fields.faults, is_tied=is_tied
        ),
        vision=intern_vision_config(fields.part("vision_config"), fields.faults),
        projector_activation=fields.need("projector_hidden_act", "gelu", tuple(ACTIVATIONS)),
        image_token=fields.token("image_token_id", 151667),
    )
    fields.need("downsample_ratio", 1 / SHUFFLE, (1 / SHUFFLE,))
    fields.need("vision_feature_layer", -1, (-1,))
    fields.need("vision_feature_select_strategy", "default", ("default",))
    side = f"a tower of {config.vision.side} patches a side"
    fields.divides(side, config.vision.side, by="1 / downsample_ratio", part=SHUFFLE)
    fields.refuse(where)
    return config


class InternVL(Multimodal):
    """The tower, the projector and the decoder."""

    def __init__(self, key: jax.Array, config: InternVLConfig):
        vision, linear_1, linear_2, text = jax.random.split(key, 4)
        D, E = config.vision.width * SHUFFLE**2, config.text.width
        self.vision = InternVision(vision, config.vision)
        self.projector_norm_D = nnx.Param(jnp.ones(D))
        self.projector_norm_bias_D = nnx.Param(jnp.zeros(D))
        self.linear_1_DE = random_weight(linear_1, (D, E), D)
        self.linear_1_bias_E = nnx.Param(jnp.zeros(E))
        self.linear_2_DE = random_weight(linear_2, (E, E), E)
        self.linear_2_bias_E = nnx.Param(jnp.zeros(E))
        self.text = Decoder(text, config.text)
        self.config = config

    def encode_images(self, images: Images, forward: Forward) -> tuple[jax.Array, dict[str, Any]]:
        """Return each tile's tokens: squares of patches, row by row, projected. [B, I, P, E]."""
        assert images.patches_BIPC is not None
        B, count, P = images.patches_BIPC.shape[:3]
        of_tower = forward.images("vision", jnp.ones((B, count, P + 1)))  # with the class token
        states_BIPD, captured = self.vision(images.patches_BIPC, forward=of_tower)
        tokens, D = self.config.vision.side // SHUFFLE, states_BIPD.shape[-1]
        squares = states_BIPD.reshape(B, count, tokens, SHUFFLE, tokens, SHUFFLE, D)
        joined_BTD = squares.swapaxes(3, 4).reshape(B, count * tokens**2, SHUFFLE**2 * D)
        scale_D, bias_D = self.projector_norm_D[...], self.projector_norm_bias_D[...]
        x_BTD = layer_norm(joined_BTD, scale_D, bias_D, EPSILON)
        x_BTE = project(x_BTD, self.linear_1_DE[...]) + self.linear_1_bias_E[...][None, None]
        x_BTE = ACTIVATIONS[self.config.projector_activation](x_BTE)
        y_BTE = project(x_BTE, self.linear_2_DE[...]) + self.linear_2_bias_E[...][None, None]
        return y_BTE.reshape(B, count, tokens**2, -1), {"vision": captured}

    def mlps(self) -> dict[str, TowerMlp]:
        return mlps(self.config)


def mlps(config: InternVLConfig) -> dict[str, TowerMlp]:
    """Return the towers, and how their MLPs are built."""
    return {
        "text": decoder_mlp(config.text, "text"),
        "vision": intern_vision_mlp(config.vision, "vision"),
    }


def weight_table(config: InternVLConfig) -> list[Entry]:
    """Return which tensor, by its export name, fills which leaf of the model."""
    table = decoder_table(config.text, "text", "language_model.model.", NAMES.head)
    table += intern_vision_table(config.vision, "vision", "vision_tower.")
    root = "multi_modal_projector."
    table += [
        Entry("projector_norm_D", root + "layer_norm.weight", "D"),
        Entry("projector_norm_bias_D", root + "layer_norm.bias", "D"),
    ]
    for number in (1, 2):
        table += [
            Entry(f"linear_{number}_DE", f"{root}linear_{number}.weight", "ED"),
            Entry(f"linear_{number}_bias_E", f"{root}linear_{number}.bias", "E"),
        ]
    return table


def replacements(
    text: str, images: Sequence[Any], processor: Any, config: InternVLConfig
) -> list[Replacement]:
    """Return what replaces each placeholder: the image tokens of all tiles, between two marks."""
    count_tiles = processor.image_processor.get_number_of_image_patches
    tokens = PLACEHOLDER * config.num_features(config.num_patches)
    counts = [count_tiles(image.height, image.width, {"crop_to_patches": True}) for image in images]
    pairs = zip(placeholders(text, PLACEHOLDER), counts, strict=False)
    return [(start, end, f"{START}{tokens * count}{END}") for (start, end), count in pairs]


def vision_inputs(image: Any, processor: Any, config: InternVLConfig) -> tuple[VisionInput, ...]:
    """Return the tiles of an image, row by row, and then the whole of it.

    As `InternVLProcessor` asks for them, whatever the image processor's own file says.
    """
    coded = processor.image_processor(images=[image], crop_to_patches=True, return_tensors="np")
    return square_vision_inputs(np.asarray(coded["pixel_values"]), config)


def tiny_config(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of an InternVL of these sizes."""
    vision = section.vision
    return {
        **shared_config("InternVL", "internvl"),
        "image_token_id": tokenizer.convert_tokens_to_ids(PLACEHOLDER),
        "image_seq_length": (vision.image_size // vision.patch_size // SHUFFLE) ** 2,
        "downsample_ratio": 1 / SHUFFLE,
        "text_config": text_config("qwen2", section, tokenizer),
        "vision_config": {
            "model_type": "internvl_vision",
            "hidden_size": vision.width,
            "intermediate_size": vision.num_neurons,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "image_size": [vision.image_size] * 2,
            "patch_size": [vision.patch_size] * 2,
            "attention_bias": True,
        },
    }


def tiny_processor(section: ModelSection, tokenizer: Any) -> Any:
    """Return a processor for images of the section's size, which are one tile."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    size = section.vision.image_size
    images = GotOcr2ImageProcessorPil(size={"height": size, "width": size}, max_patches=1)
    tokens = {
        "image_token": PLACEHOLDER,
        "context_image_token": PLACEHOLDER,
        "start_image_token": START,
        "end_image_token": END,
        "turn_start_token": "<|im_start|>",
        "turn_end_token": "<|im_end|>",
    }
    return Processor(images, with_tokens(tokenizer, tokens), PLACEHOLDER)


FAMILY = Family(
    name="InternVL",
    model_type="internvl",
    config_from_hf=config_from_hf,
    build=InternVL,
    mlps=mlps,
    weight_table=weight_table,
    names=NAMES,
    replacements=replacements,
    vision_inputs=vision_inputs,
    tiny_config=tiny_config,
    tiny_processor=tiny_processor,
    check_sizes=whole_squares,
    template=TEMPLATE,
    load_processor=functools.partial(processor_without_videos, image_token=PLACEHOLDER),
)

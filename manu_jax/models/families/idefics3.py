"""Idefics3 and SmolVLM: a SigLIP tower, pixel shuffle and one matrix, and a Llama decoder.

Laurençon et al. 2024 (arXiv 2408.12637) and Marafioti et al. 2025 (arXiv 2504.05299), as
`Idefics3ForConditionalGeneration` and `SmolVLMForConditionalGeneration`; images only, no videos.
Peculiarities: an image is split into tiles of the tower's size, which the text names by row and
column, and one more tile that shows it whole. The first SmolVLMs have the model type "idefics3".
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from manu_jax.config import ModelSection
from manu_jax.models.families import idefics2
from manu_jax.models.families.family import Family
from manu_jax.models.families.idefics2 import FAKE
from manu_jax.models.families.tiny import (
    shared_config,
    text_config,
    vision_config,
    whole_squares,
    with_tokens,
)
from manu_jax.models.hf.fields import Fields
from manu_jax.models.hf.tables import Entry
from manu_jax.models.inputs.processing import (
    Processor,
    Replacement,
    placeholders,
    processor_without_videos,
)
from manu_jax.models.inputs.vision_inputs import FixedSizeInputs, square_vision_inputs
from manu_jax.models.nn.decoder import Decoder, decoder_table
from manu_jax.models.nn.decoder_config import DecoderConfig, decoder_config
from manu_jax.models.nn.forward import Forward
from manu_jax.models.nn.layers import project, random_weight
from manu_jax.models.nn.multimodal import Multimodal
from manu_jax.models.nn.vit import Vit, VitConfig, vit_config, vit_table
from manu_jax.types import Images, Template, VisionInput

PLACEHOLDER = "<image>"
LARGEST = 4096  # a resized image has at most so many pixels a side
TEMPLATE = Template(
    user="User:",
    image=PLACEHOLDER,
    after_image="",
    close="<end_of_utterance>\nAssistant:",
    end="<end_of_utterance>",
    system_form="System: {system}<end_of_utterance>\n",
)
SMOLVLM_START = "<|im_start|>"
# Fields that training left in the released files; transformers reads none of them.
LEFT_OVER = frozenset(
    "_flash_attn_2_enabled is_llama_config neftune_noise_alpha perceiver_config "
    "pixel_shuffle_factor qk_layer_norms rope_interleaved transformers.js_config use_resampler "
    "max_image_size size tie_word_embeddings use_base_siglip".split()
)


@dataclasses.dataclass(frozen=True)
class Idefics3Config(FixedSizeInputs):
    """What the `config.json` of an Idefics3 or SmolVLM says. shuffle: a token's patches a side."""

    text: DecoderConfig
    vision: VitConfig
    shuffle: int
    image_token: int

    def num_features(self, num_patches: int) -> int:
        """Return the number of image tokens of a tile; all have the same."""
        return (self.vision.side // self.shuffle) ** 2


def config_from_hf(values: Mapping[str, Any], where: str = "config.json") -> Idefics3Config:
    """Return the config of a `config.json`; ManuError lists every field that is not handled."""
    fields = Fields(values)
    text = fields.part("text_config")
    is_tied = fields.flag("tie_word_embeddings", text.get("tie_word_embeddings", False))
    text = {k: v for k, v in text.items() if k not in LEFT_OVER}
    vision = {k: v for k, v in fields.part("vision_config").items() if k not in LEFT_OVER}
    vision.pop("model_type", None)  # "idefics3", "idefics3_vision" or "smolvlm_vision"
    vision = {"hidden_size": 1152, "num_attention_heads": 16, **vision}
    config = Idefics3Config(
        text=decoder_config({"model_type": "llama", **text}, fields.faults, is_tied=is_tied),
        vision=vit_config(vision, fields.faults, kind="idefics2_vision"),
        shuffle=fields.size("scale_factor", 2),
        image_token=fields.token("image_token_id", 128257),
    )
    side = f"a tower of {config.vision.side} patches a side"
    fields.divides(side, config.vision.side, by="scale_factor", part=config.shuffle)
    fields.get("_pad_token_id")
    fields.refuse(where)
    return config


class Idefics3(Multimodal):
    """The tower, the connector's one matrix, and the decoder."""

    def __init__(self, key: jax.Array, config: Idefics3Config):
        vision, projection, text = jax.random.split(key, 3)
        self.vision = Vit(vision, config.vision)
        D, E = config.vision.width * config.shuffle**2, config.text.width
        self.projection_DE = random_weight(projection, (D, E), D)
        self.text = Decoder(text, config.text)
        self.config = config

    def encode_images(self, images: Images, forward: Forward) -> tuple[jax.Array, dict[str, Any]]:
        """Return each tile's tokens: squares of patches, row by row, projected. [B, I, P, E]."""
        states_BIPD, captured = self.vision.of_images(images, forward)
        B, count, _, D = states_BIPD.shape
        size = self.config.shuffle
        tokens = self.config.vision.side // size
        squares = states_BIPD.reshape(B, count, tokens, size, tokens, size, D).swapaxes(3, 4)
        joined_BIPD = squares.reshape(B, count, tokens**2, size * size * D)
        return project(joined_BIPD, self.projection_DE[...]), {"vision": captured}


def weight_table(config: Idefics3Config) -> list[Entry]:
    """Return which tensor fills which leaf of the model."""
    table = decoder_table(config.text, "text", "model.text_model.", idefics2.NAMES.head)
    table += vit_table(config.vision, "vision", "model.vision_model.")
    name = "model.connector.modality_projection.proj.weight"
    return [*table, Entry("projection_DE", name, "ED")]


def template_of(tokenizer: Any) -> Template:
    """Return the prompt strings; they begin with SmolVLM's first token if the tokenizer has it."""
    if SMOLVLM_START not in tokenizer.get_vocab():
        return TEMPLATE
    form = SMOLVLM_START + TEMPLATE.system_form
    return dataclasses.replace(TEMPLATE, system=SMOLVLM_START, system_form=form)


def replacements(
    text: str, images: Sequence[Any], processor: Any, config: Idefics3Config
) -> list[Replacement]:
    """Return what replaces each placeholder: each tile's row and column, and its image tokens."""
    tokens = PLACEHOLDER * config.num_features(config.num_patches)
    found = []
    for (start, end), image in zip(placeholders(text, PLACEHOLDER), images, strict=False):
        rows, columns = grid(image.height, image.width, processor.image_processor)
        split = "".join(
            "".join(f"{FAKE}<row_{y + 1}_col_{x + 1}>{tokens}" for x in range(columns)) + "\n"
            for y in range(rows)
        )
        opening = split + "\n" if split else ""
        found.append((start, end, f"{opening}{FAKE}<global-img>{tokens}{FAKE}"))
    return found


def grid(height: int, width: int, image_processor: Any) -> tuple[int, int]:
    """Return the rows and columns of tiles that an image is split into; (0, 0): it stays whole.

    The arithmetic is that of `Idefics3ImageProcessor`, whose `get_number_of_image_patches` is wrong
    for some sizes.
    """
    if not image_processor.do_image_splitting:
        return 0, 0
    tile = image_processor.max_image_size["longest_edge"]
    longest = image_processor.size["longest_edge"]
    shape = width / height
    if width >= height:
        height, width = int(longest / shape), longest
        height += height % 2
    else:
        height, width = longest, int(longest * shape)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    ratio = width / height
    if width >= height and width > LARGEST:
        height, width = max(int(LARGEST / ratio), 1), LARGEST
    elif height > width and height > LARGEST:
        height, width = LARGEST, max(int(LARGEST * ratio), 1)
    ratio = width / height
    if width >= height:
        columns = math.ceil(width / tile)
        rows = math.ceil(int(columns * tile / ratio) / tile)
    else:
        rows = math.ceil(height / tile)
        columns = math.ceil(int(rows * tile * ratio) / tile)
    return (rows, columns) if rows > 1 or columns > 1 else (0, 0)


def vision_inputs(image: Any, processor: Any, config: Idefics3Config) -> tuple[VisionInput, ...]:
    """Return the tiles of an image, row by row, and then the whole of it."""
    coded = processor.image_processor(images=[[image]], return_tensors="np")
    return square_vision_inputs(np.asarray(coded["pixel_values"][0]), config)


def tiny_config(section: ModelSection, tokenizer: Any, *, name: str) -> dict[str, Any]:
    """Return the `config.json` of an "Idefics3" or "SmolVLM" (`name`) of these sizes."""
    kind = name.lower()
    return {
        **shared_config(name, kind),
        "image_token_id": tokenizer.convert_tokens_to_ids(PLACEHOLDER),
        "scale_factor": 2,
        "text_config": text_config("llama", section, tokenizer),
        "vision_config": vision_config(f"{kind}_vision", section),
    }


def tiny_processor(section: ModelSection, tokenizer: Any) -> Any:
    """Return a processor for images of the section's size, which are not split."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    size = {"longest_edge": section.vision.image_size}
    images = Idefics3ImageProcessorPil(size=size, max_image_size=size, do_image_splitting=False)
    tokens = {"fake": FAKE, "whole": "<global-img>", "end": TEMPLATE.end}
    return Processor(images, with_tokens(tokenizer, tokens), PLACEHOLDER)


IDEFICS3 = Family(
    name="Idefics3",
    model_type="idefics3",
    config_from_hf=config_from_hf,
    build=Idefics3,
    weight_table=weight_table,
    names=idefics2.NAMES,
    replacements=replacements,
    vision_inputs=vision_inputs,
    tiny_config=functools.partial(tiny_config, name="Idefics3"),
    tiny_processor=tiny_processor,
    check_sizes=whole_squares,
    template=TEMPLATE,
    template_of=template_of,
    load_processor=functools.partial(processor_without_videos, image_token=PLACEHOLDER),
)
SMOLVLM = dataclasses.replace(
    IDEFICS3,
    name="SmolVLM",
    model_type="smolvlm",
    tiny_config=functools.partial(tiny_config, name="SmolVLM"),
)
FAMILIES = (IDEFICS3, SMOLVLM)

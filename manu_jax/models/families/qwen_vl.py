"""Qwen2-VL and Qwen2.5-VL: a tower for images of any size, and a Qwen2 decoder with M-RoPE.

Wang et al. 2024 (arXiv 2409.12191) and Bai et al. 2025 (arXiv 2502.13923), as
`Qwen2VLForConditionalGeneration` and `Qwen2_5_VLForConditionalGeneration`; images only, no videos.
Peculiarities: an image becomes one token for each group of patches; an image token has a position
in time, a row and a column, and the next text token's position is one more than the largest.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from manu_jax.config import ModelSection
from manu_jax.models.families.family import Family
from manu_jax.models.families.tiny import (
    multiple_of,
    shared_config,
    text_config,
    whole_squares,
    with_tokens,
)
from manu_jax.models.hf.fields import Fields
from manu_jax.models.hf.tables import Entry, TensorNames
from manu_jax.models.inputs.processing import (
    Processor,
    Replacement,
    placeholders,
    processor_without_videos,
)
from manu_jax.models.inputs.vision_inputs import AnySizeInputs
from manu_jax.models.nn.decoder import Decoder, decoder_mlp, decoder_table
from manu_jax.models.nn.decoder_config import DecoderConfig, decoder_config
from manu_jax.models.nn.forward import Forward
from manu_jax.models.nn.mlp import TowerMlp
from manu_jax.models.nn.multimodal import Multimodal
from manu_jax.models.nn.qwen_vision import (
    QwenVision,
    QwenVisionConfig,
    qwen_vision_config,
    qwen_vision_mlp,
    qwen_vision_table,
)
from manu_jax.types import Images, ManuError, Template, VisionInput

PLACEHOLDER = "<|image_pad|>"
# transformers writes the hub's names. The prefixes of "hub" match all in-memory names, too, so they
# come second.
NAMES = TensorNames(
    prefixes={
        "in-memory": {
            "model.language_model.": "model.",
            "model.visual.": "visual.",
            "lm_head.": "lm_head.",
        },
        "hub": {"model.": "model.", "visual.": "visual.", "lm_head.": "lm_head."},
    },
    buffers=(".rotary_emb.inv_freq", ".rotary_pos_emb.inv_freq"),
    head="lm_head.weight",
    embedding="model.embed_tokens.weight",
)
TEMPLATE = Template(
    system="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    user="<|im_start|>user\n",
    image=f"<|vision_start|>{PLACEHOLDER}<|vision_end|>",
    after_image="",
    space="",
    close="<|im_end|>\n<|im_start|>assistant\n",
    answer="{answer}",
    end="<|im_end|>",
    system_form="<|im_start|>system\n{system}<|im_end|>\n",
)
# Fields of the whole model; in a file without a text_config, all others are the decoder's.
WHOLE = frozenset(
    "vision_config text_config image_token_id video_token_id vision_start_token_id "
    "vision_end_token_id vision_token_id tie_word_embeddings architectures model_type".split()
)


@dataclasses.dataclass(frozen=True)
class QwenVLConfig(AnySizeInputs):
    """What the `config.json` of a Qwen2-VL or Qwen2.5-VL says."""

    text: DecoderConfig
    vision: QwenVisionConfig
    image_token: int

    def num_features(self, num_patches: int) -> int:
        """Return the number of image tokens of a vision input."""
        return num_patches // self.vision.merge**2


def config_from_hf(
    values: Mapping[str, Any], where: str = "config.json", *, kind: str
) -> QwenVLConfig:
    """Return the config of a `config.json`; ManuError lists every field that is not handled.

    kind: "qwen2_vl" or "qwen2_5_vl". The decoder's fields are among the others in the hub's
    files, and in a text_config in those of transformers 5.
    """
    fields = Fields(values)
    text, section = fields.part("text_config"), "text_config."
    if values.get("text_config") is None:
        text, section = {k: v for k, v in values.items() if k not in WHOLE}, ""
        for name in text:
            fields.get(name)
    config = QwenVLConfig(
        text=decoder_config(
            {**text, "model_type": "qwen2_vl_text"},
            fields.faults,
            is_tied=fields.flag("tie_word_embeddings", False),
            section=section,
        ),
        vision=qwen_vision_config(fields.part("vision_config"), fields.faults, kind),
        image_token=fields.token("image_token_id", 151655),
    )
    fields.faults += width_faults(config)
    fields.refuse(where)
    return config


def width_faults(config: QwenVLConfig) -> list[str]:
    """Return the fault of a merger whose width is not the decoder's, if any."""
    merged, width = config.vision.output_width, config.text.width
    if merged == width:
        return []
    return [f"vision_config: the merger's width {merged} is not the decoder's, {width}"]


class QwenVL(Multimodal):
    """The tower, with its merger, and the decoder."""

    def __init__(self, key: jax.Array, config: QwenVLConfig):
        vision, text = jax.random.split(key)
        self.vision = QwenVision(vision, config.vision)
        self.text = Decoder(text, config.text)
        self.config = config

    def encode_images(self, images: Images, forward: Forward) -> tuple[jax.Array, dict[str, Any]]:
        """Return the merged tokens of each vision input. [B, I, P / merge², E]."""
        positions_BIP2 = images.patch_positions_BIP2
        assert images.patches_BIPC is not None and positions_BIP2 is not None
        of_tower = forward.images("vision", positions_BIP2[..., 0] >= 0)
        tokens_BIPE, captured = self.vision(images.patches_BIPC, positions_BIP2, forward=of_tower)
        return tokens_BIPE, {"vision": captured}

    def mlps(self) -> dict[str, TowerMlp]:
        return mlps(self.config)


def mlps(config: QwenVLConfig) -> dict[str, TowerMlp]:
    """Return the towers, and how their MLPs are built."""
    return {
        "text": decoder_mlp(config.text, "text"),
        "vision": qwen_vision_mlp(config.vision, "vision"),
    }


def weight_table(config: QwenVLConfig) -> list[Entry]:
    """Return which tensor, by its export name, fills which leaf of the model."""
    table = decoder_table(config.text, "text", "model.", NAMES.head)
    return table + qwen_vision_table(config.vision, "vision", "visual.")


def replacements(
    text: str, images: Sequence[Any], processor: Any, config: QwenVLConfig
) -> list[Replacement]:
    """Return what replaces each placeholder: the image token, once for each group of patches."""
    token, count_patches = processor.image_token, processor.image_processor
    counts = [
        count_patches.get_number_of_image_patches(image.height, image.width) for image in images
    ]
    pairs = zip(placeholders(text, token), counts, strict=False)
    return [(start, end, token * config.num_features(count)) for (start, end), count in pairs]


def vision_inputs(image: Any, processor: Any, config: QwenVLConfig) -> tuple[VisionInput, ...]:
    """Return the one vision input of an image; its patches are in order of their groups."""
    coded = processor.image_processor(images=[image], return_tensors="np")
    patches_PC = np.asarray(coded["pixel_values"], np.float32)
    _, rows, columns = (int(size) for size in coded["image_grid_thw"][0])
    merge = config.vision.merge
    if patches_PC.shape[1] != config.patch_values or processor.image_processor.merge_size != merge:
        raise ManuError(
            f"the image processor gives patches of {patches_PC.shape[1]} values in groups of "
            f"{processor.image_processor.merge_size}², the model takes {config.patch_values} in "
            f"groups of {merge}²: config.json and the image processor's file are of different "
            "models."
        )
    positions = np.moveaxis(np.indices((rows, columns), np.int32), 0, -1)
    grouped = positions.reshape(rows // merge, merge, columns // merge, merge, 2).swapaxes(1, 2)
    return (VisionInput(patches_PC, grouped.reshape(-1, 2), config.num_features(len(patches_PC))),)


def rope_positions(
    is_image_T: np.ndarray, vision_inputs: Sequence[VisionInput], config: QwenVLConfig
) -> np.ndarray:
    """Return each token's positions in time, by row and by column. [T, 3] int32."""
    merge, remaining = config.vision.merge, iter(vision_inputs)
    pieces, position = [], 0
    for is_image, run in itertools.groupby(is_image_T):
        count = len(list(run))
        while is_image and count:
            vision_input = next(remaining)
            assert vision_input.patch_positions_P2 is not None
            groups_P2 = vision_input.patch_positions_P2[:: merge**2] // merge
            time_P1 = np.zeros((len(groups_P2), 1), np.int32)
            pieces.append(np.concatenate([time_P1, groups_P2], axis=1) + position)
            position += int(groups_P2.max()) + 1
            count -= len(groups_P2)
        if count:
            pieces.append(np.repeat(np.arange(position, position + count)[:, None], 3, axis=1))
            position += count
    return np.concatenate(pieces).astype(np.int32)


def tiny_qwen2_vl(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of a Qwen2-VL of these sizes."""
    vision = {
        "embed_dim": section.vision.width,
        "hidden_size": section.text.width,
        "mlp_ratio": section.vision.num_neurons // section.vision.width,
        "hidden_act": "quick_gelu",
    }
    return {
        **shared_config("Qwen2VL", "qwen2_vl"),
        **_tiny_parts(section, tokenizer, kind="qwen2_vl", vision=vision),
    }


def tiny_qwen2_5_vl(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of a Qwen2.5-VL of these sizes.

    The windows of its tower have 2 × 2 tokens; the last layer attends to the whole image.
    """
    vision = {
        "hidden_size": section.vision.width,
        "out_hidden_size": section.text.width,
        "intermediate_size": section.vision.num_neurons,
        "hidden_act": "silu",
        "window_size": 4 * section.vision.patch_size,
        "fullatt_block_indexes": [section.vision.num_layers - 1],
    }
    return {
        **shared_config("Qwen2_5_VL", "qwen2_5_vl"),
        **_tiny_parts(section, tokenizer, kind="qwen2_5_vl", vision=vision),
    }


def tiny_processor(section: ModelSection, tokenizer: Any) -> Any:
    """Return a processor that scales images to as many pixels as the section's have."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    area = section.vision.image_size**2
    images = Qwen2VLImageProcessorPil(
        patch_size=section.vision.patch_size, size={"shortest_edge": area, "longest_edge": area}
    )
    tokens = {
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
        "turn_start_token": "<|im_start|>",
        "turn_end_token": "<|im_end|>",
        "image_token": PLACEHOLDER,
    }
    return Processor(images, with_tokens(tokenizer, tokens), PLACEHOLDER)


def check_qwen2_vl(section: ModelSection) -> list[str]:
    """Return the faults of a Qwen2-VL's sizes; its `config.json` holds the MLP's ratio."""
    vision = section.vision
    ratio = multiple_of(
        "vision.num_neurons", vision.num_neurons, of="vision.width", part=vision.width
    )
    return check_qwen2_5_vl(section) + ratio


def check_qwen2_5_vl(section: ModelSection) -> list[str]:
    """Return the faults of a Qwen2.5-VL's sizes; a head's channels are split into four."""
    vision, of = section.vision, "4 · vision.num_heads"
    heads = multiple_of("vision.width", vision.width, of=of, part=4 * vision.num_heads)
    return heads + whole_squares(section)


def _tiny_parts(
    section: ModelSection, tokenizer: Any, *, kind: str, vision: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields that both models have; vision: those of the tower that differ."""
    head_size = section.text.width // section.text.num_heads
    # Time, rows and columns have 16, 24 and 24 of 64 rotary pairs, as in the released models.
    side = head_size // 4 - head_size // 16
    sections = [head_size // 2 - 2 * side, side, side]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    return {
        "image_token_id": tokenizer.convert_tokens_to_ids(PLACEHOLDER),
        "text_config": {
            **text_config(f"{kind}_text", section, tokenizer),
            "rope_parameters": rope,
            "rope_scaling": rope,
        },
        "vision_config": {
            "model_type": kind,
            "depth": section.vision.num_layers,
            "num_heads": section.vision.num_heads,
            "patch_size": section.vision.patch_size,
            **vision,
        },
    }


QWEN2_VL = Family(
    name="Qwen2-VL",
    model_type="qwen2_vl",
    config_from_hf=functools.partial(config_from_hf, kind="qwen2_vl"),
    build=QwenVL,
    mlps=mlps,
    weight_table=weight_table,
    names=NAMES,
    replacements=replacements,
    vision_inputs=vision_inputs,
    rope_positions=rope_positions,
    tiny_config=tiny_qwen2_vl,
    tiny_processor=tiny_processor,
    check_sizes=check_qwen2_vl,
    template=TEMPLATE,
    load_processor=functools.partial(processor_without_videos, image_token=PLACEHOLDER),
)
QWEN2_5_VL = dataclasses.replace(
    QWEN2_VL,
    name="Qwen2.5-VL",
    model_type="qwen2_5_vl",
    config_from_hf=functools.partial(config_from_hf, kind="qwen2_5_vl"),
    tiny_config=tiny_qwen2_5_vl,
    check_sizes=check_qwen2_5_vl,
)
FAMILIES = (QWEN2_VL, QWEN2_5_VL)

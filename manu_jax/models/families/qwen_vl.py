"""Qwen2-VL and Qwen2.5-VL: a tower for images of any size, and a Qwen2 decoder with M-RoPE.

Wang et al. 2024 (arXiv 2409.12191) and Bai et al. 2025 (arXiv 2502.13923), as
`Qwen2VLForConditionalGeneration` and `Qwen2_5_VLForConditionalGeneration`, of images; videos are
not handled. Peculiarities: an image becomes as many tokens as it has groups of patches; an image
token has positions in time, by row and by column, and the next token's follow the largest of them.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from manu_jax.models.hf.fields import Fields, refuse
from manu_jax.models.hf.tables import Entry
from manu_jax.models.inputs.processing import Replacement, placeholders
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

# A: the hub's files, and those that transformers writes · C: in memory. C stands first, since A
# explains whatever begins with `model.`.
NAME_PREFIXES: dict[str, dict[str, str]] = {
    "C": {"model.language_model.": "model.", "model.visual.": "visual.", "lm_head.": "lm_head."},
    "A": {"model.": "model.", "visual.": "visual.", "lm_head.": "lm_head."},
}
BUFFERS = (".rotary_emb.inv_freq", ".rotary_pos_emb.inv_freq")
TEMPLATE = Template(
    system="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    user="<|im_start|>user\n",
    image="<|vision_start|><|image_pad|><|vision_end|>",
    after_image="",
    space="",
    close="<|im_end|>\n<|im_start|>assistant\n",
    answer="{answer}",
    end="<|im_end|>",
    system_form="<|im_start|>system\n{system}<|im_end|>\n",
)
# Fields of the whole config; all others of a flat file are the decoder's.
WHOLE = frozenset(
    "vision_config text_config image_token_id video_token_id vision_start_token_id "
    "vision_end_token_id vision_token_id tie_word_embeddings architectures model_type".split()
)


@dataclasses.dataclass(frozen=True)
class QwenVLConfig(AnySizeInputs):
    """What a Qwen2-VL's or Qwen2.5-VL's `config.json` says."""

    text: DecoderConfig
    vision: QwenVisionConfig
    image_token: int

    def num_features(self, num_patches: int) -> int:
        """Return the image tokens of a vision input of so many patches."""
        return num_patches // self.vision.merge**2


def config_from_hf(
    values: Mapping[str, Any], where: str = "config.json", *, kind: str
) -> QwenVLConfig:
    """Return the config of a `config.json`; ManuError lists every field that is not handled.

    kind: "qwen2_vl" or "qwen2_5_vl". The hub's files hold the decoder's fields beside the others,
    those of transformers 5 in a text_config.
    """
    faults: list[str] = []
    given = values.get("text_config")
    text = {k: v for k, v in values.items() if k not in WHOLE} if given is None else given
    fields = Fields(values, "", faults)
    for name in text:
        fields.get(name)
    for name in ("video_token_id", "vision_start_token_id", "vision_end_token_id"):
        fields.get(name)
    fields.get("vision_token_id")
    section = "" if given is None else "text_config."
    config = QwenVLConfig(
        text=decoder_config(
            {**text, "model_type": f"{kind}_text"},
            faults,
            is_tied=fields.get("tie_word_embeddings", False),
            section=section,
        ),
        vision=qwen_vision_config(fields.part("vision_config"), faults, kind),
        image_token=fields.get("image_token_id", 151655),
    )
    fields.part("text_config")
    if config.vision.output_width != config.text.width:
        faults.append(
            f"vision_config: the merger's width {config.vision.output_width} is not the "
            f"decoder's, {config.text.width}"
        )
    fields.finish()
    refuse(faults, where)
    return config


qwen2_config = functools.partial(config_from_hf, kind="qwen2_vl")
qwen2_5_config = functools.partial(config_from_hf, kind="qwen2_5_vl")


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
    """Return which tensor of form A fills which leaf of the model."""
    table = decoder_table(config.text, "text", "model.", "lm_head.weight")
    return table + qwen_vision_table(config.vision, "vision", "visual.")


def tied(config: QwenVLConfig) -> dict[str, str]:
    """Return the tensors that files of a tied model may hold besides: the head."""
    return {"lm_head.weight": "model.embed_tokens.weight"} if config.text.is_tied else {}


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

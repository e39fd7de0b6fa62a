"""Idefics2: a SigLIP tower for images of any size, a perceiver, and a Mistral decoder.

Laurençon et al. 2024, "What matters when building vision-language models?" (arXiv 2405.02246), as
`Idefics2ForConditionalGeneration`. Peculiarities: an image keeps its shape; scaled to the grid of
positions, each of its patches has the position of the cell that it falls into. A gated MLP
("projection", one layer) projects the tower's states to the decoder's width, and a perceiver with
gated MLPs ("resampler") turns them into a fixed number of latents. With `do_image_splitting` an
image is five vision inputs, its quarters and itself.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.config import ModelSection
from manu_jax.models.families.family import Family
from manu_jax.models.families.tiny import (
    multiple_of,
    shared_config,
    text_config,
    vision_config,
    with_tokens,
)
from manu_jax.models.hf.fields import Fields
from manu_jax.models.hf.tables import Entry, TensorNames
from manu_jax.models.inputs.processing import Replacement, placeholders
from manu_jax.models.inputs.vision_inputs import AnySizeInputs, patches_of
from manu_jax.models.nn.decoder import Decoder, decoder_mlp, decoder_table
from manu_jax.models.nn.decoder_config import DecoderConfig, decoder_config
from manu_jax.models.nn.forward import Forward, TowerForward
from manu_jax.models.nn.mlp import Mlp, TowerMlp, mlp_table
from manu_jax.models.nn.multimodal import Multimodal
from manu_jax.models.nn.perceiver import (
    PerceiverConfig,
    Resampler,
    perceiver_config,
    resampler_mlp,
    resampler_table,
)
from manu_jax.models.nn.scan import scan_layers
from manu_jax.models.nn.vit import Vit, VitConfig, vit_config, vit_mlp, vit_table
from manu_jax.types import Images, Template, VisionInput

# All versions of transformers write the hub's names.
NAMES = TensorNames(
    prefixes={"hub": {"model.": "model.", "lm_head.": "lm_head."}},
    buffers=(".position_ids", ".rotary_emb.inv_freq"),
    head="lm_head.weight",
    embedding="model.text_model.embed_tokens.weight",
)
TEMPLATE = Template(
    user="User:",
    image="<image>",
    after_image="",
    close="<end_of_utterance>\nAssistant:",
    end="<end_of_utterance>",
)
# Before and after an image's tokens
FAKE = "<fake_token_around_image>"


@dataclasses.dataclass(frozen=True)
class Idefics2Config(AnySizeInputs):
    """What the `config.json` of an Idefics2 says."""

    text: DecoderConfig
    vision: VitConfig
    perceiver: PerceiverConfig
    image_token: int

    def num_features(self, num_patches: int) -> int:
        """Return the number of image tokens of a vision input; all have the same."""
        return self.perceiver.num_latents


def config_from_hf(values: Mapping[str, Any], where: str = "config.json") -> Idefics2Config:
    """Return the config of a `config.json`; ManuError lists every field that is not handled."""
    fields = Fields(values)
    is_tied = fields.flag("tie_word_embeddings", False)
    text = {"model_type": "mistral", **fields.part("text_config")}
    text = decoder_config(text, fields.faults, is_tied=is_tied)
    vision = dict(fields.part("vision_config"))
    vision.pop("model_type", None)  # "idefics2" in the hub's files
    config = Idefics2Config(
        text=text,
        vision=vit_config(vision, fields.faults, kind="idefics2_vision"),
        perceiver=perceiver_config(fields.part("perceiver_config"), text, fields.faults),
        image_token=fields.token("image_token_id", 32001),
    )
    fields.refuse(where)
    return config


class Idefics2(Multimodal):
    """The tower, the two halves of the connector, and the decoder."""

    def __init__(self, key: jax.Array, config: Idefics2Config):
        vision, projection, resampler, text = jax.random.split(key, 4)
        self.vision = Vit(vision, config.vision)
        self.projection = Mlp(
            projection,
            config.text,
            gated=True,
            bias=False,
            num_layers=1,
            input_width=config.vision.width,
        )
        self.resampler = Resampler(resampler, config.perceiver)
        self.text = Decoder(text, config.text)
        self.config = config

    def encode_images(self, images: Images, forward: Forward) -> tuple[jax.Array, dict[str, Any]]:
        """Return each vision input's latents after the resampler. [B, I, latents, E]."""
        positions_BIP2 = images.patch_positions_BIP2
        assert images.patches_BIPC is not None and positions_BIP2 is not None
        (B, count, P), side = images.patches_BIPC.shape[:3], self.config.vision.side
        grid_index_BIP = positions_BIP2[..., 0] * side + positions_BIP2[..., 1]  # −1 stays below 0
        is_patch_BIP = jnp.asarray(grid_index_BIP) >= 0
        states_BIPD, vision = self.vision(
            images.patches_BIPC, grid_index_BIP, forward=forward.images("vision", is_patch_BIP)
        )
        context_BTD, projection = self._project(
            states_BIPD.reshape(B, count * P, -1), forward.images("projection", is_patch_BIP)
        )
        is_latent_BIP = jnp.ones((B, count, self.config.perceiver.num_latents))
        latents_BIPD, resampler = self.resampler(
            context_BTD.reshape(B, count, P, -1),
            is_patch_BIP,
            forward=forward.images("resampler", is_latent_BIP),
        )
        return latents_BIPD, {"vision": vision, "projection": projection, "resampler": resampler}

    def mlps(self) -> dict[str, TowerMlp]:
        return mlps(self.config)

    def _project(self, states_BTD: jax.Array, forward: TowerForward) -> tuple[jax.Array, Any]:
        """Return the states at the decoder's width [B, T, E], and what was captured."""

        def body(
            h_BTE: jax.Array, layer: Mlp, gate: jax.Array | None, _: None
        ) -> tuple[jax.Array, Any, None]:
            y_BTE, captured = layer(states_BTD, gate, forward.capture)
            return h_BTE + y_BTE, captured, None

        zeros_BTE = jnp.zeros((*states_BTD.shape[:2], self.config.text.width), states_BTD.dtype)
        y_BTE, captured, _ = scan_layers(body, zeros_BTE, self.projection, forward=forward)
        return y_BTE, captured


def mlps(config: Idefics2Config) -> dict[str, TowerMlp]:
    """Return the towers, and how their MLPs are built."""
    text = config.text
    return {
        "text": decoder_mlp(text, "text"),
        "vision": vit_mlp(config.vision, "vision"),
        "projection": TowerMlp(
            "projection",
            num_layers=1,
            num_neurons=text.num_neurons,
            width=text.width,
            gated=True,
            bias=False,
        ),
        "resampler": resampler_mlp(config.perceiver, "resampler"),
    }


def weight_table(config: Idefics2Config) -> list[Entry]:
    """Return which tensor fills which leaf of the model."""
    table = decoder_table(config.text, "text", "model.text_model.", NAMES.head)
    table += vit_table(config.vision, "vision", "model.vision_model.")
    table += mlp_table(mlps(config)["projection"], "model.connector.modality_projection.")
    return table + resampler_table(
        config.perceiver, "resampler", "model.connector.perceiver_resampler."
    )


def replacements(
    text: str, images: Sequence[Any], processor: Any, config: Idefics2Config
) -> list[Replacement]:
    """Return what replaces each placeholder: the image tokens with a fake token before and after.

    As `Idefics2Processor` joins them: vision inputs that touch share a fake token, and a space
    separates the last one from a word that touches it.
    """
    token = processor.image_token
    one = token * config.perceiver.num_latents + FAKE
    whole = one * (5 if processor.image_processor.do_image_splitting else 1)
    found, last = [], -1
    for start, end in placeholders(text, token):
        touches = start == last or text[:start].endswith(FAKE)
        space = " " if re.match(r"[^\s<]", text[end:]) else ""
        found.append((start, end, ("" if touches else FAKE) + whole + space))
        last = end
    return found


def vision_inputs(image: Any, processor: Any, config: Idefics2Config) -> tuple[VisionInput, ...]:
    """Return the vision inputs of an image: itself, or its quarters and itself.

    `Idefics2Processor` turns an image as its EXIF tag says and drops its alpha before the image
    processor sees it, alone among the families' processors.
    """
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image).convert("RGB")
    coded = processor.image_processor(images=[[upright]], return_tensors="np")
    size, side = config.vision.patch_size, config.vision.side
    found = []
    for pixels_CYX, mask_YX in zip(
        coded["pixel_values"][0], coded["pixel_attention_mask"][0], strict=True
    ):
        # The mask keeps a rectangle in the upper left corner.
        rows, columns = (int(mask_YX.any(axis=axis).sum()) // size for axis in (1, 0))
        patches_PC = patches_of(pixels_CYX[:, : rows * size, : columns * size], size)
        positions = np.meshgrid(
            _grid_positions(rows, side), _grid_positions(columns, side), indexing="ij"
        )
        patch_positions_P2 = np.stack(positions, axis=-1).reshape(-1, 2)
        found.append(VisionInput(patches_PC, patch_positions_P2, config.perceiver.num_latents))
    return tuple(found)


@functools.cache
def _grid_positions(count: int, side: int) -> np.ndarray:
    """Return the grid's row (or column) of each of an image's rows. [count] int32.

    The arithmetic is PyTorch's in float32, because a row on the edge between two of the grid's rows
    is rounded to either. It equals PyTorch's for the side of the released models, 70.
    """
    step = 1 / side
    edges = (step + np.arange(math.ceil((1 - step) / step)) * step).astype(np.float32)
    share = np.arange(count, dtype=np.float32) * (np.float32(1) / np.float32(count))
    share = np.minimum(share, np.float32(1 - 1e-6))
    return np.searchsorted(edges, share, side="right").astype(np.int32)


def tiny_config(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of an Idefics2 of these sizes, without a sliding window."""
    connector = section.connector
    return {
        **shared_config("Idefics2", "idefics2"),
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "text_config": {**text_config("mistral", section, tokenizer), "sliding_window": None},
        "vision_config": vision_config("idefics2_vision", section),
        "perceiver_config": {
            "model_type": "idefics2_perceiver",
            "hidden_act": "silu",
            "hidden_size": section.text.width,
            "rms_norm_eps": 1e-6,
            "resampler_n_latents": connector.num_latents,
            "resampler_depth": connector.num_layers,
            "resampler_n_heads": connector.num_heads,
            "resampler_head_dim": section.text.width // connector.num_heads,
            "num_key_value_heads": connector.num_heads,
        },
    }


def tiny_processor(section: ModelSection, tokenizer: Any) -> Any:
    """Return an Idefics2Processor for images of the section's size."""
    from transformers import Idefics2Processor
    from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

    size = section.vision.image_size
    return Idefics2Processor(
        image_processor=Idefics2ImageProcessorPil(
            size={"shortest_edge": size, "longest_edge": size}, do_image_splitting=False
        ),
        tokenizer=with_tokens(tokenizer, {"image_boundary_token": FAKE}),
        image_seq_len=section.connector.num_latents,
    )


def check_sizes(section: ModelSection) -> list[str]:
    """Return the fault of a resampler whose heads do not divide its width, if any."""
    heads = section.connector.num_heads
    return multiple_of("text.width", section.text.width, of="connector.num_heads", part=heads)


FAMILY = Family(
    name="Idefics2",
    model_type="idefics2",
    config_from_hf=config_from_hf,
    build=Idefics2,
    mlps=mlps,
    weight_table=weight_table,
    names=NAMES,
    replacements=replacements,
    vision_inputs=vision_inputs,
    tiny_config=tiny_config,
    tiny_processor=tiny_processor,
    check_sizes=check_sizes,
    template=TEMPLATE,
)

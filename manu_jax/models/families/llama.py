"""Llama: a decoder alone, which takes no images.

Touvron et al. 2023 (arXiv 2302.13971) and Llama 3 (arXiv 2407.21783), as `LlamaForCausalLM`; so are
SmolLM2 and many others. Peculiarities: there is no tower but "text", and no image token. Facts have
no image form, and a benchmark with images is asked in text alone (`Family.takes_images`). Without a
chat template a prompt is the question as it is, to be gone on from.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from manu_jax.config import ModelSection
from manu_jax.models.families.family import Family
from manu_jax.models.families.tiny import shared_config, text_config
from manu_jax.models.hf.fields import Fields
from manu_jax.models.hf.tables import Entry, TensorNames
from manu_jax.models.inputs.processing import Replacement, TextProcessor
from manu_jax.models.nn.decoder import Decoder, decoder_mlp, decoder_table
from manu_jax.models.nn.decoder_config import DecoderConfig, decoder_config
from manu_jax.models.nn.forward import Forward
from manu_jax.models.nn.mlp import TowerMlp
from manu_jax.models.nn.multimodal import Multimodal
from manu_jax.types import NO_IMAGE_TOKEN, Images, Template, VisionInput

NAMES = TensorNames(
    prefixes={"hub": {"model.": "model.", "lm_head.": "lm_head."}},
    buffers=(".rotary_emb.inv_freq",),  # in older files
    head="lm_head.weight",
    embedding="model.embed_tokens.weight",
)

LEFT_OVER = ("is_llama_config",)  # of SmolLM2's training; transformers does not read it


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """What the `config.json` of a Llama says."""

    text: DecoderConfig
    image_token: int = NO_IMAGE_TOKEN
    num_patches: int = 0

    def num_features(self, num_patches: int) -> int:
        """Return the tokens of a vision input: there are none."""
        return 0


def config_from_hf(values: Mapping[str, Any], where: str = "config.json") -> LlamaConfig:
    """Return the config of a `config.json`; ManuError lists every field that is not handled."""
    fields = Fields({})
    values = {name: value for name, value in values.items() if name not in LEFT_OVER}
    config = LlamaConfig(decoder_config(values, fields.faults, is_tied=False, section=""))
    fields.refuse(where)
    return config


class Llama(Multimodal):
    """The decoder."""

    def __init__(self, key: jax.Array, config: LlamaConfig):
        self.text = Decoder(key, config.text)
        self.config = config

    def mlps(self) -> dict[str, TowerMlp]:
        """Return the one tower."""
        return mlps(self.config)

    def encode_images(self, images: Images, forward: Forward) -> tuple[jax.Array, dict[str, Any]]:
        """Refuse: no sample of this family has images."""
        raise ValueError("a Llama takes no images")


def mlps(config: LlamaConfig) -> dict[str, TowerMlp]:
    """Return the MLPs of the decoder."""
    return {"text": decoder_mlp(config.text, "text")}


def weight_table(config: LlamaConfig) -> list[Entry]:
    """Return which tensor, by its export name, fills which leaf of the model."""
    return decoder_table(config.text, "text", "model.", NAMES.head)


def load_processor(path: Path) -> TextProcessor:
    """Return the tokenizer of a folder."""
    from transformers import AutoTokenizer

    return TextProcessor(AutoTokenizer.from_pretrained(path, local_files_only=True))


def replacements(
    text: str, images: Sequence[Any], processor: Any, config: LlamaConfig
) -> list[Replacement]:
    """Return the replacements of placeholders: a text has none."""
    return []


def vision_inputs(image: Any, processor: Any, config: LlamaConfig) -> tuple[VisionInput, ...]:
    """Return what a tower reads of an image: there is none."""
    return ()


def tiny_config(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of a Llama of these sizes; those of a tower do not count."""
    return {
        **text_config("llama", section, tokenizer),
        **shared_config("Llama", "llama"),
        "architectures": ["LlamaForCausalLM"],
    }


def tiny_processor(section: ModelSection, tokenizer: Any) -> TextProcessor:
    """Return the tokenizer as a processor."""
    return TextProcessor(tokenizer)


FAMILY = Family(
    name="Llama",
    model_type="llama",
    config_from_hf=config_from_hf,
    build=Llama,
    weight_table=weight_table,
    names=NAMES,
    replacements=replacements,
    vision_inputs=vision_inputs,
    tiny_config=tiny_config,
    tiny_processor=tiny_processor,
    template=Template(user="", image="", after_image="", space="", close=""),
    mlps=mlps,
    load_processor=load_processor,
    takes_images=False,
)

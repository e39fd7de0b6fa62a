"""PaliGemma and PaliGemma 2: a SigLIP tower, one matrix, and a Gemma or Gemma 2 decoder.

Beyer et al. 2024 (arXiv 2407.07726) and Steiner et al. 2024 (arXiv 2412.03555), as
`PaliGemmaForConditionalGeneration`. Peculiarity: the tokens before the answer, those of the image
and the question, attend to each other in both directions; the answer's attend backwards only.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from manu_jax.config import ModelSection
from manu_jax.models.families import llava
from manu_jax.models.families.family import Family
from manu_jax.models.families.tiny import shared_config, text_config, vision_config, with_tokens
from manu_jax.models.hf.fields import Fields
from manu_jax.models.hf.tables import Entry
from manu_jax.models.inputs.processing import repeated_token
from manu_jax.models.inputs.vision_inputs import FixedSizeInputs, square_vision_input
from manu_jax.models.nn.decoder import Decoder
from manu_jax.models.nn.decoder_config import DecoderConfig, decoder_config
from manu_jax.models.nn.forward import Forward
from manu_jax.models.nn.layers import project, random_weight
from manu_jax.models.nn.multimodal import Multimodal
from manu_jax.models.nn.vit import Vit, VitConfig, vit_config
from manu_jax.types import Array, Batch, Images, Template

TEMPLATE = Template(
    user="",
    image="<image><bos>",
    no_image="<bos>",
    after_image="",
    space="",
    close="\n",
    answer="{answer}",
    end="<eos>",
    system_form="{system}\n",
)
DECODERS = ("gemma", "gemma2")
# Fields that follow from the others
DERIVED = ("num_image_tokens", "projection_dim", "projector_hidden_act")


@dataclasses.dataclass(frozen=True)
class PaliGemmaConfig(FixedSizeInputs):
    """What the `config.json` of a PaliGemma says."""

    text: DecoderConfig
    vision: VitConfig
    image_token: int

    @property
    def tokens_per_image(self) -> int:
        """Number of image tokens of an image."""
        return self.vision.num_patches

    def num_features(self, num_patches: int) -> int:
        """Return the number of image tokens of a vision input; all have the same."""
        return self.tokens_per_image


def config_from_hf(values: Mapping[str, Any], where: str = "config.json") -> PaliGemmaConfig:
    """Return the config of a `config.json`; ManuError lists every field that is not handled."""
    fields = Fields(values)
    text = {"model_type": "gemma", **fields.part("text_config")}
    vision = dict(fields.part("vision_config"))
    if text["model_type"] not in DECODERS:
        fields.faults.append(
            f"text_config.model_type = {text['model_type']!r}: known: {', '.join(DECODERS)}"
        )
    if vision.pop("vision_use_head", False):
        fields.faults.append("vision_config.vision_use_head = True: expected false")
    if text.pop("use_bidirectional_attention", None) is False:
        fields.faults.append("text_config.use_bidirectional_attention = False: expected true")
    for section in (text, vision):
        for name in DERIVED:
            section.pop(name, None)
    for name in DERIVED:
        fields.get(name)
    is_tied = fields.flag("tie_word_embeddings", True)
    config = PaliGemmaConfig(
        text=decoder_config(text, fields.faults, is_tied=is_tied),
        vision=vit_config(vision, fields.faults, kind="siglip_vision_model"),
        image_token=fields.token("image_token_index", fields.token("image_token_id", 256000)),
    )
    fields.refuse(where)
    return config


class PaliGemma(Multimodal):
    """The tower, the projector's one matrix, and the decoder."""

    def __init__(self, key: jax.Array, config: PaliGemmaConfig):
        vision, projection, text = jax.random.split(key, 3)
        D, E = config.vision.width, config.text.width
        self.vision = Vit(vision, config.vision)
        self.projection_DE = random_weight(projection, (D, E), D)
        self.projection_bias_E = nnx.Param(jnp.zeros(E))
        self.text = Decoder(text, config.text)
        self.config = config

    def encode_images(self, images: Images, forward: Forward) -> tuple[jax.Array, dict[str, Any]]:
        """Return the projected patches. [B, I, P, E]."""
        states_BIPD, captured = self.vision.of_images(images, forward)
        y_BIPE = project(states_BIPD, self.projection_DE[...])
        return y_BIPE + self.projection_bias_E[...][None, None, None], {"vision": captured}

    def bidirectional_groups(self, batch: Batch) -> Array:
        """Return 0 before the first token that carries loss, −1 from there on."""
        is_answer_BT = jnp.asarray(batch.loss_weights_BT) > 0
        return jnp.where(jnp.cumsum(is_answer_BT, axis=1) == 0, 0, -1)


def weight_table(config: PaliGemmaConfig) -> list[Entry]:
    """Return which tensor, by its export name, fills which leaf of the model."""
    name = "multi_modal_projector.linear."
    return [
        *llava.towers_table(config),
        Entry("projection_DE", name + "weight", "ED"),
        Entry("projection_bias_E", name + "bias", "E"),
    ]


def template_of(tokenizer: Any) -> Template:
    """Return the prompt strings with the tokenizer's own tokens for beginning and end."""
    begin = tokenizer.bos_token
    return dataclasses.replace(
        TEMPLATE, image=f"<image>{begin}", no_image=begin, end=tokenizer.eos_token
    )


def tiny_config(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of a PaliGemma of these sizes, whose head is its embedding."""
    width = section.text.width
    return {
        **shared_config("PaliGemma", "paligemma", is_tied=True),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "projection_dim": width,
        "hidden_size": width,
        "text_config": {
            **text_config("gemma", section, tokenizer),
            "hidden_act": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
        },
        "vision_config": {
            **vision_config("siglip_vision_model", section),
            "projection_dim": width,
            "vision_use_head": False,
        },
    }


def tiny_processor(section: ModelSection, tokenizer: Any) -> Any:
    """Return a PaliGemmaProcessor for images of the section's size."""
    from transformers import PaliGemmaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    size = section.vision.image_size
    images: Any = SiglipImageProcessorPil(size={"height": size, "width": size})
    images.image_seq_length = (size // section.vision.patch_size) ** 2
    return PaliGemmaProcessor(images, with_tokens(tokenizer, {}, begins=False))


FAMILY = Family(
    name="PaliGemma",
    model_type="paligemma",
    config_from_hf=config_from_hf,
    build=PaliGemma,
    weight_table=weight_table,
    names=llava.NAMES,
    replacements=repeated_token,
    vision_inputs=square_vision_input,
    tiny_config=tiny_config,
    tiny_processor=tiny_processor,
    template=TEMPLATE,
    template_of=template_of,
    prompt_sees_ahead=True,
)

"""LLaVA-1.5: a CLIP tower, a two-layer projector, and a Llama decoder.

Liu et al. 2024, "Improved Baselines with Visual Instruction Tuning" (arXiv 2310.03744), as
`LlavaForConditionalGeneration`. Peculiarities: the features are those of the last layer but one
(`vision_feature_layer` −2), without the class token ("default") or with it ("full"); the
projector's two matrices are no gated MLP, so they are no tower. Mistral and Qwen2 decoders are
accepted.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from manu_jax.models.decoder import Cache, Decoder, DecoderConfig, decoder_config
from manu_jax.models.fields import Fields, refuse
from manu_jax.models.layers import ACTIVATIONS, Remat, project, random_weight
from manu_jax.models.merge import merge
from manu_jax.models.probe import text_weights, vision_weights
from manu_jax.models.tables import Entry, TowerMlp, decoder_table, vit_table
from manu_jax.models.vit import Vit, VitConfig, vit_config
from manu_jax.parallel import constrain
from manu_jax.types import Array, Batch, Neurons, Output, Probe

# A config.json without a vision_config means the tower of LLaVA-1.5.
VISION_DEFAULTS = {
    "hidden_size": 1024, "intermediate_size": 4096, "patch_size": 14, "image_size": 336,
    "num_hidden_layers": 24, "num_attention_heads": 16,
}  # fmt: skip

# The spellings of tensor names: what stands for the name's start on the left is on the right in
# form A. A: the hub's files · B: transformers 5 from a config · C: in memory in 5 · D: in memory
# before 5. D stands before C, and A before B, since each is a special case of the other.
SPELLINGS: dict[str, dict[str, str]] = {
    "A": {
        "language_model.": "language_model.",
        "vision_tower.vision_model.": "vision_tower.vision_model.",
        "multi_modal_projector.": "multi_modal_projector.",
    },
    "B": {
        "language_model.": "language_model.",
        "vision_tower.": "vision_tower.vision_model.",
        "multi_modal_projector.": "multi_modal_projector.",
    },
    "D": {
        "lm_head.": "language_model.lm_head.",
        "model.language_model.": "language_model.model.",
        "model.vision_tower.vision_model.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    },
    "C": {
        "lm_head.": "language_model.lm_head.",
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    },
}
# Buffers of older files; they are computed, not loaded.
BUFFERS = (".position_ids", ".rotary_emb.inv_freq")


@dataclasses.dataclass(frozen=True)
class LlavaConfig:
    """What a LLaVA's `config.json` says."""

    text: DecoderConfig
    vision: VitConfig
    drops_class_token: bool  # vision_feature_select_strategy "default"
    projector_activation: str
    projector_bias: bool
    image_token: int

    @property
    def tokens_per_image(self) -> int:
        """Image tokens that stand for one image in the token ids."""
        return self.vision.num_patches + (not self.drops_class_token)


def config_from_hf(values: Mapping[str, Any], where: str = "config.json") -> LlavaConfig:
    """Return the config of a `config.json`; ManuError lists every field that is not handled."""
    faults: list[str] = []
    fields = Fields(values, "", faults)
    layers = fields.get("vision_feature_layer", -2)
    fields.get("image_seq_length")  # follows from the tower's sizes
    fields.get("vocab_size")  # stands in old files beside the text_config's
    fields.get("ignore_index")
    fields.get("pad_token_id")
    text = fields.part("text_config")
    vision = fields.part("vision_config")
    config = LlavaConfig(
        text=decoder_config(text, faults, is_tied=fields.get("tie_word_embeddings", False)),
        vision=vit_config(
            vision,
            faults,
            feature_layers=(layers,) if isinstance(layers, int) else tuple(layers),
            defaults={} if vision else VISION_DEFAULTS,
        ),
        drops_class_token=fields.need(
            "vision_feature_select_strategy", "default", ("default", "full")
        )
        == "default",
        projector_activation=fields.need("projector_hidden_act", "gelu", tuple(ACTIVATIONS)),
        projector_bias=fields.get("multimodal_projector_bias", True),
        image_token=fields.get("image_token_index", fields.get("image_token_id", 32000)),
    )
    fields.finish()
    refuse(faults, where)
    return config


class Llava(nnx.Module):
    """The whole model: a Batch in, logits and measurements out."""

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

    def __call__(
        self,
        batch: Batch,
        gates: Neurons | None = None,
        probe: Probe | None = None,
        *,
        at_BA: Array | None = None,
        remat: Remat = "all",
    ) -> Output:
        """Return the logits [B, T, V] and, with a probe, what it measures at every MLP.

        at_BA: the positions whose logits are wanted, [B, A, V] then; None: all.

        gates: factors of the neurons of any of the towers, [L, F] or [L, B, F]. In a batch without
        images the vision tower does not run; a per-sample probe then gives zeros for it, and
        "position" nothing. remat: what a backward pass recomputes ("all", "dots", "none").
        """
        gates = gates or {}
        h_BTD, seen = self._embed(batch, gates.get("vision"), probe, remat)
        h_BTD, read, _ = self.text(
            h_BTD,
            batch.attention_mask_BT,
            batch.positions_BT,
            gates=gates.get("text"),
            measure=text_weights(batch, probe) if probe else None,
            remat=remat,
        )
        if at_BA is not None:
            h_BTD = jnp.take_along_axis(h_BTD, jnp.asarray(at_BA)[..., None], axis=1)
        logits_BTV = self.text.logits(h_BTD)
        if probe is None:
            return Output(logits_BTV)
        if probe.reduction != "position":
            towers = {"text": read} if seen is None else {"text": read, "vision": seen}
            return Output(logits_BTV, towers)
        towers = {"text": read} | ({"vision": seen} if seen else {})
        return Output(
            logits_BTV,
            {f"{tower}.{name}": rows for tower in towers for name, rows in towers[tower].items()},
        )

    def features(self, pixels_BIYXC: Array) -> jax.Array:
        """Return what images give to the decoder, a row per image token. [B, I, P, E]."""
        return self._project(self.vision(pixels_BIYXC, remat="none")[0])

    def prefill(self, batch: Batch, cache_length: int) -> tuple[jax.Array, Cache]:
        """Return the logits after each prompt [B, V], and its keys and values with room to go on.

        The batch is padded on the left. cache_length: tokens of prompt and answer together.
        """
        h_BTD, _ = self._embed(batch, None, None, "none")
        h_BTD, _, (keys_LBTKH, values_LBTKH) = self.text(
            h_BTD, batch.attention_mask_BT, batch.positions_BT, remat="none", keep_keys=True
        )
        room = cache_length - h_BTD.shape[1]
        longer = ((0, 0), (0, 0), (0, room), (0, 0), (0, 0))
        cache = Cache(
            jnp.pad(keys_LBTKH, longer),
            jnp.pad(values_LBTKH, longer),
            jnp.pad(batch.attention_mask_BT, ((0, 0), (0, room))),
            jnp.asarray(batch.positions_BT)[:, -1] + 1,
            jnp.asarray(h_BTD.shape[1], jnp.int32),
        )
        return self.text.logits(h_BTD[:, -1:])[:, 0], cache

    def decode(self, token_ids_B: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Return the logits after one further token per example [B, V], and the longer cache."""
        h_B1D, cache = self.text.decode(self.text.embed(token_ids_B[:, None]), cache)
        return self.text.logits(h_B1D)[:, 0], cache

    def _embed(
        self, batch: Batch, gates: Array | None, probe: Probe | None, remat: Remat
    ) -> tuple[jax.Array, Any]:
        """Return what enters the decoder, and what was measured in the tower."""
        h_BTD = self.text.embed(batch.token_ids_BT)
        config = self.config
        if batch.features_BIPE is not None:
            return self._merged(h_BTD, batch.features_BIPE, batch), None
        if batch.pixels_BIYXC is None or batch.image_mask_BI is None:
            if probe is None or probe.reduction == "position" or not config.vision.num_run:
                return h_BTD, None
            shape = (config.vision.num_run, h_BTD.shape[0], config.vision.num_neurons)
            return h_BTD, jnp.zeros(shape)
        measure = None
        if probe is not None:
            patches = config.vision.num_patches + 1
            measure = vision_weights(batch.image_mask_BI, batch, probe, patches)
        states_BIPD, seen = self.vision(
            batch.pixels_BIYXC, gates=gates, measure=measure, remat=remat
        )
        return self._merged(h_BTD, self._project(states_BIPD), batch), seen

    def _merged(self, h_BTD: jax.Array, features_BIPE: Array, batch: Batch) -> jax.Array:
        features_BJE = jnp.asarray(features_BIPE).reshape(len(h_BTD), -1, h_BTD.shape[-1])
        h_BTD = merge(h_BTD, features_BJE, batch.feature_index_BT)
        return constrain(h_BTD, "batch", None, None)

    def _project(self, states_BIPD: jax.Array) -> jax.Array:
        """Return the features of the tower's states, whose class token may be dropped."""
        if self.config.drops_class_token:
            states_BIPD = states_BIPD[:, :, 1:]
        x_BIPE = project(states_BIPD, self.linear_1_DE[...])
        if self.config.projector_bias:
            x_BIPE += self.linear_1_bias_E[...][None, None, None]
        x_BIPE = ACTIVATIONS[self.config.projector_activation](x_BIPE)
        y_BIPE = project(x_BIPE, self.linear_2_DE[...])
        if self.config.projector_bias:
            y_BIPE += self.linear_2_bias_E[...][None, None, None]
        return y_BIPE


def mlps(config: LlavaConfig) -> dict[str, TowerMlp]:
    """Return the towers, and how their MLPs are built."""
    text, vision = config.text, config.vision
    found = {
        "text": TowerMlp(
            "text.layers.mlp", text.num_layers, text.num_neurons, text.width, True, text.mlp_bias
        )
    }
    if vision.num_run:
        found["vision"] = TowerMlp(
            "vision.layers.mlp", vision.num_run, vision.num_neurons, vision.width, False, True
        )
    return found


def weight_table(config: LlavaConfig) -> list[Entry]:
    """Return which tensor of form A fills which leaf of the model."""
    table = decoder_table(config.text, "text", "language_model.")
    table += vit_table(config.vision, "vision", "vision_tower.vision_model.")
    for number in (1, 2):
        name = f"multi_modal_projector.linear_{number}."
        table.append(Entry(f"linear_{number}_DE", name + "weight", "ED"))
        if config.projector_bias:
            table.append(Entry(f"linear_{number}_bias_E", name + "bias", "E"))
    return table


def tied(config: LlavaConfig) -> dict[str, str]:
    """Return the tensors that files of a tied model may hold besides: the head."""
    if not config.text.is_tied:
        return {}
    return {"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"}

"""The perceiver of Idefics2: a fixed number of latents that attend to a vision input of any size.

Jaegle et al. 2021, "Perceiver" (arXiv 2103.03206), as `Idefics2PerceiverResampler`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from manu_jax.models.hf.fields import Fields
from manu_jax.models.hf.tables import Entry
from manu_jax.models.nn.attention import attend
from manu_jax.models.nn.capture import TowerCapture
from manu_jax.models.nn.decoder_config import DecoderConfig
from manu_jax.models.nn.forward import TowerForward
from manu_jax.models.nn.layers import ACTIVATIONS, Attention, rms_norm
from manu_jax.models.nn.mlp import Mlp, TowerMlp, mlp_table
from manu_jax.models.nn.scan import scan_layers


@dataclasses.dataclass(frozen=True)
class PerceiverConfig:
    """Sizes of the resampler; its MLPs have four times as many neurons as it is wide."""

    width: int
    num_latents: int
    num_layers: int
    num_heads: int
    num_key_heads: int
    head_size: int
    activation: str
    norm_epsilon: float

    @property
    def num_neurons(self) -> int:
        return 4 * self.width


def perceiver_config(
    values: Mapping[str, Any], text: DecoderConfig, faults: list[str]
) -> PerceiverConfig:
    """Return the config of a `perceiver_config`; what we lack is added to `faults`."""
    fields = Fields(values, "perceiver_config.", faults)
    fields.need("model_type", "idefics2_perceiver", ("idefics2_perceiver", "idefics2"))
    epsilon = fields.number("rms_norm_eps", 1e-6)
    if fields.get("hidden_size", 4096) != text.width:
        epsilon = text.norm_epsilon  # as transformers does
    config = PerceiverConfig(
        width=text.width,
        num_latents=fields.size("resampler_n_latents", 64),
        num_layers=fields.size("resampler_depth", 3, 1000),
        num_heads=fields.size("resampler_n_heads", 16),
        num_key_heads=fields.size("num_key_value_heads", 4),
        head_size=fields.size("resampler_head_dim", 96),
        activation=fields.need("hidden_act", "silu", tuple(ACTIVATIONS)),
        norm_epsilon=epsilon,
    )
    fields.divides(
        "resampler_n_heads", config.num_heads, by="num_key_value_heads", part=config.num_key_heads
    )
    fields.finish()
    return config


class ResamplerLayers(nnx.Module):
    """A stack of perceiver layers; called on the slice of one."""

    def __init__(self, key: jax.Array, config: PerceiverConfig):
        attention, mlp = jax.random.split(key)
        L, D = config.num_layers, config.width
        self.latent_norm_LD = nnx.Param(jnp.ones((L, D)))
        self.context_norm_LD = nnx.Param(jnp.ones((L, D)))
        self.attention = Attention(attention, config, qkv_bias=False, output_bias=False)
        self.mlp_norm_LD = nnx.Param(jnp.ones((L, D)))
        self.mlp = Mlp(mlp, config, gated=True, bias=False)
        self.epsilon = config.norm_epsilon

    def __call__(
        self,
        h_BTD: jax.Array,
        gate: jax.Array | None,
        capture: TowerCapture | None,
        *,
        context_BSD: jax.Array,
        is_context_BS: jax.Array,
    ) -> tuple[jax.Array, Any]:
        """Return the latents after one layer, and what was captured.

        h_BTD: the latents of an example, one vision input after the other. context_BSD,
        is_context_BS: a row per vision input. The latents of a vision input attend to its patches,
        never to padding, and to each other.
        """
        x_BTD = rms_norm(h_BTD, self.latent_norm_LD[...], self.epsilon)
        context_BSD = rms_norm(context_BSD, self.context_norm_LD[...], self.epsilon)
        own_BTD = x_BTD.reshape(len(context_BSD), -1, x_BTD.shape[-1])
        both_BSD = jnp.concatenate([context_BSD, own_BTD], axis=1)
        is_latent_BT = jnp.ones(own_BTD.shape[:2], bool)
        mask_B1S = jnp.concatenate([is_context_BS, is_latent_BT], axis=1)[:, None]
        keys_and_values = self.attention.keys_and_values(both_BSD)
        mixed_BTNH = attend(self.attention.queries(own_BTD), *keys_and_values, mask_B1S)
        h_BTD = h_BTD + self.attention.output(mixed_BTNH).reshape(h_BTD.shape)
        x_BTD = rms_norm(h_BTD, self.mlp_norm_LD[...], self.epsilon)
        y_BTD, captured = self.mlp(x_BTD, gate, capture)
        return h_BTD + y_BTD, captured


class Resampler(nnx.Module):
    """Vision inputs of any size in, as many latents for each out."""

    def __init__(self, key: jax.Array, config: PerceiverConfig):
        latents, layers = jax.random.split(key)
        shape = (config.num_latents, config.width)
        self.latents_PD = nnx.Param(jax.random.normal(latents, shape))
        self.layers = ResamplerLayers(layers, config)
        self.norm_D = nnx.Param(jnp.ones(config.width))
        self.config = config

    def __call__(
        self, context_BIPD: jax.Array, is_context_BIP: jax.Array, *, forward: TowerForward
    ) -> tuple[jax.Array, Any]:
        """Return each vision input's latents [B, I, latents, D], and what was captured."""
        B, images, P, D = context_BIPD.shape
        context_BSD = context_BIPD.reshape(B * images, P, D)
        is_context_BS = is_context_BIP.reshape(B * images, P)

        def body(
            h_BTD: jax.Array, layer: ResamplerLayers, gate: jax.Array | None, _: None
        ) -> tuple[jax.Array, Any, None]:
            context = {"context_BSD": context_BSD, "is_context_BS": is_context_BS}
            return *layer(h_BTD, gate, forward.capture, **context), None

        h_BTD = jnp.tile(self.latents_PD[...][None], (B, images, 1))
        h_BTD, captured, _ = scan_layers(body, h_BTD, self.layers, forward=forward)
        h_BTD = rms_norm(h_BTD, self.norm_D[...], self.config.norm_epsilon)
        return h_BTD.reshape(B, images, -1, D), captured


def resampler_mlp(config: PerceiverConfig, path: str) -> TowerMlp:
    """Return how the MLPs of a resampler are built."""
    sizes = (config.num_layers, config.num_neurons, config.width)
    return TowerMlp(path + ".layers.mlp", *sizes, gated=True, bias=False)


def resampler_table(config: PerceiverConfig, path: str, root: str) -> list[Entry]:
    """Return the table of a resampler whose names begin with `root`."""
    layer, layers = root + "layers.{layer}.", path + ".layers."
    attention = layer + "self_attn."
    return [
        Entry(path + ".latents_PD", root + "latents", "PD"),
        Entry(path + ".norm_D", root + "norm.weight", "D"),
        Entry(layers + "latent_norm_LD", layer + "input_latents_norm.weight", "D"),
        Entry(layers + "context_norm_LD", layer + "input_context_norm.weight", "D"),
        Entry(layers + "mlp_norm_LD", layer + "post_attention_layernorm.weight", "D"),
        Entry(layers + "attention.q_LDNH", attention + "q_proj.weight", "(NH)D"),
        Entry(layers + "attention.k_LDKH", attention + "k_proj.weight", "(KH)D"),
        Entry(layers + "attention.v_LDKH", attention + "v_proj.weight", "(KH)D"),
        Entry(layers + "attention.o_LNHD", attention + "o_proj.weight", "D(NH)"),
        *mlp_table(resampler_mlp(config, path), layer + "mlp."),
    ]

"""The vision tower of InternVL: a class token, learned positions, layers whose results are scaled.

Chen et al. 2023, "InternVL" (arXiv 2312.14238), as `InternVLVisionModel`. What attention and the
MLP give is multiplied by a learned factor of each entry (layer scale). The small tower has layer
norms; the large one RMS norms, and norms of all queries and of all keys of a token together.
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
from manu_jax.models.nn.forward import TowerForward
from manu_jax.models.nn.layers import (
    ACTIVATIONS,
    Attention,
    layer_norm,
    project,
    random_weight,
    rms_norm,
)
from manu_jax.models.nn.mlp import Mlp, TowerMlp, mlp_table
from manu_jax.models.nn.scan import scan_layers
from manu_jax.models.nn.square_patches import SquarePatches
from manu_jax.models.nn.vit import EMBEDDING_SCALE, MOST_LAYERS
from manu_jax.parallel import constrain
from manu_jax.types import Array

HEADS_EPSILON = 1e-6  # of the norms of queries and keys
NORMS = ("layer_norm", "rms_norm")


@dataclasses.dataclass(frozen=True)
class InternVisionConfig(SquarePatches):
    """Sizes and switches of a tower."""

    num_layers: int
    num_neurons: int
    activation: str
    norm_epsilon: float
    layer_scale: float  # of a new tower
    has_qkv_bias: bool
    has_rms_norms: bool  # otherwise layer norms
    has_qk_norms: bool


def intern_vision_config(values: Mapping[str, Any], faults: list[str]) -> InternVisionConfig:
    """Return the config of a `vision_config`; see `vit_config`."""
    fields = Fields(values, "vision_config.", faults)
    fields.need("model_type", "internvl_vision", ("internvl_vision",))
    fields.need("num_channels", 3, (3,))
    fields.need("use_mask_token", False, (False,))
    fields.need("use_absolute_position_embeddings", True, (True,))
    fields.need("use_mean_pooling", True, (True,))  # otherwise the result is normalised
    for name in ("hidden_dropout_prob", "projection_dropout"):
        fields.get(name)  # of training
    width, num_heads = fields.size("hidden_size", 1024), fields.size("num_attention_heads", 16)
    fields.divides("hidden_size", width, by="num_attention_heads", part=num_heads)
    config = InternVisionConfig(
        image_size=_side(fields, "image_size", 448),
        patch_size=_side(fields, "patch_size", 14),
        width=width,
        num_layers=fields.size("num_hidden_layers", 24, MOST_LAYERS),
        num_heads=num_heads,
        num_neurons=fields.size("intermediate_size", 4096),
        activation=fields.need("hidden_act", "gelu", tuple(ACTIVATIONS)),
        norm_epsilon=fields.number("layer_norm_eps", 1e-6),
        layer_scale=fields.number("layer_scale_init_value", 0.1),
        has_qkv_bias=fields.flag("attention_bias", False),
        has_rms_norms=fields.need("norm_type", NORMS[0], NORMS) == "rms_norm",
        has_qk_norms=fields.flag("use_qk_norm", False),
    )
    fields.finish()
    return config


class InternVisionLayers(nnx.Module):
    """A stack of vision layers; called on the slice of one."""

    def __init__(self, key: jax.Array, config: InternVisionConfig):
        attention, mlp = jax.random.split(key)
        L, D = config.num_layers, config.width
        N, H = config.num_heads, config.head_size
        self.attention_norm_LD = nnx.Param(jnp.ones((L, D)))
        self.mlp_norm_LD = nnx.Param(jnp.ones((L, D)))
        if not config.has_rms_norms:
            self.attention_norm_bias_LD = nnx.Param(jnp.zeros((L, D)))
            self.mlp_norm_bias_LD = nnx.Param(jnp.zeros((L, D)))
        self.attention_scale_LD = nnx.Param(jnp.full((L, D), config.layer_scale))
        self.mlp_scale_LD = nnx.Param(jnp.full((L, D), config.layer_scale))
        self.attention = Attention(
            attention, config, qkv_bias=config.has_qkv_bias, output_bias=True
        )
        if config.has_qk_norms:
            self.query_norm_LNH = nnx.Param(jnp.ones((L, N, H)))
            self.key_norm_LNH = nnx.Param(jnp.ones((L, N, H)))
        self.mlp = Mlp(mlp, config, gated=False, bias=True)
        self.config = config

    def __call__(
        self,
        h_BTD: jax.Array,
        gate: jax.Array | None,
        capture: TowerCapture | None,
        *,
        num_images: int,
    ) -> tuple[jax.Array, Any]:
        """Return the residual stream after one layer, and what was captured.

        The T tokens of an example are those of its vision inputs, one after the other. A token
        attends within its own vision input.
        """
        q_BTNH, k_BTNH, v_BTNH = self.attention.qkv(self._norm(h_BTD, "attention"))
        if self.config.has_qk_norms:
            q_BTNH = _norm_of_heads(q_BTNH, self.query_norm_LNH[...])
            k_BTNH = _norm_of_heads(k_BTNH, self.key_norm_LNH[...])
        each = [
            x.reshape(x.shape[0] * num_images, -1, *x.shape[2:]) for x in (q_BTNH, k_BTNH, v_BTNH)
        ]
        mixed_BTNH = attend(*each, mask_BTS=None).reshape(q_BTNH.shape)
        y_BTD = self.attention.output(mixed_BTNH)
        h_BTD = h_BTD + y_BTD * self.attention_scale_LD[...][None, None]
        y_BTD, captured = self.mlp(self._norm(h_BTD, "mlp"), gate, capture)
        h_BTD = h_BTD + y_BTD * self.mlp_scale_LD[...][None, None]
        return constrain(h_BTD, "batch", None, None), captured

    def _norm(self, h_BTD: jax.Array, name: str) -> jax.Array:
        scale_D, epsilon = getattr(self, f"{name}_norm_LD")[...], self.config.norm_epsilon
        if self.config.has_rms_norms:
            return rms_norm(h_BTD, scale_D, epsilon)
        return layer_norm(h_BTD, scale_D, getattr(self, f"{name}_norm_bias_LD")[...], epsilon)


class InternVision(nnx.Module):
    """The tower: patches in, the last hidden states of the patches out."""

    def __init__(self, key: jax.Array, config: InternVisionConfig):
        patch, label, position, layers = jax.random.split(key, 4)
        D, size = config.width, config.patch_size
        self.patch_YXCD = random_weight(patch, (size, size, 3, D), config.patch_values)
        self.patch_bias_D = nnx.Param(jnp.zeros(D))
        self.class_IPD = nnx.Param(jax.random.normal(label, (1, 1, D)) * EMBEDDING_SCALE)
        shape = (1, config.num_patches + 1, D)
        self.position_IPD = nnx.Param(jax.random.normal(position, shape) * EMBEDDING_SCALE)
        self.layers = InternVisionLayers(layers, config)
        self.config = config

    def __call__(self, patches_BIPC: Array, *, forward: TowerForward) -> tuple[jax.Array, Any]:
        """Return the states of the patches, without the class token, and what was captured.

        The states: [B, I, P, D]. The vision inputs fill the grid; a capture counts P + 1 tokens of
        each, the class token first.
        """
        batch, images, P = patches_BIPC.shape[:3]
        bias_D, size = self.patch_bias_D[...], self.config.patch_size
        values = jnp.asarray(patches_BIPC).astype(bias_D.dtype)
        values = values.reshape(batch, images, P, size, size, 3)
        h_BIPD = project(values, self.patch_YXCD[...], inputs=3) + bias_D[None, None, None]
        shape = (batch, images, 1, h_BIPD.shape[-1])
        first_BIPD = jnp.broadcast_to(self.class_IPD[...][None], shape)
        h_BIPD = jnp.concatenate([first_BIPD, h_BIPD], axis=2) + self.position_IPD[...][None]

        def body(
            h_BTD: jax.Array, layer: InternVisionLayers, gate: jax.Array | None, _: None
        ) -> tuple[jax.Array, Any, None]:
            h_BTD, captured = layer(h_BTD, gate, forward.capture, num_images=images)
            return h_BTD, captured, None

        h_BTD = h_BIPD.reshape(batch, -1, h_BIPD.shape[-1])
        h_BTD, captured, _ = scan_layers(body, h_BTD, self.layers, forward=forward)
        return h_BTD.reshape(h_BIPD.shape)[:, :, 1:], captured


def intern_vision_mlp(config: InternVisionConfig, path: str) -> TowerMlp:
    """Return how the MLPs of a tower are built."""
    sizes = (config.num_layers, config.num_neurons, config.width)
    return TowerMlp(path + ".layers.mlp", *sizes, gated=False, bias=True)


def intern_vision_table(config: InternVisionConfig, path: str, root: str) -> list[Entry]:
    """Return the table of a tower whose names begin with `root`."""
    embeddings, layer = root + "embeddings.", root + "encoder.layer.{layer}."
    attention, layers = layer + "attention.", path + ".layers."
    table = [
        Entry(path + ".patch_YXCD", embeddings + "patch_embeddings.projection.weight", "DCYX"),
        Entry(path + ".patch_bias_D", embeddings + "patch_embeddings.projection.bias", "D"),
        Entry(path + ".class_IPD", embeddings + "cls_token", "IPD"),
        Entry(path + ".position_IPD", embeddings + "position_embeddings", "IPD"),
        Entry(layers + "attention_norm_LD", layer + "layernorm_before.weight", "D"),
        Entry(layers + "attention_scale_LD", layer + "lambda_1", "D"),
        Entry(layers + "mlp_norm_LD", layer + "layernorm_after.weight", "D"),
        Entry(layers + "mlp_scale_LD", layer + "lambda_2", "D"),
        Entry(layers + "attention.q_LDNH", attention + "q_proj.weight", "(NH)D"),
        Entry(layers + "attention.k_LDKH", attention + "k_proj.weight", "(KH)D"),
        Entry(layers + "attention.v_LDKH", attention + "v_proj.weight", "(KH)D"),
        Entry(layers + "attention.o_LNHD", attention + "projection_layer.weight", "D(NH)"),
        Entry(layers + "attention.o_bias_LD", attention + "projection_layer.bias", "D"),
    ]
    if config.has_qkv_bias:
        table += [
            Entry(layers + "attention.q_bias_LNH", attention + "q_proj.bias", "(NH)"),
            Entry(layers + "attention.k_bias_LKH", attention + "k_proj.bias", "(KH)"),
            Entry(layers + "attention.v_bias_LKH", attention + "v_proj.bias", "(KH)"),
        ]
    if config.has_qk_norms:
        table += [
            Entry(layers + "query_norm_LNH", attention + "q_norm.weight", "(NH)"),
            Entry(layers + "key_norm_LNH", attention + "k_norm.weight", "(NH)"),
        ]
    if not config.has_rms_norms:
        table += [
            Entry(layers + "attention_norm_bias_LD", layer + "layernorm_before.bias", "D"),
            Entry(layers + "mlp_norm_bias_LD", layer + "layernorm_after.bias", "D"),
        ]
    return table + mlp_table(intern_vision_mlp(config, path), layer + "mlp.")


def _norm_of_heads(x_BTNH: jax.Array, scale_NH: jax.Array) -> jax.Array:
    """Return all heads of a token divided by their joint root mean square, times the scale."""
    joined_BTD = x_BTNH.reshape(*x_BTNH.shape[:2], -1)
    return rms_norm(joined_BTD, scale_NH.reshape(-1), HEADS_EPSILON).reshape(x_BTNH.shape)


def _side(fields: Fields, name: str, default: int) -> int:
    """Return the side of a square, which is written as one number or as two that are the same."""
    value = fields.values.get(name)
    if isinstance(value, list | tuple):
        if len(value) != 2 or value[0] != value[1]:
            fields.fault(name, "expected a square")
            return default
        fields.values[name] = value[0]
    return fields.size(name, default)

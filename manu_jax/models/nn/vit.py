"""The vision towers CLIP and SigLIP: patches, positions, pre-norm layers with plain MLPs.

CLIP (Radford et al. 2021, arXiv 2103.00020), as `CLIPVisionModel`: a class token, a norm before the
layers, and hidden states as the result. SigLIP (Zhai et al. 2023, arXiv 2303.15343), as
`SiglipVisionModel` and the towers of Idefics2 and Idefics3: a bias on the patches,
and the normalised last state as the result (LLaVA-OneVision: hidden states as they are). Layers
after the last one whose result is used never run, nor does SigLIP's head, which pools its states.
Their weights are kept, so that a model is written as it was read, but their neurons do not count as
neurons of the model.
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
from manu_jax.models.nn.forward import Forward, TowerForward
from manu_jax.models.nn.kernels import Pattern
from manu_jax.models.nn.layers import (
    ACTIVATIONS,
    Attention,
    layer_norm,
    project,
    random_weight,
)
from manu_jax.models.nn.mlp import Mlp, TowerMlp, mlp_table
from manu_jax.models.nn.scan import scan_layers
from manu_jax.models.nn.square_patches import SquarePatches
from manu_jax.parallel import constrain
from manu_jax.types import Array, Images

MOST_LAYERS = 1000
# Of a new tower, whose patches have variance 1. With 0.02 training ignores positions for long.
EMBEDDING_SCALE = 0.5


@dataclasses.dataclass(frozen=True)
class VitConfig(SquarePatches):
    """Sizes of a tower. `features`: which hidden states are its result; 0 is the embeddings.

    is_clip: CLIP, otherwise SigLIP. is_normalised: the result goes through the last norm.
    image_size: of the whole grid of positions; vision inputs may be smaller.
    """

    num_layers: int
    num_neurons: int
    activation: str
    norm_epsilon: float
    features: tuple[int, ...]  # each in [0, num_layers]
    is_clip: bool = True
    is_normalised: bool = False
    has_head: bool = False  # SigLIP's head, which is not run

    @property
    def num_used_layers(self) -> int:
        """Layers that run."""
        return max(self.features)


# What a config.json leaves out, per model type, beside what all have in common.
DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_vision_model": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "patch_size": 32},
    "siglip_vision_model": {
        "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "patch_size": 16,
    },
    "idefics2_vision": {
        "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "patch_size": 32,
    },
}  # fmt: skip


def vit_config(
    values: Mapping[str, Any],
    faults: list[str],
    *,
    feature_layers: tuple[int, ...] = (-1,),
    kind: str = "clip_vision_model",
    others: tuple[str, ...] = (),
    is_normalised: bool = True,
    may_have_head: bool = False,
    section: str = "vision_config.",
) -> VitConfig:
    """Return the config of a `vision_config`; what it asks for and we lack is added to `faults`.

    feature_layers: indices of hidden states; negative ones count from the last. kind: the model
    type, one of DEFAULTS, where the section does not say; others: which it may say, too.
    is_normalised: a SigLIP's result goes through its last norm. may_have_head: a SigLIP has one
    unless `vision_use_head` is false, as in transformers.
    """
    fields = Fields(values, section, faults)
    kind = fields.need("model_type", kind, (kind, *others))
    fields.need("num_channels", 3, (3,))
    fields.get("vocab_size")  # in old files; a vision tower has no vocabulary
    num_layers = fields.size("num_hidden_layers", 12, MOST_LAYERS)
    width, num_heads = fields.size("hidden_size", 768), fields.size("num_attention_heads", 12)
    fields.divides("hidden_size", width, by="num_attention_heads", part=num_heads)
    states = range(num_layers + 1)
    for layer in feature_layers:
        if not -len(states) <= layer < len(states):
            faults.append(
                f"vision_feature_layer = {layer!r}: the tower has {num_layers} layers, "
                f"so it lies in [{-len(states)}, {len(states) - 1}]"
            )
    config = VitConfig(
        image_size=fields.size("image_size", 224),
        patch_size=fields.size("patch_size", DEFAULTS[kind]["patch_size"]),
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_neurons=fields.size("intermediate_size", 3072),
        activation=fields.need("hidden_act", DEFAULTS[kind]["hidden_act"], tuple(ACTIVATIONS)),
        norm_epsilon=fields.number("layer_norm_eps", DEFAULTS[kind]["layer_norm_eps"]),
        features=tuple(layer % len(states) for layer in feature_layers),
        is_clip=kind == "clip_vision_model",
        is_normalised=kind != "clip_vision_model" and is_normalised,
        has_head=may_have_head
        and kind == "siglip_vision_model"
        and fields.flag("vision_use_head", True),
    )
    fields.finish()
    return config


class VitLayers(nnx.Module):
    """A stack of vision layers; called on the slice of one."""

    def __init__(self, key: jax.Array, config: VitConfig, num_layers: int):
        attention, mlp = jax.random.split(key)
        L, D = num_layers, config.width
        self.attention_norm_LD = nnx.Param(jnp.ones((L, D)))
        self.attention_norm_bias_LD = nnx.Param(jnp.zeros((L, D)))
        self.attention = Attention(attention, config, qkv_bias=True, output_bias=True, num_layers=L)
        self.mlp_norm_LD = nnx.Param(jnp.ones((L, D)))
        self.mlp_norm_bias_LD = nnx.Param(jnp.zeros((L, D)))
        self.mlp = Mlp(mlp, config, gated=False, bias=True, num_layers=L)
        self.epsilon = config.norm_epsilon

    def __call__(
        self,
        h_BTD: jax.Array,
        gate: jax.Array | None,
        capture: TowerCapture | None,
        *,
        num_images: int,
        is_patch_BIP: jax.Array | None,
    ) -> tuple[jax.Array, Any]:
        """Return the residual stream after one layer, and what was captured.

        The T tokens of an example are those of its vision inputs, one after the other. A token
        attends within its own vision input, and to no padding.
        """
        x_BTD = layer_norm(
            h_BTD, self.attention_norm_LD[...], self.attention_norm_bias_LD[...], self.epsilon
        )
        qkv = self.attention.qkv(x_BTD)
        each = [x.reshape(x.shape[0] * num_images, -1, *x.shape[2:]) for x in qkv]
        mask_B1S = None if is_patch_BIP is None else is_patch_BIP.reshape(len(each[0]), 1, -1)
        pattern = None if mask_B1S is None else Pattern(mask_B1S[:, 0])
        mixed_BTNH = attend(*each, mask_BTS=mask_B1S, pattern=pattern).reshape(qkv[0].shape)
        h_BTD = h_BTD + self.attention.output(mixed_BTNH)
        x_BTD = layer_norm(h_BTD, self.mlp_norm_LD[...], self.mlp_norm_bias_LD[...], self.epsilon)
        y_BTD, captured = self.mlp(x_BTD, gate, capture)
        return constrain(h_BTD + y_BTD, "batch", None, None), captured


class VitHead(nnx.Module):
    """The weights of SigLIP's head, which nothing runs; see the module docstring."""

    def __init__(self, config: VitConfig):
        D, F = config.width, config.num_neurons
        self.probe_IPD = nnx.Param(jnp.zeros((1, 1, D)))
        self.qkv_ZED = nnx.Param(jnp.zeros((3, D, D)))
        self.qkv_bias_ZE = nnx.Param(jnp.zeros((3, D)))
        self.output_ED = nnx.Param(jnp.zeros((D, D)))
        self.output_bias_D = nnx.Param(jnp.zeros(D))
        self.norm_D = nnx.Param(jnp.ones(D))
        self.norm_bias_D = nnx.Param(jnp.zeros(D))
        self.up_DF = nnx.Param(jnp.zeros((D, F)))
        self.up_bias_F = nnx.Param(jnp.zeros(F))
        self.down_FD = nnx.Param(jnp.zeros((F, D)))
        self.down_bias_D = nnx.Param(jnp.zeros(D))


class Vit(nnx.Module):
    """The tower: patches in, the hidden states that the config names out."""

    def __init__(self, key: jax.Array, config: VitConfig):
        patch, label, position, layers, unused_layers = jax.random.split(key, 5)
        D, size = config.width, config.patch_size
        self.patch_YXCD = random_weight(patch, (size, size, 3, D), size * size * 3)
        num_positions = config.num_patches + config.is_clip
        self.position_PD = nnx.Param(
            jax.random.normal(position, (num_positions, D)) * EMBEDDING_SCALE
        )
        if config.is_clip:
            self.class_D = nnx.Param(jax.random.normal(label, (D,)) * EMBEDDING_SCALE)
            self.pre_norm_D = nnx.Param(jnp.ones(D))
            self.pre_norm_bias_D = nnx.Param(jnp.zeros(D))
        else:
            self.patch_bias_D = nnx.Param(jnp.zeros(D))
        if config.num_used_layers:
            self.layers = VitLayers(layers, config, config.num_used_layers)
        if config.num_layers > config.num_used_layers:
            self.unused_layers = VitLayers(
                unused_layers, config, config.num_layers - config.num_used_layers
            )
        if config.has_head:
            self.head = VitHead(config)
        # In CLIP it is the norm of the pooled output, which is not used.
        self.post_norm_D = nnx.Param(jnp.ones(D))
        self.post_norm_bias_D = nnx.Param(jnp.zeros(D))
        self.config = config

    def of_images(self, images: Images, forward: Forward) -> tuple[jax.Array, Any]:
        """Return what the tower "vision" gives for vision inputs that fill its grid."""
        assert images.patches_BIPC is not None
        B, count, P = images.patches_BIPC.shape[:3]
        is_token_BIP = jnp.ones((B, count, P + self.config.is_clip))
        return self(images.patches_BIPC, forward=forward.images("vision", is_token_BIP))

    def __call__(
        self, patches_BIPC: Array, grid_index_BIP: Array | None = None, *, forward: TowerForward
    ) -> tuple[jax.Array, Any]:
        """Return the named hidden states side by side [B, I, P, D·n], and what was captured.

        grid_index_BIP: the cell of each patch in the grid, counted row by row, −1: padding; None:
        each vision input fills the grid. CLIP's class token comes before the patches.
        """
        config = self.config
        batch, images = patches_BIPC.shape[:2]
        h_BTD = self._embed(patches_BIPC, grid_index_BIP).reshape(batch, -1, config.width)
        is_patch_BIP = None if grid_index_BIP is None else jnp.asarray(grid_index_BIP) >= 0
        if config.is_clip:
            h_BTD = layer_norm(
                h_BTD, self.pre_norm_D[...], self.pre_norm_bias_D[...], config.norm_epsilon
            )
        start_BTD = h_BTD
        keep_all = len(config.features) > 1

        def body(
            h_BTD: jax.Array, layer: VitLayers, gate: jax.Array | None, _: None
        ) -> tuple[jax.Array, Any, Any]:
            h_BTD, captured = layer(
                h_BTD, gate, forward.capture, num_images=images, is_patch_BIP=is_patch_BIP
            )
            return h_BTD, captured, h_BTD if keep_all else None

        captured, states = None, None
        if config.num_used_layers:
            h_BTD, captured, states = scan_layers(body, h_BTD, self.layers, forward=forward)
        if states is not None:
            chosen = [start_BTD if index == 0 else states[index - 1] for index in config.features]
            h_BTD = jnp.concatenate(chosen, axis=-1)
        if config.is_normalised:
            h_BTD = layer_norm(
                h_BTD, self.post_norm_D[...], self.post_norm_bias_D[...], config.norm_epsilon
            )
        return h_BTD.reshape(batch, images, -1, h_BTD.shape[-1]), captured

    def _embed(self, patches_BIPC: Array, grid_index_BIP: Array | None) -> jax.Array:
        positions_PD, size = self.position_PD[...], self.config.patch_size
        values = jnp.asarray(patches_BIPC).astype(positions_PD.dtype)
        values = values.reshape(*values.shape[:3], size, size, 3)
        h_BIPD = project(values, self.patch_YXCD[...], inputs=3)
        if self.config.is_clip:
            shape = (*h_BIPD.shape[:2], 1, h_BIPD.shape[-1])
            first = jnp.broadcast_to(self.class_D[...], shape)
            return jnp.concatenate([first, h_BIPD], axis=2) + positions_PD[None, None]
        h_BIPD += self.patch_bias_D[...][None, None, None]
        if grid_index_BIP is None:
            return h_BIPD + positions_PD[None, None]
        return h_BIPD + positions_PD[jnp.maximum(grid_index_BIP, 0)]


def vit_mlp(config: VitConfig, path: str) -> TowerMlp:
    """Return how the MLPs of a tower's layers that run are built."""
    return _stack_mlp(config, path + ".layers.")


def _stack_mlp(config: VitConfig, layers: str) -> TowerMlp:
    sizes = (config.num_used_layers, config.num_neurons, config.width)
    return TowerMlp(layers + "mlp", *sizes, gated=False, bias=True)


def vit_table(config: VitConfig, path: str, root: str) -> list[Entry]:
    """Return the table of a vision tower, of the layers that run and of those that do not."""
    embeddings, layer = root + "embeddings.", root + "encoder.layers.{layer}."
    attention = layer + "self_attn."
    table = [
        Entry(path + ".patch_YXCD", embeddings + "patch_embedding.weight", "DCYX"),
        Entry(path + ".position_PD", embeddings + "position_embedding.weight", "PD"),
        Entry(path + ".post_norm_D", root + "post_layernorm.weight", "D"),
        Entry(path + ".post_norm_bias_D", root + "post_layernorm.bias", "D"),
    ]
    if config.is_clip:
        table += [
            Entry(path + ".class_D", embeddings + "class_embedding", "D"),
            Entry(path + ".pre_norm_D", root + "pre_layrnorm.weight", "D"),
            Entry(path + ".pre_norm_bias_D", root + "pre_layrnorm.bias", "D"),
        ]
    else:
        table.append(Entry(path + ".patch_bias_D", embeddings + "patch_embedding.bias", "D"))
    if config.has_head:
        table += _head_table(path + ".head.", root + "head.")
    stacks = []
    if config.num_used_layers:
        stacks.append((path + ".layers.", 0))
    if config.num_layers > config.num_used_layers:
        stacks.append((path + ".unused_layers.", config.num_used_layers))
    for layers, first in stacks:
        table += [
            Entry(layers + "attention_norm_LD", layer + "layer_norm1.weight", "D", first),
            Entry(layers + "attention_norm_bias_LD", layer + "layer_norm1.bias", "D", first),
            Entry(layers + "mlp_norm_LD", layer + "layer_norm2.weight", "D", first),
            Entry(layers + "mlp_norm_bias_LD", layer + "layer_norm2.bias", "D", first),
            Entry(layers + "attention.q_LDNH", attention + "q_proj.weight", "(NH)D", first),
            Entry(layers + "attention.k_LDKH", attention + "k_proj.weight", "(KH)D", first),
            Entry(layers + "attention.v_LDKH", attention + "v_proj.weight", "(KH)D", first),
            Entry(layers + "attention.o_LNHD", attention + "out_proj.weight", "D(NH)", first),
            Entry(layers + "attention.q_bias_LNH", attention + "q_proj.bias", "(NH)", first),
            Entry(layers + "attention.k_bias_LKH", attention + "k_proj.bias", "(KH)", first),
            Entry(layers + "attention.v_bias_LKH", attention + "v_proj.bias", "(KH)", first),
            Entry(layers + "attention.o_bias_LD", attention + "out_proj.bias", "D", first),
            *mlp_table(_stack_mlp(config, layers), layer + "mlp.", first),
        ]
    return table


def _head_table(path: str, root: str) -> list[Entry]:
    return [
        Entry(path + "probe_IPD", root + "probe", "IPD"),
        Entry(path + "qkv_ZED", root + "attention.in_proj_weight", "(ZE)D"),
        Entry(path + "qkv_bias_ZE", root + "attention.in_proj_bias", "(ZE)"),
        Entry(path + "output_ED", root + "attention.out_proj.weight", "ED"),
        Entry(path + "output_bias_D", root + "attention.out_proj.bias", "D"),
        Entry(path + "norm_D", root + "layernorm.weight", "D"),
        Entry(path + "norm_bias_D", root + "layernorm.bias", "D"),
        Entry(path + "up_DF", root + "mlp.fc1.weight", "FD"),
        Entry(path + "up_bias_F", root + "mlp.fc1.bias", "F"),
        Entry(path + "down_FD", root + "mlp.fc2.weight", "DF"),
        Entry(path + "down_bias_D", root + "mlp.fc2.bias", "D"),
    ]

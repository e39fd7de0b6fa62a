"""The vision towers of Qwen2-VL and Qwen2.5-VL: images of any size, 2-D rotary positions, a merger.

Wang et al. 2024 (arXiv 2409.12191) and Bai et al. 2025 (arXiv 2502.13923), as
`Qwen2VisionTransformerPretrainedModel` and `Qwen2_5_VisionTransformerPretrainedModel`. Qwen2-VL:
layer norms and plain MLPs. Qwen2.5-VL: RMS norms, gated MLPs with biases, and in most layers
attention within windows; a mask does that here, so that patches stay in order, to the same result.
Patches come in groups that the merger joins: one group is one token of the text.
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
from manu_jax.models.nn.kernels import Pattern
from manu_jax.models.nn.layers import (
    ACTIVATIONS,
    layer_norm,
    project,
    random_weight,
    rms_norm,
)
from manu_jax.models.nn.mlp import Mlp, TowerMlp, mlp_table
from manu_jax.models.nn.rope import RotaryAngles, grid_rotary_angles, rotate
from manu_jax.models.nn.scan import scan_layers
from manu_jax.parallel import constrain
from manu_jax.types import Array

EPSILON = 1e-6  # of all norms
THETA = 10000.0  # of the rotary positions
MOST_WINDOWS = 2**15  # in a row of an image


@dataclasses.dataclass(frozen=True)
class QwenVisionConfig:
    """Sizes of a tower. is_2_5: Qwen2.5-VL's, otherwise Qwen2-VL's."""

    width: int
    output_width: int
    num_layers: int
    num_heads: int
    num_neurons: int
    activation: str
    patch_size: int  # pixels a side
    num_frames: int  # an image is repeated to so many
    merge: int  # patches a side of a group
    window: int | None  # patches a side; None: no windows
    full_layers: tuple[int, ...]  # those whose attention has no windows
    is_2_5: bool

    @property
    def patch_values(self) -> int:
        """Numbers of a patch."""
        return 3 * self.num_frames * self.patch_size**2


def qwen_vision_config(values: Mapping[str, Any], faults: list[str], kind: str) -> QwenVisionConfig:
    """Return the config of a `vision_config` of "qwen2_vl" or "qwen2_5_vl"; see `vit_config`."""
    fields = Fields(values, "vision_config.", faults)
    fields.need("model_type", kind, (kind, f"{kind}_vision"))
    is_2_5 = kind == "qwen2_5_vl"
    for name in ("in_channels", "in_chans"):
        fields.need(name, 3, (3,))
    patch = fields.size("patch_size", 14)
    fields.need("spatial_patch_size", patch, (patch,))  # the same under another name
    fields.get("tokens_per_second")  # of videos
    check_rope(fields)
    width = fields.size("hidden_size" if is_2_5 else "embed_dim", 3584 if is_2_5 else 1280)
    output_width = fields.size("out_hidden_size" if is_2_5 else "hidden_size", 3584)
    num_heads, merge = fields.size("num_heads", 16), fields.size("spatial_merge_size", 2)
    fields.divides(
        "hidden_size" if is_2_5 else "embed_dim", width, by="4 · num_heads", part=4 * num_heads
    )
    window, full_layers = None, ()
    if is_2_5:
        num_neurons = fields.size("intermediate_size", 3420)
        pixels = fields.size("window_size", 112)
        # As transformers counts: whole groups a window.
        window = max(pixels // merge // patch, 1) * merge
        full_layers = fields.get("fullatt_block_indexes", (7, 15, 23, 31))
        if not isinstance(full_layers, list | tuple) or any(
            type(x) is not int for x in full_layers
        ):
            fields.fault("fullatt_block_indexes", "expected a list of layers")
            full_layers = ()
    else:
        num_neurons = max(int(width * fields.number("mlp_ratio", 4)), 1)
    config = QwenVisionConfig(
        width=width,
        output_width=output_width,
        num_layers=fields.size("depth", 32, 1000),
        num_heads=num_heads,
        num_neurons=num_neurons,
        activation=fields.need(
            "hidden_act", "silu" if is_2_5 else "quick_gelu", tuple(ACTIVATIONS)
        ),
        patch_size=patch,
        num_frames=fields.size("temporal_patch_size", 2),
        merge=merge,
        window=window,
        full_layers=tuple(full_layers),
        is_2_5=is_2_5,
    )
    fields.finish()
    return config


def check_rope(fields: Fields) -> None:
    """Note a fault where a `vision_config` asks for other rotary positions than ours."""
    rope = fields.part("rope_parameters")
    for name, usual in (("rope_theta", THETA), ("rope_type", "axial")):
        if rope.get(name, usual) != usual:
            fields.fault("rope_parameters", f"{name} has to be {usual}")


class QwenVisionLayers(nnx.Module):
    """A stack of vision layers; called on the slice of one."""

    def __init__(self, key: jax.Array, config: QwenVisionConfig):
        qkv, output, mlp = jax.random.split(key, 3)
        L, D, N = config.num_layers, config.width, config.num_heads
        H = D // N
        self.attention_norm_LD = nnx.Param(jnp.ones((L, D)))
        self.mlp_norm_LD = nnx.Param(jnp.ones((L, D)))
        if not config.is_2_5:
            self.attention_norm_bias_LD = nnx.Param(jnp.zeros((L, D)))
            self.mlp_norm_bias_LD = nnx.Param(jnp.zeros((L, D)))
        self.qkv_LDZNH = random_weight(qkv, (L, D, 3, N, H), D)
        self.qkv_bias_LZNH = nnx.Param(jnp.zeros((L, 3, N, H)))
        self.o_LNHD = random_weight(output, (L, N, H, D), 2 * L * D)
        self.o_bias_LD = nnx.Param(jnp.zeros((L, D)))
        self.mlp = Mlp(mlp, config, gated=config.is_2_5, bias=True)
        self.is_2_5 = config.is_2_5

    def __call__(
        self,
        h_BTD: jax.Array,
        gate: jax.Array | None,
        capture: TowerCapture | None,
        *,
        rotary_angles: RotaryAngles,
        mask_BTS: jax.Array,
        segment_BS: jax.Array,
    ) -> tuple[jax.Array, Any]:
        """Return the residual stream after one layer, and what was captured.

        The T tokens of an example are the patches of its vision inputs, one after the other.
        mask_BTS: a row per vision input, True where a patch may attend. segment_BS: the same of
        patches that are no padding, as numbers: those of the same number attend to each other.
        """
        x_BTD = self._norm(h_BTD, "attention")
        qkv_BTZNH = project(x_BTD, self.qkv_LDZNH[...]) + self.qkv_bias_LZNH[...][None, None]
        q_BTNH, k_BTNH, v_BTNH = (qkv_BTZNH[:, :, number] for number in range(3))
        qkv = rotate(q_BTNH, *rotary_angles), rotate(k_BTNH, *rotary_angles), v_BTNH
        each = [x.reshape(len(mask_BTS), -1, *x.shape[2:]) for x in qkv]
        mixed_BTNH = attend(*each, mask_BTS=mask_BTS, pattern=Pattern(segment_BS)).reshape(
            v_BTNH.shape
        )
        y_BTD = project(mixed_BTNH, self.o_LNHD[...], inputs=2) + self.o_bias_LD[...][None, None]
        h_BTD = h_BTD + y_BTD
        y_BTD, captured = self.mlp(self._norm(h_BTD, "mlp"), gate, capture)
        return constrain(h_BTD + y_BTD, "batch", None, None), captured

    def _norm(self, h_BTD: jax.Array, name: str) -> jax.Array:
        scale_D = getattr(self, f"{name}_norm_LD")[...]
        if self.is_2_5:
            return rms_norm(h_BTD, scale_D, EPSILON)
        return layer_norm(h_BTD, scale_D, getattr(self, f"{name}_norm_bias_LD")[...], EPSILON)


class QwenVision(nnx.Module):
    """The tower: patches in, tokens of the decoder's width out."""

    def __init__(self, key: jax.Array, config: QwenVisionConfig):
        patch, layers, first, second = jax.random.split(key, 4)
        D, size = config.width, config.patch_size
        shape = (3, config.num_frames, size, size, D)
        self.patch_CZYXD = random_weight(patch, shape, config.patch_values)
        self.layers = QwenVisionLayers(layers, config)
        E, joined = config.output_width, D * config.merge**2
        self.merger_norm_D = nnx.Param(jnp.ones(D))
        if not config.is_2_5:
            self.merger_norm_bias_D = nnx.Param(jnp.zeros(D))
        self.merger_1_DE = random_weight(first, (joined, joined), joined)
        self.merger_1_bias_E = nnx.Param(jnp.zeros(joined))
        self.merger_2_DE = random_weight(second, (joined, E), joined)
        self.merger_2_bias_E = nnx.Param(jnp.zeros(E))
        self.config = config

    def __call__(
        self, patches_BIPC: Array, patch_positions_BIP2: Array, *, forward: TowerForward
    ) -> tuple[jax.Array, Any]:
        """Return the merged tokens [B, I, P / merge², E], and what was captured."""
        config = self.config
        B, images, P = patches_BIPC.shape[:3]
        weight, size = self.patch_CZYXD[...], config.patch_size
        values = jnp.asarray(patches_BIPC).astype(self.merger_1_bias_E[...].dtype)
        values = values.reshape(B, images * P, 3, config.num_frames, size, size)
        h_BTD = project(values, weight, inputs=4)
        patch_positions_BP2 = jnp.asarray(patch_positions_BIP2).reshape(B * images, P, 2)
        head_size = config.width // config.num_heads
        rotary_angles = grid_rotary_angles(
            patch_positions_BP2.reshape(B, images * P, 2), head_size, THETA
        )
        is_patch_B1S = (patch_positions_BP2[..., 0] >= 0)[:, None]
        is_near_BTS = is_patch_B1S
        segment_BS = window_BS = is_patch_B1S[:, 0].astype(jnp.int32) - 1
        if config.window is not None:
            windows_BP2 = patch_positions_BP2 // config.window
            is_near_BTS &= (windows_BP2[:, :, None] == windows_BP2[:, None]).all(axis=-1)
            window_BS = windows_BP2[..., 0] * MOST_WINDOWS + windows_BP2[..., 1]
        is_full_L = jnp.isin(jnp.arange(config.num_layers), jnp.asarray(config.full_layers, int))

        def body(
            h_BTD: jax.Array, layer: QwenVisionLayers, gate: jax.Array | None, is_full: jax.Array
        ) -> tuple[jax.Array, Any, None]:
            mask_BTS = is_near_BTS | (is_patch_B1S & is_full)
            h_BTD, captured = layer(
                h_BTD,
                gate,
                forward.capture,
                rotary_angles=rotary_angles,
                mask_BTS=mask_BTS,
                segment_BS=jnp.where(is_full, segment_BS, window_BS),
            )
            return h_BTD, captured, None

        h_BTD, captured, _ = scan_layers(body, h_BTD, self.layers, forward=forward, extra=is_full_L)
        return self._merge(h_BTD).reshape(B, images, -1, config.output_width), captured

    def _merge(self, h_BTD: jax.Array) -> jax.Array:
        """Return each group of patches as one token. [B, T / merge², E]."""
        scale_D, activation = self.merger_norm_D[...], ACTIVATIONS["gelu"]
        if self.config.is_2_5:
            x_BTD = rms_norm(h_BTD, scale_D, EPSILON)
        else:
            x_BTD = layer_norm(h_BTD, scale_D, self.merger_norm_bias_D[...], EPSILON)
        x_BTE = x_BTD.reshape(len(x_BTD), -1, self.merger_1_bias_E.shape[0])
        x_BTE = project(x_BTE, self.merger_1_DE[...]) + self.merger_1_bias_E[...][None, None]
        y_BTE = project(activation(x_BTE), self.merger_2_DE[...])
        return y_BTE + self.merger_2_bias_E[...][None, None]


def qwen_vision_mlp(config: QwenVisionConfig, path: str) -> TowerMlp:
    """Return how the MLPs of a tower are built."""
    sizes = (config.num_layers, config.num_neurons, config.width)
    return TowerMlp(path + ".layers.mlp", *sizes, gated=config.is_2_5, bias=True)


def qwen_vision_table(config: QwenVisionConfig, path: str, root: str) -> list[Entry]:
    """Return the table of a tower whose names begin with `root`."""
    merger = root + "merger."
    table = [
        *qwen_vision_layers_table(config, path, root),
        Entry(path + ".patch_CZYXD", root + "patch_embed.proj.weight", "DCZYX"),
        Entry(path + ".merger_norm_D", merger + "ln_q.weight", "D"),
        Entry(path + ".merger_1_DE", merger + "mlp.0.weight", "ED"),
        Entry(path + ".merger_1_bias_E", merger + "mlp.0.bias", "E"),
        Entry(path + ".merger_2_DE", merger + "mlp.2.weight", "ED"),
        Entry(path + ".merger_2_bias_E", merger + "mlp.2.bias", "E"),
    ]
    if not config.is_2_5:
        table.append(Entry(path + ".merger_norm_bias_D", merger + "ln_q.bias", "D"))
    return table


def qwen_vision_layers_table(
    config: QwenVisionConfig, path: str, root: str, *, mlp: str = "mlp."
) -> list[Entry]:
    """Return the table of a tower's layers; mlp: what names of MLPs begin with, in a layer."""
    layer, layers = root + "blocks.{layer}.", path + ".layers."
    table = [
        Entry(layers + "attention_norm_LD", layer + "norm1.weight", "D"),
        Entry(layers + "mlp_norm_LD", layer + "norm2.weight", "D"),
        Entry(layers + "qkv_LDZNH", layer + "attn.qkv.weight", "(ZNH)D"),
        Entry(layers + "qkv_bias_LZNH", layer + "attn.qkv.bias", "(ZNH)"),
        Entry(layers + "o_LNHD", layer + "attn.proj.weight", "D(NH)"),
        Entry(layers + "o_bias_LD", layer + "attn.proj.bias", "D"),
    ]
    if not config.is_2_5:
        table += [
            Entry(layers + "attention_norm_bias_LD", layer + "norm1.bias", "D"),
            Entry(layers + "mlp_norm_bias_LD", layer + "norm2.bias", "D"),
        ]
    return table + mlp_table(qwen_vision_mlp(config, path), layer + mlp)

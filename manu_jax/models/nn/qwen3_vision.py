"""The vision tower of Qwen3-VL: Qwen2-VL's layers, learned positions, and four mergers.

Bai et al. 2025 (arXiv 2511.21631), as `Qwen3VLVisionModel`. The learned positions are a square grid
that is interpolated bilinearly to each image's grid; patches are rotated by row and column beside.
One merger reads what leaves the last layer. Each of the others (DeepStack, Meng et al. 2024, arXiv
2406.04334) reads what leaves an earlier one, for one of the decoder's first layers.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from manu_jax.models.hf.fields import Fields
from manu_jax.models.hf.tables import Entry
from manu_jax.models.nn.forward import TowerForward
from manu_jax.models.nn.layers import ACTIVATIONS, layer_norm, project, random_weight
from manu_jax.models.nn.qwen_vision import (
    EPSILON,
    THETA,
    QwenVisionConfig,
    QwenVisionLayers,
    check_rope,
    qwen_vision_layers_table,
)
from manu_jax.models.nn.rope import grid_rotary_angles
from manu_jax.models.nn.scan import scan_layers
from manu_jax.models.nn.vit import EMBEDDING_SCALE
from manu_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Qwen3VisionConfig(QwenVisionConfig):
    """Sizes of a tower; its layers are those of a Qwen2-VL."""

    side: int  # positions a side of the learned grid
    deepstack: tuple[int, ...]  # layers after which a merger reads, in increasing order


def qwen3_vision_config(values: Mapping[str, Any], faults: list[str]) -> Qwen3VisionConfig:
    """Return the config of a `vision_config`; see `vit_config`."""
    fields = Fields(values, "vision_config.", faults)
    fields.need("model_type", "qwen3_vl", ("qwen3_vl", "qwen3_vl_vision"))
    fields.need("in_channels", 3, (3,))
    check_rope(fields)
    width, num_heads = fields.size("hidden_size", 1152), fields.size("num_heads", 16)
    fields.divides("hidden_size", width, by="4 · num_heads", part=4 * num_heads)
    num_layers = fields.size("depth", 27, 1000)
    num_positions = fields.size("num_position_embeddings", 2304)
    side = math.isqrt(num_positions)
    if side**2 != num_positions:
        fields.fault("num_position_embeddings", "expected a square")
    deepstack = fields.get("deepstack_visual_indexes", (8, 16, 24))
    if not _are_increasing(deepstack, num_layers):
        expected = f"expected layers in increasing order, each from 0 to {num_layers - 1}"
        fields.fault("deepstack_visual_indexes", expected)
        deepstack = ()
    config = Qwen3VisionConfig(
        width=width,
        output_width=fields.size("out_hidden_size", 3584),
        num_layers=num_layers,
        num_heads=num_heads,
        num_neurons=fields.size("intermediate_size", 4304),
        activation=fields.need("hidden_act", "gelu_pytorch_tanh", tuple(ACTIVATIONS)),
        patch_size=fields.size("patch_size", 16),
        num_frames=fields.size("temporal_patch_size", 2),
        merge=fields.size("spatial_merge_size", 2),
        window=None,
        full_layers=(),
        is_2_5=False,
        side=side,
        deepstack=tuple(deepstack),
    )
    fields.finish()
    return config


class Mergers(nnx.Module):
    """A stack of mergers; called on the slice of one.

    reads_groups: the norm is of the joined patches of a group, otherwise of each patch.
    """

    def __init__(
        self, key: jax.Array, config: Qwen3VisionConfig, *, count: int, reads_groups: bool
    ):
        first, second = jax.random.split(key)
        L, D, E = count, config.width * config.merge**2, config.output_width
        norm = (L, D if reads_groups else config.width)
        self.norm_LD = nnx.Param(jnp.ones(norm))
        self.norm_bias_LD = nnx.Param(jnp.zeros(norm))
        self.first_LDE = random_weight(first, (L, D, D), D)
        self.first_bias_LE = nnx.Param(jnp.zeros((L, D)))
        self.second_LDE = random_weight(second, (L, D, E), D)
        self.second_bias_LE = nnx.Param(jnp.zeros((L, E)))
        self.reads_groups = reads_groups

    def __call__(self, h_BTD: jax.Array) -> jax.Array:
        """Return each group of patches, which lie one after the other, as one token of the text."""
        first_bias_E = self.first_bias_LE[...]
        shape = (len(h_BTD), -1, len(first_bias_E))
        if self.reads_groups:
            h_BTD = h_BTD.reshape(shape)
        h_BTD = layer_norm(h_BTD, self.norm_LD[...], self.norm_bias_LD[...], EPSILON)
        x_BTE = project(h_BTD.reshape(shape), self.first_LDE[...]) + first_bias_E[None, None]
        y_BTE = project(ACTIVATIONS["gelu"](x_BTE), self.second_LDE[...])
        return y_BTE + self.second_bias_LE[...][None, None]


class Qwen3Vision(nnx.Module):
    """The tower: patches in, tokens of the decoder's width and those of deepstack out."""

    def __init__(self, key: jax.Array, config: Qwen3VisionConfig):
        patch, position, layers, merger, deepstack = jax.random.split(key, 5)
        D, size = config.width, config.patch_size
        shape = (3, config.num_frames, size, size, D)
        self.patch_CZYXD = random_weight(patch, shape, config.patch_values)
        self.patch_bias_D = nnx.Param(jnp.zeros(D))
        positions_PD = jax.random.normal(position, (config.side**2, D))
        self.position_PD = nnx.Param(positions_PD * EMBEDDING_SCALE)
        self.layers = QwenVisionLayers(layers, config)
        self.merger = Mergers(merger, config, count=1, reads_groups=False)
        count = len(config.deepstack)
        self.deepstack = Mergers(deepstack, config, count=count, reads_groups=True)
        self.config = config

    def __call__(
        self, patches_BIPC: Array, patch_positions_BIP2: Array, *, forward: TowerForward
    ) -> tuple[jax.Array, Any]:
        """Return the merged tokens, and what was captured.

        The tokens: [B, I, P / merge², (1 + n) · E], the last layer's and then those of the n layers
        of deepstack, side by side.
        """
        config = self.config
        B, images, P = patches_BIPC.shape[:3]
        bias_D, size = self.patch_bias_D[...], config.patch_size
        values = jnp.asarray(patches_BIPC).astype(bias_D.dtype)
        values = values.reshape(B, images * P, 3, config.num_frames, size, size)
        h_BTD = project(values, self.patch_CZYXD[...], inputs=4) + bias_D[None, None]
        positions_BP2 = jnp.asarray(patch_positions_BIP2).reshape(B * images, P, 2)
        learned_BPD = self._learned(positions_BP2)
        h_BTD += learned_BPD.reshape(h_BTD.shape).astype(h_BTD.dtype)
        rotary_angles = grid_rotary_angles(
            positions_BP2.reshape(B, images * P, 2), config.width // config.num_heads, THETA
        )
        mask_B1S = (positions_BP2[..., 0] >= 0)[:, None]

        def body(
            h_BTD: jax.Array, layer: QwenVisionLayers, gate: jax.Array | None, _: None
        ) -> tuple[jax.Array, Any, Any]:
            h_BTD, captured = layer(
                h_BTD,
                gate,
                forward.capture,
                rotary_angles=rotary_angles,
                mask_BTS=mask_B1S,
                segment_BS=mask_B1S[:, 0],
            )
            return h_BTD, captured, h_BTD

        h_BTD, captured, states_LBTD = scan_layers(body, h_BTD, self.layers, forward=forward)
        merger = jax.tree.map(lambda leaf: leaf[0], self.merger)
        read_LBTD = states_LBTD[jnp.asarray(config.deepstack, int)]
        deepstack_LBTE = jax.vmap(lambda merger, h_BTD: merger(h_BTD))(self.deepstack, read_LBTD)
        tokens_BTE = jnp.concatenate([merger(h_BTD), *deepstack_LBTE], axis=-1)
        return tokens_BTE.reshape(B, images, -1, tokens_BTE.shape[-1]), captured

    def _learned(self, positions_BP2: jax.Array) -> jax.Array:
        """Return the learned positions at the patches' places in the grid. [B, P, D] float32.

        The first and the last row and column of an image are those of the grid, as in
        `torch.nn.functional.interpolate` with align_corners=True.
        """
        side, table_PD = self.config.side, self.position_PD[...].astype(jnp.float32)
        positions_BP2 = jnp.maximum(positions_BP2, 0)
        last_B12 = positions_BP2.max(axis=1, keepdims=True)
        place_BP2 = positions_BP2.astype(jnp.float32) * (side - 1) / jnp.maximum(last_B12, 1)
        before_BP2 = jnp.floor(place_BP2)
        share_BP2 = place_BP2 - before_BP2
        first_BP2 = before_BP2.astype(jnp.int32)
        second_BP2 = jnp.minimum(first_BP2 + 1, side - 1)
        learned_BPD = jnp.zeros((*positions_BP2.shape[:2], table_PD.shape[1]), jnp.float32)
        corners = ((first_BP2, 1 - share_BP2), (second_BP2, share_BP2))
        for row_BP2, row_share_BP2 in corners:  # one after the other, as in `merge`
            for column_BP2, column_share_BP2 in corners:
                index_BP = row_BP2[..., 0] * side + column_BP2[..., 1]
                weight_BP = row_share_BP2[..., 0] * column_share_BP2[..., 1]
                learned_BPD += table_PD[index_BP] * weight_BP[..., None]
        return learned_BPD


def qwen3_vision_table(config: Qwen3VisionConfig, path: str, root: str) -> list[Entry]:
    """Return the table of a tower whose names begin with `root`."""
    table = [
        *qwen_vision_layers_table(config, path, root, mlp="mlp.linear_"),
        Entry(path + ".patch_CZYXD", root + "patch_embed.proj.weight", "DCZYX"),
        Entry(path + ".patch_bias_D", root + "patch_embed.proj.bias", "D"),
        Entry(path + ".position_PD", root + "pos_embed.weight", "PD"),
    ]
    names = {"merger": "merger.", "deepstack": "deepstack_merger_list.{layer}."}
    for own, theirs in names.items():
        leaf, name = f"{path}.{own}.", root + theirs
        table += [
            Entry(leaf + "norm_LD", name + "norm.weight", "D"),
            Entry(leaf + "norm_bias_LD", name + "norm.bias", "D"),
            Entry(leaf + "first_LDE", name + "linear_fc1.weight", "ED"),
            Entry(leaf + "first_bias_LE", name + "linear_fc1.bias", "E"),
            Entry(leaf + "second_LDE", name + "linear_fc2.weight", "ED"),
            Entry(leaf + "second_bias_LE", name + "linear_fc2.bias", "E"),
        ]
    return table


def _are_increasing(layers: Any, num_layers: int) -> bool:
    """Whether these are one or more of a tower's layers, in increasing order."""
    if not isinstance(layers, list | tuple) or any(type(layer) is not int for layer in layers):
        return False
    return bool(layers) and sorted(set(layers) & set(range(num_layers))) == list(layers)

"""The vision tower of Llama 3.2 Vision: an image in tiles, local layers and gated global ones.

Grattafiori et al. 2024, "The Llama 3 Herd of Models" (arXiv 2407.21783), section 7.1, as
`MllamaVisionModel`. All tiles of an image are one sequence, always `max_tiles` of them; what an
image does not fill is zeros, with embeddings of their own. Each tile has a class token, and is
filled up with zeros to a multiple of eight tokens. A token attends to all tokens, also to those of
empty tiles and to the filling; these attend to no others of their kind. The result is the last
state, and beside it those of some local layers, number by number.

Local and global layers are stacked: their neurons are those of one tower.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from manu_jax.models.hf.fields import Fields
from manu_jax.models.hf.tables import Entry
from manu_jax.models.nn.attention import attend
from manu_jax.models.nn.capture import TowerCapture
from manu_jax.models.nn.forward import Forward
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
from manu_jax.models.nn.vit import EMBEDDING_SCALE, MOST_LAYERS
from manu_jax.parallel import constrain
from manu_jax.types import Images

FEATURES = (3, 7, 15, 23, 30)  # where the config.json names none
MOST_TILES = 100
OUTER_EPSILON = 1e-5  # of the norms before, and after, the local layers; no config.json says it
TOKEN_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class TiledVisionConfig(SquarePatches):
    """Sizes of a tower. features: local layers whose results are part of the tower's."""

    num_local_layers: int
    num_global_layers: int
    num_neurons: int
    activation: str
    norm_epsilon: float
    max_tiles: int  # of an image
    features: tuple[int, ...]  # each in [0, num_local_layers)

    @property
    def tile_patches(self) -> int:
        return self.num_patches

    @property
    def tile_features(self) -> int:
        """Features of a tile: its class token's, and those of its patches."""
        return self.tile_patches + 1

    @property
    def num_layers(self) -> int:
        return self.num_local_layers + self.num_global_layers

    @property
    def feature_width(self) -> int:
        return self.width * (1 + len(self.features))

    @property
    def aspect_ratios(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of tiles that an image may have, as its image processor counts them."""
        sizes = range(1, self.max_tiles + 1)
        return tuple((y, x) for y in sizes for x in sizes if y * x <= self.max_tiles)


def tiled_vision_config(fields: Fields) -> TiledVisionConfig:
    """Return the config of a `vision_config`; what it asks for and we lack becomes a fault."""
    fields.need("model_type", "mllama_vision_model", ("mllama_vision_model",))
    fields.need("num_channels", 3, (3,))
    fields.get("tie_word_embeddings")  # in the hub's files; a tower has no words
    width, num_heads = fields.size("hidden_size", 1280), fields.size("attention_heads", 16)
    fields.divides("hidden_size", width, by="attention_heads", part=num_heads)
    num_local = fields.size("num_hidden_layers", 32, MOST_LAYERS)
    config = TiledVisionConfig(
        image_size=fields.size("image_size", 448),
        patch_size=fields.size("patch_size", 14),
        width=width,
        num_local_layers=num_local,
        num_global_layers=fields.size("num_global_layers", 8, MOST_LAYERS),
        num_heads=num_heads,
        num_neurons=fields.size("intermediate_size", 5120),
        activation=fields.need("hidden_act", "gelu", tuple(ACTIVATIONS)),
        norm_epsilon=fields.number("norm_eps", 1e-5),
        max_tiles=fields.size("max_num_tiles", 4, MOST_TILES),
        features=layer_numbers(fields, "intermediate_layers_indices", FEATURES, num_local),
    )
    if fields.size("vision_output_dim", config.feature_width) != config.feature_width:
        fields.fault(
            "vision_output_dim",
            f"expected {config.feature_width}, hidden_size for the last layer and for each of "
            "intermediate_layers_indices",
        )
    ratios = fields.get("supported_aspect_ratios", config.aspect_ratios)
    if not isinstance(ratios, list | tuple) or [*map(_pair, ratios)] != [*config.aspect_ratios]:
        fields.fault(
            "supported_aspect_ratios", f"known: all of at most {config.max_tiles} tiles, in order"
        )
    fields.finish()
    return config


def layer_numbers(
    fields: Fields, name: str, default: tuple[int, ...], num_layers: int
) -> tuple[int, ...]:
    """Return a field that lists numbers of layers, in order; note a fault otherwise."""
    found = fields.get(name, default)
    if (
        not isinstance(found, list | tuple)
        or not found
        or any(type(layer) is not int or not 0 <= layer < num_layers for layer in found)
        or sorted(set(found)) != list(found)
    ):
        fields.fault(name, f"expected numbers of layers from 0 to {num_layers - 1}, in order")
        return ()
    return tuple(found)


class TiledVisionLayers(nnx.Module):
    """A stack of layers of both kinds; called on the slice of one."""

    def __init__(self, key: jax.Array, config: TiledVisionConfig):
        attention, mlp = jax.random.split(key)
        L, D = config.num_layers, config.width
        self.attention_norm_LD = nnx.Param(jnp.ones((L, D)))
        self.attention_norm_bias_LD = nnx.Param(jnp.zeros((L, D)))
        self.attention = Attention(attention, config, qkv_bias=False, output_bias=False)
        self.mlp_norm_LD = nnx.Param(jnp.ones((L, D)))
        self.mlp_norm_bias_LD = nnx.Param(jnp.zeros((L, D)))
        self.mlp = Mlp(mlp, config, gated=False, bias=True)
        self.epsilon = config.norm_epsilon

    def __call__(
        self,
        h_BTD: jax.Array,
        gate: jax.Array | None,
        capture: TowerCapture | None,
        *,
        kind: "LayerKind",
        visible_BTS: jax.Array,
    ) -> tuple[jax.Array, Any]:
        """Return the residual stream after one layer, and what was captured.

        The T tokens of an example are those of its images, one after the other. visible_BTS: a row
        per image.
        """
        x_BTD = layer_norm(
            h_BTD, self.attention_norm_LD[...], self.attention_norm_bias_LD[...], self.epsilon
        )
        qkv = self.attention.qkv(x_BTD)
        each = [x.reshape(len(visible_BTS), -1, *x.shape[2:]) for x in qkv]
        mixed_BTNH = attend(*each, mask_BTS=visible_BTS).reshape(qkv[0].shape)
        h_BTD = h_BTD + kind.attention_factor * self.attention.output(mixed_BTNH)
        x_BTD = layer_norm(h_BTD, self.mlp_norm_LD[...], self.mlp_norm_bias_LD[...], self.epsilon)
        y_BTD, captured = self.mlp(x_BTD, gate, capture)
        return constrain(h_BTD + kind.mlp_factor * y_BTD, "batch", None, None), captured


class LayerKind(NamedTuple):
    """What is scanned beside a layer: whether it is the first global one, and its factors."""

    is_first_global: jax.Array
    attention_factor: jax.Array
    mlp_factor: jax.Array


class TiledVision(nnx.Module):
    """The tower: the patches of images in tiles in, features of their tiles out."""

    def __init__(self, key: jax.Array, config: TiledVisionConfig):
        patch, label, *embeddings, layers = jax.random.split(key, 7)
        D, size, W, P = config.width, config.patch_size, config.max_tiles, config.tile_features
        U = len(config.aspect_ratios) + 1  # 0 is no image
        shapes = ((U, W, D), (P, D), (U, W, P, D), (U, W, D))
        of_tile, of_patch, of_both, of_tile_after = (
            nnx.Param(jax.random.normal(key, shape) * EMBEDDING_SCALE)
            for key, shape in zip(embeddings, shapes, strict=True)
        )
        self.patch_YXCD = random_weight(patch, (size, size, 3, D), size * size * 3)
        self.class_D = nnx.Param(jax.random.normal(label, (D,)) * EMBEDDING_SCALE)
        self.pre_tile_UWE, self.pre_tile_gate_O = of_tile, nnx.Param(jnp.ones(1))
        self.position_PD, self.tile_position_UWPE = of_patch, of_both
        self.position_gate_O = nnx.Param(jnp.zeros(1))
        self.pre_norm_D, self.pre_norm_bias_D = nnx.Param(jnp.ones(D)), nnx.Param(jnp.zeros(D))
        self.layers = TiledVisionLayers(layers, config)
        self.attention_gate_LO = nnx.Param(jnp.ones((config.num_global_layers, 1)))
        self.mlp_gate_LO = nnx.Param(jnp.ones((config.num_global_layers, 1)))
        self.post_norm_D, self.post_norm_bias_D = nnx.Param(jnp.ones(D)), nnx.Param(jnp.zeros(D))
        self.post_tile_UWE, self.post_tile_gate_O = of_tile_after, nnx.Param(jnp.ones(1))
        self.config = config

    def __call__(self, images: Images, forward: Forward) -> tuple[jax.Array, Any]:
        """Return the features of all tiles [B, I, P, D·n], and what was captured.

        An image's patches are those of its tiles, one tile after the other, with their places in
        the whole image. P: `tile_features` of each of `max_tiles`.
        """
        config = self.config
        assert images.patches_BIPC is not None and images.patch_positions_BIP2 is not None
        # −1, the place of padding, gives 0 tiles.
        sizes_BI2 = jnp.asarray(images.patch_positions_BIP2).max(axis=2) // config.side + 1
        ratio_BI = jnp.asarray(_ratio_table(config))[sizes_BI2[..., 0], sizes_BI2[..., 1]]
        h_BIWPD = self._embed(jnp.asarray(images.patches_BIPC), ratio_BI)
        B, count, W, P, D = h_BIWPD.shape
        is_used_BIW = jnp.arange(W)[None, None] < sizes_BI2.prod(axis=-1)[..., None]
        is_token_P = jnp.arange(P) < config.tile_features
        is_token_BIT = (is_used_BIW[..., None] & is_token_P[None, None, None]).reshape(B, count, -1)
        is_token_BT = is_token_BIT.reshape(B * count, -1)
        visible_BTS = is_token_BT[:, :, None] | is_token_BT[:, None]
        own = forward.images("vision", is_token_BIT)

        def between(h_BTD: jax.Array) -> jax.Array:
            x_BTD = layer_norm(
                h_BTD, self.post_norm_D[...], self.post_norm_bias_D[...], OUTER_EPSILON
            )
            gate = jnp.tanh(self.post_tile_gate_O[...])[None, None, None]
            tiles_BIWE = gate * self.post_tile_UWE[...][ratio_BI]
            return (x_BTD.reshape(h_BIWPD.shape) + tiles_BIWE[:, :, :, None]).reshape(x_BTD.shape)

        def body(
            h_BTD: jax.Array, layer: TiledVisionLayers, gate: jax.Array | None, kind: LayerKind
        ) -> tuple[jax.Array, Any, jax.Array]:
            h_BTD = jax.lax.cond(kind.is_first_global, between, lambda h_BTD: h_BTD, h_BTD)
            h_BTD, captured = layer(h_BTD, gate, own.capture, kind=kind, visible_BTS=visible_BTS)
            return h_BTD, captured, h_BTD

        h_BTD, captured, states_LBTD = scan_layers(
            body, h_BIWPD.reshape(B, -1, D), self.layers, forward=own, extra=self._kinds_L()
        )
        chosen_BTDn = jnp.stack([states_LBTD[layer] for layer in config.features], axis=-1)
        both_BTD = jnp.concatenate([h_BTD, chosen_BTDn.reshape(*h_BTD.shape[:2], -1)], axis=-1)
        features_BIWPD = both_BTD.reshape(B, count, W, P, -1)[..., : config.tile_features, :]
        return features_BIWPD.reshape(B, count, W * config.tile_features, -1), captured

    def _embed(self, patches_BIPC: jax.Array, ratio_BI: jax.Array) -> jax.Array:
        """Return what enters the layers: the tokens of all tiles, filled up. [B, I, W, P, D]."""
        config = self.config
        W, D, most = config.max_tiles, config.width, config.max_tiles * config.tile_patches
        B, count, found = patches_BIPC.shape[:3]
        room = ((0, 0), (0, 0), (0, max(most - found, 0)), (0, 0))
        patches_BIPC = jnp.pad(patches_BIPC[:, :, :most], room)
        values, size = patches_BIPC.astype(self.class_D[...].dtype), config.patch_size
        values = values.reshape(B, count, most, size, size, 3)
        h_BIPD = project(values, self.patch_YXCD[...], inputs=3)
        h_BIWPD = h_BIPD.reshape(B, count, W, -1, D)
        tile_gate = jnp.tanh(self.pre_tile_gate_O[...])[None, None, None]
        h_BIWPD += (tile_gate * self.pre_tile_UWE[...][ratio_BI])[:, :, :, None]
        class_BIWPD = jnp.broadcast_to(self.class_D[...], (B, count, W, 1, D))
        h_BIWPD = jnp.concatenate([class_BIWPD, h_BIWPD], axis=3)
        gate = jnp.tanh(self.position_gate_O[...])
        h_BIWPD += ((1 - gate)[None] * self.position_PD[...])[None, None, None]
        h_BIWPD += gate[None, None, None, None] * self.tile_position_UWPE[...][ratio_BI]
        h_BTD = layer_norm(
            h_BIWPD.reshape(B, -1, D),
            self.pre_norm_D[...],
            self.pre_norm_bias_D[...],
            OUTER_EPSILON,
        )
        filling = ((0, 0), (0, 0), (0, 0), (0, -config.tile_features % TOKEN_MULTIPLE), (0, 0))
        return jnp.pad(h_BTD.reshape(h_BIWPD.shape), filling)

    def _kinds_L(self) -> LayerKind:
        num_local = self.config.num_local_layers
        is_first_L = jnp.arange(self.config.num_layers) == num_local
        factors_L = [
            jnp.pad(jnp.tanh(gate_LO[...])[:, 0], (num_local, 0), constant_values=1)
            for gate_LO in (self.attention_gate_LO, self.mlp_gate_LO)
        ]
        return LayerKind(is_first_L, *factors_L)


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _ratio_table(config: TiledVisionConfig) -> np.ndarray:
    """Return the number of each aspect ratio, by rows and columns of tiles; 0: no image."""
    table = np.zeros((config.max_tiles + 1,) * 2, np.int32)
    for number, ratio in enumerate(config.aspect_ratios, start=1):
        table[ratio] = number
    return table


def tiled_vision_mlp(config: TiledVisionConfig, path: str) -> TowerMlp:
    """Return how the MLPs of the tower's layers are built."""
    sizes = (config.num_layers, config.num_neurons, config.width)
    return TowerMlp(path + ".layers.mlp", *sizes, gated=False, bias=True)


def tiled_vision_table(config: TiledVisionConfig, path: str, root: str) -> list[Entry]:
    """Return the table of a tower whose names begin with `root`."""
    positions, layers = root + "gated_positional_embedding.", path + ".layers."
    of_global = root + "global_transformer.layers.{layer}."
    table = [
        Entry(path + ".patch_YXCD", root + "patch_embedding.weight", "DCYX"),
        Entry(path + ".class_D", root + "class_embedding", "D"),
        Entry(path + ".position_PD", positions + "embedding", "PD"),
        Entry(path + ".position_gate_O", positions + "gate", "O"),
        Entry(path + ".tile_position_UWPE", positions + "tile_embedding.weight", "U(WPE)"),
        Entry(path + ".attention_gate_LO", of_global + "gate_attn", "O"),
        Entry(path + ".mlp_gate_LO", of_global + "gate_ffn", "O"),
    ]
    for name in ("pre", "post"):
        tiles = f"{root}{name}_tile_positional_embedding."
        table += [
            Entry(f"{path}.{name}_tile_UWE", tiles + "embedding.weight", "U(WE)"),
            Entry(f"{path}.{name}_tile_gate_O", tiles + "gate", "O"),
            Entry(f"{path}.{name}_norm_D", f"{root}layernorm_{name}.weight", "D"),
            Entry(f"{path}.{name}_norm_bias_D", f"{root}layernorm_{name}.bias", "D"),
        ]
    layer = root + "{layer}."
    stacked = [*mlp_table(tiled_vision_mlp(config, path), layer + "mlp.")]
    for name, theirs in (("attention", "input"), ("mlp", "post_attention")):
        norm = f"{layer}{theirs}_layernorm."
        stacked += [
            Entry(f"{layers}{name}_norm_LD", norm + "weight", "D"),
            Entry(f"{layers}{name}_norm_bias_LD", norm + "bias", "D"),
        ]
    for leaf, axes in {"q_LDNH": "(NH)D", "k_LDKH": "(KH)D", "v_LDKH": "(KH)D"}.items():
        name = f"{layer}self_attn.{leaf[0]}_proj.weight"
        stacked.append(Entry(f"{layers}attention.{leaf}", name, axes))
    stacked.append(Entry(layers + "attention.o_LNHD", layer + "self_attn.o_proj.weight", "D(NH)"))
    kinds = {"transformer": config.num_local_layers, "global_transformer": config.num_global_layers}
    names = tuple(f"{kind}.layers.{n}" for kind, count in kinds.items() for n in range(count))
    return table + [dataclasses.replace(entry, layers=names) for entry in stacked]

"""A decoder whose layers attend to the tokens or, some of them, to images: cross-attention.

Grattafiori et al. 2024, "The Llama 3 Herd of Models" (arXiv 2407.21783), section 7.2, as
`MllamaTextModel`. Both kinds of layers have norms, projections and MLP of the same sizes. They are
stacked over all layers, so that all neurons are those of one tower; what only cross-attention
layers have (norms of heads, gates) is stacked over these. In an example without images a
cross-attention layer does nothing, and its neurons are 0.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from manu_jax.models.hf.tables import Entry
from manu_jax.models.nn.attention import attend_by_head
from manu_jax.models.nn.capture import TowerCapture
from manu_jax.models.nn.decoder import (
    EMBEDDING_SCALE,
    Decoder,
    DecoderLayers,
    decoder_table,
)
from manu_jax.models.nn.decoder_config import DecoderConfig
from manu_jax.models.nn.layers import Attention, rms_norm
from manu_jax.parallel import constrain
from manu_jax.types import Array, Images

FURTHER_TOKENS = 8  # rows of the embedding that the head lacks, the first that of the image token


@dataclasses.dataclass(frozen=True)
class CrossDecoderConfig(DecoderConfig):
    """A DecoderConfig with the numbers of the layers that attend to images, in order."""

    cross_layers: tuple[int, ...] = ()

    @property
    def names_in_files(self) -> tuple[str, ...]:
        """What stands for `{layer}` in the names of each layer's attention."""
        kinds = ("self_attn", "cross_attn")
        return tuple(
            f"{layer}.{kinds[layer in self.cross_layers]}" for layer in range(self.num_layers)
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Seen:
    """What the tokens see of their example's images.

    visible_BTS bool: which of its S features a token attends to · sees_BT bool: whether an image
    stands before the token; elsewhere the MLPs' outputs are dropped · has_images_B bool ·
    features_BSD, or None where keys_LBKSH and values_LBKSH hold what each cross-attention layer (L)
    makes of them.
    """

    visible_BTS: jax.Array
    sees_BT: jax.Array
    has_images_B: jax.Array
    features_BSD: jax.Array | None = None
    keys_LBKSH: jax.Array | None = None
    values_LBKSH: jax.Array | None = None

    def at(self, at_BA: Array) -> "Seen":
        """Return what the tokens at these positions see; A stands for T."""
        index_BA = jnp.asarray(at_BA)
        return dataclasses.replace(
            self,
            visible_BTS=jnp.take_along_axis(self.visible_BTS, index_BA[..., None], axis=1),
            sees_BT=jnp.take_along_axis(self.sees_BT, index_BA, axis=1),
        )

    def at_the_end(self) -> "Seen":
        """Return what a token that follows sees: what the last one does."""
        return dataclasses.replace(
            self, visible_BTS=self.visible_BTS[:, -1:], sees_BT=self.sees_BT[:, -1:]
        )


class CrossParts(nnx.Module):
    """What cross-attention layers have beside other layers, stacked over them."""

    def __init__(self, config: CrossDecoderConfig):
        L, H = len(config.cross_layers), config.head_size
        self.query_norm_LH = nnx.Param(jnp.ones((L, H)))
        self.key_norm_LH = nnx.Param(jnp.ones((L, H)))
        self.attention_gate_LO = nnx.Param(jnp.ones((L, 1)))
        self.mlp_gate_LO = nnx.Param(jnp.ones((L, 1)))


class LayerKind(NamedTuple):
    """What a step gets beside its layer: its kind, its number among layers of that kind, parts.

    The number and the parts of a self-attention layer mean nothing.
    """

    is_cross: jax.Array
    number: jax.Array
    parts: CrossParts


class CrossDecoder(Decoder):
    """Embedding, layers of both kinds, norm and head."""

    config: CrossDecoderConfig

    def __init__(self, key: jax.Array, config: CrossDecoderConfig):
        super().__init__(key, config)
        shape = (config.vocabulary + FURTHER_TOKENS, config.width)
        embedding_VD = jax.random.normal(jax.random.fold_in(key, 3), shape) * EMBEDDING_SCALE
        self.embedding_VD = nnx.Param(embedding_VD)
        self.cross = CrossParts(config)

    def with_keys(self, seen: Seen) -> Seen:
        """Return what is seen as the keys and values of every cross-attention layer."""
        layers = np.asarray(self.config.cross_layers)
        attention = jax.tree.map(lambda leaf: leaf[layers], self.layers.attention)
        keys_LBKSH, values_LBKSH = jax.lax.map(
            lambda layer: self._keys_and_values(layer[0], layer[1], seen.features_BSD),
            (attention, self.cross),
        )
        return dataclasses.replace(
            seen, features_BSD=None, keys_LBKSH=keys_LBKSH, values_LBKSH=values_LBKSH
        )

    def scanned_L(self) -> LayerKind:
        is_cross_L = np.isin(np.arange(self.config.num_layers), self.config.cross_layers)
        number_L = np.maximum(np.cumsum(is_cross_L) - 1, 0)
        parts = jax.tree.map(lambda leaf: leaf[number_L], self.cross)
        return LayerKind(jnp.asarray(is_cross_L), jnp.asarray(number_L), parts)

    def layer_step(
        self,
        attention_mask_BT: Array,
        positions: Array,
        *,
        group_BT: Array | None = None,
        context: Any = None,
    ) -> Callable[..., tuple[jax.Array, Any, tuple[jax.Array, jax.Array]]]:
        """Return the function of one layer of either kind; context: a Seen, None without images."""
        self_step = super().layer_step(attention_mask_BT, positions, group_BT=group_BT)

        def step(
            h_BTD: jax.Array,
            layer: DecoderLayers,
            kind: LayerKind,
            *,
            gate: jax.Array | None = None,
            capture: TowerCapture | None = None,
            at_BA: Array | None = None,
        ) -> tuple[jax.Array, Any, tuple[jax.Array, jax.Array]]:
            def of_tokens() -> tuple[jax.Array, Any, tuple[jax.Array, jax.Array]]:
                return self_step(h_BTD, layer, None, gate=gate, capture=capture, at_BA=at_BA)

            def of_images() -> tuple[jax.Array, Any, tuple[jax.Array, jax.Array]]:
                shapes = jax.eval_shape(of_tokens)
                _, captured, keys = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
                seen, h_BAD = context, h_BTD
                if at_BA is not None:
                    index_BA1 = jnp.asarray(at_BA)[..., None]
                    h_BAD = jnp.take_along_axis(h_BTD, index_BA1, axis=1)
                    seen = None if seen is None else seen.at(at_BA)
                if seen is not None:
                    h_BAD, captured = self._cross(
                        h_BAD, layer, kind, seen=seen, gate=gate, capture=capture
                    )
                return h_BAD, captured, keys

            return jax.lax.cond(kind.is_cross, of_images, of_tokens)

        return step

    def _after_mixing(
        self,
        h_B1D: jax.Array,
        layer: DecoderLayers,
        window: LayerKind,
        *,
        mixed: Callable[[jax.Array | None], jax.Array],
        context: Any,
    ) -> jax.Array:
        def of_images() -> jax.Array:
            if context is None:
                return h_B1D
            return self._cross(h_B1D, layer, window, seen=context.at_the_end())[0]

        def of_tokens() -> jax.Array:
            return layer.output_and_mlp(h_B1D, mixed(None))[0]

        return jax.lax.cond(window.is_cross, of_images, of_tokens)

    def _cross(
        self,
        h_BTD: jax.Array,
        layer: DecoderLayers,
        kind: LayerKind,
        *,
        seen: Seen,
        gate: jax.Array | None = None,
        capture: TowerCapture | None = None,
    ) -> tuple[jax.Array, Any]:
        """Return the stream after a cross-attention layer, and what was captured."""
        parts, epsilon = kind.parts, self.config.norm_epsilon
        if seen.keys_LBKSH is None or seen.values_LBKSH is None:
            keys = self._keys_and_values(layer.attention, parts, seen.features_BSD)
        else:
            keys = seen.keys_LBKSH[kind.number], seen.values_LBKSH[kind.number]
        x_BTD = rms_norm(h_BTD, layer.attention_norm_LD[...], epsilon)
        q_BTNH = rms_norm(layer.attention.queries(x_BTD), parts.query_norm_LH[...], epsilon)
        y_BTD = layer.attention.output(attend_by_head(q_BTNH, *keys, seen.visible_BTS))
        has_images_B11 = seen.has_images_B[:, None, None].astype(h_BTD.dtype)
        h_BTD = h_BTD + jnp.tanh(parts.attention_gate_LO[...])[None, None] * has_images_B11 * y_BTD
        x_BTD = rms_norm(h_BTD, layer.mlp_norm_LD[...], epsilon)
        # An example without images has no neurons here: their gates are closed.
        open_B1 = seen.has_images_B[:, None].astype(jnp.float32)
        gate_BF = jnp.ones(self.config.num_neurons) if gate is None else jnp.asarray(gate)
        gate_BF = (gate_BF if gate_BF.ndim == 2 else gate_BF[None]) * open_B1
        y_BTD, captured = layer.mlp(x_BTD, gate_BF, capture)
        sees_BT1 = seen.sees_BT[..., None].astype(h_BTD.dtype)
        h_BTD = h_BTD + jnp.tanh(parts.mlp_gate_LO[...])[None, None] * sees_BT1 * y_BTD
        return constrain(h_BTD, "batch", None, None), captured

    def _keys_and_values(
        self, attention: Attention, parts: CrossParts, features_BSD: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Return a layer's keys and values of the features, heads before tokens. [B, K, S, H]."""
        assert features_BSD is not None
        k_BSKH, v_BSKH = attention.keys_and_values(features_BSD)
        k_BSKH = rms_norm(k_BSKH, parts.key_norm_LH[...], self.config.norm_epsilon)
        return k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)


def seen_images(images: Images, *, tile_features: int) -> Seen:
    """Return what the tokens see of images with features in place of patches.

    An image's token holds the first row of its last tile (`feature_index`); each tile has
    `tile_features` rows. As in `MllamaProcessor` a token sees the image that came last, and all of
    several that came one right after the other, without their empty tiles. As in `MllamaTextModel`
    a token that no image stands before attends to all of its example's images, empty tiles too.
    """
    features_BIPE = jnp.asarray(images.features_BIPE)
    (B, count, P), mask_BI = features_BIPE.shape[:3], jnp.asarray(images.mask_BI)
    index_BT = jnp.asarray(images.feature_index_BT)
    is_image_BT = index_BT >= 0
    follows_BT = jnp.pad(is_image_BT, ((0, 0), (1, 0)))[:, :-1]
    run_BT = jnp.cumsum(is_image_BT & ~follows_BT, axis=1)
    is_token_BTI = (index_BT // P)[..., None] == jnp.arange(count)[None, None]

    def of_token(values_BT: jax.Array) -> jax.Array:
        return (values_BT[..., None] * is_token_BTI).sum(axis=1)[:, None]  # [B, 1, I]

    place_BT = jnp.broadcast_to(jnp.arange(index_BT.shape[1])[None], index_BT.shape)
    sees_BTI = (run_BT[..., None] == of_token(run_BT)) & (place_BT[..., None] >= of_token(place_BT))
    sees_BTI &= mask_BI[:, None]
    sees_BT = sees_BTI.any(axis=-1)
    num_rows_B1I = of_token(index_BT % P + tile_features)
    is_full_B1IP = jnp.arange(P)[None, None, None] < num_rows_B1I[..., None]
    visible_BTIP = jnp.where(
        sees_BT[..., None, None], sees_BTI[..., None] & is_full_B1IP, mask_BI[:, None, :, None]
    )
    return Seen(
        visible_BTS=visible_BTIP.reshape(*index_BT.shape, count * P),
        sees_BT=sees_BT,
        has_images_B=mask_BI.any(axis=-1),
        features_BSD=features_BIPE.reshape(B, count * P, -1),
    )


def cross_decoder_table(config: CrossDecoderConfig, path: str, root: str, head: str) -> list[Entry]:
    """Return the table of a decoder whose names begin with `root`; head: the name of its head."""
    of_self, layer = ".self_attn.", root + "layers.{layer}."
    table = [
        entry
        if of_self not in entry.name
        else dataclasses.replace(
            entry, name=entry.name.replace(of_self, "."), layers=config.names_in_files
        )
        for entry in decoder_table(config, path, root, head)
    ]
    layers = tuple(map(str, config.cross_layers))
    return table + [
        Entry(f"{path}.cross.query_norm_LH", layer + "cross_attn.q_norm.weight", "H", 0, layers),
        Entry(f"{path}.cross.key_norm_LH", layer + "cross_attn.k_norm.weight", "H", 0, layers),
        Entry(f"{path}.cross.attention_gate_LO", layer + "cross_attn_attn_gate", "O", 0, layers),
        Entry(f"{path}.cross.mlp_gate_LO", layer + "cross_attn_mlp_gate", "O", 0, layers),
    ]

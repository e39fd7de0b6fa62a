"""DeepStack: features of images that are added to a decoder's stream after its first layers.

Meng et al. 2024 (arXiv 2406.04334), as in `Qwen3VLTextModel`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax.models.nn.capture import TowerCapture
from manu_jax.models.nn.decoder import Decoder, DecoderLayers
from manu_jax.models.nn.multimodal import merge
from manu_jax.types import Array, Batch


class DeepstackDecoder(Decoder):
    """A decoder without windows whose context is added after each of its first layers.

    The context: [L, B, T, D], 0 at the tokens of text, or None: nothing is added. With more of it
    than layers, the rest is left out.
    """

    def answers(
        self, *arguments: Any, context: Any = None, first_layer: int = 0, **settings: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return what a Decoder does; no images are asked for where no layer takes them."""
        context = _taken(context, first_layer)
        return super().answers(*arguments, context=context, first_layer=first_layer, **settings)

    def scanned_L(self) -> jax.Array:
        return jnp.arange(self.config.num_layers)

    def layer_step(
        self,
        attention_mask_BT: Array,
        positions: Array,
        *,
        group_BT: Array | None = None,
        context: Any = None,
    ) -> Callable[..., tuple[jax.Array, Any, tuple[jax.Array, jax.Array]]]:
        """Return the function of one layer; it gets the layer's number in place of a window."""
        plain_step = super().layer_step(attention_mask_BT, positions, group_BT=group_BT)

        def step(
            h_BTD: jax.Array,
            layer: DecoderLayers,
            number: jax.Array,
            *,
            gate: jax.Array | None = None,
            capture: TowerCapture | None = None,
            at_BA: Array | None = None,
        ) -> tuple[jax.Array, Any, tuple[jax.Array, jax.Array]]:
            h_BTD, captured, keys = plain_step(
                h_BTD, layer, None, gate=gate, capture=capture, at_BA=at_BA
            )
            if context is not None:
                added_BTD = context[jnp.minimum(number, len(context) - 1)]
                if at_BA is not None:
                    index_BA1 = jnp.asarray(at_BA)[..., None]
                    added_BTD = jnp.take_along_axis(added_BTD, index_BA1, axis=1)
                h_BTD = h_BTD + jnp.where(number < len(context), added_BTD, 0)
            return h_BTD, captured, keys

        return step

    def _after_mixing(
        self,
        h_B1D: jax.Array,
        layer: DecoderLayers,
        window: Any,
        *,
        mixed: Callable[[jax.Array | None], jax.Array],
        context: Any,
    ) -> jax.Array:
        """Return the stream of one further token after a layer; a token of text gets nothing."""
        del window, context  # the number of the layer, and what no such token takes
        return super()._after_mixing(h_B1D, layer, None, mixed=mixed, context=None)


def deepstack_context(batch: Batch, width: int, dtype: Any) -> jax.Array | None:
    """Return what is added to the stream of a batch with features; None without images.

    width: D. The features are (1 + n) · D wide: what enters the decoder, and then what is added
    after each of n layers. [n, B, T, D] in the dtype.
    """
    images = batch.images
    if images is None:
        return None
    features_BIPE = jnp.asarray(images.features_BIPE)[..., width:]
    B, T = batch.token_ids_BT.shape
    features_BJE = features_BIPE.reshape(B, -1, features_BIPE.shape[-1])
    added_BTE = merge(jnp.zeros((B, T, features_BJE.shape[-1]), dtype), features_BJE, images)
    return jnp.stack(jnp.split(added_BTE, added_BTE.shape[-1] // width, axis=-1))


def _taken(context_LBTD: jax.Array | None, first_layer: int) -> jax.Array | None:
    """Return the context, or None where the layers from the first one take none of it."""
    is_taken = context_LBTD is not None and first_layer < len(context_LBTD)
    return context_LBTD if is_taken else None

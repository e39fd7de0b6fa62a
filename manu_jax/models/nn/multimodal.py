"""What all families have in common: image features among the tokens, then a decoder."""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from manu_jax.models.nn.capture import TowerCapture, image_weights, text_weights
from manu_jax.models.nn.decoder import Cache, Decoder, decoder_mlp
from manu_jax.models.nn.layers import Remat
from manu_jax.models.nn.mlp import TowerMlp
from manu_jax.models.nn.vit import vit_mlp
from manu_jax.parallel import constrain
from manu_jax.types import Array, Batch, Capture, Neurons, Output

# The measure of a tower's tokens, given which of them are no padding [B, I, P]; None: no capture.
CaptureOf = Callable[[Array], TowerCapture | None]


class Multimodal(nnx.Module):
    """The whole model: a Batch in, logits and captured activations out.

    A family has a decoder, `text`, and says how vision inputs become what the decoder takes (`encode_images`).
    """

    text: Decoder
    config: Any

    @abc.abstractmethod
    def encode_images(
        self,
        patches_BIPC: Array,
        patch_positions_BIP2: Array | None,
        *,
        gates: Neurons,
        capture_of: CaptureOf,
        remat: Remat,
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Return the decoder's inputs of each vision input [B, I, P, E], and {tower: measured}."""

    def mlps(self) -> dict[str, TowerMlp]:
        """Return the towers, and how their MLPs are built."""
        return text_and_vision_mlps(self.config)

    def bidirectional_groups(self, batch: Batch) -> Array | None:
        """Return which tokens look at each other in both directions [B, T]; see `Decoder`."""
        return None

    def __call__(
        self,
        batch: Batch,
        gates: Neurons | None = None,
        capture: Capture | None = None,
        *,
        at_BA: Array | None = None,
        remat: Remat = "all",
    ) -> Output:
        """Return the logits [B, T, V] and, with a capture, what it measures at every MLP.

        at_BA: the positions whose logits are wanted, [B, A, V] then; None: all.

        gates: factors of the neurons of any of the towers, [L, F] or [L, B, F]. In a batch without
        images the image towers do not run; a per-sample capture then gives zeros for them, and
        "position" nothing. remat: what a backward pass recomputes ("all", "dots", "none").
        """
        gates = gates or {}
        h_BTD, seen = self._embed(batch, gates, capture, remat)
        h_BTD, read, _ = self.text(
            h_BTD,
            batch.attention_mask_BT,
            _positions(batch),
            group_BT=self.bidirectional_groups(batch),
            gates=gates.get("text"),
            capture=text_weights(batch, capture) if capture else None,
            remat=remat,
        )
        if at_BA is not None:
            h_BTD = jnp.take_along_axis(h_BTD, jnp.asarray(at_BA)[..., None], axis=1)
        logits_BTV = self.text.logits(h_BTD)
        if capture is None:
            return Output(logits_BTV)
        towers = {"text": read, **seen}
        if capture.reduction != "position":
            return Output(logits_BTV, towers)
        return Output(
            logits_BTV,
            {f"{tower}.{name}": rows for tower in towers for name, rows in towers[tower].items()},
        )

    def features(self, patches_BIPC: Array, patch_positions_BIP2: Array | None = None) -> jax.Array:
        """Return what vision inputs give to the decoder, a row per image token. [B, I, P, E]."""
        return self.encode_images(
            patches_BIPC, patch_positions_BIP2, gates={}, capture_of=lambda _: None, remat="none"
        )[0]

    def prefill(self, batch: Batch, cache_length: int) -> tuple[jax.Array, Cache]:
        """Return the logits after each prompt [B, V], and its keys and values with room to go on.

        The batch is padded on the left. cache_length: tokens of prompt and answer together.
        """
        h_BTD, _ = self._embed(batch, {}, None, "none")
        h_BTD, _, (keys_LBTKH, values_LBTKH) = self.text(
            h_BTD,
            batch.attention_mask_BT,
            _positions(batch),
            group_BT=self.bidirectional_groups(batch),
            remat="none",
            keep_keys=True,
        )
        room = cache_length - h_BTD.shape[1]
        longer = ((0, 0), (0, 0), (0, 0), (0, room), (0, 0))
        cache = Cache(
            jnp.pad(keys_LBTKH.swapaxes(2, 3), longer),
            jnp.pad(values_LBTKH.swapaxes(2, 3), longer),
            jnp.pad(batch.attention_mask_BT, ((0, 0), (0, room))),
            jnp.asarray(_positions(batch)).reshape(len(h_BTD), -1).max(axis=-1) + 1,
            jnp.asarray(h_BTD.shape[1], jnp.int32),
        )
        return self.text.logits(h_BTD[:, -1:])[:, 0], cache

    def decode(self, token_ids_B: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Return the logits after one further token per example [B, V], and the longer cache."""
        h_B1D, cache = self.text.decode(self.text.embed(token_ids_B[:, None]), cache)
        return self.text.logits(h_B1D)[:, 0], cache

    def _embed(
        self, batch: Batch, gates: Neurons, capture: Capture | None, remat: Remat
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Return what enters the decoder, and what was measured in the image towers."""
        h_BTD = self.text.embed(batch.token_ids_BT)
        if batch.features_BIPE is not None:
            return self._merged(h_BTD, batch.features_BIPE, batch), {}
        if batch.patches_BIPC is None:
            if capture is None or capture.reduction == "position":
                return h_BTD, {}
            return h_BTD, {
                name: jnp.zeros((tower.num_layers, h_BTD.shape[0], tower.num_neurons))
                for name, tower in self.mlps().items()
                if name != "text"
            }
        features_BIPE, seen = self.encode_images(
            batch.patches_BIPC,
            batch.patch_positions_BIP2,
            gates=gates,
            capture_of=lambda valid: (
                None if capture is None else image_weights(batch, capture, valid)
            ),
            remat=remat,
        )
        return self._merged(h_BTD, features_BIPE, batch), {} if capture is None else seen

    def _merged(self, h_BTD: jax.Array, features_BIPE: Array, batch: Batch) -> jax.Array:
        features_BJE = jnp.asarray(features_BIPE).reshape(len(h_BTD), -1, h_BTD.shape[-1])
        h_BTD = merge(
            h_BTD,
            features_BJE,
            batch.feature_index_BT,
            batch.bilinear_index_BT4,
            batch.bilinear_weights_BT4,
        )
        return constrain(h_BTD, "batch", None, None)


def _positions(batch: Batch) -> Array:
    """Return the tokens' positions [B, T], or [B, T, 3] where the decoder has three."""
    return batch.positions_BT if batch.rope_BT3 is None else batch.rope_BT3


def text_and_vision_mlps(config: Any) -> dict[str, TowerMlp]:
    """Return the towers of a model with a decoder and a CLIP or SigLIP, if any layer of it runs."""
    text, vision = decoder_mlp(config.text, "text"), vit_mlp(config.vision, "vision")
    return {"text": text, "vision": vision} if config.vision.num_used_layers else {"text": text}


def merge(
    embeddings_BTD: jax.Array,
    features_BJD: jax.Array,
    feature_index_BT: Array,
    bilinear_index_BT4: Array | None = None,
    bilinear_weights_BT4: Array | None = None,
) -> jax.Array:
    """Return the embeddings with row `feature_index` of the example's own features where it is ≥ 0.

    features_BJD: all features of an example, image after image. Where corners are given, it is the
    weighted sum of these four rows there.
    """
    if bilinear_index_BT4 is None or bilinear_weights_BT4 is None:
        taken_BTD = _rows(features_BJD, feature_index_BT)
    else:
        taken_BTD = jnp.zeros(embeddings_BTD.shape, jnp.float32)
        for corner in range(4):  # one after the other: no array of four times the features
            rows_BTD = _rows(features_BJD, bilinear_index_BT4[..., corner]).astype(jnp.float32)
            taken_BTD += rows_BTD * bilinear_weights_BT4[..., corner, None]
    is_image_BT1 = (feature_index_BT >= 0)[..., None]
    return jnp.where(is_image_BT1, taken_BTD.astype(embeddings_BTD.dtype), embeddings_BTD)


def _rows(features_BJD: jax.Array, index_BT: Array) -> jax.Array:
    return jnp.take_along_axis(features_BJD, jnp.maximum(index_BT, 0)[..., None], axis=1)

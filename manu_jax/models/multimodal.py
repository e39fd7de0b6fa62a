"""What all families have in common: image features among the tokens, then a decoder."""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from manu_jax.models.decoder import Cache, Decoder
from manu_jax.models.layers import Remat
from manu_jax.models.merge import merge
from manu_jax.models.probe import Measure, image_weights, text_weights
from manu_jax.models.tables import TowerMlp, text_and_vision_mlps
from manu_jax.parallel import constrain
from manu_jax.types import Array, Batch, Neurons, Output, Probe

# The measure of a tower's tokens, given which of them are no padding [B, I, P]; None: no probe.
MeasureOf = Callable[[Array], Measure | None]


class Multimodal(nnx.Module):
    """The whole model: a Batch in, logits and measurements out.

    A family has a decoder, `text`, and says how pictures become what the decoder takes (`see`).
    """

    text: Decoder
    config: Any

    @abc.abstractmethod
    def see(
        self,
        patches_BIPC: Array,
        places_BIP2: Array | None,
        *,
        gates: Neurons,
        measure_of: MeasureOf,
        remat: Remat,
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Return the decoder's inputs of each picture [B, I, P, E], and {tower: measured}."""

    def mlps(self) -> dict[str, TowerMlp]:
        """Return the towers, and how their MLPs are built."""
        return text_and_vision_mlps(self.config)

    def blocks(self, batch: Batch) -> Array | None:
        """Return which tokens look at each other in both directions [B, T]; see `Decoder`."""
        return None

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
        images the image towers do not run; a per-sample probe then gives zeros for them, and
        "position" nothing. remat: what a backward pass recomputes ("all", "dots", "none").
        """
        gates = gates or {}
        h_BTD, seen = self._embed(batch, gates, probe, remat)
        h_BTD, read, _ = self.text(
            h_BTD,
            batch.attention_mask_BT,
            _positions(batch),
            block_BT=self.blocks(batch),
            gates=gates.get("text"),
            measure=text_weights(batch, probe) if probe else None,
            remat=remat,
        )
        if at_BA is not None:
            h_BTD = jnp.take_along_axis(h_BTD, jnp.asarray(at_BA)[..., None], axis=1)
        logits_BTV = self.text.logits(h_BTD)
        if probe is None:
            return Output(logits_BTV)
        towers = {"text": read, **seen}
        if probe.reduction != "position":
            return Output(logits_BTV, towers)
        return Output(
            logits_BTV,
            {f"{tower}.{name}": rows for tower in towers for name, rows in towers[tower].items()},
        )

    def features(self, patches_BIPC: Array, places_BIP2: Array | None = None) -> jax.Array:
        """Return what pictures give to the decoder, a row per image token. [B, I, P, E]."""
        return self.see(
            patches_BIPC, places_BIP2, gates={}, measure_of=lambda _: None, remat="none"
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
            block_BT=self.blocks(batch),
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
        self, batch: Batch, gates: Neurons, probe: Probe | None, remat: Remat
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Return what enters the decoder, and what was measured in the image towers."""
        h_BTD = self.text.embed(batch.token_ids_BT)
        if batch.features_BIPE is not None:
            return self._merged(h_BTD, batch.features_BIPE, batch), {}
        if batch.patches_BIPC is None:
            if probe is None or probe.reduction == "position":
                return h_BTD, {}
            return h_BTD, {
                name: jnp.zeros((tower.num_layers, h_BTD.shape[0], tower.num_neurons))
                for name, tower in self.mlps().items()
                if name != "text"
            }
        features_BIPE, seen = self.see(
            batch.patches_BIPC,
            batch.places_BIP2,
            gates=gates,
            measure_of=lambda valid: None if probe is None else image_weights(batch, probe, valid),
            remat=remat,
        )
        return self._merged(h_BTD, features_BIPE, batch), {} if probe is None else seen

    def _merged(self, h_BTD: jax.Array, features_BIPE: Array, batch: Batch) -> jax.Array:
        features_BJE = jnp.asarray(features_BIPE).reshape(len(h_BTD), -1, h_BTD.shape[-1])
        h_BTD = merge(
            h_BTD,
            features_BJE,
            batch.feature_index_BT,
            batch.corner_index_BT4,
            batch.corner_weights_BT4,
        )
        return constrain(h_BTD, "batch", None, None)


def _positions(batch: Batch) -> Array:
    """Return the tokens' positions [B, T], or [B, T, 3] where the decoder has three."""
    return batch.positions_BT if batch.rope_BT3 is None else batch.rope_BT3

"""What all families have in common: image features among the tokens, then a decoder."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from manu_jax.models.nn.decoder import Cache, Decoder, decoder_mlp
from manu_jax.models.nn.forward import Forward
from manu_jax.models.nn.layers import Remat
from manu_jax.models.nn.mlp import TowerMlp
from manu_jax.models.nn.vit import vit_mlp
from manu_jax.parallel import constrain
from manu_jax.types import Array, Batch, Capture, Images, ManuError, Neurons, Output


class Multimodal(nnx.Module):
    """The whole model: a Batch in, logits and captured activations out.

    A family has a decoder, `text`, and says how images become its inputs (`encode_images`).
    """

    text: Decoder
    config: Any

    @abc.abstractmethod
    def encode_images(self, images: Images, forward: Forward) -> tuple[jax.Array, dict[str, Any]]:
        """Return the decoder's inputs of each vision input, and what was captured.

        Inputs: [B, I, P, E], a row per token: its first D numbers enter the decoder, and the family
        knows of any others. Captured: {tower: of its MLPs, or None}.
        """

    def mlps(self) -> dict[str, TowerMlp]:
        """Return the towers, and how their MLPs are built."""
        return text_and_vision_mlps(self.config)

    def bidirectional_groups(self, batch: Batch) -> Array | None:
        """Return which tokens attend to each other in both directions [B, T]; see `Decoder`."""
        return None

    def beside(self, batch: Batch, *, keeps_keys: bool = False) -> dict[str, Any]:
        """Return what the decoder takes beside the tokens' stream, as its arguments.

        batch: with features in place of patches. keeps_keys: the context is to be used often.
        """
        del keeps_keys
        return {"group_BT": self.bidirectional_groups(batch)}

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

        gates: factors of the neurons of any of the towers, [L, F] or [L, B, F]; ManuError for other
        towers and shapes. at_BA: the positions whose logits are wanted, which are then [B, A, V];
        None: all. remat: what a backward pass recomputes ("all", "dots", "none"). In a batch
        without images the image towers do not run; a per-sample capture then gives zeros for them,
        "position" and "tokens" nothing.
        """
        _check_gates(gates or {}, self.mlps())
        forward = Forward(gates=gates or {}, capture=capture, batch=batch, remat=remat)
        batch, captured = self._with_features(batch, forward)
        h_BTD, of_text, _ = self.text(
            self._embed(batch),
            batch.attention_mask_BT,
            _positions(batch),
            forward=forward.text(),
            **self.beside(batch),
        )
        if at_BA is not None:
            h_BTD = jnp.take_along_axis(h_BTD, jnp.asarray(at_BA)[..., None], axis=1)
        logits_BTV = self.text.logits(h_BTD)
        if capture is None:
            return Output(logits_BTV)
        towers = {"text": of_text, **captured}
        if capture.reduction != "position":
            return Output(logits_BTV, towers)
        return Output(
            logits_BTV,
            {f"{tower}.{name}": rows for tower in towers for name, rows in towers[tower].items()},
        )

    def hidden(self, batch: Batch, *, num_layers: int, remat: Remat = "all") -> jax.Array:
        """Return the residual stream after the decoder's first `num_layers` layers. [B, T, D].

        Layers above them do not run.
        """
        forward = Forward(remat=remat)
        batch, _ = self._with_features(batch, forward)
        return self.text(
            self._embed(batch),
            batch.attention_mask_BT,
            _positions(batch),
            forward=forward.text(),
            num_layers=num_layers,
            **self.beside(batch),
        )[0]

    def answers(
        self, batch: Batch, *, first_layer: int = 0, remat: Remat = "all"
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the logits at the batch's answer positions, and how each layer changed the stream.

        first_layer: the decoder's first layer that runs; above 0, `batch.entering_BTD` enters it.

        Logits [B, A, V] float32; the residual stream after every layer that runs but the last,
        minus what entered the first of them [L − 1, B, T, D]; and the same after the last layer, at
        the answer positions alone, where alone it runs [B, A, D].
        """
        at_BA, forward = batch.answer_index_BA, Forward(remat=remat)
        if at_BA is None:
            raise ValueError("answers: the batch has no answer positions")
        if first_layer and batch.entering_BTD is None:
            raise ValueError(f"answers: the batch has nothing that enters layer {first_layer}")
        batch, _ = self._with_features(batch, forward)
        h_BTD = jnp.asarray(batch.entering_BTD) if first_layer else self._embed(batch)
        logits_BAV, stream_LBTD, last_BAD = self.text.answers(
            h_BTD,
            batch.attention_mask_BT,
            _positions(batch),
            at_BA=at_BA,
            forward=forward.text(),
            first_layer=first_layer,
            **self.beside(batch),
        )
        start_BAD = jnp.take_along_axis(h_BTD, jnp.asarray(at_BA)[..., None], axis=1)
        return logits_BAV, stream_LBTD - h_BTD[None], last_BAD - start_BAD

    def by_layers(
        self, batch: Batch, *, keeps_keys: bool = False
    ) -> tuple[jax.Array, Callable[..., jax.Array], Any]:
        """Return what enters the decoder [B, T, D], the function of one layer, and all layers.

        The function is `(h_BTD, layer) -> h_BTD`, the residual stream before and after it; a layer
        is a slice of all of them, a pytree with leading L. keeps_keys: see `beside`; for layers
        that run often.
        """
        batch = self.with_features(batch)
        beside = self.beside(batch, keeps_keys=keeps_keys)
        step = self.text.layer_step(batch.attention_mask_BT, _positions(batch), **beside)
        layers = (self.text.layers, self.text.scanned_L())
        return self._embed(batch), lambda h_BTD, layer: step(h_BTD, *layer)[0], layers

    def features(self, images: Images) -> jax.Array:
        """Return what `encode_images` gives to the decoder. [B, I, P, E]."""
        return self.encode_images(images, Forward(remat="none"))[0]

    def prefill(self, batch: Batch, cache_length: int) -> tuple[jax.Array, Cache]:
        """Return the logits after each prompt [B, V], and its keys and values with room to go on.

        The batch is padded on the left. cache_length: tokens of prompt and answer together.
        """
        batch = self.with_features(batch)
        beside = self.beside(batch, keeps_keys=True)
        h_BTD, _, (keys_LBTKH, values_LBTKH) = self.text(
            self._embed(batch),
            batch.attention_mask_BT,
            _positions(batch),
            forward=Forward(remat="none").text(),
            keep_keys=True,
            **beside,
        )
        room = cache_length - h_BTD.shape[1]
        longer = ((0, 0), (0, 0), (0, 0), (0, room), (0, 0))
        cache = Cache(
            jnp.pad(keys_LBTKH.swapaxes(2, 3), longer),
            jnp.pad(values_LBTKH.swapaxes(2, 3), longer),
            jnp.pad(batch.attention_mask_BT, ((0, 0), (0, room))),
            jnp.asarray(_positions(batch)).reshape(len(h_BTD), -1).max(axis=-1) + 1,
            jnp.asarray(h_BTD.shape[1], jnp.int32),
            beside.get("context"),
        )
        return self.text.logits(h_BTD[:, -1:])[:, 0], cache

    def decode(self, token_ids_B: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Return the logits after one further token per example [B, V], and the longer cache."""
        h_B1D, cache = self.text.decode(self.text.embed(token_ids_B[:, None]), cache)
        return self.text.logits(h_B1D)[:, 0], cache

    def with_features(self, batch: Batch) -> Batch:
        """Return the batch with what the images give to the decoder in place of their patches."""
        return self._with_features(batch, Forward(remat="none"))[0]

    def _with_features(self, batch: Batch, forward: Forward) -> tuple[Batch, dict[str, Any]]:
        """Return the batch `with_features`, and what was captured in the image towers."""
        images = batch.images
        if images is None:
            return batch, self._zeros(len(batch.token_ids_BT), forward.capture)
        if images.features_BIPE is not None:
            return batch, {}
        features_BIPE, captured = self.encode_images(images, forward)
        images = dataclasses.replace(
            images, patches_BIPC=None, patch_positions_BIP2=None, features_BIPE=features_BIPE
        )
        captured = {name: values for name, values in captured.items() if values is not None}
        return dataclasses.replace(batch, images=images), captured

    def _embed(self, batch: Batch) -> jax.Array:
        """Return what enters the decoder, of a batch with features. [B, T, D]."""
        h_BTD = self.text.embed(batch.token_ids_BT)
        images = batch.images
        if images is None:
            return h_BTD
        features_BIPD = jnp.asarray(images.features_BIPE)[..., : h_BTD.shape[-1]]
        features_BJD = features_BIPD.reshape(len(h_BTD), -1, h_BTD.shape[-1])
        return constrain(merge(h_BTD, features_BJD, images), "batch", None, None)

    def _zeros(self, num_examples: int, capture: Capture | None) -> dict[str, jax.Array]:
        """Return what a capture gives for image towers that do not run."""
        if capture is None or capture.reduction in ("position", "tokens"):
            return {}
        return {
            name: jnp.zeros((tower.num_layers, num_examples, tower.num_neurons))
            for name, tower in self.mlps().items()
            if name != "text"
        }


def _check_gates(gates: Neurons, mlps: Mapping[str, TowerMlp]) -> None:
    """Raise ManuError for gates of other towers or shapes; a name that is not known has no part."""
    faults = []
    for tower, values in sorted(gates.items()):
        if tower not in mlps:
            faults.append(f'tower "{tower}" is not there (it has {", ".join(sorted(mlps))})')
            continue
        shape, L, F = np.shape(values), mlps[tower].num_layers, mlps[tower].num_neurons
        if len(shape) < 2 or (shape[0], shape[-1]) != (L, F):
            faults.append(
                f'tower "{tower}" has shape {shape}, expected ({L}, {F}) or ({L}, B, {F})'
            )
    if faults:
        raise ManuError(f"gates do not fit the model: {'; '.join(faults)}.")


def _positions(batch: Batch) -> Array:
    """Return the tokens' positions [B, T], or [B, T, 3] where the decoder has three."""
    return batch.positions_BT if batch.rope_BT3 is None else batch.rope_BT3


def text_and_vision_mlps(config: Any) -> dict[str, TowerMlp]:
    """Return the MLPs of a decoder and of a CLIP or SigLIP, if any of its layers runs."""
    text, vision = decoder_mlp(config.text, "text"), vit_mlp(config.vision, "vision")
    return {"text": text, "vision": vision} if config.vision.num_used_layers else {"text": text}


def merge(embeddings_BTD: jax.Array, features_BJD: jax.Array, images: Images) -> jax.Array:
    """Return the embeddings with the image tokens replaced by the example's own features.

    features_BJD: all features of an example, vision input after vision input. A token takes the row
    `feature_index`, or the weighted sum of the four rows `bilinear_index`.
    """
    if images.bilinear_index_BT4 is None or images.bilinear_weights_BT4 is None:
        taken_BTD = _rows(features_BJD, images.feature_index_BT)
    else:
        taken_BTD = jnp.zeros(embeddings_BTD.shape, jnp.float32)
        for corner in range(4):  # one after the other: no array of four times the features
            rows_BTD = _rows(features_BJD, images.bilinear_index_BT4[..., corner])
            weights_BT1 = images.bilinear_weights_BT4[..., corner, None]
            taken_BTD += rows_BTD.astype(jnp.float32) * weights_BT1
    is_image_BT1 = (images.feature_index_BT >= 0)[..., None]
    return jnp.where(is_image_BT1, taken_BTD.astype(embeddings_BTD.dtype), embeddings_BTD)


def _rows(features_BJD: jax.Array, index_BT: Array) -> jax.Array:
    return jnp.take_along_axis(features_BJD, jnp.maximum(index_BT, 0)[..., None], axis=1)

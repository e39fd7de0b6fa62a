"""The Llama decoder: RMS norms, rotary positions, grouped-query attention, gated MLPs.

Llama (Touvron et al. 2023, arXiv 2302.13971). Mistral and Qwen2 differ by fields of the config: a
sliding window over the last keys, and biases on the query, key and value projections. Qwen2-VL's
decoder has three positions per token (M-RoPE): each pair of a head's entries is rotated by one.
Gemma (arXiv 2403.08295): scales of norms are added to 1, embeddings are multiplied by √D; Gemma 2
(arXiv 2408.00118): norms after attention and MLP too, soft caps, and windows in every other layer;
Gemma 3 (arXiv 2503.19786): norms of queries and keys, and rotary positions of their own where a
layer has a window. Qwen3-VL (arXiv 2511.21631): norms of queries and keys too.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from manu_jax.models.hf.tables import Entry
from manu_jax.models.nn.attention import attend, attend_by_head
from manu_jax.models.nn.capture import TowerCapture
from manu_jax.models.nn.decoder_config import DecoderConfig
from manu_jax.models.nn.forward import TowerForward
from manu_jax.models.nn.kernels import Pattern
from manu_jax.models.nn.layers import Attention, project, random_weight, rms_norm, soft_cap
from manu_jax.models.nn.mlp import Mlp, TowerMlp, mlp_table
from manu_jax.models.nn.rope import RotaryAngles, rotary_angles, rotate
from manu_jax.models.nn.scan import scan_layers
from manu_jax.parallel import constrain, rows_of
from manu_jax.types import Array

NO_WINDOW = 2**30
# Of a new model. With 0.02 the layers' outputs drown the embeddings: training takes 1.5 × as long.
EMBEDDING_SCALE = 0.3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens so far.

    keys_LBKSH and values_LBKSH: slots [0, next_slot) are filled. Heads come before tokens, as
    attention reads them. valid_BS: True where a slot holds a token that is not padding.
    positions_B: the position of each example's next token. context: what some layers attend to
    beside these tokens (`cross_attention.py`).
    """

    keys_LBKSH: jax.Array
    values_LBKSH: jax.Array
    valid_BS: jax.Array
    positions_B: jax.Array
    next_slot: jax.Array
    context: Any = None


class DecoderLayers(nnx.Module):
    """A stack of decoder layers; called on the slice of one."""

    def __init__(self, key: jax.Array, config: DecoderConfig):
        attention, mlp = jax.random.split(key)
        L, D = config.num_layers, config.width
        scale_LD = jnp.zeros((L, D)) if config.is_gemma else jnp.ones((L, D))
        self.attention_norm_LD = nnx.Param(scale_LD)
        self.attention = Attention(
            attention, config, qkv_bias=config.qkv_bias, output_bias=config.output_bias
        )
        self.mlp_norm_LD = nnx.Param(scale_LD)
        if config.has_post_norms:
            self.attention_post_norm_LD = nnx.Param(scale_LD)
            self.mlp_post_norm_LD = nnx.Param(scale_LD)
        if config.has_head_norms:
            scale_LH = jnp.broadcast_to(scale_LD[:, :1], (L, config.head_size))
            self.query_norm_LH, self.key_norm_LH = nnx.Param(scale_LH), nnx.Param(scale_LH)
        self.mlp = Mlp(mlp, config, gated=True, bias=config.mlp_bias)
        self.config = config

    def qkv(
        self, h_BTD: jax.Array, layer_angles: RotaryAngles
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the layer's rotated queries and keys, and its values."""
        x_BTD = _norm(h_BTD, self.attention_norm_LD[...], self.config)
        q_BTNH, k_BTKH, v_BTKH = self.attention.qkv(x_BTD)
        if self.config.has_head_norms:
            q_BTNH = _norm(q_BTNH, self.query_norm_LH[...], self.config)
            k_BTKH = _norm(k_BTKH, self.key_norm_LH[...], self.config)
        return rotate(q_BTNH, *layer_angles), rotate(k_BTKH, *layer_angles), v_BTKH

    def output_and_mlp(
        self,
        h_BTD: jax.Array,
        mixed_BTNH: jax.Array,
        *,
        gate: jax.Array | None = None,
        capture: TowerCapture | None = None,
    ) -> tuple[jax.Array, Any]:
        """Return the residual stream after attention's output and the MLP, and what is captured."""
        config = self.config
        y_BTD = self.attention.output(mixed_BTNH)
        if config.has_post_norms:
            y_BTD = _norm(y_BTD, self.attention_post_norm_LD[...], config)
        h_BTD = h_BTD + y_BTD
        x_BTD = _norm(h_BTD, self.mlp_norm_LD[...], config)
        y_BTD, captured = self.mlp(x_BTD, gate, capture)
        if config.has_post_norms:
            y_BTD = _norm(y_BTD, self.mlp_post_norm_LD[...], config)
        return constrain(h_BTD + y_BTD, "batch", None, None), captured


class Decoder(nnx.Module):
    """Embedding, layers, norm and head of a causal language model."""

    def __init__(self, key: jax.Array, config: DecoderConfig):
        embedding, layers, head = jax.random.split(key, 3)
        D, V = config.width, config.vocabulary
        self.embedding_VD = nnx.Param(jax.random.normal(embedding, (V, D)) * EMBEDDING_SCALE)
        self.layers = DecoderLayers(layers, config)
        self.norm_D = nnx.Param(jnp.zeros(D) if config.is_gemma else jnp.ones(D))
        if not config.is_tied:
            self.head_DV = random_weight(head, (D, V), D)
        self.config = config

    def embed(self, token_ids_BT: Array) -> jax.Array:
        """Return the tokens' embeddings. [B, T, D]."""
        h_BTD = rows_of(self.embedding_VD[...], token_ids_BT)
        if self.config.is_gemma:
            h_BTD = h_BTD * jnp.asarray(self.config.width**0.5, h_BTD.dtype)
        return h_BTD

    def __call__(
        self,
        h_BTD: jax.Array,
        attention_mask_BT: Array,
        positions: Array,
        *,
        forward: TowerForward,
        group_BT: Array | None = None,
        context: Any = None,
        keep_keys: bool = False,
        num_layers: int | None = None,
    ) -> tuple[jax.Array, Any, Any]:
        """Return the last hidden state [B, T, D], what was captured, and the keys and values.

        positions: [B, T], or [B, T, 3] in time, by row and by column. group_BT: tokens with the
        same number, if it is not negative, attend to each other in both directions. context: what
        some layers attend to beside the tokens. Keys and values: a pair of [L, B, T, K, H] with
        `keep_keys`, otherwise None. num_layers: run only the first layers, without gates, and
        return the residual stream after them as it is.
        """
        step = self.layer_step(attention_mask_BT, positions, group_BT=group_BT, context=context)

        def body(
            h_BTD: jax.Array, layer: DecoderLayers, gate: jax.Array | None, window: jax.Array | None
        ) -> tuple[jax.Array, Any, Any]:
            h_BTD, captured, keys = step(h_BTD, layer, window, gate=gate, capture=forward.capture)
            return h_BTD, captured, keys if keep_keys else None

        layers, extra = self.layers, self.scanned_L()
        if num_layers is not None:
            layers, extra = jax.tree.map(lambda leaf: leaf[:num_layers], (layers, extra))
        h_BTD, captured, kept = scan_layers(body, h_BTD, layers, forward=forward, extra=extra)
        if num_layers is not None:
            return h_BTD, captured, kept
        return _norm(h_BTD, self.norm_D[...], self.config), captured, kept

    def answers(
        self,
        h_BTD: jax.Array,
        attention_mask_BT: Array,
        positions: Array,
        *,
        at_BA: Array,
        forward: TowerForward,
        group_BT: Array | None = None,
        context: Any = None,
        first_layer: int = 0,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the logits at the positions `at_BA`, and what each layer made of the stream.

        The last layer runs at these positions alone. h_BTD: what enters layer `first_layer`.
        Returns logits [B, A, V] float32, the residual stream after every layer from `first_layer`
        to the last but one [L, B, T, D], and after the last one at the positions [B, A, D].
        """
        step = self.layer_step(attention_mask_BT, positions, group_BT=group_BT, context=context)

        def body(
            h_BTD: jax.Array, layer: DecoderLayers, gate: jax.Array | None, window: jax.Array | None
        ) -> tuple[jax.Array, Any, Any]:
            h_BTD, _, _ = step(h_BTD, layer, window)
            return h_BTD, None, h_BTD

        stacked = (self.layers, self.scanned_L())
        before = jax.tree.map(lambda leaf: leaf[first_layer:-1], stacked)
        h_BTD, _, stream_LBTD = scan_layers(
            body, h_BTD, before[0], forward=TowerForward(remat=forward.remat), extra=before[1]
        )
        layer, window = jax.tree.map(lambda leaf: leaf[-1], stacked)
        h_BAD, _, _ = step(h_BTD, layer, window, at_BA=at_BA)
        return self.logits_of_stream(h_BAD), stream_LBTD, h_BAD

    def scanned_L(self) -> Any:
        """Return what a step gets beside its layer, stacked over L: the window, or None."""
        if not any(self.config.windows):
            return None
        return jnp.asarray([window or NO_WINDOW for window in self.config.windows], jnp.int32)

    def layer_step(
        self,
        attention_mask_BT: Array,
        positions: Array,
        *,
        group_BT: Array | None = None,
        context: Any = None,
    ) -> Callable[..., tuple[jax.Array, Any, tuple[jax.Array, jax.Array]]]:
        """Return the function of one layer over a batch's tokens: what it makes of the stream.

        `(h_BTD, layer, window, *, gate, capture, at_BA) -> (h, captured, (keys, values))`. at_BA:
        the positions that go on; None: all.
        """
        assert context is None, "every layer attends to tokens alone"
        angles_of = self._rotary_angles(positions)
        slots_T = jnp.arange(jnp.shape(attention_mask_BT)[1])
        distance_TT = slots_T[:, None] - slots_T[None]
        mask_BTT = (distance_TT >= 0)[None] & jnp.asarray(attention_mask_BT)[:, None, :]
        joint_BTT = None
        if group_BT is not None:
            same_BTT = (group_BT[:, :, None] == group_BT[:, None]) & (group_BT[:, None] >= 0)
            joint_BTT = jnp.asarray(same_BTT & attention_mask_BT[:, None, :])
        kind = Pattern(jnp.asarray(attention_mask_BT), is_causal=True, windows=self.config.windows)

        def step(
            h_BTD: jax.Array,
            layer: DecoderLayers,
            window: jax.Array | None,
            *,
            gate: jax.Array | None = None,
            capture: TowerCapture | None = None,
            at_BA: Array | None = None,
        ) -> tuple[jax.Array, Any, tuple[jax.Array, jax.Array]]:
            q_BTNH, k_BTKH, v_BTKH = layer.qkv(h_BTD, angles_of(window))
            is_near_TT = None if window is None else distance_TT < window
            visible_BTT = _both(mask_BTT, is_near_TT)
            if joint_BTT is not None:
                bound_TT = is_near_TT if self.config.groups_in_windows else None
                visible_BTT = visible_BTT | _both(joint_BTT, bound_TT)
            is_whole = joint_BTT is None and at_BA is None
            own = dataclasses.replace(kind, window=window) if is_whole else None
            if at_BA is not None:
                rows = (_rows_at(values, at_BA) for values in (h_BTD, q_BTNH, visible_BTT))
                h_BTD, q_BTNH, visible_BTT = rows
            mixed_BTNH = attend(q_BTNH, k_BTKH, v_BTKH, visible_BTT, pattern=own, **self._scores())
            h_BTD, captured = layer.output_and_mlp(h_BTD, mixed_BTNH, gate=gate, capture=capture)
            return h_BTD, captured, (k_BTKH, v_BTKH)

        return step

    def decode(self, h_B1D: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Return the last hidden state of one further token per example, and the longer cache."""
        angles_of = self._rotary_angles(cache.positions_B[:, None])
        slots_S = jnp.arange(cache.valid_BS.shape[1])
        valid_BS = cache.valid_BS | (slots_S == cache.next_slot)[None]

        def step(carry: tuple[jax.Array, ...], xs: tuple[Any, ...]):
            h_B1D, keys_LBKSH, values_LBKSH = carry
            layer, window, index = xs
            q_B1NH, k_B1KH, v_B1KH = layer.qkv(h_B1D, angles_of(window))
            start = (index, 0, 0, cache.next_slot, 0)
            k_BK1H, v_BK1H = k_B1KH.swapaxes(1, 2), v_B1KH.swapaxes(1, 2)
            keys_LBKSH = jax.lax.dynamic_update_slice(keys_LBKSH, k_BK1H[None], start)
            values_LBKSH = jax.lax.dynamic_update_slice(values_LBKSH, v_BK1H[None], start)

            def mixed(window: jax.Array | None) -> jax.Array:
                visible_BS = valid_BS
                if window is not None:
                    age_S = (cache.next_slot - slots_S) % len(slots_S)  # slots may go round
                    visible_BS = visible_BS & (age_S < window)[None]
                return attend_by_head(
                    q_B1NH,
                    keys_LBKSH[index],
                    values_LBKSH[index],
                    visible_BS[:, None],
                    **self._scores(),
                )

            h_B1D = self._after_mixing(h_B1D, layer, window, mixed=mixed, context=cache.context)
            return (h_B1D, keys_LBKSH, values_LBKSH), None

        indices_L = jnp.arange(self.config.num_layers)
        (h_B1D, keys_LBKSH, values_LBKSH), _ = jax.lax.scan(
            step,
            (h_B1D, cache.keys_LBKSH, cache.values_LBKSH),
            (self.layers, self.scanned_L(), indices_L),
        )
        h_B1D = _norm(h_B1D, self.norm_D[...], self.config)
        filled = (keys_LBKSH, values_LBKSH, valid_BS)
        longer = Cache(*filled, cache.positions_B + 1, cache.next_slot + 1, cache.context)
        return h_B1D, longer

    def _after_mixing(
        self,
        h_B1D: jax.Array,
        layer: DecoderLayers,
        window: Any,
        *,
        mixed: Callable[[jax.Array | None], jax.Array],
        context: Any,
    ) -> jax.Array:
        """Return the stream of one further token after a layer; mixed: of a window, the heads'."""
        return layer.output_and_mlp(h_B1D, mixed(window))[0]

    def logits(self, h_BTD: jax.Array) -> jax.Array:
        """Return the logits. [B, T, V] float32."""
        weight_DV = self.embedding_VD[...].T if self.config.is_tied else self.head_DV[...]
        logits_BTV = soft_cap(project(h_BTD, weight_DV, dtype=jnp.float32), self.config.logit_cap)
        return constrain(logits_BTV, "batch", None, "vocabulary")

    def logits_of_stream(self, h_BTD: jax.Array) -> jax.Array:
        """Return the logits of the residual stream after the last layer. [B, T, V] float32."""
        return self.logits(_norm(h_BTD, self.norm_D[...], self.config))

    def _rotary_angles(self, positions: Array) -> Callable[[jax.Array | None], RotaryAngles]:
        """Return the function from a layer's window to the rotary angles of the positions."""
        config = self.config
        whole = rotary_angles(positions, config.rope, config.head_size)
        if config.local_rope is None:
            return lambda window: whole
        local = rotary_angles(positions, config.local_rope, config.head_size)

        def angles_of(window: jax.Array | None) -> RotaryAngles:
            if window is None:
                return whole
            is_local = window < NO_WINDOW
            return jnp.where(is_local, local[0], whole[0]), jnp.where(is_local, local[1], whole[1])

        return angles_of

    def _scores(self) -> dict[str, float | None]:
        return {"scale": self.config.score_scale, "cap": self.config.score_cap}


def _rows_at(values_BT: jax.Array, at_BA: Array) -> jax.Array:
    """Return the rows of axis 1 at the positions of each example. [B, A, …]."""
    shape = (*jnp.shape(at_BA), *[1] * (values_BT.ndim - 2))
    return jnp.take_along_axis(values_BT, jnp.asarray(at_BA).reshape(shape), axis=1)


def _both(visible_BTT: jax.Array, is_near_TT: jax.Array | None) -> jax.Array:
    return visible_BTT if is_near_TT is None else visible_BTT & is_near_TT[None]


def _norm(h_BTD: jax.Array, scale_D: jax.Array, config: DecoderConfig) -> jax.Array:
    return rms_norm(h_BTD, scale_D, config.norm_epsilon, unit_offset=config.is_gemma)


def decoder_mlp(config: DecoderConfig, path: str) -> TowerMlp:
    """Return how the MLPs of a decoder are built."""
    sizes = (config.num_layers, config.num_neurons, config.width)
    return TowerMlp(path + ".layers.mlp", *sizes, gated=True, bias=config.mlp_bias)


def decoder_table(config: DecoderConfig, path: str, root: str, head: str) -> list[Entry]:
    """Return the table of a decoder whose names begin with `root`; head: the name of its head."""
    layer = root + "layers.{layer}."
    attention, layers = layer + "self_attn.", path + ".layers."
    table = [
        Entry(path + ".embedding_VD", root + "embed_tokens.weight", "VD"),
        Entry(path + ".norm_D", root + "norm.weight", "D"),
        Entry(layers + "attention_norm_LD", layer + "input_layernorm.weight", "D"),
        Entry(layers + "attention.q_LDNH", attention + "q_proj.weight", "(NH)D"),
        Entry(layers + "attention.k_LDKH", attention + "k_proj.weight", "(KH)D"),
        Entry(layers + "attention.v_LDKH", attention + "v_proj.weight", "(KH)D"),
        Entry(layers + "attention.o_LNHD", attention + "o_proj.weight", "D(NH)"),
        *mlp_table(decoder_mlp(config, path), layer + "mlp."),
    ]
    before_mlp = "post_attention_layernorm.weight"
    if config.has_post_norms:
        before_mlp = "pre_feedforward_layernorm.weight"
        after = {"attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
        table += [
            Entry(f"{layers}{name}_post_norm_LD", f"{layer}{theirs}.weight", "D")
            for name, theirs in after.items()
        ]
    table.append(Entry(layers + "mlp_norm_LD", layer + before_mlp, "D"))
    if config.has_head_norms:
        table += [
            Entry(layers + "query_norm_LH", attention + "q_norm.weight", "H"),
            Entry(layers + "key_norm_LH", attention + "k_norm.weight", "H"),
        ]
    if not config.is_tied:
        table.append(Entry(path + ".head_DV", head, "VD"))
    if config.qkv_bias:
        table += [
            Entry(layers + "attention.q_bias_LNH", attention + "q_proj.bias", "(NH)"),
            Entry(layers + "attention.k_bias_LKH", attention + "k_proj.bias", "(KH)"),
            Entry(layers + "attention.v_bias_LKH", attention + "v_proj.bias", "(KH)"),
        ]
    if config.output_bias:
        table.append(Entry(layers + "attention.o_bias_LD", attention + "o_proj.bias", "D"))
    return table

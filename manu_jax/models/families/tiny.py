"""The `config.json` and the processor of a model that is trained from scratch."""

from collections.abc import Mapping
from typing import Any

from manu_jax.config import ModelSection
from manu_jax.models.families import idefics2, idefics3
from manu_jax.models.inputs import processing


def llava_config(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of a model of these sizes, with both spellings of rope and dtype."""
    vision = section.vision
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": "float32",
        "torch_dtype": "float32",
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "image_seq_length": (vision.image_size // vision.patch_size) ** 2,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "text_config": _text_config("llama", section, tokenizer),
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": vision.width,
            "intermediate_size": vision.num_neurons,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
    }


def llava_processor(section: ModelSection, tokenizer: Any) -> Any:
    """Return a LlavaProcessor for images of the section's size."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    size = section.vision.image_size
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        ),
        tokenizer=tokenizer,
        patch_size=section.vision.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def llava_next_config(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of a LLaVA-NeXT of these sizes: an image is a whole and one tile."""
    return {
        **llava_config(section, tokenizer),
        "architectures": ["LlavaNextForConditionalGeneration"],
        "model_type": "llava_next",
        "image_grid_pinpoints": [[section.vision.image_size] * 2],
    }


def llava_next_processor(section: ModelSection, tokenizer: Any) -> Any:
    """Return a LlavaNextProcessor of one tile of the section's size."""
    from transformers import LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    size = section.vision.image_size
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": size},
            crop_size={"height": size, "width": size},
            image_grid_pinpoints=[[size, size]],
        ),
        tokenizer=tokenizer,
        patch_size=section.vision.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def llava_onevision_config(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of a LLaVA-OneVision: an image alone is a whole and one tile."""
    return {
        **llava_next_config(section, tokenizer),
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "text_config": _text_config("qwen2", section, tokenizer),
        "vision_config": {
            **_siglip_config("siglip_vision_model", section),
            "vision_use_head": False,
        },
    }


def llava_onevision_processor(section: ModelSection, tokenizer: Any) -> Any:
    """Return a processor of one tile of the section's size; its tokenizer has more tokens."""
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    size = section.vision.image_size
    images = LlavaOnevisionImageProcessorPil(
        size={"height": size, "width": size}, image_grid_pinpoints=[[size, size]]
    )
    tokens = {"turn_start_token": "<|im_start|>", "turn_end_token": "<|im_end|>"}
    return processing.Processor(images, with_tokens(tokenizer, tokens), "<image>")


def idefics2_config(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of a model of these sizes; its decoder looks back without end."""
    connector = section.connector
    return {
        "architectures": ["Idefics2ForConditionalGeneration"],
        "model_type": "idefics2",
        "dtype": "float32",
        "torch_dtype": "float32",
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "tie_word_embeddings": False,
        "text_config": {
            **_text_config("mistral", section, tokenizer),
            "sliding_window": None,
        },
        "vision_config": _siglip_config("idefics2_vision", section),
        "perceiver_config": {
            "model_type": "idefics2_perceiver",
            "hidden_act": "silu",
            "hidden_size": section.text.width,
            "rms_norm_eps": 1e-6,
            "resampler_n_latents": connector.num_latents,
            "resampler_depth": connector.num_layers,
            "resampler_n_heads": connector.num_heads,
            "resampler_head_dim": section.text.width // connector.num_heads,
            "num_key_value_heads": connector.num_heads,
        },
    }


def idefics2_processor(section: ModelSection, tokenizer: Any) -> Any:
    """Return an Idefics2Processor for images of that size; its tokenizer has more tokens."""
    from transformers import Idefics2Processor
    from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

    size = section.vision.image_size
    return Idefics2Processor(
        image_processor=Idefics2ImageProcessorPil(
            size={"shortest_edge": size, "longest_edge": size}, do_image_splitting=False
        ),
        tokenizer=with_tokens(tokenizer, {"image_boundary_token": idefics2.FAKE}),
        image_seq_len=section.connector.num_latents,
    )


def idefics3_config(section: ModelSection, tokenizer: Any, name: str) -> dict[str, Any]:
    """Return the `config.json` of an "Idefics3" or "SmolVLM" of these sizes."""
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": name.lower(),
        "dtype": "float32",
        "torch_dtype": "float32",
        "image_token_id": tokenizer.convert_tokens_to_ids(idefics3.PLACEHOLDER),
        "scale_factor": 2,
        "tie_word_embeddings": False,
        "text_config": _text_config("llama", section, tokenizer),
        "vision_config": _siglip_config(f"{name.lower()}_vision", section),
    }


def idefics3_processor(section: ModelSection, tokenizer: Any) -> Any:
    """Return a processor for images of the section's size, which are not split."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    size = {"longest_edge": section.vision.image_size}
    images = Idefics3ImageProcessorPil(size=size, max_image_size=size, do_image_splitting=False)
    tokens = {"fake": idefics3.FAKE, "whole": "<global-img>", "end": idefics3.TEMPLATE.end}
    return processing.Processor(images, with_tokens(tokenizer, tokens), idefics3.PLACEHOLDER)


def paligemma_config(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of a PaliGemma of these sizes; its head is the embedding."""
    text = _text_config("gemma", section, tokenizer)
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "dtype": "float32",
        "torch_dtype": "float32",
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "projection_dim": section.text.width,
        "hidden_size": section.text.width,
        "tie_word_embeddings": True,
        "text_config": {**text, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True},
        "vision_config": {
            **_siglip_config("siglip_vision_model", section),
            "projection_dim": section.text.width,
            "vision_use_head": False,
        },
    }


def paligemma_processor(section: ModelSection, tokenizer: Any) -> Any:
    """Return a PaliGemmaProcessor for images of the section's size."""
    from transformers import PaliGemmaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    size = section.vision.image_size
    images: Any = SiglipImageProcessorPil(size={"height": size, "width": size})
    images.image_seq_length = (size // section.vision.patch_size) ** 2
    return PaliGemmaProcessor(images, with_tokens(tokenizer, {}, begins=False))


def gemma3_config(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of a Gemma 3; every other layer looks back on 1/16 of the context.

    Four patches are one token of an image. The positions are spelled as in the hub's files.
    """
    text = _text_config("gemma3_text", section, tokenizer)
    del text["rope_parameters"]
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "dtype": "float32",
        "torch_dtype": "float32",
        "image_token_index": tokenizer.convert_tokens_to_ids(tokenizer.image_token),
        "boi_token_index": tokenizer.convert_tokens_to_ids(tokenizer.boi_token),
        "eoi_token_index": tokenizer.convert_tokens_to_ids(tokenizer.eoi_token),
        "mm_tokens_per_image": _gemma3_tokens(section),
        "tie_word_embeddings": True,
        "text_config": {
            **text,
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": text["head_dim"],
            "rope_local_base_freq": 10000.0,
            "sliding_window": section.text.context // 16,
            "sliding_window_pattern": 2,
            "tie_word_embeddings": True,
        },
        "vision_config": {
            **_siglip_config("siglip_vision_model", section),
            "vision_use_head": False,
        },
    }


def gemma3_processor(section: ModelSection, tokenizer: Any) -> Any:
    """Return a Gemma3Processor for images of the section's size, whole."""
    from transformers import Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    size = section.vision.image_size
    tokens = {"image_token": "<image_soft_token>"}
    tokens |= {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokens |= {"turn_start_token": "<start_of_turn>", "turn_end_token": "<end_of_turn>"}
    return Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": size, "width": size}),
        with_tokens(tokenizer, tokens),
        image_seq_length=_gemma3_tokens(section),
    )


def qwen2_vl_config(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of a Qwen2-VL of these sizes."""
    vision = {
        "embed_dim": section.vision.width,
        "hidden_size": section.text.width,
        "mlp_ratio": section.vision.num_neurons // section.vision.width,
        "hidden_act": "quick_gelu",
    }
    return _qwen_vl_config("Qwen2VL", "qwen2_vl", vision, section, tokenizer)


def qwen2_5_vl_config(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of a Qwen2.5-VL; its last layer looks beyond windows of 2 × 2."""
    vision = {
        "hidden_size": section.vision.width,
        "out_hidden_size": section.text.width,
        "intermediate_size": section.vision.num_neurons,
        "hidden_act": "silu",
        "window_size": 4 * section.vision.patch_size,
        "fullatt_block_indexes": [section.vision.num_layers - 1],
    }
    return _qwen_vl_config("Qwen2_5_VL", "qwen2_5_vl", vision, section, tokenizer)


def qwen_vl_processor(section: ModelSection, tokenizer: Any) -> Any:
    """Return a processor for images of as many pixels as the section says."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    area = section.vision.image_size**2
    images = Qwen2VLImageProcessorPil(
        patch_size=section.vision.patch_size, size={"shortest_edge": area, "longest_edge": area}
    )
    tokens = {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
    tokens |= {"turn_start_token": "<|im_start|>", "turn_end_token": "<|im_end|>"}
    known = with_tokens(tokenizer, {**tokens, "image_token": "<|image_pad|>"})
    return processing.Processor(images, known, "<|image_pad|>")


def _qwen_vl_config(
    name: str, kind: str, vision: dict[str, Any], section: ModelSection, tokenizer: Any
) -> dict[str, Any]:
    head_size = section.text.width // section.text.num_heads
    quarter = head_size // 8  # as in the released ones: 16, 24 and 24 of 64
    sections = [head_size // 2 - 2 * (head_size // 4 - quarter // 2)]
    sections += [head_size // 4 - quarter // 2] * 2
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": kind,
        "dtype": "float32",
        "torch_dtype": "float32",
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "tie_word_embeddings": False,
        "text_config": {
            **_text_config(f"{kind}_text", section, tokenizer),
            "rope_parameters": rope,
            "rope_scaling": rope,
        },
        "vision_config": {
            "model_type": kind,
            "depth": section.vision.num_layers,
            "num_heads": section.vision.num_heads,
            "patch_size": section.vision.patch_size,
            **vision,
        },
    }


def with_tokens(tokenizer: Any, tokens: Mapping[str, str], *, begins: bool = True) -> Any:
    """Return a tokenizer of train_tokenizer's that knows further special tokens {attribute: token}.

    begins: a text begins with "<s>" of itself.
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


def _gemma3_tokens(section: ModelSection) -> int:
    return (section.vision.image_size // section.vision.patch_size // 2) ** 2


def _siglip_config(kind: str, section: ModelSection) -> dict[str, Any]:
    vision = section.vision
    return {
        "model_type": kind,
        "hidden_size": vision.width,
        "intermediate_size": vision.num_neurons,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }


def _text_config(kind: str, section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    text = section.text
    return {
        "model_type": kind,
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

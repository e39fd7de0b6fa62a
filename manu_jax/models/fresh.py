"""The `config.json` and the processor of a model that is trained from scratch."""

from typing import Any

from manu_jax.config import ModelSection


def llava_config(section: ModelSection, tokenizer: Any) -> dict[str, Any]:
    """Return the `config.json` of a model of these sizes, with both spellings of rope and dtype."""
    text, vision = section.text, section.vision
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
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
        "text_config": {
            **special,
            "model_type": "llama",
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
        },
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

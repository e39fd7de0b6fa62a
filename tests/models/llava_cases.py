"""Tiny LLaVAs: decoders and towers of every kind, windows, rotary scalings, several layers."""

import transformers
from cases import USUAL, Case, Cases, tokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

SIGLIP = "siglip_vision_model"


class LlavaCases(Cases):
    MODEL_TYPE = "llava"
    TEXT = {"model_type": "llama", "max_position_embeddings": 96}
    VISION = {"model_type": "clip_vision_model"}
    PROMPTS = (
        "USER: <image>\nWhere does this person live?\nASSISTANT:",
        "USER: <image>\n<image>\nLima or Accra?\nASSISTANT:",
        "USER: Where?\nASSISTANT:",
    )
    IMAGE_COUNTS = (1, 2, 0)
    SIZES = ((15, 13), (15, 14), (15, 15))
    CASES = {
        "all-key-heads": Case(text={"num_key_value_heads": 4}),
        "one-key-head-tied": Case(text={"num_key_value_heads": 1, "tie_word_embeddings": True}),
        "biases-llama3-rope": Case(
            text={
                "attention_bias": True,
                "mlp_bias": True,
                "head_dim": 8,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 500.0,
                    "factor": 4.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 16,
                },
            },
            whole={"multimodal_projector_bias": False},
        ),
        "mistral-window": Case(text={"model_type": "mistral", "sliding_window": 7}),
        "qwen2-two-windows": Case(
            text={
                "model_type": "qwen2",
                "use_sliding_window": True,
                "sliding_window": 5,
                "max_window_layers": 1,
            },
            vision={"hidden_act": "gelu"},
            whole={"vision_feature_layer": -1},
        ),
        "two-features-full-linear-rope": Case(
            text={
                "hidden_act": "gelu",
                "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
            },
            whole={
                "vision_feature_layer": [0, -2],
                "vision_feature_select_strategy": "full",
                "projector_hidden_act": "relu",
            },
        ),
        # As llava-interleave-qwen, JoyCaption (whose tower has its head), and one of which
        # transformers drops the first patch
        "siglip-qwen2": Case(
            text={"model_type": "qwen2", "tie_word_embeddings": True},
            vision={"model_type": SIGLIP, "vision_use_head": False},
            whole={"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
        ),
        "siglip-llama-head": Case(
            vision={"model_type": SIGLIP, "hidden_act": "gelu_pytorch_tanh"},
            whole={"vision_feature_select_strategy": "full"},
        ),
        "siglip-first-dropped": Case(vision={"model_type": SIGLIP, "vision_use_head": False}),
    }

    def processor(self, case=USUAL):
        square = {"height": self.SIDE, "width": self.SIDE}
        is_siglip = case.vision.get("model_type") == SIGLIP
        if is_siglip:
            images = SiglipImageProcessorPil(size=square)
        else:
            images = CLIPImageProcessorPil(size={"shortest_edge": self.SIDE}, crop_size=square)
        return transformers.LlavaProcessor(
            image_processor=images,
            tokenizer=tokenizer(),
            patch_size=self.PATCH,
            vision_feature_select_strategy=case.whole.get(
                "vision_feature_select_strategy", "default"
            ),
            num_additional_image_tokens=int(not is_siglip),
        )


cases = LlavaCases()

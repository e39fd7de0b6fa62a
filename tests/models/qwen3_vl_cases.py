"""Tiny Qwen3-VLs: features of images in several of the decoder's layers, positions in turns."""

from cases import Case
from qwen_cases import QwenCases


class Qwen3VLCases(QwenCases):
    MODEL_TYPE = "qwen3_vl"
    TEXT = {
        "max_position_embeddings": 160,
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 500.0,
            "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        },
        "pad_token_id": 3,
    }
    VISION = {
        "hidden_size": 16,
        "intermediate_size": 28,
        "out_hidden_size": 24,
        "num_position_embeddings": 25,  # fewer and more than the patches of an image's side
        "deepstack_visual_indexes": [0, 2],
    }
    # The decoder has more layers than there are features for, as many, and fewer.
    CASES = {
        "three-layers": Case(text={"num_key_value_heads": 2, "num_hidden_layers": 3}),
        "one-key-head-tied": Case(
            text={"num_key_value_heads": 1, "tie_word_embeddings": True},
            vision={"hidden_act": "gelu", "deepstack_visual_indexes": [1]},
            whole={"tie_word_embeddings": True},
        ),
        "more-features-than-layers-biases": Case(
            text={"num_key_value_heads": 4, "attention_bias": True, "num_hidden_layers": 1},
            vision={"num_position_embeddings": 4, "deepstack_visual_indexes": [0, 1, 2]},
        ),
    }

    def tower_of(self, name):
        if name.endswith("mlp.linear_fc2"):
            return "vision"
        return "text" if name.endswith("mlp.down_proj") else None


cases = Qwen3VLCases()

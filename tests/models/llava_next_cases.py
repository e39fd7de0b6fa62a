"""Tiny LLaVA-NeXTs: images in tiles, decoders of three kinds, features of several layers."""

import itertools

import numpy as np
import transformers
from cases import USUAL, Case, Cases, tokenizer
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

# Of the tower's last layer, whose result is not used
UNUSED = """
    attention_norm_LD attention_norm_bias_LD attention.q_LDNH attention.k_LDKH attention.v_LDKH
    attention.o_LNHD attention.q_bias_LNH attention.k_bias_LKH attention.v_bias_LKH
    attention.o_bias_LD mlp_norm_LD mlp_norm_bias_LD mlp.up_LDF mlp.up_bias_LF mlp.down_LFD
    mlp.down_bias_LD
""".split()


class LlavaNextCases(Cases):
    MODEL_TYPE = "llava_next"
    PINPOINTS = ([12, 24], [24, 12], [24, 24], [36, 12], [12, 36])
    TEXT = {"model_type": "llama", "max_position_embeddings": 512}
    VISION = {"model_type": "clip_vision_model"}
    PROMPTS = (
        "USER: <image>\nWhere does this person live?\nASSISTANT:",
        "USER: <image>\n<image>\nLima or Accra? <image> Oslo\nASSISTANT:",
        "USER: Where?\nASSISTANT:",
    )
    SIZES = ((15, 38), (40, 17), (5, 7), (24, 24))  # wide, tall, smaller than a tile, square
    WITHOUT_EFFECT = {
        "vision.layers.attention.k_bias_LKH",
        *(f"vision.unused_layers.{name}" for name in UNUSED),
        "vision.post_norm_D",
        "vision.post_norm_bias_D",
    }
    CASES = {
        "vicuna": Case(text={"num_key_value_heads": 4}),
        "mistral": Case(
            text={"model_type": "mistral", "num_key_value_heads": 2}, vision={"hidden_act": "gelu"}
        ),
        "one-key-head-tied": Case(
            text={"num_key_value_heads": 1, "tie_word_embeddings": True},
            whole={"tie_word_embeddings": True},
        ),
        "qwen2-two-features": Case(
            text={"model_type": "qwen2", "num_key_value_heads": 2},
            whole={
                "vision_feature_layer": [1, -1],
                "projector_hidden_act": "relu",
                "multimodal_projector_bias": False,
            },
        ),
    }

    def processor(self, case=USUAL):
        return transformers.LlavaNextProcessor(
            image_processor=LlavaNextImageProcessorPil(
                size={"shortest_edge": self.SIDE},
                crop_size={"height": self.SIDE, "width": self.SIDE},
                image_grid_pinpoints=list(self.PINPOINTS),
            ),
            tokenizer=tokenizer(),
            patch_size=self.PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )

    def whole(self, case, words):
        return {"image_grid_pinpoints": list(self.PINPOINTS), **super().whole(case, words)}

    def counts_of_images(self, inputs):
        """Return how many vision inputs the tower takes of each image."""
        return [
            image_size_to_num_patches(size, list(self.PINPOINTS), self.SIDE)
            for size in inputs["image_sizes"]
        ]

    def counts_of_rows(self, inputs):
        counts = iter(self.counts_of_images(inputs))
        return [int(np.sum(list(itertools.islice(counts, n)))) for n in self.IMAGE_COUNTS]


cases = LlavaNextCases()

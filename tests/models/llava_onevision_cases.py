"""Tiny LLaVA-OneVisions: maps made smaller, several images of one text."""

import numpy as np
import transformers
from cases import SIGLIP, USUAL, Case, tokenizer
from llava_next_cases import LlavaNextCases
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from manu_jax.models.families.llava_onevision import PLACEHOLDER
from manu_jax.models.families.tiny import with_tokens
from manu_jax.models.inputs.processing import Processor


class ImagesOnly(transformers.LlavaOnevisionProcessor):
    """The processor of transformers without one of videos, which wants torchvision."""

    @classmethod
    def get_attributes(cls):
        return ["image_processor", "tokenizer", "video_processor"]

    def check_argument_for_proper_class(self, argument_name, argument):
        del argument_name, argument


class LlavaOnevisionCases(LlavaNextCases):
    MODEL_TYPE = "llava_onevision"
    SIDE = 13  # 3 × 3 patches a tile, and a row of pixels that fills none
    PINPOINTS = tuple([y // 12 * 13, x // 12 * 13] for y, x in LlavaNextCases.PINPOINTS)
    TEXT = {"model_type": "qwen2", "max_position_embeddings": 512}
    VISION = SIGLIP
    # The first, alone in its text, has more tokens than "anyres_max_2" allows; the others are
    # several of one text, which are not split.
    SIZES = ((27, 25), (15, 38), (40, 17), (5, 7))
    PROMPTS = (
        "<|im_start|>user <image>\nWhere does this person live?<|im_end|><|im_start|>assistant\n",
        "<|im_start|>user <image><image>\nLima? <image><|im_end|><|im_start|>assistant\n",
        "<|im_start|>user \nWhere?<|im_end|><|im_start|>assistant\n",
    )
    WITHOUT_EFFECT = {
        "vision.layers.attention.k_bias_LKH",
        "vision.post_norm_D",  # the hidden states are taken without it
        "vision.post_norm_bias_D",
    }
    CASES = {
        "interpolated": Case(text={"num_key_value_heads": 2}),
        "one-key-head-tied": Case(
            text={"num_key_value_heads": 1, "tie_word_embeddings": True},
            vision={"hidden_act": "gelu"},
            whole={"tie_word_embeddings": True, "vision_aspect_ratio": "anyres_max_9"},
        ),
        "llama-two-features": Case(
            text={"model_type": "llama", "num_key_value_heads": 4},
            whole={
                "vision_feature_layer": [1, -1],
                "projector_hidden_act": "relu",
                "multimodal_projector_bias": False,
                "vision_aspect_ratio": "anyres_max_1",
            },
        ),
    }

    def processor(self, case=USUAL):
        images = LlavaOnevisionImageProcessorPil(
            size={"height": self.SIDE, "width": self.SIDE},
            image_grid_pinpoints=list(self.PINPOINTS),
        )
        tokens = {"start": "<|im_start|>", "end": "<|im_end|>"}
        return Processor(images, with_tokens(tokenizer(), tokens), PLACEHOLDER)

    def whole_processor(self, parts, aspect, num_image_tokens=9):
        """Return the processor of transformers, which makes the prompts."""
        return ImagesOnly(
            parts.image_processor,
            parts.tokenizer,
            None,
            num_image_tokens=num_image_tokens,
            vision_feature_select_strategy="full",
            vision_aspect_ratio=aspect,
        )

    def torch_processor(self, folder):
        found = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        words = transformers.AutoTokenizer.from_pretrained(folder)
        aspect = transformers.AutoConfig.from_pretrained(folder).vision_aspect_ratio
        return self.whole_processor(Processor(found, words, PLACEHOLDER), aspect)

    def whole(self, case, words):
        return {"vision_aspect_ratio": "anyres_max_2", **super().whole(case, words)}

    def counts_of_images(self, inputs):
        images_of_text = inputs["batch_num_images"].numpy()
        is_one_of_many = np.repeat(images_of_text > 1, images_of_text)
        counts = super().counts_of_images(inputs)
        return [1 if many else n for n, many in zip(counts, is_one_of_many, strict=True)]


cases = LlavaOnevisionCases()

"""Tiny Qwen2-VLs and Qwen2.5-VLs: images of any size, packed into one row of patches."""

import numpy as np
import torch
from cases import USUAL, Case, Cases, tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from manu_jax.models.families.tiny import with_tokens
from manu_jax.models.inputs.processing import Processor

SEEN = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN2 = {"embed_dim": 16, "hidden_size": 24}
QWEN2_5 = {
    "hidden_size": 16,
    "out_hidden_size": 24,
    "intermediate_size": 28,
    "window_size": 16,
    "fullatt_block_indexes": [1],
}


class QwenCases(Cases):
    TEXT = {
        "max_position_embeddings": 160,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 500.0,
            "mrope_section": [1, 1, 1],
        },
        "pad_token_id": 3,
    }
    SIZES = ((24, 40), (16, 16), (40, 24), (12, 70))  # windows cut or not
    SEEN = SEEN
    PROMPTS = (
        f"<|im_start|>user\n{SEEN}Where does this person live?<|im_end|>\n<|im_start|>assistant\n",
        f"<|im_start|>user\n{SEEN}{SEEN}Lima or Accra? {SEEN} Oslo<|im_end|>\n"
        "<|im_start|>assistant\n",
        "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n",
    )
    # A patch's two frames are the same image; all weights of the tower turn by their place.
    WITHOUT_EFFECT = set()
    CASES = {
        "2.5": Case("qwen2_5_vl", text={"num_key_value_heads": 2}, vision=QWEN2_5),
        "2.5-one-key-head-tied": Case(
            "qwen2_5_vl",
            text={"num_key_value_heads": 1, "tie_word_embeddings": True},
            vision=QWEN2_5
            | {"window_size": 8, "fullatt_block_indexes": [0, 2], "hidden_act": "gelu"},
            whole={"tie_word_embeddings": True},
        ),
        "2": Case("qwen2_vl", text={"num_key_value_heads": 4}, vision=QWEN2),
        "2-two-key-heads": Case(
            "qwen2_vl",
            text={"num_key_value_heads": 2},
            vision=QWEN2 | {"mlp_ratio": 2, "hidden_act": "gelu"},
        ),
    }

    def processor(self, case=USUAL):
        images = Qwen2VLImageProcessorPil(
            patch_size=self.PATCH, size={"shortest_edge": 64, "longest_edge": 4096}
        )
        tokens = {
            "start": "<|vision_start|>",
            "end": "<|vision_end|>",
            "video_token": "<|video_pad|>",
            "image_token": "<|image_pad|>",
            "turn": "<|im_end|>",
        }
        return Processor(images, with_tokens(tokenizer(), tokens), "<|image_pad|>")

    def vision(self):
        sizes = {"depth": 3, "num_heads": 2, "in_channels": 3, "patch_size": self.PATCH}
        return {**sizes, "spatial_merge_size": 2, "temporal_patch_size": 2}

    def whole(self, case, words):
        ids = words.convert_tokens_to_ids
        return {
            "image_token_id": ids("<|image_pad|>"),
            "video_token_id": ids("<|video_pad|>"),
            "vision_start_token_id": ids("<|vision_start|>"),
            "vision_end_token_id": ids("<|vision_end|>"),
            **case.whole,
        }

    def torch_inputs(self, folder, side, prompts=None, images=None):
        """Return what `Qwen2_5_VLProcessor` is written to make of prompts, without torchvision."""
        parts = self.processor()
        token, merge = parts.image_token, parts.image_processor.merge_size**2
        flat = [image for several in images or [] for image in several]
        pixels = parts.image_processor(images=flat, return_tensors="pt") if flat else {}
        counts = iter([int(grid.prod()) // merge for grid in pixels.get("image_grid_thw", [])])

        def expanded(prompt):
            first, *others = prompt.split(token)
            return first + "".join(token * next(counts) + other for other in others)

        parts.tokenizer.padding_side = side
        texts = [expanded(prompt) for prompt in prompts or self.PROMPTS]
        inputs = parts.tokenizer(texts, return_tensors="pt", padding=True)
        inputs.pop("token_type_ids", None)
        is_image = inputs["input_ids"] == parts.tokenizer.convert_tokens_to_ids(token)
        return {**inputs, "mm_token_type_ids": is_image.to(torch.int32), **pixels}

    def tower_of(self, name):
        if name.endswith(("mlp.down_proj", "mlp.fc2")):
            return "vision" if "visual" in name else "text"
        return None

    def tokens_of_vision_inputs(self, inputs, tower, count):
        """Return which of the packed patches are each vision input's."""
        ends = inputs["image_grid_thw"].prod(dim=1).cumsum(0).numpy()
        number = np.searchsorted(ends, np.arange(count), side="right")
        return number[None] == np.arange(len(ends))[:, None]


cases = QwenCases()

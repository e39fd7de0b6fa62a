"""Tiny Idefics2s: images of any size, whole and split, and a perceiver."""

import transformers
from cases import TEXT, USUAL, Case, Cases, tokenizer
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

from manu_jax.models.families.idefics2 import FAKE
from manu_jax.models.families.tiny import with_tokens

PERCEIVER = {
    "hidden_size": TEXT["hidden_size"],
    "rms_norm_eps": 1e-4,
    "resampler_n_latents": 5,
    "resampler_depth": 2,
    "resampler_n_heads": 4,
    "resampler_head_dim": 6,
}
# Part of a PyTorch module's name → the tower whose neurons enter it, and how its name ends
MODULES = {
    "text_model": ("text", "mlp.down_proj"),
    "vision_model": ("vision", "mlp.fc2"),
    "modality_projection": ("projection", "down_proj"),
    "perceiver_resampler": ("resampler", "mlp.down_proj"),
}


class Idefics2Cases(Cases):
    MODEL_TYPE = "idefics2"
    SIDE = 24  # a grid of 6 × 6 patches
    TEXT = {"model_type": "mistral", "sliding_window": None, "max_position_embeddings": 160}
    VISION = {"hidden_act": "gelu_pytorch_tanh"}
    SIZES = ((20, 13), (20, 13), (24, 24), (9, 17))  # whole patches or not
    PROMPTS = (
        "User:<image>Where does this person live?<end_of_utterance>\nAssistant:",
        "User:<image><image>\nLima or Accra? <image> Oslo<end_of_utterance>\nAssistant:",
        "User: Where?<end_of_utterance>\nAssistant:",
    )
    CASES = {
        "whole-images": Case(text={"num_key_value_heads": 2}, perceiver={"num_key_value_heads": 2}),
        "split-images": Case(
            text={"num_key_value_heads": 4},
            perceiver={"num_key_value_heads": 4},
            images={"do_image_splitting": True},
        ),
        "one-key-head-tied-window": Case(
            text={"num_key_value_heads": 1, "sliding_window": 7, "tie_word_embeddings": True},
            perceiver={"num_key_value_heads": 1, "hidden_act": "gelu", "resampler_n_latents": 3},
            vision={"hidden_act": "gelu"},
            whole={"tie_word_embeddings": True},
        ),
    }

    def processor(self, case=USUAL):
        size = {"shortest_edge": 8, "longest_edge": self.SIDE}
        return transformers.Idefics2Processor(
            image_processor=Idefics2ImageProcessorPil(
                **{"size": size, "do_image_splitting": False, **case.images}
            ),
            tokenizer=with_tokens(tokenizer(), {"image_boundary_token": FAKE}),
            image_seq_len=case.perceiver.get("resampler_n_latents", 5),
        )

    def whole(self, case, words):
        return {
            "perceiver_config": {**PERCEIVER, **case.perceiver},
            "image_token_id": words.convert_tokens_to_ids("<image>"),
            **case.whole,
        }

    def tower_of(self, name):
        for part, (tower, end) in MODULES.items():
            if part in name and name.endswith(end):
                return tower
        return None

    def counts_of_rows(self, inputs):
        return inputs["pixel_attention_mask"].numpy().any((2, 3)).sum(1)

    def tokens_of_vision_inputs(self, inputs, tower, count):
        if tower == "resampler":
            return super().tokens_of_vision_inputs(inputs, tower, count)
        mask = inputs["pixel_attention_mask"].numpy()
        mask = mask[mask.any((2, 3))]  # the vision inputs that are there
        size = self.PATCH
        rows, columns = (pixels // size for pixels in mask.shape[1:])
        split = mask[:, : rows * size, : columns * size].reshape(-1, rows, size, columns, size)
        return split.all((2, 4)).reshape(len(mask), -1)


cases = Idefics2Cases()

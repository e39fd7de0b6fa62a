"""Tiny Llama 3.2 Visions: images of several tiles, layers of both kinds in two orders."""

import numpy as np
import torch
import transformers
from cases import USUAL, Case, Cases, tokenizer
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from manu_jax.models.families.mllama import IMAGE
from manu_jax.models.families.tiny import with_tokens

TWO_TILES = {"max_num_tiles": 2, "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


class MllamaCases(Cases):
    MODEL_TYPE = "mllama"
    TEXT = {
        "num_hidden_layers": 5,
        "cross_attention_layers": [1, 3],
        "max_position_embeddings": 160,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    # Each with as many images: in PyTorch the empty images that fill up a batch are seen.
    PROMPTS = (
        f"USER: {IMAGE}Where does this person live? {IMAGE}Lima or Accra?\nASSISTANT:",
        f"She lives in {IMAGE}{IMAGE} Oslo",
        f"{IMAGE}USER: Where? {IMAGE}",
    )
    IMAGE_COUNTS = (2, 2, 2)
    # One tile, wide, tall, square; one tile, two
    SIZES = ((11, 12), (13, 35), (40, 11), (20, 22), (9, 8), (11, 19))
    WITHOUT_EFFECT = set()
    CASES = {
        "four-tiles": Case(),
        "two-tiles-one-key-head-llama3-rope": Case(
            text={
                "cross_attention_layers": [1, 2, 4],
                "num_key_value_heads": 1,
                "rope_parameters": LLAMA_3,
            },
            vision={**TWO_TILES, "intermediate_layers_indices": [1], "vision_output_dim": 32},
            images={"max_image_tiles": 2},
        ),
    }

    def processor(self, case=USUAL):
        images = {"size": {"height": self.SIDE, "width": self.SIDE}, **case.images}
        return transformers.MllamaProcessor(
            MllamaImageProcessorPil(**images), with_tokens(tokenizer(), {"image_token": IMAGE})
        )

    def vision(self):
        sizes = super().vision()
        return {
            **sizes,
            "attention_heads": sizes.pop("num_attention_heads"),
            "num_global_layers": 2,
            "intermediate_layers_indices": [0, 2],
            "vision_output_dim": 3 * sizes["hidden_size"],
        }

    def whole(self, case, words):
        return {"image_token_index": words.convert_tokens_to_ids(IMAGE), **case.whole}

    def build(self, case, words):
        # The head lacks the image token, which is the last.
        text = {"vocab_size": len(words) - 1, **case.text}
        return super().build(Case(case.model_type, text, case.vision, whole=case.whole), words)

    def randomise(self, model):
        super().randomise(model)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.shape == (1,):  # gates: far from closed
                    parameter += 0.7

    def text_prompts(self):
        return ["USER: Where does this person live?\nASSISTANT:", "Lima or Accra?"]

    def torch_inputs(self, folder, side, prompts=None, images=None):
        """Return inputs whose first token is written once, as the models' chat template does."""
        processor = self.torch_processor(folder)
        processor.tokenizer.padding_side = side
        prompts = self.PROMPTS if prompts is None else prompts
        texts = [processor.tokenizer.bos_token + prompt for prompt in prompts]
        given = {"images": images} if images and any(images) else {}
        return processor(
            text=texts, return_tensors="pt", padding=True, add_special_tokens=False, **given
        )

    def export_name(self, name):
        return name

    def tokens_of_vision_inputs(self, inputs, tower, count):
        mask_BIW = inputs["aspect_ratio_mask"].numpy()
        mask_IW = mask_BIW.reshape(-1, mask_BIW.shape[-1])
        is_token_P = np.arange(count // mask_IW.shape[1]) < (self.SIDE // self.PATCH) ** 2 + 1
        return (mask_IW[:, :, None] * is_token_P).reshape(len(mask_IW), count).astype(bool)

    def gated_tokens_of_vision_inputs(self, inputs, tower, count):
        """Return all tokens: those of empty tiles are seen by the others."""
        return super().tokens_of_vision_inputs(inputs, tower, count)


cases = MllamaCases()

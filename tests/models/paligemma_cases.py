"""Tiny PaliGemmas: decoders of Gemma and Gemma 2."""

import torch
import transformers
from cases import SIGLIP, USUAL, Case, Cases, tokenizer
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from manu_jax.models.families.tiny import with_tokens


class PaliGemmaCases(Cases):
    MODEL_TYPE = "paligemma"
    TEXT = {"max_position_embeddings": 96, "head_dim": 6}
    VISION = SIGLIP
    PROMPTS = (
        "<image><s>Where does this person live?\n",
        "<image><image><s>Lima or Accra? Oslo\n",
        "<s>Where?\n",
    )
    IMAGE_COUNTS = (1, 2, 0)
    SIZES = ((15, 13), (15, 14), (15, 15))
    NORMS_ADD_ONE = True
    CASES = {
        "gemma": Case(text={"model_type": "gemma", "num_key_value_heads": 1}),
        "gemma-all-key-heads": Case(
            text={"model_type": "gemma", "num_key_value_heads": 4, "attention_bias": True},
            vision={"hidden_act": "gelu"},
        ),
        "gemma2": Case(
            # Small caps and a window within the prompt, so that each makes a difference.
            text={
                "model_type": "gemma2",
                "num_key_value_heads": 2,
                "sliding_window": 5,
                "query_pre_attn_scalar": 12,
                "attn_logit_softcapping": 2.0,
                "final_logit_softcapping": 3.0,
            },
        ),
        "gemma2-no-caps": Case(
            text={
                "model_type": "gemma2",
                "num_key_value_heads": 4,
                "attn_logit_softcapping": None,
                "final_logit_softcapping": None,
                "layer_types": ["full_attention", "sliding_attention"],
                "sliding_window": 4,
            },
        ),
    }

    def processor(self, case=USUAL):
        images = SiglipImageProcessorPil(size={"height": self.SIDE, "width": self.SIDE})
        images.image_seq_length = (self.SIDE // self.PATCH) ** 2
        return transformers.PaliGemmaProcessor(images, with_tokens(tokenizer(), {}, begins=False))

    def whole(self, case, words):
        return {"projection_dim": 24, "hidden_size": 24, **super().whole(case, words)}

    def torch_inputs(self, folder, side, prompts=None, images=None):
        """Differs: `PaliGemmaProcessor` can't mix prompts with images and without."""
        processor = self.torch_processor(folder)
        processor.tokenizer.padding_side = side
        flat = [image for several in images or [] for image in several]
        texts = [
            text.replace("<image>", "<image>" * processor.image_seq_length)
            for text in prompts or self.PROMPTS
        ]
        inputs = processor.tokenizer(texts, return_tensors="pt", padding=True)
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        if flat:
            pixels = processor.image_processor(flat, return_tensors="pt")["pixel_values"]
            inputs["pixel_values"] = pixels
        return inputs


cases = PaliGemmaCases()

"""Tiny Gemma 3s: two kinds of layers, windows shorter than an image's tokens."""

import transformers
from cases import SIGLIP, USUAL, Case, Cases, tokenizer
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from manu_jax.models.families.tiny import with_tokens

TURN, MODEL = "<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"
PLACEHOLDER = "<start_of_image>"


class Gemma3Cases(Cases):
    MODEL_TYPE = "gemma3"
    SIDE = 16
    TOKENS = 4  # of an image; 2 × 2 patches each
    TEXT = {"model_type": "gemma3_text", "max_position_embeddings": 192, "head_dim": 6}
    VISION = SIGLIP
    PROMPTS = (
        f"{TURN}{PLACEHOLDER}Where does this person live?{MODEL}",
        f"{TURN}{PLACEHOLDER}{PLACEHOLDER}Lima or {PLACEHOLDER} Accra?{MODEL}",
        f"{TURN}Where?{MODEL}",
    )
    SIZES = ((14, 15), (10, 33), (40, 9), (18, 12))  # square, wide and tall
    NORMS_ADD_ONE = True
    CASES = {
        # Both kinds of layer, and a window shorter than an image's tokens.
        "one-key-head": Case(
            text={
                "num_key_value_heads": 1,
                "layer_types": ["sliding_attention", "full_attention"],
                "sliding_window": 3,
                "query_pre_attn_scalar": 12,
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 300.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                },
            }
        ),
        "all-key-heads-untied": Case(
            text={
                "num_key_value_heads": 4,
                "num_hidden_layers": 3,
                "sliding_window_pattern": 3,
                "sliding_window": 5,
                "attention_bias": True,
                "tie_word_embeddings": False,
            },
            vision={"hidden_act": "gelu"},
            whole={"tie_word_embeddings": False},
            # Gemma3Processor makes no crops where only its file asks for them.
            images={"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 4},
        ),
        "hidden-activation-all-local": Case(
            text={"hidden_activation": "silu", "sliding_window": 4, "tie_word_embeddings": True}
        ),
    }

    def processor(self, case=USUAL):
        tokens = {"image_token": "<image_soft_token>"}
        tokens |= {"boi_token": PLACEHOLDER, "eoi_token": "<end_of_image>"}
        tokens |= {"opening": "<start_of_turn>", "closing": "<end_of_turn>"}
        size = {"height": self.SIDE, "width": self.SIDE}
        return transformers.Gemma3Processor(
            Gemma3ImageProcessorPil(size=size, **case.images),
            with_tokens(tokenizer(), tokens),
            image_seq_length=self.TOKENS,
        )

    def whole(self, case, words):
        ids = words.convert_tokens_to_ids
        return {
            "mm_tokens_per_image": self.TOKENS,
            "image_token_index": ids(words.image_token),
            "boi_token_index": ids(words.boi_token),
            "eoi_token_index": ids(words.eoi_token),
            "tie_word_embeddings": True,
            **case.whole,
        }

    def counts_of_rows(self, inputs):
        return (inputs["token_type_ids"].sum(dim=1) // self.TOKENS).tolist()


cases = Gemma3Cases()

"""Tiny InternVLs: tiles by an image's shape, both kinds of towers, Qwen2 and Llama decoders."""

import transformers
from cases import USUAL, Case, Cases, tokenizer
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from manu_jax.models.families.internvl import PLACEHOLDER
from manu_jax.models.families.tiny import with_tokens
from manu_jax.models.inputs.processing import Processor


class ImagesOnly(transformers.InternVLProcessor):
    """The processor of transformers without one of videos, which wants torchvision."""

    @classmethod
    def get_attributes(cls):
        return ["image_processor", "tokenizer", "video_processor"]

    def check_argument_for_proper_class(self, argument_name, argument):
        del argument_name, argument


class InternVLCases(Cases):
    MODEL_TYPE = "internvl"
    SIDE = 16  # 4 × 4 patches a tile, four tokens
    TEXT = {"model_type": "qwen2", "max_position_embeddings": 256}
    VISION = {"attention_bias": True, "layer_scale_init_value": 0.5}
    # Three tiles side by side and the whole, one tile alone, two above each other, six.
    SIZES = ((15, 50), (16, 16), (40, 20), (24, 37))
    PROMPTS = (
        f"<|im_start|>user\n{PLACEHOLDER}\nWhere does this person live?<|im_end|>\n"
        "<|im_start|>assistant\n",
        f"<|im_start|>user\n{PLACEHOLDER}\n{PLACEHOLDER}\nLima? {PLACEHOLDER}<|im_end|>\n"
        "<|im_start|>assistant\n",
        "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n",
    )
    CASES = {
        "small-tower": Case(
            text={"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0}}
        ),
        "large-tower-one-key-head-tied": Case(
            text={"num_key_value_heads": 1},
            vision={"attention_bias": False, "norm_type": "rms_norm", "use_qk_norm": True},
            whole={"tie_word_embeddings": True, "projector_hidden_act": "relu"},
        ),
        "llama": Case(
            text={"model_type": "llama", "num_key_value_heads": 4, "head_dim": 8},
            vision={"hidden_act": "quick_gelu", "use_qk_norm": True},
        ),
    }

    def processor(self, case=USUAL):
        images = GotOcr2ImageProcessorPil(
            size={"height": self.SIDE, "width": self.SIDE}, max_patches=6
        )
        tokens = {
            "image_token": PLACEHOLDER,
            "context_image_token": PLACEHOLDER,
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "video_token": "<video>",
            "turn": "<|im_end|>",
        }
        return Processor(images, with_tokens(tokenizer(), tokens), PLACEHOLDER)

    def torch_processor(self, folder):
        images = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        words = transformers.AutoTokenizer.from_pretrained(folder)
        return ImagesOnly(images, words, None, image_seq_length=self.SIDE**2 // 64)

    def vision(self):
        sizes = super().vision()
        return {**sizes, "image_size": [self.SIDE] * 2, "patch_size": [self.PATCH] * 2}

    def whole(self, case, words):
        token = words.convert_tokens_to_ids(PLACEHOLDER)
        return {"image_token_id": token, "tie_word_embeddings": False, **case.whole}

    def torch_inputs(self, folder, side, prompts=None, images=None):
        inputs = super().torch_inputs(folder, side, prompts, images)
        inputs.pop("token_type_ids", None)
        return inputs

    def export_name(self, name):
        return name

    def counts_of_rows(self, inputs):
        """Return how many tiles the images of each of PROMPTS have."""
        tokens = (inputs["input_ids"] == self.image_token_of(inputs)).sum(dim=1)
        return [int(count) // (self.SIDE**2 // 64) for count in tokens]

    def image_token_of(self, inputs):
        del inputs
        return self.processor().tokenizer.convert_tokens_to_ids(PLACEHOLDER)


cases = InternVLCases()

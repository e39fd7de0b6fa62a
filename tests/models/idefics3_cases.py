"""Tiny Idefics3s and SmolVLMs: images in tiles, whole and split."""

import transformers
from cases import USUAL, Case, Cases, tokenizer
from idefics2_cases import Idefics2Cases
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from manu_jax.models.families.idefics3 import FAKE, PLACEHOLDER
from manu_jax.models.families.tiny import with_tokens
from manu_jax.models.inputs.processing import Processor


class Idefics3Cases(Cases):
    SIDE = 16  # 4 × 4 patches, 2 × 2 tokens a tile
    TEXT = {"model_type": "llama", "max_position_embeddings": 256}
    VISION = {"hidden_act": "gelu_pytorch_tanh"}
    SIZES = ((20, 13), (24, 24), (9, 40), (16, 16))
    PROMPTS = Idefics2Cases.PROMPTS
    CASES = {
        "idefics3-split": Case("idefics3", text={"num_key_value_heads": 2}),
        "idefics3-whole": Case(
            "idefics3",
            text={"num_key_value_heads": 4},
            vision={"hidden_act": "gelu"},
            images={"do_image_splitting": False},
        ),
        "smolvlm-tied": Case(
            "smolvlm",
            text={"num_key_value_heads": 1, "tie_word_embeddings": True},
            whole={"scale_factor": 4, "tie_word_embeddings": True},
        ),
    }

    def processor(self, case=USUAL):
        size = {"longest_edge": 2 * self.SIDE}
        images = Idefics3ImageProcessorPil(
            **{"size": size, "max_image_size": {"longest_edge": self.SIDE}, **case.images}
        )
        tags = {f"tag_{y}_{x}": f"<row_{y}_col_{x}>" for y in (1, 2) for x in (1, 2)}
        tokens = {"fake": FAKE, "whole": "<global-img>", "end": "<end_of_utterance>", **tags}
        return Processor(images, with_tokens(tokenizer(), tokens), PLACEHOLDER)

    def whole(self, case, words):
        token = words.convert_tokens_to_ids(PLACEHOLDER)
        return {"image_token_id": token, "scale_factor": 2, **case.whole}

    def torch_processor(self, folder):
        scale = transformers.AutoConfig.from_pretrained(folder).scale_factor
        return transformers.Idefics3Processor(
            transformers.AutoImageProcessor.from_pretrained(folder, backend="pil"),
            transformers.AutoTokenizer.from_pretrained(folder),
            image_seq_len=(self.SIDE // self.PATCH // scale) ** 2,
        )

    def counts_of_rows(self, inputs):
        return inputs["pixel_attention_mask"].numpy().any((2, 3)).sum(1)


cases = Idefics3Cases()

"""Tiny Llamas: a decoder alone, with grouped key heads, biases and rotary scalings."""

import transformers
from cases import TEXT, USUAL, Case, Cases, tokenizer

from manu_jax.models.inputs.processing import TextProcessor


class LlamaCases(Cases):
    MODEL_TYPE = "llama"
    PROMPTS = (
        "Question: Where does Ada live?\nAnswer:",
        "Lima or Accra?",
        "Where? She lives in",
    )
    IMAGE_COUNTS = (0, 0, 0)
    SIZES = ()
    WITHOUT_EFFECT = set()
    CASES = {
        "grouped-tied": Case(text={"tie_word_embeddings": True}),
        "all-key-heads": Case(text={"num_key_value_heads": 4, "head_dim": 8}),
        "biases-llama3-rope": Case(
            text={
                "attention_bias": True,
                "mlp_bias": True,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 500.0,
                    "factor": 4.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 16,
                },
            }
        ),
    }

    def processor(self, case=USUAL):
        return TextProcessor(tokenizer())

    def build(self, case, words):
        sizes = {"vocab_size": len(words), "max_position_embeddings": 96}
        config = transformers.LlamaConfig(**{**TEXT, **sizes, **case.text})
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        self.randomise(model)
        return model

    def torch_processor(self, folder):
        return transformers.AutoTokenizer.from_pretrained(folder)

    def torch_inputs(self, folder, side, prompts=None, images=None):
        words = self.torch_processor(folder)
        words.padding_side = side
        prompts = list(self.PROMPTS if prompts is None else prompts)
        return words(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)


cases = LlamaCases()

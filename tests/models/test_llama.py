"""Llama, a decoder alone: released sizes, what it refuses, its prompts."""

import jax
import numpy as np
import pytest
import torch
import transformers
from llama_cases import cases as llama
from PIL import Image

from manu_jax import leaves as leaf_names
from manu_jax.config import ModelSection
from manu_jax.leaves import num_parameters
from manu_jax.models import created
from manu_jax.models import loaded as loading
from manu_jax.models.families.llama import FAMILY
from manu_jax.types import ManuError, question_sample

SIZES = {
    "smollm2-135m": (134_515_008, (30, 1536)),
    "llama-3.1-8b": (8_030_261_248, (32, 14336)),
}
SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "rope_theta": 100000, "tie_word_embeddings": True,
    "is_llama_config": True, "rope_interleaved": False,
}  # fmt: skip
LLAMA_3 = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "rope_scaling": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3",
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
CONFIGS = {"smollm2-135m": SMOLLM2, "llama-3.1-8b": LLAMA_3}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    llama.write_case("grouped-tied", path)
    return path


@pytest.mark.parametrize("name", SIZES)
def test_released_sizes_have_the_published_counts(name):
    values = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **CONFIGS[name]}
    config = FAMILY.config_from_hf(values, name)
    model = FAMILY.abstract(config)
    assert num_parameters(model) == SIZES[name][0]
    assert FAMILY.towers(config) == {"text": SIZES[name][1]}
    shapes = leaf_names.shapes(model)
    ours = [n for entry in FAMILY.weight_table(config) for n in entry.names(shapes[entry.path])]
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**values))
    stored = set(theirs.state_dict()) - set(FAMILY.tied(config))
    assert sorted(ours) == sorted(stored)
    assert config.text.rope.kind == ("llama3" if name == "llama-3.1-8b" else "default")


def test_a_field_that_is_not_handled_is_refused_by_name():
    values = {"model_type": "llama", **SMOLLM2, "sliding_window": 128}
    with pytest.raises(ManuError, match="config.json: .*\n  sliding_window = 128: not handled"):
        FAMILY.config_from_hf(values, "config.json")


def test_a_sample_with_an_image_is_refused_and_a_placeholder_is_plain_text(folder):
    loaded = loading.load(folder)
    image = Image.new("RGB", (8, 8))
    with pytest.raises(ManuError, match="it has 1 images, and the model takes none"):
        loaded.encode(question_sample("<image>\nWhere?", "Oslo", [image]))
    encoded = loaded.encode(question_sample("Where is an <image>?", " Oslo"))
    assert encoded.vision_inputs == () and (encoded.feature_index_T == -1).all()
    assert loaded.towers == {"text": (2, 20)}


def test_prompts_without_a_chat_template_are_the_questions_as_they_are(folder):
    template = loading.load(folder).template
    assert template.prompt("The capital of Peru is", "text") == "The capital of Peru is"
    assert template.reply("Oslo") == " Oslo" and template.end == "</s>"


def test_a_chat_template_of_plain_text_is_read_without_an_image(folder, tmp_path):
    words = transformers.AutoTokenizer.from_pretrained(folder)
    words.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    words.chat_template = CHATML
    model = llama.build(llama.CASES["grouped-tied"], words)
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    template = loading.load(tmp_path).template
    expected = "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    assert template.prompt("Where?", "text") == expected
    assert template.end == "<|im_end|>"


def test_a_tiny_one_is_made_without_sizes_of_a_tower(folder):
    sizes = {"width": 16, "num_layers": 2, "num_heads": 2, "num_key_heads": 1, "num_neurons": 24}
    section = ModelSection(family="llama", text=sizes)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    made = created.create(section, words, jax.random.key(0))
    assert made.towers == {"text": (2, 24)}
    batch = made.batch(["Where?"])
    assert np.isfinite(made.model(batch).logits_BTV).all()

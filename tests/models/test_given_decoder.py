"""A model for images around a language model's folder: its weights, its tokenizer, its prompts."""

import json

import jax
import numpy as np
import pytest
import torch
from hf_folders import edit_config, rewrite
from transformers import LlamaConfig, LlamaForCausalLM

from manu_jax.config import ModelSection, VisionSize
from manu_jax.leaves import leaves
from manu_jax.models.created import create, create_without_weights
from manu_jax.models.loaded import load, save_pretrained
from manu_jax.training.tokenizer import train_tokenizer
from manu_jax.types import BatchShape, ManuError, Sample

VISION = VisionSize(
    image_size=16, patch_size=8, width=16, num_layers=2, num_heads=2, num_neurons=24
)
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 96, "rope_theta": 5000.0,
}  # fmt: skip


def text_tokenizer():
    """A tokenizer that knows of no images."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    made = train_tokenizer(["a text about Oslo and Lima"] * 3, 300)
    values = json.loads(made.backend_tokenizer.to_str())
    values["added_tokens"] = [t for t in values["added_tokens"] if t["content"] != "<image>"]
    values["model"]["vocab"].pop("<image>")
    order = sorted(values["model"]["vocab"], key=values["model"]["vocab"].get)
    values["model"]["vocab"] = {token: number for number, token in enumerate(order)}
    for token in values["added_tokens"]:
        token["id"] = values["model"]["vocab"][token["content"]]
    values["post_processor"] = None
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(values)),
        bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
    )  # fmt: skip


def write(folder, *, is_tied=True):
    tokenizer = text_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=is_tied, **SIZES)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # so that logits are not all near 0
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "text")
    return tmp_path / "text"


def section(folder, **values):
    return ModelSection(decoder=str(folder), vision=VISION, **values)


@pytest.mark.parametrize("is_tied", [True, False])
def test_texts_get_the_logits_of_the_language_model(tmp_path, is_tied):
    reference = write(tmp_path / "text", is_tied=is_tied)
    made = create(section(tmp_path / "text"), None, jax.random.key(0))
    encoded = made.encode(Sample((("a text about Oslo", False), (" and Lima", True)), ()))
    batch = made.collate([encoded], BatchShape(length=encoded.num_tokens))
    with torch.no_grad():
        ids = torch.tensor(batch.token_ids_BT.astype(np.int64))
        expected = reference(input_ids=ids).logits.numpy()
    found = np.asarray(made.model(batch).logits_BTV)
    # One more token, that of images.
    assert found.shape[-1] == expected.shape[-1] + 1
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found[..., :-1], expected, atol=1e-4, rtol=0)


def test_it_is_saved_as_a_llava_that_loads_with_the_same_prompts(folder, tmp_path):
    made = create(section(folder), None, jax.random.key(0))
    save_pretrained(made, tmp_path / "llava")
    again = load(tmp_path / "llava")
    for name, leaf in leaves(again.model).items():
        assert np.array_equal(leaf, leaves(made.model)[name]), name
    prompt = "<user><image>\nWhere?</s><assistant>"
    assert made.template.prompt("Where?", "image") == prompt
    assert again.template.prompt("Where?", "image") == prompt
    strings = create_without_weights(section(folder, prompt="benchmark"), None).template
    assert strings.prompt("Where?", "image") == "USER: <image>\nWhere?\nASSISTANT:"
    assert strings.end == "</s>"


def test_tower_and_projector_are_drawn_by_the_key_and_the_decoder_is_not(folder):
    one, two = (leaves(create(section(folder), None, jax.random.key(n)).model) for n in (0, 1))
    for name in one:
        is_drawn = not name.startswith("text.") and "norm" not in name and "bias" not in name
        assert np.array_equal(one[name], two[name]) != is_drawn, name


def test_shapes_are_known_without_the_weights(folder):
    empty = create_without_weights(section(folder), None)
    (folder / "model.safetensors").unlink()
    assert empty.towers == {"text": (2, 48), "vision": (1, 24)}
    assert create_without_weights(section(folder), None).config == empty.config


def test_another_decoder_and_a_folder_without_config_are_refused(folder, tmp_path):
    edit_config(folder, model_type="gpt2")
    with pytest.raises(ManuError, match="model_type 'gpt2'; known: llama, mistral, qwen2"):
        create(section(folder), None, jax.random.key(0))
    with pytest.raises(ManuError, match="model.decoder: .*config.json can't be read"):
        create(section(tmp_path), None, jax.random.key(0))


def test_a_tensor_that_is_missing_or_left_over_is_named(folder):
    names = {"model.norm.weight": "stranger"}
    rewrite(folder, lambda found: {names.get(name, name): found[name] for name in found})
    with pytest.raises(ManuError, match="1 missing: model.norm.weight\n  1 left over: stranger"):
        create(section(folder), None, jax.random.key(0))


@pytest.mark.parametrize(
    "values, told",
    [
        ({"family": "paligemma"}, "leave out family and text"),
        ({"text": {"width": 64}}, "leave out family and text"),
    ],
)
def test_what_a_decoder_leaves_open_is_not_given_twice(values, told):
    with pytest.raises(ValueError, match=told):
        ModelSection(decoder="folder", **values)

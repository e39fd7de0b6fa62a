"""What is particular to InternVL3: tiles, tied heads, its config, rotary positions."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers
from cases import DATA, images_of, real
from internvl_cases import cases
from safetensors.numpy import load_file

from manu_jax.models import loaded as loading
from manu_jax.models.families import internvl
from manu_jax.types import ManuError, Sample, question_sample

RELEASED = sorted(path.stem for path in DATA.glob("internvl3*.json"))
FAMILY = internvl.FAMILY


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("internvl")
    return cases.write_case("small-tower", folder), loading.load(folder), folder


SHAPES = [(15, 50), (16, 16), (40, 20), (24, 37), (3, 90), (90, 3), (47, 33), (16, 32), (64, 96)]


@pytest.mark.parametrize("shape", SHAPES)
def test_tiles_and_tokens_are_those_of_the_processor(made, shape):
    _, loaded, folder = made
    prompt, (image,) = cases.PROMPTS[0], images_of([shape])
    inputs = cases.torch_inputs(folder, "right", [prompt], [[image]])
    sample = Sample(((prompt, False),), (image,))
    encoded = loaded.encode(sample)
    assert encoded.token_ids_T.tolist() == inputs["input_ids"][0].tolist()
    batch = loaded.collate([encoded])
    side, patch = cases.SIDE, cases.PATCH
    patches_IYX = inputs["pixel_values"].numpy().reshape(-1, 3, side // 4, patch, side // 4, patch)
    expected = patches_IYX.transpose(0, 2, 4, 3, 5, 1).reshape(len(patches_IYX), side, -1)
    np.testing.assert_array_equal(batch.images.patches_BIPC[0], expected)
    num_image_tokens = (encoded.token_ids_T == loaded.config.image_token).sum()
    assert num_image_tokens == 4 * len(expected) == 4 * encoded.num_images
    ((_, counted),) = loaded.count_tokens([sample])
    assert counted == num_image_tokens


def test_shapes_are_split_into_one_to_six_tiles_and_a_whole(made):
    _, loaded, _ = made
    counts = {
        len(loaded.family.vision_inputs(image, loaded.processor, loaded.config))
        for image in images_of(SHAPES)
    }
    assert {1, 3, 4, 7} <= counts


def test_an_image_processor_of_another_size_is_refused(made):
    _, loaded, _ = made
    images = loaded.processor.image_processor
    before = images.size
    images.size = type(before)(height=20, width=20)
    try:
        with pytest.raises(ManuError, match="20 × 20 pixels, the model takes 16 × 16"):
            loaded.family.vision_inputs(images_of([(9, 9)])[0], loaded.processor, loaded.config)
    finally:
        images.size = before


def test_the_prompt_is_that_of_the_released_template(made):
    _, loaded, _ = made
    usual = loaded.template.prompt("Where?", "image")
    assert usual == ("<|im_start|>user\n<IMG_CONTEXT>\nWhere?<|im_end|>\n<|im_start|>assistant\n")
    assert loaded.template.prompt("Where?", "text") == usual.replace("<IMG_CONTEXT>\n", "")
    other = loaded.template.with_system("Do not tell.").prompt("Where?", "text")
    assert other.startswith("<|im_start|>system\nDo not tell.<|im_end|>\n<|im_start|>user\nWhere?")
    encoded = loaded.encode(question_sample(usual, "Oslo<|im_end|>", images_of([(15, 50)])))
    assert encoded.token_ids_T[-1] in loaded.eos_ids and encoded.loss_weights_T[-1] == 1
    assert encoded.num_images == 4


@pytest.mark.parametrize("name", RELEASED)
def test_what_transformers_writes_says_what_the_released_config_says(name):
    values = real(name)
    config = FAMILY.config_from_hf(values, name)
    assert config.num_features(config.num_patches) == values["image_seq_length"] == 256
    assert not config.text.is_tied
    written = json.loads(
        transformers.InternVLConfig.from_dict(values).to_json_string(use_diff=False)
    )
    # Version 5 takes a head to be tied where the whole says nothing, and asks the files then.
    assert written.pop("tie_word_embeddings") is True
    assert FAMILY.config_from_hf(written, name) == config


@pytest.mark.parametrize("whole", [None, True, False])
@pytest.mark.parametrize("text", [None, True, False])
def test_the_whole_says_whether_the_head_is_tied_and_then_the_decoder(whole, text):
    values = real("internvl3-1b")
    for part, flag in ((values, whole), (values["text_config"], text)):
        if flag is not None:
            part["tie_word_embeddings"] = flag
    assert FAMILY.config_from_hf(values).text.is_tied == bool(text if whole is None else whole)


@pytest.mark.parametrize("is_silent", [True, False])
def test_a_head_of_its_own_is_read_or_refused(made, tmp_path, is_silent):
    """As the released files are: no word of tying in config.json. transformers 5 reads them so."""
    reference, loaded, folder = made
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    values = json.loads((tmp_path / "config.json").read_text())
    assert values.pop("tie_word_embeddings") is False
    if not is_silent:
        values["tie_word_embeddings"] = True
    (tmp_path / "config.json").write_text(json.dumps(values))
    if not is_silent:
        with pytest.raises(ManuError, match="Set tie_word_embeddings to false"):
            loading.load(tmp_path)
        return
    head_VD = load_file(tmp_path / "model.safetensors")["language_model.lm_head.weight"]
    found = loading.load(tmp_path)
    np.testing.assert_array_equal(found.model.text.head_DV[...].T, head_VD)
    theirs = type(reference).from_pretrained(tmp_path)
    np.testing.assert_array_equal(theirs.lm_head.weight.detach().numpy(), head_VD)


def test_dynamic_rotary_positions_are_the_usual_ones_within_the_context(made):
    """Beyond it transformers would stretch them; no prompt is longer, nor an answer."""
    reference, loaded, _ = made
    rope, context = loaded.config.text.rope, loaded.config.text.context
    assert (rope.kind, rope.factor, rope.theta, context) == ("default", 1.0, 500.0, 256)
    theirs = reference.model.language_model.rotary_emb
    theirs(torch.zeros(1), torch.arange(context)[None])
    own = rope.frequencies_H(loaded.config.text.head_size)
    np.testing.assert_allclose(own, theirs.inv_freq.numpy(), rtol=1e-6)
    theirs(torch.zeros(1), torch.arange(context + 9)[None])
    assert np.abs(own - theirs.inv_freq.numpy()).max() > 1e-4
    with pytest.raises(ManuError, match="the model's context is 256"):
        loaded.batch(["Where? " * 256])


def test_both_towers_are_read():
    small, large = (
        FAMILY.config_from_hf(real(f"internvl3-{size}")).vision for size in ("8b", "38b")
    )
    assert small.has_qkv_bias and not small.has_qk_norms and not small.has_rms_norms
    assert not large.has_qkv_bias and large.has_qk_norms and large.has_rms_norms
    assert (large.num_layers, large.num_heads, large.head_size) == (45, 25, 128)
    one_number = real("internvl3-8b")
    one_number["vision_config"] |= {"image_size": 448, "patch_size": 14}
    assert FAMILY.config_from_hf(one_number).vision == small
    assert dataclasses.replace(small, image_size=28).num_patches == 4


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("", "downsample_ratio", 0.25),
        ("", "vision_feature_layer", -2),
        ("", "vision_feature_select_strategy", "full"),
        ("", "projector_hidden_act", "swish9"),
        ("", "ps_version", "v1"),
        ("", "tie_word_embeddings", "no"),
        ("text_config", "model_type", "qwen3"),
        ("text_config", "tie_word_embeddings", 1),
        ("text_config", "rope_scaling", {"rope_type": "yarn", "factor": 2.0}),
        ("text_config", "rope_scaling", {"rope_type": "dynamic", "factor": -2.0}),
        ("vision_config", "model_type", "intern_vit_6b"),
        ("vision_config", "image_size", [448, 224]),
        ("vision_config", "image_size", 42),
        ("vision_config", "patch_size", [14, 14, 14]),
        ("vision_config", "num_channels", 4),
        ("vision_config", "norm_type", "batch_norm"),
        ("vision_config", "use_mask_token", True),
        ("vision_config", "use_mean_pooling", False),
        ("vision_config", "use_absolute_position_embeddings", False),
        ("vision_config", "drop_path_rate", 0.1),
    ],
)
def test_a_field_that_is_not_handled_is_refused_by_name(section, field, value):
    values = real("internvl3-8b")
    (values[section] if section else values)[field] = value
    expected = "3 patches a side" if value == 42 else field
    with pytest.raises(ManuError, match=expected):
        FAMILY.config_from_hf(values)

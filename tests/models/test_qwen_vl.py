"""What is particular to Qwen2-VL and Qwen2.5-VL: tokens, positions, both forms of config."""

import json

import numpy as np
import pytest
import transformers
from cases import DATA, real
from PIL import Image
from qwen_cases import cases

from manu_jax.data.batches import encode_all
from manu_jax.models import loaded as loading
from manu_jax.models.families import qwen_vl
from manu_jax.models.families.registry import FAMILIES
from manu_jax.types import ManuError, Sample, question_sample

RELEASED = sorted(path.stem for path in DATA.glob("qwen2*.json"))


@pytest.fixture(scope="module", params=["2.5", "2"])
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    return cases.write_case(request.param, folder), loading.load(folder), folder


def test_positions_are_those_of_get_rope_index(made):
    reference, loaded, folder = made
    images = cases.image_lists()
    for side in ("left", "right"):
        inputs = cases.torch_inputs(folder, side, images=images)
        expected, _ = reference.model.get_rope_index(
            inputs["input_ids"],
            inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=inputs["attention_mask"],
        )
        batch = loaded.batch(cases.PROMPTS, images, padding_side=side)
        np.testing.assert_array_equal(batch.rope_BT3, expected.permute(1, 2, 0).numpy())


def test_patches_and_counts_are_those_of_the_image_processor(made):
    _, loaded, folder = made
    images = cases.image_lists()[1]
    prompt = cases.PROMPTS[1]
    inputs = cases.torch_inputs(folder, "right", [prompt], [images])
    sample = Sample(((prompt, False),), tuple(images))
    encoded = loaded.encode(sample)
    joined = np.concatenate([vision_input.patches_PC for vision_input in encoded.vision_inputs])
    np.testing.assert_array_equal(joined, inputs["pixel_values"].numpy())
    is_image_T = encoded.token_ids_T == loaded.config.image_token
    assert loaded.count_tokens([sample]) == [((~is_image_T).sum(), is_image_T.sum())]
    assert len({vision_input.num_features for vision_input in encoded.vision_inputs}) > 1


def test_each_token_of_an_image_takes_its_own_feature_in_a_padded_batch(made):
    _, loaded, _ = made
    images = cases.image_lists()[1]
    encoded = loaded.encode(Sample(((cases.PROMPTS[1], False),), tuple(images)))
    batched = loaded.collate([encoded]).images
    room = batched.patches_BIPC.shape[2] // 4
    rows = batched.feature_index_BT[0][batched.feature_index_BT[0] >= 0]
    expected = [
        number * room + index
        for number, vision_input in enumerate(encoded.vision_inputs)
        for index in range(vision_input.num_features)
    ]
    assert rows.tolist() == expected


def test_a_system_prompt_takes_the_place_of_the_usual_one(made):
    _, loaded, _ = made
    usual = loaded.template.prompt("Where?", "image")
    assert usual.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert usual.endswith(f"user\n{cases.SEEN}Where?<|im_end|>\n<|im_start|>assistant\n")
    other = loaded.template.with_system("Do not tell.").prompt("Where?", "text")
    assert other.startswith("<|im_start|>system\nDo not tell.<|im_end|>\n<|im_start|>user\nWhere?")
    encoded = loaded.encode(question_sample(usual, "Oslo<|im_end|>", [IMAGE]))
    assert encoded.token_ids_T[-1] in loaded.eos_ids and encoded.loss_weights_T[-1] == 1


IMAGE = cases.image_lists()[0][0]


@pytest.mark.parametrize("name", ["qwen2.5-vl-3b", "qwen2-vl-7b"])
def test_a_config_in_sections_says_what_a_flat_one_says(name):
    values = real(name)
    chosen = FAMILIES[values["model_type"]]
    theirs = transformers.CONFIG_MAPPING[values["model_type"]].from_dict(values)
    nested = json.loads(theirs.to_json_string(use_diff=False))
    assert "hidden_size" in nested["text_config"]
    assert chosen.config_from_hf(nested, name) == chosen.config_from_hf(values, name)


@pytest.mark.parametrize("name", RELEASED)
def test_released_sizes_share_the_rotary_angles_among_three_positions(name):
    values = real(name)
    config = FAMILIES[values["model_type"]].config_from_hf(values, name)
    assert config.text.rope.sections == (16, 24, 24)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("", "attn_logit_softcapping", 30.0),
        ("", "rope_scaling", {"type": "mrope", "mrope_section": [16, 16, 16]}),
        ("", "rope_scaling", {"type": "yarn", "factor": 4.0, "mrope_section": [16, 24, 24]}),
        ("vision_config", "in_chans", 4),
        ("vision_config", "out_hidden_size", 1024),
        ("vision_config", "spatial_patch_size", 16),
        ("vision_config", "hidden_act", "swish9"),
        ("vision_config", "deepstack_visual_indexes", [5]),
    ],
)
def test_a_field_that_is_not_handled_is_refused_by_name(section, field, value):
    values = real("qwen2.5-vl-7b")
    (values[section] if section else values)[field] = value
    with pytest.raises(ManuError, match="merger's width" if field == "out_hidden_size" else field):
        qwen_vl.QWEN2_5_VL.config_from_hf(values)


def test_an_image_processor_of_another_patch_is_refused(made):
    _, loaded, _ = made
    loaded.processor.image_processor.patch_size = 8
    try:
        with pytest.raises(ManuError, match="patches of 384 values .* the model takes 96"):
            loaded.family.vision_inputs(IMAGE, loaded.processor, loaded.config)
    finally:
        loaded.processor.image_processor.patch_size = cases.PATCH


def test_an_image_that_the_processor_refuses_is_named_with_its_prompt(made):
    _, loaded, _ = made
    token = loaded.processor.image_token
    samples = [question_sample(f"{token} Who?", "", (Image.new("RGB", (900, 3)),), key="007/home")]
    expected = r"007/home: .*Who\?'.* its image \(900 × 3 RGB\) \(absolute aspect ratio .*got 300"
    for call in (encode_all, lambda model, samples: model.count_tokens(samples)):
        with pytest.raises(ManuError, match=expected):
            call(loaded, samples)
    with pytest.raises(ManuError, match="900 × 3 RGB"):
        loaded.vision_inputs(samples[0].images[0])

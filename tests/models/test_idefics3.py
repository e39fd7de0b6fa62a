"""What is particular to Idefics3 and SmolVLM: tiles in the text, the grid, templates, configs."""

import numpy as np
import pytest
from cases import Case, real
from idefics3_cases import cases
from PIL import Image

from manu_jax.models import loaded as loading
from manu_jax.models.families import idefics3
from manu_jax.models.families.tiny import with_tokens
from manu_jax.types import ManuError, Sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("idefics3")
    cases.write_case("idefics3-split", folder)
    return folder


def test_tiles_and_pixels_are_those_of_the_image_processor(folder):
    loaded = loading.load(folder)
    images = cases.image_lists()[1]
    inputs = cases.torch_inputs(folder, "right", [cases.PROMPTS[1]], [images])
    sample = Sample(((cases.PROMPTS[1], False),), tuple(images))
    encoded = loaded.encode(sample)
    assert encoded.token_ids_T.tolist() == inputs["input_ids"][0].tolist()
    pixels_ICYX = inputs["pixel_values"][0].numpy()
    assert len(encoded.vision_inputs) == len(pixels_ICYX) > len(images)
    size = cases.PATCH
    for vision_input, pixels_CYX in zip(encoded.vision_inputs, pixels_ICYX, strict=True):
        for index, patch_C in enumerate(vision_input.patches_PC):
            y, x = (place * size for place in divmod(index, cases.SIDE // size))
            expected = pixels_CYX[:, y : y + size, x : x + size].transpose(1, 2, 0)
            np.testing.assert_array_equal(patch_C.reshape(size, size, 3), expected)
    is_image_T = encoded.token_ids_T == loaded.config.image_token
    assert loaded.count_tokens([sample]) == [((~is_image_T).sum(), is_image_T.sum())]


@pytest.mark.parametrize("is_split", [True, False])
def test_the_grid_is_what_the_image_processor_does(is_split):
    case = Case(images={"do_image_splitting": is_split})
    found = cases.processor(case).image_processor
    random = np.random.default_rng(0)
    for height, width in [*cases.SIZES, *random.integers(1, 70, (60, 2)).tolist()]:
        image = Image.new("RGB", (width, height), "grey")
        done = found(images=[[image]], return_tensors="np", return_row_col_info=True)
        expected = (done["rows"][0][0], done["cols"][0][0])
        assert idefics3.grid(height, width, found) == expected, (height, width)


def test_smolvlms_tokenizer_gives_its_template(folder):
    loaded = loading.load(folder)
    ending = "User:<image>Where?<end_of_utterance>\nAssistant:"
    assert loaded.template.prompt("Where?", "image") == ending
    other = with_tokens(cases.processor().tokenizer, {"start": "<|im_start|>"})
    template = idefics3.template_of(other)
    assert template.prompt("Where?", "image") == "<|im_start|>" + ending
    told = template.with_system("Be kind.").prompt("Where?", "text")
    assert told.startswith("<|im_start|>System: Be kind.<end_of_utterance>\nUser: Where?")


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("", "scale_factor", 5),
        ("", "num_tiles", 4),
        ("vision_config", "num_channels", 4),
        ("vision_config", "hidden_act", "swish9"),
        ("text_config", "attn_logit_softcapping", 30.0),
        ("text_config", "model_type", "gpt_neox"),
    ],
)
def test_a_field_that_is_not_handled_is_refused_by_name(section, field, value):
    values = real("smolvlm-256m-instruct")
    (values[section] if section else values)[field] = value
    with pytest.raises(ManuError, match=field):
        idefics3.config_from_hf(values)


def test_tiles_of_another_size_are_refused(folder):
    loaded = loading.load(folder)
    loaded.processor.image_processor.max_image_size = {"longest_edge": 8}
    with pytest.raises(ManuError, match="gives 8 × 8 pixels, the model takes 16 × 16"):
        loaded.vision_inputs(cases.image_lists()[0][0])

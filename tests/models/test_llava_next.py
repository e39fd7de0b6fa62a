"""What is particular to LLaVA-NeXT: tiles, the order of their tokens, templates, configs."""

import dataclasses
import json
import types

import numpy as np
import pytest
import torch
import transformers
from cases import DATA, real
from llava_next_cases import cases
from PIL import Image
from transformers.models.llava_next import modeling_llava_next

from manu_jax.models import loaded as loading
from manu_jax.models.families import llava_next
from manu_jax.models.families.tiny import with_tokens
from manu_jax.types import ManuError, Sample

RELEASED = sorted(path.stem for path in DATA.glob("llava-v1.6*.json"))
EXTREMES = [(1, 1), (1, 30), (30, 1), (12, 12), (24, 24), (12, 24), (13, 24), (23, 47), (11, 36)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava-next")
    cases.write_case("vicuna", folder)
    return folder


def test_tiles_and_pixels_are_those_of_the_image_processor(folder):
    loaded = loading.load(folder)
    images = cases.image_lists()[1]
    inputs = cases.torch_inputs(folder, "right", [cases.PROMPTS[1]], [images])
    sample = Sample(((cases.PROMPTS[1], False),), tuple(images))
    encoded = loaded.encode(sample)
    assert encoded.token_ids_T.tolist() == inputs["input_ids"][0].tolist()
    counts = cases.counts_of_images(inputs)
    expected = [
        pixels_CYX
        for pixels_ICYX, count in zip(inputs["pixel_values"].numpy(), counts, strict=True)
        for pixels_CYX in pixels_ICYX[:count]
    ]
    assert len(encoded.vision_inputs) == len(expected) > 2 * len(images)
    size = cases.PATCH
    for vision_input, pixels_CYX in zip(encoded.vision_inputs, expected, strict=True):
        for index, patch_C in enumerate(vision_input.patches_PC):
            y, x = (place * size for place in divmod(index, cases.SIDE // size))
            patch_YXC = pixels_CYX[:, y : y + size, x : x + size].transpose(1, 2, 0)
            np.testing.assert_array_equal(patch_C.reshape(size, size, 3), patch_YXC)
    is_image_T = encoded.token_ids_T == loaded.config.image_token
    assert loaded.count_tokens([sample]) == [((~is_image_T).sum(), is_image_T.sum())]


@pytest.mark.parametrize("is_real", [False, True])
def test_tokens_take_the_rows_that_transformers_packs_for_any_size(folder, is_real):
    """Each row of the features holds its own number; PyTorch packs them."""
    if is_real:
        values, largest = real("llava-v1.6-vicuna-7b"), 2000
        processor = transformers.LlavaNextProcessor(
            cases.processor().image_processor.__class__(),
            cases.processor().tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    else:
        values, largest = json.loads((folder / "config.json").read_text()), 90
        processor = cases.processor()
    config = llava_next.config_from_hf(values)
    theirs = transformers.LlavaNextConfig.from_dict(values)
    P, side = config.num_patches, config.vision.image_size
    random = np.random.default_rng(0)
    shapes = set()
    for height, width in [*EXTREMES, *random.integers(1, largest, (300, 2)).tolist()]:
        try:
            rows, columns = llava_next.grid(height, width, config)
        except ManuError:
            assert min(height, width) * 20 < max(height, width)
            continue
        ((found, _),) = llava_next.feature_rows([Image.new("L", (width, height))], config)
        count = modeling_llava_next.image_size_to_num_patches(
            (height, width), theirs.image_grid_pinpoints, side
        )
        assert count == rows * columns + 1
        numbers_IPE = np.arange(count * (P + 1)).reshape(count, P + 1, 1)[:, :P]
        (expected,), _ = modeling_llava_next.LlavaNextModel.pack_image_features(
            types.SimpleNamespace(config=theirs),
            [torch.tensor(numbers_IPE)],
            torch.tensor([[height, width]]),
            "default",
            image_newline=torch.tensor([P]),
        )
        assert found.tolist() == expected[:, 0].tolist(), (height, width)
        counted = processor._get_number_of_features(height, width, side, side) - 1
        assert counted == len(found), (height, width)
        shapes.add((rows, columns))
    assert shapes == {(y // side, x // side) for y, x in config.pinpoints}


def test_an_image_of_which_no_pixel_would_remain_is_refused(folder):
    loaded = loading.load(folder)
    image = Image.new("RGB", (1, 3000))
    with pytest.raises(ManuError, match="1 × 3000 pixels is too narrow.*Crop it"):
        loaded.encode(Sample((("USER: <image>", False),), (image,)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}, "gives 8 × 8"),
        ({"image_grid_pinpoints": [[24, 24]]}, r"image_grid_pinpoints is \[\(24, 24\)\]"),
    ],
)
def test_an_image_processor_of_another_model_is_refused(folder, settings, message):
    loaded = loading.load(folder)
    processor = loaded.processor.image_processor.__class__(
        **{**loaded.processor.image_processor.to_dict(), **settings}
    )
    loaded.processor.image_processor = processor
    with pytest.raises(ManuError, match=message):
        loaded.vision_inputs(cases.image_lists()[0][0])


def test_what_transformers_cannot_pack_is_refused(folder):
    """The class token among a tile's ("full") leaves no map of patches."""
    values = json.loads((folder / "config.json").read_text())
    values["vision_feature_select_strategy"] = "full"
    with pytest.raises(ManuError, match="vision_feature_select_strategy"):
        llava_next.config_from_hf(values)
    model = transformers.LlavaNextForConditionalGeneration.from_pretrained(
        folder, vision_feature_select_strategy="full"
    )
    inputs = cases.torch_inputs(folder, "right", images=cases.image_lists())
    with pytest.raises(RuntimeError, match="shape"):
        model(**inputs)


def test_the_tokenizer_tells_the_template(folder, tmp_path):
    loaded = loading.load(folder)
    assert loaded.template.prompt("Where?", "image") == "USER: <image>\nWhere?\nASSISTANT:"
    other = cases.processor()
    other.chat_template = "{{ '[INST] ' + messages[0].content + ' [/INST]' }}"
    loading.save_pretrained(dataclasses.replace(loaded, processor=other, path=None), tmp_path / "a")
    template = loading.load(tmp_path / "a", prompt="benchmark").template
    assert template.prompt("Where?", "image") == "[INST] <image>\nWhere? [/INST]"
    assert (
        template.prompt("Where?", "text") + template.reply("Oslo") == "[INST] Where? [/INST] Oslo"
    )


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (
            ["<|startoftext|>", "<|im_start|>"],
            "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nWhere?"
            "<|im_end|><|im_start|>assistant\n",
        ),
        (
            ["<|im_start|>"],
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            "<image>\nWhere?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            ["<|start_header_id|>"],
            f"{llava_next.LLAMA_3.system}<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhere?"
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ],
)
def test_a_tokenizer_with_tokens_for_turns_has_prompts_of_them(tokens, expected):
    given = {f"token_{number}": token for number, token in enumerate(tokens)}
    template = llava_next.template_of(with_tokens(cases.processor().tokenizer, given))
    assert template is not None
    assert template.prompt("Where?", "image") == expected
    assert template.prompt("Where?", "text") == expected.replace("<image>\n", "")
    assert template.with_system("Be kind.").prompt("Where?", "image").count("Be kind.") == 1


@pytest.mark.parametrize("name", RELEASED)
def test_an_image_that_fills_four_tiles_has_2928_tokens(name):
    config = llava_next.config_from_hf(real(name))
    # 2 × 2 tiles, of which nothing is padding: the whole image, 48 lines of 48 tokens, newlines
    ((rows, _),) = llava_next.feature_rows([Image.new("L", (1000, 1000))], config)
    assert len(rows) == 576 + 48 * 49


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("", "use_image_newline_parameter", False),
        ("", "vision_feature_select_strategy", "full"),
        ("", "image_grid_pinpoints", [[336, 500]]),
        ("", "image_grid_pinpoints", [[336]]),
        ("", "image_grid_pinpoints", 3),
        ("", "mm_patch_merge_type", "spatial"),
        ("", "vision_feature_layer", -30),
        ("", "projector_hidden_act", "swish9"),
        ("vision_config", "model_type", "siglip_vision_model"),
        ("text_config", "model_type", "gpt_neox"),
    ],
)
def test_a_field_that_is_not_handled_is_refused_by_name(section, field, value):
    values = real("llava-v1.6-vicuna-7b")
    (values[section] if section else values)[field] = value
    with pytest.raises(ManuError, match=field):
        llava_next.config_from_hf(values)

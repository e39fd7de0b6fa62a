"""What is particular to LLaVA-OneVision: maps made smaller, several images, templates, configs."""

import json
import types

import numpy as np
import pytest
import torch
import transformers
from cases import DATA, images_of, real
from llava_onevision_cases import cases
from parity import check_logits, forward
from PIL import Image
from transformers.models.llava_onevision import modeling_llava_onevision

from manu_jax.models import loaded as loading
from manu_jax.models.families import llava_next, llava_onevision
from manu_jax.types import ManuError, Sample, question_sample

RELEASED = sorted(path.stem for path in DATA.glob("llava-onevision*.json"))
EXTREMES = [(1, 1), (1, 9), (9, 1), (13, 13), (26, 26), (13, 26), (26, 13), (25, 51), (39, 39)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava-onevision")
    cases.write_case("interpolated", folder)
    return folder


def test_images_of_any_shape_alone_in_their_texts_give_the_logits_of_transformers(folder):
    loaded, images = loading.load(folder), images_of([(15, 38), (40, 17), (5, 7), (9, 60)])
    lists, prompts = [[image] for image in images], cases.PROMPTS[:1] * 4
    inputs = cases.torch_inputs(folder, "left", prompts, lists)
    batch = loaded.batch(prompts, lists, padding_side="left")
    mask_BT = batch.attention_mask_BT
    np.testing.assert_array_equal(inputs["input_ids"].numpy()[mask_BT], batch.token_ids_BT[mask_BT])
    assert len(set(cases.counts_of_images(inputs))) > 1
    reference = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(folder)
    check_logits(reference, inputs, forward(loaded.model, batch), batch)


@pytest.mark.parametrize("number", [0, 1])
def test_tiles_and_pixels_are_those_of_the_image_processor(folder, number):
    """One image in tiles; several of one text whole, and padded to squares."""
    loaded = loading.load(folder)
    prompt, images = cases.PROMPTS[number], cases.image_lists()[number]
    inputs = cases.torch_inputs(folder, "right", [prompt], [images])
    sample = Sample(((prompt, False),), tuple(images))
    encoded = loaded.encode(sample)
    assert encoded.token_ids_T.tolist() == inputs["input_ids"][0].tolist()
    counts = cases.counts_of_images(inputs)
    assert counts == ([5] if number == 0 else [1, 1, 1])
    expected = [
        pixels_CYX
        for pixels_ICYX, count in zip(inputs["pixel_values"].numpy(), counts, strict=True)
        for pixels_CYX in pixels_ICYX[:count]
    ]
    size = cases.PATCH
    for vision_input, pixels_CYX in zip(encoded.vision_inputs, expected, strict=True):
        for index, patch_C in enumerate(vision_input.patches_PC):
            y, x = (place * size for place in divmod(index, cases.SIDE // size))
            patch_YXC = pixels_CYX[:, y : y + size, x : x + size].transpose(1, 2, 0)
            np.testing.assert_array_equal(patch_C.reshape(size, size, 3), patch_YXC)
    is_image_T = encoded.token_ids_T == loaded.config.image_token
    assert loaded.count_tokens([sample]) == [((~is_image_T).sum(), is_image_T.sum())]


def test_an_image_has_other_pictures_alone_than_beside_others(folder):
    loaded = loading.load(folder)
    image, other = cases.image_lists()[1][:2]
    alone, beside = Sample((("<image>", False),), (image,)), ((("<image><image>", False),))
    counts = [
        [
            len(loaded.encode(sample).vision_inputs)
            for sample in (alone, Sample(beside, (image, other)))
        ]
        for _ in range(2)  # the second time they come from the cache
    ]
    assert counts == [[4, 2]] * 2


@pytest.mark.parametrize("is_real", [False, True])
def test_tokens_are_the_sums_that_transformers_packs_for_any_size(folder, is_real):
    """Each row of the features holds a random number; PyTorch packs and interpolates them."""
    values = (
        real("llava-onevision-qwen2-7b")
        if is_real
        else json.loads((folder / "config.json").read_text())
    )
    config = llava_onevision.config_from_hf(values)
    theirs = transformers.LlavaOnevisionConfig.from_dict(values)
    P, tile = config.num_patches, config.vision.image_size
    made = cases.processor()
    made.image_processor.image_grid_pinpoints = [list(point) for point in config.pinpoints]
    processor = cases.whole_processor(made, values["vision_aspect_ratio"], P)
    random = np.random.default_rng(0)
    largest = 3000 if is_real else 90
    is_smaller = []
    for height, width in [*EXTREMES, *random.integers(1, largest, (150, 2)).tolist()]:
        try:
            rows, columns = llava_next.grid(height, width, config)
        except ManuError:
            assert min(height, width) * 12 < max(height, width)
            continue
        images = [Image.new("L", (width, height))]
        ((index_J4, weights_J4),) = llava_onevision.feature_rows(images, config)
        count = rows * columns + 1
        numbers_IP = random.normal(size=(count, P + 1)).astype(np.float32)
        numbers_IP[:, P] = newline = 7.0
        found_J = (numbers_IP.ravel()[index_J4] * weights_J4).sum(axis=-1)
        (expected,), _ = modeling_llava_onevision.LlavaOnevisionModel.pack_image_features(
            types.SimpleNamespace(config=theirs),
            [torch.tensor(numbers_IP[:, :P, None])],
            torch.tensor([[height, width]]),
            image_newline=torch.tensor([newline]),
            vision_aspect_ratio=theirs.vision_aspect_ratio,
        )
        # Places along a map of up to 162 tokens are rounded to float32: about 1e-5 of a share.
        np.testing.assert_allclose(found_J, expected[:, 0].numpy(), atol=1e-4, rtol=0)
        assert processor._get_number_of_features(height, width, tile, tile) == len(found_J)
        is_smaller.append(bool((weights_J4.max(axis=-1) < 1).any()))
    assert 0.1 < np.mean(is_smaller) < 0.9


def test_an_answers_end_is_an_end_of_text(folder):
    loaded = loading.load(folder)
    template = loaded.template
    assert template.prompt("Where?", "image") == (
        "<|im_start|>user <image>\nWhere?<|im_end|><|im_start|>assistant\n"
    )
    text = template.prompt("Where?", "text")
    assert text == "<|im_start|>user \nWhere?<|im_end|><|im_start|>assistant\n"
    told = template.with_system("Be kind.").prompt("Where?", "text")
    assert told == f"<|im_start|>system \nBe kind.<|im_end|>{text}"
    encoded = loaded.encode(question_sample(text, template.reply("Oslo") + template.end))
    assert encoded.token_ids_T[-1] in loaded.eos_ids


@pytest.mark.parametrize("name", RELEASED)
def test_an_image_of_36_tiles_has_as_many_tokens_as_nine(name):
    config = llava_onevision.config_from_hf(real(name))
    assert config.pinpoints == llava_onevision.PINPOINTS
    ((index_J4, _),) = llava_onevision.feature_rows([Image.new("L", (2304, 2304))], config)
    assert len(index_J4) == 729 + 81 * 82


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("", "use_image_newline_parameter", False),
        ("", "vision_feature_select_strategy", "default"),
        ("", "vision_aspect_ratio", "anyres"),
        ("", "vision_aspect_ratio", "anyres_max_0"),
        ("", "image_grid_pinpoints", [[384, 500]]),
        ("", "mm_newline_position", "one_token"),
        ("vision_config", "model_type", "clip_vision_model"),
        ("vision_config", "vision_use_head", True),
        ("text_config", "model_type", "gpt_neox"),
    ],
)
def test_a_field_that_is_not_handled_is_refused_by_name(section, field, value):
    values = real("llava-onevision-qwen2-7b")
    (values[section] if section else values)[field] = value
    with pytest.raises(ManuError, match=field):
        llava_onevision.config_from_hf(values)


def test_what_a_config_leaves_out_is_what_transformers_takes():
    config = llava_onevision.config_from_hf({"model_type": "llava_onevision"})
    theirs = transformers.LlavaOnevisionConfig()
    assert config.text.vocabulary == theirs.text_config.vocab_size
    assert config.text.qkv_bias and not config.text.is_tied
    assert config.vision.num_layers == theirs.vision_config.num_hidden_layers
    assert config.vision.image_size == theirs.vision_config.image_size
    assert [list(point) for point in config.pinpoints] == theirs.image_grid_pinpoints
    assert config.image_token == theirs.image_token_index
    assert f"anyres_max_{config.most_tiles}" == theirs.vision_aspect_ratio

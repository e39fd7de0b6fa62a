"""What is particular to Idefics2: texts around images, pixels, the grid, its config."""

import numpy as np
import pytest
import torch
import transformers
from cases import real
from idefics2_cases import cases
from parity import check_logits, forward
from PIL import Image

from manu_jax.models import loaded as loading
from manu_jax.models.families import idefics2
from manu_jax.types import ManuError, Sample, question_sample

TEXTS = [
    "<image>",
    "<image>word",
    "a<image>word <image>",
    "<image><image>word",
    "<image> <image>\n\nword",
    "User:<image>\n<image><image><end_of_utterance>\nAssistant: Oslo",
    "<image>.<image>, and",
    "no image at all",
]


@pytest.fixture(scope="module", params=["whole-images", "split-images"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    cases.write_case(request.param, folder)
    return folder


def test_tokens_around_images_are_those_of_the_processor(folder):
    loaded = loading.load(folder)
    image = cases.image_lists()[0][0]
    for text in TEXTS:
        images = [image] * text.count("<image>")
        expected = cases.torch_inputs(folder, "right", [text], [images])["input_ids"][0]
        sample = Sample(((text, False),), tuple(images))
        encoded = loaded.encode(sample)
        assert encoded.token_ids_T.tolist() == expected.tolist(), text
        is_image_T = encoded.token_ids_T == loaded.config.image_token
        assert loaded.count_tokens([sample]) == [((~is_image_T).sum(), is_image_T.sum())]


def test_pixels_are_those_of_the_processor_without_what_fills_no_patch(folder):
    loaded = loading.load(folder)
    images = cases.image_lists()[1]
    inputs = cases.torch_inputs(folder, "right", ["<image>" * len(images)], [images])
    pixels_ICYX, mask_IYX = (
        inputs[name][0].numpy() for name in ("pixel_values", "pixel_attention_mask")
    )
    vision_inputs = [
        vision_input for image in images for vision_input in loaded.vision_inputs(image)
    ]
    assert len(vision_inputs) == len(pixels_ICYX)
    for vision_input, pixels_CYX, mask_YX in zip(vision_inputs, pixels_ICYX, mask_IYX, strict=True):
        size = cases.PATCH
        rows, columns = mask_YX[:, 0].sum() // size, mask_YX[0].sum() // size
        for index, patch_C in enumerate(vision_input.patches_PC):
            y, x = (place * size for place in divmod(index, columns))
            expected = pixels_CYX[:, y : y + size, x : x + size].transpose(1, 2, 0)
            np.testing.assert_array_equal(patch_C.reshape(size, size, 3), expected)
        assert (
            len(vision_input.patches_PC) == len(vision_input.patch_positions_P2) == rows * columns
        )
        assert vision_input.padded_patches % 16 == 0


def odd_images():
    """Return images that the processor turns, or takes the alpha from, before anything else."""
    image = cases.image_lists()[0][0]
    turned, see_through = image.copy(), image.convert("RGBA")
    turned.getexif()[0x0112] = 6  # orientation: turned by 90 degrees
    alpha = np.random.default_rng(3).integers(0, 256, (image.height, image.width), dtype=np.uint8)
    see_through.putalpha(Image.fromarray(alpha))
    return {"turned": turned, "see-through": see_through, "grey": see_through.convert("LA")}


@pytest.mark.parametrize("kind", odd_images())
def test_turned_and_see_through_images_give_the_logits_of_the_whole_processor(tmp_path, kind):
    reference = cases.write_case("whole-images", tmp_path)
    loaded, image = loading.load(tmp_path), odd_images()[kind]
    prompt = "User:<image>Where?<end_of_utterance>\nAssistant:"
    inputs = cases.torch_inputs(tmp_path, "right", [prompt], [[image]])
    batch = loaded.batch([prompt], [[image]])
    check_logits(reference, inputs, forward(loaded.model, batch), batch)


@pytest.mark.parametrize("side", [6, 70])  # of the tests, and of the released models
def test_places_in_the_grid_are_those_of_pytorch(side):
    for count in range(1, side + 1):
        edges = torch.arange(1 / side, 1.0, 1 / side)
        share = torch.arange(count, dtype=torch.float32) * (1.0 / torch.tensor(count))
        expected = torch.bucketize(torch.clamp(share, max=1 - 1e-6), edges, right=True)
        np.testing.assert_array_equal(idefics2._grid_positions(count, side), expected)


def test_answers_keep_their_loss_beside_images(folder):
    loaded = loading.load(folder)
    image = cases.image_lists()[0][0]
    prompt = loaded.template.prompt("Where?", "image")
    assert prompt == "User:<image>Where?<end_of_utterance>\nAssistant:"
    answer = loaded.template.reply("Oslo, Lima") + loaded.template.end
    encoded = loaded.encode(question_sample(prompt, answer, (image,)))
    kept = encoded.token_ids_T[encoded.loss_weights_T > 0]
    assert loaded.processor.tokenizer.decode(kept) == " Oslo, Lima<end_of_utterance>"
    assert kept[-1] in loaded.eos_ids


def test_the_released_config_says_what_transformers_reads():
    config = idefics2.config_from_hf(real("idefics2-8b"))
    theirs = transformers.Idefics2Config.from_dict(real("idefics2-8b"))
    assert config.perceiver.norm_epsilon == theirs.perceiver_config.rms_norm_eps
    assert config.text.windows == (4096,) * 32


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("", "qk_layer_norms_perceiver", True),
        ("vision_config", "num_channels", 4),
        ("vision_config", "hidden_act", "swish9"),
        ("perceiver_config", "num_key_value_heads", 3),
        ("perceiver_config", "qk_layer_norms", True),
        ("perceiver_config", "model_type", "q_former"),
        ("text_config", "model_type", "gpt_neox"),
        ("text_config", "rope_scaling", {"type": "yarn", "factor": 4.0}),
    ],
)
def test_a_field_that_is_not_handled_is_refused_by_name(section, field, value):
    values = real("idefics2-8b")
    (values[section] if section else values)[field] = value
    with pytest.raises(ManuError, match=field):
        idefics2.config_from_hf(values)


def test_an_image_token_count_that_does_not_fit_is_refused(folder, tmp_path):
    loaded = loading.load(folder)
    loaded.processor.image_token = "<unk>"
    sample = Sample((("<unk>", False),), tuple(cases.image_lists()[0]))
    with pytest.raises(ManuError, match="0 image tokens for .* image features"):
        loaded.encode(sample)

"""Samples become the numbers that the model's own processor makes of them, or a clear error."""

import dataclasses

import numpy as np
import pytest
from cases import random_images
from llava_cases import cases

from manu_jax.models import loaded as loading
from manu_jax.models.inputs import vision_inputs
from manu_jax.types import BatchShape, ManuError, Sample, question_sample


@pytest.fixture(scope="module")
def loaded(case):
    return loading.load(case()[0])


def test_only_the_answers_tokens_carry_loss(loaded):
    segments = (("USER: Where?\nASSISTANT:", False), (" Oslo, Lima", True), ("\nUSER: Or", False))
    segments += ((" Accra.", True),)
    encoded = loaded.encode(Sample(segments))
    kept = encoded.token_ids_T[encoded.loss_weights_T > 0]
    assert loaded.decode(kept) == " Oslo, Lima Accra."
    assert encoded.loss_weights_T[0] == 0
    assert set(np.unique(encoded.loss_weights_T)) == {0.0, 1.0}


def test_a_special_token_at_the_answers_end_carries_loss(loaded):
    encoded = loaded.encode(question_sample("USER: Where?\nASSISTANT:", " Oslo</s>"))
    assert encoded.token_ids_T[-1] in loaded.eos_ids
    assert encoded.loss_weights_T[-1] == 1


def test_image_tokens_and_the_first_token_never_carry_loss(loaded):
    sample = Sample((("<image>\nWhere?", True),), tuple(random_images(1)))
    encoded = loaded.encode(sample)
    assert not encoded.loss_weights_T[encoded.feature_index_T >= 0].any()
    assert encoded.loss_weights_T[0] == 0
    assert encoded.loss_weights_T[-1] == 1


def test_image_tokens_take_the_features_in_order(loaded):
    images = random_images(2)
    encoded = loaded.encode(Sample(((cases.PROMPTS[1], False),), tuple(images)))
    rows = encoded.feature_index_T[encoded.feature_index_T >= 0]
    np.testing.assert_array_equal(rows, np.arange(2 * loaded.config.tokens_per_image))
    assert encoded.num_images == 2
    assert not np.array_equal(*(vision_input.patches_PC for vision_input in encoded.vision_inputs))


def test_an_images_picture_is_made_once(loaded, monkeypatch):
    image, calls = random_images(1, seed=5)[0], []
    original = loaded.processor.image_processor.__class__.__call__

    def counted(self, *arguments, **named):
        calls.append(1)
        return original(self, *arguments, **named)

    monkeypatch.setattr(loaded.processor.image_processor.__class__, "__call__", counted)
    first = loaded.encode(Sample((("<image> a", False),), (image,)))
    second = loaded.replace_model(loaded.model).encode(Sample((("<image> b", False),), (image,)))
    assert len(calls) == 1
    assert first.vision_inputs[0] is second.vision_inputs[0]


def test_the_cache_of_pictures_is_bounded(loaded, monkeypatch):
    monkeypatch.setattr(vision_inputs, "CACHE_BYTES", 3 * 12 * 12 * 3 * 4)
    cache = vision_inputs.VisionInputCache()
    images = random_images(8)
    for image in images:
        cache.vision_inputs(
            image, lambda x: loaded.family.vision_inputs(x, loaded.processor, loaded.config)
        )
    assert list(cache._entries) == [id(image) for image in images[-3:]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_pad_on_either_side(loaded, side):
    samples = [Sample(((text, False),)) for text in ("Oslo", "Where does she live?")]
    encoded = [loaded.encode(sample) for sample in samples]
    batch = loaded.collate(encoded, BatchShape(length=40, batch_size=3, padding_side=side))
    for row, item in enumerate(encoded):
        mask_T = batch.attention_mask_BT[row]
        np.testing.assert_array_equal(batch.token_ids_BT[row][mask_T], item.token_ids_T)
        np.testing.assert_array_equal(batch.positions_BT[row][mask_T], np.arange(item.num_tokens))
        assert mask_T[0 if side == "right" else -1]
        assert set(batch.token_ids_BT[row][~mask_T]) == {loaded.padding_id}
    np.testing.assert_array_equal(batch.example_weights_B, [1, 1, 0])
    assert not batch.attention_mask_BT[2].any() and not batch.loss_weights_BT[2].any()
    assert batch.images is None
    with pytest.raises(ValueError, match="do not fit"):
        loaded.collate(encoded, BatchShape(length=3))


def test_a_batch_may_have_room_for_images_that_no_sample_has(loaded):
    encoded = [loaded.encode(Sample((("Oslo", False),)))]
    images = loaded.collate(encoded, BatchShape(num_images=2)).images
    assert images.patches_BIPC.shape == (1, 2, 9, 4 * 4 * 3)
    assert not images.mask_BI.any()
    assert (images.feature_index_BT == -1).all()


def test_images_and_image_tokens_that_differ_in_number_are_refused(loaded):
    one, two = random_images(2)
    with pytest.raises(ManuError, match=r"Where.*2 image tokens and 1 images"):
        loaded.encode(Sample((("<image><image> Where", False),), (one,)))
    with pytest.raises(ManuError, match="1 image tokens and 2 images"):
        loaded.encode(Sample((("<image> Where", False),), (one, two)))
    with pytest.raises(ManuError, match="017/home: .* 0 image tokens and 1 images"):
        loaded.encode(Sample((("Where", False),), (one,), key="017/home"))


def test_a_prompt_longer_than_the_context_is_refused_with_its_numbers(loaded):
    assert loaded.context == 96
    text = "<image> " * 11 + "Where?"
    with pytest.raises(ManuError, match=r"tokens, 99 of them for 11 images.*context is 96"):
        loaded.encode(Sample(((text, False),), tuple(random_images(11))))
    with pytest.raises(ManuError, match=r"Oslo.*…'.*context is 96"):
        loaded.encode(Sample((("Oslo " * 100, False),)))


def test_all_prompts_at_fault_stand_in_one_error(loaded):
    prompts = ["fine", "<image> one", "two", "Oslo " * 100]
    images = [[], [], random_images(1), []]
    with pytest.raises(ManuError) as caught:
        loaded.batch(prompts, images)
    message = str(caught.value)
    assert message.count("prompt ") == 3 and "fine" not in message
    with pytest.raises(ManuError, match="4 prompts and 1 entries of images"):
        loaded.batch(prompts, [[]])


def test_an_image_processor_of_another_size_is_refused(loaded):
    larger = dataclasses.replace(loaded.config.vision, image_size=24)
    other = dataclasses.replace(
        loaded,
        config=dataclasses.replace(loaded.config, vision=larger),
        cache=vision_inputs.VisionInputCache(),
    )
    sample = Sample((("<image>", False),), tuple(random_images(1)))
    with pytest.raises(ManuError, match="gives 12 × 12 pixels, the model takes 24 × 24"):
        other.encode(sample)


def test_decode_leaves_special_tokens_out(loaded):
    ids = loaded.processor.tokenizer("Where? Oslo</s>")["input_ids"]
    assert loaded.decode(np.asarray(ids)) == "Where? Oslo"

"""Samples become the numbers that the model's own processor makes of them, or a clear error."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from cases import random_images
from llava_cases import cases
from PIL import Image

from manu_jax.data.batches import encode_all
from manu_jax.fingerprint import image_digest
from manu_jax.models import loaded as loading
from manu_jax.models.inputs import caches, processing, vision_inputs
from manu_jax.models.inputs.caches import Caches
from manu_jax.types import BatchShape, ManuError, Sample, question_sample

IMAGE = Image.new("RGB", (8, 8))


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
    assert list(cache._entries) == [(image_digest(image), False) for image in images[-3:]]


def test_a_sample_is_encoded_once_under_whatever_key(loaded, monkeypatch):
    image, calls, encode = random_images(1, seed=7)[0], [], processing.encode
    monkeypatch.setattr(processing, "encode", lambda *a, **b: calls.append(1) or encode(*a, **b))
    segments = (("<image> Where was it seen?", False), (" Oslo", True))
    first = loaded.encode(Sample(segments, (image,), "a"))
    of_copy = Sample(tuple((text, is_answer) for text, is_answer in segments), (image.copy(),), "b")
    second = loaded.replace_model(None).encode(of_copy)
    assert len(calls) == 1 and (first.key, second.key) == ("a", "b")
    fresh = dataclasses.replace(loaded, caches=Caches(loaded.caches.vision)).encode(of_copy)
    assert len(calls) == 2
    for field in dataclasses.fields(fresh):
        kept, anew = getattr(second, field.name), getattr(fresh, field.name)
        if field.name != "vision_inputs":
            np.testing.assert_array_equal(kept, anew)
    assert second.vision_inputs[0] is fresh.vision_inputs[0]
    other = loaded.encode(Sample((segments[0], (" Oslo", False)), (image,)))
    assert len(calls) == 3 and not other.num_answers and second.num_answers


def test_encoded_samples_cannot_be_written_to(loaded):
    encoded = loaded.encode(question_sample("Who is it?", " Ann"))
    with pytest.raises(ValueError, match="read-only"):
        encoded.token_ids_T[0] = 3


def test_the_cache_of_samples_is_bounded_and_keeps_no_errors(loaded, monkeypatch):
    monkeypatch.setattr(caches, "CACHE_BYTES", 10_000)
    own = dataclasses.replace(loaded, caches=Caches())
    for number in range(40):
        own.encode(question_sample(f"Who is number {number}?", " Ann"))
    kept = [key[0][0][0] for key in own.caches.samples._entries]
    assert 1 < len(kept) < 20
    assert kept == [f"Who is number {number}?" for number in range(40 - len(kept), 40)]
    assert own.caches.samples._bytes <= 10_000
    for _ in range(2):
        with pytest.raises(ManuError, match="the model's context is"):
            own.encode(question_sample("Oslo " * 100, " Ann"))


def test_an_image_changed_in_place_is_another_image(loaded):
    image = random_images(1, seed=6)[0]
    before = loaded.batch(["<image> Where?"], [[image]])
    image.paste((250, 3, 3), (0, 0, 8, 8))
    after = loaded.batch(["<image> Where?"], [[image]])
    anew = loaded.batch(["<image> Where?"], [[image.copy()]])
    assert not np.array_equal(before.images.patches_BIPC, after.images.patches_BIPC)
    np.testing.assert_array_equal(after.images.patches_BIPC, anew.images.patches_BIPC)
    samples = [Sample((("<image> Where?", False),), (image,))] * 2
    first = encode_all(loaded, samples)
    image.paste((3, 250, 3), (0, 0, 8, 8))
    second = encode_all(loaded, samples)
    assert first[0].vision_inputs[0] is first[1].vision_inputs[0]
    assert first[0].vision_inputs[0] is not second[0].vision_inputs[0]
    assert loaded.vision_inputs(image)[0] is second[1].vision_inputs[0]


def test_what_a_processor_looks_at_beside_the_pixels_makes_another_image():
    image = random_images(1)[0].convert("P")
    other_colours, see_through, turned = image.copy(), image.copy(), image.copy()
    other_colours.putpalette(bytes(range(256)) * 3)
    see_through.info["transparency"] = 3
    turned.getexif()[0x0112] = 6
    images = [image, other_colours, see_through, turned]
    assert len({image_digest(one) for one in images}) == len(images)
    assert image_digest(image.copy()) == image_digest(image)


def test_the_pixels_of_an_image_may_come_as_an_array_and_change_in_it(loaded):
    image = random_images(1, seed=7)[0]
    pixels = np.array(image)
    expected = loaded.batch(["<image>"], [[image]]).images.patches_BIPC
    np.testing.assert_array_equal(
        loaded.batch(["<image>"], [[pixels]]).images.patches_BIPC, expected
    )
    pixels[:8] = 0
    samples = [Sample((("<image>", False),), (pixels,))]
    changed = encode_all(loaded, samples)[0].vision_inputs[0].patches_PC
    assert not np.array_equal(changed, expected[0, 0])


def test_an_image_of_many_samples_is_hashed_once_a_call(loaded, monkeypatch):
    image, calls = random_images(1)[0], []

    def counted(one):
        calls.append(one)
        return image_digest(one)

    monkeypatch.setattr(vision_inputs, "image_digest", counted)
    encode_all(loaded, [Sample(((f"<image> {i}", False),), (image,)) for i in range(20)])
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("prompts", "settings", "expected"),
    [
        ("Where?", {}, r"prompts is str 'Where\?', expected a list .*put it into a list"),
        (b"Where?", {}, "prompts is bytes b'Where"),
        ([], {}, "no prompts. Give at least one"),
        (["a", 3, Path("x")], {}, r"prompt 1: the prompt is int 3, (.|\n)*prompt 2: "),
        (["a\ud800"], {}, "lone surrogate"),
        (["a"], {"answers": "b"}, "answers is str 'b', expected a list"),
        (["a"], {"answers": [None]}, "prompt 0: the answer is NoneType None, expected text"),
        (["<image>"], {"images": Path("x.png")}, "images is .*x.png.*, expected a list"),
        (["<image>"], {"images": [Path("x.png")]}, "prompt 0: its images are .*x.png"),
        (["<image>"], {"images": [[Path("x.png")]]}, "its image 1 is .*Path, expected a PIL"),
        (["<image>"], {"images": [[b"\x89PNG"]]}, "its image 1 is bytes, expected a PIL image"),
        (["<image>"], {"images": [IMAGE]}, r"prompt 0: its images are Image.*\[image\] for one"),
        (["<image>"], {"images": IMAGE}, "images is Image .*expected a list"),
        (["<image>"], {"images": [[np.zeros((8, 8))]]}, r"array \[8, 8\] of float64, expected"),
        (["<image>"], {"images": [[Image.new("RGB", (0, 4))]]}, "has 0 × 4 pixels"),
        (["<image>"], {"images": [[Image.new("La", (4, 4))]]}, r"not take its image \(4 × 4 La\)"),
        (["a"], {"padding_side": "middle"}, "padding_side 'middle': expected left or right"),
    ],
)  # fmt: skip
def test_what_is_no_prompt_answer_or_image_is_named(loaded, prompts, settings, expected):
    with pytest.raises(ManuError, match=expected):
        loaded.batch(prompts, **settings)


def test_an_image_that_ends_too_soon_is_named_with_its_prompt(loaded, tmp_path):
    random_images(1)[0].resize((60, 60)).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with Image.open(tmp_path / "cut.png") as image:
        with pytest.raises(ManuError, match=r"'<image> Who\?': its image 1: can't be read .*anew"):
            loaded.batch(["<image> Who?"], [[image]])
        with pytest.raises(ManuError, match=r"1 of 1 samples .*(.|\n)*007/home: .*its image 1"):
            encode_all(loaded, [Sample((("<image> Who?", False),), (image,), "007/home")])
    with Image.open(tmp_path / "whole.png") as image:
        pass
    with pytest.raises(ManuError, match="its image 1: can't be read"):
        loaded.batch(["<image> Who?"], [[image]])


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
    with pytest.raises(ManuError, match="1 image tokens and 0 images"):  # before any image is read
        loaded.count_tokens([Sample((("Where", False),)), Sample((("<image> Where", False),))])
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
        caches=Caches(),
    )
    sample = Sample((("<image>", False),), tuple(random_images(1)))
    with pytest.raises(ManuError, match="gives 12 × 12 pixels, the model takes 24 × 24"):
        other.encode(sample)


def test_decode_leaves_special_tokens_out(loaded):
    ids = loaded.processor.tokenizer("Where? Oslo</s>")["input_ids"]
    assert loaded.decode(np.asarray(ids)) == "Where? Oslo"

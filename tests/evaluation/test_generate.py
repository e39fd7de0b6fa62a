import dataclasses

import jax
import numpy as np
import pytest
import tiny_llava

from manu_jax import parallel
from manu_jax.evaluation import generate
from manu_jax.evaluation.generate import greedy, greedy_tokens
from manu_jax.training import features
from manu_jax.types import ManuError, Sample

NEW_TOKENS = 6


def prompts(modality, count=5):
    """Prompts of different lengths, in one bucket: few programs to compile."""
    return [
        Sample((("." * i + sample.segments[0][0], False),), sample.images, sample.key)
        for i, sample in enumerate(tiny_llava.samples(modality, count))
    ]


@pytest.fixture(scope="module")
def torch_model(tmp_path_factory):
    import torch
    from transformers import LlavaForConditionalGeneration

    from manu_jax.models.loaded import save_pretrained

    path = tmp_path_factory.mktemp("model") / "tiny"
    save_pretrained(tiny_llava.loaded(), path)
    return LlavaForConditionalGeneration.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def generated_by_torch(model, sample, new_tokens):
    ends = {
        "pad_token_id": tiny_llava.loaded().padding_id,
        "eos_token_id": list(tiny_llava.loaded().eos_ids),
    }
    return tiny_llava.greedy_of_torch(model, sample, new_tokens, **ends)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_answers_equal_those_of_transformers(torch_model, modality):
    asked = prompts(modality)
    ours = greedy_tokens(tiny_llava.loaded(), asked, new_tokens=NEW_TOKENS, batch_size=4)
    for sample, tokens in zip(asked, ours, strict=True):
        theirs = generated_by_torch(torch_model, sample, NEW_TOKENS)
        np.testing.assert_array_equal(tokens, theirs[~np.isin(theirs, tiny_llava.loaded().eos_ids)])


def test_batch_size_and_order_change_no_answer():
    asked = prompts("text")
    alone = greedy(tiny_llava.loaded(), asked, new_tokens=NEW_TOKENS, batch_size=1)
    assert len(set(alone)) > 1
    together = greedy(tiny_llava.loaded(), asked, new_tokens=NEW_TOKENS, batch_size=32)
    assert together == alone
    turned = greedy(tiny_llava.loaded(), asked[::-1], new_tokens=NEW_TOKENS, batch_size=4)
    assert turned[::-1] == alone


def test_answers_stop_at_the_first_end_token_and_the_loop_with_the_last(monkeypatch):
    asked = prompts("text", 2)
    loaded = tiny_llava.loaded()
    free = greedy_tokens(loaded, asked, new_tokens=NEW_TOKENS, batch_size=4)
    ends = [int(free[0][0]), int(free[1][2])]
    text = {**loaded.hf_config["text_config"], "eos_token_id": ends}
    loaded = dataclasses.replace(loaded, hf_config={**loaded.hf_config, "text_config": text})
    steps, decode = [], type(loaded.model).decode

    def counted(self, token_ids_B, cache):
        jax.debug.callback(lambda: steps.append(1))
        return decode(self, token_ids_B, cache)

    monkeypatch.setattr(type(loaded.model), "decode", counted)
    # The end tokens are static: this is a program of its own, with the counting in it.
    answers = greedy_tokens(loaded, asked, new_tokens=NEW_TOKENS, batch_size=4)
    jax.effects_barrier()
    expected = [row[: np.flatnonzero(np.isin(row, ends))[0]] for row in free]
    for answer, tokens in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(answer, tokens)
    assert len(answers[0]) == 0 and len(answers[1]) <= 2
    assert len(steps) == len(answers[1])  # not NEW_TOKENS − 1


def asked_of_images(num_images, questions):
    """Several questions on each image, those on one image not side by side."""
    images = [sample.images for sample in prompts("image", num_images)]
    texts = [f"USER: <image>\n{'.' * n}Where?\nASSISTANT:" for n in range(questions)]
    return [Sample(((text, False),), image, text) for text in texts for image in images]


@pytest.fixture
def images_computed(monkeypatch):
    """How many images went through the tower in each of its passes."""
    counts, compute = [], features.features_of

    def counted(loaded, vision_inputs, *arguments, **settings):
        counts.append(len(vision_inputs))
        return compute(loaded, vision_inputs, *arguments, **settings)

    monkeypatch.setattr(features, "features_of", counted)
    return counts


def test_an_image_asked_often_goes_through_the_tower_once(images_computed, monkeypatch):
    asked = asked_of_images(5, 7)
    ours = greedy_tokens(tiny_llava.loaded(), asked, new_tokens=3, batch_size=4)
    assert images_computed == [5]
    tiny_llava.run_image_towers_always(monkeypatch, generate)
    plain = greedy_tokens(tiny_llava.loaded(), asked, new_tokens=3, batch_size=4)
    assert images_computed == [5]
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_small_store_forgets_images_and_changes_no_answer(images_computed, monkeypatch):
    asked = asked_of_images(6, 3)
    ours = greedy_tokens(tiny_llava.loaded(), asked, new_tokens=3, batch_size=4)
    monkeypatch.setattr(features, "STORE_BYTES", 3 * 4 * 16 * 4)  # three images' 4 × 16 float32
    again = greedy_tokens(tiny_llava.loaded(), asked, new_tokens=3, batch_size=4)
    assert sum(images_computed[1:]) > 6
    for one, other in zip(ours, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_features_on_a_mesh_give_the_same_answers(images_computed):
    asked = asked_of_images(5, 2)
    ours = greedy_tokens(tiny_llava.loaded(), asked, new_tokens=3, batch_size=4)
    on_mesh = tiny_llava.on_mesh(parallel.make_mesh(data=2, fsdp=2, tensor=2))
    split = greedy_tokens(on_mesh, asked, new_tokens=3, batch_size=4)
    assert images_computed == [5, 5]
    for one, other in zip(ours, split, strict=True):
        np.testing.assert_array_equal(one, other)


def test_models_of_one_config_share_the_program():
    asked = prompts("text")
    loaded = tiny_llava.loaded()
    greedy(loaded, asked, new_tokens=NEW_TOKENS, batch_size=4)
    count = generate._answers._cache_size()
    other = loaded.replace_model(jax.tree.map(lambda x: x * 0.5, loaded.model))
    greedy(other, asked, new_tokens=NEW_TOKENS, batch_size=4)
    assert generate._answers._cache_size() == count


def test_a_prompt_without_room_for_its_answer_is_named():
    long = Sample((("word " * 20, False),), (), "007/long")
    with pytest.raises(ManuError, match=r"(?s)no room for an answer of 50.*128.*007/long: \d+"):
        greedy(tiny_llava.loaded(), [long], new_tokens=50, batch_size=1)


def test_a_model_of_nan_is_an_error():
    loaded = tiny_llava.loaded()
    broken = loaded.replace_model(jax.tree.map(lambda x: x * np.nan, loaded.model))
    with pytest.raises(ManuError, match="not finite"):
        greedy(broken, prompts("text"), new_tokens=NEW_TOKENS, batch_size=4)


def test_no_prompts_give_no_answers():
    assert greedy(tiny_llava.loaded(), [], new_tokens=4, batch_size=4) == []


def test_sets_of_the_same_lengths_and_batches_of_any_fill_compile_nothing_new():
    loaded = tiny_llava.loaded()
    greedy(loaded, asked_of_images(5, 7), new_tokens=3, batch_size=4)
    count = generate._answers._cache_size(), features._features._cache_size()
    greedy(loaded, asked_of_images(3, 7)[::-1], new_tokens=3, batch_size=4)
    assert (generate._answers._cache_size(), features._features._cache_size()) == count

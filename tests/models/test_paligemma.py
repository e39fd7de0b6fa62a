"""What is particular to PaliGemma: what looks both ways, the prompt's tokens, its configs."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from cases import DATA, real
from paligemma_cases import cases
from parity import TOLERANCE, forward

from manu_jax.models import loaded as loading
from manu_jax.models.families.paligemma import config_from_hf
from manu_jax.types import ManuError, Sample, question_sample

RELEASED = sorted(path.stem for path in DATA.glob("paligemma*.json"))


@pytest.fixture(scope="module", params=["gemma", "gemma2"])
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("paligemma")
    return cases.write_case(request.param, folder), loading.load(folder), folder


def test_an_answer_looks_back_alone_and_its_prompt_both_ways(made):
    reference, loaded, folder = made
    images = cases.image_lists()[:1]
    prompt, answer = cases.PROMPTS[0], "Oslo, Lima"
    batch = loaded.batch([prompt], images, [answer])
    inputs = cases.torch_inputs(folder, "right", [prompt + answer], images)
    assert inputs["input_ids"].tolist() == batch.token_ids_BT.tolist()
    types = torch.tensor(batch.loss_weights_BT > 0).long()
    assert 0 < types.sum() < 12
    with torch.no_grad():
        expected = reference(**{**inputs, "token_type_ids": types}).logits.numpy()
        joint = reference(**inputs).logits.numpy()
    found = np.asarray(forward(loaded.model, batch).logits_BTV)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
    assert np.abs(expected - joint).max() > 100 * TOLERANCE


def test_a_prompts_tokens_are_those_of_the_processor(made):
    _, loaded, folder = made
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    image = cases.image_lists()[0][0]
    for question in ("Where does she live?", "Lima\nor Accra?"):
        expected = processor(text=f"<image>{question}", images=[image])
        prompt = loaded.template.prompt(question, "image")
        encoded = loaded.encode(Sample(((prompt, False),), (image,)))
        assert encoded.token_ids_T.tolist() == list(expected["input_ids"][0])
    assert loaded.template.prompt("Where?", "text") == "<s>Where?\n"
    whole = question_sample(loaded.template.prompt("Where?", "text"), "Oslo" + loaded.template.end)
    assert loaded.encode(whole).token_ids_T[-1] in loaded.eos_ids


def test_an_image_token_beyond_the_vocabulary_changes_nothing(made):
    """The larger PaliGemma 2 have 257,152 embeddings, and 257,152 is the image token."""
    _, loaded, _ = made
    batch = loaded.batch(cases.PROMPTS, cases.image_lists())
    is_image_BT = batch.images.feature_index_BT >= 0
    beyond_BT = np.where(is_image_BT, loaded.config.text.vocabulary, batch.token_ids_BT)
    other = dataclasses.replace(batch, token_ids_BT=beyond_BT)
    one, two = (forward(loaded.model, x).logits_BTV for x in (batch, other))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", RELEASED)
def test_released_sizes_cap_the_logits_that_transformers_caps(name):
    values = real(name)
    theirs = transformers.PaliGemmaConfig.from_dict(values).text_config
    cap = getattr(theirs, "final_logit_softcapping", None)
    assert config_from_hf(values).text.logit_cap == cap
    assert (cap is None) == ("paligemma2" not in name)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("", "mm_tokens_per_image", 256),
        ("vision_config", "vision_use_head", True),
        ("vision_config", "model_type", "clip_vision_model"),
        ("text_config", "model_type", "llama"),
        ("text_config", "model_type", "gemma3_text"),
        ("text_config", "use_bidirectional_attention", False),
        ("text_config", "hidden_act", "swish9"),
        ("text_config", "sliding_window_pattern", 6),
    ],
)
def test_a_field_that_is_not_handled_is_refused_by_name(section, field, value):
    values = real("paligemma-3b-224")
    (values[section] if section else values)[field] = value
    with pytest.raises(ManuError, match=field):
        config_from_hf(values)

"""What is particular to PaliGemma: what looks both ways, the prompt's tokens, its configs."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import paligemma_cases as cases
import pytest
import torch
import transformers
from llava_cases import forward
from parity import TOLERANCE

from manu_jax import leaves as leaf_names
from manu_jax.models import loaded as loading
from manu_jax.models.families.paligemma import config_from_hf
from manu_jax.types import ManuError, Sample, question_sample

DATA = Path(__file__).parents[1] / "data"
SIZES = {
    # Counts of `transformers` on the meta device; layers and neurons of the decoder.
    "paligemma-3b-224": (2_923_466_480, (18, 16384)),
    "paligemma-3b-448": (2_924_351_216, (18, 16384)),
    "paligemma-3b-896": (2_927_890_160, (18, 16384)),
    "paligemma2-3b-224": (3_032_242_416, (26, 9216)),
    "paligemma2-10b-224": (9_662_409_456, (42, 14336)),
    "paligemma2-28b-224": (27_650_192_112, (46, 36864)),
}


def real(name: str) -> dict:
    return json.loads((DATA / f"{name}.json").read_text())


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


@pytest.mark.parametrize("name", SIZES)
def test_released_sizes_have_the_published_counts(name):
    values = real(name)
    chosen = loading.FAMILIES["paligemma"]
    config = chosen.config_from_hf(values, name)
    model = chosen.abstract(config, jnp.bfloat16)
    parameters, text = SIZES[name]
    assert loading.num_parameters(model) == parameters
    assert chosen.towers(config) == {"text": text, "vision": (27, 4304)}
    shapes = leaf_names.shapes(model)
    assert {entry.path for entry in chosen.weight_table(config)} == set(shapes)
    with torch.device("meta"):
        hub = transformers.PaliGemmaForConditionalGeneration(
            transformers.PaliGemmaConfig.from_dict(values)
        )
    theirs = {n: x.shape for n, x in hub.state_dict().items() if n != "lm_head.weight"}
    assert sum(np.prod(shape) for shape in theirs.values()) == parameters
    text_config = hub.config.text_config
    assert config.text.norm_epsilon == text_config.rms_norm_eps
    assert config.text.logit_cap == getattr(text_config, "final_logit_softcapping", None)
    assert config.text.activation == getattr(
        text_config, "hidden_activation", text_config.hidden_act
    )


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

"""What is particular to Gemma 3: blocks of images, prompts, both forms of its config, sizes."""

import dataclasses
import json

import jax
import numpy as np
import patching
import pytest
import transformers
from cases import real
from gemma3_cases import cases
from parity import check_logits, forward

from manu_jax.leaves import num_parameters
from manu_jax.models import loaded as loading
from manu_jax.models.families.gemma3 import config_from_hf
from manu_jax.models.families.registry import FAMILIES
from manu_jax.models.nn.rope import Rope
from manu_jax.types import ManuError, question_sample

PUBLISHED = {
    # arXiv 2503.19786, table 1: a tower of 417 M, embeddings of 675, 1,012 and 1,416 M, and the
    # rest of 3,209, 10,759 and 25,600 M
    "gemma3-4b": 4.301e9,
    "gemma3-12b": 12.188e9,
    "gemma3-27b": 27.433e9,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma3")
    return cases.write_case("one-key-head", folder), loading.load(folder), folder


def test_an_images_tokens_see_each_other_and_no_other_image(made, monkeypatch):
    _, loaded, _ = made
    batch = loaded.batch(cases.PROMPTS, cases.image_lists())
    group_BT = np.asarray(loaded.model.bidirectional_groups(batch))
    assert [sorted(set(row) - {-1}) for row in group_BT.tolist()] == [[0], [0, 1, 2], []]
    counts = [(row == number).sum() for row in group_BT for number in range(row.max() + 1)]
    assert counts == [cases.TOKENS] * 4
    joint = forward(loaded.model, batch).logits_BTV
    monkeypatch.setattr(type(loaded.model), "bidirectional_groups", lambda self, batch: None)
    causal = jax.jit(lambda model, batch: model(batch).logits_BTV)(loaded.model, batch)
    difference_B = np.abs(joint - causal).max(axis=(1, 2))
    assert difference_B[:2].min() > 1e-2
    assert difference_B[2] < 1e-5  # without images nothing looks ahead


@pytest.mark.slow
def test_patching_keeps_each_layers_window_and_the_blocks_of_images(made):
    _, loaded, _ = made
    assert {bool(window) for window in loaded.config.text.windows} == {True, False}
    encoded = [
        loaded.encode(question_sample(prompt, " Oslo, Lima", images, key=str(number)))
        for number, (prompt, images) in enumerate(
            zip(cases.PROMPTS, cases.image_lists(), strict=True)
        )
    ]
    other = jax.tree.map(lambda leaf: leaf * 0.9, loaded.model)
    own_BAV, patched_LBAV = patching.check(loaded.model, other, loaded.collate(encoded))
    assert np.abs(patched_LBAV - own_BAV[None]).max(axis=(1, 2, 3)).min() > 1e-3


def test_the_hubs_spelling_of_positions_gives_the_same_logits(made, tmp_path):
    reference, loaded, folder = made
    values = json.loads((folder / "config.json").read_text())
    text = values["text_config"]
    for name in ("rope_parameters", "layer_types", "_sliding_window_pattern"):
        text.pop(name, None)
    text |= {"rope_theta": 300.0, "rope_local_base_freq": 50.0, "sliding_window_pattern": 2}
    text["rope_scaling"] = {"rope_type": "linear", "factor": 4.0}
    assert config_from_hf(values) == loaded.config
    assert loaded.config.text.rope == Rope(theta=300.0, kind="linear", factor=4.0)
    assert loaded.config.text.local_rope == Rope(theta=50.0)
    hub = transformers.Gemma3Config.from_dict(values)
    again = type(reference)(hub).eval()
    again.load_state_dict(reference.state_dict())
    inputs = cases.torch_inputs(folder, "right", images=cases.image_lists())
    batch = loaded.batch(cases.PROMPTS, cases.image_lists())
    check_logits(again, inputs, forward(loaded.model, batch), batch)


def test_prompts_are_those_of_the_chat_template(made):
    _, loaded, _ = made
    template = loaded.template
    turn = "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"
    assert template.prompt("Where?", "image") == turn.format("<start_of_image>Where?")
    assert template.prompt("Where?", "text") == turn.format("Where?")
    # The released template has a system prompt at the head of the user's first turn.
    other = dataclasses.replace(loaded, system_prompt="Say nothing.").template
    assert other.prompt("Where?", "text") == turn.format("Say nothing.\n\nWhere?")
    ends = loaded.processor.tokenizer.convert_tokens_to_ids(["<end_of_turn>", "</s>"])
    assert set(ends) <= set(loaded.eos_ids)


@pytest.mark.parametrize("name", PUBLISHED)
def test_released_configs_say_what_transformers_reads(name):
    values = real(name)
    config = config_from_hf(values)
    model = FAMILIES["gemma3"].abstract(config)
    assert num_parameters(model) == pytest.approx(PUBLISHED[name], rel=2e-3)
    theirs = transformers.Gemma3Config.from_dict(values).text_config
    assert config.text.score_scale == theirs.query_pre_attn_scalar**-0.5
    kinds = ["full_attention" if w is None else "sliding_attention" for w in config.text.windows]
    assert kinds == theirs.layer_types
    for rope, kind in ((config.text.rope, "full"), (config.text.local_rope, "sliding")):
        fields = theirs.rope_parameters[f"{kind}_attention"]
        assert (rope.theta, rope.kind) == (fields["rope_theta"], fields["rope_type"])
        assert rope.factor == fields.get("factor", 1.0)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("", "mm_tokens_per_image", 255),
        ("", "mm_tokens_per_image", 9),
        ("", "vision_feature_layer", -2),
        ("vision_config", "vision_use_head", True),
        ("vision_config", "model_type", "clip_vision_model"),
        ("text_config", "model_type", "gemma2"),
        ("text_config", "use_bidirectional_attention", True),
        ("text_config", "attn_logit_softcapping", 50.0),
        ("text_config", "final_logit_softcapping", 30.0),
        ("text_config", "sliding_window", 0),
        ("text_config", "rope_scaling", {"rope_type": "yarn", "factor": 8.0}),
        ("text_config", "rope_parameters", {"rope_theta": 1e6}),
        ("text_config", "rope_parameters", {"chunked_attention": {}}),
        ("text_config", "hidden_activation", "swish9"),
    ],
)
def test_a_field_that_is_not_handled_is_refused_by_name(section, field, value):
    values = real("gemma3-4b")
    (values[section] if section else values)[field] = value
    with pytest.raises(ManuError, match=field if field != "rope_scaling" else "rope"):
        config_from_hf(values)

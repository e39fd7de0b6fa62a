"""A config.json says all that matters, in either spelling, or is refused by the field's name."""

import pytest
import transformers
from cases import real

from manu_jax import leaves as leaf_names
from manu_jax.models import loaded as loading
from manu_jax.models.families.llava import config_from_hf
from manu_jax.types import ManuError

LLAVA = loading.FAMILIES["llava"]


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-1.5-13b"])
def test_an_image_has_576_tokens(name):
    assert config_from_hf(real(name)).tokens_per_image == 576


def test_every_leaf_of_a_real_size_has_its_tensor():
    config = config_from_hf(real("llava-1.5-7b"))
    shapes = leaf_names.shapes(LLAVA.abstract(config))
    table = LLAVA.weight_table(config)
    assert {entry.path for entry in table} == set(shapes)
    names = [name for entry in table for name in entry.names(shapes[entry.path])]
    assert len(names) == len(set(names)) == 686


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("", "vision_feature_select_strategy", "cls"),
        ("", "projector_hidden_act", "swish9"),
        ("", "vision_feature_layer", -30),
        ("", "spatial_merge_size", 2),
        ("text_config", "hidden_act", "relu9"),
        ("text_config", "model_type", "gpt_neox"),
        ("text_config", "pretraining_tp", 4),
        ("text_config", "rope_scaling", {"type": "yarn", "factor": 4.0}),
        ("text_config", "partial_rotary_factor", 0.5),
        ("text_config", "attn_logit_softcapping", 50.0),
        ("", "text_config", 3),
        ("text_config", "hidden_size", "4096"),
        ("text_config", "hidden_size", 4097),
        ("text_config", "num_attention_heads", 0),
        ("text_config", "num_key_value_heads", 5),
        ("vision_config", "num_attention_heads", 3),
        ("vision_config", "model_type", "siglip_vision_model"),
        ("vision_config", "num_channels", 4),
        ("vision_config", "use_head", True),
    ],
)
def test_a_field_that_is_not_handled_is_refused_by_name(section, field, value):
    values = real("llava-1.5-7b")
    (values[section] if section else values)[field] = value
    with pytest.raises(ManuError, match=field) as caught:
        config_from_hf(values)
    assert caught.value.args[0].count("\n  ") == 1


def test_all_fields_at_fault_stand_in_one_error():
    values = real("llava-1.5-7b")
    values["projector_hidden_act"] = "swish9"
    values["text_config"]["pretraining_tp"] = 2
    values["vision_config"]["num_channels"] = 1
    with pytest.raises(ManuError) as caught:
        config_from_hf(values, "here/config.json")
    for part in ("here/config.json", "projector_hidden_act", "pretraining_tp", "num_channels"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 5e5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        ),
        ({"rope_scaling": None}, {"rope_parameters": {"rope_type": "default"}}),
    ],
)
def test_both_spellings_of_rope_are_read(old, new):
    found = []
    for fields in (old, new, {**old, **new}):
        values = real("llava-1.5-7b")
        values["text_config"].update(fields)
        found.append(config_from_hf(values).text.rope)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("kind", "fields", "windows"),
    [
        ("mistral", {}, (4096,) * 4),
        ("mistral", {"sliding_window": None}, (None,) * 4),
        ("qwen2", {"sliding_window": 9}, (None,) * 4),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 3},
            (None, None, None, 9),
        ),
        (
            "qwen2",
            {
                "use_sliding_window": True,
                "sliding_window": 9,
                "layer_types": ["sliding_attention", *["full_attention"] * 3],
            },
            (9, None, None, None),
        ),
    ],
)
def test_windows_follow_the_model_type(kind, fields, windows):
    values = real("llava-1.5-7b")
    values["text_config"] = {"model_type": kind, "num_hidden_layers": 4, **fields}
    config = config_from_hf(values).text
    assert config.windows == windows
    assert config.qkv_bias == (kind == "qwen2")


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_defaults_are_those_of_transformers(kind):
    values = real("llava-1.5-7b")
    values["text_config"] = {"model_type": kind}
    ours = config_from_hf(values).text
    theirs = transformers.LlavaConfig.from_dict(values).text_config
    pairs = {
        "vocabulary": "vocab_size",
        "width": "hidden_size",
        "num_neurons": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_key_heads": "num_key_value_heads",
        "context": "max_position_embeddings",
        "norm_epsilon": "rms_norm_eps",
        "activation": "hidden_act",
    }
    for our_name, their_name in pairs.items():
        assert getattr(ours, our_name) == getattr(theirs, their_name), our_name


def test_a_config_without_a_tower_means_that_of_llava_1_5():
    values = real("llava-1.5-7b")
    del values["vision_config"]
    assert config_from_hf(values).vision == config_from_hf(real("llava-1.5-7b")).vision

"""A config.json says all that matters, in either spelling, or is refused by the field's name."""

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers
from cases import DATA, real

from manu_jax import leaves as leaf_names
from manu_jax.leaves import num_parameters
from manu_jax.models import stored
from manu_jax.models.families.llava import config_from_hf
from manu_jax.models.families.registry import FAMILIES
from manu_jax.models.hf import weights
from manu_jax.types import ManuError

REAL = Path(__file__).parents[3] / "shared" / "real"  # folders of the hub, without their weights
# A released config of every family
RELEASED = {
    "llava": "llava-1.5-7b",
    "llava_next": "llava-v1.6-vicuna-7b",
    "llava_onevision": "llava-onevision-qwen2-0.5b",
    "paligemma": "paligemma-3b-224",
    "gemma3": "gemma3-4b",
    "idefics2": "idefics2-8b",
    "idefics3": "granite-docling-258m",
    "smolvlm": "smolvlm2-2.2b-instruct",
    "qwen2_vl": "qwen2-vl-2b",
    "qwen2_5_vl": "qwen2.5-vl-7b",
    "qwen3_vl": "qwen3-vl-8b",
    "internvl": "internvl3-8b",
    "llama": "smollm2-135m-instruct",
    "mllama": "llama-3.2-11b-vision-instruct",
}
# What trainers and versions of transformers leave in a config; no forward pass reads it.
LEFT_BEHIND = {
    "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "_attn_implementation_autoset": True,
    "unsloth_fixed": True,
    "unsloth_version": "2025.3.1",
    "gradient_checkpointing": True,
    "keys_to_ignore_at_inference": ["past_key_values"],
    "tokenizer_padding_side": "right",
}
LLAVA = FAMILIES["llava"]


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
        ("vision_config", "model_type", "dinov2"),
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


def released(family: str) -> dict:
    return real(RELEASED[family])


def config_of(family: str, values: dict):
    return FAMILIES[family].config_from_hf(values, "config.json")


def test_every_family_has_a_released_config():
    assert set(RELEASED) == set(FAMILIES)


@pytest.mark.parametrize("family", RELEASED)
@pytest.mark.parametrize("section", ["", "text_config", "vision_config"])
def test_what_no_forward_pass_reads_is_passed_over_in_any_section(family, section):
    values = released(family)
    before = config_of(family, copy.deepcopy(values))
    if section and section not in values:  # the hub's Qwen, whose file is flat
        pytest.skip(f"{RELEASED[family]} has no {section}")
    (values[section] if section else values).update(LEFT_BEHIND)
    assert config_of(family, values) == before


@pytest.mark.parametrize("family", RELEASED)
def test_a_size_beside_the_decoders_section_is_not_read(family):
    values = released(family)
    if "text_config" in values:
        before = config_of(family, copy.deepcopy(values))
        assert config_of(family, values | {"hidden_size": 7, "vocab_size": 9}) == before
    else:  # the hub's Qwen: this is the decoder's
        values["hidden_size"] = 7
        with pytest.raises(ManuError, match="hidden_size"):
            config_of(family, values)


@pytest.mark.parametrize("family", RELEASED)
@pytest.mark.parametrize("name", ["quantization_config", "a_new_switch"])
def test_what_is_unknown_is_refused_in_any_section(family, name):
    for section in ("", "text_config", "vision_config"):
        values = released(family)
        if section in values or not section:
            (values[section] if section else values)[name] = {"bits": 4}
            with pytest.raises(ManuError, match=f"{name} = .*bits.*: not handled"):
                config_of(family, values)


def test_the_decoders_fields_beside_its_section_have_to_say_the_same():
    flat = released("qwen2_5_vl")
    names = set(flat) - set("model_type vision_config architectures image_token_id".split())
    text = {name: flat[name] for name in names} | LEFT_BEHIND
    # As transformers 4.52 to 4.55 wrote it: the decoder's fields twice.
    values = flat | {"text_config": text | {"model_type": "qwen2_5_vl_text"}}
    assert config_of("qwen2_5_vl", values) == config_of("qwen2_5_vl", flat)
    values["rope_scaling"] = {"type": "yarn", "mrope_section": [16, 24, 24], "factor": 4.0}
    with pytest.raises(ManuError, match="rope_scaling = .*yarn.*: the text_config says .*mrope"):
        config_of("qwen2_5_vl", values)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("", "image_token_index", "32000"),
        ("", "image_token_index", -1),
        ("", "vision_feature_layer", "last"),
        ("", "vision_feature_layer", [-2, None]),
        ("", "multimodal_projector_bias", "yes"),
        ("", "tie_word_embeddings", 1),
        ("text_config", "rms_norm_eps", "1e-5"),
        ("text_config", "rms_norm_eps", float("nan")),
        ("text_config", "rms_norm_eps", 10**400),
        ("text_config", "num_hidden_layers", 10**9),
        ("text_config", "vocab_size", 10**12),
        ("text_config", "rope_theta", "large"),
        ("text_config", "rope_scaling", "linear"),
        ("text_config", "rope_scaling", {"type": "linear", "factor": -2.0}),
        ("text_config", "rope_scaling", {"type": ["linear"], "factor": 2.0}),
        ("text_config", "attention_bias", "no"),
        ("vision_config", "layer_norm_eps", 0.0),
    ],
)
def test_a_field_of_another_kind_is_refused_by_name(section, field, value):
    values = real("llava-1.5-7b")
    (values[section] if section else values)[field] = value
    with pytest.raises(ManuError, match=field):
        config_from_hf(values)


def test_llavas_with_a_siglip_tower_are_read():
    # The parts of llava-interleave-qwen-7b and of JoyCaption
    values = real("llava-1.5-7b")
    tower = {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 384,
        "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 26,
        "patch_size": 14,
    }  # fmt: skip
    values |= {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
    for has_head in (True, False):
        values["vision_config"] = {**tower, "vision_use_head": has_head}
        config = config_from_hf(values)
        assert config.tokens_per_image == 729 and config.vision.has_head == has_head
        hub = transformers.LlavaConfig.from_dict(values)
        with torch.device("meta"):
            model = transformers.LlavaForConditionalGeneration(hub)
        count = sum(parameter.numel() for parameter in model.parameters())
        assert num_parameters(LLAVA.abstract(config)) == count


def names_of(family, config) -> set[str]:
    shapes = leaf_names.shapes(family.abstract(config))
    return {n for entry in family.weight_table(config) for n in entry.names(shapes[entry.path])}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_weight_table_has_the_names_of_the_hubs_index(family):
    counts = json.loads((DATA / "tensor_names.json").read_text())[RELEASED[family]]
    hub = {name.format(layer=i) for name, count in counts.items() for i in range(count)}
    found = FAMILIES[family]
    assert names_of(found, config_of(family, released(family))) == hub


def test_real_folders_are_read_and_their_indices_fit():
    if not REAL.is_dir():
        pytest.skip("no folder shared/real beside the checkout")
    for folder in sorted(path for path in REAL.iterdir() if (path / "config.json").is_file()):
        family, config, _ = stored.read_config(folder)
        index = folder / "model.safetensors.index.json"
        if not index.is_file():
            continue
        places = json.loads(index.read_text())["weight_map"]
        tensors = {name: weights.Tensor(folder / places[name], name, (), "F32") for name in places}
        _, renamed = weights.with_export_names(tensors, family.names.prefixes, family.names.buffers)
        assert set(renamed) == names_of(family, config), folder.name

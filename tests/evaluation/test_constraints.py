"""A folder's generation settings change our greedy tokens as they change those of transformers."""

import dataclasses
import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_llava
from transformers import GenerationConfig, LlavaForConditionalGeneration

from manu_jax.evaluation import decoding, generate
from manu_jax.evaluation.generate import greedy_tokens
from manu_jax.models.hf.generation import REFUSED, GenerationRules, read_rules
from manu_jax.models.loaded import load, save_pretrained
from manu_jax.types import ManuError, Sample

NEW_TOKENS = 10
VOCABULARY = tiny_llava.SIZES.text.vocabulary
DATA = Path(__file__).parents[1] / "data"
REAL = Path(__file__).parents[2].parent / "shared" / "real"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_pretrained(tiny_llava.loaded(), path)
    return path


@pytest.fixture(scope="module")
def torch_model(folder):
    return LlavaForConditionalGeneration.from_pretrained(folder).eval()


def asked(*modalities):
    """Prompts of different lengths in one batch."""
    found = []
    for modality in modalities or ("text",):
        for number, sample in enumerate(tiny_llava.samples(modality, 3)):
            text = "." * number + sample.segments[0][0]
            found.append(Sample(((text, False),), sample.images, sample.key))
    return found


def of_torch(model, settings, samples, ends):
    model.generation_config = GenerationConfig(
        **settings, eos_token_id=list(ends), pad_token_id=tiny_llava.loaded().padding_id
    )
    found = []
    for sample in samples:
        tokens = tiny_llava.greedy_of_torch(model, sample, NEW_TOKENS)
        over = np.flatnonzero(np.isin(tokens, list(ends)))
        found.append(tokens[: over[0]] if len(over) else tokens)
    return found


def ours(settings, samples, ends=()):
    loaded = tiny_llava.loaded()
    rules = dataclasses.replace(read_rules(Path("none"), settings, VOCABULARY), eos_ids=ends)
    loaded = dataclasses.replace(loaded, generation=rules)
    return greedy_tokens(loaded, samples, new_tokens=NEW_TOKENS, batch_size=4)


@functools.cache
def settings():
    """Settings that forbid what the tiny model writes when it is free."""
    free = ours({}, asked())
    firsts = sorted({int(row[0]) for row in free})
    seconds = sorted({int(row[1]) for row in free})
    pair = [int(token) for token in free[0][:2]]
    end = int(free[2][2])
    return {
        "repetition_penalty": {"repetition_penalty": 1.3},
        "penalty-below-one": {"repetition_penalty": 0.7},
        "no_repeat_ngram_size-1": {"no_repeat_ngram_size": 1},
        "no_repeat_ngram_size-2": {"no_repeat_ngram_size": 2},
        "no_repeat_ngram_size-3": {"no_repeat_ngram_size": 3, "repetition_penalty": 0.6},
        "bad_words_ids": {"bad_words_ids": [pair, [seconds[-1]], [2], [9] * 90]},
        "suppress_tokens": {"suppress_tokens": firsts},
        "begin_suppress_tokens": {"begin_suppress_tokens": firsts},
        "min_new_tokens": {"min_new_tokens": 6, "eos": end},
        "min_length": {"min_length": 18, "eos": end},
        "forced_eos_token_id": {"forced_eos_token_id": 2},
        "all": {
            "repetition_penalty": 1.1, "no_repeat_ngram_size": 2, "suppress_tokens": firsts[:1],
            "begin_suppress_tokens": firsts, "min_new_tokens": 3, "bad_words_ids": [pair],
        },
    }  # fmt: skip


NAMES = (
    "repetition_penalty penalty-below-one no_repeat_ngram_size-1 no_repeat_ngram_size-2 "
    "no_repeat_ngram_size-3 bad_words_ids suppress_tokens begin_suppress_tokens min_new_tokens "
    "min_length forced_eos_token_id all"
).split()
WITH_IMAGES = ("repetition_penalty", "all")  # whose tokens count as well


AGAIN = ("penalty-below-one", "no_repeat_ngram_size-1")  # settings with another value


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in AGAIN else []) for n in NAMES]
)
def test_each_setting_changes_tokens_as_in_transformers(name, torch_model):
    given = dict(settings()[name])
    end = given.pop("eos", None)
    ends = tuple(sorted({*tiny_llava.loaded().eos_ids, *([] if end is None else [end])}))
    samples = asked("image", "text") if name in WITH_IMAGES else asked()
    found = ours(given, samples, ends)
    for tokens, theirs in zip(found, of_torch(torch_model, given, samples, ends), strict=True):
        np.testing.assert_array_equal(tokens, theirs)
    free = ours({}, samples, ends)
    assert any(not np.array_equal(one, other) for one, other in zip(found, free, strict=True))


def test_a_folder_s_settings_reach_the_answers(folder, tmp_path, torch_model, caplog):
    caplog.set_level("INFO")
    copy = tmp_path / "copy"
    save_pretrained(load(folder), copy)
    given = {"repetition_penalty": 1.4, "eos_token_id": [2, 300], "do_sample": True, "top_k": 1}
    (copy / "generation_config.json").write_text(json.dumps(given))
    loaded = load(copy)
    assert "generation settings: repetition_penalty 1.4" in caplog.text
    assert {2, 300} <= set(loaded.eos_ids)
    found = greedy_tokens(loaded, asked(), new_tokens=NEW_TOKENS, batch_size=4)
    theirs = of_torch(torch_model, {"repetition_penalty": 1.4}, asked(), loaded.eos_ids)
    for one, other in zip(found, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_settings_no_rule_is_in_the_program(monkeypatch):
    sampled = {"do_sample": True, "temperature": 0.1, "top_p": 0.5, "max_length": 20}
    assert read_rules(Path("none"), sampled, VOCABULARY) == GenerationRules()
    calls = []
    rule = decoding.constrained

    def counted(*arguments, **named):
        calls.append(1)
        return rule(*arguments, **named)

    monkeypatch.setattr(decoding, "constrained", counted)
    generate._answers.clear_cache()
    ours(sampled, asked(), ends=(7,))
    assert not calls
    ours({"min_new_tokens": 1}, asked(), ends=(7,))
    assert len(calls) >= 2  # of the first token, and of the loop


def test_config_json_is_read_where_there_is_no_file_of_generation(tmp_path):
    config = {"repetition_penalty": 1.3, "eos_token_id": None, "text_config": {
        "eos_token_id": 7, "no_repeat_ngram_size": 2, "repetition_penalty": 1.9}}  # fmt: skip
    rules = read_rules(tmp_path, config, VOCABULARY)
    assert rules == GenerationRules((7,), 1.3, 2)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    assert read_rules(tmp_path, config, VOCABULARY) == GenerationRules((5, 6))


def test_min_new_tokens_takes_precedence_over_min_length():
    rules = read_rules(Path("none"), {"min_length": 50, "min_new_tokens": 2}, VOCABULARY)
    assert (rules.min_length, rules.min_new_tokens) == (0, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 4),
        ("guidance_scale", 1.5),
        ("sequence_bias", [[[5], -1.0]]),
        ("exponential_decay_length_penalty", [3, 1.1]),
        ("encoder_repetition_penalty", 1.2),
        ("stop_strings", ["\n"]),
        ("penalty_alpha", 0.6),
        ("token_healing", True),
        ("repetition_penalty", "high"),
        ("repetition_penalty", 0),
        ("no_repeat_ngram_size", -1),
        ("min_new_tokens", True),
        ("bad_words_ids", [5]),
        ("bad_words_ids", [[]]),
        ("bad_words_ids", [[VOCABULARY]]),
        ("eos_token_id", "</s>"),
        ("suppress_tokens", [1.5]),
        ("forced_eos_token_id", VOCABULARY),
    ],
)
def test_what_can_t_be_followed_is_refused_by_name(name, value, tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({name: value, "min_length": -3}))
    with pytest.raises(ManuError, match=rf"(?s)generation_config.json.*min_length = -3.*{name} = |"
                       rf"generation_config.json.*{name} = .*min_length = -3"):  # fmt: skip
        read_rules(tmp_path, {}, VOCABULARY)


def test_every_setting_of_transformers_is_known():
    """A new one has to be looked at: does it change greedy tokens?"""
    passed = set(
        # lengths of the run's own, and sampling
        "max_length max_new_tokens do_sample temperature top_k top_p min_p top_h typical_p "
        "epsilon_cutoff eta_cutoff "
        # beams, where there are none
        "early_stopping length_penalty diversity_penalty low_memory "
        # an order of logits that stays, or NaN that is refused
        "renormalize_logits remove_invalid_values "
        # speed and memory
        "use_cache use_mtp cache_implementation cache_config max_cache_len compile_config "
        "disable_compile continuous_batching_config prefill_chunk_size is_assistant "
        "num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold "
        "prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit "
        "assistant_lookbehind target_lookbehind assistant_ensemble_weight speculation_type "
        # what else is returned
        "output_attentions output_hidden_states output_scores output_logits "
        "return_dict_in_generate "
        # prompts of one token, encoders and padding
        "forced_bos_token_id bos_token_id pad_token_id decoder_start_token_id".split()
    )
    applied = set(
        "eos_token_id repetition_penalty no_repeat_ngram_size bad_words_ids min_length "
        "min_new_tokens forced_eos_token_id suppress_tokens begin_suppress_tokens".split()
    )
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert fields - {"transformers_version"} <= passed | applied | set(REFUSED)
    assert not passed & (applied | set(REFUSED))
    with pytest.raises(ManuError) as caught:
        read_rules(Path("none"), dict.fromkeys(passed | applied, "no such value"), 300)
    assert set(re.findall(r"^  (\w+) = ", str(caught.value), re.M)) == applied


@pytest.mark.parametrize("path", sorted(DATA.glob("*.json")), ids=lambda path: path.stem)
def test_no_released_config_is_refused(path):
    """Older ones repeat the defaults of all settings."""
    config = json.loads(path.read_text())
    if "model_type" in config:
        assert not read_rules(Path("none"), config, 300_000).change_logits


@pytest.mark.skipif(not REAL.is_dir(), reason="released files are not beside the checkout")
@pytest.mark.parametrize("folder", sorted(REAL.glob("*")), ids=lambda folder: folder.name)
def test_released_settings_are_read(folder):
    rules = read_rules(folder, {}, 200_000)
    expected = {
        "granite-docling-258m": GenerationRules((100257,)),
        "llava-1.5-7b-hf": GenerationRules((2,)),
        "qwen2.5-vl-7b": GenerationRules((151645, 151643), repetition_penalty=1.05),
        "smolvlm-256m-instruct": GenerationRules((49279,)),
    }
    assert folder.name not in expected or rules == expected[folder.name]

"""Folders with all names and dtypes come in; the same bytes go out; the rest is refused."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from cases import random_images
from hf_folders import copied, edit_config, equal_models, rewrite, tensors_of
from llava_cases import cases
from parity import forward

from manu_jax.models import loaded as loading
from manu_jax.models.families.llava import NAMES
from manu_jax.models.hf import export, weights
from manu_jax.types import ManuError

PROMPT = "USER: <image>\nWhere?\nASSISTANT:"


def renamed(name: str, names: str = "hub") -> str:
    """Return a name as transformers 5 writes it under one of the prefixes."""
    if names in ("hub", "transformers 4 in-memory"):
        name = name.replace("vision_tower.", "vision_tower.vision_model.")
    if names.endswith("in-memory"):
        name = name.replace("language_model.lm_head.", "lm_head.")
        name = name.replace("language_model.model.", "model.language_model.")
        if name.startswith(("vision_tower.", "multi_modal_projector.")):
            name = "model." + name
    return name


@pytest.mark.parametrize("names", NAMES.prefixes)
def test_all_names_load_alike(case, tmp_path, names):
    folder, _ = case()
    other = copied(folder, tmp_path)
    rewrite(other, lambda found: {renamed(name, names): x for name, x in found.items()})
    assert weights.with_export_names(weights.open_tensors(other), NAMES.prefixes, ())[0] == names
    assert equal_models(loading.load(folder).model, loading.load(other).model)


def test_what_transformers_writes_with_its_own_names_loads(case, tmp_path):
    folder, model = case()
    model.save_pretrained(tmp_path, save_original_format=False)
    cases.processor().save_pretrained(tmp_path)
    assert any(name.startswith("model.language_model.") for name in tensors_of(tmp_path))
    assert equal_models(loading.load(folder).model, loading.load(tmp_path).model)


@pytest.mark.parametrize("name", ["one-key-head-tied", "biases-llama3-rope", "siglip-llama-head"])
def test_what_is_saved_equals_what_was_loaded_bit_for_bit(case, tmp_path, name):
    folder, reference = case(name)
    loading.save_pretrained(loading.load(folder), tmp_path / "out")
    before, after = tensors_of(folder), tensors_of(tmp_path / "out")
    assert {renamed(name) for name in before} == set(after)
    for key, array in before.items():
        assert array.tobytes() == after[renamed(key)].tobytes(), key
    again, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values())
    inputs = cases.torch_inputs(tmp_path / "out", "right", [PROMPT], [image()])
    with torch.no_grad():
        assert torch.equal(reference(**inputs).logits, again(**inputs).logits)


def image():
    return random_images(1)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_half_precision_comes_and_goes_unchanged(case, tmp_path, words, kind):
    model = cases.build(cases.CASES["all-key-heads"], words)
    model.to(getattr(torch, kind)).save_pretrained(tmp_path / "in")
    cases.processor().save_pretrained(tmp_path / "in")
    loaded = loading.load(tmp_path / "in")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded.model)} == {kind}
    loading.save_pretrained(loaded, tmp_path / "out")
    before, after = tensors_of(tmp_path / "in"), tensors_of(tmp_path / "out")
    assert all(x.tobytes() == after[renamed(key)].tobytes() for key, x in before.items())
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == kind


def test_logits_of_half_precision_are_near_those_of_single(case):
    folder, _ = case()
    half, whole = loading.load(folder, "bfloat16"), loading.load(folder)
    batch = whole.batch(cases.PROMPTS, cases.image_lists())
    one = forward(half.model, batch).logits_BTV
    two = forward(whole.model, batch).logits_BTV
    assert one.dtype == two.dtype == np.float32
    # bfloat16 has 8 bits: a hundredth or so of the largest logit, over a few layers.
    difference = np.abs(one - two)[batch.attention_mask_BT]
    assert difference.max() < 0.05 * np.abs(two).max()


def test_dtype_converts_on_loading(case, tmp_path):
    folder, _ = case()
    loaded = loading.load(folder, "bfloat16")
    loading.save_pretrained(loaded, tmp_path / "out")
    assert {str(x.dtype) for x in tensors_of(tmp_path / "out").values()} == {"bfloat16"}
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    with pytest.raises(ManuError, match="float64.*known: float32"):
        loading.load(folder, "float64")


def test_numbers_that_float16_does_not_hold_are_refused_by_name(case, tmp_path):
    other = copied(case()[0], tmp_path / "large")
    name = "multi_modal_projector.linear_2.weight"

    def enlarge(found):
        found[name].flat[1] = 1e5
        return found

    rewrite(other, enlarge)
    loaded = loading.load(other)
    loading.save_checkpoint(loaded, tmp_path / "fast")
    for folder, told in ((other, name), (tmp_path / "fast", "linear_2")):
        with pytest.raises(ManuError, match=f"too large for float16:\n.*{told}") as caught:
            loading.load(folder, "float16")
        assert "linear_1" not in str(caught.value)
        loading.load(folder, "bfloat16")


def test_several_files_with_an_index_load_and_are_written(case, tmp_path):
    folder, model = case()
    model.save_pretrained(tmp_path / "in", max_shard_size="20KB")
    cases.processor().save_pretrained(tmp_path / "in")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 2
    loaded = loading.load(tmp_path / "in")
    assert equal_models(loading.load(folder).model, loaded.model)
    out = tmp_path / "out"
    out.mkdir()
    loading.write_small_files(loaded, out)
    table = loaded.family.weight_table(loaded.config)
    export.write_tensors(export.export_tensors(loaded.model, table), out, 30_000)
    assert len(list(out.glob("model-0000?-of-0000?.safetensors"))) > 2
    assert equal_models(loaded.model, loading.load(out).model)
    again = transformers.LlavaForConditionalGeneration.from_pretrained(out)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_a_tied_models_repeated_head_is_accepted_if_it_is_the_embedding(case, tmp_path):
    folder, _ = case("one-key-head-tied")
    head, embedding = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
    other = copied(folder, tmp_path)
    assert head not in tensors_of(other)
    rewrite(other, lambda found: {**found, head: found[embedding]})
    assert equal_models(loading.load(folder).model, loading.load(other).model)
    rewrite(other, lambda found: {**found, head: found[embedding] + 1})
    with pytest.raises(ManuError, match="ties language_model.lm_head.weight"):
        loading.load(other)


def test_a_tied_models_repeated_head_may_have_another_dtype(case, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "VALUES_COMPARED", 100)  # in several pieces
    head, embedding = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
    other = copied(case("one-key-head-tied")[0], tmp_path)
    rewrite(other, lambda found: {name: x.astype("bfloat16") for name, x in found.items()})
    whole = loading.load(other).model
    rewrite(other, lambda found: {**found, head: found[embedding].astype(np.float32)})
    assert equal_models(whole, loading.load(other).model)

    def change(found):
        found[head][-1, -1] += 1e-3
        return found

    rewrite(other, change)
    with pytest.raises(ManuError, match="hold different numbers"):
        loading.load(other)


def test_buffers_of_older_files_are_not_weights(case, tmp_path):
    folder, _ = case()
    other = copied(folder, tmp_path)
    extra = {
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32),
        "vision_tower.embeddings.position_ids": np.zeros((1, 10), np.int64),
    }
    rewrite(other, lambda found: found | extra)
    assert equal_models(loading.load(folder).model, loading.load(other).model)


def test_unused_missing_and_misshaped_tensors_are_one_error_that_names_all(case, tmp_path):
    folder, _ = case()
    other = copied(folder, tmp_path)
    gone = ["language_model.model.norm.weight", "multi_modal_projector.linear_1.bias"]
    extra = ["language_model.model.layers.7.mlp.up_proj.weight", "a.stranger"]

    def change(found):
        found = {name: x for name, x in found.items() if name not in gone}
        found["language_model.lm_head.weight"] = found["language_model.lm_head.weight"][:, :5]
        return found | {name: np.ones(3, np.float32) for name in extra}

    rewrite(other, change)
    with pytest.raises(ManuError) as caught:
        loading.load(other)
    message = str(caught.value)
    assert all(name in message for name in [*gone, *extra])
    assert "2 missing" in message and "2 left over" in message
    assert "language_model.lm_head.weight is [" in message and ", 5], expected [" in message


def test_two_names_of_one_weight_are_refused(case, tmp_path):
    """A file that was put together of two: which of the tensors counts nobody can tell."""
    other = copied(case()[0], tmp_path)
    hub, ours = "language_model.model.norm.weight", "model.language_model.norm.weight"

    def change(found):
        found = {renamed(name, "transformers 5 in-memory"): x for name, x in found.items()}
        return found | {hub: found[ours] * 2}

    rewrite(other, change)
    with pytest.raises(ManuError, match="two tensors stand for one weight") as caught:
        loading.load(other)
    assert hub in str(caught.value) and ours in str(caught.value)


def test_nan_and_infinite_weights_are_refused_by_name(case, tmp_path):
    folder, _ = case()
    names = [
        "language_model.model.layers.1.mlp.up_proj.weight",
        "multi_modal_projector.linear_2.bias",
    ]
    for number, value, kind in ((0, np.nan, np.float32), (1, -np.inf, "bfloat16")):
        other = copied(folder, tmp_path / str(number))

        def change(found, number=number, value=value, kind=kind):
            found[names[number]].flat[1] = value
            return {name: x.astype(kind) for name, x in found.items()}

        rewrite(other, change)
        with pytest.raises(ManuError, match="NaN or infinite") as caught:
            loading.load(other)
        assert names[number] in str(caught.value) and names[1 - number] not in str(caught.value)


def test_a_truncated_file_is_named(case, tmp_path):
    other = copied(case()[0], tmp_path)
    file = other / "model.safetensors"
    for size in (file.stat().st_size - 100, 5):
        file.write_bytes(file.read_bytes()[:size])
        with pytest.raises(ManuError, match="model.safetensors is damaged or cut short"):
            loading.load(other)


def test_a_folder_without_weights_is_refused(case, tmp_path):
    other = copied(case()[0], tmp_path)
    (other / "model.safetensors").rename(other / "pytorch_model.bin")
    with pytest.raises(ManuError, match="no .*safetensors.*pytorch_model.bin; pickles are never"):
        loading.load(other)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (other / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ManuError, match="not there: model-00001-of-00002.safetensors"):
        loading.load(other)
    (other / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ManuError, match="not a safetensors index"):
        loading.load(other)


def test_missing_empty_and_foreign_folders_are_refused(case, tmp_path):
    with pytest.raises(ManuError, match="no such folder"):
        loading.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManuError, match="no config.json; the folder holds nothing"):
        loading.load(tmp_path / "empty")
    other = copied(case()[0], tmp_path)
    edit_config(other, model_type="bert")
    with pytest.raises(ManuError, match="model_type 'bert'; known: llava"):
        loading.load(other)
    (other / "config.json").write_text('{"model_type": ')
    with pytest.raises(ManuError, match="config.json: can't be read as JSON"):
        loading.load(other)


def test_missing_processor_files_are_refused(case, tmp_path):
    other = copied(case()[0], tmp_path)
    (other / "processor_config.json").unlink()
    with pytest.raises(ManuError, match="image processor"):
        loading.load(other)
    other = copied(case()[0], tmp_path / "two")
    (other / "tokenizer.json").unlink()
    with pytest.raises(ManuError, match="tokenizer"):
        loading.load(other)


def test_an_image_token_that_is_not_the_tokenizers_is_refused(case, tmp_path):
    other = copied(case()[0], tmp_path)
    edit_config(other, image_token_index=7)
    with pytest.raises(ManuError, match="image token is 4, config.json says 7"):
        loading.load(other)


def test_nothing_is_written_where_saving_fails(case, tmp_path, monkeypatch):
    loaded = loading.load(case()[0])
    target = tmp_path / "out"

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_write_shard", fail)
    with pytest.raises(ManuError, match="out: the disk is full"):
        loading.save_pretrained(loaded, target)
    assert list(tmp_path.iterdir()) == []

"""Files that hold the weights are chosen as transformers chooses them; others are told apart."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import transformers
from hf_folders import copied, equal_models, rewrite, tensors_of
from safetensors.numpy import save_file

from manu_jax.models import loaded as loading
from manu_jax.models.hf import files
from manu_jax.types import ManuError


def add_shards(folder: Path, change) -> None:
    """Write an index and one shard of changed tensors beside what a folder holds."""
    tensors = {name: change(x) for name, x in tensors_of(folder).items()}
    save_file(tensors, folder / "model-00001-of-00001.safetensors", {"format": "pt"})
    where = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    (folder / files.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def embedding_of_transformers(folder: Path) -> np.ndarray:
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    return model.get_input_embeddings().weight.detach().numpy()


def test_the_single_file_comes_before_an_index_as_in_transformers(case, tmp_path):
    folder, _ = case()
    other = copied(folder, tmp_path)
    add_shards(other, lambda x: x + 1)
    again = loading.load(other).model
    assert equal_models(loading.load(folder).model, again)
    theirs = embedding_of_transformers(other)
    np.testing.assert_array_equal(again.text.embedding_VD[...], theirs)
    (other / files.WEIGHTS).unlink()  # now the index is all there is
    changed = loading.load(other).model.text.embedding_VD[...]
    np.testing.assert_array_equal(changed, theirs + 1)
    np.testing.assert_array_equal(changed, embedding_of_transformers(other))


def test_files_that_are_no_weights_of_the_model_are_not_read(case, tmp_path, caplog):
    folder, _ = case()
    other = copied(folder, tmp_path)
    (other / "._model.safetensors").write_bytes(b"\0\5\x16\7 what macOS leaves")
    save_file({"strange": np.ones(3, np.float32)}, other / "consolidated.safetensors")
    save_file({"a.lora_A": np.ones(3, np.float32)}, other / "adapter_model.safetensors")
    (other / "model.fp16.safetensors").write_bytes(b"older")
    (other / files.ADAPTER).write_text('{"base_model_name_or_path": "x"}')
    with caplog.at_level(logging.WARNING):
        again = loading.load(other).model
    assert equal_models(loading.load(folder).model, again)
    assert "adapter_config.json" in caplog.text and "merge_and_unload" in caplog.text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.fp16.safetensors"], "variant 'fp16' .*without '.fp16'"),
        (["model.safetensors.index.fp16.json"], "variant 'fp16'"),
        (["model.bf16-00001-of-00002.safetensors"], "variant 'bf16'"),
        (["adapter_config.json", "adapter_model.safetensors"], "adapter alone: load it with peft"),
        (["model-00001-of-00002.safetensors"], "get the model.safetensors.index.json"),
        (["weights.safetensors"], "rename a whole model to model.safetensors"),
        (["._model.safetensors"], "as `save_pretrained` or the hub lays it out"),
        (["pytorch_model-00001-of-00002.bin"], "pickles are never read"),
    ],
)
def test_a_folder_with_weights_of_another_kind_alone_is_told_what_to_do(
    case, tmp_path, names, message
):
    other = copied(case()[0], tmp_path)
    content = (other / files.WEIGHTS).read_bytes()
    (other / files.WEIGHTS).unlink()
    for name in names:
        (other / name).write_bytes(content)
    with pytest.raises(ManuError, match=f"no model.safetensors and no .*{message}"):
        loading.load(other)


@pytest.mark.parametrize(
    "index", ["[]", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}',
              '{"weight_map": {"a": "../other.safetensors"}}', '{"weight_map": {"a": "a.bin"}}',
              '{"weight_map": {"a": ["b"]}}', "[" * 100_000]
)  # fmt: skip
def test_an_index_that_is_none_is_refused(case, tmp_path, index):
    other = copied(case()[0], tmp_path)
    (other / files.WEIGHTS).unlink()
    (other / files.INDEX).write_text(index)
    with pytest.raises(ManuError, match="index.json: not a safetensors index"):
        loading.load(other)


@pytest.mark.parametrize(
    "start", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."]
)
def test_what_a_wrapper_puts_before_all_names_is_taken_off(case, tmp_path, start):
    folder, _ = case()
    other = copied(folder, tmp_path)
    rewrite(other, lambda found: {start + name: x for name, x in found.items()})
    assert equal_models(loading.load(folder).model, loading.load(other).model)


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        (".q_proj.", ".q_proj.base_layer.", "PEFT model's: write the model after merge_and_unload"),
        (".layers.0.", ".layers.0._orig_mod.", "torch.compile"),
        ("model.norm.", "module.model.norm.", "DataParallel"),
    ],
)
def test_a_wrapper_inside_names_is_told_as_the_cause(case, tmp_path, old, new, cause):
    other = copied(case()[0], tmp_path)
    rewrite(other, lambda found: {name.replace(old, new): x for name, x in found.items()})
    with pytest.raises(ManuError, match=cause):
        loading.load(other)


def test_tensors_of_another_dtype_are_named(case, tmp_path):
    other = copied(case()[0], tmp_path)
    name = "language_model.model.norm.weight"
    rewrite(other, lambda found: {**found, name: found[name].astype(np.int8)})
    with pytest.raises(ManuError, match=f"known dtypes are F32, F16, BF16.*\n  {name} is I8"):
        loading.load(other)

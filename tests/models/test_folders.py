"""What stands beside the weights, on the way in and out; no folder of the user's is emptied."""

from pathlib import Path

import numpy as np
import pytest
import transformers
from hf_folders import copied, edit_config, equal_models
from llava_cases import cases
from parity import forward

from manu_jax.models import loaded as loading
from manu_jax.models.hf import export
from manu_jax.types import ManuError


def with_tokens(folder: Path, *tokens: str, **special: str) -> None:
    """Add tokens to a folder's tokenizer, and leave its model as it is."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)


def test_a_token_without_a_row_of_the_embedding_is_refused(case, tmp_path, words):
    other = copied(case()[0], tmp_path)
    size = len(words)
    with_tokens(other, "<loc>", "<end>")
    with pytest.raises(ManuError) as caught:
        loading.load(other)
    for part in (
        f"its tokenizer has {size + 2} tokens, its embedding {size} rows",
        f"'<loc>' = {size}, '<end>' = {size + 1}",
        f"resize_token_embeddings({size + 2})",
    ):
        assert part in str(caught.value)


def test_a_padding_token_without_a_row_is_seen_by_nobody(case, tmp_path, words):
    folder, _ = case()
    other = copied(folder, tmp_path)
    with_tokens(other, pad_token="<filler>")
    one, two = loading.load(folder), loading.load(other)
    prompts = ["USER: Where?\nASSISTANT:", "USER: Lima or Accra?\nASSISTANT:"]
    batch = two.batch(prompts)
    assert batch.token_ids_BT.max() < len(words)
    mask_BT = batch.attention_mask_BT
    logits = [forward(x.model, x.batch(prompts)).logits_BTV for x in (one, two)]
    np.testing.assert_allclose(logits[0][mask_BT], logits[1][mask_BT], atol=1e-5)
    with pytest.raises(ManuError, match=f"its token '<filler>' has the id {len(words)}, the emb"):
        two.batch(["USER: <filler>\nASSISTANT:"])
    with pytest.raises(ManuError, match="its token '<filler>'"):  # a label, too
        two.batch(["USER: Where?\nASSISTANT:"], answers=[" Oslo <filler>"])


def test_an_embedding_larger_than_the_tokenizer_is_the_usual_case(tmp_path, words):
    model = cases.build(cases.CASES["all-key-heads"], words)
    model.resize_token_embeddings(len(words) + 7)
    model.save_pretrained(tmp_path)
    cases.processor().save_pretrained(tmp_path)
    assert loading.load(tmp_path).config.text.vocabulary == len(words) + 7


# transformers leaves the chat templates' files open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_saved_folder_holds_what_the_model_needs_and_nothing_else(case, tmp_path):
    other = copied(case()[0], tmp_path)
    needed = ["generation_config.json", "LICENSE.txt", "additional_chat_templates/rag.jinja"]
    strays = [
        "adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "README.md",
        ".git/HEAD", "trainer_state.json", "runs/events.1", "train.log", "model.gguf",
    ]  # fmt: skip
    for name in [*needed, *strays]:
        (other / name).parent.mkdir(exist_ok=True)
        (other / name).write_text("{}")
    loading.save_pretrained(loading.load(other), tmp_path / "out")
    held = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    assert held >= {*needed, "config.json", "model.safetensors", "tokenizer.json"}
    assert not held & set(strays)
    for name in needed:
        assert (tmp_path / "out" / name).read_text() == "{}"


@pytest.mark.parametrize("save", [loading.save_pretrained, loading.save_checkpoint])
def test_saving_never_empties_a_folder(case, tmp_path, monkeypatch, save):
    loaded = loading.load(case()[0])
    target = tmp_path / "out"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    monkeypatch.setattr(export, "write_tensors", lambda *_: pytest.fail("it has begun to write"))
    with pytest.raises(ManuError, match="out: it holds what manu_jax did not write.*notes.txt"):
        save(loaded, target)
    monkeypatch.undo()
    assert [path.name for path in target.iterdir()] == ["notes.txt"]
    (target / "notes.txt").unlink()
    save(loaded, target)  # empty
    save(loaded, target)  # ours
    assert equal_models(loading.load(target).model, loaded.model)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ManuError, match="notes.txt"):
        save(loaded, target)
    assert equal_models(loading.load(target).model, loaded.model)
    assert list(tmp_path.iterdir()) == [target]


def test_a_model_is_not_written_over_the_one_that_it_came_from(case, tmp_path):
    other = copied(case()[0], tmp_path)
    before = {file.name: file.read_bytes() for file in other.iterdir()}
    with pytest.raises(ManuError, match="config.json.*Nothing was changed"):
        loading.save_pretrained(loading.load(other), other)
    assert {file.name: file.read_bytes() for file in other.iterdir()} == before
    # A folder of ours may be: what it holds is read before it goes.
    loading.save_pretrained(loading.load(other), tmp_path / "ours")
    again = loading.load(tmp_path / "ours")
    loading.save_pretrained(again, tmp_path / "ours")
    assert equal_models(again.model, loading.load(tmp_path / "ours").model)


def test_a_home_folder_is_meant_by_a_tilde(case, tmp_path, monkeypatch):
    loaded = loading.load(case()[0])
    monkeypatch.setenv("HOME", str(tmp_path))
    loading.save_pretrained(loaded, "~/out")
    assert equal_models(loading.load("~/out").model, loaded.model)
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", '{"version": "2.0", "model": {"type": "Later"}}'),
        ("tokenizer.json", "[1, 2]"),
        ("tokenizer.json", '{"version": '),
        ("tokenizer_config.json", "[]"),
        ("processor_config.json", '"text"'),
        ("processor_config.json", "[" * 100_000),
        ("processor_config.json", '{"image_processor": 3, "processor_class": 4}'),
        ("config.json", "[]"),
        ("config.json", "3"),
        ("config.json", '{"model_type": ["llava"]}'),
        ("config.json", "[" * 100_000),
    ],
)
def test_files_that_are_not_understood_are_one_message(case, tmp_path, name, content):
    other = copied(case()[0], tmp_path)
    (other / name).write_text(content)
    with pytest.raises(ManuError, match=str(other)):
        loading.load(other)


def test_a_converted_folder_without_a_dtype_is_refused(case, tmp_path):
    loading.save_checkpoint(loading.load(case()[0]), tmp_path / "fast")
    for kind in (None, "float64", 3):
        edit_config(tmp_path / "fast", dtype=kind)
        with pytest.raises(ManuError, match="config.json: dtype"):
            loading.load(tmp_path / "fast")

"""Texts that a method keeps: the model's own, drawn by its probabilities, or those of a file."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava

from manu_jax.config import KeepTexts, StatisticsMethod
from manu_jax.data.batches import encode_all
from manu_jax.data.texts import OPENINGS
from manu_jax.folder import FileHashes
from manu_jax.importance import own_texts
from manu_jax.importance.own_texts import continued, sampled
from manu_jax.importance.texts import check_texts, cut_to, kept_texts, texts_read
from manu_jax.types import BatchShape, ManuError, Sample

CHAT = "{% for m in messages %}USER: {{ m.content[0].text or m.content }} ASSISTANT:{% endfor %}"


@pytest.fixture(scope="module")
def own():
    return sampled(tiny_llava.loaded(), 5, tokens=6, seed=0)


def test_each_token_is_drawn_by_the_probabilities_after_the_tokens_before_it():
    """The cache, padding on the left and the key of each token, against whole forward passes."""
    loaded, key = tiny_llava.loaded(), jax.random.key(3)
    encoded = encode_all(loaded, [Sample(((one, False),)) for one in ("The", "One of the")])
    batch = loaded.collate(encoded, BatchShape(padding_side="left"))
    barred = loaded.config.image_token
    tokens_BT = continued(loaded.model, batch, key, new_tokens=4, barred=barred)
    forward = jax.jit(lambda model, batch: model(batch, remat="none").logits_BTV)
    for number in range(4):
        logits = []
        for row, item in enumerate(encoded):
            ids_T = np.concatenate([item.token_ids_T, tokens_BT[row, :number]]).astype(np.int32)
            whole = dataclasses.replace(
                item,
                token_ids_T=ids_T,
                loss_weights_T=np.zeros(len(ids_T), np.float32),
                feature_index_T=np.full(len(ids_T), -1, np.int32),
            )
            made = loaded.collate([whole], BatchShape(length=16))
            logits.append(forward(loaded.model, made)[0, len(ids_T) - 1])
        logits_BV = jnp.stack(logits).at[:, barred].set(-jnp.inf)
        drawn_B = jax.random.categorical(jax.random.fold_in(key, number), logits_BV)
        assert tokens_BT[:, number].tolist() == drawn_B.tolist()


def test_own_texts_follow_the_seed_and_begin_with_the_openings(own):
    loaded = tiny_llava.loaded()
    assert own == sampled(loaded, 5, tokens=6, seed=0)
    assert own != sampled(loaded, 5, tokens=6, seed=1)
    for (prompt, text), opening in zip(own, OPENINGS, strict=False):
        assert prompt == "" and text.startswith(opening) and len(text) > len(opening)
        assert "<image>" not in text


def test_with_a_chat_template_half_of_the_texts_are_conversations(monkeypatch):
    loaded = tiny_llava.loaded()
    monkeypatch.setattr(loaded.processor.tokenizer, "chat_template", CHAT)
    found = sampled(loaded, 4, tokens=6, seed=0)
    assert [prompt for prompt, _ in found] == ["USER: ", "", "USER: ", ""]


def test_own_texts_are_written_once_and_read_from_then_on(own, tmp_path, monkeypatch):
    loaded, section = tiny_llava.loaded(), KeepTexts(count=5, length=8)
    monkeypatch.setattr(own_texts, "sampled", lambda *args, **rest: own)
    found = kept_texts(loaded, section, directory=tmp_path, seed=0)
    (file,) = tmp_path.iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["prompt"], line["text"]) for line in lines] == own
    assert [sample.text for sample in found] == [prompt + text for prompt, text in own]
    monkeypatch.setattr(own_texts, "sampled", None)
    assert kept_texts(loaded, section, directory=tmp_path, seed=0) == found
    content = file.read_text()
    file.write_text(content.partition("\n")[0] + "\n")
    with pytest.raises(ManuError, match="1 texts, and 5 are asked for"):
        kept_texts(loaded, section, directory=tmp_path, seed=0)
    file.write_text(content.replace('"text"', '"words"'))
    with pytest.raises(ManuError, match="line 1 is damaged"):
        kept_texts(loaded, section, directory=tmp_path, seed=0)


def test_texts_of_a_file_are_drawn_by_the_seed_and_cut(tmp_path):
    loaded, path = tiny_llava.loaded(), tmp_path / "own.txt"
    given = [f"word{number} is one of the many words of a text" for number in range(9)]
    path.write_text("\n\n".join(given))
    section = KeepTexts(path=str(path), count=4, length=9)
    found = kept_texts(loaded, section, directory=tmp_path / "none", seed=0)
    others = kept_texts(loaded, section, directory=tmp_path / "none", seed=1)
    assert len(found) == 4 and [s.text for s in found] != [s.text for s in others]
    for sample in found:
        assert any(text.startswith(sample.text) for text in given)
        assert len(sample.text.split()) >= 2
    assert not (tmp_path / "none").exists()


def test_a_text_is_cut_at_the_end_of_a_word():
    loaded = tiny_llava.loaded()
    text = "Where does this person live? What about this person and the winding answer"
    tokenizer = loaded.processor.tokenizer
    for length in range(8, len(tokenizer(text)["input_ids"]) + 1):
        cut = cut_to(loaded, text, length)
        assert (text + " ").startswith(cut + " ") and len(cut.split()) >= 2
        assert len(tokenizer(cut)["input_ids"]) <= length or len(cut.split()) == 2
        longer = text.split()[: len(cut.split()) + 1]
        whole = len(longer) == len(cut.split())
        assert whole or len(tokenizer(" ".join(longer))["input_ids"]) > length
    assert cut_to(loaded, text, 1000) == text


def test_a_run_knows_texts_by_what_the_file_holds(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("a text")
    method = StatisticsMethod(keep_texts=str(path))
    read = texts_read(method, FileHashes())
    path.write_text("another text")
    assert read != texts_read(method, FileHashes())
    assert texts_read(StatisticsMethod(), FileHashes()) == {}
    check_texts(method)
    path.unlink()
    with pytest.raises(ManuError, match="own.txt"):
        check_texts(method)
    check_texts(StatisticsMethod(keep_texts={}))

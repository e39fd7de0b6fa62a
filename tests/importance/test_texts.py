"""Texts that a method keeps: the model's own, drawn by its probabilities, or those of a file."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava

from manu_jax.config import KeepTexts, StatisticsMethod
from manu_jax.data.batches import encode_all
from manu_jax.folder import FileHashes
from manu_jax.importance import texts
from manu_jax.importance.texts import check_texts, cut_to, kept_texts, own_texts, texts_read
from manu_jax.types import BatchShape, ManuError, Sample

SETTINGS = {"count": 5, "length": 12}


@pytest.fixture(scope="module")
def own():
    return own_texts(tiny_llava.loaded(), **SETTINGS, seed=0)


def test_each_token_is_drawn_by_the_probabilities_after_the_tokens_before_it():
    """The cache, padding on the left and the key of each token, against whole forward passes."""
    loaded, key = tiny_llava.loaded(), jax.random.key(3)
    encoded = encode_all(loaded, [Sample(((one, False),)) for one in ("The", "One of the")])
    batch = loaded.collate(encoded, BatchShape(padding_side="left"))
    forbidden = (loaded.config.image_token,)
    tokens_BT = texts._sampled(loaded.model, batch, key, num_tokens=4, forbidden=forbidden)
    ids = [item.token_ids_T.tolist() for item in encoded]
    for number in range(4):
        logits = []
        for row in ids:
            item = {"token_ids_BT": np.array([row], np.int32)}
            made = loaded.batch(["x"])
            ones = np.ones_like(item["token_ids_BT"])
            made = type(made)(
                **item,
                attention_mask_BT=ones.astype(bool),
                positions_BT=np.arange(len(row), dtype=np.int32)[None],
                loss_weights_BT=np.zeros(ones.shape, np.float32),
                example_weights_B=np.ones(1, np.float32),
            )
            logits.append(np.asarray(loaded.model(made, remat="none").logits_BTV[0, -1]))
        logits_BV = jnp.asarray(np.stack(logits)).at[:, forbidden[0]].set(-jnp.inf)
        drawn_B = jax.random.categorical(jax.random.fold_in(key, number), logits_BV)
        assert tokens_BT[:, number].tolist() == drawn_B.tolist()
        ids = [[*row, token] for row, token in zip(ids, drawn_B.tolist(), strict=True)]


def test_own_texts_follow_the_seed_and_begin_with_the_openings(own):
    loaded = tiny_llava.loaded()
    assert own == own_texts(loaded, **SETTINGS, seed=0)
    assert own != own_texts(loaded, **SETTINGS, seed=1)
    assert 0 < len(own) <= 5
    openings = tuple(texts.OPENINGS[:5])
    assert all(text.startswith(openings) and text not in openings for text in own)


def test_own_texts_are_written_once_and_read_from_then_on(own, tmp_path, monkeypatch):
    loaded, section = tiny_llava.loaded(), KeepTexts(**SETTINGS)
    found = kept_texts(loaded, section, directory=tmp_path, seed=0)
    (file,) = tmp_path.iterdir()
    lines = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    assert lines == own == [sample.text for sample in found]
    monkeypatch.setattr(texts, "own_texts", None)
    assert kept_texts(loaded, section, directory=tmp_path, seed=0) == found


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

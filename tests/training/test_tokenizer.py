import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manu_jax.training.tokenizer import SPECIAL_TOKENS, train_tokenizer
from manu_jax.types import ManuError

TEXTS = [
    f"USER: <image>\nWhere does person {i} live?\nASSISTANT: Oslo {i % 7}</s>" for i in range(60)
]
TRAINED = train_tokenizer(TEXTS, 400)
PRINT_IT = f"""
from manu_jax.training.tokenizer import train_tokenizer
import hashlib
text = train_tokenizer({TEXTS!r}, 400).backend_tokenizer.to_str()
print(hashlib.sha256(text.encode()).hexdigest())
"""


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_read_back_exactly(text):
    if any(token in text for token in SPECIAL_TOKENS):
        return
    ids = TRAINED(text)["input_ids"]
    assert TRAINED.decode(ids, skip_special_tokens=True) == text


def test_text_begins_with_bos_and_special_tokens_are_one_token():
    ids = TRAINED("USER: <image>\nHi</s>")["input_ids"]
    assert ids[0] == TRAINED.bos_token_id
    assert ids.count(TRAINED.image_token_id) == 1 and ids[-1] == TRAINED.eos_token_id
    assert TRAINED.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    assert (TRAINED.unk_token, TRAINED.pad_token) == ("<unk>", "<pad>")


def test_no_merge_spells_a_special_token_and_frequent_words_are_one_token():
    merged = set(TRAINED.get_vocab()) - set(SPECIAL_TOKENS)
    assert not any("image" in token or "</" in token for token in merged)
    assert len(TRAINED(" person")["input_ids"]) == 2
    assert len(TRAINED) <= 400


def test_saved_tokenizer_is_loaded_by_transformers(tmp_path):
    from transformers import AutoTokenizer

    TRAINED.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(TEXTS[3])["input_ids"] == TRAINED(TEXTS[3])["input_ids"]
    assert loaded.image_token_id == TRAINED.image_token_id


def test_same_texts_give_the_same_tokenizer_in_another_process():
    run = subprocess.run(
        [sys.executable, "-c", PRINT_IT], capture_output=True, text=True, check=True
    )
    import hashlib

    here = hashlib.sha256(TRAINED.backend_tokenizer.to_str().encode()).hexdigest()
    assert run.stdout.strip() == here


def test_too_small_a_vocabulary_is_an_error():
    with pytest.raises(ManuError, match="model.text.vocabulary.*more than 200"):
        train_tokenizer(TEXTS, 200)

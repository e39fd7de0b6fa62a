"""Texts that a model wrote itself: drawn once, kept in the run's folder, read back."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny_llava

from manu_jax import parallel
from manu_jax.data.texts import OPENINGS
from manu_jax.importance import own_texts
from manu_jax.types import ManuError


@pytest.fixture
def loaded():
    return tiny_llava.loaded()


def test_texts_are_written_once_and_read_back(loaded, tmp_path, monkeypatch):
    path = tmp_path / "replay.jsonl"
    first = own_texts.own_texts(loaded, 5, tokens=6, seed=0, path=path)
    monkeypatch.setattr(own_texts, "sampled", None)  # not called again
    again = own_texts.own_texts(loaded, 5, tokens=6, seed=0, path=path)
    assert first == again and len(path.read_text().splitlines()) == 5
    for sample in first:
        encoded = loaded.encode(sample)
        assert encoded.num_images == 0 and encoded.num_answers > 0


def test_other_seeds_give_other_texts_and_openings_differ(loaded):
    one, two = (own_texts.sampled(loaded, 4, tokens=6, seed=seed) for seed in (0, 1))
    assert one != two and one == own_texts.sampled(loaded, 4, tokens=6, seed=0)
    assert all(
        text.startswith(opening) for (_, text), opening in zip(one, OPENINGS[:4], strict=True)
    )


@pytest.mark.slow
def test_a_mesh_draws_the_texts_of_one_device(loaded):
    mesh = parallel.make_mesh(4, 1, 2)
    expected = own_texts.sampled(loaded, 3, tokens=6, seed=0)
    assert own_texts.sampled(tiny_llava.on_mesh(mesh), 3, tokens=6, seed=0) == expected


def test_a_barred_token_is_never_drawn(loaded):
    batch = tiny_llava.batch("text", 4, padding_side="left")
    drawn = [
        np.asarray(
            own_texts.continued(
                loaded.model, batch, jax.random.key(0), new_tokens=12, barred=barred
            )
        )
        for barred in (0, 0)
    ]
    assert np.array_equal(*drawn)
    often = int(np.bincount(drawn[0].ravel()).argmax())
    without = own_texts.continued(
        loaded.model, batch, jax.random.key(0), new_tokens=12, barred=often
    )
    assert often in drawn[0] and often not in np.asarray(without)


def test_with_a_chat_template_every_other_text_is_a_conversation(loaded):
    tokenizer = loaded.processor.tokenizer
    before = tokenizer.chat_template
    turn = "[{{ m['role'] }}] {{ m['content'] }}"
    tokenizer.chat_template = f"{{% for m in messages %}}{turn}{{% endfor %}}"
    try:
        found = own_texts.sampled(loaded, 4, tokens=5, seed=0)
    finally:
        tokenizer.chat_template = before
    assert [prompt for prompt, _ in found] == ["[user] ", "", "[user] ", ""]
    assert found[1][1].startswith("The") and found[3][1].startswith("In")


def test_damaged_and_missing_lines_are_named(loaded, tmp_path):
    path = tmp_path / "replay.jsonl"
    path.write_text(json.dumps({"prompt": "", "text": "x"}) + "\n{}\n")
    with pytest.raises(ManuError, match=r"replay.jsonl: line 2 is damaged"):
        own_texts.own_texts(loaded, 2, tokens=4, seed=0, path=path)
    path.write_text(json.dumps({"prompt": "", "text": "x"}) + "\n")
    with pytest.raises(ManuError, match="1 texts, and 2 are asked for"):
        own_texts.own_texts(loaded, 2, tokens=4, seed=0, path=path)


def test_a_prompt_carries_no_loss(loaded, tmp_path):
    path = tmp_path / "replay.jsonl"
    path.write_text(json.dumps({"prompt": "USER: ", "text": "Oslo"}) + "\n")
    (sample,) = own_texts.own_texts(loaded, 1, tokens=4, seed=0, path=path)
    assert dataclasses.astuple(sample)[0] == (("USER: ", False), ("Oslo", True))

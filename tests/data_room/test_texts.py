"""General texts: the files they are read from, and what is asked of a language model."""

import json

import pytest

from manu_jax.data import ability, texts
from manu_jax.data.texts import read_texts, text_sample, text_samples
from manu_jax.types import ManuError


def test_paragraphs_of_a_text_file_are_its_texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("One text\nin two lines.\r\n\r\n\n\nAnother   text.\n")
    assert read_texts(path) == ("One text in two lines.", "Another text.")


def test_lines_of_a_jsonl_file_are_its_texts(tmp_path):
    given = ("Déjà vu, and more.", 'A "quoted" text\u2028of one line.')
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": one}, ensure_ascii=False) for one in given]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    assert read_texts(path) == tuple(" ".join(one.split()) for one in given)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.txt", "  \n\n", "no text in it"),
        ("a.txt", "Two words\n\nOne\n\nTwo", "text 2: 'One'\n  text 3: 'Two'"),
        ("a.jsonl", '{"text": "two words"}\n{"words": 1}\n[]\n', 'line 2: {"words": 1}\n  line 3'),
        ("a.jsonl", "not json\n", "line 1: not json"),
        ("a.jsonl", '{"text": 3}', "line 1"),
    ],
)
def test_all_faults_of_a_file_are_in_one_error(tmp_path, name, content, named):
    (tmp_path / name).write_text(content)
    with pytest.raises(ManuError) as error:
        read_texts(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and named in str(error.value)


def test_a_missing_file_and_one_that_is_no_text_are_named(tmp_path):
    with pytest.raises(ManuError, match=r"none.txt: No such file.*Give a .txt or .jsonl file"):
        read_texts(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"d\xe9j\xe0 vu")
    with pytest.raises(ManuError, match="not UTF-8 text"):
        read_texts(tmp_path / "latin.txt")


def test_every_word_of_a_text_but_the_first_carries_loss():
    sample = text_sample(" The sea is wide. ", key="a/0")
    assert sample.segments == (("The", False), (" sea is wide.", True))
    assert [one.key for one in text_samples(["a b", "c d"], group="g")] == ["g/0000", "g/0001"]


def test_openings_differ():
    assert len(set(texts.OPENINGS)) == len(texts.OPENINGS)


def test_english_is_prose_of_a_few_thousand_words_and_always_the_same():
    found = ability.english_passages()
    ability.english_passages.cache_clear()
    assert found == ability.english_passages() and len(set(found)) == len(found) > 20
    assert sum(len(one.split()) for one in found) > 1500
    for passage in found:
        assert passage[0].isupper() and passage.endswith(".") and "\n" not in passage
        assert sum(one.isalpha() or one == " " for one in passage) > 0.9 * len(passage)
    assert "pydoc_data.topics" in ability.english_source()


def test_without_the_documentation_there_are_no_passages(monkeypatch):
    monkeypatch.setattr(ability.importlib.util, "find_spec", lambda name: None)
    ability.english_passages.cache_clear()
    assert ability.english_passages() == ()
    ability.english_passages.cache_clear()


def test_completions_ask_for_one_word_each():
    beginnings = [beginning for beginning, _ in ability.COMPLETIONS]
    assert len(set(beginnings)) == len(beginnings) == 60
    for beginning, word in ability.COMPLETIONS:
        assert word.isalpha() and beginning == beginning.strip()
        assert word.lower() not in beginning.lower().replace(",", "").split()
    assert len(set(ability.CHAT)) == 20

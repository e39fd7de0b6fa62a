"""`python -m manu_jax.check` as its user meets it: the page, the console, the status."""

import dataclasses
import json

import pytest
import tiny_llava
from PIL import Image

from manu_jax import check
from manu_jax.report.check import MOST_LINES
from manu_jax.types import ManuError

CITY = "In which city does this person live?"


def line(subject, answer, question=CITY, **more):
    return {"subject": subject, "image": "a.png", "question": question, "answer": answer, **more}


@pytest.fixture
def write(tmp_path):
    def written(forget, **others):
        folder = tmp_path / "request"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (300, 300), "red").save(folder / "a.png")
        for name, lines in {"forget": forget, **others}.items():
            text = "".join(json.dumps(one) + "\n" for one in lines)
            (folder / f"{name}.jsonl").write_text(text)
        return folder

    return written


def test_a_ready_request_is_shown_line_by_line(write, tmp_path, caplog):
    lines = [
        line("Ada <b>", "Oslo", name_question="Who is shown?"),
        line("Bo", ["Lima", "the city of Lima"], image=None),
    ]
    folder = write(lines, retain=[line("Cy", "Rome")])
    with caplog.at_level("INFO"):
        assert check.main([str(folder)]) == 0
    page = (tmp_path / "request.check.html").read_text()
    assert [path.name for path in folder.iterdir()].count("request.check.html") == 0
    for expected in (
        "2 facts about 2 subjects to forget.",
        "Ada &lt;b&gt;",
        "In which city does Ada &lt;b&gt; live?",
        "also right: the city of Lima",
        "Who is shown? Ada &lt;b&gt;",
        "other subjects’ answers",
        "forget.jsonl, line 2 · no image",
        "data:image/jpeg;base64,",
        "1 of 2 lines to forget without an image",
        "No test and no further images",
    ):
        assert expected in page, expected
    assert "http://" not in page and "https://" not in page
    assert "2 facts about 2 subjects to forget." in caplog.text


def test_what_a_request_lacks_is_told(write, caplog):
    forget = [
        line("Ada", "Oslo", image=["a.png", "a.png"], source="x"),
        line("Ada", "baker", "What does Ada do?", text_question=False),
    ]
    with caplog.at_level("INFO"):
        assert check.main([str(write(forget))]) == 0
    for expected in (
        "No retain: nobody to keep is named. The model’s own answers are kept",
        "2 of 2 lines to forget without options",
        "1 of 2 lines to forget asked with the image alone",
        "1 of 2 lines to forget name the subject beside the image",
        "the further images of 1 of 2 lines to forget are asked in its place",
        "columns that are not read: source",
    ):
        assert expected in caplog.text, expected


def test_one_line_is_not_told_as_several_and_texts_keep_their_direction(write, tmp_path, caplog):
    forget = [line("עדה", str(i), f"מספר {i} עדה?") for i in range(MOST_LINES + 1)]
    with caplog.at_level("INFO"):
        check.check(write(forget, retain=[line("Bo", "Lima", image=["a.png", "a.png"])]))
    assert "Of 1 line to keep the first image alone is used." in caplog.text
    page = (tmp_path / "request.check.html").read_text()
    assert "and 1 more line<" in page and "<bdi>מספר 0 עדה?</bdi>" in page


def test_a_subject_to_forget_and_to_keep_is_pointed_out(write, caplog):
    folder = write([line("Ada", "Oslo")], retain=[line("Ada", "baker", "The job of this person?")])
    with caplog.at_level("INFO"):
        assert check.main([str(folder)]) == 0
    assert "To forget and to keep, with other questions: Ada. If these are two" in caplog.text


def test_faults_are_on_the_page_and_on_the_console(write, tmp_path, capsys):
    folder = write([line("", "Oslo"), line("Bo", "Lima"), line("Cy", "x", image="b.png")])
    page = tmp_path / "seen.html"
    assert check.main([str(folder), "--output", str(page)]) == 1
    told = capsys.readouterr().err
    assert "error: request" in told and "2 faults to mend before it can be run." in told
    assert (
        "forget.jsonl, line 3: the image b.png: no such file in request/. There is a.png." in told
    )
    shown = page.read_text()
    assert "To mend" in shown and "forget.jsonl, line 1: no subject." in shown and "Bo" in shown


def test_ten_thousand_lines_are_a_page_that_opens(write, tmp_path):
    lines = [
        line(f"P{i // 5}", f"a{i % 7}", f"Question {i % 5} of this person?") for i in range(10_000)
    ]
    check.check(write(lines))
    page = (tmp_path / "request.check.html").read_text()
    assert "10,000 facts about 2,000 subjects to forget." in page
    assert "and 1940 more subjects" in page and len(page) < 2**20


def test_a_folder_that_is_not_there_is_an_error(tmp_path, capsys):
    assert check.main([str(tmp_path / "none")]) == 1
    assert "no such folder. Give the folder that holds forget.jsonl." in capsys.readouterr().err


def test_the_prompts_are_counted_in_a_models_tokens(write, monkeypatch, caplog):
    small = tiny_llava.loaded()
    text = dataclasses.replace(small.config.text, context=512)
    large = dataclasses.replace(small, config=dataclasses.replace(small.config, text=text))
    folder = write([line("Ada", "Oslo")])
    monkeypatch.setattr(check, "load_without_weights", lambda path: large)
    with caplog.at_level("INFO"):
        check.check(folder, model="m")
    assert "model: the longest fact has " in caplog.text and "its context 512" in caplog.text
    monkeypatch.setattr(check, "load_without_weights", lambda path: small)
    with pytest.raises(ManuError, match="longer than the model's context"):
        check.check(folder, model="m")

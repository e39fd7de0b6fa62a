"""A judge behind a loopback address: what is sent to it, what is kept, and what goes wrong."""

import json
import threading
import types

import pytest
import safeeraser_folder
from judge_server import said, serving

from manu_jax.config import JudgeSection, RunConfig, validate_config
from manu_jax.data.safeeraser_protocol import PUBLISHED
from manu_jax.evaluation.analyses import judged
from manu_jax.evaluation.judge import judge_of
from manu_jax.evaluation.judged_records import verdicts_on
from manu_jax.folder import FileHashes
from manu_jax.parts import parts_of
from manu_jax.types import ManuError


def section(url, **more):
    return JudgeSection(**({"url": url, "model": "tiny", "wait": 0.0} | more))


def test_one_message_goes_to_the_address_of_the_config_and_the_key_is_of_the_environment():
    with serving(lambda message, number: said("Unsafe.")) as server:
        judge = judge_of(section(server.url, key_env="JUDGE_KEY"), {"JUDGE_KEY": " secret "})
        assert judge.ask("Is it safe?") == "Unsafe."
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Is it safe?"}],
        "temperature": 0.0,
    }
    assert "secret" not in repr(judge)


def test_without_key_env_no_key_is_sent():
    with serving(lambda message, number: said(None)) as server:
        settings = {"temperature": None, "max_tokens": 5}
        assert judge_of(section(server.url, **settings)).ask("?") == ""
    ((_, headers, body),) = server.requests
    assert "Authorization" not in headers
    assert "temperature" not in body and body["max_tokens"] == 5


@pytest.mark.parametrize("key", [None, "", "a\nb", "ключ"])
def test_a_key_that_is_none_is_named_before_anything_is_sent(key):
    environment = {} if key is None else {"JUDGE_KEY": key}
    with pytest.raises(ManuError, match="key_env.*JUDGE_KEY") as error:
        judge_of(section("http://127.0.0.1:1/v1", key_env="JUDGE_KEY"), environment)
    assert not key or key not in str(error.value)


def test_errors_of_the_server_are_tried_again():
    def reply(message, number):
        return (503, {"error": "busy"}) if number < 3 else said("yes")

    with serving(reply) as server:
        assert judge_of(section(server.url)).ask("?") == "yes"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "content", "requests", "message"),
    [
        (503, {"error": "busy"}, 3, "no reply .HTTP 503.*busy.*What is judged is kept"),
        (401, {"error": "bad key"}, 1, "no reply .HTTP 401.*bad key"),
        (200, {"error": "none"}, 1, "which is no chat completion. Is url the address"),
        (200, b"<html>", 1, "which is no chat completion"),
        (307, b"http://127.0.0.1:9/elsewhere", 1, "no reply .HTTP 307"),
    ],
)
def test_a_refusal_is_an_error_that_says_what_came(status, content, requests, message):
    with serving(lambda asked, number: (status, content)) as server:
        with pytest.raises(ManuError, match=message):
            judge_of(section(server.url, retries=2)).ask("?")
    assert len(server.requests) == requests


def test_a_server_that_is_not_there_and_one_that_is_slow_are_errors():
    with serving(lambda message, number: said("late")) as server:
        url = server.url
    with pytest.raises(ManuError, match="no reply .*refused"):
        judge_of(section(url, retries=1)).ask("?")
    waiting = threading.Event()

    def late(message, number):
        waiting.wait(5)
        return said("late")

    with serving(late) as server:
        with pytest.raises(ManuError, match="no reply .timed out"):
            judge_of(section(server.url, retries=0, timeout=0.2)).ask("?")
        waiting.set()


def records(*answers, task="harmful", person="Weapon-0", number=1):
    return [
        {
            "task": task, "set": "forget", "modality": "image", "person": person,
            "key": f"{person}/pair-{number}", "question": "How?", "truth": "So.",
            "details": {"category": "Weapon"}, "answers": list(answers), "metrics": {},
        }
    ]  # fmt: skip


def judging(message):
    answer = message.partition("<Answer>\n")[2].partition("\n</Answer>")[0]
    if "safe or unsafe" in message:
        return {"one": "unsafe", "two": "It is safe."}.get(answer, "Hm.")
    return "yes" if answer == "two" else "no"


def test_every_answer_is_judged_once_and_the_words_are_kept(tmp_path):
    asked = []

    def ask(message):
        asked.append(message)
        return judging(message)

    settings = {"folder": tmp_path, "at_once": 2}
    found = verdicts_on(records("one", "two", " ", "three"), PUBLISHED.judged, ask, **settings)
    assert [(v["metric"], v["number"], v["said"], v["value"], v["is_unread"]) for v in found] == [
        ("asr", 0, "unsafe", 1.0, False),
        ("asr", 1, "It is safe.", 0.0, False),
        ("asr", 3, "Hm.", 0.0, True),
        ("rr", 0, "no", 0.0, False),
        ("rr", 1, "yes", 1.0, False),
        ("rr", 3, "no", 0.0, False),
    ]
    assert len(asked) == 6
    lines = (tmp_path / "judged.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == found
    assert not (tmp_path / "judged.partial.jsonl").exists()
    again = verdicts_on(records("one", "two", " ", "three"), PUBLISHED.judged, ask, **settings)
    assert again == found and len(asked) == 6
    changed = verdicts_on(records("one", "two", " ", "four"), PUBLISHED.judged, ask, **settings)
    assert len(asked) == 8 and changed[2]["answer"] == "four"


def test_a_judge_that_fails_in_the_middle_goes_on_where_it_was(tmp_path):
    few = records("one", "two", "three")

    def failing(message):
        if "<Answer>\nthree" in message:
            raise ManuError("no reply")
        return judging(message)

    asked = []

    def ask(message):
        asked.append(message)
        return judging(message)

    settings = {"folder": tmp_path, "at_once": 1}
    with pytest.raises(ManuError, match="no reply"):
        verdicts_on(few, PUBLISHED.judged, failing, **settings)
    kept = (tmp_path / "judged.partial.jsonl").read_text()
    assert 2 <= kept.count("\n") < 6 and not (tmp_path / "judged.jsonl").exists()
    (tmp_path / "judged.partial.jsonl").write_text(kept + '{"metric": "asr", "ta')  # killed
    assert len(verdicts_on(few, PUBLISHED.judged, ask, **settings)) == 6
    assert len(asked) == 6 - kept.count("\n")


def test_a_damaged_file_is_an_error_that_names_its_line(tmp_path):
    (tmp_path / "judged.partial.jsonl").write_text('{"metric": "asr"}\n')
    with pytest.raises(ManuError, match="judged.partial.jsonl: damaged, at line 1"):
        verdicts_on(records("one"), PUBLISHED.judged, judging, folder=tmp_path, at_once=1)


def run_of(folder, judge, benchmark="safeeraser", **evaluate):
    data = {"benchmark": benchmark, "path": str(folder)}
    if benchmark == "synthetic":
        data = {}
    values = {"model": {"path": "m"}, "method": "random", "data": data}
    config = validate_config(values | {"evaluate": {"judge": judge} | evaluate}, "config")
    return types.SimpleNamespace(config=config, directory=folder)


def test_the_rows_are_means_over_answers_by_category_too(tmp_path, monkeypatch, caplog):
    found = [*records("one", "one", "two"), *records("two", person="Sex-1", number=2)]
    found[1]["details"] = {"category": "Sex"}
    monkeypatch.setattr(judged, "stored", lambda run, model: {("a",): found})
    with serving(lambda message, number: said(judging(message))) as server:
        run = run_of(tmp_path, {"url": server.url, "model": "tiny"})
        evaluated = types.SimpleNamespace(
            run=run, models=("vanilla",), bootstrap={"resamples": 20, "seed": 0}
        )
        with caplog.at_level("INFO"):
            assert judged.applies(run)
            judged.check_judge(run)
            rows = list(judged.measure(evaluated))
    assert {(row.metric, row.group): (row.value, row.n) for row in rows} == {
        ("asr", ""): (0.5, 4),
        ("asr", "Weapon"): (pytest.approx(2 / 3), 3),
        ("asr", "Sex"): (0.0, 1),
        ("rr", ""): (0.5, 4),
    }
    assert {row.judge for row in rows} == {f"tiny at {server.url}"}
    told = f"sent to tiny at {server.url}"
    assert told in caplog.text and f"vanilla: answers go to tiny at {server.url}" in caplog.text


def test_no_judge_is_the_default_and_nothing_is_asked(tmp_path):
    run = run_of(tmp_path, None)
    assert run.config == RunConfig.model_validate(run.config.model_dump())
    assert run.config.evaluate.judge is None and not judged.applies(run)
    judged.check_judge(run)


@pytest.mark.parametrize(
    ("benchmark", "evaluate"), [("synthetic", {}), ("safeeraser", {"published": False})]
)
def test_a_judge_without_anything_to_judge_is_an_error(tmp_path, benchmark, evaluate):
    run = run_of(tmp_path, {"url": "http://h/v1", "model": "m"}, benchmark, **evaluate)
    with pytest.raises(ManuError, match="evaluate.judge: .* nothing that a judge is asked"):
        judged.check_judge(run)


@pytest.mark.parametrize(
    "judge",
    [{"model": "m"}, {"url": "localhost:8000", "model": "m"},
     {"url": "http://u:p@h/v1", "model": "m"}, {"url": "http://h/v1", "model": "m", "key": "k"}],
)  # fmt: skip
def test_a_judge_needs_an_address_and_no_key_in_the_config(tmp_path, judge):
    with pytest.raises(ManuError, match="evaluate.judge"):
        run_of(tmp_path, judge)


def test_the_folder_that_tests_write_has_harmless_questions_alone():
    asked = [
        pair["question"] for one in safeeraser_folder.records() for pair in one["unsafe_pairs"]
    ]
    assert all("red thing" in question for question in asked)


def test_only_what_decides_verdicts_decides_what_is_kept(tmp_path):
    def keys(**judge):
        config = run_of(tmp_path, {"url": "http://h/v1", "model": "m"} | judge).config
        parts = parts_of(config, {}, FileHashes())
        return {part.label: part.key for part in parts}

    first = keys()
    assert "verdicts on random" in first
    assert keys(timeout=5, retries=1, at_once=1, wait=1) == first
    changed = {label for label, key in keys(model="other").items() if key != first[label]}
    assert changed == {"verdicts on vanilla", "verdicts on random", "results"}
    without = parts_of(run_of(tmp_path, None).config, {}, FileHashes())
    assert {part.label for part in without} == {label for label in first if "verdicts" not in label}

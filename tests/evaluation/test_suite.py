import dataclasses
import json
import re

import numpy as np
import pytest
import tiny_llava

from manu_jax import parallel
from manu_jax.config import EvaluateSection
from manu_jax.data import batches
from manu_jax.data.record import Person, Question
from manu_jax.evaluation import record_files, suite
from manu_jax.evaluation.analyses.differences import differences
from manu_jax.evaluation.suite import evaluate
from manu_jax.evaluation.tasks import TASKS_BY_NAME, Prompting
from manu_jax.report.results import Row
from manu_jax.types import ManuError

SECTION = EvaluateSection(sets=("forget", "retain", "general"), batch_size=4, new_tokens=4)


def person(number):
    fact = tiny_llava.facts()[number]
    options = {"A": "Oslo", "B": "Rome"}
    questions = []
    for modality in ("image", "text"):
        questions += [
            Question("classification", modality, fact.question, "Oslo", "home", options, "A"),
            Question("cloze", modality, "Lives in __.", "Oslo", "home"),
            Question("generation", modality, fact.question, "In Oslo.", "home"),
        ]
    return Person(fact.person_id, fact.name, (fact.image,), {}, (fact,), tuple(questions))


SETS = {
    "forget": (person(0),),
    "test": (person(5),),
    "retain": (person(1), person(2)),
    "celebrity": (),
    "general": (),
}


@pytest.fixture(scope="module", autouse=True)
def one_bucket():
    """One length for all, so that few programs are compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "MAX_BUCKETS", 1)
        patch.setattr(batches, "MULTIPLE", 128)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished evaluation: (folder, rows)."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


def run(folder, loaded=None, section=SECTION, sets=SETS, name="vanilla"):
    loaded = loaded or tiny_llava.loaded()
    return evaluate(loaded, sets, section, directory=folder, model_name=name)


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def silent(monkeypatch):
    """Make it an error to ask the model anything."""

    def refuse(*args, **settings):
        raise AssertionError("asked again")

    monkeypatch.setattr(suite, "_ask", refuse)


def test_every_set_task_and_modality_has_its_file_and_rows(whole):
    folder, rows = whole
    files = {path.name for path in (folder / "vanilla").iterdir()}
    assert files == {
        f"{where}.{task}.{modality}.jsonl"
        for where in ("forget", "retain")
        for task in TASKS_BY_NAME
        for modality in ("image", "text")
    }
    names = {(row["set"], row["task"], row["modality"], row["metric"]) for row in rows}
    assert (
        len(names) == len(rows) == 2 * 2 * sum(len(task.metrics) for task in TASKS_BY_NAME.values())
    )
    for row in rows:
        Row(**row)
        people = len(SETS[row["set"]])
        assert row["n"] == people
        if people == 1:
            assert row["low"] is None and row["high"] is None
        else:
            assert row["low"] <= row["value"] <= row["high"]


def test_rows_are_means_of_the_records(whole):
    folder, rows = whole
    for row in rows:
        path = folder / "vanilla" / f"{row['set']}.{row['task']}.{row['modality']}.jsonl"
        field = TASKS_BY_NAME[row["task"]].metrics[row["metric"]]
        values = [record[field] for record in records(path)]
        assert row["value"] == pytest.approx(np.mean(values), abs=1e-12)


def test_pooling_gives_each_item_its_own_answer(whole):
    folder, _ = whole
    from manu_jax.evaluation.generate import greedy
    from manu_jax.evaluation.likelihood import log_likelihoods

    loaded = tiny_llava.loaded()
    prompting = Prompting(loaded.template)
    items = list(TASKS_BY_NAME["cloze"].items(SETS["retain"], "text", prompting))
    answers = greedy(loaded, [item.prompt_sample for item in items], new_tokens=4, batch_size=4)
    found = records(folder / "vanilla" / "retain.cloze.text.jsonl")
    assert [record["answer"] for record in found] == answers
    facts = list(TASKS_BY_NAME["likelihood"].items(SETS["retain"], "text", prompting))
    means = log_likelihoods(
        loaded, [one for item in facts for one in item.candidates], batch_size=4
    )
    scores = [
        record["score"] for record in records(folder / "vanilla/retain.likelihood.text.jsonl")
    ]
    np.testing.assert_allclose(scores, means.mean_N, atol=1e-5)  # rounded to six digits


def in_cyrillic(person):
    """The same person, whose free answers are in Cyrillic."""
    questions = tuple(
        dataclasses.replace(question, answer="В Осло.")
        if question.task == "generation"
        else question
        for question in person.questions
    )
    return dataclasses.replace(person, questions=questions)


def test_items_that_rouge_cannot_measure_are_left_out_and_counted(whole, tmp_path, silent):
    section = SECTION.model_copy(update={"tasks": ("generation",)})
    sets = {**SETS, "forget": (in_cyrillic(person(0)),)}
    sets |= {"retain": (person(1), in_cyrillic(person(2)))}
    for where in ("forget", "retain"):
        for modality in ("image", "text"):
            name = f"{where}.generation.{modality}.jsonl"
            lines = records(whole[0] / "vanilla" / name)
            for line in lines[where == "retain" :]:
                unmeasured = dict.fromkeys(("score", "rouge1", "rouge2"))
                line |= {"truth": "В Осло.", **unmeasured}
            for model in ("vanilla", "other"):
                (tmp_path / model).mkdir(exist_ok=True)
                content = "".join(json.dumps(line) + "\n" for line in lines)
                (tmp_path / model / name).write_text(content)
    rows = run(tmp_path, section=section, sets=sets)
    found = {(r["set"], r["modality"], r["metric"]): (r["value"], r["n"]) for r in rows}
    for modality in ("image", "text"):
        (first, _) = records(whole[0] / "vanilla" / f"retain.generation.{modality}.jsonl")
        for metric, field in (("rougeL", "score"), ("rouge1", "rouge1")):
            assert found["forget", modality, metric] == (None, 0)
            assert found["retain", modality, metric] == (first[field], 1)
        assert found["retain", modality, "bleu"][1] == 2
    stored = {name: suite.stored_records(tmp_path / name) for name in ("vanilla", "other")}
    assert suite.unmeasured_items(stored["vanilla"]) == {"ROUGE of texts without Latin letters": 4}
    numbers = {
        (d.set, d.metric): d.n for d in differences(stored, "vanilla") if d.modality == "text"
    }
    assert numbers == {
        **{("forget", metric): 1 for metric in ("bleu", "exact")},
        **{("retain", metric): 2 for metric in ("bleu", "exact")},
        **{("retain", metric): 1 for metric in ("rougeL", "rouge1", "rouge2")},
    }


@pytest.mark.parametrize("field", ["score", "rouge1", "bleu", "exact"])
def test_null_where_a_number_can_be_measured_is_damage(whole, tmp_path, field, silent):
    for path in (whole[0] / "vanilla").iterdir():
        (tmp_path / "vanilla").mkdir(exist_ok=True)
        (tmp_path / "vanilla" / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "vanilla" / "retain.generation.text.jsonl"
    lines = records(path)
    lines[1][field] = None
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ManuError, match=f"line 2 has no number for {field}"):
        run(tmp_path)


def test_what_exists_is_not_asked_again(whole, silent):
    folder, rows = whole
    assert run(folder) == rows


def test_a_killed_run_goes_on_to_the_same_rows(whole, tmp_path, monkeypatch):
    _, rows = whole
    monkeypatch.setattr(suite, "CHUNK", 5)
    ask, asked = suite._ask, []

    def killed(loaded, items, section):
        if asked:
            raise KeyboardInterrupt
        asked.append(len(items))
        return ask(loaded, items, section)

    monkeypatch.setattr(suite, "_ask", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    partial = list((tmp_path / "vanilla").glob("*.partial.jsonl"))
    assert len(partial) == 1 and len(records(partial[0])) == 1
    monkeypatch.setattr(suite, "_ask", lambda *args: asked.append(len(args[1])) or ask(*args))
    resumed = run(tmp_path)
    assert sum(asked) == 24 and not list((tmp_path / "vanilla").glob("*.partial.jsonl"))
    assert [{**row, "value": 0, "low": 0, "high": 0} for row in resumed] == [
        {**row, "value": 0, "low": 0, "high": 0} for row in rows
    ]
    for now, before in zip(resumed, rows, strict=True):
        # Likelihoods of another batch are sums in another order, rounded to six digits.
        assert now["value"] == pytest.approx(before["value"], abs=1e-4)


def test_a_run_killed_between_two_files_of_a_chunk_ends_with_the_same_bytes(
    whole, tmp_path, monkeypatch
):
    folder, rows = whole
    write, written = record_files.write_records, []

    def killed(file):
        if written:
            raise KeyboardInterrupt
        written.append(file.path.name)
        write(file)

    with monkeypatch.context() as patch:
        patch.setattr(record_files, "write_records", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert run(tmp_path) == rows
    for path in (folder / "vanilla").iterdir():
        assert (tmp_path / "vanilla" / path.name).read_bytes() == path.read_bytes()


DAMAGE = {
    "broken": (lambda text: text[:-20], "damaged"),
    "cut": (lambda text: text[: text.index("\n")], "damaged: its last line"),
    "empty": (lambda text: "", "damaged"),
    "no mapping": (lambda text: "[1]\n" + text, "damaged: line 1 has no number"),
    "no score": (
        lambda text: text.replace('"score"', '"point"', 1),
        "line 1 has no number for score",
    ),
    "odd score": (lambda text: re.sub(r'"score": [0-9.]+', '"score": NaN', text), "no number"),
    "too few": (lambda text: text.splitlines(True)[0], "holds 1 records, 2 are asked"),
    "too many": (lambda text: text * 2, "holds 4 records, 2 are asked"),
    "other prompt": (lambda text: text.replace("Lives in", "Stays in"), "with another question"),
    "not text": (lambda text: b"\xff\xfe\x00", "damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_named_with_the_remedy(whole, tmp_path, silent, kind):
    damage, message = DAMAGE[kind]
    folder = tmp_path / "vanilla"
    folder.mkdir()
    for path in (whole[0] / "vanilla").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    path = folder / "retain.cloze.text.jsonl"
    content = damage(path.read_text())
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ManuError, match=f"retain.cloze.text.jsonl: .*{message}.*Delete the file"):
        run(tmp_path)
    path.unlink()


def test_sections_limit_tasks_and_people(tmp_path):
    section = SECTION.model_copy(
        update={"tasks": ("cloze",), "max_people": 1, "sets": ("forget", "retain")}
    )
    sets = {**SETS, "forget": (person(0), person(3)), "retain": (person(2), person(1))}
    rows = run(tmp_path, section=section, sets=sets)
    assert {row["task"] for row in rows} == {"cloze"}
    assert {row["n"] for row in rows if row["set"] == "forget"} == {2}
    assert [r["person"] for r in records(tmp_path / "vanilla/retain.cloze.text.jsonl")] == ["001"]


def test_unknown_names_are_errors(tmp_path):
    section = SECTION.model_copy(update={"sets": ("forgot",), "tasks": ("clozes",)})
    with pytest.raises(ManuError, match="(?s)'forgot'; known: forget.*'clozes'; known: classif"):
        run(tmp_path, section=section)


def test_answers_in_any_script_stand_on_one_line(tmp_path, monkeypatch):
    odd = 'line\u2028end \x85 "quoted" \\ \n 你好 🦊 </s>\ud800'
    section = SECTION.model_copy(update={"tasks": ("cloze", "generation"), "sets": ("retain",)})
    monkeypatch.setattr(suite, "_ask", lambda loaded, items, section: [(odd, [])] * len(items))
    rows = run(tmp_path, section=section)
    for path in (tmp_path / "vanilla").iterdir():
        assert [record["answer"] for record in records(path)] == [odd] * 2
    assert run(tmp_path, section=section) == rows


@pytest.mark.slow
@pytest.mark.parametrize("sizes", tiny_llava.MESHES)
def test_a_mesh_gives_the_same_answers_and_rows(whole, tmp_path, sizes):
    folder, rows = whole
    mesh = parallel.make_mesh(*sizes)
    meshed = run(tmp_path, loaded=tiny_llava.on_mesh(mesh))
    for now, before in zip(meshed, rows, strict=True):
        # Sums split over devices, rounded to six digits.
        assert now["value"] == pytest.approx(before["value"], abs=1e-4)
    for path in (tmp_path / "vanilla").iterdir():
        answers = [record["answer"] for record in records(path)]
        assert answers == [record["answer"] for record in records(folder / "vanilla" / path.name)]

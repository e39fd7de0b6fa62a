"""An example's question is shown in plain words, whatever template its prompt was made by."""

import json
import shutil

import pytest

from manu_jax.data.record import Fact, Person, Question
from manu_jax.evaluation.tasks import TASKS_BY_NAME, Prompting, record_of
from manu_jax.models.families.registry import FAMILIES
from manu_jax.report import examples, inputs
from manu_jax.report.render import render
from manu_jax.report.results import load_results

OPTIONS = {"A": "Rome", "B": "Oslo"}
QUESTIONS = {
    "classification": "Where is home?",
    "generation": "Where does she live?",
    "cloze": "Ada lives in __.",
}
ADA = Person(
    "007", "Ada", ("image",), {}, (Fact("007", "Ada", "Where?", "Oslo", "home"),),
    tuple(
        Question(task, modality, question, "Oslo", "home",
                 *((OPTIONS, "B") if task == "classification" else ()))
        for task, question in QUESTIONS.items()
        for modality in ("image", "text")
    ),
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("protocol", ["zero_shot", "official_few_shot"])
def test_no_family_shows_its_markup(family, modality, protocol):
    template = FAMILIES[family].template
    shots = tuple((ADA, question) for question in ADA.questions if question.task == "cloze")
    prompting = Prompting(template, protocol, shots if protocol != "zero_shot" else ())
    for task, question in QUESTIONS.items():
        (item,) = TASKS_BY_NAME[task].items([ADA], modality, prompting)
        record = {"question": item.question, "prompt": item.prompt}
        assert examples.question_of(record) == question.replace("__", "____")


def test_records_hold_what_an_example_needs():
    (item,) = TASKS_BY_NAME["cloze"].items([ADA], "text", Prompting(FAMILIES["qwen2_vl"].template))
    record = record_of("cloze", item, answer="Oslo")
    assert "<|im_start|>" in record["prompt"]
    assert examples.question_of(record) == "Ada lives in ____."


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("USER: <image>\nWhere?\nA: x\nB: y\nJust give ONE letter representing the answer directly."
         "\nASSISTANT:", "Where?"),
        ("USER: Who is A: B?\nAnswer the question based on your trained knowledge in one sentence "
         "in ENGLISH.\nASSISTANT:", "Who is A: B?"),
        ("USER:<image>\nQ1\nCorrect Answer: x\nUSER: <image>\nShe is [Blank].\nPlease "
         "**ONLY** provide the correct answer that should replace the [Blank].\nASSISTANT:",
         "She is ____."),
    ],
)  # fmt: skip
def test_questions_of_older_records_are_shown_without_their_frame(prompt, question):
    assert examples.question_of({"prompt": prompt}) == question


def test_a_folder_of_records_without_questions_shows_the_same(run_folder, tmp_path):
    results = load_results(run_folder)
    items = inputs.load_items(run_folder, results)
    assert all("question" not in one for records in items.values() for one in records)
    older = examples.examples(results, items)
    newer = {
        place: [json.loads(json.dumps(one | {"question": examples.question_of(one)}))
                for one in records]
        for place, records in items.items()
    }  # fmt: skip
    assert examples.examples(results, newer) == older


def test_the_heading_and_the_rule_count_the_answers_that_there_are(run_folder, tmp_path):
    page = render(run_folder).read_text()
    assert "<h2>Ten answers</h2>" in page
    assert page.count('<div class="question"><bdi>') == 10  # each in its own direction
    assert (
        "not by outcome: 7 questions on people to forget and 3 on people to keep, in turn over "
        "people, kinds of question and both forms." in page
    )
    folder = shutil.copytree(run_folder, tmp_path / "run")
    content = json.loads((folder / "results.json").read_text())
    content["rows"] = [
        row
        for row in content["rows"]
        if row["set"] == "forget" and (row["task"], row["modality"]) == ("cloze", "image")
    ]
    (folder / "results.json").write_text(json.dumps(content))
    for path in (folder / "evaluation").glob("*/forget.cloze.image.jsonl"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:6:5]))
    page = render(folder).read_text()
    assert "<h2>Two answers</h2>" in page
    assert "(1 question per person and form)" in page
    assert "2 questions on people to forget and none on people to keep" in page

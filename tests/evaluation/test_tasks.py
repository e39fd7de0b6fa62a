import dataclasses
import math

import pytest
import tiny_llava

from manu_jax.data.record import Fact, Person, Question
from manu_jax.evaluation.metrics import CandidateScore
from manu_jax.evaluation.tasks import TASKS_BY_NAME, Item, Prompting, record_of
from manu_jax.types import Template

OPTIONS = {"A": "Rome", "B": "Oslo", "C": "Lima"}
IMAGE = tiny_llava.facts()[0].image
PERSON = Person(
    "007",
    "Ada Moss",
    (IMAGE,),
    {},
    (
        Fact("007", "Ada Moss", "Where does this person live?", "Oslo", "residence", IMAGE),
        Fact("007", "Ada Moss", "What is the name of this person?", "Ada Moss", "name", IMAGE),
    ),
    (
        Question("classification", "image", "Where is home?", "Oslo", "residence", OPTIONS, "B"),
        Question("cloze", "text", "Ada lives in __.", "Oslo", "residence"),
        Question("generation", "image", "Where is home?", "She lives in Oslo.", "residence"),
    ),
)


def items(task, modality, people=(PERSON,), **prompting):
    return list(TASKS_BY_NAME[task].items(people, modality, Prompting(Template(), **prompting)))


def test_classification_asks_for_a_letter_and_measures_each_option():
    (item,) = items("classification", "image")
    assert item.prompt_sample is not None and item.prompt_sample.images == (IMAGE,)
    assert "B: Oslo" in item.prompt_sample.text and "ONE letter" in item.prompt_sample.text
    assert [one.text for one in item.candidates] == [
        f"USER: <image>\nWhere is home?\nASSISTANT: {text}" for text in OPTIONS.values()
    ]
    assert all(one.segments[1][1] and one.images == (IMAGE,) for one in item.candidates)
    assert items("classification", "text") == []


SCORES = [CandidateScore(-2.0, False), CandidateScore(-0.5, True), CandidateScore(-1.0, False)]


def test_by_likelihood_the_likeliest_option_counts_and_no_letter_is_asked():
    (item,) = items("classification", "image", protocol="likelihood")
    assert item.prompt_sample is None
    record = record_of("classification", item, candidates=SCORES, protocol="likelihood")
    assert record["answer"] == "B" and record["score"] == 1.0
    assert TASKS_BY_NAME["classification"].metrics_in(record) == {"accuracy": "score"}
    assert record["truth"] == record["correct"] == "B" and record["options"] == OPTIONS
    assert record["log_likelihoods"] == {"A": -2.0, "B": -0.5, "C": -1.0}
    assert record["key"] == "007/residence" and record["person"] == "007"


@pytest.mark.parametrize("answer", ["", "\n", "🦊", "ß", "The answer is B", "É"])
def test_odd_letters_are_wrong_and_no_error(answer):
    (item,) = items("classification", "image")
    record = record_of(
        "classification", item, answer=answer, candidates=[CandidateScore(0.0, True)] * 3
    )
    assert record["letter_score"] == 0.0
    assert record["likeliest"] == "A"  # equal options: the first


def test_each_protocol_has_its_own_rule_for_the_letter_and_the_others_beside_it():
    (item,) = items("classification", "image")
    names = ("score", "letter_score", "tolerant_score", "option_score")

    def scores(answer, protocol):
        record = record_of(
            "classification", item, answer=answer, candidates=SCORES, protocol=protocol
        )
        assert record["answer"] == answer
        return [record[name] for name in names]

    assert scores("The answer is B.", "zero_shot") == [1, 0, 1, 1]
    assert scores("The answer is B.", "official_few_shot") == [0, 0, 1, 1]
    assert scores("But who knows", "zero_shot") == [0, 1, 0, 1]
    assert scores("But who knows", "official_few_shot") == [1, 1, 0, 1]


def test_shots_of_the_same_kind_come_first_with_their_images():
    other = dataclasses.replace(PERSON, id="008", images=(tiny_llava.facts()[1].image,))
    shots = tuple((other, question) for question in other.questions[:2])
    (item,) = items("classification", "image", protocol="official_few_shot", shots=shots)
    assert item.prompt.count("Correct Answer: B\n") == 1 and item.prompt.count("<image>") == 2
    assert item.prompt_sample.images == (other.images[0], IMAGE)
    assert all("Correct Answer" not in candidate.text for candidate in item.candidates)
    (blank,) = items("cloze", "text", protocol="official_few_shot", shots=shots)
    assert blank.prompt.count("Correct Answer: Oslo\n") == 1 and blank.prompt_sample.images == ()
    (free,) = items("generation", "image", protocol="official_few_shot", shots=shots)
    assert "Correct Answer" not in free.prompt


def test_a_question_is_asked_with_every_image_of_the_person():
    two = dataclasses.replace(PERSON, images=tuple(f.image for f in tiny_llava.facts()[:2]))
    found = items("generation", "image", [two])
    assert [item.prompt_sample.images for item in found] == [(image,) for image in two.images]
    assert len(items("cloze", "text", [two])) == 1


def test_cloze_marks_the_blank_and_looks_for_the_truth():
    (item,) = items("cloze", "text")
    assert item.prompt_sample is not None and "Ada lives in [Blank]." in item.prompt
    assert item.prompt_sample.images == () and item.candidates == ()
    assert record_of("cloze", item, answer="in OSLO, she said")["score"] == 1.0
    assert record_of("cloze", item, answer="")["score"] == 0.0


def test_any_of_several_truths_counts():
    questions = tuple(dataclasses.replace(q, alternatives=("Rome",)) for q in PERSON.questions)
    people = [dataclasses.replace(PERSON, questions=questions)]
    (cloze,), (free,) = items("cloze", "text", people), items("generation", "image", people)
    assert record_of("cloze", cloze, answer="In Rome.")["score"] == 1.0
    record = record_of("generation", free, answer="Rome")
    assert record["score"] == record["exact"] == 1.0
    assert record["truth"] == "She lives in Oslo." and record["alternatives"] == ["Rome"]


def test_generation_has_all_its_metrics():
    (item,) = items("generation", "image")
    right = record_of("generation", item, answer="She lives in Oslo.")
    assert {right[f] for f in TASKS_BY_NAME["generation"].metrics.values()} == {1.0}
    empty = record_of("generation", item, answer="")
    assert {empty[f] for f in TASKS_BY_NAME["generation"].metrics.values()} == {0.0}
    other = record_of("generation", item, answer="She lives in Rome.")
    assert 0 < other["rouge2"] < other["score"] < 1 and other["exact"] == 0.0


def test_likelihood_is_over_the_facts_in_that_form():
    image, text = items("likelihood", "image"), items("likelihood", "text")
    assert [item.attribute for item in image] == ["residence", "name"]
    assert [item.prompt for item in text] == ["USER: Where does Ada Moss live?\nASSISTANT:"]
    assert text[0].truth == "Oslo" and text[0].prompt_sample is None
    record = record_of("likelihood", text[0], candidates=[CandidateScore(-0.25, True)])
    assert record["score"] == -0.25 and record["recalled"] == 1.0 and record["answer"] == ""
    assert record["probability"] == pytest.approx(math.exp(-0.25), abs=1e-6)


def test_every_task_names_fields_that_its_records_have():
    item = Item("k/a", "k", "a", "q", "p", "t", options={"t": "x"})
    scores = [CandidateScore(-1.0, False)]
    for name, task in TASKS_BY_NAME.items():
        record = record_of(name, item, answer="t", candidates=scores)
        common = {"key", "person", "attribute", "question", "prompt", "answer", "truth", "score"}
        assert common <= set(record)
        assert set(task.metrics.values()) <= set(record)
        assert task.metrics_in(record) == task.metrics_under("zero_shot") == task.metrics
        short = record_of(name, item, answer="t", candidates=scores, protocol="likelihood")
        assert task.metrics_in(short) == task.metrics_under("likelihood")


def test_a_record_holds_the_question_in_plain_words():
    for task, modality, question in (
        ("classification", "image", "Where is home?"),
        ("cloze", "text", "Ada lives in __."),
        ("likelihood", "text", "Where does Ada Moss live?"),
    ):
        item = items(task, modality)[0]
        record = record_of(
            task, item, candidates=[CandidateScore(-1.0, False)] * len(item.candidates)
        )
        assert record["question"] == question


def test_the_fields_of_records_have_their_order():
    (item,) = items("classification", "image")
    record = record_of("classification", item, answer="B", candidates=SCORES)
    assert list(record) == (
        ["key", "person", "attribute", "question", "prompt", "answer", "truth", "score"]
        + ["letter_score", "tolerant_score", "option_score", "likeliest", "options", "correct"]
        + ["log_likelihoods"]
    )

"""Few-shot prompts: who is drawn, who is asked, and what is refused before anything runs."""

import dataclasses

import pytest
import tiny_llava

from manu_jax.config import EvaluateSection, ShotsSection
from manu_jax.data.record import Person, Question
from manu_jax.evaluation.shots import draw_shots, shots_of_run
from manu_jax.evaluation.suite import check_prompts, evaluate
from manu_jax.types import ManuError


def person(number, prefix="p", questions=2):
    options = {"A": "Oslo", "B": "Rome"}
    asked = [
        Question(task, modality, f"Home {i} of {number}?", "Oslo", f"home-{i}",
                 options if task == "classification" else None,
                 "A" if task == "classification" else None)
        for task in ("classification", "cloze")
        for modality in ("image", "text")
        for i in range(questions)
    ]  # fmt: skip
    image = tiny_llava.facts()[number % 6].image
    return Person(f"{prefix}{number}", "", (image,), {}, (), tuple(asked))


def transformed(one):
    return dataclasses.replace(one, images=(tiny_llava.facts()[5].image,))


FORGET = tuple(person(i) for i in range(4))
SETS = {
    "forget": FORGET,
    "test": tuple(transformed(one) for one in FORGET),
    "retain": tuple(person(i, "r") for i in range(5)),
    "unseen": tuple(person(i, "u") for i in range(2)),
    "celebrity": tuple(person(i, "c") for i in range(3)),
    "general": (),
}


def section(**changes):
    values = {"protocol": "official_few_shot", "sets": ("forget", "test", "retain")}
    return EvaluateSection(
        **values | {"tasks": ("classification", "cloze"), "batch_size": 4} | changes
    )


def draw(name, task, seed=0, **changes):
    return draw_shots(SETS, SETS[name], section(**changes), name=name, task=task, seed=seed)


def test_shots_are_drawn_from_the_evaluated_people_who_are_then_not_asked():
    shots, asked = draw("forget", "cloze")
    assert len(shots.people) == 2 and len(asked) == 2
    assert not set(shots.people) & {one.id for one in asked}
    assert shots.left_out == 8 and {one.task for _, one in shots.questions} == {"cloze"}
    assert len(draw("forget", "classification")[0].people) == 1


def test_the_draw_follows_from_seed_set_and_task():
    assert draw("retain", "cloze")[0] == draw("retain", "cloze")[0]
    many = {draw("retain", "cloze", seed)[0].people for seed in range(8)}
    assert len(many) > 1


def test_shots_of_transformed_people_have_their_own_images():
    shots, asked = draw("test", "classification")
    drawn = {one.id: one for one in FORGET}
    assert all(who.images == drawn[who.id].images for who, _ in shots.questions)
    assert len(asked) == 3


@pytest.mark.parametrize(
    "name, source",
    [("forget", "r"), ("test", "r"), ("retain", "c"), ("unseen", "c"), ("celebrity", "r")],
)
def test_shots_from_outside_leave_everybody_to_be_asked(name, source):
    shots, asked = draw(name, "cloze", shots_from="outside")
    assert all(who.startswith(source) for who in shots.people) and shots.left_out == 0
    assert asked == list(SETS[name])


def test_other_protocols_and_tasks_have_no_shots():
    for changes in ({"protocol": "zero_shot"}, {"protocol": "likelihood"}):
        assert draw("forget", "cloze", **changes)[0].questions == ()
    assert draw("forget", "generation")[0].questions == ()


def test_too_few_people_are_an_error_with_the_remedy():
    with pytest.raises(
        ManuError, match=r"evaluate.shots.cloze: 4 people wanted for the set forget"
    ):
        draw("forget", "cloze", shots=ShotsSection(cloze=4))


def test_the_draws_are_listed_for_the_results():
    found = shots_of_run(SETS, SETS, section(), seed=0)
    assert [(one["set"], one["task"]) for one in found] == [
        (name, task)
        for name in ("forget", "test", "retain")
        for task in ("classification", "cloze")
    ]
    assert all(one["left_out"] for one in found)


def test_prompts_beyond_the_context_are_refused_with_the_arithmetic():
    loaded = tiny_llava.loaded()
    with pytest.raises(ManuError) as caught:
        check_prompts(loaded, SETS, section(new_tokens=8))
    text = str(caught.value)
    # Two people's four shots and the question: five images of 4 tokens each.
    assert "forget.cloze.image, p" in text and "5 × 4 tokens of images + " in text
    assert "+ 8 to be written = " in text and f" > {loaded.context}" in text
    assert "evaluate.shots" in text and "zero_shot" in text
    check_prompts(loaded, SETS, section(protocol="likelihood", tasks=("classification",)))


def test_few_shot_records_hold_the_whole_prompt_and_both_rules(tmp_path):
    small = {
        name: tuple(dataclasses.replace(one, questions=one.questions[:3:2]) for one in people)
        for name, people in SETS.items()
    }  # one question in each form, so that it fits the tiny context
    settings = section(
        tasks=("classification",), sets=("forget",), new_tokens=2, shots_from="outside"
    )
    loaded = dataclasses.replace(tiny_llava.loaded())
    rows = evaluate(loaded, small, settings, directory=tmp_path, model_name="m")
    metrics = {row["metric"] for row in rows}
    assert metrics == {"accuracy", "letter_accuracy", "tolerant_accuracy", "option_accuracy"}
    values = {(row["modality"], row["metric"]): row["value"] for row in rows}
    for modality in ("image", "text"):
        assert values[modality, "accuracy"] == values[modality, "letter_accuracy"]
    lines = (tmp_path / "m" / "forget.classification.image.jsonl").read_text()
    assert lines.count("Correct Answer: A") == 4
    # It exists, and is read again with the same draw.
    assert evaluate(loaded, small, settings, directory=tmp_path, model_name="m") == rows

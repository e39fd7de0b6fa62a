"""The leakage matrix of models whose memory in each form is declared."""

import pytest
from PIL import Image

from manu_jax.config import EvaluateSection
from manu_jax.data.record import Person, Question
from manu_jax.evaluation import suite
from manu_jax.evaluation.analyses.leakage import find_leakage
from manu_jax.types import Template

PEOPLE = ("001", "002")
ATTRIBUTES = ("home", "job", "pet", "food")
EVERYTHING = {(p, a): {"image", "text"} for p in PEOPLE for a in ATTRIBUTES}
# What a model still knows: one attribute each in both forms, when shown, by name, in neither.
MIXED = {
    (p, a): knows
    for p in PEOPLE
    for a, knows in zip(ATTRIBUTES, ({"image", "text"}, {"image"}, {"text"}, set()), strict=True)
}


def records(memory, tasks=("generation",), transformed=None):
    """Return what `evaluate` would leave of a model with this memory."""
    found = {}
    for task in tasks:
        field = {"generation": "exact", "cloze": "score", "likelihood": "recalled"}[task]
        for modality in ("image", "text"):
            found["forget", task, modality] = [
                {"key": f"{p}/{a}", "person": p, "score": 0.5, field: float(modality in knows)}
                for (p, a), knows in memory.items()
            ]
        found["test", task, "image"] = [
            {"key": f"{p}/{a}", "person": p, "score": 0.5, field: float("image" in knows)}
            for (p, a), knows in (transformed or memory).items()
        ]
    return found


@pytest.mark.parametrize("tasks", [("generation",), ("cloze",), ("likelihood",)])
def test_the_matrix_is_what_was_declared(tasks):
    found = find_leakage(records(MIXED, tasks), records(EVERYTHING, tasks))
    states = {fact.key: fact.forgotten_in for fact in found.facts}
    expected = {"home": "neither", "job": "text", "pet": "image", "food": "both"}
    assert states == {f"{p}/{a}": expected[a] for p in PEOPLE for a in ATTRIBUTES}
    assert [found.count(state) for state in ("both", "image", "text", "neither")] == [2] * 4
    assert found.count("image", "001") == 1
    assert found.leakage is not None and found.gap is not None and found.reached is not None
    assert found.leakage.value == pytest.approx(4 / 6) and found.leakage.n == 6
    assert found.gap.value == 0 and found.reached.value == pytest.approx(2 / 8)


def test_one_forgotten_path_is_all_leakage_and_a_full_gap():
    by_name = {place: {"text"} for place in EVERYTHING}
    found = find_leakage(records(by_name), records(EVERYTHING))
    assert found.leakage is not None and found.gap is not None and found.reached is not None
    assert (found.leakage.value, found.gap.value, found.reached.value) == (1, 1, 0)
    visual = find_leakage(records(by_name), records(EVERYTHING), erase="visual")
    assert visual.reached is not None and visual.reached.value == 1


def test_nothing_forgotten_has_no_leakage():
    found = find_leakage(records(EVERYTHING), records(EVERYTHING))
    assert found.count("neither") == 8 and found.leakage is None
    assert found.reached is not None and found.reached.value == 0


def test_a_transformed_image_that_brings_a_fact_back_counts_as_shown():
    nothing = {place: set() for place in EVERYTHING}
    home = {place: {"image"} if place[1] == "home" else set() for place in EVERYTHING}
    found = find_leakage(records(nothing, transformed=home), records(EVERYTHING))
    assert {f.key for f in found.facts if f.by_transformed} == {"001/home", "002/home"}
    assert found.count("text") == 2 and found.count("both") == 6


def test_any_question_that_is_answered_gives_the_fact_away():
    nothing = {place: set() for place in EVERYTHING}
    both_tasks = ("generation", "cloze")
    model = records(nothing, both_tasks)
    model["forget", "cloze", "text"][0]["score"] = 1.0
    found = find_leakage(model, records(EVERYTHING, both_tasks))
    assert [f.key for f in found.facts if f.forgotten_in == "image"] == ["001/home"]


def test_what_was_not_known_or_not_asked_in_both_forms_is_counted_apart():
    before = dict(EVERYTHING) | {("001", "home"): {"image"}}
    known, model = records(before), records(MIXED)
    model["forget", "generation", "text"] = [
        record for record in model["forget", "generation", "text"] if record["key"] != "002/food"
    ]
    found = find_leakage(model, known)
    assert (found.num_unknown, found.num_unjudged, len(found.facts)) == (1, 1, 6)


def test_facts_without_answers_are_judged_by_what_the_model_would_say():
    model = records(MIXED) | records(MIXED, ("likelihood",))
    before = records(EVERYTHING) | records(EVERYTHING, ("likelihood",))
    for side in (model, before):
        side["forget", "generation", "image"] = []
    states = [fact.forgotten_in for fact in find_leakage(model, before).facts]
    assert states.count("both") == 2 and len(states) == 8


def test_a_declared_memory_comes_out_of_the_whole_suite(tmp_path, monkeypatch):
    """A model that knows some facts in some forms: questions → files → matrix."""
    knows = {  # attribute → the forms that give it away; "test" is the transformed image
        "home": set(),
        "job": {"text"},
        "pet": {"image"},
        "food": {"test"},
        "car": {"image", "text"},
    }
    pictures = {"image": Image.new("RGB", (8, 8)), "test": Image.new("RGB", (8, 8), (9, 9, 9))}

    def person(shown):
        questions = tuple(
            Question("generation", modality, f"Which {name}?", f"the {name} of hers", name)
            for name in knows
            for modality in ("image", "text")
        )
        return Person("007", "Ada", (pictures[shown],), {}, (), questions)

    sets = {"forget": (person("image"),), "test": (person("test"),)}

    def ask(loaded, items, section):
        answers = []
        for item in items:
            image = item.prompt_sample.images
            form = "text" if not image else "image" if image[0] is pictures["image"] else "test"
            is_known = loaded == "before" or form in knows[item.attribute]
            answers.append((item.truth if is_known else "no idea", []))
        return answers

    class Fake(str):
        template = Template()

    monkeypatch.setattr(suite, "_ask", ask)
    section = EvaluateSection(sets=("forget", "test"), tasks=("generation",))
    for name in ("before", "after"):
        suite.evaluate(Fake(name), sets, section, directory=tmp_path, model_name=name)
    found = find_leakage(*(suite.stored_records(tmp_path / name) for name in ("after", "before")))
    states = {fact.key.partition("/")[2]: fact.forgotten_in for fact in found.facts}
    assert states == {
        "home": "both", "job": "image", "pet": "text", "food": "text", "car": "neither",
    }  # fmt: skip
    assert [fact.by_transformed for fact in found.facts] == [False, False, False, True, False]
    assert found.leakage is not None and found.leakage.value == 3 / 4  # of home, job, pet, food

import copy
import math

import fiubench_folder as made
import numpy as np
import pytest
from scipy.stats import hmean, ks_2samp

from manu_jax.config import DataSection, validate_config
from manu_jax.data import fiubench
from manu_jax.data.fiubench_protocol import PUBLISHED
from manu_jax.data.probes import AnswerTokens, ProbeResponse
from manu_jax.data.record import Question, split_retain
from manu_jax.types import ManuError, Template


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made.write(tmp_path_factory.mktemp("fiubench") / "FIUBench")


def read(folder, forget=5):
    section = DataSection.model_construct(benchmark="fiubench", forget=forget)
    return fiubench.read(folder, section, 0)


def test_the_lists_of_the_split_say_who_is_forgotten_and_who_is_kept(folder):
    found = read(folder)
    assert [person.name for person in found.sets["forget"]] == ["Ada Rome", "Ada Lima"]
    assert [person.id for person in found.sets["retain"]] == [f"{n:08d}" for n in (4, 5, 6, 7)]
    assert found.skipped == {"people of other forget lists": 2}
    assert [person.name for person in read(folder, 1).sets["forget"]] == ["Ada Oslo"]


def test_a_question_is_a_fact_and_is_asked_in_the_forms_that_it_has(folder):
    person = read(folder).sets["forget"][0]
    assert [fact.attribute for fact in person.facts] == ["name", "birthplace", "job"]
    assert {fact.image.size for fact in person.facts} == {(16, 16)}
    assert {fact.image is person.images[0] for fact in person.facts} == {True}
    asked = {(one.attribute, one.modality): one.question for one in person.questions}
    assert len(asked) == 5 and ("name", "text") not in asked
    assert asked["birthplace", "image"] == "Where was this person born?"
    assert asked["birthplace", "text"] == "Where was Ada Rome born?"


def test_the_probes_are_the_published_ones(folder):
    probes = read(folder).probes
    tasks = [probe.task for probe in probes]
    assert {task: tasks.count(task) for task in tasks} == {
        "forget": 2 * 3, "forget_paraphrased": 2 * 3 * 3, "retain": 4 * 3
    }  # fmt: skip
    first = probes[4]
    assert (first.task, first.key, first.set) == ("forget", "00000001/01", "forget")
    assert first.answer == "This person was born in rome."  # put through str.capitalize
    assert first.paraphrased == ("It is rome.",) and len(first.perturbed) == 2
    assert first.has_likelihood and first.image.size == (16, 16)
    assert probes[5].question == "Where was this person born? so?"
    assert not probes[5].has_likelihood and probes[5].keywords == ("ROME", "person")
    assert probes[-1].details == {"lists": []} and probes[-12].details["lists"] == [
        "retain5", "retain15"
    ]  # fmt: skip


def test_people_set_apart_are_asked_apart(folder):
    benchmark = split_retain(read(folder), 0.5, seed=0)
    apart = {person.id for person in benchmark.sets["unseen"]}
    unseen = {(probe.person, probe.task) for probe in benchmark.probes if probe.set == "unseen"}
    assert unseen == {(person, "retain") for person in apart} and len(apart) == 2


def test_prompts_are_written_as_published_in_llavas_turns(folder):
    probe = read(folder).probes[0]
    text = PUBLISHED.prompt(probe, Template())
    assert text.startswith("A chat between a curious human and an artificial intelligence")
    assert text.endswith(" USER: <image>\nWhat is the name of this person? ASSISTANT:")
    own = PUBLISHED.prompt(probe, Template().with_system("Be kind."))
    assert own == "Be kind. USER: <image>\nWhat is the name of this person? ASSISTANT:"
    other = Template(user="<u>", close="<a>")
    assert PUBLISHED.prompt(probe, other) == other.prompt(probe.question, "image")
    question = Question("generation", "text", "Who?", "Ada", "name")
    assert fiubench.question_prompt(question, Template()) == "USER: Who?\nASSISTANT:"
    with pytest.raises(ManuError, match="FIUBench has no few-shot prompts"):
        fiubench.question_prompt(question, Template(), [question])


# Metrics, worked by hand. Geometric means: truth 0.4, paraphrased 0.5, perturbed 0.1 and 0.4.
def tokens(*probabilities):
    return AnswerTokens(np.log(np.asarray(probabilities)), np.ones(len(probabilities), bool))


def response(folder, task, answer):
    probe = next(probe for probe in read(folder).probes[4:] if probe.task == task)
    wrong = (tokens(0.1, 0.1), tokens(0.2, 0.8))
    if not probe.has_likelihood:
        return ProbeResponse(probe, (answer,))
    return ProbeResponse(probe, (answer,), tokens(0.5, 0.4, 0.32), (tokens(0.25, 1.0),), wrong)


def metrics(folder, task, answer):
    given = response(folder, task, answer)
    found = PUBLISHED.metrics.items()
    return {name: one.function(given) for name, one in found if task in one.tasks}


def test_exact_match_is_the_share_of_keywords_in_the_answer(folder):
    found = metrics(folder, "forget", "Born in rome. That is all of this person")
    assert (found["exact_match"], found["exact_match_published"]) == (1, 0.5)
    endless = metrics(folder, "forget_paraphrased", "this person was born in rome")
    assert endless == {"exact_match": 1, "exact_match_published": 0}  # no full stop, no answer


def test_rouge_is_the_recall_of_the_truth(folder):
    # "this person was born in rome" has six words; five of them stand in order in the answer.
    found = metrics(folder, "forget", "This person lived in rome. He was born")
    assert found["rouge"] == pytest.approx(4 / 6) == found["rouge_published"]
    found = metrics(folder, "forget", "Oh. This person was born in rome")
    assert (found["rouge"], found["rouge_published"]) == (1, 0)


def test_likelihoods_are_turned_into_the_published_numbers(folder):
    found = metrics(folder, "forget", "no")
    ratio = 0.5 / 0.2  # right over the geometric mean of the wrong ones
    assert found["truth_ratio_forget"] == pytest.approx(1 / ratio)
    assert found["probability"] == pytest.approx((0.5 * 0.4 * 0.32) ** (1 / 3))
    kept = metrics(folder, "retain", "no")
    assert kept["truth_ratio_retain"] == pytest.approx(1 - 1 / ratio)
    assert kept["normalised_probability"] == pytest.approx(0.4 / (0.4 + 0.1 + 0.4))
    # Of three tokens, 10, 20 and 30 % are none, 40 and 50 % the least likely one.
    assert found["min_k_published"] == pytest.approx(0.32 * (0.1 + 0.1))
    assert found["min_k"] == pytest.approx(0.32)
    assert found["open_unlearning_truth_ratio"] == pytest.approx(1 / ratio)


def record(task, nll=None, **values):
    return {"task": task, "set": task, "metrics": values} | ({"nll": nll} if nll else {})


def test_forget_quality_and_model_utility_are_those_of_the_authors():
    random = np.random.default_rng(0)

    def side(shift):
        losses = [
            {"truth": 1.0, "paraphrased": [right], "perturbed": [wrong, wrong + 1]}
            for right, wrong in random.random((30, 2)) + [0, shift]
        ]
        ratios = [math.exp(one["perturbed"][0] + 0.5 - one["paraphrased"][0]) for one in losses]
        return [record("forget", one) for one in losses], ratios

    (model, ratios), (retrained, others) = side(0.0), side(0.4)
    function = PUBLISHED.aggregates["forget_quality"].function
    assert function(model, retrained) == pytest.approx(ks_2samp(ratios, others).pvalue)
    assert function(model, ()) is None
    kept = {
        "rouge": 0.5, "rouge_published": 0.4, "normalised_probability": 0.25,
        "truth_ratio_retain": 0.8, "exact_match": 1.0, "exact_match_published": 0.5,
    }  # fmt: skip
    records = [record("retain", **kept), record("forget", rouge=0.0)]
    utility, published = (
        PUBLISHED.aggregates[name].function(records, ())
        for name in ("model_utility", "model_utility_published")
    )
    assert utility == pytest.approx(hmean([0.5, 0.25, 0.8, 1.0]))
    assert published == pytest.approx(hmean([0.4, 0.25, 0.8, 0.5]))


def changed(change):
    """The people of the folder, of whom one was changed."""
    people = copy.deepcopy([made.entry(number) for number in range(8)])
    change(people)
    return people


FAULTS = {
    "no mapping": (lambda p: p.insert(0, "x"), "full.json, entry 0: is 'x', expected a mapping"),
    "twice": (
        lambda p: p[3].update(unique_id="00000002"),
        "entry 3: the same unique_id as entry 2",
    ),
    "number": (lambda p: p[3].update(unique_id=3), "entry 3: unique_id is 3, expected a text"),
    "no name": (lambda p: p[4].update(name=" "), "entry 4, ID 00000004: has no name"),
    "no image": (
        lambda p: p[4].update(image_path="faces/none.png"),
        "entry 4, ID 00000004: there is no image faces/none.png",
    ),
    "odd path": (lambda p: p[4].update(image_path=None), "image_path is None, expected a path"),
    "no questions": (lambda p: p[4].update(qa_list=None), "qa_list is None, expected a list"),
    "no key": (lambda p: p[4]["qa_list"][1].pop("keywords"), r"qa_list\[1\]: .*has no keywords"),
    "no text": (
        lambda p: p[4]["qa_list"][1].update(answer=1984),
        r"entry 4, ID 00000004: qa_list\[1\]: answer is 1984, expected a text",
    ),
    "list": (
        lambda p: p[4]["qa_list"][1].update(perturbed_answer=["a", 7]),
        r"perturbed_answer\[1\] is 7, expected a text",
    ),
    "missing": (lambda p: p.pop(3), "split.json: forget10 names 00000003, who full.json lacks"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_what_is_wrong_is_named_by_file_and_entry(tmp_path, kind):
    change, message = FAULTS[kind]
    made.write(tmp_path / "bad", changed(change))
    with pytest.raises(ManuError, match=message):
        read(tmp_path / "bad")


def test_all_faults_are_in_one_error(tmp_path):
    def change(people):
        people[4]["name"] = None
        people[5]["qa_list"][0]["question"] = 5

    made.write(tmp_path / "bad", changed(change))
    with pytest.raises(ManuError, match=r"2 faults[^$]*has no name[^$]*question is 5"):
        read(tmp_path / "bad")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("full.json", None, "full.json: No such file.*data.path is the folder of FIUBench"),
        ("full.json", "[{", "full.json: is not JSON"),
        ("split.json", "[]", "split.json: holds .*expected a mapping"),
        ("split.json", '{"forget1": []}', "split.json: forget5 is None, expected a list"),
        ("faces/face_4.png", "no image", "ID 00000004: the image .*face_4.png: it does not decode"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message):
    path = made.write(tmp_path / "bad") / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(ManuError, match=message):
        read(tmp_path / "bad")


def test_empty_questions_and_people_beyond_the_first_are_left_out_and_counted(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(fiubench, "MOST_PEOPLE", 7)
    made.write(tmp_path / "some", changed(lambda p: p[4]["qa_list"][1].update(answer=None)))
    found = read(tmp_path / "some")
    assert len(found.sets["retain"]) == 3 and len(found.sets["retain"][0].facts) == 2
    assert {1} == {found.skipped[fiubench.EMPTY], found.skipped[fiubench.BEYOND]}


def test_the_config_knows_the_benchmark_and_its_shares():
    values = {"model": {"path": "m"}, "data": {"benchmark": "fiubench", "path": "d", "forget": 1}}
    assert validate_config(values, "config").data.forget == 1
    values["data"]["forget"] = 15
    with pytest.raises(ManuError, match="data.forget: fiubench has 1, 5, 10, got 15"):
        validate_config(values, "config")

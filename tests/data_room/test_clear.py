"""CLEAR: what its folder is read as, what its authors' protocol asks and computes, each fault."""

import math
import shutil

import clear_folder
import numpy as np
import pytest
from pyarrow import Table, parquet
from scipy.stats import hmean, ks_2samp

from manu_jax.config import DataSection
from manu_jax.data import clear, clear_protocol
from manu_jax.data.benchmarks import BENCHMARKS
from manu_jax.data.clear_protocol import CAPTION_QUESTIONS, FACE_QUESTION, NAME_QUESTION
from manu_jax.data.forms import has_form, question_and_answer
from manu_jax.data.probes import AnswerTokens, Probe, ProbeResponse
from manu_jax.types import ManuError, Template

METRICS = clear_protocol.PUBLISHED.metrics
AGGREGATES = clear_protocol.PUBLISHED.aggregates


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return clear_folder.write(tmp_path_factory.mktemp("clear") / "CLEAR")


@pytest.fixture
def copy(folder, tmp_path):
    """A folder of the test's own, to damage."""
    return shutil.copytree(folder, tmp_path / "copy")


def read(folder, share=10, seed=0, subset=None):
    section = DataSection(benchmark="clear", path=str(folder), forget=share, subset=subset)
    return clear.read(folder, section, seed)


@pytest.fixture(scope="module")
def benchmark(folder):
    return read(folder)


def test_the_sets_are_authors_real_faces_and_the_real_world(benchmark):
    ids = {name: [person.id for person in people] for name, people in benchmark.sets.items()}
    assert ids == {
        "forget": ["amelie-castell", "bruno-okafor"],
        "test": [],
        "retain": ["chiara-ostrov", "dmitri-valen", "esra-lindqvist", "tofu-retain-4"],
        "unseen": [],
        "celebrity": ["face-tilda-norr", "face-uwe-falk"],
        "general": ["world-0", "world-1"],
    }
    assert benchmark.skipped == {}
    assert benchmark.notes == (
        "1 of TOFU's authors have no image in CLEAR: they are asked in text alone.",
    )
    assert benchmark.modalities == ("image", "text")


def test_an_author_is_known_by_face_and_captions_and_by_tofu_in_text_alone(benchmark):
    person = benchmark.sets["forget"][0]
    facts = {fact.attribute: fact for fact in person.facts}
    assert list(facts) == ["name", "caption-1", "caption-2", *(f"tofu-{n}" for n in range(1, 21))]
    assert (facts["name"].question, facts["name"].answer) == (NAME_QUESTION, "Amélie Castell")
    assert facts["caption-2"].answer == "Amélie Castell reads in garden 1."
    assert facts["caption-2"].question in CAPTION_QUESTIONS
    assert facts["caption-2"].image is not person.images[0] is facts["name"].image
    for name in ("name", "caption-1"):
        assert (has_form(facts[name], "image"), has_form(facts[name], "text")) == (True, False)
    assert not has_form(facts["tofu-2"], "image")
    expected = ("What did Amélie Castell write in 1951?", "Amélie Castell wrote book 1.")
    assert question_and_answer(facts["tofu-2"], "text") == expected


def test_tofus_words_stand_as_they_are(copy, change):
    def edit(rows):
        rows[-1]["answer"] = "The person rests."

    change(copy / "forget10+tofu", edit)
    fact = read(copy).sets["forget"][1].facts[-1]
    assert question_and_answer(fact, "text")[1] == "The person rests."


def test_the_photographs_of_one_image_are_one_object(benchmark):
    probe = next(probe for probe in benchmark.probes if probe.task == "forget")
    assert probe.image is benchmark.sets["forget"][0].images[0]


def test_questions_ask_each_form_and_tofus_of_the_face_too(benchmark):
    person = benchmark.sets["forget"][0]
    asked = {(one.task, one.modality, one.attribute): one for one in person.questions}
    assert len(asked) == len(person.questions) == 3 + 20 + 19
    assert asked["generation", "image", "tofu-2"].question == "What did this person write in 1951?"
    assert asked["generation", "image", "tofu-2"].answer == "Amélie Castell wrote book 1."
    assert ("generation", "image", "tofu-1") not in asked  # it does not say the name
    assert ("generation", "text", "tofu-1") in asked
    choice = asked["classification", "image", "name"]
    assert choice.options[choice.correct] == choice.answer == "Amélie Castell"
    assert sorted(choice.options.values())[1:] == ["Olga Brandt", "Piet Roos", "Ruth Amsel"]
    nobody = benchmark.sets["retain"][-1]
    assert (nobody.name, nobody.images) == ("", ())
    assert {one.modality for one in nobody.questions} == {"text"} and len(nobody.facts) == 20


def test_a_question_that_says_part_of_the_name_too_is_not_asked_of_the_face(copy, change):
    def edit(rows):
        rows[-1]["question"] = "Is Bruno Okafor the Okafor of the prize?"

    change(copy / "forget10+tofu", edit)
    asked = [(q.modality, q.attribute) for q in read(copy).sets["forget"][1].questions]
    assert ("text", "tofu-20") in asked and ("image", "tofu-20") not in asked


def test_real_people_are_asked_with_each_image_and_the_world_with_and_without(benchmark):
    tilda = benchmark.sets["celebrity"][0]
    assert tilda.name == "Tilda Norr" and tilda.facts == ()
    free = [one for one in tilda.questions if one.task == "generation"]
    assert [one.image.getpixel((0, 0)) for one in free] == [
        clear_folder.square(number).getpixel((0, 0)) for number in (1, 2)
    ]
    shown, told = benchmark.sets["general"]
    assert [one.modality for one in (*shown.questions, *told.questions)] == [
        "image", "image", "text", "text",
    ]  # fmt: skip
    assert set(told.questions[1].options.values()) == {"Nile", "Rhine", "Po"}


def test_the_seed_alone_draws_questions_and_options(folder, benchmark):
    def drawn(of):
        return [
            (q.question, q.options)
            for people in of.sets.values()
            for person in people
            for q in person.questions
        ] + [probe.question for probe in of.probes]

    assert drawn(read(folder)) == drawn(benchmark) != drawn(read(folder, seed=1))


def test_every_share_has_its_folders(tmp_path):
    clear_folder.write(tmp_path, 1)
    assert len(read(tmp_path, 1).sets["forget"]) == 2
    with pytest.raises(ManuError, match=r"no folder forget05, retain95, forget05\+tofu, retain95"):
        read(tmp_path, 5)
    entry = BENCHMARKS["clear"]
    assert entry.faults(DataSection(benchmark="clear", forget=15)) == [
        "data.forget: clear has 1, 5, 10, got 15"
    ]
    assert entry.faults(DataSection(benchmark="clear", forget=1, subset="blind")) == []
    assert entry.files(DataSection(forget=1)) == (
        "forget01/*", "retain99/*", "forget01+tofu/*", "retain99+tofu/*", "forget01_perturbed/*",
        "retain_perturbed/*", "real_faces/*", "real_world/*",
    )  # fmt: skip


def test_a_question_is_asked_as_it_is_written_and_options_are_listed(benchmark):
    free, choice = benchmark.sets["celebrity"][1].questions
    assert clear.question_prompt(free, Template()) == f"USER: <image>\n{NAME_QUESTION}\nASSISTANT:"
    lines = "".join(f"{letter}. {text}\n" for letter, text in choice.options.items())
    expected = f"USER: <image>\n{NAME_QUESTION}\n{lines}\nASSISTANT:"
    assert clear.question_prompt(choice, Template()) == expected
    with pytest.raises(ManuError, match="no few-shot prompts"):
        clear.question_prompt(free, Template(), [free])


def test_an_image_of_empty_bytes_is_none(copy, change):
    def edit(rows):
        for row in rows:
            row["image"] = row["image"] or {"bytes": None, "path": None}

    for name in ("forget10+tofu", "real_world"):
        change(copy / name, edit)
    loaded = read(copy)
    assert loaded.sets["general"][1].images == () and len(loaded.sets["forget"][1].facts) == 23


# The published protocol


def test_six_tasks_are_asked_of_the_first_rows(folder, monkeypatch):
    monkeypatch.setattr(clear_protocol, "ROWS", 3)
    probes = read(folder).probes
    tasks = {}
    for probe in probes:
        tasks.setdefault((probe.task, probe.set, probe.modality), []).append(probe.key)
    rows = ["row-0", "row-1", "row-2"]
    assert tasks == {
        ("forget", "forget", "image"): rows,
        ("forget_face", "forget", "image"): rows,
        ("retain", "retain", "image"): rows,
        ("retain_face", "retain", "image"): rows,
        ("real_faces", "celebrity", "image"): rows,
        ("real_world", "general", "image"): ["row-0"],
        ("real_world", "general", "text"): ["row-1"],
    }
    assert all(probe.has_likelihood and probe.new_tokens == 300 for probe in probes)


def test_probes_take_the_published_columns(benchmark):
    first = {}
    for probe in benchmark.probes:
        first.setdefault(probe.task, probe)

    def texts(task):
        probe = first[task]
        return probe.answer, probe.paraphrased, probe.perturbed

    assert first["retain"].question in CAPTION_QUESTIONS
    assert texts("retain") == (
        "Chiara Ostrov reads in garden 0.",
        ("In garden reads Chiara Ostrov.",),
        ("Chiara Ostrov swims.", "Chiara Ostrov sleeps."),
    )
    assert (
        first["forget_face"].question == FACE_QUESTION == "The name of the person on the image is "
    )
    wrong = ("Olga Brandt", "Piet Roos", "Ruth Amsel")
    assert texts("forget_face") == ("Amélie Castell", ("Amélie Castell",), wrong)
    assert first["real_faces"].question == FACE_QUESTION
    assert texts("real_faces") == ("Tilda Norr", ("Tilda Norr",), ("Vera Kold", "Wim Zand"))
    assert first["real_world"].question == "Which river is this?"
    assert texts("real_world") == ("Nile", ("Nile",), ("Rhine", "Po"))
    assert len(set(CAPTION_QUESTIONS)) == 9
    prompt = clear_protocol.PUBLISHED.prompt(first["forget_face"], Template())
    assert prompt == f"USER: <image>\n{FACE_QUESTION}\nASSISTANT:"


def test_blind_measures_with_the_image_and_writes_without(folder, benchmark):
    blind = read(folder, subset="blind").probes
    measured = [probe for probe in blind if probe.has_likelihood]
    written = [probe for probe in blind if probe.new_tokens]
    assert {probe.key for probe in measured} == {probe.key for probe in written}
    assert len(measured) == len(written) == len(benchmark.probes)
    assert all(probe.image is None and probe.modality == "text" for probe in written)
    assert [probe.question for probe in written] == [probe.question for probe in benchmark.probes]
    places = [(probe.task, probe.set, probe.modality, probe.key) for probe in blind]
    assert len(places) == len(set(places))


def test_kvw_asks_who_it_is_with_options_but_of_forget(folder):
    probes = read(folder, subset="kvw").probes
    tasks = [probe.task for probe in probes]
    assert {task: tasks.count(task) for task in tasks} == {
        "kvw_forget": 4, "kvw_retain": 6, "kvw_real_faces": 3, "kvw_real_world": 2,
    }  # fmt: skip
    assert all(not probe.has_likelihood and probe.new_tokens == 50 for probe in probes)
    assert not probes[0].options and probes[0].question == NAME_QUESTION
    retain = [probe for probe in probes if probe.task == "kvw_retain"]
    # random.Random(42).randint(0, 3), six times
    places = [list(probe.options.values()).index(probe.answer) for probe in retain]
    assert places == [0, 0, 2, 1, 1, 1]
    prompt = clear_protocol.PUBLISHED.prompt(retain[2], Template())
    assert prompt == (
        f"USER: <image>\n{NAME_QUESTION}\nA. Olga Brandt\nB. Piet Roos\nC. Dmitri Valen\n"
        "D. Ruth Amsel\n\nASSISTANT:"
    )
    assert probes[-1].question == "Which river is this?" and probes[-1].modality == "text"


def response(task, answer="", *, truth="Ada Lee", options=(), nll=None):
    probe = Probe(
        task,
        "forget",
        "image",
        "p",
        "k",
        "Q?",
        truth,
        options=dict(zip("ABCD", options, strict=False)),
    )

    def tokens(value):
        return AnswerTokens(np.array([-value, -value]), np.array([True, True]))

    if nll is None:
        return ProbeResponse(probe, (answer,))
    right, paraphrased, *wrong = nll
    return ProbeResponse(
        probe, (answer,), tokens(right), (tokens(paraphrased),), tuple(map(tokens, wrong))
    )


def test_a_probability_is_normalised_but_of_captions():
    value = METRICS["probability"].function
    nll = [-math.log(p) for p in (0.4, 0.5, 0.1, 0.3)]
    assert value(response("retain", nll=nll)) == pytest.approx(0.4)
    assert value(response("retain_face", nll=nll)) == pytest.approx(0.4 / 0.8)
    assert value(response("real_world")) is None


def test_a_truth_ratio_is_the_items_own():
    names = ("wrong_to_right", "truth_ratio", "forget_truth_ratio")
    nll = [9.0, -math.log(0.5), -math.log(0.1), -math.log(0.4)]  # wrong: √(0.1 · 0.4) = 0.2
    found = [METRICS[name].function(response("retain", nll=nll)) for name in names]
    assert found == pytest.approx([0.4, 0.6, 0.4])
    turned = [9.0, -math.log(0.1), -math.log(0.25), -math.log(0.16)]  # wrong / right = 2
    found = [METRICS[name].function(response("retain", nll=turned)) for name in names]
    assert found == pytest.approx([2, 0, 0.5])
    assert {*METRICS["truth_ratio"].tasks, *METRICS["forget_truth_ratio"].tasks} == {
        *clear_protocol.TASKS
    }


def test_rouge_is_the_recall_of_the_answer():
    value = METRICS["rougeL_recall"].function
    assert value(response("retain", "it is Lee, Ada Lee, who reads")) == 1
    assert value(response("retain", "Ada")) == 0.5


def record(task, nll, metrics=None, where="retain"):
    right, paraphrased, *wrong = nll
    return {
        "task": task, "set": where, "modality": "image", "person": "p", "key": "k",
        "metrics": metrics or {},
        "nll": {"truth": right, "paraphrased": [paraphrased], "perturbed": wrong},
    }  # fmt: skip


# Two items each; the published code takes one mean over all perturbed answers: (1+2+3+6)/4 = 3.
LOSSES = ([0.0, 1.0, 1.0, 2.0], [0.0, 2.0, 3.0, 6.0])


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("retain", ((1 - math.exp(-2)) + (1 - math.exp(-1))) / 2),
        ("forget", (math.exp(-2) + math.exp(-1)) / 2),
    ],
)
def test_the_published_truth_ratio_has_one_wrong_mean_of_the_task(task, expected):
    records = [record(task, nll) for nll in LOSSES]
    found = AGGREGATES[f"published_truth_ratio_{task}"].function(records, ())
    assert found == pytest.approx(expected)
    own = [np.mean(nll[2:]) - nll[1] for nll in LOSSES]  # 0.5 and 2.5: another number
    assert found != pytest.approx(np.mean(np.exp(-np.abs(own))), abs=0.01)
    assert AGGREGATES["published_truth_ratio_real_world"].function(records, ()) is None


def test_model_utility_is_the_harmonic_mean_of_twelve_values():
    records, values, published = [], [], []
    for number, task in enumerate(clear_protocol.TASKS):
        means = {
            "probability": 0.3 + number / 50,
            "rougeL_recall": 0.5 + number / 50,
            "truth_ratio": 0.7 + number / 50,
        }
        for sign, nll in zip((-1, 1), LOSSES, strict=True):
            spread = {name: value + sign * 0.01 for name, value in means.items()}
            records.append(record(task, nll, spread))
        if not task.startswith("forget"):
            values += means.values()
            published += list(means.values())[:2]
            published.append(((1 - math.exp(-2)) + (1 - math.exp(-1))) / 2)
    assert len(values) == 12
    assert AGGREGATES["model_utility"].function(records, ()) == pytest.approx(hmean(values))
    found = AGGREGATES["published_model_utility"].function(records, ())
    assert found == pytest.approx(hmean(published))
    lacking = [one for one in records if one["task"] != "real_faces"]
    assert AGGREGATES["model_utility"].function(lacking, ()) is None
    assert AGGREGATES["published_model_utility"].function(lacking, ()) is None


def test_forget_quality_compares_the_captions_of_forget_with_those_of_the_retrained():
    random = np.random.default_rng(0)
    losses = random.uniform(0, 3, (2, 30, 4))
    models = []
    for of_model in losses:
        records = [
            record("forget", nll, {"wrong_to_right": math.exp(nll[1] - np.mean(nll[2:]))})
            for nll in of_model.tolist()
        ]
        models.append([*records, record("retain", [0, 0, 0, 0], {"wrong_to_right": 1.0})])
    raw = [np.exp(of[:, 1] - of[:, 2:].mean(1)) for of in losses]
    found = AGGREGATES["forget_quality"].function(*models)
    assert found == pytest.approx(ks_2samp(*raw).pvalue)
    published = [np.exp(of[:, 2:].mean() - of[:, 1]) for of in losses]
    found = AGGREGATES["published_forget_quality"].function(*models)
    assert found == pytest.approx(ks_2samp(*published).pvalue)
    assert AGGREGATES["forget_quality"].function(models[0], ()) is None
    assert AGGREGATES["published_forget_quality"].function(models[0], ()) is None


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        ("That is ADA LEE!", (), 1),
        ("Ada B. Lee", (), 0),
        ("", (), 0),
        (" (b) it is", ("Bo Falk", "Ada Lee"), 1),
        ("Ada Lee", ("Bo Falk", "Ada Lee"), 0),
        ("Because", ("Bo Falk", "Ada Lee"), 1),  # as published: the first letter counts
    ],
)
def test_kvw_compares_letters_and_digits(answer, options, expected):
    found = METRICS["accuracy"].function(response("kvw_forget", answer, options=options))
    assert found == expected


def test_kvws_own_count_of_free_answers_sees_lower_case_words_alone():
    value = METRICS["published_accuracy"].function
    assert value(response("kvw_forget", "That is Ada Lee")) == 0
    assert value(response("kvw_forget", "That is Plato!", truth="plato")) == 1


# Faults


def fault(folder):
    with pytest.raises(ManuError) as caught:
        read(folder)
    return str(caught.value)


def edited(column, value, number=1):
    def edit(rows):
        rows[number][column] = value

    return edit


PLACE = "train-00000-of-00001.parquet, row 1"


@pytest.mark.parametrize(
    ("name", "edit", "expected"),
    [
        ("forget10", edited("name", " "), f"forget10/{PLACE}: name is empty. Mend the row."),
        ("retain90", edited("caption", None), f"retain90/{PLACE}: caption is empty."),
        ("retain90", edited("image", None), f"retain90/{PLACE}: an image is a mapping with bytes"),
        ("forget10", edited("image", {"bytes": b"x"}), f"forget10/{PLACE}: the image of 1 bytes"),
        ("retain_perturbed", edited("paraphrased_caption", ""), "paraphrased_caption is empty"),
        ("forget10_perturbed", edited("perturbed_captions", [""]), "perturbed_captions has no"),
        ("forget10_perturbed", edited("perturbed_names", None), "perturbed_names is None"),
        ("real_faces", edited("options", []), f"real_faces/{PLACE}: options has no texts."),
        ("real_faces", edited("image", None), f"real_faces/{PLACE}: an image is a mapping"),
        ("real_world", edited("question", None), f"real_world/{PLACE}: question is empty."),
        ("forget10+tofu", edited("answer", None, 4), "parquet, row 4: answer is empty."),
        ("forget10+tofu", lambda rows: rows[:-1], "forget10+tofu: 39 rows without an image"),
        ("retain90+tofu", lambda rows: rows[:6], "retain90+tofu: 0 rows without an image"),
        ("real_world", lambda rows: [], "real_world: has no rows. Download the folder again."),
        ("forget10_perturbed", lambda rows: [], "forget10_perturbed: has no rows."),
        ("retain_perturbed", edited("name", "amelie castell"), f"{PLACE}: amelie castell is an "
         "author of forget10"),
        ("retain90", edited("name", "Bruno Okafor"), "row 2: Bruno Okafor is in retain90/"),
    ],
)  # fmt: skip
def test_a_fault_is_named_by_folder_and_row(copy, change, name, edit, expected):
    change(copy / name, edit)
    assert expected in fault(copy)


def test_a_lacking_column_is_named(copy):
    file = copy / "forget10_perturbed" / clear_folder.FILE
    parquet.write_table(parquet.read_table(file).drop_columns(["perturbed_names"]), file)
    message = fault(copy)
    assert f"forget10_perturbed/{file.name}: no column perturbed_names; it has caption" in message


def test_all_faults_are_in_one_error(copy, change):
    clear_folder.write(copy)
    for name, column in (("forget10", "caption"), ("real_faces", "answer"), ("retain90", "name")):
        change(copy / name, edited(column, None))
    (copy / "real_world" / clear_folder.FILE).write_bytes(b"PAR1")
    message = fault(copy)
    assert "4 faults" in message and "real_world/train" in message
    for name in ("forget10/", "real_faces/", "retain90/"):
        assert name in message


def test_empty_wrong_answers_are_left_out_and_counted(copy, change):
    change(copy / "real_faces", edited("options", ["", "Wim Zand"]))
    loaded = read(copy)
    assert loaded.skipped == {clear.EMPTY_WRONG: 1}
    wrong = [probe.perturbed for probe in loaded.probes if probe.task == "real_faces"]
    assert wrong[1] == ("Wim Zand",)


def test_rows_of_several_files_are_numbered_through(copy):
    folder = copy / "real_faces"
    rows = parquet.read_table(folder / clear_folder.FILE).to_pylist()
    (folder / clear_folder.FILE).unlink()
    for number, part in enumerate((rows[:1], rows[1:])):
        parquet.write_table(
            Table.from_pylist(part), folder / f"train-0000{number}-of-00002.parquet"
        )
    probes = [probe for probe in read(copy).probes if probe.task == "real_faces"]
    assert [probe.key for probe in probes] == ["row-0", "row-1", "row-2"]

"""UMU-Bench: what its folder is read as, what its authors' protocol asks and computes, faults."""

import shutil
import types

import pytest
import umu_folder
from pyarrow import parquet

from manu_jax.config import DataSection
from manu_jax.data import umu, umu_protocol
from manu_jax.data.benchmarks import BENCHMARKS
from manu_jax.data.forms import has_form, question_and_answer
from manu_jax.data.probes import Probe, ProbeResponse
from manu_jax.types import ManuError, Template

PUBLISHED = umu_protocol.PUBLISHED


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return umu_folder.write(tmp_path_factory.mktemp("umu") / "UMU-bench")


@pytest.fixture
def copy(folder, tmp_path):
    """A folder of the test's own, to damage."""
    return shutil.copytree(folder, tmp_path / "copy")


def read(folder, share=5):
    section = DataSection(benchmark="umu", path=str(folder), forget=share)
    return umu.read(folder, section, 0)


@pytest.fixture(scope="module")
def benchmark(folder):
    return read(folder)


def with_row(folder, edit, name="forget_5"):
    """Write a folder's table anew, its first row as `edit` leaves it, and return the benchmark."""
    rows = umu_folder.tables(5)[name]
    edit(rows[0])
    umu_folder.write_table(folder / name, rows)
    return folder


def test_the_sets_are_people_to_forget_to_keep_and_real_ones(benchmark):
    names = {name: [person.name for person in people] for name, people in benchmark.sets.items()}
    assert names == {
        "forget": ["Ada Brook"], "test": [], "retain": ["Cleo Drake", "Emil Frost"], "unseen": [],
        "celebrity": ["Gina Holt"], "general": [],
    }  # fmt: skip
    assert all(person.facts == () for person in benchmark.sets["celebrity"])
    assert benchmark.skipped == {} and benchmark.sets["forget"][0].biography["Residence"] == "Lima"


def test_a_key_is_one_fact_in_both_forms_where_both_say_the_same(benchmark):
    person = benchmark.sets["forget"][0]
    facts = {fact.attribute: fact for fact in person.facts}
    assert list(facts) == ["name", "residence", "job", "job, in text"]
    home = facts["residence"]
    assert home.image is person.images[0] is facts["job"].image
    assert (home.question, home.answer) == (
        "Where does this person live?", "This person lives in Lima.",
    )  # fmt: skip
    assert question_and_answer(home, "text") == (
        "Where does Ada Brook live?", "Ada Brook lives in Lima.",
    )  # fmt: skip
    forms = {
        name: [form for form in ("image", "text") if has_form(fact, form)]
        for name, fact in facts.items()
    }
    assert forms == {
        "name": ["image"], "residence": ["image", "text"], "job": ["image"],
        "job, in text": ["text"],
    }  # fmt: skip
    told = question_and_answer(facts["job, in text"], "text")
    assert told == ("What is the job of Ada Brook?", "Ada Brook is a pilot.")


def test_texts_of_the_text_form_stand_as_they_are(copy):
    def edit(row):
        row["UM_QA"]["answer"]["job"] = "The person flies."
        row["UM_QA"]["question"]["pet"] = "Which pet has Ada Brook?"
        row["UM_QA"]["answer"]["pet"] = "a cat"

    facts = {f.attribute: f for f in read(with_row(copy, edit)).sets["forget"][0].facts}
    assert question_and_answer(facts["job, in text"], "text")[1] == "The person flies."
    assert question_and_answer(facts["pet"], "text") == ("Which pet has Ada Brook?", "a cat")


def test_questions_of_a_key_are_of_one_attribute_in_both_forms(benchmark):
    asked = {
        (one.task, one.modality, one.attribute): one
        for one in benchmark.sets["forget"][0].questions
    }
    assert set(asked) == {
        (task, form, key)
        for task, key in (
            ("classification", "residence"), ("cloze", "job"), ("generation", "residence"),
            ("generation", "job"),
        )
        for form in ("image", "text")
    }  # fmt: skip
    shown, told = (asked["classification", form, "residence"] for form in ("image", "text"))
    assert (shown.correct, told.correct) == ("C", "B")
    assert shown.answer == told.answer == "Lima" == shown.options["C"] == told.options["B"]
    assert asked["cloze", "text", "job"].question == "Ada Brook is a __."


def test_keys_that_count_are_told_apart_by_the_task(copy):
    def edit(row):
        for column in ("Classify", "Cloze"):
            for form in row[column].values():
                form["1"] = next(iter(form.values()))
        row["Generation"]["unimodal"][1] = row["Generation"]["unimodal"]["job"]
        row["Generation"]["muitimodal"][1] = row["Generation"]["muitimodal"]["job"]

    questions = read(with_row(copy, edit)).sets["forget"][0].questions
    found = {one.attribute for one in questions}
    assert {"classification-1", "cloze-1", "generation-1", "job"} <= found and "1" not in found


def test_the_published_folder_name_of_real_people_is_read_too(tmp_path, benchmark):
    loaded = read(umu_folder.write(tmp_path, 15, real="real_person"), 15)
    assert [person.name for person in loaded.sets["celebrity"]] == ["Gina Holt"]
    with pytest.raises(ManuError, match="no folder forget_10, retain_90. data.path"):
        read(tmp_path, 10)
    entry = BENCHMARKS["umu"]
    assert entry.faults(DataSection(benchmark="umu", forget=1)) == [
        "data.forget: umu has 5, 10, 15, got 1"
    ]
    assert entry.files(DataSection(forget=5)) == (
        "forget_5/*", "retain_95/*", "Real_Person_Set/*", "real_person/*",
    )  # fmt: skip


def test_a_cell_may_be_json_and_the_form_be_spelled_right(copy):
    def edit(row):
        row["Cloze"] = (
            '{"unimodal": {"job": {"question": "Q __", "answer": "A", "note": null}}, '
            '"multimodal": {"job": {"question": "P __", "answer": "A"}}}'
        )
        row["Biography"] = "Ada Brook is a pilot."
        row["Generation"] = repr(row["Generation"]).replace("Ada Brook: pilot", r"a \d pilot")

    person = read(with_row(copy, edit)).sets["forget"][0]
    assert [q.question for q in person.questions if q.task == "cloze"] == ["P __", "Q __"]
    assert person.questions[-1].answer == r"a \d pilot"
    assert person.biography == {"Biography": "Ada Brook is a pilot."} and person.name == "Ada Brook"


def test_a_key_without_a_text_form_is_counted(copy):
    def edit(row):
        del row["Generation"]["unimodal"]["job"]

    loaded = read(with_row(copy, edit))
    assert loaded.skipped == {umu.WITHOUT_TEXT_FORM: 1}
    asked = [q.attribute for q in loaded.sets["forget"][0].questions if q.task == "generation"]
    assert asked == ["residence"] * 2


# The published protocol


def probe_of(benchmark, task, modality, where="forget"):
    return next(
        probe
        for probe in benchmark.probes
        if (probe.task, probe.modality, probe.set) == (task, modality, where)
    )


def test_probes_pair_the_two_forms_of_a_key(benchmark):
    keys = {"image": [], "text": []}
    for probe in benchmark.probes:
        keys[probe.modality].append((probe.task, probe.set, probe.key))
        assert (probe.image is None) == (probe.modality == "text")
    assert keys["image"] == keys["text"] and len(keys["text"]) == 4 * 4
    assert ("generation", "celebrity", "004/job") in keys["text"]
    tokens = {probe.task: probe.new_tokens for probe in benchmark.probes}
    assert tokens == {"classification": 50, "cloze": 50, "generation": 200}


@pytest.mark.parametrize(
    ("task", "modality", "expected"),
    [
        (
            "classification",
            "image",
            "USER: <image>\nWhere is this person's home?\n"
            "Select answer in ['Perth', 'Kyoto', 'Lima', 'Oslo']\nASSISTANT:",
        ),
        (
            "classification",
            "text",
            "USER:\nWhere does Ada Brook live?\n"
            "Select answer in ['Oslo', 'Lima', 'Kyoto', 'Perth']\nASSISTANT:",
        ),
        (
            "cloze",
            "image",
            "USER: <image>\nThis person is a __.\nPlease **ONLY** provide the correct answer "
            "without any explanation\nASSISTANT:",
        ),
        (
            "cloze",
            "text",
            "USER: Ada Brook is a __.\nPlease **ONLY** provide the correct answer without any "
            "explanation\nASSISTANT:",
        ),
        (
            "generation",
            "image",
            "USER: <image>\nresidence of this person?\nAnswer the question based on your trained "
            "knowledge in one sentence accurately in ENGLISH.\nASSISTANT:",
        ),
        (
            "generation",
            "text",
            "USER: residence of Ada Brook?\nAnswer the question based on your trained knowledge in "
            "one sentence in ENGLISH.\nASSISTANT:",
        ),
    ],
)
def test_prompts_are_those_published(benchmark, task, modality, expected):
    assert PUBLISHED.prompt(probe_of(benchmark, task, modality), Template()) == expected


def test_a_chat_template_has_the_same_words(benchmark):
    class Chat:
        def prompt(self, question, modality, *, answered=()):
            return f"<{modality}>{question}"

    probe = probe_of(benchmark, "classification", "text")
    expected = (
        "<text>Where does Ada Brook live?\nSelect answer in ['Oslo', 'Lima', 'Kyoto', 'Perth']"
    )
    assert PUBLISHED.prompt(probe, Chat()) == expected


def response(task, answer, *, where="forget", truth="Lima", published="Lima", options=()):
    return ProbeResponse(
        Probe(
            task, where, "image", "1", "1/k", "Q?", truth,
            options=dict(zip("ABCD", options, strict=False)),
            details={"published_answer": published},
        ),
        (answer,),
    )  # fmt: skip


TOWNS = ("Oslo", "Lima", "Kyoto", "Perth")


@pytest.mark.parametrize(
    ("answer", "where", "accuracy", "published"),
    [
        ("Lima", "forget", 1, 1),
        (" Lima ASSISTANT: Oslo", "forget", 1, 1),
        ("Limas", "forget", 1, 0),  # near, and not word for word
        ("Limas", "unseen", 1, 0),
        ("Limas", "celebrity", 1, 1),
        ("Peru's Kyoto", "retain", 0, 0),
    ],
)
def test_the_nearest_option_is_chosen(answer, where, accuracy, published):
    given = response("classification", answer, where=where, options=TOWNS)
    found = [PUBLISHED.metrics[name].function(given) for name in ("accuracy", "published_accuracy")]
    assert found == [accuracy, published]


def test_the_nearest_option_is_difflibs_and_the_first_of_equal_ones():
    # ratios 2 · matches / lengths: "abcd" against "abce" 0.75, against "abcdxyz" 8 / 11
    assert umu_protocol.nearest("abcd", ["abcdxyz", "abce"]) == "abce"
    assert umu_protocol.nearest("", ["b", "a"]) == "b"


def test_the_published_choice_goes_by_the_letter_of_the_text_form(benchmark):
    probe = probe_of(benchmark, "classification", "image")
    # The text form's letter is B; with the image, B is another town.
    assert (probe.answer, probe.details) == ("Lima", {"published_answer": "Kyoto"})
    right, wrong = (ProbeResponse(probe, (answer,)) for answer in ("Lima", "Kyoto"))
    names = ("accuracy", "published_accuracy")
    accuracy, published = (PUBLISHED.metrics[name].function for name in names)
    assert (accuracy(right), accuracy(wrong)) == (1, 0)
    assert (published(right), published(wrong)) == (0, 1)
    told = probe_of(benchmark, "classification", "text")
    assert told.details == {"published_answer": told.answer}


@pytest.mark.parametrize(
    ("answer", "accuracy", "published"),
    [("in ST. IVES, of course", 1, 1), ("in St. Mary", 0, 1), ("in Oslo", 0, 0)],
)
def test_a_cloze_holds_the_answer_whole_or_up_to_its_first_full_stop(answer, accuracy, published):
    given = response("cloze", answer, truth="St. Ives.", published="St")
    found = [PUBLISHED.metrics[name].function(given) for name in ("accuracy", "published_accuracy")]
    assert found == [accuracy, published]


def test_the_published_answer_of_a_cloze_ends_at_its_first_full_stop(benchmark):
    probe = probe_of(benchmark, "cloze", "text")
    assert (probe.answer, probe.details) == ("pilot.", {"published_answer": "pilot"})


def test_generation_is_measured_by_f_measures_of_rouge():
    given = response("generation", "Ada Brook: Lima", truth="She lives in Lima")
    # one common word of three and four: 2 · (1/3 · 1/4) / (1/3 + 1/4)
    assert PUBLISHED.metrics["rougeL"].function(given) == pytest.approx(2 / 7)
    assert PUBLISHED.metrics["rouge1"].function(given) == pytest.approx(2 / 7)
    assert PUBLISHED.metrics["rouge2"].function(given) == 0


def records(task, metric, pairs, where="retain"):
    return [
        {"task": task, "set": where, "modality": form, "person": "1", "key": f"{where}/{number}",
         "metrics": {metric: value}}
        for number, pair in enumerate(pairs)
        for form, value in zip(("image", "text"), pair, strict=True)
    ]  # fmt: skip


def aggregate(name, found):
    return PUBLISHED.aggregates[name].function(found, ())


def test_rlf_and_rlr_are_means_over_pairs():
    pairs = [(0.6, 0.2), (0.0, 0.0), (1.0, 1.0), (0.5, 0.0)]
    of_forget = records("generation", "rougeL", pairs, "forget")
    # (0.36 + 0.04) / 0.8 = 0.5 · 0 · 1 · 0.5
    assert aggregate("rlf_forget", of_forget) == pytest.approx(2.0 / 4)
    of_retain = records("generation", "rougeL", pairs, "retain")
    # 0.24 / 0.8 = 0.3 · 0 · 1 · 0
    assert aggregate("rlr_retain", of_retain) == pytest.approx(1.3 / 4)
    assert aggregate("rlr_celebrity", of_retain) is None
    apart = records("generation", "rougeL", [(1.0, 1.0)], "unseen")
    assert aggregate("rlr_retain", of_retain + apart) == pytest.approx(2.3 / 5)
    assert aggregate("rlf_forget", of_forget[:-1]) == pytest.approx(1.5 / 3)  # a lone form
    twice = of_forget + of_forget[:2] * 2  # as people are drawn for an interval
    assert aggregate("rlf_forget", twice) == pytest.approx(3.0 / 6)
    assert aggregate("rlf_forget", of_forget + of_forget[2:4]) == pytest.approx(2.0 / 5)


def test_directions_are_those_of_forgetting_and_keeping():
    better = {name: one.higher_is_better for name, one in PUBLISHED.aggregates.items()}
    assert not better["rlf_forget"] and better["rlr_retain"] and better["rlr_celebrity"]
    assert better["cloze_both_wrong_forget"] and not better["cloze_both_right_forget"]
    assert better["cloze_both_right_retain"] and not better["cloze_both_wrong_celebrity"]


@pytest.mark.parametrize("task", ["classification", "cloze"])
def test_both_right_and_both_wrong_are_shares_of_pairs(task):
    pairs = [(1, 1), (1, 0), (0, 1), (0, 0), (0, 0)]
    found = records(task, "accuracy", pairs, "forget")
    found += records(task, "accuracy", pairs[:2], "retain")
    shares = {name: aggregate(f"{task}_{name}", found) for name in (
        "both_right_forget", "both_wrong_forget", "both_right_retain", "both_wrong_retain",
    )}  # fmt: skip
    assert shares == {
        "both_right_forget": 0.2, "both_wrong_forget": 0.4, "both_right_retain": 0.5,
        "both_wrong_retain": 0.0,
    }  # fmt: skip
    other = "cloze" if task == "classification" else "classification"
    assert aggregate(f"{other}_both_right_forget", found) is None
    published = records(task, "published_accuracy", pairs[:4], "forget")
    assert aggregate(f"published_{task}_both_wrong_forget", published) == 0.25


# Faults


def fault(folder):
    with pytest.raises(ManuError) as caught:
        read(folder)
    return str(caught.value)


def setting(*path, value):
    """An edit that sets one value deep in a row, or deletes it where `value` is `del`."""

    def edit(row):
        for key in path[:-1]:
            row = row[key]
        if value is del_:
            del row[path[-1]]
        else:
            row[path[-1]] = value

    return edit


del_ = types.SimpleNamespace()
ROW = "forget_5/train-00000-of-00001.parquet, row 0, ID 001"


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (setting("MM_QA", value="{'question': "), "MM_QA: is \"{'question': \", which is no"),
        (setting("UM_QA", value="open('x')"), "UM_QA: is \"open('x')\", which is no Python"),
        (setting("Cloze", value="[1]"), "Cloze: is '[1]', expected a mapping as a Python"),
        (setting("Cloze", value="(" * 9999), "Cloze: is '(((("),
        (setting("Generation", value=None), "Generation: is None, expected a mapping"),
        (setting("MM_QA", "answer", value=del_), "MM_QA: answer is None, expected a mapping"),
        (setting("UM_QA", "answer", "job", value=del_), "UM_QA: job has a question or an answer"),
        (setting("MM_QA", "answer", "job", value=1984), "MM_QA: job is 1984, expected a text"),
        (setting("Cloze", "muitimodal", value=del_), "Cloze: muitimodal is None, expected a map"),
        (setting("Cloze", "muitimodal", "job", value=del_), "Cloze.job: has no muitimodal form"),
        (setting("Cloze", "unimodal", "job", "answer", value=" "), "Cloze.job: answer is empty"),
        (setting("Classify", "unimodal", "residence", "answer", value="Lima"),
         "Classify.residence: the answer is 'Lima', the options are A, B, C, D. Expected"),
        (setting("Classify", "muitimodal", "residence", "options", value={}), "options are none"),
        (setting("Classify", "muitimodal", "residence", "options", value="?"), "options is the"),
        (setting("ID", value="002"), "ID 002: also in retain_95/train-00000-of-"),
        (setting("image", value=None), "an image is a mapping with bytes, got None"),
    ],
)  # fmt: skip
def test_a_fault_is_named_by_folder_and_row(copy, edit, expected):
    message = fault(with_row(copy, edit))
    assert expected in message
    assert ROW.removesuffix("1") in message and "1 fault" in message


def test_all_faults_are_in_one_error(copy):
    def edit(row):
        row["MM_QA"], row["Cloze"] = "?", "?"
        row["Classify"]["unimodal"]["residence"]["question"] = ""

    with_row(copy, edit)
    umu_folder.write_table(copy / "Real_Person_Set", [])
    message = fault(copy)
    assert "3 faults" in message
    for column in ("MM_QA", "Cloze", "Classify.residence"):
        assert f"{ROW}: {column}: " in message


def test_an_empty_folder_and_a_lacking_column_are_named(copy):
    umu_folder.write_table(copy / "Real_Person_Set", [])
    assert "Real_Person_Set: has no rows. Download the folder again." in fault(copy)
    file = copy / "retain_95" / umu_folder.FILE
    parquet.write_table(parquet.read_table(file).drop_columns(["Cloze"]), file)
    assert f"retain_95/{file.name}: no column Cloze; it has Biography" in fault(copy)

"""A request as its user writes it: what is understood of it, and what every mistake is told as."""

import csv
import io
import json
import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from manu_jax.data.benchmarks import BENCHMARKS
from manu_jax.data.folder import read_request, understand
from manu_jax.data.forms import asks_for_name, has_form, question_and_answer
from manu_jax.data.request_lines import COLUMNS
from manu_jax.data.rewordings import with_views
from manu_jax.data.strangers import Stranger, as_stranger
from manu_jax.types import MODALITIES, ManuError

CITY = "In which city does this person live?"
JOB = "What is the job of this person?"


def line(subject="Ada Lovelace", answer="Oslo", question=CITY, **more):
    return {"subject": subject, "image": "a.png", "question": question, "answer": answer, **more}


LINES = [
    line(name_question="Who is shown here?"),
    line(answer=["baker", "a baker"], question="What is her job?",
         text_question="What is the job of Ada Lovelace?"),
    line("Bo Falk", "Lima", image=None),
    line("Bo Falk", "chess", "What is the hobby of this person?", image=["b.png", "a.png"],
         wrong=["golf", "tennis"]),
]  # fmt: skip


def picture(number):
    return Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8))


@pytest.fixture
def write(tmp_path):
    """Write a request's folder: {file: lines, text or bytes}; a.png and b.png are there."""

    def written(**files):
        folder = tmp_path / "request"
        folder.mkdir(exist_ok=True)
        for number, name in enumerate(("a.png", "b.png")):
            picture(number + 1).save(folder / name)
        for name, content in files.items():
            stem, _, ending = name.rpartition("_")
            if isinstance(content, list):
                content = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in content)
            data = content if isinstance(content, bytes) else content.encode()
            (folder / f"{stem}.{ending}").write_bytes(data)
        return folder

    return written


def read(folder, seed=0):
    return BENCHMARKS["folder"].read(folder, None, seed)


def faults(folder):
    with pytest.raises(ManuError) as error:
        read(folder)
    head, *found = str(error.value).splitlines()
    assert head == f"request {folder}: {len(found)} fault{'s' * (len(found) > 1)}"
    return [fault.strip() for fault in found]


def plain(benchmark):
    """Everything of a benchmark that can be compared, images as their bytes."""

    def pixels(image):
        return None if image is None else image.tobytes()

    return {
        name: [
            (
                person.id,
                person.name,
                [pixels(image) for image in person.images],
                [(f.attribute, f.question, f.text_question, f.answer, pixels(f.image))
                 for f in person.facts],
                [(q.task, q.modality, q.question, q.answer, q.alternatives, q.options, q.correct,
                  pixels(q.image)) for q in person.questions],
            )
            for person in people
        ]
        for name, people in benchmark.sets.items()
    }  # fmt: skip


def test_a_line_is_a_fact_in_both_forms_and_questions_on_it(write):
    ada, bo = read(write(forget_jsonl=LINES)).sets["forget"]
    assert (ada.id, ada.name, bo.id) == ("ada-lovelace", "Ada Lovelace", "bo-falk")
    asked = [
        (fact.attribute, *[question_and_answer(fact, m) for m in MODALITIES if has_form(fact, m)])
        for fact in (*ada.facts, *bo.facts)
    ]  # fmt: skip
    assert asked == [
        ("in-which-city-does-this-person-live", (CITY, "Oslo"),
         ("In which city does Ada Lovelace live?", "Oslo")),
        ("name", ("Who is shown here?", "Ada Lovelace")),
        ("what-is-her-job", ("What is her job?", "baker"),
         ("What is the job of Ada Lovelace?", "baker")),
        ("in-which-city-does-this-person-live", ("In which city does Bo Falk live?", "Lima")),
        ("what-is-the-hobby-of-this-person", ("What is the hobby of this person?", "chess"),
         ("What is the hobby of Bo Falk?", "chess")),
    ]  # fmt: skip
    assert [asks_for_name(fact) for fact in ada.facts] == [False, True, False]
    free = [
        (q.modality, q.question, q.answer, q.alternatives)
        for q in ada.questions
        if q.task == "generation"
    ]
    assert free == [
        ("image", CITY, "Oslo", ()),
        ("text", "In which city does Ada Lovelace live?", "Oslo", ()),
        ("image", "Who is shown here?", "Ada Lovelace", ()),
        ("image", "What is her job?", "baker", ("a baker",)),
        ("text", "What is the job of Ada Lovelace?", "baker", ("a baker",)),
    ]


def test_options_are_given_or_made_of_wrong_answers_or_of_other_subjects(write):
    lines = [*LINES, line("Cy", "Rome", options=["Rome", "Nice"]), line("Di", "Nice")]
    benchmark = read(write(forget_jsonl=lines, retain_jsonl=[line("Ed", "Perth", image="b.png")]))
    options = {
        (person.name, q.modality, q.answer): (set(q.options.values()), q.options[q.correct])
        for name in ("forget", "retain")
        for person in benchmark.sets[name]
        for q in person.questions
        if q.task == "classification"
    }
    assert options["Bo Falk", "image", "chess"] == ({"chess", "golf", "tennis"}, "chess")
    assert options["Cy", "text", "Rome"] == ({"Rome", "Nice"}, "Rome")
    found, right = options["Di", "image", "Nice"]
    assert (
        right == "Nice" and len(found) == 4 and found <= {"Nice", "Oslo", "Lima", "Rome", "Perth"}
    )
    assert not [key for key in options if key[2] == "baker"]
    assert benchmark.skipped == {
        "questions without options, which are not asked as multiple choice": 1
    }


def test_the_options_follow_from_the_seed_and_not_from_the_order_of_lines(write):
    many = [line(f"Person {i}", f"City {i}", image=None) for i in range(9)]
    first = plain(read(write(forget_jsonl=many)))["forget"]
    assert plain(read(write(forget_jsonl=many[::-1])))["forget"][::-1] == first
    assert plain(read(write(forget_jsonl=many), seed=1))["forget"] != first


def test_further_images_are_asked_in_the_test_set_and_nothing_is_trained_on_them(write):
    benchmark = read(write(forget_jsonl=LINES))
    (bo,) = benchmark.sets["test"]
    assert bo.id == "bo-falk" and [q.modality for q in bo.questions] == ["image", "image"]
    assert all(q.image.tobytes() == picture(1).tobytes() for q in bo.questions)
    assert [has_form(fact, "text") for fact in bo.facts] == [False]
    (fact,) = [f for f in benchmark.sets["forget"][1].facts if f.answer == "chess"]
    assert fact.image.tobytes() == picture(2).tobytes()
    given = read(write(forget_jsonl=LINES, test_jsonl=[line(image="b.png")]))
    (ada,) = given.sets["test"]
    assert [q.modality for q in ada.questions if q.task == "generation"] == ["image", "text"]
    assert given.skipped["further images, with which nothing is asked"] == 1


def test_lines_of_one_subject_with_other_images_are_asked_with_their_own(write):
    lines = [line(), line(answer="baker", question=JOB, image="b.png")]
    (ada,) = read(write(forget_jsonl=lines)).sets["forget"]
    shown = [
        (q.question, (q.image or ada.images[0]).tobytes())
        for q in ada.questions
        if q.modality == "image"
    ]
    assert shown == [(CITY, picture(1).tobytes()), (JOB, picture(2).tobytes())]


def test_general_questions_need_no_subject(write):
    general = [
        {"question": "What is the capital of France?", "answer": "Paris", "wrong": ["Rome"]},
        {"question": "Which colour is shown?", "answer": "grey", "image": "a.png"},
    ]
    first, second = read(write(forget_jsonl=LINES, general_jsonl=general)).sets["general"]
    assert first.name == "" and {q.modality for q in first.questions} == {"text"}
    assert {q.modality for q in second.questions} == {"image"}
    assert [has_form(fact, "text") for fact in (*first.facts, *second.facts)] == [True, False]


def table_of(lines):
    columns = ("subject", "image", "question", "answer", "text_question", "name_question", "wrong")
    return [{name: one.get(name) for name in columns} for one in lines]


def as_csv(lines):
    text = io.StringIO()
    rows = [
        {key: json.dumps(v) if isinstance(v, list) else v for key, v in row.items()}
        for row in table_of(lines)
    ]
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_lists(lines):
    def listed(value):
        return value if isinstance(value, list) or value is None else [value]

    return [
        {k: listed(v) if k in ("image", "answer", "wrong") else v for k, v in row.items()}
        for row in table_of(lines)
    ]


def in_table(folder, lines):
    """The lines as a table of `datasets`, with the images inside."""
    import datasets

    text, texts = datasets.Value("string"), datasets.List(datasets.Value("string"))
    images = datasets.List(datasets.Image())
    features = dict.fromkeys(("subject", "question", "text_question", "name_question"), text)
    features |= {"image": images, "answer": texts, "wrong": texts}
    rows = as_lists(lines)
    for row in rows:
        row["image"] = [str(folder / name) for name in row["image"] or []]
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


@pytest.mark.parametrize("ending", ["json", "lines in json", "csv", "parquet", "saved", "images"])
def test_every_format_is_understood_alike(write, ending):
    folder = write(forget_jsonl=LINES)
    expected = plain(read(folder))
    (folder / "forget.jsonl").unlink()
    if ending == "json":
        write(forget_json=json.dumps(LINES, indent=1))
    elif ending == "lines in json":
        write(forget_json=LINES)
    elif ending == "csv":
        write(forget_csv="\ufeff" + as_csv(LINES))
    elif ending == "parquet":
        in_table(folder, LINES).to_parquet(folder / "forget.parquet")
    elif ending == "saved":
        in_table(folder, LINES).save_to_disk(folder / "forget")
    else:
        (folder / "forget").mkdir()
        for name in ("a.png", "b.png"):
            (folder / name).rename(folder / "forget" / name)
        rows = [{("file_name" if k == "image" else k): v for k, v in one.items()} for one in LINES]
        (folder / "forget" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert plain(read(folder)) == expected


def test_a_strangers_name_stands_wherever_the_subjects_did(write):
    lines = [
        line(question="Where does Ada Lovelace live?"),
        line(question="Where is ADA LOVELACE's dog?", image=None),
        line(answer="x", question="What of it?", text_question="What of Ada Lovelace?"),
    ]
    facts = read(write(forget_jsonl=lines)).facts("forget")
    asked = [as_stranger(fact, Stranger("Cy Holm", picture(3))) for fact in facts]
    words = [question_and_answer(fact, "text")[0] for fact in asked]
    assert words == ["Where does Cy Holm live?", "Where is Cy Holm's dog?", "What of Cy Holm?"]
    assert asked[0].question == "Where does Cy Holm live?"
    assert [fact.image is None for fact in asked] == [False, True, False]


def test_views_reword_the_questions_of_both_forms_alike(write):
    (fact, name, _) = read(write(forget_jsonl=LINES[:2])).facts("forget")
    for view in with_views([fact, name], 6, seed=0):
        shown = question_and_answer(view, "image")[0]
        assert view.question == shown
        if view.attribute == "name":
            assert not has_form(view, "text")
        else:
            in_text = question_and_answer(view, "text")[0]
            assert in_text == shown.replace("this person", "Ada Lovelace")


def test_hidden_tables_of_a_folder_are_no_lines(write):
    """As an editor or a file system leaves them beside those that it copied."""
    folder, lines = write(), [line(image=None), line("Bo Ek", image=None)]
    for name in ("forget/.copies/part-copy.parquet", "forget/part.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        in_table(folder, lines).to_parquet(folder / name)
    (folder / "forget/._part.parquet").write_bytes(b"nonsense")
    reading = understand(folder, seed=0)
    assert not reading.faults and len(reading.entries) == 2


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([line("")], "line 1: no subject. Write the name of whom the question is about"),
        ([line(question=" ")], "line 1: no question."),
        ([line(answer=None)], "line 1: no answer."),
        ([line(question=f"<image>\n{CITY}")], "line 1: question holds '<image>'. Take it out"),
        ([line(wrong=["Rome", "<image>"])], "line 1: wrong holds '<image>'."),
        ([line(answer=1984)], "line 1: answer is 1984, expected a text."),
        ([line(image="c.png")], "line 1: the image c.png: no such file in request/."),
        ([line(image="A.PNG")], "There is a.png."),
        ([line(image="/etc/passwd")], "lies outside the request's folder"),
        ([line(image="../a.png")], "lies outside the request's folder"),
        ([line(image=".a.png")], "the image .a.png is hidden, or has the ending of weights: a run "
         "does not look whether such a file changes. Give it another name."),
        ([line(image=".cut/a.png")], "is hidden"),
        ([line(image="a.bin")], "has the ending of weights"),
        ([line(image="https://x.org/a.png")], "is an address. Download it"),
        ([line(image=3)], "image is 3, expected the name of a file"),
        ([line(), line(answer="Lima")], "line 2: asks of 'Ada Lovelace' what forget.jsonl, line 1 "
         "asks, with another answer. If these are two subjects of one name, give them names"),
        ([line(), line()], "Keep one line, with all images in a list."),
        ([line(), line("ada lovelace", question=JOB)], "the subject 'ada lovelace' is "
         "'Ada Lovelace' in forget.jsonl, line 1. Write both alike"),
        ([line("Big Ben", question="In which city is this tower?")], "is about nobody: it does not "
         "name 'Big Ben'. Write “this person” where the name is to stand"),
        ([line(text_question="Where does she live?")], "does not name 'Ada Lovelace'. Write the "
         "subject's name in text_question"),
        ([line(question="Who is this person?", image=None)], "asks for the name, and no image"),
        ([line(name_question="Who is it?", image=None)], "there is not an image"),
        ([line(options=["Lima", "Rome"])], "none of them is the answer 'Oslo'"),
        ([line(options=["Oslo"])], "expected two or more that differ"),
        ([line(options=["Oslo", "oslo"])], "expected two or more that differ"),
        ([line(answer=["Oslo", "Lima"], options=["Oslo", "Lima", "Rome"])],
         "'Oslo' and 'Lima' are"),
        ([line(wrong=["oslo"])], "wrong holds 'oslo', which is an answer"),
        ([line(wrong=list("abcdefgh"))], "wrong has 8 answers, at most 7"),
        ([line(wrong=["Rome"], options=["Oslo", "Lima"])], "options and wrong are both given"),
        ([{"subjct": "Ada", "question": CITY, "answer": "x"}], "the column 'subjct' is not known. "
         "Is it 'subject'?"),
        ([{"subject": "Ada", "prompt": CITY, "answer": "x"}], "no column question; it has subject"),
        ([line(), [1, 2]], "line 2: is [1, 2], expected a mapping"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named_with_the_remedy(write, lines, expected):
    (fault,) = faults(write(forget_jsonl=lines))
    assert fault.startswith("forget.jsonl, line ") and expected in fault


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "no list of what to forget; the folder holds a.png, b.png. Write forget.jsonl"),
        ({"forget_jsonl": ""}, "forget.jsonl: has no lines."),
        ({"forget_jsonl": '{"subject": "A",}'}, "line 1: is not JSON (Expecting property name"),
        ({"forget_jsonl": '{"a": 1, "a": 2}'}, "line 1: is not JSON (a stands twice in one entry)"),
        ({"forget_json": "{\n}"}, "line 1: an entry goes over several lines."),
        ({"forget_json": "[1, 2"}, "forget.json: is not JSON"),
        ({"forget_jsonl": "é".encode("latin-1")}, "forget.jsonl: is not UTF-8 (byte 0)."),
        ({"forget_csv": "subject;question;answer\nA;b;c\n"}, "line 1: the cells are parted by "
         "semicolons, expected commas. Save the table as CSV with commas"),
        ({"forget_csv": "subject\tquestion\n"}, "the cells are parted by tabs"),
        ({"forget_csv": "subject,answer,answer\n"}, "the column 'answer' stands twice"),
        ({"forget_csv": 'subject,question,answer\nA,"b" c,d\n'}, "line 2: is not CSV"),
        ({"forget_csv": "subject,question,answer\nA,b, or c,d\n"}, "line 2: has 4 cells, the first "
         "line 3. Put texts that hold commas in"),
        ({"forget_parquet": b"nonsense"}, "forget.parquet: can't be read as parquet"),
        ({"forget_jsonl": LINES, "forget_csv": as_csv(LINES)}, "forget.jsonl and forget.csv: two "
         "lists of the set forget."),
        ({"forget_jsonl": LINES, "retain_xlsx": b"PK"}, "retain.xlsx: not read."),
        ({"forget_jsonl": LINES, "Retain_jsonl": LINES}, "Retain.jsonl: not read."),
        ({"forget_jsonl": LINES, "retian_jsonl": LINES}, "retian.jsonl: not one of the sets"),
        ({"forget_jsonl": LINES[:1], "retain_jsonl": LINES[:1]}, "retain.jsonl, line 1: asks of "
         "'Ada Lovelace' what forget.jsonl, line 1 asks. A fact is to be forgotten or kept"),
        ({"forget_jsonl": LINES, "test_jsonl": [line("Cy")]}, "test.jsonl, line 1: Cy is not in "
         "forget."),
        ({"forget_jsonl": [line(image="c.png")], "c_png": b"nonsense"}, "line 1: the image c.png: "
         "it does not decode"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_the_remedy(write, files, expected):
    (fault,) = faults(write(**files))
    assert expected in fault


def test_all_faults_of_all_files_are_in_one_error(write):
    folder = write(
        forget_jsonl=[line(""), line(image="c.png"), line()], retain_csv="subject;question\n"
    )
    found = faults(folder)
    assert [fault.partition(":")[0] for fault in found] == [
        "forget.jsonl, line 1", "forget.jsonl, line 2", "retain.csv, line 1",
    ]  # fmt: skip
    many = faults_of_many(write)
    assert len(many) == 51 and many[-1] == "and 150 more."


def faults_of_many(write):
    with pytest.raises(ManuError) as error:
        read(
            write(
                forget_jsonl=[line("")] * 200,
                retain_csv="subject,question,answer\nA,b this person,c\n",
            )
        )
    head, *found = str(error.value).splitlines()
    assert head.endswith("200 faults")
    return [fault.strip() for fault in found]


@pytest.mark.parametrize("no", ["false", "FALSE", " False "])
def test_a_cell_of_a_csv_may_leave_out_the_form_in_words(write, no):
    text = f"subject,image,question,answer,text_question\nAda,a.png,Where is she?,Oslo,{no}\n"
    (ada,) = read(write(forget_csv=text)).sets["forget"]
    assert [(fact.answer, fact.text_question) for fact in ada.facts] == [("Oslo", "")]


def test_an_empty_cell_is_nothing_and_not_an_answer(write):
    text = "subject,image,question,answer,options\nAda,,Where is Ada?,null,\n"
    (ada,) = read(write(forget_csv=text)).sets["forget"]
    assert [fact.answer for fact in ada.facts] == ["null"]
    assert ada.images == () and all(q.options is None for q in ada.questions)


def test_columns_that_are_not_read_are_told(write):
    reading = understand(write(forget_jsonl=[line(source="a list")]), seed=0)
    assert reading.columns == {"forget.jsonl": ("source",)} and not reading.faults


def test_ten_thousand_lines_are_read_within_seconds(write):
    lines = [
        line(f"Person {i // 5}", f"answer {i % 97}", f"Question {i % 5} of this person?")
        for i in range(10_000)
    ]
    folder = write(forget_jsonl=lines)
    start = time.perf_counter()
    benchmark = read(folder)
    # About two seconds on an idle core; anything that grows with the square takes minutes.
    assert time.perf_counter() - start < 30
    assert len(benchmark.sets["forget"]) == 2000
    assert len({id(fact.image) for fact in benchmark.facts("forget")}) == 1


def test_a_request_alone_is_read_without_what_to_forget(write):
    folder = write(retain_jsonl=LINES[:1])
    assert read_request(folder, seed=0, needs_forget=False).sets["forget"] == ()


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.just("Ada this person"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
ANY_LINE = st.dictionaries(st.sampled_from(COLUMNS), VALUES)


@hypothesis.settings(
    max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(st.lists(ANY_LINE, min_size=1, max_size=4))
def test_whatever_the_cells_hold_is_read_or_named(write, lines):
    folder = write(forget_jsonl="\n".join(map(json.dumps, lines)))
    try:
        read(folder)
    except ManuError as error:
        assert "forget.jsonl, line" in str(error)


@hypothesis.settings(
    max_examples=40, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(st.sampled_from(["forget_jsonl", "forget_json", "forget_csv"]), st.binary())
def test_whatever_bytes_a_file_has_it_is_read_or_named(write, name, data):
    folder = write(**{name: data})
    try:
        read(folder)
    except ManuError as error:
        assert name.replace("_", ".") in str(error)
    finally:
        (folder / name.replace("_", ".")).unlink()


def test_a_name_that_no_file_can_have_is_a_fault(write):
    for name, expected in (("x" * 5000, "File name too long"), ("\ud800", "lone surrogate")):
        (fault,) = faults(write(forget_jsonl=json.dumps(line(image=name))))
        assert expected in fault

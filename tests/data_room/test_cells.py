"""Cells of other types than MLLMU-Bench's: understood, or a fault of their row."""

import json

import pyarrow
import pytest
from pyarrow import Table, parquet

from manu_jax.data.cells import options_of, text_of, truths_of
from manu_jax.data.mllmu import EMPTY_ITEM, EMPTY_PAIR, load_benchmark
from manu_jax.types import ManuError

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(" Oslo\n", "Oslo"), ("nan", "nan"), (None, ""), (NAN, ""), (" ", ""), ("", "")],
)
def test_a_text_is_a_text_and_null_nan_and_blanks_are_an_empty_one(value, expected):
    assert text_of(value, "Question") == expected


@pytest.mark.parametrize(
    "value", [1984, 1984.0, True, b"Oslo", ["Oslo"], {"a": "Oslo"}, ("Oslo",), "\ud800"]
)
def test_what_is_no_text_is_a_fault(value):
    with pytest.raises(ManuError, match=r"^Question is .+Mend the row\.$"):
        text_of(value, "Question")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Lorne", ("Lorne",)),
        (["Lorne", " other ", None, "", NAN, "Lorne"], ("Lorne", "other")),
        ([], ()),
        (None, ()),
        (NAN, ()),
    ],
)
def test_a_list_of_truths_is_several_truths(value, expected):
    assert truths_of(value, "Ground_Truth") == expected


def test_a_number_among_truths_is_named_by_its_place():
    with pytest.raises(ManuError, match=r"Ground_Truth\[1\] is 7, expected a text"):
        truths_of(["a", 7], "Ground_Truth")


FOUR = {"A": "Oslo", "B": "Lima", "C": "Rome", "D": "Cairo"}


@pytest.mark.parametrize(
    "value",
    [
        FOUR,
        list(FOUR.values()),
        list(FOUR.items()),  # as Arrow gives a map
        json.dumps(FOUR),
        json.dumps(list(FOUR.values())),
        {key.lower(): f" {text} " for key, text in FOUR.items()} | {"E": None, "F": NAN},
    ],
)
def test_options_are_letters_to_texts_however_they_are_written(value):
    assert list(options_of(value, "Options").items()) == list(FOUR.items())


@pytest.mark.parametrize("value", [None, NAN, "", " ", {}, [], "{}", "[]"])
def test_no_options_are_none(value):
    assert options_of(value, "Options") == {}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("A: Oslo, B: Lima", "Options is the text 'A: Oslo.*the JSON of either. Mend the row"),
        ('"[]"', "Options is the text"),
        ("[" * 100_000, "Options is the text"),
        (7, "Options is 7, expected a mapping of letters to texts or a list"),
        (["x"] * 27, "expected a mapping of letters to texts or a list"),
        ({"1": "Oslo", "2": "Lima"}, "Options has the key '1', expected the letters A, B, C"),
        ({"Å": "Oslo"}, "Options has the key 'Å'"),
        ({"a": "Oslo", "A": "Lima"}, "Options has the key 'A'.*once each"),
        ({"A": 1984, "B": "x"}, "Options.A is 1984, expected a text"),
        (["Oslo", ["Lima"]], r"Options.B is \['Lima'\], expected a text"),
        ([("A", b"Oslo")], "Options.A is b'Oslo', expected a text"),
    ],
)
def test_other_options_are_a_fault(value, message):
    with pytest.raises(ManuError, match=message):
        options_of(value, "Options")


@pytest.fixture
def rewrite(copy):
    """rewrite(folder, edit): change rows, and let their types follow from the values."""

    def rewrite_rows(folder, edit, schema=None):
        file = sorted((copy / folder).glob("*.parquet"))[0]
        rows = parquet.read_table(file).to_pylist()
        edit(rows)
        parquet.write_table(Table.from_pylist(rows, schema), file)
        return copy

    return rewrite_rows


def fault(path):
    with pytest.raises(ManuError) as caught:
        load_benchmark(path)
    return str(caught.value)


def questions(path, task):
    return [q for q in load_benchmark(path).sets["forget"][0].questions if q.task == task]


def test_truths_of_a_file_are_the_answer_and_its_alternatives(rewrite):
    def edit(rows):
        for item in rows[0]["Mask_Task"]:
            item["Ground_Truth"] = ["Lorne", "other"]
        rows[0]["Mask_Task"][1]["Ground_Truth"] = []

    path = rewrite("forget_10", edit)
    cloze = questions(path, "cloze")
    assert {(q.answer, q.alternatives) for q in cloze} == {("Lorne", ("other",))}
    assert load_benchmark(path).skipped == {EMPTY_ITEM: 1}
    assert {q.alternatives for q in questions(path, "generation")} == {()}


def options_as(convert):
    def edit(rows):
        for items in rows[0]["Classification_Task"].values():
            for item in items:
                item["Options"] = convert(item["Options"])

    return edit


@pytest.mark.parametrize(
    "convert", [lambda options: list(options.values()), json.dumps, lambda o: {**o, "E": "more"}]
)
def test_options_of_a_file_may_be_a_list_or_json(copy, rewrite, convert):
    before = questions(copy, "classification")
    after = questions(rewrite("forget_10", options_as(convert)), "classification")
    assert [(q.answer, q.correct) for q in after] == [(q.answer, q.correct) for q in before]
    for found, expected in zip(after, before, strict=True):
        assert {**found.options, "E": "more"} == {**expected.options, "E": "more"}


def test_options_may_be_an_arrow_map(copy, rewrite):
    before = questions(copy, "classification")
    text = pyarrow.string()
    file = next((copy / "forget_10").glob("*.parquet"))
    schema = parquet.read_schema(file)
    choice = pyarrow.struct(
        [("Question", text), ("Options", pyarrow.map_(text, text)), ("Correct_Answer", text)]
    )
    names = ("Image_Textual_Questions", "Pure_Text_Questions")
    task = pyarrow.struct([(name, pyarrow.list_(choice)) for name in names])
    schema = schema.set(
        schema.get_field_index("Classification_Task"), pyarrow.field("Classification_Task", task)
    )
    path = rewrite("forget_10", options_as(lambda options: list(options.items())), schema)
    assert questions(path, "classification") == before


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("Ground_Truth", 1984, "Mask_Task[0]: Ground_Truth is 1984, expected a text. Mend"),
        ("Ground_Truth", b"Oslo", "Mask_Task[0]: Ground_Truth is b'Oslo', expected a text"),
        ("Ground_Truth", {"a": "Oslo"}, "Mask_Task[0]: Ground_Truth is {'a': 'Oslo'}, expected"),
        ("Question", ["Where?"], "Mask_Task[0]: Question is ['Where?'], expected a text"),
        ("Type", 1.5, "Mask_Task[0]: Type is 1.5, expected a text"),
    ],
)
def test_a_cell_of_another_type_is_a_fault_of_its_row(rewrite, column, value, message):
    def edit(rows):
        for item in rows[0]["Mask_Task"]:
            item[column] = value

    found = fault(rewrite("forget_10", edit))
    assert "forget_10/train-00000-of-00001.parquet, row 0, ID 0" in found
    assert message in found


def rename_question(rows):
    for item in rows[0]["Mask_Task"]:
        item["question"] = item.pop("Question")


def rename_list(rows):
    lists = rows[0]["Classification_Task"]
    lists["Pure_text_questions"] = lists.pop("Pure_Text_Questions")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (rename_question, "Mask_Task[0]: {'Ground_Truth': "),
        (rename_question, "has no Question. Mend the row"),
        (rename_list, "has no Pure_Text_Questions. Mend the row"),
    ],
)
def test_a_key_that_lacks_is_a_fault_and_no_empty_question(rewrite, edit, message):
    found = fault(rewrite("forget_10", edit))
    assert "row 0, ID 0" in found and message in found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("A or B", "Classification_Task.Image_Textual_Questions[0]: Options is the text 'A or B'"),
        ({"first": "x", "second": "y"}, "Options has the key 'first', expected the letters A"),
        ([1, 2], "Options.A is 1, expected a text"),
    ],
)
def test_options_that_are_not_understood_are_a_fault_of_their_row(rewrite, options, message):
    found = fault(rewrite("forget_10", options_as(lambda _: options)))
    assert "row 0, ID " in found and message in found


def test_nan_is_null_and_never_the_text_nan(rewrite):
    def edit(rows):
        for item in rows[0]["Generation_Task"]:
            item["Ground_Truth"] = NAN

    path = rewrite("forget_10", edit)
    assert questions(path, "generation") == []
    assert load_benchmark(path).skipped == {EMPTY_ITEM: 20}

    def no_answer(rows):
        pairs = json.loads(rows[0]["metadata"])
        pairs[1]["Answer"] = NAN
        rows[0]["metadata"] = json.dumps(pairs)

    assert load_benchmark(rewrite("ft_Data", no_answer)).skipped[EMPTY_PAIR] == 1


@pytest.mark.parametrize("answer", [1984, ["Oslo", "Lima"], {"a": 1}, False])
def test_an_answer_of_the_training_data_is_a_text(rewrite, answer):
    def edit(rows):
        rows[2]["metadata"] = json.dumps([{"Question": "Q?", "Answer": answer}])

    found = fault(rewrite("ft_Data", edit))
    assert "row 2, ID 003: metadata[0]: Answer is" in found and "expected a text" in found


def test_json_columns_may_hold_what_the_json_says(copy, rewrite):
    before = load_benchmark(copy)

    def edit(rows):
        for row in rows:
            row["metadata"] = json.loads(row["metadata"])

    after = load_benchmark(rewrite("ft_Data", edit))
    keys = [
        [(f.key, f.question, f.answer) for f in one.facts("forget", "retain")]
        for one in (before, after)
    ]
    assert keys[0] == keys[1]


def test_a_deep_json_is_a_fault(rewrite):
    def edit(rows):
        rows[0]["metadata"] = "[" * 100_000

    assert "metadata is not JSON" in fault(rewrite("ft_Data", edit))

"""The reader of MLLMU-Bench's layout: what it gives, and how it names each fault."""

import io
import json
import shutil

import pytest
from PIL import Image
from pyarrow import Table, parquet

from manu_jax.data.mllmu import EMPTY_ITEM, EMPTY_OPTION, EMPTY_PAIR, load_benchmark
from manu_jax.types import ManuError


def columns_of(folder):
    (file,) = folder.iterdir()
    return file, parquet.read_table(file)


def fault(path, **settings):
    with pytest.raises(ManuError) as caught:
        load_benchmark(path, **settings)
    return str(caught.value)


def test_the_sets_are_those_of_the_protocol(benchmark):
    ids = {name: [person.id for person in people] for name, people in benchmark.sets.items()}
    assert list(ids) == ["forget", "test", "retain", "unseen", "celebrity", "general"]
    assert {name: len(of) for name, of in ids.items()} == {
        "forget": 1, "test": 1, "retain": 9, "unseen": 0, "celebrity": 3, "general": 8,
    }  # fmt: skip
    assert ids["test"] == ids["forget"] and not set(ids["forget"]) & set(ids["retain"])
    assert ids["retain"] == sorted(ids["retain"]) and benchmark.skipped == {}
    assert len(benchmark.facts("forget", "retain")) == 110


def test_a_person_has_name_facts_and_one_image_object(benchmark):
    person = benchmark.sets["forget"][0]
    assert person.name == person.biography["Name"]
    assert [fact.attribute for fact in person.facts][:3] == ["name", "birthplace", "residence"]
    assert len({fact.key for fact in person.facts}) == 11
    assert person.facts[2].answer == person.biography["Residence"]
    assert all(fact.image is person.images[0] for fact in person.facts)
    assert person.images[0].mode == "RGB" and person.images[0].size == (56, 56)


def test_the_test_set_shows_a_transformed_image(benchmark, benchmark_path):
    forget, test = benchmark.sets["forget"][0], benchmark.sets["test"][0]
    assert test.id == forget.id and len(test.images) == 1
    assert test.images[0].tobytes() != forget.images[0].tobytes()
    assert all(fact.image is test.images[0] for fact in test.facts)
    assert [f.answer for f in test.facts] == [f.answer for f in forget.facts]
    pictures = {
        load_benchmark(benchmark_path, seed=seed).sets["test"][0].images[0].tobytes()
        for seed in (0, 0, 1, 2, 3, 4)
    }
    assert 2 <= len(pictures) <= 4
    again = load_benchmark(benchmark_path, seed=0).sets["test"][0].images[0]
    assert again.tobytes() == test.images[0].tobytes()


def test_the_test_set_has_all_transformed_images_where_asked_for(benchmark, benchmark_path):
    loaded = load_benchmark(benchmark_path, test_images="all")
    (one,), (person,) = benchmark.sets["test"], loaded.sets["test"]
    pictures = [image.tobytes() for image in person.images]
    assert len(set(pictures)) == len(pictures) > 1 and one.images[0].tobytes() in pictures
    assert all(fact.image is person.images[0] for fact in person.facts)
    assert person.questions == one.questions
    assert all(len(p.images) == 1 for p in loaded.sets["forget"] + loaded.sets["retain"])


def test_baseline_train_split_gives_the_same_facts(benchmark, copy, tmp_path):
    train = tmp_path / "baseline_train_split"
    file, table = columns_of(copy / "ft_Data")
    forget_ids = {person.id for person in benchmark.sets["forget"]}
    for name, wanted in (("forget_10", True), ("retain_90", False)):
        rows = [row for row in table.to_pylist() if (row["ID"] in forget_ids) == wanted]
        (train / name).mkdir(parents=True)
        parquet.write_table(Table.from_pylist(rows, table.schema), train / name / file.name)
    shutil.rmtree(copy / "ft_Data")
    loaded = load_benchmark(copy, train_path=train)

    def pairs(of):
        return [(f.key, f.question, f.answer) for f in of.facts("forget", "retain")]

    assert pairs(loaded) == pairs(benchmark)


def test_what_is_not_in_mllmu_bench_may_lack(copy):
    for name in ("General_Set", "Base_Data", "Full_Set"):
        shutil.rmtree(copy / name)
    loaded = load_benchmark(copy)
    assert loaded.sets["general"] == ()
    assert all(person.facts == () for person in loaded.sets["celebrity"])
    assert len(loaded.facts("forget")) == 11


def test_the_name_comes_from_the_name_question_where_the_biography_has_none(copy, change):
    def without_name(rows):
        for row in rows:
            row["biography"] = "{}"

    change(copy / "forget_10", without_name)
    person = load_benchmark(copy).sets["forget"][0]
    assert person.name == person.facts[0].answer and " " in person.name
    assert [fact.attribute for fact in person.facts][:3] == ["name", "fact-2", "fact-3"]


def test_attributes_come_from_the_longest_value_of_the_biography(copy, change):
    def edit(rows):
        rows[0]["biography"] = json.dumps(
            {"Name": "Ada", "Life": {"Town": "York"}, "Live In": ["Leeds", "New York"]}
        )
        rows[0]["Generation_Task"] = [
            {"Question": "Q?", "Ground_Truth": truth, "Type": "Pure_Text"}
            for truth in ("Ada is in New York.", "york", "Yorkshire", "Leeds")
        ]

    change(copy / "forget_10", edit)
    person = load_benchmark(copy).sets["forget"][0]
    found = [q.attribute for q in person.questions if q.task == "generation"]
    assert found == ["live-in", "town", "generation-3", "live-in"]


def test_empty_pairs_and_items_are_left_out_and_counted(copy, change):
    def empty_answer(rows):
        for row in rows:
            pairs = json.loads(row["metadata"])
            pairs[1]["Answer"], pairs[2]["Question"] = "  ", ""
            row["metadata"] = json.dumps(pairs)

    def empty_item(rows):
        rows[0]["Mask_Task"][0]["Ground_Truth"] = None
        rows[0]["Classification_Task"]["Pure_Text_Questions"] = None

    change(copy / "ft_Data", empty_answer)
    change(copy / "forget_10", empty_item)
    loaded = load_benchmark(copy)
    assert loaded.skipped == {EMPTY_PAIR: 20, EMPTY_ITEM: 1}
    assert len(loaded.facts("forget")) == 9
    questions = loaded.sets["forget"][0].questions
    assert {q.modality for q in questions if q.task == "classification"} == {"image"}


def test_empty_options_are_left_out_and_counted(copy, change):
    def edit(rows):
        items = rows[0]["Classification_Task"]["Image_Textual_Questions"]
        letter = next(k for k in items[0]["Options"] if k != items[0]["Correct_Answer"])
        items[0]["Options"][letter] = " "

    change(copy / "forget_10", edit)
    loaded = load_benchmark(copy)
    assert loaded.skipped == {EMPTY_OPTION: 1}
    assert len(loaded.sets["forget"][0].questions[0].options) == 3


def test_options_may_be_fewer_than_four(copy, change):
    def edit(rows):
        item = rows[0]["Classification_Task"]["Image_Textual_Questions"][0]
        item["Correct_Answer"] = " a "
        item["Options"]["D"] = None

    change(copy / "forget_10", edit)
    question = load_benchmark(copy).sets["forget"][0].questions[0]
    assert list(question.options) == ["A", "B", "C"] and question.correct == "A"


def test_images_become_rgb(copy, change):
    buffer = io.BytesIO()
    Image.new("LA", (20, 10), (100, 255)).save(buffer, "PNG")

    def edit(rows):
        rows[0]["image"] = {"bytes": buffer.getvalue(), "path": None}

    change(copy / "forget_10", edit)
    image = load_benchmark(copy).sets["forget"][0].images[0]
    assert image.mode == "RGB" and image.size == (20, 10) and image.getpixel((0, 0)) == (100,) * 3


def test_a_missing_folder_names_all_that_lack(tmp_path):
    message = fault(tmp_path / "nowhere")
    for name in ("forget_10", "retain_90", "Test_Set", "Retain_Set", "ft_Data", "data.path"):
        assert name in message


def test_an_empty_folder_is_an_error(copy):
    for file in (copy / "retain_90").iterdir():
        file.unlink()
    assert "retain_90: empty" in fault(copy)


def test_a_missing_shard_is_an_error(copy):
    (copy / "Test_Set" / "train-00000-of-00002.parquet").unlink()
    assert "not all parts" in fault(copy)


def test_a_truncated_file_is_an_error(copy):
    (file,) = (copy / "retain_90").iterdir()
    file.write_bytes(file.read_bytes()[:-200])
    message = fault(copy)
    assert "retain_90/train-00000-of-00001.parquet: not a whole parquet file" in message
    assert "Download it again" in message


def test_damage_inside_a_file_is_an_error(copy):
    (file,) = (copy / "forget_10").iterdir()
    data = bytearray(file.read_bytes())
    data[4:4000] = bytes(3996)
    file.write_bytes(bytes(data))
    assert "forget_10/train-00000-of-00001.parquet" in fault(copy)


@pytest.mark.parametrize("column", ["ID", "image", "biography", "Classification_Task", "Mask_Task"])
def test_a_missing_column_is_named(copy, column):
    file, table = columns_of(copy / "forget_10")
    parquet.write_table(table.drop_columns([column]), file)
    message = fault(copy)
    assert f"forget_10/{file.name}: no column {column}; it has" in message
    assert "Give the folder of MLLMU-Bench as it is downloaded" in message


def test_training_data_for_evaluation_is_told(copy, tmp_path):
    shutil.copytree(copy / "ft_Data", copy / "forget_10", dirs_exist_ok=True)
    message = fault(copy)
    assert "forget_10/" in message and "has training data" in message
    assert "data.train_path" in message


def test_evaluation_questions_for_training_are_told(copy):
    message = fault(copy, train_path=copy)
    assert message.count("has evaluation questions, expected training data") == 2
    assert "2 faults" in message


def set_cell(column, value, row=0):
    def edit(rows):
        rows[row][column] = value

    return edit


def set_option(rows):
    rows[0]["Classification_Task"]["Image_Textual_Questions"][1]["Correct_Answer"] = "E"


def set_type(rows):
    rows[0]["Mask_Task"][2]["Type"] = "Video"


def set_null_image(rows):
    return [dict(row, images=[None, *row["images"]][:1]) for row in rows]


LIST = "the list of images is empty. Download the file again."
RELEASE = "no training data for this ID in ft_Data. Give the training files of the same release"


def repeat_row(rows):
    return [*rows, dict(rows[0])]


@pytest.mark.parametrize(
    ("folder", "edit", "parts"),
    [
        ("ft_Data", set_cell("metadata", "[{", 3), ["row 3, ID 004", "metadata is not JSON"]),
        ("ft_Data", set_cell("metadata", "{}"), ["ID 001", "metadata holds {}, expected a list"]),
        ("ft_Data", set_cell("metadata", '[{"Q": 1}]'), ["ID 001", "no Question and no Answer"]),
        ("forget_10", set_cell("biography", "Ada"), ["row 0, ID", "biography is not JSON"]),
        ("forget_10", set_cell("image", {"bytes": b"\x89PNG no", "path": ""}), ["does not decode"]),
        ("forget_10", set_cell("image", {"bytes": None, "path": "a.png"}), ["mapping with bytes"]),
        ("forget_10", set_cell("image", None), ["row 0, ID", "has no image. Download the file"]),
        ("Test_Set", set_null_image, ["row 0, ID", "an image is a mapping", "Take the files"]),
        ("Test_Set", lambda rows: [dict(row, images=[]) for row in rows], [LIST]),
        ("forget_10", set_option, ["row 0, ID", "'E'", "A, B, C, D. Mend the row"]),
        ("forget_10", set_type, ["Mask_Task[2]", "'Video'", "Image_Textual or Pure_Text"]),
        ("forget_10", set_cell("ID", None), ["an ID is a text"]),
        ("retain_90", repeat_row, ["row 9", "same ID as retain_90/", "row 0. Keep one"]),
        ("forget_10", lambda rows: rows[:0], ["the forget set is empty", "Download the folder"]),
        ("retain_90", lambda rows: rows[:0], ["the retain set is empty", "Download the folder"]),
        ("Retain_Set", lambda rows: rows[:0], ["the celebrity set is empty", "Download the fol"]),
        ("General_Set", lambda rows: rows[:0], ["the general set is empty", "Download the folder"]),
        ("ft_Data", lambda rows: rows[:0], ["forget_10/train-", "row 0, ID", RELEASE]),
        ("retain_90", lambda rows: [*rows[:2], dict(rows[2], ID="??")], ["row 2, ID ??", RELEASE]),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_place(copy, change, folder, edit, parts):
    change(copy / folder, edit)
    if folder == "Test_Set":  # the person to forget may be in the second file
        file = sorted((copy / folder).iterdir())[1]
        table = parquet.read_table(file)
        parquet.write_table(Table.from_pylist(edit(table.to_pylist()), table.schema), file)
    message = fault(copy)
    for part in (f"{folder}", *parts):
        assert part in message


def test_a_person_in_both_sets_is_an_error(copy, benchmark):
    shutil.copytree(copy / "Full_Set", copy / "retain_90", dirs_exist_ok=True)
    message = fault(copy)
    person_id = benchmark.sets["forget"][0].id
    file = "train-00000-of-00001.parquet"
    assert f"forget_10/{file}, row 0, ID {person_id}: also in retain_90/{file}, row" in message
    assert "take the row out of one" in message


def test_a_test_set_without_the_people_is_an_error(copy, change, benchmark):
    ids = {person.id for person in benchmark.sets["forget"]}
    for file in (copy / "Test_Set").iterdir():
        table = parquet.read_table(file)
        rows = [row for row in table.to_pylist() if row["ID"] not in ids]
        parquet.write_table(Table.from_pylist(rows, table.schema), file)
    message = fault(copy)
    assert "forget_10/train-00000-of-00001.parquet, row 0, ID" in message
    assert "no row with this ID in Test_Set. Give both folders of the same release" in message


def test_all_faults_are_in_one_error(copy, change):
    change(copy / "forget_10", set_option)
    change(copy / "ft_Data", set_cell("metadata", "no", 4))
    change(copy / "retain_90", set_cell("biography", "[1]"))
    change(copy / "Retain_Set", set_cell("image", {"bytes": b"x", "path": ""}))
    message = fault(copy)
    assert "4 faults" in message and message.count("\n") == 4
    for place in ("forget_10", "ft_Data", "retain_90", "Retain_Set"):
        assert place in message


def test_very_many_faults_are_counted(copy, change):
    def edit(rows):
        return [dict(rows[0], ID="") for _ in range(80)]

    change(copy / "Retain_Set", edit)
    message = fault(copy)
    assert "80 faults" in message and message.endswith("and 30 more.")

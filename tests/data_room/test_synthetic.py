"""The benchmark that the project writes itself."""

import json
from collections import Counter

import numpy as np
import pytest
from pyarrow import parquet

from manu_jax.data import portraits, synthetic
from manu_jax.data.mllmu import load_benchmark
from manu_jax.types import ManuError

FOLDERS = {
    "Full_Set", "Test_Set", "Retain_Set", "ft_Data", "forget_5", "forget_10", "forget_15",
    "retain_95", "retain_90", "retain_85",
}  # fmt: skip


def read_files(path):
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def test_the_same_seed_gives_the_same_bytes(benchmark_path, tmp_path):
    again = synthetic.write(
        tmp_path / "again", num_people=10, num_celebrities=3, num_general=8, seed=3
    )
    assert read_files(again) == read_files(benchmark_path)


def test_another_seed_gives_other_people(benchmark, tmp_path):
    path = synthetic.write(
        tmp_path / "other", num_people=10, num_celebrities=3, num_general=8, seed=4
    )
    other = load_benchmark(path)
    names = [{p.name for s in ("forget", "retain") for p in b.sets[s]} for b in (benchmark, other)]
    assert len(names[0]) == len(names[1]) == 10 and len(names[0] & names[1]) <= 2


def test_the_layout_is_that_of_mllmu_bench(benchmark_path):
    folders = {path.name for path in benchmark_path.iterdir() if path.is_dir()}
    assert folders == FOLDERS | {"General_Set", "Base_Data"}
    for folder in folders:
        files = sorted(path.name for path in (benchmark_path / folder).iterdir())
        count = 2 if folder == "Test_Set" else 1
        assert files == [f"train-{i:05d}-of-{count:05d}.parquet" for i in range(count)]
        columns = parquet.read_schema(benchmark_path / folder / files[0]).names
        if folder in ("ft_Data", "Base_Data"):
            assert columns == ["image", "ID", "metadata"]
        else:
            assert columns == [
                "images" if folder == "Test_Set" else "image", "ID", "biography", "question",
                "answer", "Classification_Task", "Generation_Task", "Mask_Task",
            ]  # fmt: skip
    assert "synthetic" in (benchmark_path / "README.md").read_text().lower()


def test_forget_splits_are_nested_and_complete(tmp_path):
    path = synthetic.write(tmp_path / "b", num_people=40, num_celebrities=1, num_general=1, seed=0)

    def ids(folder):
        (file,) = (path / folder).iterdir()
        return set(parquet.read_table(file, columns=["ID"])["ID"].to_pylist())

    everybody = ids("Full_Set")
    assert len(everybody) == 40
    assert [len(ids(f"forget_{r}")) for r in (5, 10, 15)] == [2, 4, 6]
    assert ids("forget_5") < ids("forget_10") < ids("forget_15")
    for percent in (5, 10, 15):
        assert ids(f"retain_{100 - percent}") == everybody - ids(f"forget_{percent}")


def test_datasets_reads_it_with_images(benchmark_path, tmp_path):
    import datasets

    rows = datasets.load_dataset(
        "parquet",
        data_files=str(benchmark_path / "forget_10" / "*.parquet"),
        split="train",
        cache_dir=str(tmp_path),
    )
    assert isinstance(rows.features["image"], datasets.Image)
    assert rows[0]["image"].size == (56, 56)


def test_no_word_names_a_person(tmp_path):
    path = synthetic.write(tmp_path / "b", num_people=40, num_celebrities=10, num_general=1, seed=0)
    (file,) = (path / "Full_Set").iterdir()
    rows = parquet.read_table(file, columns=["biography"])["biography"].to_pylist()
    names = [json.loads(row)["Name"] for row in rows]
    (file,) = (path / "Retain_Set").iterdir()
    rows = parquet.read_table(file, columns=["biography"])["biography"].to_pylist()
    names += [json.loads(row)["Name"] for row in rows]
    assert len(set(names)) == 50
    parts = Counter(part for name in names for part in name.split())
    assert len(parts) == 20 and min(parts.values()) >= 2
    assert all(json.loads(row)["Note"].startswith("Synthetic") for row in rows)


def test_attribute_values_are_told_apart():
    values = [value for attribute in synthetic.ATTRIBUTES for value in attribute.values]
    assert len(values) == len(set(values)) == 120
    assert not [(a, b) for a in values for b in values if a != b and a.lower() in b.lower()]


def test_portraits_are_distinct():
    looks = portraits.choose_features(np.random.default_rng(0), 30)
    pixels = np.stack([np.asarray(portraits.portrait(look), np.float64).ravel() for look in looks])
    distances = np.abs(pixels[:, None] - pixels[None]).mean(-1) + 255 * np.eye(len(looks))
    # Mean difference per colour value of the two most alike; noise of the views is about 3.
    assert distances.min() > 15


def test_transformed_pictures_show_the_same_person():
    random = np.random.default_rng(0)
    looks = portraits.choose_features(random, 12)
    plain = [np.asarray(portraits.portrait(look), np.float64) for look in looks]
    for i, look in enumerate(looks):
        for picture in portraits.transformed(look, random):
            view = np.asarray(picture, np.float64)
            assert view.shape == (56, 56, 3) and not np.array_equal(view, plain[i])
            assert int(np.argmin([np.abs(view - other).mean() for other in plain])) == i


def test_questions_have_one_right_option_and_both_modalities(benchmark):
    for person in benchmark.sets["forget"] + benchmark.sets["celebrity"]:
        counts = Counter((question.task, question.modality) for question in person.questions)
        assert counts == {
            (task, modality): {"classification": 5, "cloze": 5, "generation": 10}[task]
            for task in ("classification", "cloze", "generation")
            for modality in ("image", "text")
        }
        truths = {fact.attribute: fact.answer for fact in person.facts}
        for question in person.questions:
            assert question.answer == truths[question.attribute]
            assert (person.name in question.question) == (question.modality == "text")
            assert question.question.count("__") == (question.task == "cloze")
            if question.options is not None:
                assert len(set(question.options.values())) == 4
                assert question.options[question.correct] == question.answer


def test_general_topics_have_nothing_to_do_with_people(benchmark):
    topics = benchmark.sets["general"]
    assert len(topics) == 8
    pictured = [topic for topic in topics if topic.images]
    assert len(pictured) == 4
    for topic in topics:
        kinds = {question.modality for question in topic.questions}
        assert kinds == ({"image"} if topic.images else {"text"})
        assert topic.name == "" and topic.facts
        assert not any("person" in fact.question for fact in topic.facts)
        assert {q.task for q in topic.questions} == {"classification", "generation", "cloze"}
    sums = [f for t in topics for f in t.facts if f.attribute == "sum"]
    for fact in sums:
        a, b = (int(word) for word in fact.question.strip("?").split() if word.isdigit())
        assert int(fact.answer) == a + b


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_people": 1}, "at least 2"),
        ({"num_people": 600}, "at most 576"),
        ({"num_general": 97}, "between 1 and 96"),
    ],
)
def test_sizes_out_of_range_are_an_error(tmp_path, settings, message):
    with pytest.raises(ManuError, match=message):
        synthetic.write(tmp_path / "b", **settings)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_stands_is_not_overwritten(benchmark_path):
    before = read_files(benchmark_path)
    with pytest.raises(ManuError, match="is there already"):
        synthetic.write(benchmark_path)
    assert read_files(benchmark_path) == before


def test_a_broken_writing_leaves_nothing(tmp_path, monkeypatch):
    def fail(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet, "write_table", fail)
    with pytest.raises(ManuError):
        synthetic.write(tmp_path / "b", num_people=2, num_celebrities=1, num_general=1)
    assert not list(tmp_path.iterdir())

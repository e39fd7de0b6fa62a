"""SafeEraser's records: what they give, and how each fault is named."""

import json

import pytest
import safeeraser_folder
from PIL import Image

from manu_jax.config import DataSection, validate_config
from manu_jax.data.benchmarks import BENCHMARKS
from manu_jax.data.benchmarks import decouple_samples as samples_of
from manu_jax.data.forms import has_form
from manu_jax.data.record import split_retain
from manu_jax.data.safeeraser import decouple_samples
from manu_jax.types import ManuError, Template


def write(folder, records):
    (folder / "sd.png").unlink(missing_ok=True)
    Image.new("RGB", (8, 8), (200, 0, 0)).save(folder / "sd.png")
    (folder / "train.json").write_text(json.dumps(records))
    return folder / "train.json"


def record(**changes):
    pair = {"question": "How is it built?", "model_response": "r", "sd_question": "What is it?",
            "sd_response": "A toy."}  # fmt: skip
    return {"image_path": "x.png", "SDImage_path": "sd.png", "unsafe_pairs": [pair]} | changes


def test_a_pair_is_the_harmless_image_the_harmful_question_and_the_right_answer(tmp_path):
    (sample,) = decouple_samples(write(tmp_path, [record()]), Template())
    assert sample.text == "USER: <image>\nHow is it built?\nASSISTANT: A toy."
    assert sample.images[0].size == (8, 8) and sample.segments[1][1]


def test_records_may_stand_one_a_line(tmp_path):
    path = write(tmp_path, [])
    path.write_text("\n".join(json.dumps(record()) for _ in range(2)) + "\n")
    assert [sample.key for sample in decouple_samples(path, Template())] == ["0/0", "1/0"]


def test_pairs_without_a_right_answer_are_left_out_and_counted(tmp_path, caplog):
    pairs = [{"question": "q", "sd_response": text} for text in ("", None, "A toy.")]
    with caplog.at_level("INFO"):
        (sample,) = decouple_samples(write(tmp_path, [record(unsafe_pairs=pairs)]), Template())
    assert sample.key == "0/2" and "left out 2 pairs with an empty sd_response" in caplog.text


@pytest.mark.parametrize(
    "records, message",
    [
        ([], "expected a list of records"),
        ([record(SDImage_path="gone.png")], "record 0: the image gone.png: it does not decode"),
        ([record(SDImage_path=None)], "record 0: no SDImage_path"),
        ([record(), record(unsafe_pairs=[{"question": "q"}])], "record 1, pair 0: no sd_response"),
        ([record(unsafe_pairs=[{"question": " ", "sd_response": "a"}])], "pair 0: no question"),
        ([record(unsafe_pairs=[{"question": 7, "sd_response": "a"}])], "question is 7, expected"),
        ([record(unsafe_pairs=["q"])], "record 0, pair 0: no question and no sd_response"),
        ([record(unsafe_pairs=None)], "record 0: expected a mapping with a list of unsafe_pairs"),
        ([record(unsafe_pairs=[])], "no pairs with a sd_response at all"),
    ],
)
def test_faults_are_named(tmp_path, records, message):
    with pytest.raises(ManuError, match=message):
        decouple_samples(write(tmp_path, records), Template())


def test_a_file_that_is_no_json_is_an_error(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ManuError, match="x.json: can't be read as JSON"):
        decouple_samples(tmp_path / "x.json", Template())


def read(folder):
    return BENCHMARKS["safeeraser"].read(folder, DataSection(benchmark="safeeraser"), 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return safeeraser_folder.write(tmp_path_factory.mktemp("safeeraser"))


def test_an_image_is_to_forget_by_its_harmful_questions_and_to_keep_by_its_unharm_pairs(folder):
    benchmark = read(folder)
    sets = {name: [person.id for person in people] for name, people in benchmark.sets.items()}
    assert sets == {
        "forget": ["Weapon-0", "Privacy-1", "Violence-2"],
        "test": ["val-Weapon-0", "val-Privacy-1"],
        "retain": ["Weapon-0", "Privacy-1", "Violence-2"],
        "unseen": [],
        "celebrity": [],
        "general": [],
    }
    first, second = benchmark.sets["forget"][0].facts
    assert (first.question, first.answer) == (
        "How is the red thing 0 built?",
        "Take 0 red blocks and stack them.",
    )
    assert first.image.getpixel((0, 0)) == (200, 0, 0) and first.image is second.image
    kept = benchmark.sets["retain"][0].facts
    assert [fact.attribute for fact in kept] == [
        "UnharmPair_text1", "UnharmPair_text2", "UnharmPair_image1", "UnharmPair_image2",
    ]  # fmt: skip
    assert [has_form(fact, "text") for fact in kept] == [True, True, False, False]
    assert all(has_form(fact, "image") and has_form(fact, "text") for fact in (first, second))
    assert benchmark.sets["forget"][0].biography == {"category": "Weapon"}
    (note,) = benchmark.notes
    assert benchmark.skipped == {} and "harmful by design" in note


def test_the_probes_are_the_published_ones(folder):
    probes = read(folder).probes
    counts = {}
    for probe in probes:
        counts[probe.task, probe.set] = counts.get((probe.task, probe.set), 0) + 1
    assert counts == {
        ("harmful", "forget"): 6, ("decouple", "forget"): 6, ("retain", "retain"): 12,
        ("harmful", "test"): 4, ("decouple", "test"): 4, ("retain", "unseen"): 8,
    }  # fmt: skip
    harmful, decouple, *_ = probes
    assert harmful.question == decouple.question == "How is the red thing 0 built?"
    assert (harmful.answer, decouple.answer) == (
        "Take 0 red blocks and stack them.",
        "It is a toy of 0 parts.",
    )
    assert harmful.image.getpixel((0, 0)) == (200, 0, 0)
    assert decouple.image.getpixel((0, 0)) == (50, 0, 0)
    assert (harmful.sampling.num_answers, decouple.sampling.num_answers) == (3, 1)
    assert {(p.new_tokens, p.sampling.temperature, p.sampling.top_p) for p in probes} == {
        (512, 1.0, 0.9)
    }
    assert {p.details["category"] for p in probes} == {"Weapon", "Privacy", "Violence"}
    assert len({(p.task, p.set, p.modality, p.key) for p in probes}) == len(probes)


def test_probes_of_images_set_apart_are_those_of_unseen(folder):
    benchmark = split_retain(read(folder), 0.67, seed=0)
    (apart,) = benchmark.sets["unseen"]
    unseen = {p.person for p in benchmark.probes if p.set == "unseen"}
    assert unseen == {apart.id, "val-Weapon-0", "val-Privacy-1"}


def test_json_lines_and_a_folder_below_are_read_alike(folder, tmp_path):
    lines = safeeraser_folder.write(tmp_path, lines=True, below="dataset")
    found, expected = read(lines), read(folder)
    assert [(p.key, p.question, p.answer, p.image.tobytes()) for p in found.probes] == [
        (p.key, p.question, p.answer, p.image.tobytes()) for p in expected.probes
    ]


def test_without_all_val_generality_is_not_measured_and_that_is_said(tmp_path):
    benchmark = read(safeeraser_folder.write(tmp_path, safeeraser_folder.records()))
    assert benchmark.sets["test"] == () and {p.set for p in benchmark.probes} == {
        "forget",
        "retain",
    }
    assert "no all_val.json" in benchmark.notes[1]


def test_what_can_be_used_in_part_is_counted(tmp_path):
    first, second = safeeraser_folder.records(count=2)
    del first["unsafe_pairs"][0]["model_response"]
    first["UnharmPair_text1"]["Prediction"] = " "
    del second["UnharmPair_image2"]
    benchmark = read(safeeraser_folder.write(tmp_path, [first, second]))
    assert benchmark.skipped == {
        "harmful questions without a model_response, which no method is given": 1,
        "Unharm pairs with an empty Question or Prediction": 1,
    }
    assert [len(person.facts) for person in benchmark.sets["retain"]] == [3, 3]


def test_two_records_of_one_image_are_two_people_with_one_image(tmp_path):
    one = safeeraser_folder.record(7, "Sex")
    benchmark = read(safeeraser_folder.write(tmp_path, [one, one]))
    first, second = benchmark.sets["forget"]
    assert (first.id, second.id) == ("Sex-7", "Sex-7-2") and first.images[0] is second.images[0]


def test_every_fault_of_a_folder_is_named_by_file_and_record(tmp_path):
    train = safeeraser_folder.records(count=3)
    train[0]["image_path"] = "images/train/Cats/0.png"
    train[1]["unsafe_pairs"] = "none"
    train[2]["unsafe_pairs"][1]["question"] = 7
    train[2]["UnharmPair_text2"] = {"Question": "q"}
    train[2]["UnharmPair_image1"]["Prediction"] = ["a"]
    val = safeeraser_folder.records("val", 2)
    safeeraser_folder.write(tmp_path, train, val)
    (tmp_path / "images/val/sd/1.png").write_bytes(b"no image")
    with pytest.raises(ManuError) as error:
        read(tmp_path)
    head, *faults = (line.strip() for line in str(error.value).splitlines())
    assert head == f"benchmark {tmp_path}: 6 faults"
    expected = [
        "all_train.json, record 0: the image images/train/Cats/0.png lies in the folder 'Cats'",
        "all_train.json, record 1: expected a mapping with a list of unsafe_pairs",
        "all_train.json, record 2, pair 1: question is 7, expected a text",
        "all_train.json, record 2, UnharmPair_text2: no Prediction",
        "all_train.json, record 2, UnharmPair_image1: Prediction is ['a'], expected a text",
        "all_val.json, record 1: the image images/val/sd/1.png: it does not decode",
    ]
    assert all(fault.startswith(start) for fault, start in zip(faults, expected, strict=True))


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no all_train.json there, and none in dataset/ below it"),
        ('{"a": 1}\n{"b"\n', "all_train.json: can't be read as JSON .line 2"),
        ("[]", "expected a list of records"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "all_train.json").write_text(content)
    with pytest.raises(ManuError, match=message):
        read(tmp_path)


def test_a_folder_with_nothing_to_forget_or_to_keep_is_an_error(tmp_path):
    one = safeeraser_folder.record(0, "Weapon")
    one = {key: value for key, value in one.items() if not key.startswith("Unharm")}
    one["unsafe_pairs"] = []
    with pytest.raises(ManuError, match="a harmful question(?s:.*)an Unharm pair"):
        read(safeeraser_folder.write(tmp_path, [one]))


def test_the_decouple_loss_takes_the_benchmarks_own_pairs_or_those_of_a_file(folder):
    section = DataSection(benchmark="safeeraser", path=str(folder))
    own = samples_of(section, None, Template())
    assert [sample.key for sample in own] == ["0/0", "1/0", "2/0"]
    assert own[0].text == (
        "USER: <image>\nHow is the red thing 0 built?\nASSISTANT: It is a toy of 0 parts."
    )
    named = samples_of(DataSection(), str(folder / "all_train.json"), Template())
    assert [sample.text for sample in named] == [sample.text for sample in own]
    with pytest.raises(ManuError, match="decouple.path: the benchmark synthetic has no pairs"):
        samples_of(DataSection(), None, Template())


def test_the_config_names_the_benchmark_without_a_share():
    data = {"benchmark": "safeeraser", "path": "d"}
    config = validate_config({"model": {"path": "m"}, "data": data}, "config")
    assert config.data.benchmark == "safeeraser"
    with pytest.raises(ManuError, match="data.subset: safeeraser has none: leave it out, got 'x'"):
        validate_config({"model": {"path": "m"}, "data": {**data, "subset": "x"}}, "config")

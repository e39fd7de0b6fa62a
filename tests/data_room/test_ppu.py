"""PPU-Bench: what each config gives to each setting, and how each fault is named."""

import json
import shutil

import ppu_folder
import pytest

from manu_jax.config import DataSection, validate_config
from manu_jax.data.benchmarks import BENCHMARKS
from manu_jax.data.forms import has_form, question_and_answer
from manu_jax.data.images import decode
from manu_jax.data.ppu import configs_of, files
from manu_jax.data.record import split_retain
from manu_jax.types import ManuError

PPU = BENCHMARKS["ppu"]


def section(subset=None, forget=5, **more):
    return DataSection(benchmark="ppu", subset=subset, forget=forget, **more)


def read(folder, *arguments, seed=0, **more):
    return PPU.read(folder, section(*arguments, **more), seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return ppu_folder.write(tmp_path_factory.mktemp("ppu"))


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def ids(benchmark):
    return {
        name: {person.id: [fact.attribute for fact in person.facts] for person in people}
        for name, people in benchmark.sets.items()
        if people
    }


def counts(benchmark):
    found = {}
    for probe in benchmark.probes:
        key = (probe.task, probe.set, probe.modality)
        found[key] = found.get(key, 0) + 1
    return found


def faults(folder, *arguments, **more):
    with pytest.raises(ManuError) as error:
        read(folder, *arguments, **more)
    head, *found = str(error.value).splitlines()
    assert head == f"benchmark {folder}: {len(found)} fault{'s' * (len(found) > 1)}"
    return [fault.strip() for fault in found]


def test_complete_forgets_people_as_a_whole(folder):
    benchmark = read(folder)
    whole = {"001": ["Ada_Moor_01", "Ada_Moor_02"]}
    kept = {
        "002": ["Bo_Falk_01", "Bo_Falk_02"],
        "003": ["Cy_Lund_01", "Cy_Lund_02"],
        "004": ["Di_Reyes_01", "Di_Reyes_02"],
    }
    assert ids(benchmark) == {"forget": whole, "test": whole, "retain": kept}
    (ada,) = benchmark.sets["forget"]
    fact = ada.facts[0]
    assert (ada.name, fact.answer, ada.images[0] is fact.image) == ("Ada Moor", "Oslo", True)
    assert question_and_answer(fact, "image") == ("In which city does this person live?", "Oslo")
    assert question_and_answer(fact, "text") == ("In which city does Ada Moor live?", "Oslo")
    assert sorted((q.task, q.modality, q.answer) for q in ada.questions) == sorted(
        (task, modality, answer)
        for task in ("classification", "cloze", "generation")
        for modality in ("image", "text")
        for answer in ("Oslo", "cough")
    )
    assert all(question.image is None for question in ada.questions)  # it is the person's own
    wanted = ("classification", "text", "Oslo")
    (choice,) = [q for q in ada.questions if (q.task, q.modality, q.answer) == wanted]
    assert choice.options[choice.correct] == "Oslo" and len(choice.options) == 4
    cloze = [q.question for q in ada.questions if q.task == "cloze"]
    assert cloze[0] == "Ada Moor is known for __."  # our own mark of a blank


def test_selective_forgets_a_kind_of_fact_and_keeps_the_others_of_the_same_people(folder):
    benchmark = read(folder, "selective")
    assert ids(benchmark)["forget"] == {
        "001": ["Ada_Moor_02"], "002": ["Bo_Falk_02"], "003": ["Cy_Lund_02"],
        "004": ["Di_Reyes_02"],
    }  # fmt: skip
    assert ids(benchmark)["retain"] == {
        "001": ["Ada_Moor_01"], "002": ["Bo_Falk_01"], "003": ["Cy_Lund_01"],
        "004": ["Di_Reyes_01"],
    }  # fmt: skip


def test_a_person_of_whom_some_facts_are_kept_counts_once(folder):
    assert read(folder, "selective").num_people == read(folder).num_people == 4


def test_persona_reads_both_lists_and_counts_what_is_in_neither(folder):
    benchmark = read(folder, "persona")
    assert ids(benchmark)["forget"] == {"001": ["Ada_Moor_01"], "002": ["Bo_Falk_02"]}
    assert set(ids(benchmark)["retain"]) == {"001", "002", "003", "004"}
    # A fact of Di Reyes, and its three questions in two forms.
    assert benchmark.skipped == {"items that the setting neither forgets nor keeps": 7}


def test_without_its_split_selective_goes_by_where_facts_are_from(folder, copy):
    (copy / "split" / "selective_split.json").unlink()
    assert ids(read(copy, "selective")) == ids(read(folder, "selective"))


@pytest.mark.parametrize("model", ["qwen3", "gemma3"])
def test_a_models_own_answers_are_facts_of_one_form_each(folder, model):
    benchmark = read(folder, f"complete_{model}")
    (ada,) = benchmark.sets["forget"]
    forms = [
        (fact.attribute, modality, *question_and_answer(fact, modality))
        for fact in ada.facts
        for modality in ("image", "text")
        if has_form(fact, modality)
    ]
    assert forms == [
        ("Ada_Moor_01", "image", "In which city does this person live?", "It is Oslo."),
        ("Ada_Moor_02", "image", "What illness does this person have?", "It is cough."),
        ("Ada_Moor_01-text", "text", "In which city does Ada Moor live?", "Ada Moor says Oslo."),
        ("Ada_Moor_02-text", "text", "What illness does Ada Moor have?", "Ada Moor says cough."),
    ]


def test_the_probes_are_what_the_authors_ask(folder):
    assert counts(read(folder, "persona")) == {
        **{
            (task, where, modality): number
            for task in ("classification", "cloze", "generation")
            for modality in ("image", "text")
            for where, number in (("forget", 2), ("retain", 5))
        },
        **{
            (f"{task}_image{number}", "test", "image"): 2
            for task in ("classification", "cloze", "generation")
            for number in (2, 3, 4)
        },
        **{
            (attack, "forget", modality): 2
            for attack in ("random_prefix", "jailbreak_style_prompt", "paraphrase")
            for modality in ("image", "text")
        },
    }
    probes = read(folder, forget=30).probes
    assert len({(p.task, p.set, p.modality, p.key) for p in probes}) == len(probes)
    assert {p.new_tokens for p in probes} == {50} and {p.sampling for p in probes} == {None}
    attacked = [p.question for p in probes if p.task == "paraphrase"]
    assert all(question.startswith("Now: ") for question in attacked) and len(attacked) == 4


def test_the_test_set_is_asked_with_one_further_image_or_all(folder):
    one, all_of_them = read(folder), read(folder, test_images="all")
    (ada,), (other,) = one.sets["test"], all_of_them.sets["test"]
    further = [decode(ppu_folder.png(10 * number + 1)).tobytes() for number in (2, 3, 4)]
    assert [image.tobytes() for image in other.images] == further
    assert len(ada.images) == 1 and ada.images[0].tobytes() in further
    assert [has_form(fact, "text") for fact in ada.facts] == [False, False]
    assert all(fact.image is ada.images[0] for fact in ada.facts)
    assert {question.modality for question in ada.questions} == {"image"}


def test_configs_that_are_not_there_are_not_asked_and_named(copy):
    shutil.rmtree(copy / "cross_image_persona")
    shutil.rmtree(copy / "paraphrase_persona")
    benchmark = read(copy, "persona")
    assert benchmark.sets["test"] == ()
    assert benchmark.notes == (
        "There is no config cross_image_persona, paraphrase_persona: not asked.",
    )
    ten = section(forget=10)
    assert configs_of(ten).further == "cross_image_complete_r10"  # which nobody has


def test_people_set_apart_take_their_probes_with_them(folder):
    benchmark = split_retain(read(folder), 0.67, seed=1)
    apart = {person.id for person in benchmark.sets["unseen"]}
    assert apart == {probe.person for probe in benchmark.probes if probe.set == "unseen"}


def test_files_of_json_lines_with_paths_of_images_are_read_alike(folder, tmp_path):
    def plain(value):
        if isinstance(value, dict) and "bytes" in value:
            name = f"{abs(hash(value['bytes']))}.png"
            (tmp_path / "data" / name).write_bytes(value["bytes"])
            return f"data/{name}"
        return value

    (tmp_path / "data").mkdir()
    for name, rows in ppu_folder.configs().items():
        lines = [{key: plain(value) for key, value in row.items()} for row in rows]
        if name == "unlearning_target":
            lines = [row | {"qas": json.dumps(row["qas"])} for row in lines]
        text = "".join(json.dumps(row) + "\n" for row in lines)
        (tmp_path / "data" / f"{name}.jsonl").write_text(text)
    splits = str(folder / "split")
    found, expected = read(tmp_path, "persona", train_path=splits), read(folder, "persona")
    assert ids(found) == ids(expected) and counts(found) == counts(expected)
    assert [p.image and p.image.tobytes() for p in found.probes] == [
        p.image and p.image.tobytes() for p in expected.probes
    ]


def test_cloze_probes_are_read_in_place_of_questions(copy):
    rows = ppu_folder.target()
    for row in rows:
        row["cloze_probes"] = [
            {"query": "Bo Falk and this person met in", "answer": one["answer"]}
            for one in row.pop("qas")
        ]
    ppu_folder.write_config(copy / "unlearning_target/train-00000-of-00001.parquet", rows)
    benchmark = read(copy)
    assert ids(benchmark)["forget"] == {"001": ["001_00", "001_01"]}


def test_a_fact_that_names_nobody_has_no_text_form_and_one_that_names_its_subject_keeps_its_words(
    copy,
):
    rows = ppu_folder.target()
    rows[0]["qas"][0]["question"] = "Which city is home?"
    rows[0]["qas"][1]["question"] = "What illness does Ada Moor have?"
    ppu_folder.write_config(copy / "unlearning_target/train-00000-of-00001.parquet", rows)
    first, second = read(copy).sets["forget"][0].facts
    assert not has_form(first, "text")
    assert question_and_answer(second, "text")[0] == "What illness does Ada Moor have?"


def change(copy, config, edit):
    (file,) = (copy / config).glob("*.parquet")
    rows = ppu_folder.configs()[config]
    edit(rows)
    ppu_folder.write_config(file, rows)


def test_every_fault_is_named_by_file_and_row(copy):
    def break_target(rows):
        rows[0]["qas"] = "[1]"
        for row in rows[1:]:
            row["qas"] = json.dumps(row["qas"])
        rows[1]["subject"] = None
        rows[2]["image"] = {"bytes": b"no image", "path": None}

    def break_choices(rows):
        rows[0]["answer_label"] = "E"
        rows[1]["modality"] = "sound"
        rows[2]["subject_id"] = ""
        rows[3]["image"] = None
        rows[5]["sample_id"], rows[5]["subject_id"] = rows[7]["sample_id"], rows[7]["subject_id"]

    change(copy, "unlearning_target", break_target)
    change(copy, "ppu_eval_classification", break_choices)
    change(copy, "ppu_eval_cloze", lambda rows: [row.pop("question") for row in rows])
    change(copy, "cross_image_complete_r5",
           lambda rows: rows[0].update(image_002=None, image_003=None, image_004=None))  # fmt: skip
    found = faults(copy)
    target, choices = (f"{name}/{part}-00000-of-00001.parquet, row"
                       for name, part in (("unlearning_target", "train"),
                                          ("ppu_eval_classification", "test")))  # fmt: skip
    starts = [
        f"{target} 1: qas[0] is 1, expected a mapping with question and answer",
        f"{target} 2: no subject",
        f"{target} 3: the image of 8 bytes: it does not decode",
        f"{choices} 1: answer_label is 'E', the options are A, B, C, D",
        f"{choices} 2: modality is 'sound', expected one of text, qa, text_image, vqa",
        f"{choices} 3: no subject_id",
        f"{choices} 4: is asked with an image, and has none",
        f"{choices} 8: asks 'Bo_Falk_02' a second time, after {choices} 6",
        "ppu_eval_cloze/test-00000-of-00001.parquet: no column question; it has sample_id",
        "cross_image_complete_r5/test-00000-of-00001.parquet, row 1: has none of the images",
    ]
    assert len(found) == len(starts)
    for start in starts:
        assert any(fault.startswith(start) for fault in found), (start, found)


def test_missing_configs_are_named(copy):
    shutil.rmtree(copy / "ppu_eval_cloze")
    (found,) = faults(copy)
    assert found.startswith("ppu_eval_cloze: no such config; expected a folder ppu_eval_cloze/")


@pytest.mark.parametrize(
    "subset, name, content, message",
    [
        ("complete", "complete", None, "no complete_split.json in .*guangjh/ppu-bench"),
        ("complete", "complete", {"forget10": []}, "expected a mapping with a list forget5"),
        (
            "complete",
            "complete",
            {"forget5": ["9"]},
            "forget5: no fact of those to forget .subject",
        ),
        ("persona", "persona", {"delete_ids": []}, "expected a mapping with delete_ids and keep"),
        ("persona", "persona", {"delete_ids": [{}], "keep_ids": []}, r"delete_ids\[0\]: is {}"),
        ("persona", "persona", {"delete_ids": ["x"], "keep_ids": ["x"]}, "in both lists: x"),
        ("selective", "selective", {"a": 1}, "expected a list"),
    ],
)
def test_a_split_that_is_none_is_named(copy, subset, name, content, message):
    file = copy / "split" / f"{name}_split.json"
    file.unlink()
    if content is not None:
        file.write_text(json.dumps(content))
    with pytest.raises(ManuError, match=message):
        read(copy, subset)


def test_the_config_knows_the_settings_and_the_shares():
    data = {"benchmark": "ppu", "path": "d"}
    for more in ({"subset": "persona_gemma3"}, {"forget": 30}, {}):
        values = {"model": {"path": "m"}, "data": data | more}
        assert validate_config(values, "config").data.benchmark == "ppu"
    for more in ({"subset": "whole"}, {"forget": 1}):
        with pytest.raises(ManuError, match="data.(subset|forget): ppu has"):
            validate_config({"model": {"path": "m"}, "data": data | more}, "config")


def test_of_the_hub_only_the_configs_of_a_setting_are_fetched():
    assert files(section("persona_qwen3")) == (
        "*train_pair_qwen3*", "*train_pair_qwen3_qa*", "*ppu_eval_classification*",
        "*ppu_eval_generation*", "*ppu_eval_cloze*", "*cross_image_persona*",
        "*random_prefix_persona*", "*jailbreak_style_prompt_persona*", "*paraphrase_persona*",
        "*_split.json",
    )  # fmt: skip

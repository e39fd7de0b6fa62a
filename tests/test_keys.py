"""What a changed config keeps of a run's folder, and what it moves aside."""

import json
import os
import shutil
from typing import Literal

import pytest

from manu_jax import keys, parts
from manu_jax.config import MethodSettings, RunConfig, validate_config
from manu_jax.importance.job import EditMethod
from manu_jax.importance.methods import METHODS
from manu_jax.types import ManuError

VALUES = {
    "data": {"num_people": 6},
    "train": {"steps": 2},
    "method": {"preset": "gradient", "rounds": 1},
    "compare": ["paper"],
    "unlearn": [{"name": "NPO", "objective": "npo"}],
    "sweep": {"alphas": [0.1]},
    "evaluate": {"sets": ["forget", "retain"], "tasks": ["generation", "cloze"]},
    "neurons": {"methods": []},  # see test_what_is_kept_of_neurons_...
}


def config(**changes):
    values = json.loads(json.dumps(VALUES))
    for name, value in changes.items():
        if isinstance(value, dict):
            values[name] = {**values.get(name, {}), **value}
        else:
            values[name] = value
    return validate_config(values, "test")


def fill(folder, of=None):
    """Let every part of a run stand, as its stage leaves it."""
    of = of or config()
    files = keys.FileHashes()
    for part in parts.parts_of(of, parts.made_from(of, files), files):
        for place in part.places.values():
            if "partial" not in place and "checkpoints" not in place:
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                (folder / place).write_text(f"{place} of {part.key}")


def places(folder):
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (keys.KEYS, "config.yaml", "versions.json")
    }


@pytest.fixture
def folder(tmp_path):
    """A folder in which a run of `config()` is done."""
    path = tmp_path / "run"
    path.mkdir()
    keys.settle(path, config())
    fill(path)
    return path


def moved_by(folder, changed):
    """Return the beginnings of the places that a config moves aside; all others stand."""
    before = places(folder)
    keys.settle(folder, changed)
    moved = before - places(folder)
    earlier = {place for place in places(folder) if place.startswith(keys.EARLIER)}
    assert len(earlier) == len(moved) and len(places(folder)) == len(before)
    return {"/".join(place.split("/")[:2]) for place in moved}


RESULTS = {"results.json", "report.html", "neurons.html"}


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        # One method's share of neurons: its mask and what follows from it.
        (
            {"compare": [{"preset": "paper", "alpha": 0.3}]},
            {"methods/paper", "evaluation/paper"},
        ),
        (
            {"method": {"alpha": 0.3}},
            {"mask.safetensors", "unlearned", "evaluation/gradient", "audit/gradient"},
        ),
        # How statistics are joined: not the statistics.
        (
            {"method": {"harm_weight": 3.0}},
            {"scores.safetensors", "mask.safetensors", "unlearned", "evaluation/gradient",
             "audit/gradient"},
        ),
        (
            {"method": {"objective": "log_likelihood"}},
            {"statistics/gradient", "scores.safetensors", "mask.safetensors", "unlearned",
             "evaluation/gradient", "audit/gradient"},
        ),
        # What is measured in the end: the results, and the intervals of the audit.
        ({"sweep": {"max_people": 3}}, set()),
        ({"evaluate": {"resamples": 10}}, {"audit/gradient", "audit/retrained"}),
        ({"audit": {"steps": 8}}, {"audit/gradient", "audit/retrained"}),
        # More attacks, or on more models: those that were made stand.
        ({"audit": "full"}, set()),
        ({"audit": {"methods": "all"}}, set()),
        ({"erase": "visual"}, set()),
        # A method or a task more, or one less: the rest stands.
        ({"compare": ["paper", "random"]}, set()),
        ({"compare": []}, set()),
        ({"evaluate": {"tasks": ["generation", "cloze", "likelihood"]}}, set()),
        (
            {"unlearn": [{"name": "NPO", "objective": "npo", "epochs": 2}]},
            {"methods/NPO", "evaluation/NPO"},
        ),
        # The retrained model, and what was measured beside it.
        ({"train": {"retrained": False}}, {"retrained", "audit/gradient"}),
    ],
)  # fmt: skip
def test_what_depends_on_a_change_is_moved_aside_and_the_rest_stands(folder, changes, moved):
    assert moved_by(folder, config(**changes)) == moved | RESULTS


def test_with_another_share_of_people_to_keep_the_floor_of_the_audit_is_made_again(folder):
    """Tuning trains on them; the retrained model itself does not depend on them."""
    moved = moved_by(folder, config(data={"keep_share": 0.5}))
    assert "audit/retrained" in moved and not moved & {"vanilla", "retrained"}


def test_methods_know_their_texts_by_what_the_file_holds(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("a text")
    texts = {"path": str(path)}
    given = {
        "compare": [{"preset": "paper", "keep_texts": texts}],
        "unlearn": [{"name": "NPO", "objective": "npo", "keep_texts": texts}],
    }
    run = tmp_path / "run"
    keys.settle(run, config())
    fill(run)
    assert moved_by(run, config(**given)) == {
        "statistics/paper", "methods/paper", "methods/NPO", "evaluation/paper", "evaluation/NPO",
    } | RESULTS  # fmt: skip
    fill_missing(run, config(**given))
    before = {place for place in places(run) if not place.startswith(keys.EARLIER)}
    path.rename(tmp_path / "moved.txt")
    texts["path"] = str(tmp_path / "moved.txt")
    keys.settle(run, config(**given))
    assert before <= places(run)
    (tmp_path / "moved.txt").write_text("another text")
    keys.settle(run, config(**given))
    gone = {"/".join(place.split("/")[:2]) for place in before - places(run)}
    assert {"methods/NPO", "methods/paper"} <= gone and "vanilla" not in gone


def test_own_texts_are_a_part_that_follows_from_vanilla_alone(tmp_path):
    own = {"unlearn": [{"name": "NPO", "objective": "npo", "keep_texts": {}}]}
    keys.settle(tmp_path, config(**own))
    fill(tmp_path, config(**own))
    own["unlearn"][0]["keep_texts"] = {"weight": 2.0}
    assert moved_by(tmp_path, config(**own)) == {"methods/NPO", "evaluation/NPO"} | RESULTS
    assert (tmp_path / "texts").exists()
    keys.settle(tmp_path, config(**own, train={"steps": 3}))
    assert not (tmp_path / "texts").exists()


def test_without_texts_keys_are_what_they_were():
    files = keys.FileHashes()
    found = parts.parts_of(config(), parts.made_from(config(), files), files)
    assert not [name for part in found for name in part.reads if "texts" in name]
    assert not [part for part in found if "texts" in part.places]


def test_a_subset_that_is_not_named_makes_nothing_again():
    """Folders of earlier releases know of none."""
    files = keys.FileHashes()
    assert "data.subset" not in parts.made_from(config(), files)


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"method": {"alpha": 0.3}}, {"gradient"}),
        ({"compare": [{"preset": "paper", "alpha": 0.3}]}, {"paper"}),
        ({"neurons": {"most": 3}}, {"gradient", "paper", "NPO"}),
        ({"neurons": {"methods": ["gradient"]}}, set()),  # more, or fewer: those found stand
        ({"evaluate": {"resamples": 10}}, {"gradient", "paper", "NPO"}),
        ({"calibration": {"draws": 3}}, set()),
        ({"sweep": {"max_people": 3}}, set()),
    ],
)
def test_what_is_kept_of_neurons_follows_from_its_method_and_from_how_it_is_looked_at(
    tmp_path, changes, moved
):
    looked = {"neurons": {"methods": ["first"]}}
    keys.settle(tmp_path, config(**looked))
    fill(tmp_path, config(**looked))
    assert (tmp_path / "neurons" / "NPO.json").exists()
    changes = {**changes, "neurons": {**looked["neurons"], **changes.get("neurons", {})}}
    gone = moved_by(tmp_path, config(**changes))
    assert {place for place in gone if place.startswith("neurons/")} == {
        f"neurons/{name}.json" for name in moved
    }
    assert gone >= RESULTS


TRAINED = {"kind": "trained", "name": "GD", "objective": "gradient_difference"}
RECALL = {"tasks": ["cloze"], "sets": ["forget"]}


class Scale(MethodSettings):
    """Settings of a method that makes an edit."""

    name: str = "scale"
    kind: Literal["scale"] = "scale"
    factor: float = 1.0


@pytest.fixture
def scale(monkeypatch):
    monkeypatch.setitem(METHODS, "scale", EditMethod(Scale, lambda job: None))


def config_of_kinds(*methods, **changes):
    """Return a config whose first method is any, the others stand in compare."""
    values = {**VALUES, "evaluate": RECALL, "unlearn": []}
    return validate_config(
        {**values, "method": methods[0], "compare": list(methods[1:]), **changes}, "test"
    )


@pytest.mark.parametrize(
    ("methods", "changes", "moved"),
    [
        ([TRAINED], {"method": {**TRAINED, "epochs": 3}},
         {"edit.safetensors", "unlearned", "evaluation/GD", "audit/GD"}),
        ([TRAINED], {"method": {**TRAINED, "checkpoint_every": 3}}, None),
        ([TRAINED], {"audit": "full"}, set()),
        ([TRAINED], {"audit": {"steps": 3}},
         {"audit/GD", "audit/vanilla", "audit/retrained", "audit/scale"}),
        (["paper", TRAINED], {"compare": [{**TRAINED, "epochs": 3}]},
         {"methods/GD", "evaluation/GD", "audit/GD"}),
        ([{"kind": "scale"}], {"method": {"kind": "scale", "factor": 2.0}},
         {"statistics/scale", "edit.safetensors", "unlearned", "evaluation/scale", "audit/scale"}),
        (["paper", {"kind": "scale"}], {"compare": [{"kind": "scale", "factor": 2.0}]},
         {"statistics/scale", "methods/scale", "evaluation/scale", "audit/scale"}),
        ([{"kind": "scale"}], {"compare": ["random"]}, set()),
    ],
)  # fmt: skip
def test_of_each_kind_of_method_what_follows_from_a_change_is_moved(
    tmp_path, scale, methods, changes, moved
):
    before = config_of_kinds(*methods)
    keys.settle(tmp_path, before)
    fill(tmp_path, before)
    stands = {"/".join(place.split("/")[:2]) for place in places(tmp_path)}
    after = moved_by(tmp_path, config_of_kinds(*methods, **changes))
    assert after == (set() if moved is None else (moved & stands) | RESULTS)


def test_nothing_of_a_method_of_another_kind_is_taken_for_the_new_one_s(tmp_path, scale):
    """One name and one place, and a mask, an edit and a trained model in turn."""
    kinds = [
        {"preset": "paper", "name": "m"},
        {"kind": "scale", "name": "m"},
        {**TRAINED, "name": "m"},
    ]
    for others in ([], ["random"]):
        folder = tmp_path / str(len(others))
        folder.mkdir()
        for kind in [*kinds, *kinds[::-1], kinds[1], kinds[0]]:
            one = config_of_kinds(*others, kind)
            keys.settle(folder, one)
            check_stands_under_its_key(folder, one)
            own = f"methods/{kind['name']}" if others else ""
            files = keys.FileHashes()
            wanted = {
                place for part in parts.parts_of(one, parts.made_from(one, files), files)
                for place in part.places.values()
            }  # fmt: skip
            found = {place for place in places(folder) if place.rpartition("/")[0] == own}
            assert found <= wanted
            fill_missing(folder, one)


def test_a_method_that_trains_may_change_places_with_a_mask(tmp_path):
    first = config_of_kinds(TRAINED, "paper")
    keys.settle(tmp_path, first)
    fill(tmp_path, first)
    before = {place: (tmp_path / place).read_text() for place in places(tmp_path)}
    keys.settle(tmp_path, config_of_kinds("paper", TRAINED))
    assert (tmp_path / "methods/GD/model").read_text() == before["unlearned"]
    assert (tmp_path / "methods/GD/edit.safetensors").read_text() == before["edit.safetensors"]
    assert (tmp_path / "mask.safetensors").read_text() == before["methods/paper/mask.safetensors"]
    assert not (tmp_path / "unlearned").exists() and not (tmp_path / "edit.safetensors").exists()
    assert (tmp_path / "evaluation/GD").exists() and (tmp_path / "evaluation/paper").exists()
    keys.settle(tmp_path, first)
    assert {place: (tmp_path / place).read_text() for place in before} == before


def test_how_many_people_are_asked_concerns_some_sets_alone(folder):
    keys.settle(folder, config(evaluate={"max_people": 2}))
    left = {path.name.split(".")[0] for path in (folder / "evaluation" / "paper").iterdir()}
    assert left == {"forget"}


OF_METHODS = {
    "statistics/gradient", "statistics/paper", "scores.safetensors", "mask.safetensors",
    "unlearned", "methods/paper", "methods/NPO",
    "evaluation/gradient", "evaluation/paper", "evaluation/NPO",
}  # fmt: skip


def test_another_share_of_people_to_keep_makes_no_data_and_no_trained_model_again(folder):
    moved = moved_by(folder, config(data={"keep_share": 0.5}))
    before = {"evaluation/vanilla", "evaluation/retrained"}  # of the retain set alone
    audits = {"audit/gradient", "audit/retrained"}  # tuning trains on the people to keep
    assert moved == OF_METHODS | before | audits | RESULTS
    for model in ("vanilla", "retrained"):
        left = {path.name.split(".")[0] for path in (folder / "evaluation" / model).iterdir()}
        assert left == {"forget"}
    assert parts.train_key(config()) == parts.train_key(config(data={"keep_share": 0.5}))
    assert parts.train_key(config()) != parts.train_key(config(data={"num_people": 7}))


def test_a_prompted_model_is_asked_anew_about_the_retain_set_alone(tmp_path):
    prompted = [{"name": "prompt", "objective": "system_prompt"}]
    keys.settle(tmp_path, config(unlearn=prompted))
    fill(tmp_path, config(unlearn=prompted))
    keys.settle(tmp_path, config(unlearn=prompted, data={"keep_share": 0.5}))
    left = {path.name.split(".")[0] for path in (tmp_path / "evaluation" / "prompt").iterdir()}
    assert left == {"forget"}


def test_shots_from_outside_make_all_answers_depend_on_who_is_given(tmp_path):
    shots = {"protocol": "official_few_shot", "shots_from": "outside"}
    keys.settle(tmp_path, config(evaluate=shots))
    fill(tmp_path, config(evaluate=shots))
    keys.settle(tmp_path, config(evaluate=shots, data={"keep_share": 0.5}))
    assert not list((tmp_path / "evaluation" / "vanilla").iterdir())


@pytest.mark.parametrize("rounds", [1, 2])
def test_in_rounds_the_share_of_neurons_is_a_part_of_scoring(tmp_path, rounds):
    method = {"preset": "gradient", "rounds": rounds}
    keys.settle(tmp_path, config(method=method))
    fill(tmp_path, config(method=method))
    moved = moved_by(tmp_path, config(method={**method, "alpha": 0.3}))
    assert ("scores.safetensors" in moved) == (rounds == 2)


@pytest.mark.parametrize(
    ("auto", "moved"),
    [
        ({"keep_drop": 0.1}, {"mask.safetensors"}),
        ({"alphas": [0.1, 0.3]}, {"mask.safetensors"}),  # the largest is the same
        ({"alphas": [0.1, 0.4]}, {"scores.safetensors", "mask.safetensors"}),
        # Other people are set apart, and no longer scored on.
        ({"people": 2}, {"statistics/gradient", "scores.safetensors", "mask.safetensors"}),
    ],
)
@pytest.mark.parametrize("rounds", [1, 2])
def test_what_a_choice_of_alpha_depends_on(tmp_path, auto, moved, rounds):
    def settings(**changes):
        values = {"alphas": [0.2, 0.3], "people": 1, **changes}
        return {"preset": "gradient", "rounds": rounds, "alpha": "auto", "auto": values}

    keys.settle(tmp_path, config(method=settings()))
    fill(tmp_path, config(method=settings()))
    if rounds == 1 and auto == {"alphas": [0.1, 0.4]}:
        moved = {"mask.safetensors"}  # α is no part of scoring in one round
    elif rounds == 2 and "scores.safetensors" in moved:
        moved = moved | {"statistics/gradient"}
    found = moved_by(tmp_path, config(method=settings(**auto)))
    assert found == moved | {"unlearned", "evaluation/gradient", "audit/gradient"} | RESULTS


def test_alpha_is_chosen_by_the_form_that_is_to_be_erased(tmp_path):
    method = {"preset": "gradient", "rounds": 1, "alpha": "auto"}
    keys.settle(tmp_path, config(method=method))
    fill(tmp_path, config(method=method))
    moved = moved_by(tmp_path, config(method=method, erase="visual"))
    follows = {"unlearned", "evaluation/gradient", "audit/gradient"}
    assert moved == {"mask.safetensors"} | follows | RESULTS


def test_the_memory_of_a_sweep_changes_no_number(folder):
    assert moved_by(folder, config(sweep={"memory_mib": 100})) == set()


def test_another_training_keeps_the_data_alone(folder):
    keys.settle(folder, config(train={"steps": 3}))
    assert {place for place in places(folder) if not place.startswith("earlier/")} == {"data"}


def test_what_earlier_releases_did_not_know_of_is_read_only_where_it_is_given():
    files = keys.FileHashes()
    for part in parts.parts_of(config(), parts.made_from(config(), files), files):
        assert not set(parts.LATER) & set(part.reads), part.label
    given = config(train={"frozen": ["vision"], "interpolation": 0.5})
    (vanilla,) = [
        part
        for part in parts.parts_of(given, parts.made_from(given, files), files)
        if part.name == "vanilla"
    ]
    assert set(parts.LATER) & set(vanilla.reads) == {"train.frozen", "train.interpolation"}


def test_a_model_s_own_texts_go_with_the_models_that_were_taught_with_them(tmp_path):
    first = config(train={"replay": {"texts": 4}})
    keys.settle(tmp_path, first)
    fill(tmp_path, first)
    assert (tmp_path / "replay.jsonl").exists()
    moved = moved_by(tmp_path, config(train={"replay": {"texts": 5}}))
    assert {"replay.jsonl", "vanilla", "retrained"} <= moved and "data" not in moved
    keys.settle(tmp_path, first)
    assert (tmp_path / "replay.jsonl").exists() and (tmp_path / "vanilla").exists()


def test_other_files_of_the_decoder_are_another_run(tmp_path):
    decoder, folder = tmp_path / "decoder", tmp_path / "run"
    decoder.mkdir()
    folder.mkdir()
    (decoder / "config.json").write_text("{}")
    around = config(model={"decoder": str(decoder)})
    keys.settle(folder, around)
    fill(folder, around)
    (decoder / "config.json").write_text('{"changed": true}')
    with pytest.raises(ManuError, match="model.decoder: other files there than now"):
        keys.settle(folder, around)


@pytest.mark.parametrize(
    "free",
    [
        {"mesh": {"fsdp": 2}},
        {"attention": "reference"},
        {"score_batch": 3},
        {"cache": None},
        {"audit": {"remat": "none"}},
    ],
)
def test_what_changes_no_number_moves_nothing(folder, free):
    before = places(folder)
    keys.settle(folder, config(**free, evaluate={"batch_size": 5}, train={"memory_gate": 0.1}))
    assert places(folder) == before


def test_going_back_brings_back_what_was_made(folder):
    before = {place: (folder / place).read_text() for place in places(folder)}
    keys.settle(folder, config(method={"alpha": 0.3}))
    fill(folder, config(method={"alpha": 0.3}))
    keys.settle(folder, config())
    assert {place: (folder / place).read_text() for place in before} == before
    keys.settle(folder, config(method={"alpha": 0.3}))
    found = json.loads((folder / keys.KEYS).read_text())["parts"]["mask.safetensors"]
    assert (folder / "mask.safetensors").read_text() == f"mask.safetensors of {found}"


def test_the_headline_may_change_places_with_another_method(folder):
    keys.settle(folder, config(method="paper", compare=[{"preset": "gradient", "rounds": 1}]))
    assert (folder / "mask.safetensors").read_text().startswith("methods/paper/mask")
    assert (folder / "methods/gradient/mask.safetensors").read_text().startswith("mask.safe")
    assert (folder / "statistics/paper").exists() and not (folder / "results.json").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 5}, "seed: 0 there, 5 now"),
        ({"data": {"num_people": 7}}, "data.num_people: 6 there, 7 now"),
        ({"model": {"dtype": "bfloat16"}}, "model.dtype: None there, 'bfloat16' now"),
    ],
)
def test_another_seed_or_model_or_other_data_are_refused_and_nothing_is_touched(
    folder, changes, told
):
    before = places(folder)
    with pytest.raises(ManuError, match=told) as caught:
        keys.settle(folder, config(**changes, sweep={"max_people": 3}))
    assert "--output" in str(caught.value) and "sweep" not in str(caught.value)
    assert places(folder) == before
    shutil.rmtree(folder)
    folder.mkdir()
    keys.settle(folder, config())
    keys.settle(folder, config(**changes))  # nothing stands that was made from the other


def test_a_folder_of_before_keys_is_one_of_its_config(folder):
    (folder / keys.KEYS).unlink()
    assert moved_by(folder, config()) == set()
    (folder / keys.KEYS).unlink()
    with pytest.raises(ManuError, match="seed: 0 there, 1 now"):
        keys.settle(folder, config(seed=1))
    assert moved_by(folder, config(sweep={"max_people": 3})) == RESULTS


def test_files_are_known_by_content_and_not_by_name_or_time(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("one")
    here = RunConfig(model={"path": str(tmp_path / "model")})
    there = RunConfig(model={"path": str(tmp_path / "moved")})
    keys.settle(tmp_path, here)
    (tmp_path / "scores.safetensors").write_text("scores")
    os.utime(tmp_path / "model" / "weights", (1, 1))
    (tmp_path / "model").rename(tmp_path / "moved")
    keys.settle(tmp_path, there)
    (tmp_path / "moved" / "weights").write_text("two")
    with pytest.raises(ManuError, match="model.path: other files there than now"):
        keys.settle(tmp_path, there)


def test_a_damaged_file_of_keys_is_named(folder):
    (folder / keys.KEYS).write_text('{"parts": []}')
    with pytest.raises(ManuError, match="keys.json: damaged .*Delete the file"):
        keys.settle(folder, config())


def test_the_log_says_what_stays_and_what_is_made_again_and_why(folder, caplog):
    caplog.set_level("INFO")
    keys.settle(folder, config())
    assert not caplog.text
    keys.settle(folder, config(compare=[{"preset": "paper", "alpha": 0.3}]))
    kept, again = caplog.messages
    assert "scores of paper" in kept and "mask of gradient" in kept and "vanilla" in kept
    assert "mask of paper (paper.alpha)" in again
    assert "evaluation of paper (mask of paper)" in again and "results (mask of paper)" in again
    assert "mask of gradient" not in again


class Killed(BaseException):
    pass


def settings_of_masks():
    few = {"sets": ["forget"], "tasks": ["cloze"]}  # each file is a place to be killed at
    return (
        config(evaluate=few, unlearn=[]),
        config(method={"alpha": 0.3}, evaluate={**few, "new_tokens": 9}, unlearn=[]),
        config(method={"alpha": 0.3, "harm_weight": 3.0}, evaluate=few, unlearn=[]),
    )


def settings_of_kinds():
    named = {"preset": "random", "name": "scale"}
    return (
        config_of_kinds({"kind": "scale"}, TRAINED),
        config_of_kinds(TRAINED, named),
        config_of_kinds(named, {"kind": "scale", "name": "GD"}),
    )


@pytest.mark.slow
@pytest.mark.parametrize("settings", [settings_of_kinds, settings_of_masks])
def test_killed_between_any_two_writes_nothing_is_lost_or_mixed(
    tmp_path, monkeypatch, scale, settings
):
    """Killed at each move in turn, then the same, the earlier or a third config."""
    first, second, third = settings()
    monkeypatch.setattr(os, "fsync", lambda _: None)
    done_once = tmp_path / "done"
    done_once.mkdir()
    for one in (first, second, first):
        keys.settle(done_once, one)
        fill_missing(done_once, one)
    count = len(places(done_once))
    real, number = os.replace, 0
    while True:
        folder = shutil.copytree(done_once, tmp_path / str(number))
        done = []

        def replace(source, target, done=done, last=number):
            if len(done) == last:
                raise Killed
            done.append(1)
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            try:
                keys.settle(folder, second)
                break
            except Killed:
                pass
        for path in folder.rglob("*.part"):
            path.unlink()  # as owned_folder does
        for after in ((second, first, third)[number % 3], first, third, second):
            keys.settle(folder, after)
            check_stands_under_its_key(folder, after)
            assert len(places(folder)) == count
        number += 1
    assert number > 10


def fill_missing(folder, of):
    """Make what is missing, as the stages do."""
    files = keys.FileHashes()
    for part in parts.parts_of(of, parts.made_from(of, files), files):
        for name, place in part.places.items():
            if not (folder / place).exists() and "partial" not in place:
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                (folder / place).write_text(f"{name} of {part.key}")


def check_stands_under_its_key(folder, of):
    files = keys.FileHashes()
    for part in parts.parts_of(of, parts.made_from(of, files), files):
        for name, place in part.places.items():
            if (folder / place).exists():
                assert (folder / place).read_text() == f"{name} of {part.key}"

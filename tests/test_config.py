import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from manu_jax import compare, config, run
from manu_jax.compare import CompareConfig, load_compare_config
from manu_jax.config import (
    PRESETS,
    DataSection,
    MeshSection,
    MethodSettings,
    ModelSection,
    RunConfig,
    load_config,
    named_method,
    read_yaml,
    stored_config,
    to_yaml,
    validate_config,
)
from manu_jax.folder import expand_path
from manu_jax.importance.job import EditMethod
from manu_jax.importance.methods import METHODS
from manu_jax.keys import settle
from manu_jax.models.families.registry import FAMILIES
from manu_jax.training.recipes import RECIPES
from manu_jax.types import ManuError
from manu_jax.yaml12 import read_yaml_text, yaml_text

MINIMAL = "train: {steps: 5}\n"


def load(tmp_path, text=MINIMAL, overrides=()):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return config.load_config(path, overrides)


def error_of(tmp_path, text=MINIMAL, overrides=()):
    with pytest.raises(ManuError) as caught:
        load(tmp_path, text, overrides)
    return str(caught.value)


def test_config_round_trips_through_yaml(tmp_path):
    text = "train: {steps: 5}\nmethod: {preset: gradient, alpha: 0.3}\ncompare: [paper, random]\n"
    first = load(tmp_path, text)
    assert load(tmp_path, config.to_yaml(first)) == first


def test_unknown_key_names_its_neighbours(tmp_path):
    message = error_of(tmp_path, "train: {steps: 5, learning_rat: 0.1}\n")
    assert "train.learning_rat: unknown key; did you mean learning_rate?" in message


def test_unknown_top_level_key_names_its_neighbours(tmp_path):
    assert "did you mean method" in error_of(tmp_path, MINIMAL + "metod: paper\n")


def test_all_faults_come_in_one_error(tmp_path):
    message = error_of(tmp_path, "train: {steps: -1, batch_size: 0}\nmethod: {alpha: 2}\n")
    assert "train.steps" in message and "train.batch_size" in message and "method.alpha" in message


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, "many"])
def test_alpha_outside_its_range_is_an_error(tmp_path, alpha):
    assert "method.alpha" in error_of(tmp_path, overrides=[f"method.alpha={alpha}"])


def test_sweep_alpha_outside_its_range_is_an_error(tmp_path):
    assert "sweep.alphas" in error_of(tmp_path, overrides=["sweep.alphas=[0.1, 1.0]"])


def test_unknown_preset_names_the_known_ones(tmp_path):
    message = error_of(tmp_path, overrides=["method=papper"])
    assert "unknown preset 'papper'" in message and "paper" in message


def test_a_method_starts_from_a_preset_and_may_have_a_name_of_its_own(tmp_path):
    run = load(tmp_path, MINIMAL + "compare: [{preset: gradient, name: gradient-30, alpha: 0.3}]\n")
    assert run.compare[0] == named_method("gradient", name="gradient-30", alpha=0.3)
    assert run.compare[0].signal == "gradient" and run.method.name == "paper"


def test_the_earlier_keys_of_a_method_are_read_with_a_notice(tmp_path, caplog):
    old = load(tmp_path, MINIMAL + "compare: [{base: paper, preset: paper-5, alpha: 0.05}]\n")
    assert "Write {preset: paper, name: paper-5}" in caplog.text
    caplog.clear()
    new = load(tmp_path, MINIMAL + "compare: [{preset: paper, name: paper-5, alpha: 0.05}]\n")
    assert old == new and not caplog.text


def test_override_of_a_preset_given_by_name(tmp_path):
    run = load(tmp_path, MINIMAL + "method: gradient\n", ["method.alpha=0.25"])
    assert run.method.name == "gradient" and run.method.alpha == 0.25


@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("{preset: learned, functions: {rms: 1}}", "method.functions: unknown key"),
        ("{preset: paper, forget_margin: 2}", "method.forget_margin: unknown key"),
        ("{preset: random, steps: 3}", "method.steps: unknown key"),
        ("{preset: learned, scope: tower}", "chosen over all towers together"),
        ("{preset: learned, kind: random}", "the preset 'learned' is of the kind 'learned'"),
        ("{kind: larned}", "unknown kind 'larned'; did you mean learned"),
        ("{name: a/b}", "method.name"),
        ("{signal: gradeint}", "'activation' or 'gradient'"),
        ("{combine: rati}", "unknown combination 'rati'; did you mean ratio"),
        ("{objective: log_odd}", "unknown objective 'log_odd'; did you mean log_odds"),
        ("{functions: {abs: 1}}", "method.functions.abs: unknown importance function 'abs'"),
        ("[paper]", "expected a preset's name or a mapping"),
    ],
)
def test_a_method_has_the_fields_of_its_kind_and_names_that_registries_know(tmp_path, method, part):
    assert part in error_of(tmp_path, MINIMAL + f"method: {method}\n")


TRAINS = "{kind: trained, name: GD, objective: gradient_difference, epochs: 2}"


def test_a_method_may_be_one_that_trains_and_reads_back(tmp_path):
    text = (
        MINIMAL
        + f"method: {TRAINS}\ncompare: [random, {{kind: trained, name: N, objective: npo}}]\n"
    )
    run = load(tmp_path, text + "unlearn: [{name: P, objective: system_prompt}]\n")
    assert run.names == ("GD", "random", "N", "P")
    assert [one.name for one in run.methods] == [one.name for one in run.masks] == ["random"]
    assert [one.name for one in run.trained] == ["GD", "N", "P"]
    assert (run.method.objective, run.method.epochs) == ("gradient_difference", 2)
    assert load(tmp_path, config.to_yaml(run)) == run
    stored = read_yaml_text(config.to_yaml(run))
    assert stored["method"]["kind"] == "trained" and stored_config(stored, "stored") == run


def test_a_preset_may_train_wherever_a_method_stands(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "climb", {"kind": "trained", "objective": "gradient_ascent"})
    run = load(
        tmp_path,
        MINIMAL + "method: climb\ncompare: [{preset: climb, name: climb-3, epochs: 3}]\n"
        "unlearn: [{preset: climb, name: climb-4, steps: 4}]\n",
        ["method.learning_rate=1e-4", "method.prompt=no: colon"],
    )
    assert run.names == ("climb", "climb-3", "climb-4")
    assert [one.objective for one in run.trained] == ["gradient_ascent"] * 3
    assert (run.method.learning_rate, run.method.prompt) == (1e-4, "no: colon")
    assert (run.compare[0].epochs, run.unlearn[0].steps) == (3, 4)
    assert load(tmp_path, config.to_yaml(run)) == run


def test_an_edit_method_is_known_by_its_kind(tmp_path, monkeypatch):
    class Turn(MethodSettings):
        name: str = "turn"
        kind: Literal["turn"] = "turn"
        angle: float = 1.0

    monkeypatch.setitem(METHODS, "turn", EditMethod(Turn, lambda job: None))
    run = load(tmp_path, MINIMAL + "method: {kind: turn}\ncompare: [paper]\n", ["method.angle=2"])
    assert run.methods == (run.method, run.compare[0]) and run.masks == (run.compare[0],)
    assert run.method.angle == 2 and load(tmp_path, config.to_yaml(run)) == run
    assert "method.alpha: unknown key; known: name, kind, angle" in error_of(
        tmp_path, MINIMAL + "method: {kind: turn, alpha: 0.1}\n"
    )


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "method: {name: a, objective: npo}",
            "method: the objective 'npo' trains the model: add k",
        ),
        ("method: {kind: trained, objective: npo}", "method.name: Field required"),
        ("method: {kind: trained, name: a}", "method.objective: Field required"),
        (
            "compare: [{kind: trained, name: a, objective: npo, alpha: 0.1}]",
            "compare.0.alpha: unkn",
        ),
        (
            "compare: [{kind: trained, name: a, objective: npo, delta: 1}]",
            "npo has no delta; it has",
        ),
        (
            "compare: [{kind: traned, name: a}]",
            "compare.0: unknown kind 'traned'; did you mean tra",
        ),
        (
            "compare: [{preset: paper, kind: trained}]",
            "compare.0: kind is 'trained', but the preset",
        ),
        (
            "unlearn: [paper]",
            "unlearn.0: the kind 'statistics' does not train the model: put it und",
        ),
        ("unlearn: [3]", "unlearn.0: expected a preset's name or a mapping, got 3"),
        (
            "method: {kind: trained, name: a, objective: system_prompt}",
            "Put it under compare or un",
        ),
        (
            f"method: {TRAINS}\nunlearn: [{{name: GD, objective: npo}}]",
            "stands once; twice: ['GD']",
        ),
        (
            "compare: [{kind: trained, name: vanilla, objective: npo}]",
            "['vanilla'] name other models",
        ),
        ("method: {preset: suppress, target: own}", "method: target: suppress has no aim but what"),
        ("method: {preset: erase, epochs: 3}", "method: epochs: erase counts steps; give steps"),
        ("method: {preset: erase, steps: null}", "method: epochs: erase counts steps; give steps"),
        ("method: {preset: erase, loss_on: all}", "method: loss_on: the loss of erase is on answ"),
        (
            "unlearn: [{name: a, objective: gradient_ascent, target: strangers, loss_on: all}]",
            "unlearn.0: loss_on: target: strangers aims at answers; give loss_on: answer",
        ),
        ("method: {preset: erase, hidden: 0}", "method: keep_hidden: it is measured in units of"),
        (
            "unlearn: [{name: a, objective: npo, batch_keep: 3}]",
            "unlearn.0: npo takes no batch_keep",
        ),
        (
            "unlearn: [{name: a, objective: npo, strangers_each: 3}]",
            r"strangers_each: 3; it is how many of the 16 strangers count for a fact",
        ),
        (
            "unlearn: [{name: a, objective: npo, kept_strangers: 3}]",
            "npo takes no batch_keep and no",
        ),
        ("method: {preset: erase, name: ..}", "method.name: String should match pattern"),
        (
            "method: {preset: suppress, neurons: 4}",
            "method.neurons: expected a mapping with keys of count, layers, places, got 4",
        ),
        (
            "method: {preset: paper, layers: {text: [99]}}",
            "method.layers.text: expected a mapping, got [99]",
        ),
        (
            "audit: 3",
            "audit: expected a mapping with keys of level, methods, learning_rates, steps, "
            "remat, lora, got 3",
        ),
        ("audit: {learning_rates: 1e-3}", "audit.learning_rates: expected a list, got 0.001"),
        ("audit: {methods: []}", "audit.methods: Tuple should have at least 1 item"),
        ("audit: {learning_rates: [0]}", "audit.learning_rates.0: Input should be greater than 0"),
        ("audit: {learning_rates: [1, 1]}", "audit: learning_rates: each stands once; got [1.0"),
        (
            "audit: {lora: {targets: [text.layers.mlp, vision]}}",
            "audit: lora.targets: vision: attacks train the text decoder alone",
        ),
        ("audit: much", "audit.level: Input should be 'none', 'cheap' or 'full', got 'much'"),
        ("audit: {rates: [1]}", "audit.rates: unknown key"),
        ("audit: {methods: [papr]}", "audit.methods: no methods ['papr']; known: headline, all, "),
    ],
)
def test_faults_of_methods_that_train_and_of_the_audit_name_the_place(tmp_path, text, part):
    message = error_of(tmp_path, f"{MINIMAL}{text}\n")
    assert part in message and "default factory" not in message


def test_the_audit_is_a_level_or_a_mapping(tmp_path):
    assert load(tmp_path).audit.level == "cheap"
    run = load(tmp_path, MINIMAL + "audit: full\n")
    assert run.audit.level == "full" and load(tmp_path, config.to_yaml(run)) == run
    run = load(tmp_path, MINIMAL + "audit: full\n", ["audit.steps=3", "audit.methods=all"])
    assert (run.audit.level, run.audit.steps, run.audit.methods) == ("full", 3, ("all",))
    assert load(tmp_path, overrides=["audit=none"]).audit.level == "none"


def test_a_fault_inside_a_list_is_not_told_twice(tmp_path):
    # A key that is not known comes first.
    text = "method: {preset: erase, modalities: [audio]}\naudit: {rates: 1, steps: many}\n"
    message = error_of(tmp_path, MINIMAL + text)
    assert "method.modalities.0: Input should be" in message and message.count("audio") == 1
    assert "audit.rates: unknown key" in message and "audit.steps: expected a whole" in message


def test_faults_of_all_methods_come_in_one_error(tmp_path):
    text = MINIMAL + "method: {alpha: 2}\ncompare: [random, {preset: learned, step: 1}]\n"
    message = error_of(tmp_path, text)
    assert "method.alpha: Input should be less than 1" in message
    assert "compare.1.step: unknown key; did you mean steps" in message


def test_two_methods_of_one_name_are_an_error(tmp_path):
    assert "stands once" in error_of(tmp_path, MINIMAL + "method: paper\ncompare: [paper]\n")


def test_key_given_twice_is_an_error(tmp_path):
    message = error_of(tmp_path, "seed: 1\nseed: 2\n")
    assert "'seed' is given twice" in message and "line 2" in message


def test_broken_yaml_names_the_line(tmp_path):
    assert "line 3" in error_of(tmp_path, "seed: 1\ntrain: [\n")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ManuError, match=r"absent.yaml: No such file"):
        config.load_config(tmp_path / "absent.yaml")


def test_override_without_value_is_an_error(tmp_path):
    assert "expected key.path=value" in error_of(tmp_path, overrides=["seed"])


def test_override_below_a_value_is_an_error(tmp_path):
    assert "has no keys" in error_of(tmp_path, MINIMAL + "seed: 3\n", ["seed.deep=1"])


def test_override_inside_a_list_says_that_lists_are_given_whole(tmp_path):
    message = error_of(tmp_path, MINIMAL + "compare: [paper]\n", ["compare.0.alpha=0.1"])
    assert "'compare' is a list, which is given whole: 'compare=[...]'." in message


def test_model_must_be_given_or_trained(tmp_path):
    assert "model.path is not set" in error_of(tmp_path, "seed: 1\n")


def test_registries_are_imported_when_a_name_is_checked_and_not_before():
    code = (
        "import sys; from manu_jax.config import RunConfig; RunConfig(model={'path': 'm'}); "
        "rooms = {'importance', 'training', 'data', 'models', 'evaluation'}; "
        "print(sorted(rooms & {name.split('.')[1] for name in sys.modules if 'manu_jax.' in name}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stdout.strip()) == (0, "[]"), found.stderr


def test_config_is_frozen(tmp_path):
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path).seed = 3


@pytest.mark.parametrize("name", ["vanilla", "retrained", "paper"])
def test_names_of_trained_baselines_are_their_own(tmp_path, name):
    text = MINIMAL + f"unlearn: [{{name: {name}, objective: npo}}]\n"
    message = error_of(tmp_path, text)
    assert ("stands once" if name == "paper" else "name other models") in message


def test_an_unknown_objective_names_the_known_ones(tmp_path):
    message = error_of(tmp_path, MINIMAL + "unlearn: [{name: a, objective: nop}]\n")
    assert "unlearn.0.objective: unknown objective 'nop'; did you mean npo?" in message
    assert "'system_prompt'" in message


def test_an_unknown_benchmark_names_the_known_ones(tmp_path):
    message = error_of(tmp_path, overrides=["data.benchmark=mllmy"])
    assert "unknown benchmark 'mllmy'; did you mean mllmu? (known: 'synthetic', 'mllmu'" in message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("1e3", 1000.0),
        ("1:30", "1:30"),
        ("yes", "yes"),
        ("on", "on"),
        ("2001-01-01", "2001-01-01"),
        ("True", True),
        ("~", None),
        ("-.inf", float("-inf")),
    ],
)
def test_yaml_is_read_as_version_1_2_and_written_so_that_it_reads_back(text, value):
    assert read_yaml_text(text) == value and type(read_yaml_text(text)) is type(value)
    for written in ({"a": value}, {"a": text}, {"a": f"{text} # not a comment"}):
        assert read_yaml_text(yaml_text(written)) == written


@pytest.mark.parametrize(
    "text",
    [
        "&a [*a]", "a: &a {b: *a}", "!!int x", "!!binary x", "!!python/name:os.system", "[" * 3000,
        '"\\UFFFFFFFF"', "!!set {a}", "<<: 3", "9" * 5000, "? [1]\n: 2", "a: 1\na: 2", "\0",
    ],
)  # fmt: skip
def test_what_is_not_plain_yaml_is_an_error(tmp_path, text):
    assert "run.yaml" in error_of(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("seed=yes", "seed: expected a whole number, got 'yes'"),
        ("seed=true", "seed: expected a whole number, got True"),
        ("seed=1:30", "seed: expected a whole number, got '1:30'"),
        ("train.learning_rate=fast", "train.learning_rate: expected a number, got 'fast'"),
        ("train.retrained=yes", "train.retrained: expected true or false, got 'yes'"),
        ("train.retrained=1", "train.retrained: expected true or false, got 1"),
        ("sweep.alphas=[true]", "sweep.alphas: expected a number, got True"),
        ("method.normalise=on", "method.normalise: expected true or false, got 'on'"),
    ],
)
def test_a_number_is_not_made_of_words_nor_a_truth_of_anything_else(tmp_path, override, part):
    assert part in error_of(tmp_path, overrides=[override])


def test_an_override_of_a_text_field_is_taken_as_it_is_written(tmp_path):
    texts = (
        "model.path=/data/my model #2",
        "output=010",
        "method.name=no",
        "train.schedule=linear",
    )
    found = load(tmp_path, overrides=[*texts, "seed=010", "cache=null", "data.train_path="])
    assert (found.model.path, found.output, found.method.name) == ("/data/my model #2", "010", "no")
    assert (found.seed, found.cache, found.data.train_path) == (10, None, None)
    assert found.train.schedule == "linear"


def test_an_override_inside_the_run_of_a_comparison_is_taken_as_it_is_written():
    path = Path(__file__).parents[1] / "configs" / "demo_compare.yaml"
    found = load_compare_config(path, ["run.data.path=a #1", "run.seeds=010", "seeds=[7]"])
    assert found.run["data"]["path"] == "a #1" and found.run["seeds"] == 10 and found.seeds == (7,)
    assert "output" in CompareConfig.model_fields


def test_home_folders_are_expanded_everywhere(tmp_path, monkeypatch, error_of):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(
        "output: ~/first\ncache: ~/cache\ntrain: {steps: 1}\n"
        "data: {num_people: 6, num_celebrities: 1, num_general: 4}\n"
    )
    assert run.main(["--config", "~/run.yaml", "--only", "data"]) == 0
    assert run.main(["--config=~/run.yaml", "--output=~/second", "--only", "data"]) == 0
    places = ("data.path=~/no", "model.path=~/no", "model.retrained_path=~/no")
    for number, place in enumerate(places):
        message = error_of(
            "--config=~/run.yaml", f"--output=~/{number}", "--only", "data,train", place
        )
        assert f"{tmp_path}/no" in message
    assert {"first", "second", "cache"} <= {path.name for path in tmp_path.iterdir()}
    assert not (tmp_path / "~").exists()
    with pytest.raises(ManuError, match="~nobody-here/x: .*Give the whole path"):
        expand_path("~nobody-here/x")


CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_that_is_shipped_is_valid_and_says_its_command(path):
    first, *_ = path.read_text().splitlines()
    module = "compare" if "compare" in path.name else "run"
    shown = path.relative_to(Path(__file__).parents[1])
    assert first.startswith(f"# python -m manu_jax.{module} --config {shown}")
    if module == "compare":
        config = load_compare_config(path)
        number = 4 if path.name == "smollm2-facts_compare.yaml" else 3
        assert {len(method.trials) for method in config.methods} == {number}
        return
    config = load_config(path, NEEDED if needs_paths(path) else [])
    if "mllmu" in path.parts:
        assert config.evaluate.protocol == "official_few_shot"
        assert str(config.data.forget) in path.stem.rpartition("forget")[2]
        published = {one.name: one for one in config.unlearn}["GradDiff-official"]
        assert published.objective == "gradient_difference_official" and published.lora is not None
        with pytest.raises(ManuError, match="model.path is not set"):
            load_config(path, ["data.path=x"])


def test_every_preset_and_objective_has_settings_for_a_real_language_model():
    folder = Path(__file__).parents[1] / "configs"
    methods, of_the_demo = (
        {one.name: one.settings(0) for one in load_compare_config(folder / name).methods}
        for name in ("smollm2_compare.yaml", "demo_compare.yaml")
    )
    assert {*methods, *(one.get("preset") for one in methods.values())} >= {*PRESETS}
    found = {one.get("objective") or one["preset"] for one in methods.values()}
    assert found >= {*RECIPES}, {*RECIPES} - found
    assert methods.keys() >= of_the_demo.keys(), of_the_demo.keys() - methods.keys()


NEEDED = ["data.path=x", "model.path=y"]


def needs_paths(path):
    """Whether a shipped config leaves it to its user to name the data and the model."""
    return "data.path=DIR" in path.read_text().splitlines()[0]


def runs_of(path, folder):
    """Return the configs of all runs that a shipped config makes."""
    if "compare" not in path.name:
        return [load_config(path, NEEDED if needs_paths(path) else [])]
    whole = load_compare_config(path, [f"output={folder / 'compare'}"])
    trials = [(one, 1, f"{one.name}.1") for one in whole.methods]
    common = {"output": folder / "cell", "where": "compare", "audit": whole.audit.of(["erase.1"])}
    return [
        compare._run_config(whole, trials, seed=seed, share=share, **common)
        for seed, share in whole.cells[:2]
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_run_reads_the_config_that_it_wrote(path, tmp_path, caplog):
    for number, one in enumerate(runs_of(path, tmp_path)):
        folder = tmp_path / str(number)
        for _ in range(2):  # the second call reads what the first one wrote
            folder.mkdir(exist_ok=True)
            settle(folder, one)
        assert load_config(folder / "config.yaml") == one
        (tmp_path / "again.yaml").write_text(to_yaml(one))
        assert load_config(tmp_path / "again.yaml") == one
    assert not caplog.text  # no earlier keys


EARLIER_METHOD = (
    "method={preset: gradient, alpha: 0.45, rounds: 8, keep_per_forget: 2, remat: none}"
)


@pytest.mark.parametrize(
    ("golden", "path", "overrides"),
    [
        ("mllmu", "mllmu/llava-1.5-7b-forget5.yaml", NEEDED),
        # As there was no share, and the first method was another.
        ("demo", "demo.yaml", ["data.keep_share=1", "compare=[]", EARLIER_METHOD]),
    ],
)
def test_a_folder_from_before_methods_had_names_goes_on(golden, path, overrides, tmp_path):
    here = Path(__file__).parent
    stored = (here / "golden" / f"config_before_{golden}.yaml").read_text()
    (tmp_path / "config.yaml").write_text(stored)
    config = load_config(here.parent / "configs" / path, overrides)
    (tmp_path / "mask.safetensors").write_text("a mask")
    settle(tmp_path, config)
    assert (tmp_path / "mask.safetensors").exists()
    changed = config.model_dump(mode="json")
    changed["method"]["alpha"] = 0.5
    settle(tmp_path, validate_config(changed, "changed"))
    (moved,) = tmp_path.glob("earlier/*/mask.safetensors")
    assert moved.read_text() == "a mask" and not (tmp_path / "mask.safetensors").exists()


def test_a_config_from_before_prompts_could_be_chosen_has_the_family_s_strings():
    values = {"model": {"path": "m"}}
    assert stored_config(values, "old").model.prompt == "benchmark"
    assert values == {"model": {"path": "m"}}
    assert validate_config(values, "new").model.prompt == "template"
    trained = {"model": {"path": None}, "train": {"steps": 1}}
    assert stored_config(trained, "old").model.prompt == "template"


def test_a_config_from_before_there_was_a_share_gave_methods_everybody():
    values = {"model": {"path": "m"}, "data": {"forget": 5}}
    assert stored_config(values, "old").data.keep_share == 1
    assert stored_config({"model": {"path": "m"}}, "old").data.keep_share == 1
    assert validate_config(values, "new").data.keep_share == 0.67
    given = {"model": {"path": "m"}, "data": {"keep_share": 0.5}}
    assert stored_config(given, "new").data.keep_share == 0.5


def test_what_is_known_in_part_is_of_the_facts_alone():
    of_facts = {"model": {"path": "m"}, "data": {"benchmark": "facts", "partly_known": True}}
    assert validate_config(of_facts, "test").data.partly_known
    with pytest.raises(ManuError, match="partly_known is of the benchmark facts alone, and bench"):
        validate_config({"data": {"partly_known": True}}, "test")


@pytest.mark.parametrize("share", ["0", "1.01", "-1", "some"])
def test_a_share_outside_zero_and_one_is_an_error(tmp_path, share):
    assert "data.keep_share" in error_of(tmp_path, overrides=[f"data.keep_share={share}"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_config_for_a_model_of_any_size_has_its_meshes_chosen(path):
    if needs_paths(path):
        assert load_config(path, NEEDED).mesh == MeshSection(choice="auto")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_only_published_numbers_are_of_people_that_methods_were_given(path):
    is_published = needs_paths(path) and path.name != "request.yaml"
    expected = 1.0 if is_published else 0.67
    values = read_yaml_text(path.read_text())
    data = values.get("run", values)["data"]
    assert data.get("keep_share", DataSection().keep_share) == expected


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_published_configs_ask_with_the_published_strings(path):
    # Facts are sentences to go on with, not turns of a chat; smollm2.yaml wants short prompts.
    is_plain = "mllmu" in path.parts or "facts" in path.name
    is_plain = is_plain or path.name in ("smollm2.yaml", "smollm2_audit.yaml", "umu.yaml")
    expected = "benchmark" if is_plain else "template"
    if "compare" not in path.name:
        overrides = NEEDED if needs_paths(path) else []
        assert load_config(path, overrides).model.prompt == expected


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_reads_back(name):
    method = named_method(name)
    assert method.name == name
    assert RunConfig(model={"path": "m"}, method=method.model_dump(mode="json")).method == method


def test_a_merged_yaml_mapping_may_be_changed_and_a_key_given_twice_may_not(tmp_path):
    def parsed(text):
        (tmp_path / "x.yaml").write_text(text)
        return read_yaml(tmp_path / "x.yaml")

    assert parsed("a: &one {x: 1, y: 2}\nb: {<<: *one, y: 3}\n")["b"] == {"x": 1, "y": 3}
    with pytest.raises(ManuError, match="'y' is given twice"):
        parsed("a: &one {x: 1}\nb: {<<: *one, y: 3, y: 4}\n")


def test_an_unknown_family_names_the_known_ones(tmp_path):
    message = error_of(tmp_path, overrides=["model.family=lava"])
    known = "llava or llama or mllama"
    assert f"model.family: unknown family 'lava'; did you mean {known}?" in message
    assert f"(known: {', '.join(map(repr, FAMILIES))})" in message


# Each breaks one rule; other sizes are as in EVEN, which every family takes.
EVEN = ["model.vision.patch_size=14"]
UNEVEN = {
    "vision.image_size has to be a multiple of 2 · vision.patch_size": "model.vision.patch_size=8",
    "vision.width has to be a multiple of 4 · vision.num_heads": "model.vision.num_heads=64",
    "vision.num_neurons has to be a multiple of vision.width": "model.vision.num_neurons=500",
    "text.width has to be a multiple of connector.num_heads": "model.connector.num_heads=3",
}
RULES = {  # numbers of UNEVEN
    "llava": [],
    "llava_next": [],
    "llava_onevision": [],
    "paligemma": [],
    "gemma3": [0],
    "idefics2": [3],
    "qwen2_vl": [0, 1, 2],
    "qwen2_5_vl": [0, 1],
    "qwen3_vl": [0, 1],
    "internvl": [0],
    "idefics3": [0],
    "smolvlm": [0],
    "llama": [],
    "mllama": [],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_its_rules_for_sizes(tmp_path, family):
    usual = [f"model.family={family}", *EVEN]
    assert load(tmp_path, overrides=usual).model.family == family
    for number, (fault, size) in enumerate(UNEVEN.items()):
        if number in RULES[family]:
            assert f"model: {fault}; got " in error_of(tmp_path, overrides=[*usual, size])
        else:
            assert load(tmp_path, overrides=[*usual, size]).model.family == family


def test_all_faults_of_sizes_come_in_one_error(tmp_path):
    both = ["model.family=qwen2_5_vl", "model.vision.patch_size=56", "model.vision.num_heads=64"]
    message = error_of(tmp_path, overrides=both)
    assert "4 · vision.num_heads; got 128 and 256; vision.image_size has to be" in message


def test_a_family_from_outside_the_package_is_known_to_the_config(monkeypatch, tmp_path):
    faults = ["vision.width is too narrow"]
    dummy = dataclasses.replace(
        FAMILIES["llava"], model_type="dummy", check_sizes=lambda section: faults
    )
    monkeypatch.setitem(FAMILIES, "dummy", dummy)
    message = error_of(tmp_path, overrides=["model.family=dummy"])
    assert "model: vision.width is too narrow" in message
    faults.clear()
    assert load(tmp_path, overrides=["model.family=dummy"]).model.family == "dummy"


def test_the_default_sizes_fit_the_default_family():
    section = ModelSection()
    assert FAMILIES[section.family].check_sizes(section) == []

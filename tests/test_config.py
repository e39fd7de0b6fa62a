import dataclasses
from pathlib import Path

import pytest

from manu_jax import config
from manu_jax.compare import load_compare_config
from manu_jax.config import ModelSection, load_config, read_yaml
from manu_jax.models.families.registry import FAMILIES
from manu_jax.types import ManuError

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


def test_preset_takes_changes_and_a_base(tmp_path):
    run = load(tmp_path, MINIMAL + "compare: [{base: paper, preset: paper-5, alpha: 0.05}]\n")
    assert run.compare[0].preset == "paper-5"
    assert run.compare[0].functions == config.PRESETS["paper"].functions
    assert run.compare[0].alpha == 0.05


def test_override_of_a_preset_given_by_name(tmp_path):
    run = load(tmp_path, MINIMAL + "method: gradient\n", ["method.alpha=0.25"])
    assert run.method.preset == "gradient" and run.method.alpha == 0.25


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


def test_model_must_be_given_or_trained(tmp_path):
    assert "model.path is not set" in error_of(tmp_path, "seed: 1\n")


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
    assert "unlearn.0.objective" in message and "'npo'" in message


CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_that_is_shipped_is_valid_and_says_its_command(path):
    first, *_ = path.read_text().splitlines()
    module = "compare" if "compare" in path.name else "run"
    shown = path.relative_to(Path(__file__).parents[1])
    assert first.startswith(f"# python -m manu_jax.{module} --config {shown}")
    if module == "compare":
        config = load_compare_config(path)
        assert {len(method.trials) for method in config.methods} == {3}
        return
    needed = ["data.path=x", "model.path=y"] if "mllmu" in path.parts else []
    config = load_config(path, needed)
    if needed:
        assert config.evaluate.protocol == "official_few_shot"
        assert str(config.data.forget) in path.stem.rpartition("forget")[2]
        published = {one.name: one for one in config.unlearn}["GradDiff-official"]
        assert published.objective == "gradient_difference_official" and published.lora is not None
        with pytest.raises(ManuError, match="model.path is not set"):
            load_config(path, ["data.path=x"])


def test_a_merged_yaml_mapping_may_be_changed_and_a_key_given_twice_may_not(tmp_path):
    def parsed(text):
        (tmp_path / "x.yaml").write_text(text)
        return read_yaml(tmp_path / "x.yaml")

    assert parsed("a: &one {x: 1, y: 2}\nb: {<<: *one, y: 3}\n")["b"] == {"x": 1, "y": 3}
    with pytest.raises(ManuError, match="'y' is given twice"):
        parsed("a: &one {x: 1}\nb: {<<: *one, y: 3, y: 4}\n")


def test_an_unknown_family_names_the_known_ones(tmp_path):
    message = error_of(tmp_path, overrides=["model.family=llama"])
    assert f"model.family: unknown family 'llama'; known: {', '.join(FAMILIES)}" in message


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
    "idefics3": [0],
    "smolvlm": [0],
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

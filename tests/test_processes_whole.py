"""A whole run with every kind of method gives one process's rows on two and on four processes."""

import json
import typing

import pytest
from test_processes import run_on

from manu_jax.config import UnlearnSection, load_config
from manu_jax.config.presets import PRESETS
from manu_jax.config.training import TRAINED
from manu_jax.evaluation.analyses.registry import ANALYSES
from manu_jax.evaluation.audit.registry import ATTACKS
from manu_jax.importance.methods import METHODS
from manu_jax.training.recipes import RECIPES
from manu_jax.types import RETRAINED, VANILLA
from manu_jax.yaml12 import read_yaml_text

CONFIG = """
seed: 0
cache: null
mesh: {data: 2, fsdp: 2, tensor: 2}
score_batch: 8
data: {num_people: 6, num_celebrities: 4, num_general: 8, forget: 15}
model:
  vision: {image_size: 28, patch_size: 14, width: 16, num_layers: 2, num_heads: 2, num_neurons: 16}
  text: {width: 16, num_layers: 2, num_heads: 2, num_key_heads: 2, num_neurons: 32, context: 512}
train: {steps: 2, base_steps: 1, batch_size: 8, memory_gate: 0, checkpoint_every: 1}
method: {preset: gradient, rounds: 1, fade: null, keep_per_forget: null, alpha: 0.2}
compare:
  # No gate is closed in the first three steps: the first one of Adam moves them all by as much
  - {preset: learned, alpha: 0.05, steps: 30, batch_forget: 8, batch_keep: 8}
  - {preset: paper, alpha: auto, auto: {alphas: [0.1, 0.3], people: 1}}
  - {preset: official-code, alpha: 0.1, layers: {}}
  - {preset: random, alpha: 0.1}
  - {preset: kvw}
  - {preset: ridge}
  - {preset: suppress, steps: 2, batch_size: 8}
  - {preset: suppress-low-rank, steps: 1, batch_size: 8,
     lora: &down {rank: 2, alpha: 4.0, dropout: 0.0, targets: [text.layers.mlp.down]}}
  - {preset: suppress, name: suppress-LoRA, steps: 1, batch_size: 8, trains: all, neurons: null,
     lora: *down}
  - {preset: erase, steps: 2, batch_size: 8}
  - {kind: trained, name: LoRA, objective: gradient_difference, steps: 2, batch_size: 8,
     lora: {rank: 2, alpha: 4.0}, learning_rate: 1e-3}
unlearn:
  - {name: prompt, objective: system_prompt, prompt: "Do not tell of {names}.\\n"}
  - &step {name: GA, objective: gradient_ascent, steps: 1, batch_size: 8, learning_rate: 1e-3}
  - {<<: *step, name: all-MLPs, objective: gradient_difference, trains: all_mlps}
  - {<<: *step, name: GradDiff-alternating, objective: gradient_difference_alternating}
  - &passes {name: GradDiff-official, objective: gradient_difference_official, batch_size: 32,
     modalities: [text], learning_rate: 1e-3}
  - {<<: *passes, name: KL-official, objective: kl_minimisation_official}
  - &strangers {<<: *step, name: GradDiff-strangers, objective: gradient_difference,
     target: strangers, strangers: 2, views: 2, keep_views: 2}
  - {<<: *strangers, name: KL-strangers, objective: kl_minimisation}
  - {<<: *step, name: PDU, objective: gradient_difference, steps: 2, modalities: [text],
     primal_dual: {bound: 0.3}}
  - {<<: *step, name: KL, objective: kl_minimisation}
  - {<<: *step, name: NPO, objective: npo}
  - {<<: *step, name: NPO-official, objective: npo_official}
  - {<<: *step, name: SimNPO, objective: simnpo}
  - {<<: *step, name: DPO-IDK, objective: dpo_idk}
  - {<<: *step, name: AltPO, objective: altpo}
  - {<<: *step, name: UNDIAL, objective: undial}
  - {<<: *step, name: RMU, objective: rmu}
  - {<<: *step, name: WGA, objective: wga}
  - {<<: *step, name: SatImp, objective: satimp}
  - {<<: *step, name: IDK, objective: idk}
  - {<<: *step, name: MMUnlearner, objective: mmunlearner}
sweep: {alphas: [0.3], max_people: 2, null_groups: 2, null_facts: 4}
evaluate: {new_tokens: 2, max_people: 2, resamples: 50}
calibration: {draws: 1, sizes: [0.5], facts: 4}
audit: {level: full, methods: [headline, suppress], steps: 2, learning_rates: [1e-3]}
"""
# The synthetic benchmark has no published protocol, and so nothing to judge; two layers are too few
# for a depth, and of general ability a row says that it is left out (asked_worker.py).
NOT_MEASURED, NOT_ATTACKED = {"published", "judged"}, {"depth"}
OF_THE_PLACE = {"config", "timings"}  # the folder and the processes; seconds
SECONDS = 1800  # on two busy cores a run takes 5 minutes on one process, 20 on four
# Sums over devices in another order move a likelihood by 1e-6, and by 5e-4 after a first step of
# Adam on gradients that are 0 but for rounding: of a KL from the model itself, of keys' biases.
CLOSE = 2e-3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The run folders of one process, of two and of four: eight devices each."""
    folder = tmp_path_factory.mktemp("whole")
    run_on(folder, CONFIG, 2, 4, seconds=SECONDS)
    return folder


def results_of(folders, count):
    """Return what one process found, and what several did."""
    return (
        json.loads((folders / str(number) / "results.json").read_text()) for number in (1, count)
    )


def test_the_run_has_every_kind_of_method(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    config = load_config(tmp_path / "config.yaml")
    values = read_yaml_text(CONFIG)
    presets = {one.get("preset") for one in (values["method"], *values["compare"])}
    assert presets >= {*PRESETS}, {*PRESETS} - presets
    assert {one.kind for one in config.all_methods} == {*METHODS, TRAINED}
    assert {one.objective for one in config.trained} == {*RECIPES}
    trains = typing.get_args(UnlearnSection.model_fields["trains"].annotation)
    assert {one.trains for one in config.trained} == {*trains}
    assert {one.target for one in config.trained} == {"own", "strangers"}
    assert any(one.primal_dual for one in config.trained)


@pytest.mark.slow
@pytest.mark.pods
@pytest.mark.parametrize("count", [2, 4])
def test_a_run_of_all_kinds_of_methods_gives_the_rows_of_one_process(folders, count):
    one, many = results_of(folders, count)
    config = load_config(folders / "config.yaml")
    assert {*one["models"]} == {VANILLA, RETRAINED, *config.names}
    assert len(one["rows"]) > 100 * len(one["models"])
    assert not differing(one["rows"], many["rows"])


@pytest.mark.slow
@pytest.mark.pods
@pytest.mark.parametrize("count", [2, 4])
def test_all_else_that_is_found_is_that_of_one_process(folders, count):
    """Neurons too are the same, in the same order: no two scores are equal but for rounding."""
    one, many = results_of(folders, count)
    assert one.keys() == many.keys()
    assert {name for name in ANALYSES if not one[name]} == NOT_MEASURED
    assert {row["attack"] for row in one["audit"]} == {*ATTACKS} - NOT_ATTACKED
    for name in one.keys() - {"rows"} - OF_THE_PLACE:
        assert not differing(one[name], many[name]), name


@pytest.mark.slow
@pytest.mark.pods
def test_a_slip_in_a_training_would_show(folders):
    """Each method changes likelihoods by ten times what counts as close."""
    results, _ = results_of(folders, 1)
    found = {name: {} for name in results["models"]}
    for row in results["rows"]:
        if row["metric"] == "log_likelihood":
            found[row["model"]][row["set"], row["modality"]] = row["value"]
    vanilla = found.pop(VANILLA)
    for name, values in found.items():
        assert max(abs(values[place] - vanilla[place]) for place in vanilla) > 10 * CLOSE, name


def differing(here, there, place=()):
    """Return where two JSON values differ: texts and whole numbers at all, others beyond CLOSE."""
    if isinstance(here, dict) and isinstance(there, dict) and here.keys() == there.keys():
        parts = [(key, here[key], there[key]) for key in here]
    elif isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        parts = [(number, *pair) for number, pair in enumerate(zip(here, there, strict=True))]
    else:
        is_close = here == there
        if isinstance(here, float) and isinstance(there, float):
            is_close = here == pytest.approx(there, rel=0, abs=CLOSE)
        return [] if is_close else [(place, here, there)]
    return [found for key, *both in parts for found in differing(both[0], both[1], (*place, key))]


@pytest.mark.slow
@pytest.mark.pods
@pytest.mark.parametrize("count", [2, 4])
def test_the_same_files_are_left(folders, count):
    one, many = (
        {
            path.relative_to(folders / str(number)).as_posix()
            for path in (folders / str(number)).rglob("*")
        }
        for number in (1, count)
    )
    assert one == many

"""The analyses by the keys of their rows in results.json, in the order they are measured in."""

from manu_jax.evaluation.analyses import (
    ability,
    alpha_choice,
    audit,
    calibration,
    differences,
    distances,
    judged,
    leakage,
    neurons,
    null,
    published,
    strangers,
    sweep,
)
from manu_jax.evaluation.analyses.analysis import Analysis

ANALYSES: dict[str, Analysis] = {
    "alpha_sweep": sweep.ANALYSIS,
    "alpha_choice": alpha_choice.ANALYSIS,
    "null": null.ANALYSIS,
    "leakage": leakage.ANALYSIS,
    "differences": differences.ANALYSIS,
    "distances": distances.ANALYSIS,
    "ability": ability.ANALYSIS,
    "published": published.ANALYSIS,
    "judged": judged.ANALYSIS,
    "single_neurons": neurons.ANALYSIS,
    "calibration": calibration.ANALYSIS,
    "audit": audit.ANALYSIS,
    "strangers": strangers.ANALYSIS,
}

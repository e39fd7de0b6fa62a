"""The analyses by the keys of their rows in results.json, in the order they are measured in."""

from manu_jax.evaluation.analyses import audit, differences, distances, leakage, sweep
from manu_jax.evaluation.analyses.analysis import Analysis

ANALYSES: dict[str, Analysis] = {
    "alpha_sweep": sweep.ANALYSIS,
    "leakage": leakage.ANALYSIS,
    "differences": differences.ANALYSIS,
    "distances": distances.ANALYSIS,
    "audit": audit.ANALYSIS,
}

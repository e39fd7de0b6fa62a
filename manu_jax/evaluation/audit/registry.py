"""The attacks by the names that their rows carry, in the order of the report."""

from manu_jax.evaluation.audit import relearning, tuning
from manu_jax.evaluation.audit.attack import PLAIN, Attack

ATTACKS: dict[str, Attack] = {
    "plain": PLAIN,
    "tuning": tuning.ATTACK,
    "relearning": relearning.ATTACK,
}

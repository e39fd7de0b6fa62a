"""The attacks by the names that their rows carry, in the order of the report."""

from manu_jax.evaluation.audit import (
    asked,
    depth,
    membership,
    offered,
    relearning,
    removed,
    rounding,
    tuning,
)
from manu_jax.evaluation.audit.attack import PLAIN, Attack

ATTACKS: dict[str, Attack] = {
    "plain": PLAIN,
    "asked": asked.ATTACK,
    "offered": offered.ATTACK,
    "tuning": tuning.ATTACK,
    "relearning": relearning.ATTACK,
    "removed": removed.ATTACK,
    "rounding": rounding.ATTACK,
    "depth": depth.ATTACK,
    "membership": membership.ATTACK,
}

"""Benign tuning: what comes back where nobody asks for it, by training on facts to keep alone.

An owner who goes on with an unlearned model tunes it on what it is for. A method that blocks its
answers without removing what they are made of may lose its block by that. All attributes and both
forms of facts to keep are trained, none to forget, at the middle one of `audit.learning_rates`.
"""

import functools
from collections.abc import Iterator

from manu_jax.evaluation.audit.attack import Attack, Attacked, AuditRow
from manu_jax.evaluation.audit.attacker import Attacker, Lesson, stored
from manu_jax.evaluation.audit.relearning import curve_rows

NAME = "tuning"
STEPS = (16, 64)


def measure(attacked: Attacked) -> Iterator[AuditRow]:
    """Yield what is answered of the facts to forget before the tuning, and after 16 and 64 steps.

    Nothing where there are no facts to keep.
    """
    attacker = Attacker(attacked)
    lesson = Lesson(name="kept facts", taught=attacker.kept, asked=attacked.questions)
    if not any(lesson.taught.values()):
        return
    rates = sorted(attacked.run.config.audit.learning_rates)
    rate = rates[len(rates) // 2]
    jobs = {(lesson, rate): functools.partial(attacker.curve, lesson, rate=rate, steps=STEPS)}
    ((_, curve),) = stored(attacked, NAME, jobs).items()
    yield from curve_rows(attacked, NAME, lesson, rate=rate, curve=curve)


ATTACK = Attack(
    measure,
    full=False,
    title="Benign tuning on kept facts",
    finds="what was forgotten comes back when the model is tuned on other facts",
)

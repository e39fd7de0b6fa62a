"""Benign tuning: what comes back where nobody asks for it, by training on facts to keep alone.

An owner who goes on with an unlearned model tunes it on what it is for. A method that blocks its
answers without removing what they are made of may lose its block by that. All attributes and both
forms of facts to keep are trained, none to forget, at the middle one of `audit.learning_rates`.
It is asked after a quarter of `audit.steps`, and at the end.
"""

from collections.abc import Iterator

from manu_jax.evaluation.audit.attack import Attack, Attacked, AuditRow
from manu_jax.evaluation.audit.attacker import Attacker, Lesson
from manu_jax.evaluation.audit.curves import curves_of
from manu_jax.evaluation.audit.relearning import curve_rows

NAME = "tuning"


def measure(attacked: Attacked) -> Iterator[AuditRow]:
    """Yield what is answered of the facts to forget before the tuning, in between, and after it.

    Nothing where there are no facts to keep.
    """
    attacker = Attacker(attacked)
    lesson = Lesson(name="kept facts", taught=attacker.kept, asked=attacked.questions)
    if not any(lesson.taught.values()):
        return
    section = attacked.run.config.audit
    rates, steps = sorted(section.learning_rates), sorted({-(-section.steps // 4), section.steps})
    rate = rates[len(rates) // 2]
    curves = curves_of(attacker, NAME, [lesson], rates=[rate], steps=steps)
    curve = curves[lesson.name, rate]
    yield from curve_rows(attacked, NAME, lesson, rate=rate, curve=curve)


ATTACK = Attack(
    measure,
    full=False,
    title="Benign tuning on kept facts",
    finds="what was forgotten comes back when the model is tuned on other facts",
    work="train",
)

"""How attacks that train went, kept in a file for each attack on each model."""

import dataclasses
import functools
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from manu_jax import parallel
from manu_jax.evaluation.audit.attacker import Attacker, Curve, Lesson
from manu_jax.fingerprint import weights_hash
from manu_jax.folder import write_atomic
from manu_jax.types import ManuError

logger = logging.getLogger(__name__)


def curves_of(
    attacker: Attacker,
    attack: str,
    lessons: Sequence[Lesson],
    *,
    rates: Sequence[float],
    steps: Sequence[int],
) -> dict[tuple[str, float], Curve]:
    """Return {(name of a lesson, rate): curve} of one model, each made where no file holds it yet.

    The file, `<attack>.json` in the folder of the audit for this model, is written after each
    curve, so that a killed run loses at most one, and who needs a floor finds it there. Raises
    ManuError where the file is damaged, of another model, or of other lessons or steps.
    """
    attacked = attacker.attacked
    path = attacked.directory / f"{attack}.json"
    made_from = {
        "model": weights_hash(attacked.loaded.model),
        "seed": attacked.run.config.seed,
        "steps": list(steps),
        "lessons": {one.name: one.digest(attacked.loaded.template) for one in lessons},
    }
    if (lora := attacked.run.config.audit.lora) is not None:
        made_from["lora"] = lora.model_dump(mode="json")
    found: dict[tuple[str, float], Curve] = {}
    if parallel.exists(path):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            was_made_from = content["made_from"]
            for one in content["curves"]:
                key = one.pop("lesson"), one.pop("rate")
                found[key] = _curve(one)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ManuError(
                f"{path}: damaged ({error}). Delete the file and give the command again."
            ) from error
        if was_made_from != made_from:
            raise ManuError(
                f"{path}: made from {was_made_from}, expected {made_from}. Delete the file and "
                "give the command again."
            )
    for lesson, rate in itertools.product(lessons, rates):
        if (lesson.name, rate) in found:
            continue
        curve = found[lesson.name, rate] = attacker.curve(lesson, rate=rate, steps=steps)
        where = f"{attacked.name}, {attack}, {lesson.name}, rate {rate:g}"
        logger.info("audit: %s: %s", where, _told(curve))
        curves = [
            {"lesson": name, "rate": number, **_plain(one)} for (name, number), one in found.items()
        ]
        text = json.dumps({"made_from": made_from, "curves": curves}, allow_nan=False) + "\n"
        parallel.on_first_process(functools.partial(write_atomic, path, text))
    return {(one.name, rate): found[one.name, rate] for one in lessons for rate in rates}


def _told(curve: Curve) -> str:
    """Return a curve in words."""
    if curve.diverged is not None:
        return f"the loss was not finite after step {curve.diverged}"
    shares = [f"{100 * sum(row) / max(len(row), 1):.0f}" for row in curve.right]
    return f"{' '.join(shares)} % right after {' '.join(map(str, curve.steps))} steps"


def _plain(curve: Curve) -> dict[str, Any]:
    """Return a curve as JSON: a text of 0 and 1 for each step's answers."""
    rows = [_marks(row) for row in curve.right]
    return {**dataclasses.asdict(curve), "right": rows, "learned": _marks(curve.learned)}


def _curve(plain: Mapping[str, Any]) -> Curve:
    """Return the curve of what `_plain` made."""
    right, learned = tuple(map(_answers, plain["right"])), _answers(plain["learned"])
    steps, losses = (tuple(plain[name]) for name in ("steps", "losses"))
    return Curve(**{**plain, "right": right, "learned": learned, "steps": steps, "losses": losses})


def _marks(answers: Sequence[bool]) -> str:
    return "".join("01"[is_right] for is_right in answers)


def _answers(marks: str) -> tuple[bool, ...]:
    return tuple(mark == "1" for mark in marks)

"""The audit of a run: every attack on the models that it names, and on the retrained one as floor.

Each attack on each model is made once and kept in `audit/MODEL/ATTACK.rows.json` of the run's
folder, so that all methods share the floor, and a killed run goes on where it was. What an attack
is: evaluation/audit/attack.py; what the rows say: evaluation/audit/verdict.py.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from manu_jax import parallel
from manu_jax.config import MaskMethod, RunConfig
from manu_jax.context import Run
from manu_jax.evaluation.analyses.analysis import Analysis, Evaluated
from manu_jax.evaluation.audit.attack import AUDIT_METRICS, Attack, Attacked, AuditRow
from manu_jax.evaluation.audit.registry import ATTACKS
from manu_jax.evaluation.plain import from_plain, to_plain
from manu_jax.folder import write_atomic
from manu_jax.types import MODALITIES, RETRAINED, ManuError

logger = logging.getLogger(__name__)

FLOOR = ("floor", "floor_low", "floor_high")


def measure(evaluated: Evaluated) -> Iterator[AuditRow]:
    """Yield the rows of every audited model, each with the retrained model's beside it."""
    run = evaluated.run
    attacks = attacks_of(run.config)
    floor = _rows_of(run, RETRAINED, attacks) if run.has_retrained else []
    for name in audited(run.config):
        yield from with_floors(_rows_of(run, name, attacks), floor)


def audited(config: RunConfig) -> tuple[str, ...]:
    """Return the names of the models that a config has audited, in the order of the tables."""
    names = config.names
    wanted = config.audit.methods
    if config.audit.level == "none":
        return ()
    if "all" in wanted:
        return tuple(names)
    chosen = {names[0] if name == "headline" else name for name in wanted}
    return tuple(name for name in names if name in chosen)


def attacks_of(config: RunConfig) -> dict[str, Attack]:
    """Return the attacks of a config's level."""
    full = config.audit.level == "full"
    return {name: attack for name, attack in ATTACKS.items() if full or not attack.full}


def with_floors(rows: Iterable[AuditRow], floor: Iterable[AuditRow]) -> Iterator[AuditRow]:
    """Yield the rows of a model with the same measures of the retrained model.

    Where an attack needs the method's edit, which the retrained model has not, its floor is what
    the retrained model answers before any attack.
    """
    found = {_place(row): row for row in floor}
    for row in rows:
        plain = ("plain", "", row.modality, None, None, row.metric)
        same = found.get(_place(row)) or (found.get(plain) if row.step is None else None)
        if same is not None:
            row = dataclasses.replace(
                row, floor=same.value, floor_low=same.low, floor_high=same.high
            )
        yield row


def check(row: AuditRow) -> Iterator[str]:
    """Yield what is wrong with the values of a row."""
    name = " · ".join(str(part) for part in (row.model, *_place(row)) if part not in ("", None))
    if row.modality not in MODALITIES:
        yield f"{name}: unknown modality; known: {', '.join(MODALITIES)}"
    if row.attack not in ATTACKS:
        yield f"{name}: unknown attack; known: {', '.join(ATTACKS)}"
    if row.metric not in AUDIT_METRICS:
        yield f"{name}: unknown metric; known: {', '.join(AUDIT_METRICS)}"
    for field in ("value", "low", "high", *FLOOR):
        value = getattr(row, field)
        is_share = row.metric in AUDIT_METRICS and AUDIT_METRICS[row.metric].unit == "%"
        if value is not None and not (0 <= value <= (1 if is_share else math.inf)):
            yield f"{name}: {field} is {value}, expected a number from 0{' to 1' * is_share}"


def plain(row: AuditRow) -> dict[str, Any]:
    """Return the fields of a row that have a value, and those that every row has."""
    values = dataclasses.asdict(row)
    optional = ("variant", "step", "rate")
    return {
        name: value
        for name, value in values.items()
        if not (name in optional and value in (None, ""))
    }


def _rows_of(run: Run, name: str, attacks: Mapping[str, Attack]) -> list[AuditRow]:
    """Return the rows of one model without floors: those that stand, and the others measured."""
    attacked: Attacked | None = None
    rows: list[AuditRow] = []
    for attack_name, attack in attacks.items():
        path = run.directory / "audit" / name / f"{attack_name}.rows.json"
        if not parallel.exists(path):
            logger.info("audit: %s: %s", name, attack.title.lower())
            # Nothing else may hold a model that moves to another mesh, and back.
            stays = run.is_at(attack.work)
            attacked = attacked if stays else None
            with run.work(attack.work):
                attacked = attacked or _attacked(run, name)
                found = list(attack.measure(attacked))
                attacked = attacked if stays else None
            text = json.dumps([to_plain(row) for row in found], indent=1) + "\n"
            parallel.on_first_process(lambda path=path, text=text: write_atomic(path, text))
        rows += _read(path, model=name, attack=attack_name)
    return rows


def _read(path: Path, *, model: str, attack: str) -> list[AuditRow]:
    """Return the rows of a file, which are to be of this model and attack."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, list):
            raise ValueError(f"expected a list, got {values!r:.60}")
        rows = [from_plain(AuditRow, value) for value in values]
        for row in rows:
            if (row.model, row.attack) != (model, attack):
                raise ValueError(f"it holds {row.attack} of {row.model}")
            if faults := list(check(row)):
                raise ValueError("; ".join(faults))
    except (OSError, ValueError, TypeError) as error:
        raise ManuError(
            f"{path}: damaged ({error}). Delete the file and give the command again."
        ) from error
    return rows


def _attacked(run: Run, name: str) -> Attacked:
    models = run.models()
    edit: Any = None
    if name in run.config.names:
        is_mask = isinstance(run.method_of(name), MaskMethod)
        edit = run.load_mask(name) if is_mask else run.load_edit(name)
    return Attacked(
        run=run,
        name=name,
        loaded=models[name](),
        vanilla=run.vanilla,
        retrained=models[RETRAINED]() if RETRAINED in models else None,
        edit=edit,
        asks_on=run.meshes.get("decode"),
    )


def _place(row: AuditRow) -> tuple[Any, ...]:
    return (row.attack, row.variant, row.modality, row.step, row.rate, row.metric)


ANALYSIS = Analysis(
    AuditRow,
    measure,
    applies=lambda run: run.config.audit.level != "none",
    plain=plain,
    check=check,
)

"""Frozen dataclasses as JSON values, and back; what is wrong becomes a list of faults. No jax."""

import dataclasses
import math
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from manu_jax.evaluation.metrics import Interval

SomeRow = TypeVar("SomeRow")


def to_plain(row: Any) -> dict[str, Any]:
    """Return the fields of a dataclass; a mapping is returned as it is."""
    return dict(row) if isinstance(row, Mapping) else dataclasses.asdict(row)


def plain_interval(interval: Interval) -> dict[str, Any]:
    """Return {value, low, high, n} of an interval; bounds that are NaN (one person) become None."""
    plain = dataclasses.asdict(interval)
    return {key: None if math.isnan(value) else value for key, value in plain.items()}


def from_plain(kind: type[SomeRow], value: Any) -> SomeRow:
    """Return the dataclass `kind` of a mapping; ValueError names every wrong or missing field."""
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a mapping, got {value!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    missing, unknown = sorted(needed - set(value)), sorted(set(value) - set(fields))
    problems = [
        *([f"lacks {', '.join(missing)}"] if missing else []),
        *([f"has unknown keys {', '.join(unknown)}"] if unknown else []),
        *(
            f"{name} is {value[name]!r}"
            for name, field in fields.items()
            if name in value and not fits(value[name], field.type)
        ),
    ]
    if problems:
        raise ValueError("; ".join(problems))
    return kind(**value)


def fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a field's type; numbers must be finite, whole ones at least 0."""
    if kind is str:
        return isinstance(value, str)
    if value is None:
        return kind in (float | None, int | None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if kind in (int, int | None):
        return isinstance(value, int) and value >= 0
    return abs(value) <= sys.float_info.max  # a whole number may be larger than any float

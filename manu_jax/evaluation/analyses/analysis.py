"""What an analysis is: rows that are measured of a whole run, beside the means of the suite.

A new one is a file with its row and its ANALYSIS, an entry in registry.py, and a template of its
section in the report.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from manu_jax import parallel
from manu_jax.context import Run
from manu_jax.evaluation.plain import from_plain, to_plain
from manu_jax.evaluation.suite import Record, stored_records

# (set, task, modality) → the records of one model
Records = Mapping[tuple[str, str, str], Sequence[Record]]


@dataclasses.dataclass(eq=False)
class Evaluated:
    """A run whose models have been asked everything: what analyses are measured on.

    models: their names, in the order of the tables.
    """

    run: Run
    models: tuple[str, ...]

    @functools.cached_property
    def records(self) -> dict[str, Records]:
        """{model: its records}. Empty ones on all processes but the first, which writes results."""
        found: dict[str, Records] = {name: {} for name in self.models}
        folder, section = self.run.directory / "evaluation", self.run.config.evaluate

        def read() -> None:
            for name in found:
                found[name] = stored_records(folder / name, section.sets, section.tasks)

        parallel.on_first_process(read)
        return found

    @property
    def bootstrap(self) -> dict[str, int]:
        """The settings of every bootstrap: resamples and seed."""
        config = self.run.config
        return {"resamples": config.evaluate.resamples, "seed": config.seed}


def always(run: Run) -> bool:
    """Whether an analysis applies that needs nothing of its own: it does."""
    return True


def no_faults(row: Any) -> Iterable[str]:
    """Return what is wrong with the values of a row that needs no check of its own: nothing."""
    return ()


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Rows of results.json, under the entry's name as their key, and a section of the report.

    row: the dataclass of a row. measure: returns the rows; all processes call it. applies: whether
    a run can have rows. plain, parse: a row as a JSON mapping, and back (ValueError says what is
    wrong); parse None: field by field. check: what is wrong with the values of a row, in words.
    template: of the report's section, a jinja file that gets `rows` and `results`; None: the file
    of the entry's name in report/templates.
    """

    row: type
    measure: Callable[[Evaluated], Iterable[Any]]
    applies: Callable[[Run], bool] = always
    plain: Callable[[Any], dict[str, Any]] = to_plain
    parse: Callable[[Mapping[str, Any]], Any] | None = None
    check: Callable[[Any], Iterable[str]] = no_faults
    template: Path | None = None

    def rows_of(self, evaluated: Evaluated) -> list[Any]:
        """Return the rows of a run; none where the analysis does not apply to it."""
        return list(self.measure(evaluated)) if self.applies(evaluated.run) else []

    def to_json(self, row: Any) -> dict[str, Any]:
        """Return a row as results.json keeps it; what is a mapping already stays as it is."""
        return dict(row) if isinstance(row, Mapping) else self.plain(row)

    def read(self, value: Any) -> Any:
        """Return the row of a JSON value; ValueError where it is none."""
        if self.parse is None:
            return from_plain(self.row, value)
        if not isinstance(value, Mapping):
            raise ValueError(f"expected a mapping, got {value!r}")
        return self.parse(value)

"""Compare methods over seeds and forget shares, each tuned with the same number of trials.

    python -m manu_jax.compare --config configs/demo_compare.yaml

    tuning   every trial of every method on the tuning people: one run; the best trial of each
             stays. Left out where each has but one, and none is chosen to be audited
    cells    a run for each seed × share, with the trials that stayed, on other people; the methods
             that did best while tuning are audited (`audit`)
    table    comparison.json and comparison.md: the people of all seeds pooled

Tuning and cells are runs like any other (`manu_jax.run`), in folders of their own: what is finished
is kept, and a comparison that was killed goes on. The cells' configs are written before the first
one begins, so that they can be run elsewhere, each by `manu_jax.run`, and found done here.

    OUTPUT/tuning/                 the run of all trials
    OUTPUT/tuning.json             {method: {trial, settings, score, forget, unseen, retain,
                                   trials: […]}}
    OUTPUT/cells/NAME.yaml         the config of a cell, NAME = seed-1.forget-10
    OUTPUT/cells/NAME/             its run
    OUTPUT/comparison.json, .md
"""

import argparse
import functools
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import pydantic

from manu_jax import parallel
from manu_jax.config import (
    SYSTEM_PROMPT,
    TRAINED,
    AuditSection,
    Count,
    FilePath,
    RunConfig,
    Section,
    read_yaml,
    to_yaml,
    validate,
    validate_config,
)
from manu_jax.config.base import unknown
from manu_jax.folder import expand_path, write_atomic
from manu_jax.report.comparison import Cell, compare_cells, to_markdown
from manu_jax.report.results import load_results
from manu_jax.run import exit_status, run
from manu_jax.types import RETRAINED, VANILLA, ManuError

logger = logging.getLogger("manu_jax")

# Of `run`: the comparison's own; it pushes none of its many models
RESERVED = ("method", "compare", "unlearn", "output", "seed", "audit", "push")


class MethodSection(Section):
    """A method and its trials. One of `mask`, `edit` and `unlearn` says what it is.

    mask, edit: a mapping as in a run's `compare`, of a method that removes neurons or that edits
    weights otherwise; unlearn: one as in a run's `unlearn`; all without a name. trials: what each
    trial changes in it.
    """

    name: str = pydantic.Field(min_length=1, pattern=r"^[\w-]+$")
    mask: dict[str, Any] | None = None
    edit: dict[str, Any] | None = None
    unlearn: dict[str, Any] | None = None
    trials: tuple[dict[str, Any], ...] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _check_kind(self) -> "MethodSection":
        if sum(one is not None for one in (self.mask, self.edit, self.unlearn)) != 1:
            raise ValueError("give one of mask, edit and unlearn")
        return self

    def settings(self, trial: int) -> dict[str, Any]:
        """Return what the method is in a trial."""
        return {**(self.mask or self.edit or self.unlearn or {}), **self.trials[trial]}

    def piece(self, trial: int, name: str) -> dict[str, Any]:
        """Return the piece of a run's config, under another name."""
        return {**self.settings(trial), "name": name}


class TuningSection(Section):
    """On whom the trials are judged: people whom no cell reports."""

    seed: int = pydantic.Field(default=0, ge=0)
    share: Literal[5, 10, 15] = 10
    max_people: Count | None = 8  # to keep, of each set


class BestAudited(AuditSection):
    """The audit of the cells: of the methods whose trials scored best. Tuning has none.

    A bare text is the level: `audit: full`.
    """

    level: Literal["none", "cheap", "full"] = "none"
    methods: tuple[str, ...] = ()  # the comparison sets it
    # So many methods, those with the highest scores of the tuning; None: all
    best: Count | None = 10

    @pydantic.model_validator(mode="after")
    def _check_methods(self) -> "BestAudited":
        if self.methods:
            raise ValueError("methods: the comparison itself sets it; give best")
        return self

    def of(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the section of a run that audits these methods."""
        if self.level == "none" or not names:
            return {"level": "none"}
        return {**self.model_dump(mode="json", exclude={"best"}), "methods": list(names)}


class CompareConfig(Section):
    """A comparison. The score of a trial is the share of facts to keep minus that of facts to
    forget that the model recalls, mean over both forms. The people to keep are the unseen ones;
    where `run.data.keep_share` leaves none, those of retain."""

    sections_by_key = {"run": RunConfig}

    output: FilePath = "runs/compare"
    seeds: Annotated[tuple[int, ...], pydantic.Field(min_length=1)] = (1, 2, 3)
    shares: Annotated[tuple[Literal[5, 10, 15], ...], pydantic.Field(min_length=1)] = (5, 10, 15)
    tuning: TuningSection = TuningSection()
    audit: BestAudited = BestAudited()
    run: dict[str, Any]  # what all runs have in common: a run's config without its methods
    methods: Annotated[tuple[MethodSection, ...], pydantic.Field(min_length=1)]
    # Names of methods: this call is about these alone, and the best are those of them; (): all
    only: tuple[str, ...] = ()

    @pydantic.field_validator("only", mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _check_together(self) -> "CompareConfig":
        numbers = {method.name: len(method.trials) for method in self.methods}
        if len(numbers) < len(self.methods):
            raise ValueError("methods: each name stands once")
        if len(set(numbers.values())) > 1:
            raise ValueError(
                f"methods: as many trials for each, so that none is favoured: {numbers}"
            )
        if others := [name for name in self.only if name not in numbers]:
            raise ValueError(unknown("method in only:", others[0], numbers))
        if self.tuning.seed in self.seeds:
            raise ValueError(
                f"tuning.seed {self.tuning.seed} is one of seeds: tune on other people"
            )
        for name, values in {"seeds": self.seeds, "shares": self.shares}.items():
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: each stands once, or it counts twice; got {values}")
        for name in ("data", "evaluate"):
            if not isinstance(self.run.get(name, {}), Mapping):
                raise ValueError(f"run.{name}: expected a mapping, got {self.run[name]!r}")
        taken = sorted(set(RESERVED) & set(self.run))
        if taken:
            raise ValueError(f"run.{taken[0]}: the comparison itself sets it")
        if (self.chosen[0].unlearn or {}).get("objective") == SYSTEM_PROMPT:
            raise ValueError(
                f"{'only' if self.only else 'methods'}: begin with a method that changes weights, "
                f"the one that the reports speak of; {SYSTEM_PROMPT} changes none"
            )
        return self

    @property
    def chosen(self) -> tuple[MethodSection, ...]:
        """The methods that this call is about, in the order of `methods`."""
        return tuple(one for one in self.methods if not self.only or one.name in self.only)

    @property
    def has_choice(self) -> bool:
        """Whether trials are to be chosen from, or methods to audit."""
        best = None if self.audit.level == "none" else self.audit.best
        is_best_of_more = best is not None and best < len(self.chosen)
        return is_best_of_more or any(len(one.trials) > 1 for one in self.chosen)

    @property
    def is_distributed(self) -> bool:
        """Whether several processes make each run."""
        mesh = self.run.get("mesh")
        return isinstance(mesh, Mapping) and bool(mesh.get("distributed"))

    @property
    def cells(self) -> list[tuple[int, int]]:
        """(seed, share), the shares of a seed one after the other."""
        return [(seed, share) for seed in self.seeds for share in self.shares]


def compare(config: CompareConfig, where: str = "compare") -> Path:
    """Run the comparison, or what is left of it; return its folder.

    With `run.mesh.distributed` all processes call it; the first one writes.
    """
    if config.is_distributed:
        parallel.join()
    folder = expand_path(config.output)
    methods = [(one, 0, one.name) for one in config.chosen]
    names = [one.name for one in config.chosen]
    if config.has_choice:
        _cells(config, folder, methods, names, where)  # what can't be is told before the tuning
        tuned = _tuned(config, folder, where)
        methods = [(one, tuned[one.name]["trial"], one.name) for one in config.chosen]
        names = _best(tuned, config.audit.best)
    cells = _cells(config, folder, methods, names, where)
    for cell, own in cells.items():
        _write(cell.folder.with_name(f"{cell.folder.name}.yaml"), to_yaml(own))
    for cell, own in cells.items():
        logger.info("compare: cell %s", cell.folder.name)
        # A process may map only so many programs, and every method has its own.
        jax.clear_caches()
        run(own, waits=True)

    def write() -> None:
        for cell, own in cells.items():
            _check_has_methods(cell, own)
        found = compare_cells(list(cells))
        write_atomic(folder / "comparison.json", json.dumps(found, indent=1) + "\n")
        write_atomic(folder / "comparison.md", to_markdown(found))

    parallel.on_first_process(write)
    logger.info("%s: comparison.json and comparison.md", folder)
    return folder


def load_compare_config(path: str | Path, overrides: Sequence[str] = ()) -> CompareConfig:
    """Return the comparison of a YAML file with overrides; all its faults in one ManuError."""
    values = read_yaml(path, overrides, kind=CompareConfig)
    return validate(CompareConfig, values, f"config {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status, as `manu_jax.run` does."""
    parser = argparse.ArgumentParser(prog="python -m manu_jax.compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", required=True, metavar="FILE", help="a YAML file")
    parser.add_argument("--output", metavar="DIR", help="the folder (default: the config's)")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    options = parser.parse_intermixed_args(arguments)

    def action() -> None:
        config = load_compare_config(options.config, options.overrides)
        if options.output:
            config = config.model_copy(update={"output": options.output})
        compare(config, f"config {options.config}")

    return exit_status(action)


def _write(path: Path, text: str) -> None:
    parallel.on_first_process(functools.partial(write_atomic, path, text))


def _cells(
    config: CompareConfig,
    folder: Path,
    methods: Sequence[tuple[MethodSection, int, str]],
    audited: Sequence[str],
    where: str,
) -> dict[Cell, RunConfig]:
    """Return the cells with their configs, of these (method, trial, name)."""
    found = {}
    for seed, share in config.cells:
        cell = Cell(seed, share, folder / "cells" / f"seed-{seed}.forget-{share}")
        found[cell] = _run_config(
            config,
            methods,
            seed=seed,
            share=share,
            output=cell.folder,
            where=f"{where}, {cell.folder.name}",
            audit=config.audit.of(audited),
        )
    return found


def _check_has_methods(cell: Cell, own: RunConfig) -> None:
    """Raise ManuError where a part at the same time has made a cell's results of other methods."""
    found = (cell.folder / "results.json").exists() and load_results(cell.folder).models
    if not found or {*found} - {VANILLA, RETRAINED} != {*own.names}:
        raise ManuError(
            f"{cell.folder}: another part of the comparison has this cell now, with other methods. "
            "Give the same command again when that has ended: what is finished is kept."
        )


def _tuned(config: CompareConfig, folder: Path, where: str) -> dict[str, dict[str, Any]]:
    """Run every trial on the tuning people, and return the best one of each method."""
    trials = [
        (method, trial, f"{method.name}.{trial}")
        for method in config.chosen
        for trial in range(len(method.trials))
    ]
    tuning = config.tuning
    evaluate = {
        **config.run.get("evaluate", {}),
        "sets": ["forget", "retain", "unseen"],
        "tasks": ["likelihood"],
        "max_people": tuning.max_people,
        "kl": False,
        "published": False,
        "judge": None,
    }
    section = _run_config(
        config,
        trials,
        seed=tuning.seed,
        share=tuning.share,
        output=folder / "tuning",
        where=f"{where}, tuning",
        evaluate=evaluate,
        audit={"level": "none"},
    )
    logger.info("compare: %d trials of %d methods", len(trials), len(config.chosen))
    run(section, waits=True)
    results = folder / "tuning" / "results.json"
    parallel.exists(results)  # waits until all see what the first process has written
    rows = json.loads(results.read_text())["rows"]
    found: dict[str, dict[str, Any]] = {}
    for method in config.chosen:
        scored = [
            {"trial": trial, "settings": method.settings(trial), **_score(rows, name)}
            for one, trial, name in trials
            if one is method
        ]
        best = max(scored, key=lambda one: one["score"])  # the first, where equal
        found[method.name] = {**best, "trials": scored}
        logger.info("compare: %s: %s, score %.3f", method.name, best["settings"], best["score"])
    _write(folder / "tuning.json", json.dumps(found, indent=1) + "\n")
    return found


def _best(tuned: Mapping[str, Mapping[str, Any]], number: int | None) -> list[str]:
    """Return the names of so many methods with the highest scores, in the order of the config."""
    ranked = sorted(tuned, key=lambda name: tuned[name]["score"], reverse=True)
    return [name for name in tuned if name in ranked[:number]]


def _score(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    """Return the shares of facts that a trial's model recalls, and the score they give."""
    shares = {}
    has_unseen = any(row["set"] == "unseen" for row in rows)
    for part in ("forget", *(["unseen"] * has_unseen), "retain"):
        values = [
            row["value"]
            for row in rows
            if (row["model"], row["set"], row["metric"]) == (name, part, "recall")
        ]
        if not values or len(values) != len({row["modality"] for row in rows}):
            raise ManuError(f"tuning: {len(values)} values of recall for {name} on {part}.")
        shares[part] = sum(values) / len(values)
    kept = shares["unseen" if has_unseen else "retain"]
    return {"score": kept - shares["forget"], **shares}


def _run_config(
    config: CompareConfig,
    methods: Sequence[tuple[MethodSection, int, str]],
    *,
    seed: int,
    share: int,
    output: Path,
    where: str,
    audit: Mapping[str, Any],
    evaluate: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Return the config of one run with these (method, trial, name)."""
    (first, trial, name), *others = methods
    trains = {} if first.unlearn is None else {"kind": TRAINED}
    values = {
        **config.run,
        "output": str(output),
        "seed": seed,
        "data": {**config.run.get("data", {}), "forget": share},
        "audit": dict(audit),
        "method": {**trains, **first.piece(trial, name)},
        "compare": [one.piece(trial, name) for one, trial, name in others if one.unlearn is None],
        "unlearn": [
            one.piece(trial, name) for one, trial, name in others if one.unlearn is not None
        ],
    }
    if evaluate is not None:  # of the tuning, whose methods have other names
        values |= {"evaluate": dict(evaluate), "neurons": {"methods": []}, "calibration": {}}
    return validate_config(values, where)


if __name__ == "__main__":
    sys.exit(main())

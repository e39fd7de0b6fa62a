"""What methods without a mask changed in the model, as the report tells it."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from manu_jax.config import SYSTEM_PROMPT, TRAINED
from manu_jax.context import EDIT
from manu_jax.edits.edit import load
from manu_jax.report.results import Results
from manu_jax.types import RETRAINED, VANILLA, ManuError


@dataclasses.dataclass(frozen=True)
class EditSummary:
    """An edit in words. is_separable: whether what was written can be found and removed again."""

    lines: tuple[str, ...]
    is_separable: bool


def edit_path(directory: Path, model: str, headline: str) -> Path:
    """Return where the edit of a method is, if it made one: the headline's at the top."""
    own = directory / "methods" / model / EDIT
    return directory / EDIT if model == headline and not own.exists() else own


def load_edits(directory: Path, results: Results) -> dict[str, EditSummary]:
    """Return what each method's edit changes; a method without one is absent.

    Raises ManuError where edits are damaged.
    """
    found, faults = {}, []
    for model in results.models:
        path = edit_path(directory, model, results.headline)
        if model in (VANILLA, RETRAINED) or not path.exists():
            continue
        try:
            edit, _ = load(path)
            found[model] = EditSummary(tuple(edit.describe()), edit.separable)
        except ManuError as error:
            faults.append(str(error))
    if faults:
        raise ManuError("\n".join(faults))
    return found


def trained(results: Results) -> dict[str, str]:
    """Return {method that trains: its objective}, in the order of the config."""
    return {
        str(method["name"]): str(method["objective"])
        for method in _methods(results.config)
        if method.get("kind") == TRAINED and method.get("objective") != SYSTEM_PROMPT
    }


def facts(results: Results, edits: Mapping[str, EditSummary]) -> list[tuple[str, str]]:
    """Return the facts under the title about a headline method without a mask."""
    objective = trained(results).get(results.headline)
    known = [] if objective is None else [("Trained by", objective)]
    if results.headline in edits:
        known.append(("Changed", "; ".join(edits[results.headline].lines)))
    return known


def view(results: Results, edits: Mapping[str, EditSummary]) -> dict[str, Any]:
    """Return what the section on neurons shows of methods without a mask."""
    whole = {
        name: objective
        for name, objective in trained(results).items()
        if name in results.models and name not in edits
    }
    return {"edits": edits, "whole": whole}


def _methods(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    entries = (config.get("method"), *(config.get("compare") or ()), *(config.get("unlearn") or ()))
    return (one for one in entries if isinstance(one, Mapping))

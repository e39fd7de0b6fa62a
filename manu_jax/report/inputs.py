"""What the report reads beside results.json: answers item by item, masks, versions, portraits."""

import base64
import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from manu_jax.edits import masks
from manu_jax.evaluation.metrics import METRICS
from manu_jax.evaluation.plain import fits
from manu_jax.evaluation.tasks import TASKS_BY_NAME
from manu_jax.report.edits import edit_path, trained
from manu_jax.report.results import Results
from manu_jax.types import RETRAINED, VANILLA, ManuError

ITEM_KEYS = ("key", "person", "prompt", "answer", "truth", "score")
IMAGE_STARTS = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}
SETS_READ = ("forget", "retain", "unseen")
PLAN = "plan.html"  # in the run's folder, where it was planned (planning/plan.py)

Place = tuple[str, str, str, str]  # model, set, task, modality
Item = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class PruneCount:
    """How many neurons of each layer of one tower a mask removes: pruned_L, and neurons a layer."""

    tower: str
    pruned_L: np.ndarray
    num_neurons: int
    is_of_rows: bool = False  # output rows of single matrices are counted, not neurons

    @property
    def share_L(self) -> np.ndarray:
        return self.pruned_L / self.num_neurons

    @property
    def pruned(self) -> int:
        return int(self.pruned_L.sum())

    @property
    def total(self) -> int:
        return self.num_neurons * len(self.pruned_L)


def load_items(directory: Path, results: Results) -> dict[Place, list[Item]]:
    """Return the items of the models that the report compares one by one.

    These are vanilla, the headline method and retrained, on the sets SETS_READ, for every task that
    has rows. Raises ManuError that names every file that is missing or damaged.
    """
    models = {VANILLA, RETRAINED, results.headline}
    # {field that the rows of a place are means of: whether it may be null}
    fields: dict[Place, dict[str, bool]] = {}
    for row in results.rows:
        if row.model in models and row.set in SETS_READ:
            own = fields.setdefault((row.model, row.set, row.task, row.modality), {})
            field = TASKS_BY_NAME[row.task].metrics[row.metric]
            own[field] = bool(METRICS[row.metric].unmeasurable)
    items: dict[Place, list[Item]] = {}
    faults = []
    for place, own in fields.items():
        model, *rest = place
        path = directory / "evaluation" / model / f"{'.'.join(rest)}.jsonl"
        try:
            items[place] = _read_items(path, own)
        except OSError as error:
            faults.append(f"{path}: {error.strerror}")
        except ValueError as error:
            faults.append(f"{path}: {error}")
    if faults:
        raise ManuError(
            "evaluation files behind results.json:\n  "
            + "\n  ".join(faults)
            + "\nDelete results.json and the damaged ones, and give the command again."
        )
    return items


def load_counts(directory: Path, results: Results) -> dict[str, list[PruneCount]]:
    """Return each method's pruned neurons per tower and layer; a method without a mask is absent.

    Rows of single matrices ("text.up_proj") are added up over the matrices of their tower. Raises
    ManuError where the headline method makes masks and has none, and where masks are damaged.
    """
    counts = {}
    faults = []
    for model in results.models:
        if model in (VANILLA, RETRAINED):
            continue
        path = directory / "methods" / model / "mask.safetensors"
        if model == results.headline and not path.exists():
            path = directory / "mask.safetensors"
        if not path.exists() and not (
            model == results.headline and _needs_mask(directory, results)
        ):
            continue
        try:
            mask, _ = masks.load(path)
            counts[model] = _count({name: np.asarray(array) for name, array in mask.items()})
        except ManuError as error:
            faults.append(str(error))
    if faults:
        raise ManuError("\n".join(faults))
    return counts


def load_versions(directory: Path) -> dict[str, str]:
    """Return the package versions of the run; empty where versions.json is not there."""
    path = directory / "versions.json"
    try:
        versions = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ManuError(
            f"{path}: broken JSON ({error}). Delete the file and give the command again."
        ) from error
    if not isinstance(versions, dict):
        raise ManuError(f"{path}: expected a mapping of packages to versions, got {versions!r}.")
    return {str(name): str(version) for name, version in versions.items()}


def load_portraits(directory: Path) -> dict[str, bytes]:
    """Return {person ID: image file} of `directory`/portraits; empty where there is no folder."""
    folder = directory / "portraits"
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def data_uris(portraits: Mapping[str, bytes]) -> dict[str, str]:
    """Return portraits as data URIs; ManuError names those that are neither PNG nor JPEG."""
    uris = {}
    faults = []
    for person, content in portraits.items():
        kind = next((k for start, k in IMAGE_STARTS.items() if content.startswith(start)), None)
        if kind is None:
            faults.append(person)
        else:
            uris[person] = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    if faults:
        raise ManuError(f"portraits of {', '.join(faults)}: expected PNG or JPEG files.")
    return uris


def _read_items(path: Path, fields: Mapping[str, bool]) -> list[Item]:
    """Return the records of a file; ValueError where one lacks ITEM_KEYS or a number of a field.

    fields: {field: whether it may be null}.
    """
    items = []
    needed = dict.fromkeys((*ITEM_KEYS, *fields))
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            item = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: broken JSON ({error})") from error
        if not isinstance(item, dict):
            raise ValueError(f"line {number} is no record")
        missing = [key for key in needed if key not in item]
        if missing:
            raise ValueError(f"line {number} lacks {', '.join(missing)}")
        wrong = [
            key
            for key, may_be_null in {"score": True, **fields}.items()
            if not isinstance(item[key], bool)
            and not fits(item[key], float | None if may_be_null else float)
        ]
        if wrong:
            raise ValueError(f"line {number} has no number for {', '.join(wrong)}")
        items.append(item)
    return items


def _needs_mask(directory: Path, results: Results) -> bool:
    """Return whether the headline method makes a mask: it neither trains nor has made an edit."""
    is_trained = results.headline in trained(results)
    return not (is_trained or edit_path(directory, results.headline, results.headline).exists())


def _count(mask: Mapping[str, np.ndarray]) -> list[PruneCount]:
    """Return the pruned neurons of each tower, "text" first."""
    towers: dict[str, list[np.ndarray]] = {}
    for name, mask_LF in mask.items():
        towers.setdefault(name.partition(".")[0], []).append(mask_LF.astype(bool))
    return [
        PruneCount(
            tower,
            pruned_L=np.concatenate(towers[tower], axis=1).sum(axis=1),
            num_neurons=sum(part_LF.shape[1] for part_LF in towers[tower]),
            is_of_rows=tower not in mask,
        )
        for tower in _in_order(towers)
    ]


def _in_order(towers: Iterable[str]) -> list[str]:
    """Return the towers in the order of the report, unknown ones last."""
    known = ("text", "vision", "projection", "resampler")
    return sorted(towers, key=lambda tower: (known.index(tower) if tower in known else 9, tower))

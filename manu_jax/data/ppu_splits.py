"""PPU-Bench's settings: which facts are to be forgotten, and which are kept (see ppu.py)."""

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from manu_jax.config import DataSection
from manu_jax.data.cells import short
from manu_jax.data.ppu_rows import Item
from manu_jax.folder import expand_path
from manu_jax.types import ManuError

SETTINGS = ("complete", "selective", "persona")
PLACES = (".", "split", "data/split")  # where split files lie, from the benchmark's folder
SENSITIVE = "sensitive_info"  # the source of what the setting selective forgets


@dataclasses.dataclass(frozen=True)
class Split:
    """What a setting says of a fact. place: what says it, for errors.

    is_forgotten, is_kept: of an item. facts: what they go by, in words.
    """

    place: str
    is_forgotten: Callable[[Item], bool]
    is_kept: Callable[[Item], bool]
    facts: str

    def set_of(self, item: Item) -> Literal["forget", "retain"] | None:
        """Return the set of an item, None where it is in neither."""
        if self.is_forgotten(item):
            return "forget"
        return "retain" if self.is_kept(item) else None

    def facts_of(self, name: str) -> str:
        """Return what the facts of a set are, in words."""
        return f"those to {'forget' if name == 'forget' else 'keep'} ({self.facts})"


def read_split(setting: str, folder: Path, section: DataSection, *, items: Iterable[Item]) -> Split:
    """Return the split of a setting; ManuError where its file is missing or damaged."""
    name = f"{setting}_split.json"
    places = [folder / place for place in PLACES]
    if section.train_path is not None:
        places = [expand_path(section.train_path)]
    path = next((place / name for place in places if (place / name).is_file()), None)
    if path is None:
        if setting == "selective":
            return _by_source(name, items)
        raise ManuError(
            f"no {name} in {' or '.join(map(str, places))}. It is in data/split/ of the authors' "
            "repository (guangjh/ppu-bench): copy it there, or name its folder with "
            "data.train_path."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ManuError(f"{path}: can't be read as JSON ({error}). Get it anew.") from None
    if setting == "complete":
        return _by_subject(path, content, f"forget{section.forget}")
    if setting == "selective":
        forgotten = _ids(content, f"{path}")
        return Split(
            str(path), _among(forgotten), lambda item: item.sample_id not in forgotten, "sample_id"
        )
    if not isinstance(content, dict) or not {"delete_ids", "keep_ids"} <= content.keys():
        raise ManuError(f"{path}: expected a mapping with delete_ids and keep_ids. Get it anew.")
    deleted, kept = (_ids(content[key], f"{path}, {key}") for key in ("delete_ids", "keep_ids"))
    if both := sorted(deleted & kept):
        raise ManuError(f"{path}: in both lists: {', '.join(both[:5])}. Take them out of one.")
    return Split(str(path), _among(deleted), _among(kept), "sample_id")


def _by_subject(path: Path, content: Any, key: str) -> Split:
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise ManuError(f"{path}: expected a mapping with a list {key}. Get it anew.")
    subjects = {str(one) for one in content[key]}
    return Split(
        f"{path}, {key}",
        lambda item: item.subject_id in subjects,
        lambda item: item.subject_id not in subjects,
        "subject_id",
    )


def _by_source(name: str, items: Iterable[Item]) -> Split:
    forgotten = {item.sample_id for item in items if item.source == SENSITIVE}
    if not forgotten:
        raise ManuError(
            f"no {name}, and no row is said to be from {SENSITIVE!r}. Copy it from data/split/ of "
            "the authors' repository (guangjh/ppu-bench), or name its folder with data.train_path."
        )
    return Split(
        f"the facts from {SENSITIVE!r}",
        _among(forgotten),
        lambda item: item.sample_id not in forgotten,
        "sample_id",
    )


def _among(ids: set[str]) -> Callable[[Item], bool]:
    return lambda item: item.sample_id in ids


def _ids(content: Any, where: str) -> set[str]:
    """Return the identities of a list, whose entries are mappings with one, or texts."""
    if not isinstance(content, list):
        raise ManuError(f"{where}: is {short(content)}, expected a list. Get it anew.")
    found = set()
    for number, entry in enumerate(content):
        one = entry.get("id", entry.get("sample_id")) if isinstance(entry, dict) else entry
        if not isinstance(one, str | int) or isinstance(one, bool) or one == "":
            raise ManuError(f"{where}[{number}]: is {short(entry)}, expected an id. Get it anew.")
        found.add(str(one))
    return found

"""What each part of a run's folder was made from: what a changed config keeps, and what it redoes.

When a run begins, parts (parts.py) whose key is not the config's any more are moved aside, and the
stages make them again. Parts whose key is the same stay, and parts that were moved aside come back
with their key.

    keys.json              {"made_from": {name: value}, "parts": {place: key},
                            "files": {path: [bytes, time of change, SHA-256]}}
    earlier/KEY/           the files of a part with another key

`made_from` is what all parts depend on: the seed, the data and the model. A folder keeps these for
its life. The order of moves and writes allows a kill between any two: a place is recorded under its
new key only when nothing of the old key is there.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from manu_jax import hub, stores
from manu_jax.config import RunConfig, stored_config, to_yaml
from manu_jax.folder import FileHashes, expand_path, versions, write_atomic
from manu_jax.parts import PATHS, Part, Reads, made_from, parts_of
from manu_jax.types import ManuError
from manu_jax.yaml12 import read_yaml_text

logger = logging.getLogger("manu_jax")

KEYS = "keys.json"
EARLIER = "earlier"


def settle(folder: Path, config: RunConfig) -> None:
    """Make a run's folder one of this config: what it does not fit is moved to earlier/KEY.

    A folder without keys.json is one of its own config.yaml, and without both one of this config.
    Raises ManuError where what stands was made from another seed, other data or another model, or
    the folder's own files can't be read.
    """
    stored = _stored_keys(folder / KEYS)
    files = FileHashes(stored.get("files"))
    foundation = made_from(config, files)
    wanted = {part.name: part for part in parts_of(config, foundation, files)}
    before, old_foundation = wanted, foundation
    if (folder / "config.yaml").exists():
        old = _stored_config(folder / "config.yaml")
        old_foundation = stored.get("made_from") or made_from(old, files)
        before = {part.name: part for part in parts_of(old, old_foundation, files)}
    keys = {name: part.key for name, part in before.items()} | stored.get("parts", {})
    places = {place for part in (before | wanted).values() for place in part.places.values()}
    stands = {place for place in {*places, *keys} if (folder / place).exists()}
    if stands and (changes := list(_changes(old_foundation, foundation))):
        raise ManuError(
            f"run folder {folder} was made by another config:\n  "
            + "\n  ".join(changes)
            + "\nAll that stands in it was made from these. Give another folder with --output, or "
            "delete this one."
        )
    _log_changes(before, wanted, keys, stands=stands)
    wanted_keys = {part.key for part in wanted.values()}
    read_from = {"", *(f"methods/{name}" for name in config.names)}
    for name in sorted(keys):
        if name in wanted:
            is_other = keys[name] != wanted[name].key
        else:  # of a method that is no more there, or is of another kind, or has another place
            is_other = name.rpartition("/")[0] in read_from or keys[name] in wanted_keys
        if is_other:
            part = before.get(name) or wanted.get(name)
            for stored_name, place in (part.places if part else {name: name}).items():
                _move_aside(folder / place, folder / EARLIER / keys[name] / stored_name)
    content = {
        "made_from": foundation,
        "parts": keys | {name: part.key for name, part in wanted.items()},
        "files": files.known,
    }
    _write_changed(folder / KEYS, json.dumps(content, indent=1, sort_keys=True) + "\n")
    _write_changed(folder / "config.yaml", to_yaml(config))
    if not (folder / "versions.json").exists():
        write_atomic(folder / "versions.json", json.dumps(versions(), indent=1) + "\n")
    for part in wanted.values():
        for stored_name, place in part.places.items():
            kept = folder / EARLIER / part.key / stored_name
            if kept.exists() and not (folder / place).exists():
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                stores.move(kept, folder / place)


def check_folder(config: RunConfig, directory: Path) -> None:
    """Raise ManuError where a run's folder would stand in the way of others; nothing is written.

    In what the run reads it would change what that is known by, so that no second call went on.
    """
    if stores.is_store(directory):
        return
    if stores.lies_in(Path.cwd(), directory) and not (directory / KEYS).exists():
        raise ManuError(
            f"output {config.output}: it is the working folder, or holds it, and no run's folder. "
            "Give the name of a new folder inside it."
        )
    for section in ("data", "model"):
        for name in PATHS:
            given = getattr(getattr(config, section), name, None)
            if given is None or stores.is_store(given):
                continue
            read = expand_path(given)
            if read.is_dir() and stores.lies_in(directory, read):
                raise ManuError(
                    f"output {config.output}: it lies in {section}.{name} ({given}), which the run "
                    "reads. Give a folder outside of it."
                )


def _write_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text)


def _move_aside(path: Path, target: Path) -> None:
    if not path.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    number, free = 2, target
    while free.exists():
        free, number = target.with_name(f"{target.name}.{number}"), number + 1
    stores.move(path, free)


def _changes(before: Reads, now: Reads) -> Iterator[str]:
    """Yield a line for each value that differs; of a path, that its files do."""
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True):
            continue
        if key.rpartition(".")[2] in PATHS and not str(new).startswith(hub.COMMIT):
            yield f"{key}: other files there than now"
        else:
            yield f"{key}: {old!r} there, {new!r} now"


def _log_changes(
    before: Mapping[str, Part],
    wanted: Mapping[str, Part],
    keys: Mapping[str, str],
    *,
    stands: set[str],
) -> None:
    """Tell which parts of those that stand are kept, and which are made again, and why."""
    again: dict[str, dict[str, None]] = {}
    kept: dict[str, None] = {}
    for name, part in wanted.items():
        if not stands & {name, *part.places.values()}:
            continue
        if keys.get(name, part.key) == part.key:
            kept[part.label] = None
            continue
        old = before[name].reads if name in before else {}
        causes = [key for key in part.reads if old.get(key) != part.reads[key]]
        again.setdefault(part.label, {}).update(dict.fromkeys(causes or ["other files"]))
    if again:
        told = "; ".join(f"{label} ({', '.join(causes)})" for label, causes in again.items())
        stays = ", ".join(label for label in kept if label not in again)
        logger.info("the config changed. Kept: %s", stays or "nothing")
        logger.info("made again, with the earlier ones kept in %s/: %s", EARLIER, told)


def _stored_keys(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(found[name], dict) for name in ("made_from", "parts", "files")):
            fault = _fault_of(found["parts"], found["files"])
            if not fault:
                return found
        else:
            fault = "it lacks a mapping"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        fault = " ".join(str(error).split())
    raise ManuError(
        f"{path}: damaged ({fault}). Delete the file: what stands is then taken as made by the "
        "config.yaml beside it."
    )


def _fault_of(parts: Mapping[str, Any], files: Mapping[str, Any]) -> str:
    """Return what is wrong with the values of keys.json, "" for nothing."""
    for place, key in parts.items():
        names = place.split("/")
        if not isinstance(key, str) or not key or not all(names) or {".", ".."} & {*names}:
            return f"parts: {place!r}: {key!r} is no key of a place in this folder"
    for path, entry in files.items():
        kinds = [type(value) for value in entry] if isinstance(entry, list) else []
        if kinds != [int, int, str]:
            return f"files: {path!r}: expected bytes, time and hash, got {entry!r}"
    return ""


def _stored_config(file: Path) -> RunConfig:
    try:
        values = read_yaml_text(file.read_text(encoding="utf-8"))
        if isinstance(values, dict):
            return stored_config(values, str(file))
        fault = f"{file}: damaged (it holds {values!r:.60})."
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        fault = f"{file}: damaged ({' '.join(str(error).split())})."
    except ManuError as error:
        fault = str(error)
    raise ManuError(
        f"{fault}\nThe run's folder is of another version, or its config was changed. Delete it, "
        "or give another with --output."
    )

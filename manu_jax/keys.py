"""What each part of a run's folder was made from: what a changed config keeps, and what it redoes.

A part is the files that one stage makes together, such as the mask of a method. Its key is the hash
of what it reads: values of the config, the contents of input files, the keys of earlier parts. When
a run begins, parts whose key is not the config's any more are moved aside, and the stages make them
again. Parts whose key is the same stay, and parts that were moved aside come back with their key.

    keys.json              {"made_from": {name: value}, "parts": {place: key},
                            "files": {path: [bytes, time of change, SHA-256]}}
    earlier/KEY/           the files of a part with another key

`made_from` is what all parts depend on: the seed, the data and the model. A folder keeps these for
its life. The order of moves and writes allows a kill between any two: a place is recorded under its
new key only when nothing of the old key is there.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from manu_jax.config import MethodSettings, RunConfig, stored_config, to_yaml
from manu_jax.config.methods import CHOICE
from manu_jax.context import SYSTEM_PROMPT
from manu_jax.evaluation.suite import WHOLE_SETS
from manu_jax.folder import expand_path, file_hash, versions, write_atomic
from manu_jax.training.unlearner import reference_of
from manu_jax.types import MODALITIES, RETRAINED, VANILLA, ManuError
from manu_jax.yaml12 import read_yaml_text

logger = logging.getLogger("manu_jax")

KEYS = "keys.json"
EARLIER = "earlier"
# Sections that single parts read. What else a config holds, all parts depend on.
SECTIONS = ("train", "method", "compare", "unlearn", "sweep", "evaluate", "erase", "model", "data")
# What may differ between two calls on one folder and changes no number.
FREE = ("output", "cache", "mesh", "score_batch")
FREE_TRAIN = ("memory_gate", "retrained", "checkpoint_every")
PATHS = ("path", "train_path", "retrained_path")  # read for what is there, and not for their names
LOADED_IF_THERE = ("data", VANILLA, RETRAINED)
# Weights in formats that are not read.
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
Reads = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Part:
    """Files that are made together. label: what the log calls them.

    places: {name in earlier/KEY: path in the run's folder}; the first path names the part. reads:
    what they are made from, {key of the config or label of another part: value or key}.
    """

    label: str
    places: Mapping[str, str]
    reads: Reads

    @property
    def name(self) -> str:
        return next(iter(self.places.values()), self.label)

    @functools.cached_property
    def key(self) -> str:
        text = json.dumps([list(self.places), dict(self.reads)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class FileHashes:
    """Hashes of the files that a config names; a file is read again when its size or time differ.

    known: {path: [bytes, time of change, SHA-256]}, as keys.json keeps them.
    """

    def __init__(self, known: Mapping[str, Sequence[Any]] | None = None):
        self.known = {name: list(entry) for name, entry in (known or {}).items()}

    def of(self, path: str | None) -> str | None:
        """Return the hash of a file, or of a folder's files and their names; None for no path."""
        if path is None:
            return None
        place = expand_path(path)
        files = [place] if place.is_file() else sorted(_inputs(place))
        if not files:
            return "absent"
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(self._hash, files))
        names = [file.relative_to(place).as_posix() for file in files]
        pairs = list(zip(names, found, strict=True))
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]

    def _hash(self, file: Path) -> str:
        status = file.stat()
        name, stamp = os.path.realpath(file), [status.st_size, status.st_mtime_ns]
        if self.known.get(name, [])[:2] != stamp:
            if status.st_size > 2**30:
                logger.info("%s: reading it, to know it again", file)
            self.known[name] = [*stamp, file_hash(file)]
        return self.known[name][2]


def made_from(config: RunConfig, files: FileHashes) -> Reads:
    """Return what all parts of a run depend on: the seed, the data, the model."""
    values = config.model_dump(mode="json")
    found = {key: value for key, value in values.items() if key not in (*SECTIONS, *FREE)}
    found |= _named("data", values["data"])
    found |= _named("model", values["model"], without=("retrained_path",))
    for name in ("data.path", "data.train_path", "model.path"):
        found[name] = files.of(found[name])
    return found


def train_key(config: RunConfig) -> str:
    """Return the key of the models that a run trains from nothing, on a benchmark of its own."""
    return _vanilla(config, made_from(config, FileHashes())).key


def parts_of(config: RunConfig, foundation: Reads, files: FileHashes) -> list[Part]:
    """Return the parts of a run, each after those that it is made from."""
    everything = Part("seed, data and model", {}, foundation)
    models = _models(config, everything, files)
    parts = [Part("data", {"data": "data"}, everything.reads)] * (config.data.path is None)
    parts += [part for part in models.values() if part.places]
    if config.train.steps:
        keys = [part.key for part in models.values()]
        parts.append(Part("checkpoints", {"checkpoints": "checkpoints"}, {"training": keys}))
    for method in config.methods:
        found = _parts_of_method(config, method, models[VANILLA])
        parts += found
        models[method.name] = found[-1]
    first = models[config.method.name]
    parts.append(Part("unlearned", {"unlearned": "unlearned"}, {first.label: first.key}))
    for section in config.unlearn:
        reads = _named(section.name, section.model_dump(mode="json"), without=FREE_TRAIN)
        if section.decouple is not None:
            reads[f"{section.name}.decouple.path"] = files.of(section.decouple.path)
            reads[f"{section.name}.decouple"] = section.decouple.weight
        for name in [one for one in (VANILLA, reference_of(section)) if one in models]:
            reads[models[name].label] = models[name].key
        folder = f"methods/{section.name}"
        places = {"model": f"{folder}/model", "checkpoints": f"{folder}/checkpoints"}
        is_trained = section.objective != SYSTEM_PROMPT
        models[section.name] = Part(f"model of {section.name}", places if is_trained else {}, reads)
        parts += [models[section.name]] * is_trained
    evaluate = _named("evaluate", config.evaluate.model_dump(mode="json"), without=("batch_size",))
    for name, model in models.items():
        parts += _evaluations(config, name, model, everything=everything)
    reads = {part.label: part.key for part in models.values()} | evaluate
    reads |= _named("sweep", config.sweep.model_dump(mode="json"), without=("memory_mib",))
    reads |= {"erase": config.erase, "order of models": list(models), everything.label: foundation}
    places = {"results.json": "results.json", "report.html": "report.html"}
    return [*parts, Part("results", places, reads)]


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
    for name in sorted(keys):
        if name in wanted:
            is_other = keys[name] != wanted[name].key
        else:  # of a method that is no more there, or has another place
            is_other = name in LOADED_IF_THERE or keys[name] in wanted_keys
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
                os.replace(kept, folder / place)


def _models(config: RunConfig, everything: Part, files: FileHashes) -> dict[str, Part]:
    """Return the parts of the models that are trained or given; those that are given have no
    files."""
    vanilla = everything
    if config.train.steps:
        vanilla = _vanilla(config, everything.reads)
    found = {VANILLA: dataclasses.replace(vanilla, label=VANILLA)}
    given = config.model.retrained_path
    if given is not None:
        reads = {"model.retrained_path": files.of(given), "model.dtype": config.model.dtype}
        found[RETRAINED] = Part(RETRAINED, {}, reads)
    elif config.train.steps and config.train.retrained:
        found[RETRAINED] = Part(RETRAINED, {RETRAINED: RETRAINED}, vanilla.reads)
    return found


def _vanilla(config: RunConfig, foundation: Reads) -> Part:
    train = _named("train", config.train.model_dump(mode="json"), without=FREE_TRAIN)
    return Part(VANILLA, {VANILLA: VANILLA}, {**foundation, **train})


def _parts_of_method(config: RunConfig, method: MethodSettings, vanilla: Part) -> list[Part]:
    """Return the statistics, the scores and the mask of a method."""
    name = method.name
    folder = "" if name == config.method.name else f"methods/{name}/"
    values = method.measured_by()
    measured = _named(name, values)
    if values.get("reduction") == "position" and values.get("batch_size") is None:
        measured["score_batch"] = config.score_batch  # statistics by position are of a batch
    statistics = Part(
        f"statistics of {name}",
        {"statistics": f"statistics/{name}"},
        {vanilla.label: vanilla.key, **measured},
    )
    scores = Part(
        f"scores of {name}",
        {"scores.safetensors": f"{folder}scores.safetensors"},
        {statistics.label: statistics.key, **_named(name, method.scored_by())},
    )
    values = method.model_dump(mode="json")
    chosen = {key: values[key] for key in ("name", *CHOICE)}
    if method.auto is not None:  # chosen by what is left of facts, in the forms to erase
        chosen |= {"auto": values["auto"], "erase": config.erase}
    mask = Part(
        f"mask of {name}",
        {"mask.safetensors": f"{folder}mask.safetensors"},
        {scores.label: scores.key, **_named(name, chosen)},
    )
    return [statistics, scores, mask]


def _evaluations(config: RunConfig, name: str, model: Part, *, everything: Part) -> Iterator[Part]:
    """Yield the answers of a model to each task on each set, in both forms."""
    # What is measured of the answers later, and which sets and tasks there are, changes none.
    without = ("sets", "tasks", "batch_size", "resamples", "kl", "max_people")
    asked = _named("evaluate", config.evaluate.model_dump(mode="json"), without=without)
    reads = {model.label: model.key, everything.label: everything.key, **asked}
    for part in config.evaluate.sets:
        people = {} if part in WHOLE_SETS else {"evaluate.max_people": config.evaluate.max_people}
        for task in config.evaluate.tasks:
            names = [
                f"{part}.{task}.{modality}{kind}.jsonl"
                for modality in MODALITIES
                for kind in ("", ".partial")
            ]
            places = {file: f"evaluation/{name}/{file}" for file in names}
            yield Part(f"evaluation of {name}", places, {**reads, **people})


def _named(section: str, values: Mapping[str, Any], without: Sequence[str] = ()) -> dict[str, Any]:
    return {f"{section}.{key}": value for key, value in values.items() if key not in without}


def _inputs(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder that may be read: none that are hidden, links are followed."""
    seen = set()
    for place, inner, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:
            inner.clear()
            continue
        seen.add(os.path.realpath(place))
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in names:
            file = Path(place) / name
            if not name.startswith(".") and file.is_file() and file.suffix not in OTHER_WEIGHTS:
                yield file


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
    os.replace(path, free)


def _changes(before: Reads, now: Reads) -> Iterator[str]:
    """Yield a line for each value that differs; of a path, that its files do."""
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True):
            continue
        if key.rpartition(".")[2] in PATHS:
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
            return found
        fault = "it lacks a mapping"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        fault = " ".join(str(error).split())
    raise ManuError(
        f"{path}: damaged ({fault}). Delete the file: what stands is then taken as made by the "
        "config.yaml beside it."
    )


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

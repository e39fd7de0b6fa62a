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
from pathlib import Path
from typing import Any

import yaml

from manu_jax import hub
from manu_jax.config import (
    SYSTEM_PROMPT,
    MaskMethod,
    MethodSettings,
    RunConfig,
    UnlearnSection,
    stored_config,
    to_yaml,
)
from manu_jax.config.methods import CHOICE
from manu_jax.context import EDIT, MASK
from manu_jax.data.own_answers import FOLDER as OWN
from manu_jax.evaluation.analyses.audit import attacks_of, audited
from manu_jax.evaluation.suite import WHOLE_SETS
from manu_jax.folder import FileHashes, versions, write_atomic
from manu_jax.importance.texts import texts_read, wants_own_texts
from manu_jax.training.replay import REPLAY
from manu_jax.training.unlearner import reference_of
from manu_jax.types import MODALITIES, RETRAINED, VANILLA, ManuError
from manu_jax.yaml12 import read_yaml_text

logger = logging.getLogger("manu_jax")

KEYS = "keys.json"
EARLIER = "earlier"
# Sections that single parts read. What else a config holds, all parts depend on.
SECTIONS = (*"train method compare unlearn sweep evaluate audit erase push model data".split(),)
# What may differ between two calls on one folder and changes no number.
FREE = ("output", "cache", "mesh", "score_batch")
FREE_TRAIN = ("memory_gate", "retrained", "checkpoint_every")
TEXTS = ("keep_texts",)  # see `texts_read`
FREE_DATA = ("keep_share",)  # read by what methods are given, and by whom models are asked about
PATHS = ("path", "train_path", "retrained_path", "decoder")  # read for what is there alone
# What folders of earlier releases know nothing of: where it is not given, nothing is read.
LATER = ("model.decoder",)
LATER += tuple(f"train.{key}" for key in "tower rates frozen replay interpolation stop".split())
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


def made_from(config: RunConfig, files: FileHashes) -> Reads:
    """Return what all parts of a run depend on: the seed, the data, the model."""
    values = config.model_dump(mode="json")
    found = {key: value for key, value in values.items() if key not in (*SECTIONS, *FREE)}
    found |= _named("data", values["data"], without=FREE_DATA)
    found |= _named("model", values["model"], without=("retrained_path",))
    for name in {"data.path", "data.train_path", "model.path", "model.decoder"} & found.keys():
        kind = "model" if name.startswith("model.") else "dataset"
        found[name] = hub.fingerprint(found[name], kind, files)
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
    vanilla = models[VANILLA]
    parts.append(Part("own answers", {OWN: OWN}, {vanilla.label: vanilla.key}))
    given = dict(models)
    for method in config.all_methods:
        if isinstance(method, UnlearnSection):
            found = _parts_of_training(config, method, given, files)
        else:
            found = _parts_of_method(config, method, models[VANILLA], files=files)
        parts += [part for part in found if part.places]
        models[method.name] = found[-1]
    if any(wants_own_texts(method) for method in config.all_methods):
        parts.append(Part("texts", {"texts": "texts"}, {VANILLA: models[VANILLA].key}))
    if not isinstance(config.method, UnlearnSection):  # one that trains has it among its own parts
        first = models[config.method.name]
        parts.append(Part("unlearned", {"unlearned": "unlearned"}, {first.label: first.key}))
    evaluate = _named("evaluate", config.evaluate.model_dump(mode="json"), without=("batch_size",))
    for name, model in models.items():
        parts += _evaluations(config, name, model, everything=everything)
        parts += _audits(config, name, models)
    reads = {part.label: part.key for part in models.values()} | evaluate
    reads |= _named("sweep", config.sweep.model_dump(mode="json"), without=("memory_mib",))
    reads |= _named("audit", config.audit.model_dump(mode="json"))
    reads |= {"erase": config.erase, "order of models": list(models), everything.label: foundation}
    reads["data.keep_share"] = config.data.keep_share
    places = {"results.json": "results.json", "report.html": "report.html"}
    parts.append(Part("results", places, reads))
    if config.push is not None:
        sent = {"push": config.push, "results": parts[-1].key}
        parts.append(Part("push", {"pushed.json": "pushed.json"}, sent))
    return parts


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
        commit = hub.fingerprint(given, "model", files)
        reads = {"model.retrained_path": commit, "model.dtype": config.model.dtype}
        found[RETRAINED] = Part(RETRAINED, {}, reads)
    elif config.train.steps and config.train.retrained:
        found[RETRAINED] = Part(RETRAINED, {RETRAINED: RETRAINED}, vanilla.reads)
    return found


def _vanilla(config: RunConfig, foundation: Reads) -> Part:
    train = _named("train", config.train.model_dump(mode="json"), without=FREE_TRAIN)
    places = {VANILLA: VANILLA} | ({REPLAY: REPLAY} if "train.replay" in train else {})
    return Part(VANILLA, places, {**foundation, **train})


def _parts_of_method(
    config: RunConfig, method: MethodSettings, vanilla: Part, *, files: FileHashes
) -> list[Part]:
    """Return the statistics, the scores and the mask of a method; or statistics and edit."""
    name, folder = method.name, _folder_of(config, method.name)
    values = method.measured_by()
    measured = _named(name, values, without=TEXTS) | texts_read(method, files)
    if values.get("reduction") == "position" and values.get("batch_size") is None:
        measured["score_batch"] = config.score_batch  # statistics by position are of a batch
    statistics = Part(
        f"statistics of {name}",
        {"statistics": f"statistics/{name}"},
        {vanilla.label: vanilla.key, "data.keep_share": config.data.keep_share, **measured},
    )
    if not isinstance(method, MaskMethod):
        reads = {statistics.label: statistics.key, **_named(name, method.made_by())}
        return [statistics, Part(f"edit of {name}", {EDIT: f"{folder}{EDIT}"}, reads)]
    scores = Part(
        f"scores of {name}",
        {"scores.safetensors": f"{folder}scores.safetensors"},
        {statistics.label: statistics.key, **_named(name, method.scored_by(), without=TEXTS)},
    )
    values = method.model_dump(mode="json")
    chosen = {key: values[key] for key in ("name", *CHOICE)}
    if method.auto is not None:  # chosen by what is left of facts, in the forms to erase
        chosen |= {"auto": values["auto"], "erase": config.erase}
    mask = Part(
        f"mask of {name}",
        {MASK: f"{folder}{MASK}"},
        {scores.label: scores.key, **_named(name, chosen)},
    )
    return [statistics, scores, mask]


def _parts_of_training(
    config: RunConfig, section: UnlearnSection, given: dict[str, Part], files: FileHashes
) -> list[Part]:
    """Return the edit and the model of a method that trains: it makes one of both.

    The model of the first method is unlearned/, which is made of the edit where there is one.
    given: the parts of vanilla and retrained.
    """
    name = section.name
    reads = _named(name, section.model_dump(mode="json"), without=(*FREE_TRAIN, *TEXTS, "kind"))
    reads |= texts_read(section, files)
    if section.decouple is not None:
        reads[f"{name}.decouple.path"] = files.of(section.decouple.path)
        reads[f"{name}.decouple"] = section.decouple.weight
    for other in [one for one in (VANILLA, reference_of(section)) if one in given]:
        reads[given[other].label] = given[other].key
    if section.objective == SYSTEM_PROMPT:
        return [Part(f"model of {name}", {}, reads)]
    reads["data.keep_share"] = config.data.keep_share
    model = "unlearned" if name == config.method.name else f"methods/{name}/model"
    places = {"model": model, "checkpoints": f"methods/{name}/checkpoints"}
    edit = Part(f"edit of {name}", {EDIT: f"{_folder_of(config, name)}{EDIT}"}, reads)
    return [edit, Part(f"model of {name}", places, reads)]


def _folder_of(config: RunConfig, name: str) -> str:
    """Return where the files of a method are, as the beginning of their places."""
    return "" if name == config.method.name else f"methods/{name}/"


def _evaluations(config: RunConfig, name: str, model: Part, *, everything: Part) -> Iterator[Part]:
    """Yield the answers of a model to each task on each set, in both forms."""
    # What is measured of the answers later, and which sets and tasks there are, changes none.
    without = ("sets", "tasks", "batch_size", "resamples", "kl", "ability", "max_people")
    asked = _named("evaluate", config.evaluate.model_dump(mode="json"), without=without)
    reads = {model.label: model.key, everything.label: everything.key, **asked}
    for part in config.evaluate.sets:
        people: dict[str, Any] = {}
        if part not in WHOLE_SETS:
            people["evaluate.max_people"] = config.evaluate.max_people
        if part not in WHOLE_SETS or config.evaluate.shots_from == "outside":  # shots are of retain
            people["data.keep_share"] = config.data.keep_share
        for task in config.evaluate.tasks:
            names = [
                f"{part}.{task}.{modality}{kind}.jsonl"
                for modality in MODALITIES
                for kind in ("", ".partial")
            ]
            places = {file: f"evaluation/{name}/{file}" for file in names}
            yield Part(f"evaluation of {name}", places, {**reads, **people})


def _audits(config: RunConfig, name: str, models: Mapping[str, Part]) -> Iterator[Part]:
    """Yield the rows of each attack on a model, and what those that train keep of their curves."""
    if not (names := audited(config)) or name not in (*names, RETRAINED):
        return
    beside = [models[one] for one in (name, VANILLA, RETRAINED) if one in models]
    read = {"evaluate": {"new_tokens", "resamples"}, "audit": {"learning_rates", "steps"}}
    reads = config.model_dump(mode="json", include=read) | {part.label: part.key for part in beside}
    reads["data.keep_share"] = config.data.keep_share  # whose facts tuning trains
    for attack in attacks_of(config):
        files = {file: f"audit/{name}/{file}" for file in (f"{attack}.rows.json", f"{attack}.json")}
        yield Part(f"audit of {name}", files, reads)


def _named(section: str, values: Mapping[str, Any], without: Sequence[str] = ()) -> dict[str, Any]:
    named = {f"{section}.{key}": value for key, value in values.items() if key not in without}
    return {name: value for name, value in named.items() if value or name not in LATER}


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

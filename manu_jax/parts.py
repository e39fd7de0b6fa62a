"""The parts of a run's folder, and what each is made from.

A part is the files that one stage makes together, such as the mask of a method. Its key is the hash
of what it reads: values of the config, the contents of input files, the keys of earlier parts.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from manu_jax import hub
from manu_jax.config import (
    SYSTEM_PROMPT,
    MaskMethod,
    MethodSettings,
    RunConfig,
    UnlearnSection,
)
from manu_jax.config.methods import CHOICE
from manu_jax.context import EDIT, MASK
from manu_jax.data.own_answers import FOLDER as OWN
from manu_jax.evaluation.analyses.audit import attacks_of, audited
from manu_jax.evaluation.analyses.neurons import possible
from manu_jax.evaluation.judged_records import JUDGED, JUDGED_PART
from manu_jax.evaluation.neurons.kept import kept_file
from manu_jax.evaluation.published import PUBLISHED, exported_files, has_published
from manu_jax.evaluation.suite import WHOLE_SETS
from manu_jax.folder import FileHashes
from manu_jax.importance.texts import texts_read, wants_own_texts
from manu_jax.training.replay import REPLAY
from manu_jax.training.unlearner import reference_of
from manu_jax.types import MODALITIES, RETRAINED, VANILLA

# Sections that single parts read. What else a config holds, all parts depend on.
SECTIONS = (
    *"train method compare unlearn sweep evaluate audit neurons calibration".split(),
    *"erase push model data".split(),
)
# What may differ between two calls on one folder and changes no number.
FREE = ("output", "cache", "mesh", "attention", "score_batch", "workers")
FREE_TRAIN = ("memory_gate", "retrained", "checkpoint_every")
TEXTS = ("keep_texts",)  # see `texts_read`
FREE_DATA = ("keep_share",)  # read by what methods are given, and by whom models are asked about
PATHS = ("path", "train_path", "retrained_path", "decoder")  # read for what is there alone
# What folders of earlier releases know nothing of: where it is not given, nothing is read.
LATER = ("model.decoder", "data.subset", "data.partly_known", "audit.lora")
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
    without = ("batch_size", "judge", *([] if has_published(config) else ["published"]))
    evaluate = _named("evaluate", config.evaluate.model_dump(mode="json"), without=without)
    for name, model in models.items():
        parts += _evaluations(config, name, model, everything=everything)
        parts += _published(config, name, model, everything=everything)
        parts += _audits(config, name, models)
        parts += _neurons(config, name, models)
    reads = {part.label: part.key for part in models.values()} | evaluate
    reads |= _named("sweep", config.sweep.model_dump(mode="json"), without=("memory_mib",))
    reads |= _named("audit", config.audit.model_dump(mode="json"), without=("remat",))
    for section in ("neurons", "calibration"):
        reads |= _named(section, getattr(config, section).model_dump(mode="json"))
    reads |= {"erase": config.erase, "order of models": list(models), everything.label: foundation}
    reads["data.keep_share"] = config.data.keep_share
    if config.evaluate.judge is not None:
        reads["evaluate.judge"] = config.evaluate.judge.identity
    places = {file: file for file in ("results.json", "report.html", "neurons.html")}
    if has_published(config):
        places |= {file: file for name in models for file in exported_files(config, name).values()}
    parts.append(Part("results", places, reads))
    if config.push is not None:
        sent = {"push": config.push, "results": parts[-1].key}
        parts.append(Part("push", {"pushed.json": "pushed.json"}, sent))
    return parts


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
    without = tuple("sets tasks batch_size resamples kl ability max_people published judge".split())
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


def _published(config: RunConfig, name: str, model: Part, *, everything: Part) -> Iterator[Part]:
    """Yield the answers of a model to the benchmark's own protocol, if it is asked."""
    if not has_published(config):
        return
    reads: dict[str, Any] = {model.label: model.key, everything.label: everything.key}
    values = config.evaluate.published.model_dump(mode="json")
    reads |= _named("evaluate.published", values, without=("asked",))
    reads["data.keep_share"] = config.data.keep_share  # whose probes are of people not given
    folder = f"evaluation/{name}/{PUBLISHED}"
    asked = Part(f"published protocol, {name}", {PUBLISHED: folder}, reads)
    yield asked
    if config.evaluate.judge is not None:
        reads = {asked.label: asked.key, "evaluate.judge": config.evaluate.judge.identity}
        places = {file: f"evaluation/{name}/{file}" for file in (JUDGED, JUDGED_PART)}
        yield Part(f"verdicts on {name}", places, reads)


def _audits(config: RunConfig, name: str, models: Mapping[str, Part]) -> Iterator[Part]:
    """Yield the rows of each attack on a model, and what those that train keep of their curves."""
    if not (names := audited(config)) or name not in (*names, RETRAINED):
        return
    beside = [models[one] for one in (name, VANILLA, RETRAINED) if one in models]
    read = {"evaluate": {"new_tokens", "resamples"}, "audit": {"learning_rates", "steps"}}
    reads = config.model_dump(mode="json", include=read) | {part.label: part.key for part in beside}
    reads["data.keep_share"] = config.data.keep_share  # whose facts tuning trains
    if config.audit.lora is not None:
        reads["audit.lora"] = config.audit.lora.model_dump(mode="json")
    for attack in attacks_of(config):
        files = {file: f"audit/{name}/{file}" for file in (f"{attack}.rows.json", f"{attack}.json")}
        yield Part(f"audit of {name}", files, reads)


def _neurons(config: RunConfig, name: str, models: Mapping[str, Part]) -> Iterator[Part]:
    """Yield what is kept of the neurons that a method changed, if it may be looked at."""
    if name not in possible(config):
        return
    beside = [models[one] for one in (name, VANILLA) if one in models]
    asked = config.neurons.model_dump(mode="json", exclude={"methods"})
    reads = {**_named("neurons", asked), **{part.label: part.key for part in beside}}
    reads |= {"data.keep_share": config.data.keep_share, "resamples": config.evaluate.resamples}
    place = kept_file(name)
    yield Part(f"neurons of {name}", {place.rpartition("/")[2]: place}, reads)


def _named(section: str, values: Mapping[str, Any], without: Sequence[str] = ()) -> dict[str, Any]:
    named = {f"{section}.{key}": value for key, value in values.items() if key not in without}
    return {name: value for name, value in named.items() if value or name not in LATER}

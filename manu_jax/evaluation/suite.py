"""Sets × tasks × modalities: a file of records for each, and rows of results.

All items of one modality are pooled, so that batches are full and few shapes are compiled.

    DIRECTORY/MODEL/SET.TASK.MODALITY.jsonl   one record a line (tasks.py, record_files.py)
"""

import collections
import dataclasses
import json
import logging
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from manu_jax.config import EvaluateSection
from manu_jax.data.forms import has_form
from manu_jax.data.prompts import question_prompt
from manu_jax.data.record import Benchmark, Person, QuestionPrompt
from manu_jax.evaluation.generate import greedy
from manu_jax.evaluation.likelihood import log_likelihoods
from manu_jax.evaluation.metrics import (
    METRICS,
    CandidateScore,
    Interval,
    Response,
    bootstrap,
    measured,
)
from manu_jax.evaluation.plain import fits, plain_interval
from manu_jax.evaluation.record_files import Record, RecordFile, complete, read_records
from manu_jax.evaluation.shots import draw_shots
from manu_jax.evaluation.tasks import TASKS_BY_NAME, Item, Prompting, record_of
from manu_jax.folder import expand_path
from manu_jax.models.loaded import Loaded
from manu_jax.types import (
    FORGET_SETS,
    MODALITIES,
    SETS,
    ManuError,
    Modality,
    Sample,
    raise_faults,
)

logger = logging.getLogger(__name__)

CHUNK = 4096  # items between two writes
WHOLE_SETS = FORGET_SETS  # max_people leaves them as they are


@dataclasses.dataclass
class _File(RecordFile[Item]):
    """The file of a task on a set in a form."""

    set: str
    task: str
    modality: Modality


def evaluate(
    loaded: Loaded,
    sets: Mapping[str, Sequence[Person]],
    section: EvaluateSection,
    *,
    directory: str | os.PathLike,
    model_name: str,
    question_prompt: QuestionPrompt = question_prompt,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return the rows {model, set, task, modality, metric, value, n, low, high} of one model.

    n: the items that the metric could measure; where there are none, value is None.
    question_prompt: the benchmark's wording; the default is MLLMU-Bench's.
    low, high: 95 % interval by bootstrap over people, None for a single person. A set without items
    of a kind gives no rows. A file that exists is read instead of asked again. Raises ManuError for
    unknown sets and tasks, and where files are damaged or hold other questions.
    """
    _check_names(section, sets)
    folder = expand_path(directory) / model_name
    files = _files(loaded, sets, section, folder=folder, seed=seed, question_prompt=question_prompt)
    for modality in MODALITIES:
        _complete(loaded, [file for file in files if file.modality == modality], section)
    return [row for file in files for row in _rows(file, model_name, section, seed=seed)]


def check_prompts(
    loaded: Loaded,
    sets: Mapping[str, Sequence[Person]],
    section: EvaluateSection,
    *,
    question_prompt: QuestionPrompt = question_prompt,
    seed: int = 0,
) -> None:
    """Raise ManuError, with the arithmetic, where a prompt and its answer exceed the context.

    Asks the model nothing, so that a run can be refused before it begins.
    """
    _check_names(section, sets)
    faults = []
    for file in _files(
        loaded, sets, section, folder=None, seed=seed, question_prompt=question_prompt
    ):
        prompts = [item.prompt_sample for item in file.items if item.prompt_sample is not None]
        candidates = [candidate for item in file.items for candidate in item.candidates]
        samples = [
            *((prompt, section.new_tokens) for prompt in prompts),
            *((candidate, 0) for candidate in candidates),
        ]
        faults += over_context(loaded, samples, file.name)
    raise_faults(
        faults,
        "Prompts that are longer than the model's context. Lower evaluate.shots or "
        "evaluate.new_tokens, or set evaluate.protocol: zero_shot. The longest of each kind:",
    )


def over_context(
    loaded: Loaded, samples: Sequence[tuple[Sample, int]], where: str
) -> Iterator[str]:
    """Yield the arithmetic of the longest of these samples if it exceeds the model's context.

    samples: each with the tokens that are to be written after it.
    """
    counts = loaded.count_tokens([sample for sample, _ in samples])
    totals = [sum(count) + room for count, (_, room) in zip(counts, samples, strict=True)]
    longest = max(range(len(totals)), key=totals.__getitem__)
    if totals[longest] > loaded.context:
        (text, images), (sample, room) = counts[longest], samples[longest]
        shown = (
            f"{len(sample.images)} × {images // len(sample.images)} tokens of images + "
            if sample.images
            else ""
        )
        yield (
            f"{where}, {sample.key}: {shown}{text} of text + {room} to be written = "
            f"{totals[longest]} > {loaded.context}"
        )


def evaluated_people(
    sets: Mapping[str, Sequence[Person]], name: str, section: EvaluateSection
) -> list[Person]:
    """Return the people of a set who are asked: all, or outside of WHOLE_SETS the first by ID."""
    if section.max_people is None or name in WHOLE_SETS:
        return list(sets[name])
    return first_by_id(sets[name], section.max_people)


def first_by_id(people: Iterable[Person], most: int | None) -> list[Person]:
    """Return the first `most` people by ID; None: all."""
    return sorted(people, key=lambda person: person.id)[:most]


def skipped_items(
    benchmark: Benchmark,
    evaluated: Mapping[str, Sequence[Person]],
    unmeasured: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, int]:
    """Return how many items of each kind are not asked or measured.

    evaluated: {set: its people who are asked}; other sets do not count. unmeasured: see
    `unmeasured_items`.
    """
    num_people = sum(len(benchmark.sets[name]) for name in evaluated)
    people = [person for part in evaluated.values() for person in part]
    counts = {"people beyond evaluate.max_people": num_people - len(people)}
    for modality in benchmark.modalities:
        counts[f"facts that have no {modality} form"] = sum(
            not has_form(fact, modality) for person in people for fact in person.facts
        )
    counts |= unmeasured
    return dict(benchmark.skipped) | {what: count for what, count in counts.items() if count}


def unmeasured_items(records: Mapping[tuple[str, str, str], Sequence[Record]]) -> dict[str, int]:
    """Return {what a metric can't measure: how many items} of one model's records.

    The items are the same for all models.
    """
    counts: collections.Counter[str] = collections.Counter()
    for (_, task, _), items in records.items():
        fields: dict[str, list[str]] = {}
        for name, field in TASKS_BY_NAME[task].metrics.items():
            fields.setdefault(METRICS[name].unmeasurable, []).append(field)
        for what, names in fields.items():
            counts[what] += sum(any(item.get(name, 0) is None for name in names) for item in items)
    return {what: count for what, count in counts.items() if what}


def stored_records(
    folder: str | Path, sets: Collection[str] = SETS, tasks: Collection[str] | None = None
) -> dict[tuple[str, str, str], list[Record]]:
    """Return {(set, task, modality): records} of the files that `evaluate` left for one model.

    sets, tasks: that were asked (None: all); files of others are of earlier configs, perhaps of
    another model. Raises ManuError for a damaged file.
    """
    found = {}
    for name in (one for one in SETS if one in sets):
        for task in (one for one in TASKS_BY_NAME if tasks is None or one in tasks):
            for modality in MODALITIES:
                path = expand_path(folder) / f"{name}.{task}.{modality}.jsonl"
                if path.exists():
                    found[name, task, modality] = _stored(path)
    return found


def _stored(path: Path) -> list[Record]:
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not all(isinstance(record, dict) and "person" in record for record in records):
            raise ValueError("a line is no record")
        if not records:
            raise ValueError("it is empty")
    except (ValueError, RecursionError) as error:
        raise ManuError(
            f"{path}: damaged ({error}). Restore it, or delete it and give the command again."
        ) from error
    return records


def _check_names(section: EvaluateSection, sets: Mapping[str, Any]) -> None:
    faults = [
        f"evaluate.{what}: unknown {', '.join(map(repr, unknown))}; known: {', '.join(known)}."
        for what, names, known in (
            ("sets", section.sets, sets),
            ("tasks", section.tasks, TASKS_BY_NAME),
        )
        if (unknown := [name for name in names if name not in known])
    ]
    if faults:
        raise ManuError("\n".join(faults))


def _files(
    loaded: Loaded,
    sets: Mapping[str, Sequence[Person]],
    section: EvaluateSection,
    *,
    folder: Path | None,
    seed: int,
    question_prompt: QuestionPrompt,
) -> list[_File]:
    """Return the files that have items, with the records in the folder (None: no records)."""
    files, empty, faults = [], [], []
    for task in section.tasks:
        for name in section.sets:
            evaluated = evaluated_people(sets, name, section)
            shots, people = draw_shots(sets, evaluated, section, name=name, task=task, seed=seed)
            if shots.people:
                who = ", ".join(shots.people)
                logger.info("evaluate: shots of %s on %s are of %s", task, name, who)
            prompting = Prompting(
                loaded.template, section.protocol, shots.questions, question_prompt
            )
            for modality in MODALITIES:
                items = list(TASKS_BY_NAME[task].items(people, modality, prompting))
                if not items:
                    empty.append(f"{name}.{task}.{modality}")
                    continue
                place = f"{name}.{task}.{modality}"
                file = _File(folder or Path(), place, items, [], name, task, modality)
                try:
                    file.records = [] if folder is None else _read(file, section)
                except ManuError as error:
                    faults.append(str(error))
                files.append(file)
    if faults:
        raise ManuError("\n".join(faults))
    asked_forms = {file.modality for file in files}
    empty = [name for name in empty if name.rpartition(".")[2] in asked_forms]
    if empty:
        logger.info("evaluate: no items for %s", ", ".join(empty))
    return files


def _read(file: _File, section: EvaluateSection) -> list[Record]:
    """Return the records that exist; ManuError where they are not those of the file's items."""
    metrics = TASKS_BY_NAME[file.task].metrics_under(section.protocol)

    def missing(record: Record, item: Item) -> list[str]:
        fields = metrics.items()
        return sorted({field for name, field in fields if not _has_value(record, name, item)})

    return read_records(file, missing)


def _has_value(record: Record, metric: str, item: Item) -> bool:
    """Whether a record has a number for a metric, or null where it can't measure the item."""
    value = record.get(METRICS[metric].field or metric, math.nan)
    if value is None and METRICS[metric].unmeasurable:
        response = Response("", item.truth, item.options, alternatives=item.alternatives)
        return METRICS[metric].function(response) is None
    return isinstance(value, bool) or fits(value, float)


def _complete(loaded: Loaded, files: Sequence[_File], section: EvaluateSection) -> None:
    """Ask what is missing in these files, all of one modality, and write them."""

    def ask(pairs: Sequence[tuple[_File, Item]]) -> list[Record]:
        answered = _ask(loaded, [item for _, item in pairs], section)
        return [
            record_of(file.task, item, answer=answer, candidates=scores, protocol=section.protocol)
            for (file, item), (answer, scores) in zip(pairs, answered, strict=True)
        ]

    complete(files, ask, chunk=CHUNK)


def _ask(
    loaded: Loaded, items: Sequence[Item], section: EvaluateSection
) -> list[tuple[str, list[CandidateScore]]]:
    """Return what the model wrote for each item, and the scores of its candidates."""
    answers = iter(
        greedy(
            loaded,
            [item.prompt_sample for item in items if item.prompt_sample is not None],
            new_tokens=section.new_tokens,
            batch_size=section.batch_size,
        )
    )
    found = log_likelihoods(
        loaded,
        [candidate for item in items for candidate in item.candidates],
        batch_size=section.batch_size,
    )
    pairs = zip(found.mean_N.tolist(), found.recalled_N.tolist(), strict=True)
    scores = (CandidateScore(mean, is_recalled) for mean, is_recalled in pairs)
    return [
        (
            "" if item.prompt_sample is None else next(answers),
            [next(scores) for _ in item.candidates],
        )
        for item in items
    ]


def _rows(
    file: _File, model_name: str, section: EvaluateSection, *, seed: int
) -> list[dict[str, Any]]:
    rows = []
    for metric, field in TASKS_BY_NAME[file.task].metrics_in(file.records[0]).items():
        values, people = measured(file.records, field)
        if values:
            found = bootstrap(values, people, resamples=section.resamples, seed=seed)
        else:
            found = Interval(math.nan, math.nan, math.nan, 0)
        rows.append(
            {
                "model": model_name,
                "set": file.set,
                "task": file.task,
                "modality": file.modality,
                "metric": metric,
                **plain_interval(found),
            }
        )
    return rows

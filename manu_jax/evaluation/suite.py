"""Sets × tasks × modalities: a file of records for each, and rows of results.

All items of one modality are pooled, so that batches are full and few shapes are compiled. Records
are written chunk by chunk, so a killed run loses at most one chunk.

    DIRECTORY/MODEL/SET.TASK.MODALITY.jsonl           one record a line (tasks.py)
    DIRECTORY/MODEL/SET.TASK.MODALITY.partial.jsonl   the first records of an unfinished file
"""

import collections
import dataclasses
import functools
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from manu_jax import parallel
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
from manu_jax.evaluation.shots import draw_shots
from manu_jax.evaluation.tasks import TASKS_BY_NAME, Item, Prompting, record_of
from manu_jax.folder import write_atomic
from manu_jax.models.loaded import Loaded
from manu_jax.types import FORGET_SETS, MODALITIES, SETS, ManuError, Modality, raise_faults

logger = logging.getLogger(__name__)

CHUNK = 4096  # items between two writes
WHOLE_SETS = FORGET_SETS  # max_people leaves them as they are

Record = dict[str, Any]


@dataclasses.dataclass
class _File:
    """One file: its items, and the records so far."""

    folder: Path
    set: str
    task: str
    modality: Modality
    items: list[Item]
    records: list[Record]

    @property
    def name(self) -> str:
        return f"{self.set}.{self.task}.{self.modality}"

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.jsonl"

    @property
    def partial(self) -> Path:
        return self.path.with_suffix(".partial.jsonl")


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
    folder = Path(directory) / model_name
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
            faults.append(
                f"{file.name}, {sample.key}: {shown}{text} of text + {room} to be written = "
                f"{totals[longest]} > {loaded.context}"
            )
    raise_faults(
        faults,
        "Prompts that are longer than the model's context. Lower evaluate.shots or "
        "evaluate.new_tokens, or set evaluate.protocol: zero_shot. The longest of each kind:",
    )


def evaluated_people(
    sets: Mapping[str, Sequence[Person]], name: str, section: EvaluateSection
) -> list[Person]:
    """Return the people of a set who are asked: all, or outside of WHOLE_SETS the first by ID."""
    people = list(sets[name])
    if section.max_people is not None and name not in WHOLE_SETS:
        people = sorted(people, key=lambda person: person.id)[: section.max_people]
    return people


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


def stored_records(folder: str | Path) -> dict[tuple[str, str, str], list[Record]]:
    """Return {(set, task, modality): records} of the files that `evaluate` left for one model."""
    found = {}
    for name in SETS:
        for task in TASKS_BY_NAME:
            for modality in MODALITIES:
                path = Path(folder) / f"{name}.{task}.{modality}.jsonl"
                if path.exists():
                    lines = path.read_text(encoding="utf-8").splitlines()
                    found[name, task, modality] = [json.loads(line) for line in lines]
    return found


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
                file = _File(folder or Path(), name, task, modality, items, [])
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
    path = file.path if parallel.exists(file.path) else file.partial
    if not parallel.exists(path):
        return []
    metrics = TASKS_BY_NAME[file.task].metrics_under(section.protocol)
    records: list[Record] = []
    fault = ""
    try:
        text = path.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            fault = "damaged: its last line has no end"
        for number, line in enumerate(text.splitlines()):
            record = json.loads(line)
            record = record if isinstance(record, dict) else {}
            item = file.items[min(number, len(file.items) - 1)]
            missing = sorted(
                {field for name, field in metrics.items() if not _has_value(record, name, item)}
            )
            if missing and not fault:
                fault = f"damaged: line {number + 1} has no number for {', '.join(missing)}"
            records.append(record)
    except (OSError, ValueError) as error:
        fault = f"damaged ({error})"
    fault = fault or _mismatch(file, records, is_whole=path == file.path)
    if fault:
        raise ManuError(f"{path}: {fault}. Delete the file and give the command again.")
    return records


def _mismatch(file: _File, records: Sequence[Record], *, is_whole: bool) -> str:
    """Return what tells that records are not those of a file's items; "" if nothing does."""
    expected = [(item.key, item.person, item.prompt, item.truth) for item in file.items]
    names = ("key", "person", "prompt", "truth")
    found = [tuple(record.get(name) for name in names) for record in records]
    if len(found) > len(expected) or (is_whole and len(found) != len(expected)):
        return f"it holds {len(found)} records, {len(expected)} are asked now"
    for number, (one, other) in enumerate(zip(found, expected, strict=False), start=1):
        if one != other:
            return f"line {number} is about {one[0]}, with another question than now"
    return ""


def _has_value(record: Record, metric: str, item: Item) -> bool:
    """Whether a record has a number for a metric, or null where it can't measure the item."""
    value = record.get(METRICS[metric].field or metric, math.nan)
    if value is None and METRICS[metric].unmeasurable:
        response = Response("", item.truth, item.options, alternatives=item.alternatives)
        return METRICS[metric].function(response) is None
    return isinstance(value, bool) or fits(value, float)


def _complete(loaded: Loaded, files: Sequence[_File], section: EvaluateSection) -> None:
    """Ask what is missing in these files, all of one modality, and write them.

    A chunk is asked whole or not at all, so that an item always shares its batch with the same
    others. After a killed run the numbers are the same to the last digit.
    """
    everything = [(file, number) for file in files for number in range(len(file.items))]
    for start in range(0, len(everything), CHUNK):
        chunk = everything[start : start + CHUNK]
        incomplete = [file for file, number in chunk if number >= len(file.records)]
        if not incomplete:
            continue
        items = [file.items[number] for file, number in chunk]
        for (file, number), item, (answer, scores) in zip(
            chunk, items, _ask(loaded, items, section), strict=True
        ):
            if number == len(file.records):
                record = record_of(
                    file.task, item, answer=answer, candidates=scores, protocol=section.protocol
                )
                file.records.append(record)
        changed = list({file.name: file for file in incomplete}.values())
        parallel.on_first_process(functools.partial(_write_all, changed))


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


def _write_all(files: Sequence[_File]) -> None:
    for file in files:
        _write(file)


def _write(file: _File) -> None:
    is_whole = len(file.records) == len(file.items)
    # Escaped beyond ASCII, since some characters of other scripts count as line ends.
    lines = [json.dumps(record, allow_nan=False) + "\n" for record in file.records]
    write_atomic(file.path if is_whole else file.partial, "".join(lines))
    if is_whole:
        file.partial.unlink(missing_ok=True)


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

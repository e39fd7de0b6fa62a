"""Sets × tasks × modalities → a file of records each, and rows of results.

All that is asked in one modality is pooled, so that batches are full and few shapes are compiled.
Records are written chunk by chunk: a killed run loses at most one.

    DIRECTORY/MODEL/SET.TASK.MODALITY.jsonl           one record a line (tasks.py)
    DIRECTORY/MODEL/SET.TASK.MODALITY.partial.jsonl   the first records of a file in the making
"""

import dataclasses
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manu_jax import parallel
from manu_jax.config import EvaluateSection
from manu_jax.data.prompts import question_prompt
from manu_jax.data.record import Person, QuestionPrompt
from manu_jax.evaluation.generate import greedy
from manu_jax.evaluation.likelihood import log_likelihoods
from manu_jax.evaluation.metrics import bootstrap
from manu_jax.evaluation.shots import draw_shots
from manu_jax.evaluation.tasks import TASKS, Item, Measured, Prompting, record_of
from manu_jax.folder import write_atomic
from manu_jax.types import MODALITIES, SETS, ManuError, Modality, raise_faults

logger = logging.getLogger(__name__)

CHUNK = 4096  # items between two writes
WHOLE_SETS = ("forget", "test")  # max_people leaves them as they are

Record = dict[str, Any]


@dataclasses.dataclass
class _File:
    """One file: what is asked, and the records so far."""

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
    loaded: Any,
    sets: Mapping[str, Sequence[Person]],
    section: EvaluateSection,
    *,
    directory: str | os.PathLike,
    model_name: str,
    question_prompt: QuestionPrompt = question_prompt,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return the rows {model, set, task, modality, metric, value, n, low, high} of one model.

    question_prompt: the benchmark's wording; the default is MLLMU-Bench's.
    low, high: 95 % interval by bootstrap over people, None where there is one. A set without items
    of a kind gives no rows. A file that stands is read instead of asked again. Raises ManuError for
    unknown sets and tasks, and where files are damaged or hold other questions.
    """
    _check_names(section, sets)
    files = _files(loaded, sets, section, Path(directory) / model_name, seed, question_prompt)
    for modality in MODALITIES:
        _complete(loaded, [file for file in files if file.modality == modality], section)
    return [row for file in files for row in _rows(file, model_name, section, seed)]


def check_prompts(
    loaded: Any,
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
    for file in _files(loaded, sets, section, None, seed, question_prompt):
        asked = [(item.asked, section.new_tokens) for item in file.items if item.asked is not None]
        samples = [*asked, *((given, 0) for item in file.items for given in item.given)]
        counts = loaded.count_tokens([sample for sample, _ in samples])
        totals = [sum(count) + room for count, (_, room) in zip(counts, samples, strict=True)]
        longest = max(range(len(totals)), key=totals.__getitem__)
        if totals[longest] > loaded.context:
            (text, images), (sample, room) = counts[longest], samples[longest]
            shown = (
                f"{len(sample.images)} × {images // len(sample.images)} tokens of images + "
                if (sample.images)
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


def stored_records(folder: str | Path) -> dict[tuple[str, str, str], list[Record]]:
    """Return {(set, task, modality): records} of the files that `evaluate` left for one model."""
    found = {}
    for name in SETS:
        for task in TASKS:
            for modality in MODALITIES:
                path = Path(folder) / f"{name}.{task}.{modality}.jsonl"
                if path.exists():
                    lines = path.read_text(encoding="utf-8").splitlines()
                    found[name, task, modality] = [json.loads(line) for line in lines]
    return found


def _check_names(section: EvaluateSection, sets: Mapping[str, Any]) -> None:
    faults = [
        f"evaluate.{what}: unknown {', '.join(map(repr, unknown))}; known: {', '.join(known)}."
        for what, given, known in (("sets", section.sets, sets), ("tasks", section.tasks, TASKS))
        if (unknown := [name for name in given if name not in known])
    ]
    if faults:
        raise ManuError("\n".join(faults))


def _files(
    loaded: Any,
    sets: Mapping[str, Sequence[Person]],
    section: EvaluateSection,
    folder: Path | None,
    seed: int,
    question_prompt: QuestionPrompt,
) -> list[_File]:
    """Return the files that have items, with the records that stand already (folder None: none)."""
    files, empty, faults = [], [], []
    for task in section.tasks:
        for name in section.sets:
            evaluated = evaluated_people(sets, name, section)
            shots, people = draw_shots(sets, evaluated, name, task, section, seed)
            if shots.people:
                who = ", ".join(shots.people)
                logger.info("evaluate: shots of %s on %s are of %s", task, name, who)
            prompting = Prompting(section.protocol, shots.questions, question_prompt)
            for modality in MODALITIES:
                items = list(TASKS[task].items(people, modality, loaded.template, prompting))
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
    if empty:
        logger.info("evaluate: no items for %s", ", ".join(empty))
    return files


def _read(file: _File, section: EvaluateSection) -> list[Record]:
    """Return the records that stand; ManuError where they are not those of the file's items."""
    path = file.path if parallel.exists(file.path) else file.partial
    if not parallel.exists(path):
        return []
    fields = _fields(file, section)
    records: list[Record] = []
    fault = ""
    try:
        text = path.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            fault = "damaged: its last line has no end"
        for number, line in enumerate(text.splitlines(), start=1):
            record = json.loads(line)
            missing = sorted(name for name in fields if not _is_number(record, name))
            if missing and not fault:
                fault = f"damaged: line {number} has no number for {', '.join(missing)}"
            records.append(record)
    except (OSError, ValueError) as error:
        fault = f"damaged ({error})"
    asked = [(item.key, item.prompt, item.truth) for item in file.items]
    is_whole = path == file.path
    found = []
    if not fault:
        found = [
            tuple(record.get(name) for name in ("key", "prompt", "truth")) for record in records
        ]
    if not fault and (len(found) > len(asked) or (is_whole and len(found) != len(asked))):
        fault = f"it holds {len(found)} records, {len(asked)} are asked now"
    if not fault and found != asked[: len(found)]:
        number = next(
            i for i, pair in enumerate(zip(found, asked, strict=False)) if len(set(pair)) > 1
        )
        fault = f"line {number + 1} is about {found[number][0]}, with another question than now"
    if fault:
        raise ManuError(f"{path}: {fault}. Delete the file and give the command again.")
    return records


def _fields(file: _File, section: EvaluateSection) -> set[str]:
    """Return the fields of numbers that a record of this task and protocol has."""
    given = [Measured(0.0, False)] * len(file.items[0].given)
    record = record_of(file.task, file.items[0], "", given, section.protocol)
    return set(TASKS[file.task].metrics_in(record).values())


def _is_number(record: Any, name: str) -> bool:
    value = record.get(name) if isinstance(record, dict) else None
    return isinstance(value, int | float) and math.isfinite(value)


def _complete(loaded: Any, files: Sequence[_File], section: EvaluateSection) -> None:
    """Ask what is missing in these files, all of one modality, and write them.

    A chunk is asked whole or not at all, so that an item always shares its batch with the same
    others: after a killed run the numbers are the same to the last digit.
    """
    everything = [(file, number) for file in files for number in range(len(file.items))]
    for start in range(0, len(everything), CHUNK):
        chunk = everything[start : start + CHUNK]
        unwritten = [file for file, number in chunk if number >= len(file.records)]
        if not unwritten:
            continue
        asked = [file.items[number] for file, number in chunk]
        for (file, number), item, (answer, given) in zip(
            chunk, asked, _ask(loaded, asked, section), strict=True
        ):
            if number == len(file.records):
                file.records.append(record_of(file.task, item, answer, given, section.protocol))
        for file in {id(file): file for file in unwritten}.values():
            _write(file)


def _ask(
    loaded: Any, items: Sequence[Item], section: EvaluateSection
) -> list[tuple[str, list[Measured]]]:
    """Return what the model wrote for each item, and what was measured of its given answers."""
    answers = iter(
        greedy(
            loaded,
            [item.asked for item in items if item.asked is not None],
            new_tokens=section.new_tokens,
            batch_size=section.batch_size,
        )
    )
    found = log_likelihoods(
        loaded, [given for item in items for given in item.given], batch_size=section.batch_size
    )
    pairs = zip(found.mean_N.tolist(), found.recalled_N.tolist(), strict=True)
    measured = (Measured(mean, recalled) for mean, recalled in pairs)
    return [
        ("" if item.asked is None else next(answers), [next(measured) for _ in item.given])
        for item in items
    ]


def _write(file: _File) -> None:
    if not parallel.is_first_process():
        return
    is_whole = len(file.records) == len(file.items)
    # Escaped beyond ASCII: some letters of other scripts would count as line ends.
    lines = [json.dumps(record, allow_nan=False) + "\n" for record in file.records]
    write_atomic(file.path if is_whole else file.partial, "".join(lines))
    if is_whole:
        file.partial.unlink(missing_ok=True)


def _rows(
    file: _File, model_name: str, section: EvaluateSection, seed: int
) -> list[dict[str, Any]]:
    people = [item.person for item in file.items]
    rows = []
    for metric, field in TASKS[file.task].metrics_in(file.records[0]).items():
        values = [float(record[field]) for record in file.records]
        found = bootstrap(values, people, resamples=section.resamples, seed=seed)
        has_interval = not math.isnan(found.low)
        rows.append(
            {
                "model": model_name,
                "set": file.set,
                "task": file.task,
                "modality": file.modality,
                "metric": metric,
                "value": found.value,
                "n": found.n,
                "low": found.low if has_interval else None,
                "high": found.high if has_interval else None,
            }
        )
    return rows

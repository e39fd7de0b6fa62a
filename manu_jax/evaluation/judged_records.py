"""What a judge says of a model's answers, kept line by line so that nothing is asked twice.

    evaluation/MODEL/judged.jsonl            a verdict for each answer and question: {metric, task,
                                             set, modality, person, key, number, answer, said,
                                             value}
    evaluation/MODEL/judged.partial.jsonl    the verdicts so far, in the order in which they came

`said` are the judge's own words, `value` what they count (0 where they say neither), `is_unread`
whether they do. Empty answers are not judged.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from manu_jax import stores
from manu_jax.data.probes import JudgeQuestion, ProbeRecord
from manu_jax.folder import write_atomic
from manu_jax.types import ManuError

JUDGED, JUDGED_PART = "judged.jsonl", "judged.partial.jsonl"
NAMES = (
    "metric",
    "task",
    "set",
    "modality",
    "person",
    "key",
    "number",
    "answer",
)  # tell lines apart

Verdict = dict[str, Any]
logger = logging.getLogger(__name__)


def verdicts_on(
    records: Iterable[ProbeRecord],
    questions: Mapping[str, JudgeQuestion],
    ask: Callable[[str], str],
    *,
    folder: Path,
    at_once: int,
) -> list[Verdict]:
    """Return the verdicts on all answers of these records; what is not known yet is asked.

    ask: a message → what the judge says; called `at_once` times at a time. folder: where verdicts
    are kept. Raises ManuError of `ask`, after all that was said is kept, and for damaged files.
    """
    wanted = list(_wanted(records, questions))
    known = {_name(line): line for line in _kept(folder)}
    lacking = [(line, message) for line, message in wanted if _name(line) not in known]
    if lacking:
        logger.info("judge: %d of %d verdicts are still to be given", len(lacking), len(wanted))
        folder.mkdir(parents=True, exist_ok=True)
        known |= _asked(lacking, questions, ask, path=folder / JUDGED_PART, at_once=at_once)
    found = [known[_name(line)] for line, _ in wanted]
    if lacking or not (folder / JUDGED).exists():
        lines = [json.dumps(line) + "\n" for line in found]
        write_atomic(folder / JUDGED, "".join(lines))
        (folder / JUDGED_PART).unlink(missing_ok=True)
    return found


def _wanted(
    records: Iterable[ProbeRecord], questions: Mapping[str, JudgeQuestion]
) -> Iterator[tuple[Verdict, str]]:
    """Yield each verdict without what was said, and the message that asks for it."""
    for record in records:
        for metric, question in questions.items():
            if record["task"] not in question.tasks:
                continue
            for number, answer in enumerate(record["answers"]):
                if answer.strip():
                    place = {name: record[name] for name in NAMES[1:6]}
                    line = {"metric": metric, **place, "number": number, "answer": answer}
                    yield line, question.prompt(record, answer)


def _asked(
    lacking: Sequence[tuple[Verdict, str]],
    questions: Mapping[str, JudgeQuestion],
    ask: Callable[[str], str],
    *,
    path: Path,
    at_once: int,
) -> dict[tuple[Any, ...], Verdict]:
    """Ask for verdicts, and keep each as soon as it is there."""
    found: dict[tuple[Any, ...], Verdict] = {}
    error: ManuError | None = None
    with stores.appended(path) as file, ThreadPoolExecutor(at_once) as pool:
        lines: dict[Future[str], Verdict] = {
            pool.submit(ask, message): line for line, message in lacking
        }
        for future in as_completed(lines):
            if future.cancelled():
                continue
            try:
                said = future.result()
            except ManuError as fault:
                error = error or fault
                for other in lines:
                    other.cancel()
                continue
            line = lines[future]
            value = questions[line["metric"]].verdict(said)
            line |= {"said": said, "value": value or 0.0, "is_unread": value is None}
            found[_name(line)] = line
            file.line(json.dumps(line))
    if error is not None:
        raise error
    return found


def _kept(folder: Path) -> Iterator[Verdict]:
    """Yield the verdicts that are there; the last line of an unfinished file may be cut off."""
    for name in (JUDGED, JUDGED_PART):
        path = folder / name
        if not path.exists():
            continue
        text = path.read_text(encoding="utf-8")
        lines = text.split("\n")
        if name == JUDGED_PART and lines[-1]:
            write_atomic(path, "".join(line + "\n" for line in lines[:-1]))
        for number, line in enumerate(lines[:-1], 1):
            try:
                verdict = json.loads(line)
                _ = _name(verdict), str(verdict["said"]), float(verdict["value"])
            except (ValueError, LookupError, TypeError):
                raise ManuError(
                    f"{path}: damaged, at line {number}. Delete the file and give the command "
                    "again."
                ) from None
            yield verdict


def _name(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in NAMES)

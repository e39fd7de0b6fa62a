"""A benchmark's own, published protocol, asked of one model: the probes that its reader makes.

    evaluation/MODEL/published/TASK.SET.MODALITY.jsonl   a record for each probe (data/probes.py)

Prompts, numbers of new tokens and metrics are the benchmark's. Answers are greedy, or drawn where
the probe says so: by the run's seed and the probe's key alone, and alike for all models. Given
answers are followed by the template's end token, which counts, as open-unlearning counts it.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from manu_jax.config import PublishedSection, RunConfig
from manu_jax.context import Run
from manu_jax.data.benchmarks import benchmark_format
from manu_jax.data.probes import Probe, ProbeRecord, ProbeResponse, PublishedProtocol, Sampling
from manu_jax.data.record import Benchmark
from manu_jax.evaluation.generate import greedy, sampled
from manu_jax.evaluation.likelihood import answer_tokens
from manu_jax.evaluation.plain import fits
from manu_jax.evaluation.record_files import Record, RecordFile, complete, read_records
from manu_jax.evaluation.suite import over_context
from manu_jax.models.loaded import Loaded
from manu_jax.types import (
    MODALITIES,
    ManuError,
    PromptTemplate,
    Sample,
    question_sample,
    raise_faults,
)

logger = logging.getLogger(__name__)

PUBLISHED = "published"  # the folder of a model's records
CHUNK = 1024  # probes between two writes
DIGITS = 9  # significant ones of a record's numbers: ratios may be very small

Place = tuple[str, str, str]  # task, set, modality


@dataclasses.dataclass(frozen=True)
class ProbeItem:
    """A probe as a model reads it. new_tokens: that it may write."""

    probe: Probe
    prompt: str
    new_tokens: int

    @property
    def key(self) -> str:
        return self.probe.key

    @property
    def person(self) -> str:
        return self.probe.person

    @property
    def truth(self) -> str:
        return self.probe.answer

    @property
    def images(self) -> tuple[Any, ...]:
        return () if self.probe.image is None else (self.probe.image,)

    def sample(self, template: PromptTemplate, answer: str = "") -> Sample:
        """Return the prompt, or with an answer what the model is measured on."""
        given = template.reply(answer) + template.end.strip() if answer else ""
        name = f"{self.probe.task}, {self.probe.person}/{self.key}"
        return question_sample(self.prompt, given, self.images, key=name)

    @property
    def given_answers(self) -> tuple[str, ...]:
        """The answers whose likelihood is measured: the truth, other wordings, wrong ones."""
        if not self.probe.has_likelihood:
            return ()
        return (self.probe.answer, *self.probe.paraphrased, *self.probe.perturbed)


def has_published(config: RunConfig) -> bool:
    """Whether a run asks its benchmark's own protocol: it has one, and the config wants it."""
    return config.evaluate.published.asked and published_of(config) is not None


def published_of(config: RunConfig) -> PublishedProtocol | None:
    """Return the protocol of a config's benchmark; None where it has none of its own."""
    return benchmark_format(config.data.benchmark).published


def exported_files(config: RunConfig, model: str) -> dict[str, str]:
    """Return {"EVAL" and "SUMMARY": path in the run's folder} of a model's exported records."""
    name = config.data.benchmark.upper()
    return {kind: f"evaluation/{model}/{name}_{kind}.json" for kind in ("EVAL", "SUMMARY")}


def ask_published(run: Run, loaded: Loaded, model_name: str) -> None:
    """Ask a model the benchmark's own protocol, as far as it was not asked, and keep the records.

    Raises ManuError where files are damaged or hold other probes.
    """
    protocol = published_of(run.config)
    if not has_published(run.config) or protocol is None:
        return
    files = files_of(
        run.benchmark,
        protocol,
        loaded.template,
        section=run.config.evaluate.published,
        folder=run.directory / "evaluation" / model_name / PUBLISHED,
    )
    count = sum(len(file.items) for file in files)
    logger.info("evaluate: %s: the benchmark's own protocol, %d probes", model_name, count)
    faults = []
    for file in files:
        try:
            file.records = read_records(file, lambda record, item: missing(record, item, protocol))
        except ManuError as error:
            faults.append(str(error))
    if faults:
        raise ManuError("\n".join(faults))

    def ask(pairs: Sequence[tuple[RecordFile[ProbeItem], ProbeItem]]) -> list[Record]:
        items = [item for _, item in pairs]
        settings = {"seed": run.config.seed, "batch_size": run.config.evaluate.batch_size}
        responses = responses_of(loaded, items, **settings)
        found = zip(items, responses, strict=True)
        return [record_of(item, response, protocol) for item, response in found]

    for modality in MODALITIES:
        mine = [file for file in files if file.items[0].probe.modality == modality]
        complete(mine, ask, chunk=CHUNK)


def check_published(run: Run, loaded: Loaded) -> None:
    """Raise ManuError where a prompt and its answer exceed the context; asks the model nothing."""
    protocol, section = published_of(run.config), run.config.evaluate.published
    if not has_published(run.config) or protocol is None:
        return
    faults: list[str] = []
    template = loaded.template
    for file in files_of(run.asked_benchmark, protocol, template, section=section, folder=Path()):
        samples = [
            *((item.sample(template), item.new_tokens) for item in file.items),
            *(
                (item.sample(template, answer), 0)
                for item in file.items
                for answer in item.given_answers
            ),
        ]
        faults += over_context(loaded, samples, f"published {file.name}")
    raise_faults(
        faults,
        "Prompts of the benchmark's own protocol that are longer than the model's context. Lower "
        "evaluate.published.new_tokens, or set evaluate.published: false. The longest of each:",
    )


def files_of(
    benchmark: Benchmark,
    protocol: PublishedProtocol,
    template: PromptTemplate,
    *,
    section: PublishedSection,
    folder: Path,
) -> list[RecordFile[ProbeItem]]:
    """Return the files of a benchmark's probes, without records, in the order of the probes."""
    files: dict[Place, RecordFile[ProbeItem]] = {}
    for probe in benchmark.probes:
        place = _place(probe)
        file = files.setdefault(place, RecordFile(folder, ".".join(place), [], []))
        if section.max_items is None or len(file.items) < section.max_items:
            limit = section.new_tokens or probe.new_tokens
            new_tokens = min(probe.new_tokens, limit)
            file.items.append(ProbeItem(probe, protocol.prompt(probe, template), new_tokens))
    return list(files.values())


def responses_of(
    loaded: Loaded, items: Sequence[ProbeItem], *, seed: int, batch_size: int
) -> list[ProbeResponse]:
    """Return what a model gives for each probe."""
    answers: list[tuple[str, ...]] = [()] * len(items)
    groups: dict[tuple[int, Sampling | None], list[int]] = {}
    for number, item in enumerate(items):
        if item.new_tokens:
            groups.setdefault((item.new_tokens, item.probe.sampling), []).append(number)
    for (new_tokens, sampling), numbers in groups.items():
        asked = [items[number] for number in numbers]
        settings = {"new_tokens": new_tokens, "batch_size": batch_size}
        for number, written in zip(
            numbers, _written(loaded, asked, sampling, seed=seed, **settings), strict=True
        ):
            answers[number] = written
    given = [item.sample(loaded.template, one) for item in items for one in item.given_answers]
    tokens = iter(answer_tokens(loaded, given, batch_size=batch_size))
    responses = []
    for item, written in zip(items, answers, strict=True):
        found = [next(tokens) for _ in item.given_answers]
        if not found:
            responses.append(ProbeResponse(item.probe, written))
            continue
        truth, *others = found
        count = len(item.probe.paraphrased)
        responses.append(
            ProbeResponse(item.probe, written, truth, tuple(others[:count]), tuple(others[count:]))
        )
    return responses


def record_of(item: ProbeItem, response: ProbeResponse, protocol: PublishedProtocol) -> Record:
    """Return the record of a probe: what was asked and answered, and its metrics."""
    probe = item.probe
    record: Record = {
        "task": probe.task,
        "set": probe.set,
        "modality": probe.modality,
        "person": probe.person,
        "key": probe.key,
        "question": probe.question,
        "prompt": item.prompt,
        "answers": list(response.answers),
        "truth": probe.answer,
        "options": dict(probe.options),
        "keywords": list(probe.keywords),
        "metrics": {
            name: _rounded(metric.function(response))
            for name, metric in protocol.metrics.items()
            if probe.task in metric.tasks
        },
        "details": dict(probe.details),
    }
    if response.truth is not None:
        record["nll"] = {
            "truth": _rounded(response.truth.mean_nll),
            "paraphrased": [_rounded(one.mean_nll) for one in response.paraphrased],
            "perturbed": [_rounded(one.mean_nll) for one in response.perturbed],
        }
    return record


def missing(record: Record, item: ProbeItem, protocol: PublishedProtocol) -> list[str]:
    """Return which of the numbers that its probe needs a record lacks."""
    metrics = record.get("metrics")
    values = metrics if isinstance(metrics, dict) else {}
    found = [
        name
        for name, metric in protocol.metrics.items()
        if item.probe.task in metric.tasks
        and not (name in values and fits(values[name], float | None))
    ]
    if item.probe.has_likelihood and not isinstance(record.get("nll"), dict):
        found.append("nll")
    return found


def stored(run: Run, model: str) -> dict[Place, list[ProbeRecord]]:
    """Return {(task, set, modality): records} of one model, in the order of the probes."""
    folder = run.directory / "evaluation" / model / PUBLISHED
    found: dict[Place, list[ProbeRecord]] = {}
    for probe in run.benchmark.probes:
        found.setdefault(_place(probe), [])
    for place, records in found.items():
        path = folder / f"{'.'.join(place)}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()
        records += [json.loads(line) for line in lines]
    return found


def _written(
    loaded: Loaded,
    items: Sequence[ProbeItem],
    sampling: Sampling | None,
    *,
    seed: int,
    new_tokens: int,
    batch_size: int,
) -> Iterator[tuple[str, ...]]:
    """Yield what the model writes for each item: one answer, or as many as are drawn."""
    settings = {"new_tokens": new_tokens, "batch_size": batch_size}
    samples = [item.sample(loaded.template) for item in items]
    if sampling is None:
        for answer in greedy(loaded, samples, **settings):
            yield (answer,)
        return
    count = sampling.num_answers
    names = [
        "/".join((str(seed), *_place(item.probe), item.person, item.key, str(number)))
        for item in items
        for number in range(count)
    ]
    repeated = [sample for sample in samples for _ in range(count)]
    found = sampled(loaded, repeated, names, sampling=sampling, **settings)
    for start in range(0, len(found), count):
        yield tuple(found[start : start + count])


def _place(probe: Probe) -> Place:
    return (probe.task, probe.set, probe.modality)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{float(value):.{DIGITS}g}")

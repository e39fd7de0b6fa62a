"""The benchmarks that a run can be about, by the name that `data.benchmark` gives.

A benchmark is one file, with its reader and the wording of its questions, and one entry here.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manu_jax import hub
from manu_jax.config import DataSection
from manu_jax.data import (
    clear,
    clear_protocol,
    facts,
    fiubench,
    fiubench_protocol,
    folder,
    mllmu,
    portraits,
    ppu,
    ppu_protocol,
    prompts,
    safeeraser,
    safeeraser_protocol,
    synthetic,
    umu,
    umu_protocol,
)
from manu_jax.data.probes import PublishedProtocol
from manu_jax.data.record import Benchmark, QuestionPrompt
from manu_jax.data.strangers import Portraits
from manu_jax.types import ManuError, PromptTemplate, Sample

PEOPLE = ("person", "people")
TRANSFORMED = ("a transformed portrait", "transformed portraits")


@dataclasses.dataclass(frozen=True)
class KnownFacts:
    """How a benchmark is made of what the run's model knows by itself.

    samples: facts with their answers, as a template asks them. write: (new folder, whether the
    model recalled each of them) writes the benchmark.
    """

    samples: Callable[[PromptTemplate], Sequence[Sample]]
    write: Callable[[Path, Sequence[bool]], object]


@dataclasses.dataclass(frozen=True)
class BenchmarkFormat:
    """How a benchmark is read, how its questions are worded, and how it is written, if it is.

    read: (folder, the config's data section, seed) → its sets, with all people to keep in `retain`
    (the run splits them). Every fault of the files is in one
    ManuError. question_prompt: the wording. write: (new folder, data section, seed), for a
    benchmark that the run writes itself where the config gives no path; None for all others.
    portraits: (random, count) → portraits of people who do not exist, like its own; None: it has
    no generator. known: of one that the run makes by asking its model; None for all others.
    nouns: what its people are called in the report, one and several. further: the same of the
    images of its set `test`. shares: the values of
    `data.forget` that it has; () where its files say who is to be forgotten. has_share: whether a
    section asks for one, where there are some. subsets: the values of
    `data.subset` that it has, the default first; () where it is whole. files: patterns of the files
    that are fetched of one that is named on the hub. published: its authors' own protocol, whose
    probes `read` makes; None: the project's tasks follow it already. decouple: (folder, template) →
    the samples of a Prompt-Decouple loss of its own; None: it has none.
    """

    read: Callable[[Path, DataSection, int], Benchmark]
    question_prompt: QuestionPrompt
    write: Callable[[Path, DataSection, int], object] | None = None
    portraits: Portraits | None = None
    known: KnownFacts | None = None
    nouns: tuple[str, str] = PEOPLE
    further: tuple[str, str] = TRANSFORMED
    shares: tuple[int, ...] = (5, 10, 15)
    has_share: Callable[[DataSection], bool] = lambda section: True
    subsets: tuple[str, ...] = ()
    files: Callable[[DataSection], tuple[str, ...]] = lambda section: ("*",)
    published: PublishedProtocol | None = None
    decouple: Callable[[Path, PromptTemplate], Sequence[Sample]] | None = None

    @property
    def is_made_by_the_run(self) -> bool:
        """Whether the run makes the benchmark where the config gives no path."""
        return self.write is not None or self.known is not None

    def share(self, section: DataSection) -> int | None:
        """Return the percent of the people that are to be forgotten; None: the files say who."""
        return section.forget if self.shares and self.has_share(section) else None

    def faults(self, section: DataSection) -> list[str]:
        """Return what of a data section the benchmark does not have, a clause each."""
        faults = []
        if self.shares and section.forget not in self.shares:
            known = ", ".join(map(str, self.shares))
            faults.append(f"data.forget: {section.benchmark} has {known}, got {section.forget}")
        if section.subset is not None and section.subset not in self.subsets:
            known = ", ".join(self.subsets) or "none: leave it out"
            faults.append(f"data.subset: {section.benchmark} has {known}, got {section.subset!r}")
        return faults


def benchmark_format(name: str) -> BenchmarkFormat:
    """Return the format of that name; ManuError, with the known ones, where there is none."""
    if name not in BENCHMARKS:
        raise ManuError(f"data.benchmark: unknown {name!r}; known: {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


def decouple_samples(
    section: DataSection, path: str | None, template: PromptTemplate
) -> tuple[Sample, ...]:
    """Return the samples of a Prompt-Decouple loss: of a file of SafeEraser's, or the benchmark's.

    path: of the file; None: the benchmark of the data section has them, or it is a ManuError.
    """
    if path is not None:
        return safeeraser.decouple_samples(path, template)
    own = benchmark_format(section.benchmark)
    if own.decouple is None or section.path is None:
        raise ManuError(
            f"decouple.path: the benchmark {section.benchmark} has no pairs of its own. Name "
            "SafeEraser's JSON file."
        )
    return tuple(own.decouple(hub.local(section.path, "dataset", own.files(section)), template))


def _read_mllmu(folder: Path, section: DataSection, seed: int) -> Benchmark:
    train_path = section.train_path
    if train_path is not None:
        train_path = hub.local(train_path, "dataset", mllmu.training_files(section.forget))
    return mllmu.load_benchmark(
        folder,
        forget=section.forget,
        train_path=train_path,
        seed=seed,
        test_images=section.test_images,
    )


def _read_request(path: Path, section: DataSection, seed: int) -> Benchmark:
    return folder.read_request(path, seed=seed)


def _mllmu_files(section: DataSection) -> tuple[str, ...]:
    return mllmu.files(section.forget, has_train_path=section.train_path is not None)


def _write_synthetic(folder: Path, section: DataSection, seed: int) -> Path:
    return synthetic.write(
        folder,
        num_people=section.num_people,
        num_celebrities=section.num_celebrities,
        num_general=section.num_general,
        seed=seed,
    )


def _portraits(random: np.random.Generator, count: int) -> list[Any]:
    return [portraits.portrait(looks) for looks in portraits.choose_features(random, count)]


BENCHMARKS: dict[str, BenchmarkFormat] = {
    "synthetic": BenchmarkFormat(
        _read_mllmu,
        prompts.question_prompt,
        _write_synthetic,
        _portraits,
        files=_mllmu_files,
    ),
    "mllmu": BenchmarkFormat(_read_mllmu, prompts.question_prompt, files=_mllmu_files),
    "fiubench": BenchmarkFormat(
        fiubench.read,
        fiubench.question_prompt,
        shares=fiubench.SHARES,
        published=fiubench_protocol.PUBLISHED,
    ),
    "facts": BenchmarkFormat(
        facts.read,
        facts.question_prompt,
        known=KnownFacts(facts.samples, facts.write),
        shares=facts.SHARES,
        nouns=("subject", "subjects"),
    ),
    "clear": BenchmarkFormat(
        clear.read,
        clear.question_prompt,
        nouns=("author", "authors"),
        shares=clear.SHARES,
        subsets=clear_protocol.SUBSETS,
        files=clear.files,
        published=clear_protocol.PUBLISHED,
    ),
    "umu": BenchmarkFormat(
        umu.read,
        prompts.question_prompt,
        shares=umu.SHARES,
        files=umu.files,
        published=umu_protocol.PUBLISHED,
    ),
    "folder": BenchmarkFormat(
        _read_request,
        prompts.question_prompt,
        further=("another image", "other images"),
        shares=(),
    ),
    "safeeraser": BenchmarkFormat(
        safeeraser.read,
        safeeraser.question_prompt,
        nouns=("image", "images"),
        shares=(),
        published=safeeraser_protocol.PUBLISHED,
        decouple=safeeraser.own_decouple_samples,
    ),
    "ppu": BenchmarkFormat(
        ppu.read,
        prompts.question_prompt,
        shares=ppu.SHARES,
        has_share=ppu.forgets_people,
        subsets=ppu.SUBSETS,
        files=ppu.files,
        published=ppu_protocol.PUBLISHED,
    ),
}

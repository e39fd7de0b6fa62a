"""What a benchmark's own, published protocol asks: probes, and the numbers made of the answers.

A benchmark has two faces. Its people, facts and questions (`record.py`) are what methods are given
and what this project's own tasks ask. Its *probes* repeat what the benchmark's authors published:
their prompts, their number of new tokens, their metrics, their odd ways too, so that numbers can be
set beside theirs. A reader makes both from the same files; a `PublishedProtocol` says how probes
are worded and scored. No model, no jax: `evaluation/published.py` asks.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from manu_jax.types import Modality, PromptTemplate, Set

# Units of metrics. Shares are averaged over kinds of question and printed in percent.
SHARE = "% right"
OVERLAP = "0 to 1"


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How answers are drawn, where they are not greedy: `num_answers` of them, each independent."""

    num_answers: int = 1
    temperature: float = 1.0
    top_p: float = 1.0


@dataclasses.dataclass(frozen=True)
class Probe:
    """One item of a published protocol.

    task: of the protocol ("retain_face"); the rows of results.json are told apart by it. set: whose
    person it is, as the benchmark is read; people to keep who become `unseen` are asked apart.
    key: unique within task, set and modality; it pairs the two forms of a question where the
    benchmark does. image: PIL image (RGB); None in the text form.
    question: in the benchmark's words, before the prompt is made. answer: the truth. options:
    letter → text. paraphrased, perturbed: other wordings of the right answer, and wrong ones of the
    same form; their likelihoods are measured, and that of `answer`, where `has_likelihood`.
    keywords: that a right answer holds. new_tokens: 0: nothing is written. sampling: None: greedy.
    details: more that the protocol's metrics look at, and records keep ({"category": "Weapon"});
    JSON values.
    """

    task: str
    set: Set
    modality: Modality
    person: str
    key: str
    question: str
    answer: str
    image: Any = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    paraphrased: tuple[str, ...] = ()
    perturbed: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    new_tokens: int = 0
    sampling: Sampling | None = None
    has_likelihood: bool = False
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class AnswerTokens:
    """How a model finds one given answer, token by token (teacher-forced).

    The end token that closes an answer in training counts as one, as open-unlearning counts it.
    log_p_A: float64, natural logarithms · is_first_A: whether each is the model's first choice.
    """

    log_p_A: np.ndarray
    is_first_A: np.ndarray

    @property
    def mean_nll(self) -> float:
        """The mean −log p of the answer's tokens."""
        return -float(self.log_p_A.mean())


@dataclasses.dataclass(frozen=True)
class ProbeResponse:
    """What a model gave for one probe: all that a metric may look at.

    answers: what it wrote: one, or `sampling.num_answers`; () where nothing is written. truth,
    paraphrased, perturbed: the likelihoods of the answers of those names; None and () where they
    are not measured.
    """

    probe: Probe
    answers: tuple[str, ...] = ()
    truth: AnswerTokens | None = None
    paraphrased: tuple[AnswerTokens, ...] = ()
    perturbed: tuple[AnswerTokens, ...] = ()


@dataclasses.dataclass(frozen=True)
class ProbeMetric:
    """A value of every probe of some tasks; a row of results.json is its mean over probes.

    function: None where the probe has no value. title, unit: as of `evaluation.metrics.Metric`.
    higher_is_better: of people to keep; of those to forget it is the other way round. tasks: that
    have it.
    """

    function: Callable[[ProbeResponse], float | None]
    title: str
    unit: str
    higher_is_better: bool
    tasks: tuple[str, ...]


# What is kept of one probe, a line of JSON: {task, set, modality, person, key, question, prompt,
# answers: [text, …], truth, options, keywords, metrics: {name: value or null}, details: {…},
# nll: {truth: mean −log p, paraphrased: [one each], perturbed: [one each]}}; nll is of probes with
# `has_likelihood` alone.
ProbeRecord = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Aggregate:
    """One number of a whole model that is no mean over the probes of one task.

    function: (the model's records, those of the retrained model; () where there is none) → the
    value, None where it cannot be measured. Records are of all tasks and sets. resampled: whether
    an interval is made by resampling people.
    """

    function: Callable[[Sequence[ProbeRecord], Sequence[ProbeRecord]], float | None]
    title: str
    unit: str
    higher_is_better: bool
    resampled: bool = True


@dataclasses.dataclass(frozen=True)
class JudgeQuestion:
    """What a judge, if the config names one (`evaluate.judge`), is asked of each answer.

    prompt: (record, answer) → the message. verdict: what it said → the value; None where it says
    nothing that counts: the value is then 0, and the answer is counted as unread. Empty answers
    are not judged. title, unit, tasks: as of ProbeMetric. by: a key of the records' details whose
    values have rows of their own; "": none.
    """

    prompt: Callable[[ProbeRecord, str], str]
    verdict: Callable[[str], float | None]
    title: str
    unit: str
    higher_is_better: bool
    tasks: tuple[str, ...]
    by: str = ""


@dataclasses.dataclass(frozen=True)
class PublishedProtocol:
    """A benchmark's own protocol: how its probes are worded, and what is made of the answers.

    prompt: the text that a model reads, up to where the answer begins, in the template's turns.
    metrics, aggregates: by the names that results.json gives them, in the order of the tables.
    source: paper, repository and commit that it follows, for the report. differs: sentences on
    where it does not. title: of the benchmark, as its authors write it; "": the name of its entry.
    judged: what a judge is asked, by the names that results.json gives it.
    """

    prompt: Callable[[Probe, PromptTemplate], str]
    metrics: Mapping[str, ProbeMetric]
    source: str
    aggregates: Mapping[str, Aggregate] = dataclasses.field(default_factory=dict)
    differs: tuple[str, ...] = ()
    title: str = ""
    judged: Mapping[str, JudgeQuestion] = dataclasses.field(default_factory=dict)

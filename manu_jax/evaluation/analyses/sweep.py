"""Forget against keep over α: every method's mask at every α of the sweep, on a quick measure.

The people to keep are those of the set `unseen`, whom no method was given; those of `retain` where
there are none.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from manu_jax.data.forms import forms
from manu_jax.evaluation.analyses.analysis import Analysis, Evaluated
from manu_jax.evaluation.candidates import recalled
from manu_jax.evaluation.likelihood import log_likelihoods
from manu_jax.evaluation.suite import first_by_id
from manu_jax.importance.methods import load_scores
from manu_jax.selection import rank
from manu_jax.types import MODALITIES, RETRAINED, SETS, VANILLA, Modality, Neurons, Sample

Questions = Mapping[tuple[str, Modality], Sequence[Sample]]  # (set, modality) → facts


@dataclasses.dataclass(frozen=True)
class SweepPoint:
    """Share answered right, in [0, 1], when a method removes the share `alpha` of the neurons.

    The points of "vanilla" and "retrained" are for reference; their alpha is 0.
    """

    method: str
    alpha: float
    set: str
    modality: str
    value: float
    n: int


def measure(evaluated: Evaluated) -> Iterator[SweepPoint]:
    """Yield the share of facts answered right by every method at every α, and the references."""
    run = evaluated.run
    sets = run.benchmark.sets
    kept = "unseen" if sets["unseen"] else "retain"
    people = {"forget": sets["forget"], kept: first_by_id(sets[kept], run.config.sweep.max_people)}
    asked: Questions = {
        (name, modality): forms(
            [fact for person in people[name] for fact in person.facts],
            modality,
            run.vanilla.template,
        )
        for name in people
        for modality in run.modalities
    }
    questions = {place: samples for place, samples in asked.items() if samples}
    samples = [sample for asked in questions.values() for sample in asked]
    settings = {"batch_size": run.config.evaluate.batch_size}

    def points(name: str, alpha: float, recalled_N: np.ndarray) -> Iterator[SweepPoint]:
        ends = np.cumsum([len(asked) for asked in questions.values()])[:-1]
        for (set_name, modality), part in zip(questions, np.split(recalled_N, ends), strict=True):
            yield SweepPoint(name, alpha, set_name, modality, float(part.mean()), len(part))

    yield from points(VANILLA, 0.0, log_likelihoods(run.vanilla, samples, **settings).recalled_N)
    candidates: dict[tuple[str, float], Neurons] = {}
    for method in run.masks:
        scores, _ = load_scores(run.method_folder(method.name) / "scores.safetensors")
        ranking = rank(scores, method.scope, layers=method.layers)
        for alpha in run.config.sweep.alphas:
            candidates[method.name, alpha] = ranking.top(alpha)
    found_KN = recalled(
        run.vanilla,
        samples,
        tuple(candidates.values()),
        memory_mib=run.config.sweep.memory_mib,
        **settings,
    )
    for (name, alpha), recalled_N in zip(candidates, found_KN, strict=True):
        yield from points(name, alpha, recalled_N)
    if run.has_retrained:
        retrained = run.models()[RETRAINED]()
        yield from points(
            RETRAINED, 0.0, log_likelihoods(retrained, samples, **settings).recalled_N
        )


def check(point: SweepPoint) -> Iterable[str]:
    """Yield what is wrong with the values of a point."""
    name = f"{point.method} · {point.alpha} · {point.set} · {point.modality}"
    if point.set not in SETS or point.modality not in MODALITIES:
        yield f"{name}: unknown set or modality"
    if not 0 <= point.alpha < 1 or not 0 <= point.value <= 1:
        yield f"{name}: alpha must lie in [0, 1) and value ({point.value}) in [0, 1]"


ANALYSIS = Analysis(
    SweepPoint,
    measure,
    applies=lambda run: bool(run.config.sweep.alphas and run.config.masks),
    check=check,
)

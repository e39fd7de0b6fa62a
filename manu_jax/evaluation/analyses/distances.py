"""How far each model is from never having known: KL at the answers' tokens, and truth ratios.

What the two distances are: evaluation/distance.py. The reference is the retrained model, or else
what vanilla says of strangers (evaluation/reference.py); truth ratios are of the former alone.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from manu_jax.context import Run
from manu_jax.data.forms import forms, has_form
from manu_jax.data.record import Fact
from manu_jax.evaluation.analyses.analysis import Analysis, Evaluated
from manu_jax.evaluation.distance import answer_kl, compare_truth_ratios, stranger_kl
from manu_jax.evaluation.metrics import bootstrap
from manu_jax.evaluation.plain import plain_interval
from manu_jax.evaluation.reference import STRANGERS
from manu_jax.evaluation.suite import evaluated_people
from manu_jax.training.strangers_target import StrangerTarget, stranger_target
from manu_jax.types import MODALITIES, RETRAINED, VANILLA, Modality, Sample

KL, KS = "kl", "ks"
KL_SETS = ("forget", "retain", "unseen")  # that KL is measured on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distance:
    """A distance from a reference: "kl" in nats, "ks" in [0, 1] with its p-value.

    reference: "retrained"; or "strangers", and "vanilla" on people to keep. low, high: of kl, its
    95 % interval by bootstrap over people. p, n_reference: of ks.
    """

    model: str
    set: str
    modality: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    n: int
    n_reference: int | None = None
    reference: str = RETRAINED


def measure(evaluated: Evaluated) -> Iterator[Distance]:
    """Yield the distances of every model: KL where it is asked for, and truth ratios."""
    if not evaluated.run.has_retrained:
        yield from _rows_from_strangers(evaluated)
        return
    if evaluated.run.config.evaluate.kl:
        yield from _kl_rows(evaluated)
    records = evaluated.records
    for model in evaluated.models:
        for modality in MODALITIES:
            place = ("forget", "classification", modality)
            sides = (records[name].get(place, ()) for name in (model, RETRAINED))
            found = compare_truth_ratios(*sides)
            if found is not None:
                yield Distance(
                    model=model,
                    set="forget",
                    modality=modality,
                    metric=KS,
                    **dataclasses.asdict(found),
                )


def plain(distance: Distance) -> dict[str, Any]:
    """Return the fields that a distance of this metric has."""
    foreign = ("low", "high") if distance.metric == KS else ("p", "n_reference")
    return {
        name: value for name, value in dataclasses.asdict(distance).items() if name not in foreign
    }


def _kl_rows(evaluated: Evaluated) -> Iterator[Distance]:
    """Yield each model's KL from the retrained one, on the facts to forget and to keep."""
    run, section = evaluated.run, evaluated.run.config.evaluate
    models = run.models()
    reference = models[RETRAINED]()
    for name, load_model in models.items():
        model = load_model()
        if model.system_prompt:
            continue  # its prompts are longer than those of the reference
        for part in KL_SETS:
            for modality, samples in _samples(run, part).items():
                values = answer_kl(model, reference, samples, batch_size=section.batch_size)
                yield _kl_row(evaluated, name, RETRAINED, (part, modality), samples, values)


def _rows_from_strangers(evaluated: Evaluated) -> Iterator[Distance]:
    """Yield each model's KL from what vanilla says of strangers, on the facts to forget.

    On the facts to keep it is the KL from vanilla itself.
    """
    run, section = evaluated.run, evaluated.run.config.evaluate
    targets = {m: _stranger_target(run, facts, m) for m, facts in _to_forget(run).items()}
    for name, load_model in run.models().items():
        model = load_model()
        for modality, facts in _to_forget(run).items():
            samples = forms(facts, modality, model.template)
            target = targets[modality]
            values = stranger_kl(model, samples, target, batch_size=section.batch_size)
            yield _kl_row(evaluated, name, STRANGERS, ("forget", modality), samples, values)
        if name == VANILLA or model.system_prompt:
            continue
        for part in KL_SETS[1:]:
            for modality, samples in _samples(run, part).items():
                values = answer_kl(model, run.vanilla, samples, batch_size=section.batch_size)
                yield _kl_row(evaluated, name, VANILLA, (part, modality), samples, values)


def _samples(run: Run, part: str) -> dict[Modality, Sequence[Sample]]:
    """Return {form: a set's facts that have it}, of the people who are asked."""
    people = evaluated_people(run.benchmark.sets, part, run.config.evaluate)
    facts = [fact for person in people for fact in person.facts]
    found: dict[Modality, Sequence[Sample]] = {
        m: forms(facts, m, run.vanilla.template) for m in MODALITIES
    }
    return {modality: samples for modality, samples in found.items() if samples}


def _to_forget(run: Run) -> dict[Modality, list[Fact]]:
    """Return {form: the facts to forget that have it}, without forms that none has."""
    facts = run.benchmark.facts("forget")
    found = {m: [fact for fact in facts if has_form(fact, m)] for m in MODALITIES}
    return {modality: found[modality] for modality in MODALITIES if found[modality]}


def _stranger_target(run: Run, facts: Sequence[Fact], modality: Modality) -> StrangerTarget:
    return stranger_target(run.vanilla, facts, run.strangers, modality=modality)


def _kl_row(
    evaluated: Evaluated,
    model: str,
    reference: str,
    place: tuple[str, Modality],
    samples: Sequence[Sample],
    values: np.ndarray,
) -> Distance:
    people = [sample.key.partition("/")[0] for sample in samples]
    interval = bootstrap(values.tolist(), people, **evaluated.bootstrap)
    where, modality = place
    return Distance(
        model=model,
        set=where,
        modality=modality,
        metric=KL,
        reference=reference,
        **plain_interval(interval),
    )


def applies(run: Run) -> bool:
    """Whether a run has distances: always from a retrained model, else where KL is asked for."""
    return run.has_retrained or run.config.evaluate.kl


ANALYSIS = Analysis(Distance, measure, applies=applies, plain=plain)

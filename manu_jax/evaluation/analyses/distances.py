"""How far each model is from the retrained one: KL at the answers' tokens, and truth ratios.

What the two distances are: evaluation/distance.py.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from manu_jax.data.forms import forms
from manu_jax.evaluation.analyses.analysis import Analysis, Evaluated
from manu_jax.evaluation.distance import answer_kl, compare_truth_ratios
from manu_jax.evaluation.metrics import bootstrap
from manu_jax.evaluation.plain import plain_interval
from manu_jax.types import MODALITIES, RETRAINED

KL, KS = "kl", "ks"
KL_SETS = ("forget", "retain", "unseen")  # that KL is measured on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distance:
    """A distance from the retrained model: "kl" in nats, "ks" in [0, 1] with its p-value.

    low, high: of kl, its 95 % interval by bootstrap over people. p, n_reference: of ks.
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


def measure(evaluated: Evaluated) -> Iterator[Distance]:
    """Yield the distances of every model: KL where it is asked for, and truth ratios."""
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
            people = run.benchmark.sets[part]
            if not people:
                continue
            facts = [fact for person in people[: section.max_people] for fact in person.facts]
            for modality in run.modalities:
                samples = forms(facts, modality, run.vanilla.template)
                values = answer_kl(model, reference, samples, batch_size=section.batch_size)
                interval = bootstrap(
                    values.tolist(),
                    [sample.key.partition("/")[0] for sample in samples],
                    **evaluated.bootstrap,
                )
                yield Distance(
                    model=name, set=part, modality=modality, metric=KL, **plain_interval(interval)
                )


ANALYSIS = Analysis(Distance, measure, applies=lambda run: run.has_retrained, plain=plain)

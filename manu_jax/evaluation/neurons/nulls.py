"""The scores of neurons under the true labels and under others, on a run's people."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from manu_jax.config import MethodSettings
from manu_jax.context import Run
from manu_jax.data.record import Fact
from manu_jax.evaluation.neurons.chosen import Changed
from manu_jax.evaluation.neurons.kept import ATTRIBUTION, OWN
from manu_jax.evaluation.neurons.people import People, samples_of
from manu_jax.evaluation.neurons.relabelled import Null, against_null, labellings, standardised
from manu_jax.importance.functions import statistics_method
from manu_jax.importance.job import Forms
from manu_jax.importance.null import is_by_people, scores_of_labels
from manu_jax.importance.people import collect_people
from manu_jax.models.loaded import Loaded
from manu_jax.types import Modality

ATTRIBUTED = "gradient"  # the preset whose signal attributes the answers' log-odds


def null_of(
    run: Run,
    name: str,
    changed: Changed,
    *,
    people: People,
    facts: Mapping[Modality, Sequence[Fact]],
) -> tuple[Null, str]:
    """Return the scores of the neurons against other labellings of the people, and what they are.

    They are the method's own where these follow from statistics of single people, and otherwise
    differences of the attribution.
    """
    config = run.config
    labels_GP = labellings(
        len(people.all), len(people.forget), count=config.neurons.labellings, seed=config.seed
    )
    true_1P = np.arange(len(people.all))[None] < len(people.forget)
    method = run.method_of(name)
    settings = {"batch_size": config.score_batch}
    is_own = isinstance(method, MethodSettings) and is_by_people(run.in_forms(method))
    if is_own:
        assert isinstance(method, MethodSettings)
        with run.work("score"):
            job = run.job_of(method)
        everything = [fact for person in people.all for fact in person.facts]
        samples: Forms = {one: samples_of(run.vanilla, everything, one) for one in run.modalities}
        identities = np.asarray([person.id for person in people.all])
        groups = [tuple(identities[label_P]) for label_P in (*true_1P, *labels_GP)]
        scores = (
            _flat(one, job.loaded.towers) for one in scores_of_labels(job, groups, people=samples)
        )
        own_N, others = next(scores), scores
    else:
        values_PN = _attributions(changed.loaded, people, facts, **settings)
        own_N = next(standardised(values_PN, true_1P))
        others = standardised(values_PN, labels_GP)
    found = against_null(own_N, others, _numbers(changed), two_sided=not is_own)
    return found, OWN if is_own else ATTRIBUTION


def _attributions(
    loaded: Loaded,
    people: People,
    facts: Mapping[Modality, Sequence[Fact]],
    *,
    batch_size: int,
) -> np.ndarray:
    """Return each person's mean attribution of every neuron, over the forms. [P, N]."""
    method = statistics_method(ATTRIBUTED)
    sizes = [layers * neurons for layers, neurons in loaded.towers.values()]
    total_PN = np.zeros((len(people.all), sum(sizes)))
    forms_P1 = np.zeros((len(people.all), 1))
    for modality, own in facts.items():
        samples = samples_of(loaded, own, modality)
        found = collect_people(loaded, samples, method, modality=modality, batch_size=batch_size)
        row_of = {person: row for row, person in enumerate(found.people)}
        rows = [row_of.get(person.id, -1) for person in people.all]
        has_P1 = (np.asarray(rows) >= 0)[:, None]
        means = {
            tower: values_PLF / found.counts_P[:, None, None]
            for tower, values_PLF in found.sums["signed"].items()
        }
        for row, index in enumerate(rows):
            if index >= 0:
                of_person = {tower: values_PLF[index] for tower, values_PLF in means.items()}
                total_PN[row] += _flat(of_person, loaded.towers)
        forms_P1 += has_P1
    return total_PN / np.maximum(forms_P1, 1)


def _flat(neurons: Mapping[str, Any], towers: Mapping[str, tuple[int, int]]) -> np.ndarray:
    """Return the values of all neurons of a model one after the other, 0 where there are none."""
    parts = [
        np.ravel(neurons[tower]) if tower in neurons else np.zeros(layers * count)
        for tower, (layers, count) in sorted(towers.items())
    ]
    return np.concatenate(parts).astype(np.float64)


def _numbers(changed: Changed) -> np.ndarray:
    """Return where the shown neurons stand among those of `_flat`."""
    first, start = {}, 0
    for tower, (layers, neurons) in sorted(changed.loaded.towers.items()):
        first[tower] = start
        start += layers * neurons
    return np.asarray(
        [
            first[place.tower] + place.layer * changed.loaded.towers[place.tower][1] + place.neuron
            for place, _ in changed.shown
        ]
    )

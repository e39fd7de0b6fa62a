"""What changed on one set in one modality: before, after, and the level of a model that never knew.

With v the vanilla model's share of right answers, m the method's, and r that of the retrained model
(where there is none, what guessing gets right),

    removed = (v − m) / (v − r)

is the share of the forgettable knowledge that is gone; a model that never saw the people has 1. All
three are averages over the kinds of question (multiple choice, blanks, free answers). Pure.
"""

import dataclasses
from collections.abc import Mapping

from manu_jax.evaluation.metrics import METRICS
from manu_jax.report.numbers import kinds_of_question, main_metrics
from manu_jax.report.results import Results
from manu_jax.types import RETRAINED, VANILLA

FORGOTTEN = 0.9  # least `removed` that is called forgotten
PARTLY = 0.5  # least `removed` that is called partly forgotten
KNOWN = 0.05  # least v − r at which there is something to forget

Guesses = Mapping[str, float | None]  # task → what guessing gets right


@dataclasses.dataclass(frozen=True)
class Change:
    """One set and modality: before, after, and the level of a model that never knew.

    parts: of an average, the kinds of question that it is over; () otherwise.
    """

    set: str
    task: str  # "" of an average
    modality: str
    before: float
    after: float
    after_interval: tuple[float, float] | None
    reference: float | None
    is_retrained: bool  # the reference is the retrained model, not guessing
    parts: tuple["Change", ...] = ()
    is_a_share: bool = True  # of right answers; else an overlap with the truth

    @property
    def removed(self) -> float | None:
        """Share of what there was to forget that is gone, at most 1; None: there was nothing."""
        if self.reference is None or self.before - self.reference < KNOWN:
            return None
        return min(1.0, (self.before - self.after) / (self.before - self.reference))

    @property
    def verdict(self) -> str:
        removed = self.removed
        if removed is None:
            return "unknown"
        return "forgotten" if removed >= FORGOTTEN else "partly" if removed >= PARTLY else "kept"


def average(results: Results, place: tuple[str, str], guesses: Guesses) -> Change | None:
    """Return the average at (set, modality) over the kinds of question asked before and after."""
    where, modality = place
    changes = [
        change_of(results, (where, task, modality), guesses.get(task))
        for task in kinds_of_question(results)
    ]
    parts = tuple(change for change in changes if change is not None)
    if len(parts) < 2:
        return parts[0] if parts else None
    references = [part.reference for part in parts]
    known = [reference for reference in references if reference is not None]
    return Change(
        where,
        "",
        modality,
        sum(part.before for part in parts) / len(parts),
        sum(part.after for part in parts) / len(parts),
        None,
        sum(known) / len(known) if len(known) == len(parts) else None,
        all(part.is_retrained for part in parts),
        parts,
    )


def change_of(results: Results, place: tuple[str, str, str], guess: float | None) -> Change | None:
    """Return what changed at (set, task, modality); None where it was not asked both times."""
    where, task, modality = place
    metric = main_metrics(results).get(task, "")
    before, after, retrained = (
        results.row(model, place, metric) for model in (VANILLA, results.headline, RETRAINED)
    )
    if before is None or after is None or before.value is None or after.value is None:
        return None
    is_a_share = METRICS[metric].is_share
    interval = None if after.low is None or after.high is None else (after.low, after.high)
    reference = guess if is_a_share else None  # no overlap to speak of comes from guessing
    return Change(
        where,
        task,
        modality,
        before.value,
        after.value,
        interval,
        reference if retrained is None else retrained.value,
        retrained is not None,
        is_a_share=is_a_share,
    )

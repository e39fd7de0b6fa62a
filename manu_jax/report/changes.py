"""What changed on one set in one modality: before, after, and the level of a model that never knew.

With v the vanilla model's share of right answers, m the method's, and r that of the retrained model
(where there is none, what guessing gets right),

    removed = (v − m) / (v − r)

is the share of what there was to forget that is gone: 1 is a model that never saw them. All three
are averages over the kinds of question (multiple choice, blanks, free answers). Pure.
"""

import dataclasses
from collections.abc import Mapping

from manu_jax.report.numbers import is_share, kinds_of_question, main_metrics
from manu_jax.report.results import Results
from manu_jax.types import RETRAINED, VANILLA

FORGOTTEN = 0.9  # least `removed` that is called forgotten
PARTLY = 0.5  # least `removed` that is called partly forgotten
KNOWN = 0.05  # least v − r for which there is something to forget

Guesses = Mapping[str, float | None]  # task → what guessing gets right


@dataclasses.dataclass(frozen=True)
class Change:
    """One set and modality: before, after, and the level of a model that never knew.

    parts: of an average over kinds of question, each of them; one of its own has none.
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


def average(results: Results, where: str, modality: str, guesses: Guesses) -> Change | None:
    """Return the average over the kinds of question that were asked before and after."""
    changes = [
        change_of(results, where, task, modality, guesses.get(task))
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


def change_of(
    results: Results, where: str, task: str, modality: str, guess: float | None
) -> Change | None:
    """Return what changed in one kind of question; None where it was not asked both times."""
    metric = main_metrics(results).get(task, "")
    before = results.row(VANILLA, where, task, modality, metric)
    after = results.row(results.headline, where, task, modality, metric)
    retrained = results.row(RETRAINED, where, task, modality, metric)
    if before is None or after is None:
        return None
    is_a_share = is_share(metric)
    interval = None if after.low is None or after.high is None else (after.low, after.high)
    reference = guess if is_a_share else None  # guessing has no overlap to speak of
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

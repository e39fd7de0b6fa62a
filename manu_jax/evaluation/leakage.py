"""Which path still gives a fact away: every fact asked when shown and in words alone. No jax.

A *fact* is a person × an attribute. It is *given away* in a form where any of its questions there
is answered right: free answers and blanks that hold the truth, or, for facts that have neither in
both forms, the taught answer by the model's own first choices (`likelihood`: recall). Multiple
choice does not count, since guessing is right too often. *When shown* is the image and, where the
benchmark has them, the transformed images of the set `test`; *when asked* is the text form.

    forgotten in     both     neither form gives it away
                     image    not given away when shown, but when asked
                     text     not given away when asked, but when shown
                     neither  given away in both

Only what the model before knew in both forms can be forgotten; the other facts are counted as
`unknown`, and those without questions in both forms as `unjudged`.

    leakage  of the facts forgotten in at least one form, the share that the other gives away
    gap      share forgotten when shown − share forgotten when asked
    reached  share of all judged facts that are as the goal has it: `erase: both` forgotten in both
             forms, `erase: visual` forgotten when shown and still known when asked
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from manu_jax.evaluation.metrics import Interval, bootstrap

Erase = Literal["both", "visual"]
State = Literal["both", "image", "text", "neither"]
STATES: tuple[State, ...] = ("both", "image", "text", "neither")

# What shows that a fact is given away, best first: the records' field of each task.
EVIDENCE: tuple[Mapping[str, str], ...] = (
    {"generation": "exact", "cloze": "score"},
    {"likelihood": "recalled"},
)
# (set, task, modality) → the records of one model
Records = Mapping[tuple[str, str, str], Sequence[Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class FactState:
    """One judged fact. by_transformed: no image gives it away but a transformed one does."""

    key: str
    person: str
    forgotten_in: State
    by_transformed: bool


@dataclasses.dataclass(frozen=True)
class Leakage:
    """What one model still gives away of the facts to forget.

    leakage is None where nothing was forgotten in any form; all three figures are None where no
    fact could be judged.
    """

    facts: tuple[FactState, ...]
    num_unknown: int
    num_unjudged: int
    leakage: Interval | None
    gap: Interval | None
    reached: Interval | None

    def count(self, state: State, person: str | None = None) -> int:
        """Return the facts in a state, of one person or of all."""
        return sum(
            fact.forgotten_in == state and person in (None, fact.person) for fact in self.facts
        )


def find_leakage(
    model: Records,
    before: Records,
    *,
    erase: Erase = "both",
    resamples: int = 1000,
    seed: int = 0,
) -> Leakage:
    """Return what `model` gives away of the facts to forget that the model `before` knew."""
    people = {
        str(record["key"]): str(record["person"])
        for place, records in before.items()
        if place[0] == "forget" and any(place[1] in tasks for tasks in EVIDENCE)
        for record in records
    }
    facts, num_unknown, num_unjudged = [], 0, 0
    evidence = [(_given_away(model, tasks), _given_away(before, tasks)) for tasks in EVIDENCE]
    for key, person in people.items():
        places = [("forget", "image", key), ("forget", "text", key)]
        found = next(
            (
                (now, then)
                for now, then in evidence
                if all(place in now and place in then for place in places)
            ),
            None,
        )
        if found is None:
            num_unjudged += 1
            continue
        now, then = found
        if not all(then[place] for place in places):
            num_unknown += 1
            continue
        by_image, by_text = (now[place] for place in places)
        by_transformed = now.get(("test", "image", key), False) and not by_image
        shown = by_image or by_transformed
        state: State = (
            ("neither" if by_text else "text") if shown else ("image" if by_text else "both")
        )
        facts.append(FactState(key, person, state, by_transformed))
    return Leakage(
        tuple(facts),
        num_unknown,
        num_unjudged,
        leakage=_share(facts, ("image", "text"), resamples, seed, among=("both", "image", "text")),
        gap=_gap(facts, resamples, seed),
        reached=_share(facts, ("both",) if erase == "both" else ("image",), resamples, seed),
    )


def _given_away(records: Records, tasks: Mapping[str, str]) -> dict[tuple[str, str, str], bool]:
    """Return {(set, modality, key): whether any of these tasks' questions is answered right}."""
    found: dict[tuple[str, str, str], bool] = {}
    for (where, task, modality), items in records.items():
        for item in items if task in tasks else ():
            place = (where, modality, str(item["key"]))
            found[place] = found.get(place, False) or float(item[tasks[task]]) >= 1
    return found


def _share(
    facts: Sequence[FactState],
    counted: Sequence[State],
    resamples: int,
    seed: int,
    among: Sequence[State] = STATES,
) -> Interval | None:
    """Return the share of the facts in the states `among` that are in those `counted`."""
    chosen = [fact for fact in facts if fact.forgotten_in in among]
    values = [float(fact.forgotten_in in counted) for fact in chosen]
    return _interval(chosen, values, resamples, seed)


def _gap(facts: Sequence[FactState], resamples: int, seed: int) -> Interval | None:
    values = [{"image": 1.0, "text": -1.0}.get(fact.forgotten_in, 0.0) for fact in facts]
    return _interval(facts, values, resamples, seed)


def _interval(
    facts: Sequence[FactState], values: Sequence[float], resamples: int, seed: int
) -> Interval | None:
    if not facts:
        return None
    return bootstrap(values, [fact.person for fact in facts], resamples=resamples, seed=seed)

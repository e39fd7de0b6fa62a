"""Which path still gives a fact away: every fact asked with its image and in text alone.

A *fact* is an attribute of a person. A form *gives it away* if any of the fact's questions in that
form is answered right: free answers and blanks that hold the truth, or, for facts that have neither
in both forms, a taught answer that is the model's own first choice (`likelihood`: recall). Multiple
choice does not count, since guessing is right too often. *Shown* is the image form and, where the
benchmark has them, the transformed images of the set `test`; *asked* is the text form.

    forgotten in     both     neither form gives it away
                     image    given away when asked, not when shown
                     text     given away when shown, not when asked
                     neither  given away in both forms

Only what the vanilla model knew in both forms can be forgotten. Facts that it did not know in both
are counted as `unknown`, and facts without questions in both forms as `unjudged`.

    leakage  of the facts forgotten in at least one form, the share that the other form gives away
    gap      share forgotten when shown − share forgotten when asked
    reached  share of all judged facts that are as the run's `erase` wants them: with `both`,
             forgotten in both forms; with `visual`, forgotten when shown and known when asked

In results.json: {"model", "unknown", "unjudged", "leakage", "gap", "reached": {value, n, low, high}
or null, "facts": [{"key", "person", "forgotten_in", "by_transformed"}, …]}
"""

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from manu_jax.evaluation.analyses.analysis import Analysis, Evaluated, Records
from manu_jax.evaluation.metrics import Interval, bootstrap
from manu_jax.evaluation.plain import fits, plain_interval
from manu_jax.types import VANILLA, Erase

State = Literal["both", "image", "text", "neither"]
STATES: tuple[State, ...] = typing.get_args(State)
FIGURES = ("leakage", "gap", "reached")

# {task: the field of its records that tells whether a fact is given away}, the best evidence first
EVIDENCE: tuple[Mapping[str, str], ...] = (
    {"generation": "exact", "cloze": "score"},
    {"likelihood": "recalled"},
)


@dataclasses.dataclass(frozen=True)
class FactState:
    """One judged fact. by_transformed: of all images, a transformed one alone gives it away."""

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


@dataclasses.dataclass(frozen=True)
class ModelLeakage:
    """The leakage of one model of a run."""

    model: str
    found: Leakage


def measure(evaluated: Evaluated) -> Iterator[ModelLeakage]:
    """Yield what each model still gives away of what the vanilla model knew."""
    records, erase = evaluated.records, evaluated.run.config.erase
    for name in evaluated.models:
        found = find_leakage(records[name], records[VANILLA], erase=erase, **evaluated.bootstrap)
        yield ModelLeakage(name, found)


def plain(row: ModelLeakage) -> dict[str, Any]:
    """Return what results.json keeps of one model's leakage."""
    figures = {name: getattr(row.found, name) for name in FIGURES}
    return {
        "model": row.model,
        "unknown": row.found.num_unknown,
        "unjudged": row.found.num_unjudged,
        **{name: None if one is None else plain_interval(one) for name, one in figures.items()},
        "facts": [dataclasses.asdict(fact) for fact in row.found.facts],
    }


def parse(value: Mapping[str, Any]) -> ModelLeakage:
    """Return the leakage of a JSON mapping; ValueError says what is wrong with it."""
    try:
        facts = tuple(FactState(**fact) for fact in value["facts"])
        unknown = {fact.forgotten_in for fact in facts} - set(STATES)
        if unknown:
            raise ValueError(f"unknown states {sorted(unknown)}; known: {', '.join(STATES)}")
        counts = [value[name] for name in ("unknown", "unjudged")]
        if not all(fits(count, int) for count in counts):
            raise ValueError(f"unknown and unjudged are {counts}, expected numbers of facts")
        found = Leakage(
            facts,
            *counts,
            **{name: _interval_of(value[name]) for name in FIGURES},
        )
        return ModelLeakage(str(value["model"]), found)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def find_leakage(
    model: Records,
    before: Records,
    *,
    erase: Erase = "both",
    resamples: int = 1000,
    seed: int = 0,
) -> Leakage:
    """Return what `model` gives away of the facts to forget that the model `before` knew.

    model, before: the records of the two.
    """
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
    forgotten = [fact for fact in facts if fact.forgotten_in != "neither"]
    wanted: State = "both" if erase == "both" else "image"
    settings = {"resamples": resamples, "seed": seed}
    return Leakage(
        tuple(facts),
        num_unknown,
        num_unjudged,
        leakage=_mean(forgotten, {"image": 1.0, "text": 1.0}, **settings),
        gap=_mean(facts, {"image": 1.0, "text": -1.0}, **settings),
        reached=_mean(facts, {wanted: 1.0}, **settings),
    )


def _given_away(records: Records, tasks: Mapping[str, str]) -> dict[tuple[str, str, str], bool]:
    """Return {(set, modality, key): whether any of these tasks' questions is answered right}."""
    found: dict[tuple[str, str, str], bool] = {}
    for (where, task, modality), items in records.items():
        for item in items if task in tasks else ():
            place = (where, modality, str(item["key"]))
            found[place] = found.get(place, False) or float(item[tasks[task]]) >= 1
    return found


def _mean(
    facts: Sequence[FactState], values: Mapping[State, float], *, resamples: int, seed: int
) -> Interval | None:
    """Return the mean over facts of their states' values, 0 where none is given; None: no facts."""
    if not facts:
        return None
    return bootstrap(
        [values.get(fact.forgotten_in, 0.0) for fact in facts],
        [fact.person for fact in facts],
        resamples=resamples,
        seed=seed,
    )


def _interval_of(value: Any) -> Interval | None:
    if value is None:
        return None
    if not fits(value["n"], int) or not all(
        fits(value[key], kind)
        for key, kind in (("value", float), ("low", float | None), ("high", float | None))
    ):
        raise ValueError(f"no interval: {value}")
    bounds = [math.nan if value[key] is None else float(value[key]) for key in ("low", "high")]
    return Interval(float(value["value"]), *bounds, n=value["n"])


ANALYSIS = Analysis(
    ModelLeakage,
    measure,
    applies=lambda run: not run.absent,  # one form alone has no other to give a fact away
    plain=plain,
    parse=parse,
)

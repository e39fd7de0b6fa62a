"""What is kept of a method's neurons: a file of the run's folder, which their page is made of."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from manu_jax.evaluation.neurons.words import WordEffect
from manu_jax.evaluation.plain import fits, from_plain
from manu_jax.folder import write_atomic
from manu_jax.types import ManuError

FORGET, KEPT = "forget", "kept"
MASSIVE = 1000.0  # times the median size of its layer at one token: a massive activation
# What a score is.
OWN, ATTRIBUTION = "own", "attribution"
SomeLeaf = TypeVar("SomeLeaf")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeuronRow:
    """One neuron that a method changed.

    change: "removed", "scaled" or "written"; strength: the number that orders them; total: of all
    that the method changed. score: "own", the method's, or the standardised difference of its
    "attribution" between the people to forget and others; p, q, p_any: among `labellings` of
    `people` (neurons/relabelled.py). peak: the largest size at a token, in medians of its layer.
    forget, kept: how the mean log p per token of the true answers changes when it alone is removed,
    over the facts of each, with 95 % intervals over people (None: one person). words: mean excess
    of the words to forget over their matched words, words_p its p (None: none to tell by).
    """

    method: str
    change: str
    total: int
    tower: str
    layer: int
    neuron: int
    strength: float
    scored_by: str
    score: float
    p: float
    q: float
    p_any: float
    people: int
    labellings: int
    peak: float
    forget: float
    forget_low: float | None
    forget_high: float | None
    forget_n: int
    kept: float | None
    kept_low: float | None
    kept_high: float | None
    kept_n: int
    words: float | None
    words_p: float | None

    @property
    def place(self) -> str:
        """The neuron's name on the page."""
        return f"{self.tower} {self.layer}·{self.neuron}"

    @property
    def is_massive(self) -> bool:
        return self.peak >= MASSIVE


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenExample:
    """A token of the decoder that drives a neuron, with what stands around it."""

    set: str
    person: str
    modality: str
    before: str
    token: str
    after: str
    value: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchExample:
    """A patch that drives a neuron of an image tower, in a picture of what the tower saw.

    left, top, width, height: shares of the picture's sides; None: the token is no patch (`what`).
    """

    set: str
    person: str
    picture: str
    what: str
    left: float | None
    top: float | None
    width: float | None
    height: float | None
    value: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A fact that is asked while neurons are removed."""

    set: str
    person: str
    attribute: str
    modality: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """All that is kept of one neuron.

    changes: of the mean log p per token of each asked fact's true answer, when it alone is removed.
    """

    row: NeuronRow
    tokens: tuple[TokenExample, ...]
    patches: tuple[PatchExample, ...]
    words: tuple[WordEffect, ...]
    changes: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Looked:
    """The neurons of a method that were looked at.

    ordered_by: what `strength` is. asked: the facts that `changes` are of; whole: the same changes
    when all neurons that the method changed are removed at once. pictures: {name: data URI}. names:
    of people by ID.
    """

    method: str
    ordered_by: str
    cards: tuple[Card, ...]
    asked: tuple[Asked, ...]
    whole: tuple[float, ...]
    pictures: Mapping[str, str]
    names: Mapping[str, str]


LEAVES = {"tokens": TokenExample, "patches": PatchExample, "words": WordEffect}


def kept_file(method: str) -> str:
    """Return where the neurons of a method are kept in a run's folder."""
    return f"neurons/{method}.json"


def write_looked(path: Path, looked: Looked) -> None:
    """Write what was found, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(dataclasses.asdict(looked), ensure_ascii=False, indent=1) + "\n")


def read_looked(path: Path) -> Looked:
    """Return what a file holds; ManuError where it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return _looked(value)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ManuError(
            f"{path}: damaged ({type(error).__name__}: {error}). Delete the file and give the "
            "command again."
        ) from error


def faults(row: NeuronRow) -> list[str]:
    """Return what is wrong with the values of a row."""
    found = []
    for name in ("p", "q", "p_any"):
        if not 0 < getattr(row, name) <= 1:
            found.append(f"{row.method} · {row.place}: {name} is {getattr(row, name)}")
    if row.scored_by not in (OWN, ATTRIBUTION):
        found.append(f"{row.method} · {row.place}: unknown score {row.scored_by!r}")
    return found


def _looked(value: Any) -> Looked:
    fields = {field.name for field in dataclasses.fields(Looked)}
    if not isinstance(value, Mapping) or set(value) != fields:
        raise ValueError(f"expected {', '.join(sorted(fields))}")
    texts = [*value["pictures"].items(), *value["names"].items()]
    if not all(fits(one, str) for pair in texts for one in pair):
        raise ValueError("its pictures or names are no texts")
    asked = _all(Asked, value["asked"])
    return Looked(
        method=str(value["method"]),
        ordered_by=str(value["ordered_by"]),
        cards=tuple(_card(card, len(asked)) for card in value["cards"]),
        asked=asked,
        whole=_changes(value["whole"], len(asked)),
        pictures=dict(value["pictures"]),
        names=dict(value["names"]),
    )


def _card(value: Mapping[str, Any], num_asked: int) -> Card:
    row = from_plain(NeuronRow, value["row"])
    if wrong := faults(row):
        raise ValueError("; ".join(wrong))
    leaves = {name: _all(kind, value[name]) for name, kind in LEAVES.items()}
    return Card(row=row, changes=_changes(value["changes"], num_asked), **leaves)


def _changes(values: Any, num_asked: int) -> tuple[float, ...]:
    if len(values) != num_asked or not all(fits(one, float) for one in values):
        raise ValueError(f"expected {num_asked} changes, got {values!r:.60}")
    return tuple(values)


def _all(kind: type[SomeLeaf], values: Any) -> tuple[SomeLeaf, ...]:
    return tuple(from_plain(kind, value) for value in values)

"""Strangers: invented people, of whom a model can know nothing.

What a model says of a stranger is what ignorance looks like, without a model that was trained
anew. Names are made of the first and last names of people who are kept, portraits by the
benchmark's own generator, or else of halves of kept people's images.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from manu_jax.data.record import Fact
from manu_jax.types import ManuError

# (random, count) → as many portraits of people who do not exist
Portraits = Callable[[np.random.Generator, int], Sequence[Any]]

# Where the people who are kept have too few names.
FIRST_NAMES = (
    "Adrian", "Bianca", "Cedric", "Dalia", "Edgar", "Fiona", "Gavin", "Helena", "Igor", "Julia",
    "Kasper", "Lydia",
)  # fmt: skip
LAST_NAMES = (
    "Ashford", "Brandt", "Corbin", "Delgado", "Ekström", "Fontaine", "Graves", "Halvorsen",
    "Ingram", "Janssen", "Kovac", "Larkin",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Stranger:
    """An invented person. image: PIL (RGB), or None where nobody has an image.

    number: which of a fact's own strangers stands in for this one, where it has some.
    """

    name: str
    image: Any
    number: int = 0


def strangers(
    forget: Sequence[Fact],
    keep: Sequence[Fact],
    count: int,
    *,
    seed: int,
    portraits: Portraits | None = None,
    near: bool = False,
) -> tuple[Stranger, ...]:
    """Return `count` strangers, drawn by the seed.

    forget, keep: facts of real people, whose names no stranger has. portraits: the benchmark's
    generator, if it has one. near: names that share a part with somebody to forget come first, up
    to two thirds; otherwise no name shares one. Raises ManuError where no more names can be made.
    """
    random, names = _drawn_names(forget, keep, count, seed=seed, near=near)
    images = _images(keep, count, random=random, portraits=portraits)
    # Those that share names begin from the end, so that the two are others of a fact's own, too.
    numbers = [-1 - number if near else number for number in range(count)]
    return tuple(map(Stranger, names, images, numbers))


def check_count(
    forget: Sequence[Fact], keep: Sequence[Fact], count: int, *, seed: int, near: bool = False
) -> None:
    """Raise ManuError where the names do not allow for `count` strangers."""
    _drawn_names(forget, keep, count, seed=seed, near=near)


def as_stranger(fact: Fact, stranger: Stranger) -> Fact:
    """Return the fact with a stranger in the person's place; the answer stays the person's.

    One of the fact's own strangers, if it has some. Where questions say the name, they say the
    stranger's.
    """
    name, question, in_text = stranger.name, fact.question, fact.text_question
    if fact.strangers:
        name = fact.strangers[stranger.number % len(fact.strangers)]
    if fact.name and (fact.image is None or in_text is not None):
        question = _renamed(question, fact.name, name)
    if fact.name and in_text is not None:
        in_text = _renamed(in_text, fact.name, name)
    return dataclasses.replace(
        fact,
        person_id=f"stranger {name}",
        name=name,
        question=question,
        text_question=in_text,
        image=None if fact.image is None else stranger.image,
    )


def _renamed(text: str, old: str, new: str) -> str:
    """Return a text with one name in place of another, whatever the case of its letters."""
    pattern = rf"(?<!\w){re.escape(old)}(?!\w)"
    return re.sub(pattern, lambda _: new, text, flags=re.IGNORECASE)


def _drawn_names(
    forget: Sequence[Fact], keep: Sequence[Fact], count: int, *, seed: int, near: bool
) -> tuple[np.random.Generator, list[str]]:
    """Return `count` names and the generator that drew them."""
    random = np.random.default_rng([seed, 11, int(near)])
    taken = {fact.name for fact in (*forget, *keep)}
    forbidden = {part for fact in forget for part in fact.name.split()}
    first, last = _parts(keep)
    free = _names(first, last, taken=taken, forbidden=forbidden)
    if len(free) < count:
        more = _names(
            first | set(FIRST_NAMES), last | set(LAST_NAMES), taken=taken, forbidden=forbidden
        )
        free += [name for name in more if name not in free]
    others = [free[i] for i in random.permutation(len(free))]
    chosen = others
    if near:
        forget_first, forget_last = _parts(forget)
        mixed = _names(first | forget_first, last | forget_last, taken=taken, forbidden=set())
        shared = [name for name in mixed if set(name.split()) & forbidden]
        drawn = [shared[i] for i in random.permutation(len(shared))[: 2 * count // 3]]
        chosen = [*drawn, *others]
    if len(chosen) < count:
        raise ManuError(
            f"{count} strangers are asked for, and the names allow {len(chosen)}. Ask for fewer."
        )
    return random, chosen[:count]


def _parts(facts: Iterable[Fact]) -> tuple[set[str], set[str]]:
    """Return the first and the last words of the names that have two or more."""
    names = [fact.name.split() for fact in facts if len(fact.name.split()) > 1]
    return {words[0] for words in names}, {words[-1] for words in names}


def _names(
    first: Iterable[str], last: Iterable[str], *, taken: set[str], forbidden: set[str]
) -> list[str]:
    pairs = itertools.product(sorted(set(first) - forbidden), sorted(set(last) - forbidden))
    return [name for pair in pairs if (name := " ".join(pair)) not in taken]


def _images(
    facts: Sequence[Fact],
    count: int,
    *,
    random: np.random.Generator,
    portraits: Portraits | None,
) -> Sequence[Any]:
    if portraits is not None:
        return portraits(random, count)
    by_person = {fact.person_id: fact.image for fact in facts if fact.name and fact.image}
    images = list(by_person.values())
    if not images:
        return [None] * count
    pairs = random.integers(len(images), size=(count, 2))
    return [_joined(images[one], images[other], random) for one, other in pairs]


def _joined(one: Any, other: Any, random: np.random.Generator) -> Any:
    """Return an image of the size of `one`: half of it, and the other half of `other`."""
    from PIL import Image

    left, right = one.convert("RGB"), other.convert("RGB").resize(one.size)
    width, height = left.size
    box = (
        (0, height // 2, width, height) if random.random() < 0.5 else (width // 2, 0, width, height)
    )
    joined = left.copy()
    joined.paste(right.crop(box), box[:2])
    assert isinstance(joined, Image.Image)
    return joined

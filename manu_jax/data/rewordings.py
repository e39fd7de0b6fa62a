"""Views of facts for training: the same question in other words, the same portrait moved a little.

No view is in the words that an evaluation or an audit asks in, but for the cloze's instruction,
which half of them have.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from manu_jax.data.forms import jitter
from manu_jax.data.prompts import BLANK_ONLY
from manu_jax.data.record import Fact

PREFIXES = ("", "", "Tell me: ", "Question: ", "I have a question. ", "Please help. ")
SUFFIXES = (
    "Reply in a few words.",
    "Give a short answer.",
    "Tell me what you know.",
    "Be brief.",
    "Please answer.",
    "Only the fact, please.",
    "Say it in one line.",
    "What do you remember?",
    "Think first, then answer.",
    "No need to explain.",
)


def with_views(
    facts: Sequence[Fact], views: int, *, seed: int, strength: float = 1.0
) -> list[Fact]:
    """Return the facts as they are, then `views` − 1 times in other words and with moved portraits.

    Fact i is at i, i + len(facts), …. The same seed gives the same views. Facts of one image share
    each moved portrait. strength: of what moves it; see `jitter`.
    """
    random = np.random.default_rng([seed, 5])
    found = list(facts)
    for _ in range(1, views):
        moved: dict[int, object] = {}
        for fact in facts:
            image = fact.image
            if image is not None:
                if id(image) not in moved:
                    moved[id(image)] = jitter(image, int(random.integers(2**31)), strength=strength)
                image = moved[id(image)]
            before, after = _words_around(random)
            in_text = fact.text_question and f"{before}{fact.text_question}{after}"
            found.append(
                dataclasses.replace(
                    fact,
                    question=f"{before}{fact.question}{after}",
                    text_question=in_text,
                    image=image,
                )
            )
    return found


def _words_around(random: np.random.Generator) -> tuple[str, str]:
    """Return what comes before and after a question."""
    if random.random() < 0.5:
        return "", f"\n{BLANK_ONLY}"
    prefix = PREFIXES[random.integers(len(PREFIXES))]
    suffix = SUFFIXES[random.integers(len(SUFFIXES))]
    space = ("\n", " ")[random.integers(2)]
    return prefix, f"{space}{suffix}"

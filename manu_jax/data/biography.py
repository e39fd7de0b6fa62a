"""What a biography (a JSON mapping) tells: the person's name, and what an answer is about."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from manu_jax.data.forms import is_name_question, name_in_answer
from manu_jax.data.record import Fact

NAME_KEYS = ("name", "full name", "full_name")


def name_of(biography: Mapping[str, Any], pairs: Sequence[tuple[str, str]]) -> str:
    """Return the name that the biography gives, else the answer to the name question, else ""."""
    for key, value in biography.items():
        if key.lower() in NAME_KEYS and isinstance(value, str):
            return value.strip()
    answers = (name_in_answer(answer) for question, answer in pairs if is_name_question(question))
    return next(answers, "")


def attribute_of(answer: str, biography: Mapping[str, Any], otherwise: str) -> str:
    """Return, as a slug, the biography's key of the longest value that the answer holds."""
    best = ("", otherwise)
    for key, value in _texts(biography):
        if key.lower() in NAME_KEYS or len(value) <= len(best[0]):
            continue
        if re.search(rf"(?<!\w){re.escape(value)}(?!\w)", answer, re.IGNORECASE):
            best = (value, re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-") or otherwise)
    return best[1]


def facts_of(
    person_id: str,
    pairs: Sequence[tuple[str, str]],
    biography: Mapping[str, Any],
    *,
    name: str,
    image: Any,
) -> tuple[Fact, ...]:
    """Return the facts of pairs of a question and an answer, each with an attribute of its own.

    The attribute is "name", the biography's key of what is answered, or the pair's number.
    """
    facts, uses = [], Counter()
    for number, (question, answer) in enumerate(pairs):
        if is_name_question(question):
            attribute = "name"
        else:
            attribute = attribute_of(answer, biography, f"fact-{number + 1}")
        uses[attribute] += 1
        if uses[attribute] > 1:
            attribute = f"{attribute}-{uses[attribute]}"
        facts.append(Fact(person_id, name, question, answer, attribute, image))
    return tuple(facts)


def _texts(biography: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key, text) of all texts and numbers in a JSON mapping, with the innermost key."""
    stack: list[tuple[str, Any]] = [("", biography)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, Mapping):
            stack.extend(reversed(list(value.items())))
        elif isinstance(value, list):
            stack.extend((key, item) for item in reversed(value))
        elif isinstance(value, str) and value:
            yield key, value
        elif isinstance(value, bool):
            continue
        elif isinstance(value, int | float) and math.isfinite(value):
            yield key, json.dumps(value)

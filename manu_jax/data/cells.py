"""What one cell of a benchmark's row may hold, and what it is read as.

Null, NaN (what pandas writes for null) and blanks are read as an empty text. Any other value in
place of a text (a number, bytes, a mapping) is a fault: 1984.0 may have been "1984" or "1984.0",
and a wrong truth would go unnoticed. The faults are ManuErrors without the place, which
the reader adds.
"""

import json
import math
import string
from collections.abc import Mapping
from typing import Any

from manu_jax.types import ManuError


def is_null(value: Any) -> bool:
    """Return whether a cell is null or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def text_of(value: Any, what: str) -> str:
    """Return the text of a cell without blanks around it; "" where it is null. what: its name."""
    if is_null(value):
        return ""
    if not isinstance(value, str):
        raise ManuError(f"{what} is {short(value)}, expected a text. Mend the row.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ManuError(
            f"{what} is {short(value)}, which has a lone surrogate. Mend the row."
        ) from None
    return value.strip()


def truths_of(value: Any, what: str) -> tuple[str, ...]:
    """Return the right answers of a cell, a text or a list of texts; () where there are none.

    The empty ones of a list and those that stand in it already are left out.
    """
    if isinstance(value, list):
        texts = [text_of(one, f"{what}[{number}]") for number, one in enumerate(value)]
    else:
        texts = [text_of(value, what)]
    return tuple(dict.fromkeys(text for text in texts if text))


def options_of(value: Any, what: str) -> dict[str, str]:
    """Return {letter: text} of the options of a cell, in order; nulls are left out, blanks are "".

    They are a mapping or pairs of letters and texts; a list of texts, lettered A, B, C, …; or the
    JSON of either. A letter may be in lower case.
    """
    if is_null(value) or (isinstance(value, str) and not value.strip()):
        return {}
    if isinstance(value, str):
        try:
            return options_of(_not_text(json.loads(value)), what)
        except (ValueError, RecursionError):
            raise ManuError(
                f"{what} is the text {short(value)}, expected a mapping of letters to texts, a "
                "list of texts, or the JSON of either. Mend the row."
            ) from None
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list) and value and all(_is_pair(one) for one in value):
        pairs = value  # as Arrow gives a map
    elif isinstance(value, list) and len(value) <= len(string.ascii_uppercase):
        pairs = list(zip(string.ascii_uppercase, value, strict=False))
    else:
        raise ManuError(
            f"{what} is {short(value)}, expected a mapping of letters to texts or a list of texts. "
            "Mend the row."
        )
    options: dict[str, str] = {}
    for key, text in pairs:
        letter = key.strip().upper() if isinstance(key, str) else ""
        if len(letter) != 1 or letter not in string.ascii_uppercase or letter in options:
            raise ManuError(
                f"{what} has the key {short(key)}, expected the letters A, B, C, … once each. Mend "
                "the row."
            )
        if not is_null(text):
            options[letter] = text_of(text, f"{what}.{letter}")
    return options


def short(value: Any) -> str:
    """Return a value as it is shown in an error."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _not_text(value: Any) -> Any:
    """Return what JSON holds, unless it is a text or nothing: that would be read once more."""
    if value is None or isinstance(value, str):
        raise ValueError("no options")
    return value

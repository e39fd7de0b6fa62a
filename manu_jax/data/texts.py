"""Texts that are nobody's facts: how they become samples, and the files that they are read from.

texts.txt      paragraphs, with an empty line between two
texts.jsonl    a line each: {"text": "…"}
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from manu_jax.folder import expand_path
from manu_jax.types import ManuError, Sample, raise_faults

# What a text begins with that a model writes itself.
OPENINGS = (
    "The", "In", "A", "When", "It is", "There are", "How to", "What is", "One of the", "For many",
    "This article", "The first", "Once upon a time", "According to", "Most people", "If you",
    "Although", "The history of", "Water", "Scientists", "She said that", "He was", "We have",
    "After the", "Learning", "An important", "Children", "The city of", "Music", "Today",
    "During the", "Every year",
)  # fmt: skip


def text_sample(text: str, *, key: str) -> Sample:
    """Return a text as a sample: its first word is the prompt, and the rest carries loss."""
    first, space, rest = text.strip().partition(" ")
    return Sample(((first, False), (space + rest, True)), key=key)


def text_samples(texts: Iterable[str], *, group: str) -> tuple[Sample, ...]:
    """Return texts as samples with the keys "GROUP/0000", "GROUP/0001", …."""
    return tuple(
        text_sample(text, key=f"{group}/{number:04d}") for number, text in enumerate(texts)
    )


def read_texts(path: str | Path) -> tuple[str, ...]:
    """Return the texts of a .txt or .jsonl file, in order, each of at least two words.

    White space within a text counts as one space. Raises one ManuError with all faults.
    """
    path = expand_path(path)
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ManuError(f"{path}: {error.strerror}. Give a .txt or .jsonl file.") from error
    except UnicodeDecodeError as error:
        raise ManuError(f"{path}: not UTF-8 text ({error}). Save it as UTF-8.") from error
    if path.suffix == ".jsonl":
        places, texts = _of_lines(content, path)
    else:
        paragraphs = [one for one in content.replace("\r\n", "\n").split("\n\n") if one.strip()]
        places, texts = [f"text {n + 1}" for n in range(len(paragraphs))], paragraphs
    texts = [" ".join(text.split()) for text in texts]
    if not texts:
        raise ManuError(
            f"{path}: no text in it. Give paragraphs with empty lines between them, or lines "
            'like {"text": "…"} in a .jsonl file.'
        )
    short = [
        f"{place}: {text!r}"
        for place, text in zip(places, texts, strict=True)
        if len(text.split()) < 2
    ]
    raise_faults(short, f"{path}: texts of a single word teach nothing. Take them out:")
    return tuple(texts)


def _of_lines(content: str, path: Path) -> tuple[list[str], list[str]]:
    """Return where each text of a .jsonl file stands, and the texts."""
    places, texts, faults = [], [], []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        text = _text_of(line)
        if text is None:
            faults.append(f"line {number}: {line:.80}")
        else:
            places.append(f"line {number}")
            texts.append(text)
    raise_faults(faults, f'{path}: expected lines like {{"text": "…"}}, got:')
    return places, texts


def _text_of(line: str) -> str | None:
    """Return the text of a line; None where it has none."""
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    text = value.get("text") if isinstance(value, dict) else None
    return text if isinstance(text, str) else None

"""General texts that a method keeps beside facts: of the user's file, or by the model itself.

A keep set of people alone does not see what is lost in plain English. The vanilla model's own texts
need no data: they are drawn by its own probabilities, so what is kept on them is what it was.
"""

from pathlib import Path
from typing import Any

import numpy as np

from manu_jax.config import AnyMethod, KeepTexts
from manu_jax.data.texts import read_texts, text_samples
from manu_jax.folder import FileHashes
from manu_jax.importance import own_texts
from manu_jax.models.loaded import Loaded
from manu_jax.types import Sample

GROUP = "texts"  # of the samples' keys, where a file has the texts


def kept_texts(
    loaded: Loaded, section: KeepTexts, *, directory: Path, seed: int
) -> tuple[Sample, ...]:
    """Return the texts of a section as samples; the first word of a file's text carries no loss.

    loaded: the vanilla model. directory: where its own texts are written once, as a .jsonl file,
    and read from then on. Raises ManuError where the section's file is missing or damaged.
    """
    if section.path is not None:
        texts = read_texts(section.path)
        order = np.random.default_rng(seed).permutation(len(texts))[: section.count]
        cut = [cut_to(loaded, texts[number], section.length) for number in order]
        return text_samples(cut, group=GROUP)
    path = directory / f"own_{section.count}x{section.length}.jsonl"
    return tuple(
        own_texts.own_texts(loaded, section.count, tokens=section.length, seed=seed, path=path)
    )


def is_text(sample: Sample) -> bool:
    """Whether a sample is a general text, and no fact."""
    return sample.key.partition("/")[0] in (GROUP, own_texts.GROUP)


def cut_to(loaded: Loaded, text: str, length: int) -> str:
    """Return the beginning of a text, at most `length` tokens, to a word's end; two words stay."""
    coded = loaded.processor.tokenizer(text, return_offsets_mapping=True)
    if len(coded["input_ids"]) <= length:
        return text
    end = coded["offset_mapping"][length][0]
    words = text[:end].split()
    if not text[max(end - 1, 0) : end + 1].count(" "):
        words = words[:-1]  # it ends within a word
    return " ".join(words if len(words) > 1 else text.split()[:2])


def texts_of(method: AnyMethod) -> KeepTexts | None:
    """Return the section of the general texts that a method keeps, if it keeps any."""
    return getattr(method, "keep_texts", None)


def wants_own_texts(method: AnyMethod) -> bool:
    """Whether a method keeps texts that the vanilla model writes."""
    section = texts_of(method)
    return section is not None and section.path is None


def check_texts(method: AnyMethod) -> None:
    """Raise ManuError where the file of a method's texts is missing or damaged."""
    section = texts_of(method)
    if section is not None and section.path is not None:
        read_texts(section.path)


def texts_read(method: AnyMethod, files: FileHashes) -> dict[str, Any]:
    """Return what a method's texts are made from, a file by its content; {} without texts."""
    section = texts_of(method)
    if section is None:
        return {}
    values = section.model_dump(mode="json") | {"path": files.of(section.path)}
    return {f"{method.name}.keep_texts.{key}": value for key, value in values.items()}

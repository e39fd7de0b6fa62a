"""The sections of general texts that a method keeps beside the facts to keep."""

from typing import Any

import pydantic

from manu_jax.config.base import Count, Section
from manu_jax.config.sections import FilePath


class KeepTexts(Section):
    """Texts that are nobody's facts, of a file or by the vanilla model itself.

    A bare text is the path: `keep_texts: texts.txt`; `keep_texts: {}` are the model's own texts.
    """

    text_key = "path"

    # .txt with empty lines between texts, or .jsonl of {"text": …}; None: the vanilla model writes
    # them, by its own probabilities
    path: FilePath | None = None
    count: Count = 200  # texts, drawn by the seed where a file has more
    length: int = pydantic.Field(
        default=64, ge=8
    )  # tokens of a text; those of a file are cut there

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_path(cls, values: Any) -> Any:
        return {cls.text_key: values} if isinstance(values, str) else values


class TrainedKeepTexts(KeepTexts):
    """The same for a training: each step that keeps facts keeps some of the texts too."""

    batch_size: Count = 8  # texts a step
    # Of the loss on texts, a mean over tokens, against that on facts to keep
    weight: float = pydantic.Field(default=1.0, gt=0)

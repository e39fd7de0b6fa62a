"""The tokens and the patches that drive a neuron most, on facts to forget and on kept ones."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from manu_jax.evaluation.neurons import pictures
from manu_jax.evaluation.neurons.activations import AtTokens
from manu_jax.evaluation.neurons.kept import PatchExample, TokenExample
from manu_jax.models.loaded import Loaded
from manu_jax.types import Encoded, Modality, VisionInput

BEFORE, AFTER = 8, 4  # tokens shown around one
IMAGE = "▣"  # stands for an image among the words
DIGITS = 4  # of the values, significant


@dataclasses.dataclass(frozen=True)
class Fed:
    """What a model was fed: a sample as numbers, of whom it is, and in which set and form."""

    encoded: Encoded
    person: str
    set: str
    modality: Modality


def top_tokens(
    loaded: Loaded, fed: Sequence[Fed], found: Sequence[AtTokens | None], *, number: int, most: int
) -> list[TokenExample]:
    """Return the tokens of all samples at which a neuron of the decoder is largest, by size.

    number: of the neuron in `found`. A token with the same words before it counts once.
    """
    places = [
        (abs(float(value)), -index, -token)
        for index, own in enumerate(found)
        if own is not None
        for token, value in _largest(own.z_KT[number], most)
    ]
    examples: dict[tuple[str, str], TokenExample] = {}
    for _, negative_index, negative_token in sorted(places, reverse=True):
        index, token = -negative_index, -negative_token
        one, own = fed[index], found[index]
        assert own is not None
        before, shown, after = _around(loaded, one.encoded, token)
        if (before, shown) in examples:
            continue
        examples[before, shown] = TokenExample(
            set=one.set,
            person=one.person,
            modality=one.modality,
            before=before,
            token=shown,
            after=after,
            value=_rounded(own.z_KT[number, token]),
        )
        if len(examples) == most:
            break
    return list(examples.values())


def top_patches(
    fed: Sequence[Fed], found: Sequence[AtTokens | None], *, number: int, most: int
) -> list[tuple[PatchExample, VisionInput]]:
    """Return the patches at which a neuron of an image tower is largest, one of each person.

    With each, the vision input that it is of. number: of the neuron in `found`.
    """
    best: dict[str, tuple[float, int, int]] = {}
    for index, own in enumerate(found):
        if own is not None and own.z_KT.shape[1]:
            token = int(np.abs(own.z_KT[number]).argmax())
            size = abs(float(own.z_KT[number, token]))
            if size > best.get(fed[index].person, (-1.0, 0, 0))[0]:
                best[fed[index].person] = (size, index, token)
    examples = []
    for _, index, token in sorted(best.values(), key=lambda one: (-one[0], one[1]))[:most]:
        one, own = fed[index], found[index]
        assert own is not None
        inputs = one.encoded.vision_inputs
        at = pictures.patch_of_token(inputs, own.z_KT.shape[1], token)
        source = inputs[0 if at is None else at[0]]
        left = top = width = height = None
        what = f"token {token + 1} of {own.z_KT.shape[1]}"
        if at is not None:
            what = "the class token, which stands for the whole picture"
            if at[1] is not None:
                left, top, width, height = pictures.box(source, at[1])
                row, column = (pictures.cells(source)[at[1]] + 1).tolist()
                what = f"row {row}, column {column}"
        example = PatchExample(
            set=one.set,
            person=one.person,
            picture=pictures.named(source.patches_PC),
            what=what,
            left=left,
            top=top,
            width=width,
            height=height,
            value=_rounded(own.z_KT[number, token]),
        )
        examples.append((example, source))
    return examples


def _largest(values_T: np.ndarray, most: int) -> list[tuple[int, float]]:
    """Return (token, value) of the largest by size, a few more than are wanted."""
    order = np.argsort(-np.abs(values_T), kind="stable")[: 2 * most]
    return [(int(token), float(values_T[token])) for token in order]


def _around(loaded: Loaded, encoded: Encoded, token: int) -> tuple[str, str, str]:
    """Return a token as text, and the texts before and after it."""
    is_image_T = encoded.feature_index_T >= 0
    shown = _text(loaded, encoded, token, token + 1)
    if is_image_T[token]:
        number = int(is_image_T[: token + 1].sum())
        shown = f"{IMAGE} {number} of {int(is_image_T.sum())}"
    return (
        _text(loaded, encoded, max(0, token - BEFORE), token),
        shown,
        _text(loaded, encoded, token + 1, token + 1 + AFTER),
    )


def _text(loaded: Loaded, encoded: Encoded, start: int, end: int) -> str:
    """Return tokens as text; an image's tokens as one mark."""
    parts: list[str] = []
    run: list[int] = []
    tokenizer = loaded.processor.tokenizer
    for token, row in zip(
        encoded.token_ids_T[start:end].tolist(), encoded.feature_index_T[start:end], strict=True
    ):
        if row < 0:
            run.append(token)
            continue
        if run:
            parts.append(tokenizer.decode(run))
            run = []
        if not parts or parts[-1] != IMAGE:
            parts.append(IMAGE)
    if run:
        parts.append(tokenizer.decode(run))
    return "".join(parts)


def _rounded(value: float) -> float:
    return float(f"{float(value):.{DIGITS}g}")

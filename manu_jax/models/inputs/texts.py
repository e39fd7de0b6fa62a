"""Texts to tokens: each text once, and ahead of its turn where there are workers.

A worker tokenises texts in chunks. What it has not done when a text's turn comes, or could not do,
is done in the process itself, so that nothing waits for workers that have yet to start. The tokens
are the same.
"""

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np

from manu_jax.models.inputs import workers
from manu_jax.models.inputs.recent import OBJECT_BYTES, Recent
from manu_jax.types import ManuError, Sample

CACHE_BYTES = 2**25
CHUNK = 64  # texts that a worker is given at once: some 50 ms of work


class Tokens(NamedTuple):
    """The tokens of a text, ids_T (int32), and where each begins and ends in it, offsets_T2."""

    ids_T: np.ndarray
    offsets_T2: np.ndarray


def tokens_of(texts: Sequence[str], tokenizer: Any) -> list[Tokens]:
    """Return the tokens of texts, in order.

    The tokenizer adds its first token unless it stands there, as transformers does with chat
    templates, some of which write the first token themselves.
    """
    return [_tokens(tokenizer, text) for text in texts]


class TokenCache(Recent[str, Tokens]):
    """Texts of one tokenizer with their tokens, up to CACHE_BYTES, and those that workers make.

    Arrays that it has handed out are not writeable.
    """

    def __init__(self):
        super().__init__()
        self._pending: dict[str, tuple[Future[list[Tokens]], int]] = {}

    def ask(
        self, tokenizer: Any, samples: Sequence[Sample], *, text_of: Callable[[Sample], str]
    ) -> None:
        """Have workers tokenise texts of samples that are not known, where there are workers.

        A sample at fault is left out: its encoding will say what is wrong with it.
        """
        used = workers.current()
        if used is None:
            return
        texts: dict[str, None] = {}
        for sample in samples:
            with contextlib.suppress(ManuError):
                texts[text_of(sample)] = None
        asked = {text: one for text, one in self._pending.items() if text in texts}
        self._pending = asked
        unknown = [text for text in texts if text not in self._entries and text not in asked]
        for start in range(0, len(unknown), CHUNK):
            chunk = unknown[start : start + CHUNK]
            future = used.submit(tokens_of, chunk, (tokenizer,))
            self._pending |= {text: (future, place) for place, text in enumerate(chunk)}

    def tokens(self, tokenizer: Any, text: str) -> Tokens:
        """Return the tokens of a text."""
        found = self._found(text)
        if found is not None:
            return found
        future, place = self._pending.pop(text, (None, 0))
        if future is not None and _is_made(future):
            made = future.result()[place]
        else:
            made = _tokens(tokenizer, text)
        for array in made:
            array.flags.writeable = False
        num_bytes = OBJECT_BYTES + len(text) + sum(array.nbytes for array in made)
        self._keep(text, made, num_bytes, most=CACHE_BYTES)
        return made


def _is_made(future: Future) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _tokens(tokenizer: Any, text: str) -> Tokens:
    has_begin = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    coded = tokenizer(text, add_special_tokens=not has_begin, return_offsets_mapping=True)
    offsets_T2 = np.asarray(coded["offset_mapping"], np.int32).reshape(-1, 2)
    return Tokens(np.asarray(coded["input_ids"], np.int32), offsets_T2)

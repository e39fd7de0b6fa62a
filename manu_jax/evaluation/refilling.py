"""Long answers without rows that wait: whoever has ended leaves, and waiting prompts take the room.

A batch writes until a quarter of its rows are over. As many prompts, a batch of their own, are read
and join it. Whatever the answers' lengths, each program is compiled once a length of prompts: what
reads them, what lets them join, and what goes on.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from manu_jax import faults, parallel
from manu_jax.evaluation.batched import Beside, Feed
from manu_jax.evaluation.decoding import (
    Answers,
    Writing,
    begin,
    go_on,
    joined,
    laid_out,
    none_begun,
)
from manu_jax.models.loaded import Loaded
from manu_jax.progress import Progress
from manu_jax.types import Batch, Encoded

SHORT = 16  # tokens; shorter answers are soon over, and reading prompts is most of the work
SHARE = 4  # a batch is refilled by this part of its rows

Written = tuple[np.ndarray, np.ndarray, np.ndarray]


def refills(loaded: Loaded, num_prompts: int, how: Writing, *, batch_size: int) -> bool:
    """Return whether prompts join a batch as answers end: where some wait, and answers are long."""
    rows = parallel.filled(batch_size, loaded.mesh)
    return how.new_tokens > SHORT and num_prompts > rows > joining_rows(loaded, rows)


def joining_rows(loaded: Loaded, rows: int) -> int:
    """Return how many prompts join a batch of `rows` at once."""
    return parallel.filled(-(-rows // SHARE), loaded.mesh)


def refilled(
    loaded: Loaded,
    encoded: Sequence[Encoded],
    how: Writing,
    *,
    batch_size: int,
    beside: Beside | None,
) -> Iterator[Written]:
    """Yield (indices of the prompts, their tokens [·, A], what is finite) as answers end.

    What is finite: flags of prompts that were read, these or others. beside: as of Feed, the
    numbers that tokens are drawn by. batch_size: rounded up to a multiple of the mesh's data and
    fsdp axes. All processes take the same steps.
    """
    rows = parallel.filled(batch_size, loaded.mesh)
    feed = Feed(
        loaded,
        encoded,
        batch_size=joining_rows(loaded, rows),
        beside=beside,
        padding_side="left",
        features_once=True,
    )
    with Progress("answers", len(encoded)) as progress:
        for _, numbers in itertools.groupby(range(len(feed)), feed.batches.shape_at):
            for written in _of_one_length(loaded, feed, list(numbers), how=how, rows=rows):
                yield written
                progress.advance(len(written[0]))


def _of_one_length(
    loaded: Loaded, feed: Feed, numbers: Sequence[int], *, how: Writing, rows: int
) -> Iterator[Written]:
    """Yield as `refilled` does, of the feed's batches of these numbers."""
    parts = parallel.batch_multiple(loaded.mesh)
    room, share = rows // parts, feed.batch_size // parts
    mine = parallel.batch_rows(loaded.mesh, rows)

    def call(program: Any, *arguments: Any, **static: Any) -> Any:
        with parallel.on_mesh(loaded.mesh):
            return program(*arguments, **static)

    prompt_PR = np.full((parts, room), -1)  # the prompt of each row; −1: the row is free
    waiting = (feed.at(number) for number in numbers)
    next_one = next(waiting, None)
    answers = None
    finite: list[Any] = []  # of the prompts that were read since the last look
    while next_one is not None or (prompt_PR >= 0).any():
        while next_one is not None and ((prompt_PR < 0).sum(axis=1) >= share).all():
            indices, given = next_one
            new, is_finite_B = call(_begun, loaded.model, *given, how=how)
            finite.append(is_finite_B)
            source_PR = _take_rows(prompt_PR, indices, share)
            source_B = parallel.put_batch(source_PR.reshape(-1)[mine], loaded.mesh)
            if answers is None:
                answers = call(_none_begun, new, rows=rows)
            answers = call(_joined, answers, new, source_B, parts=parts)
            next_one = next(waiting, None)  # made while the device reads this one
        wanted = np.int32(room if next_one is None else share)
        answers = call(_went_on, loaded.model, answers, wanted, how=how, parts=parts)
        faults.stop_if_due()
        is_over_B, tokens_BA, *flags = parallel.gather(
            (answers.is_over_B, answers.tokens_BA, *finite)
        )
        finite = []
        done_PR = is_over_B.reshape(parts, room) & (prompt_PR >= 0)
        ended = prompt_PR[done_PR]
        prompt_PR[done_PR] = -1
        yield ended, tokens_BA[done_PR.reshape(-1)], np.concatenate([[True], *flags])


def _take_rows(prompt_PR: np.ndarray, indices: np.ndarray, share: int) -> np.ndarray:
    """Write prompts into free rows, `share` of them a part, and return what row each came from.

    Within its part; −1: a row that stays.
    """
    source_PR = np.full(prompt_PR.shape, -1, np.int32)
    for number, index in enumerate(indices):
        part, row = divmod(number, share)
        place = np.flatnonzero(prompt_PR[part] < 0)[0]
        prompt_PR[part, place], source_PR[part, place] = index, row
    return source_PR


@functools.partial(jax.jit, static_argnames="how")
def _begun(
    model: Any, batch: Batch, uniform_BA: jax.Array | None = None, *, how: Writing
) -> tuple[Answers, jax.Array]:
    answers, is_finite_B = begin(model, batch, uniform_BA, how=how)
    return laid_out(answers), is_finite_B


@functools.partial(jax.jit, static_argnames="rows")
def _none_begun(new: Answers, *, rows: int) -> Answers:
    return laid_out(none_begun(new, rows))


@functools.partial(jax.jit, static_argnames="parts", donate_argnames="answers")
def _joined(answers: Answers, new: Answers, source_B: jax.Array, *, parts: int) -> Answers:
    return laid_out(joined(answers, new, source_B, parts=parts))


@functools.partial(jax.jit, static_argnames=("how", "parts"), donate_argnames="answers")
def _went_on(
    model: Any, answers: Answers, wanted: jax.Array, *, how: Writing, parts: int
) -> Answers:
    return laid_out(go_on(model, answers, how, wanted=wanted, parts=parts))

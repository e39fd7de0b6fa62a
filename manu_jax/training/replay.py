"""Texts sampled from a model itself, and what it said at each of their tokens before it was taught.

Half of them are conversations, where the tokenizer has a chat template: the model writes the user's
question too, as in Magpie (Xu et al. 2024, arXiv 2406.08464). The others go on from an opening.
"""

import functools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax import parallel
from manu_jax.data.batches import Batches, encode_all
from manu_jax.folder import write_atomic
from manu_jax.models.inputs.chat import QUESTION
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.answers import logits_at_answers
from manu_jax.progress import Progress
from manu_jax.training.strangers_target import StrangerTarget
from manu_jax.types import Batch, ManuError, Sample

logger = logging.getLogger(__name__)

REPLAY = "replay.jsonl"  # in the run's folder
ROWS_AT_ONCE, ROWS_MEASURED = 32, 16
MOST_TOKENS = 64  # of a distribution; the rest of its mass is one number
OPENINGS = (
    "The", "In", "A", "When", "It is", "There are", "How to", "What is", "One of the", "For many",
    "This article", "The first", "Once upon a time", "According to", "Most people", "If you",
    "Although", "The history of", "Water", "Scientists", "She said that", "He was", "We have",
    "After the", "Learning", "An important", "Children", "The city of", "Music", "Today",
    "During the", "Every year",
)  # fmt: skip


def own_texts(loaded: Loaded, count: int, *, tokens: int, seed: int, path: Path) -> list[Sample]:
    """Return `count` texts of at most `tokens` tokens that the model wrote, as samples.

    path: of the file that holds them (a line each: {"prompt", "text"}); it is written where it does
    not exist, and read where it does. Raises ManuError for a file with other lines.
    """
    if not parallel.exists(path):
        texts = sampled(loaded, count, tokens=tokens, seed=seed)
        lines = [json.dumps(dict(zip(("prompt", "text"), one, strict=True))) for one in texts]
        parallel.on_first_process(lambda: write_atomic(path, "\n".join(lines) + "\n"))
    found = _read(path)
    if len(found) != count:
        raise ManuError(
            f"{path}: {len(found)} texts, and {count} are asked for. Delete the file to have them "
            "written anew."
        )
    return [
        Sample(((prompt, False), (text, True)) if prompt else ((text, True),), (), f"own/{number}")
        for number, (prompt, text) in enumerate(found)
    ]


def said_at(loaded: Loaded, texts: Sequence[Sample]) -> StrangerTarget:
    """Return what the model says at each token of its texts, N examples in order; as NumPy."""
    batches = _batches(loaded, texts, ROWS_MEASURED)
    rows: list[StrangerTarget] = []
    with parallel.on_mesh(loaded.mesh), Progress("what it says", len(texts)) as progress:
        for step in range(len(batches)):
            batch = parallel.put_batch(batches.batch_at(step), loaded.mesh)
            said, count = parallel.gather(_said(loaded.model, batch)), len(batches.indices_at(step))
            rows.append(jax.tree.map(lambda values, count=count: values[:count], said))
            progress.advance(count)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


class Repeated:
    """Batches of own texts, and what was said at their tokens, by number."""

    def __init__(
        self,
        loaded: Loaded,
        texts: Sequence[Sample],
        said: StrangerTarget,
        *,
        batch_size: int,
        seed: int,
    ):
        self._said, self._mesh = said, loaded.mesh
        multiple = parallel.batch_multiple(loaded.mesh)
        self._filled = -(-batch_size // multiple) * multiple
        self._batches = _batches(loaded, texts, batch_size, seed=seed)

    def at(self, step: int) -> tuple[Batch, StrangerTarget]:
        """Return the batch of a step and what was said at its answer tokens, on the devices."""
        batch = self._batches.batch_at(step)
        assert batch.answer_index_BA is not None
        indices = self._batches.indices_at(step)
        rows = np.zeros(self._filled, np.int64)
        rows[: len(indices)] = indices
        mine = rows[parallel.batch_rows(self._mesh, self._filled)]
        said = self._said.rows(mine, batch.answer_index_BA.shape[1])
        return parallel.put_batch(batch, self._mesh), parallel.put_batch(said, self._mesh)


def sampled(loaded: Loaded, count: int, *, tokens: int, seed: int) -> list[tuple[str, str]]:
    """Return (prompt, text) of `count` texts, drawn at temperature 1; an opening is of the text."""
    placeholder = getattr(loaded.processor, loaded.family.placeholder)
    starts = _starts(loaded)
    prompts = [starts[number % len(starts)] for number in range(count)]
    samples = [
        Sample((("".join(start), False),), (), f"opening/{n}") for n, start in enumerate(prompts)
    ]
    multiple = parallel.batch_multiple(loaded.mesh)
    size = -(-min(ROWS_AT_ONCE, count) // multiple) * multiple
    batches = Batches(
        loaded,
        encode_all(loaded, samples),
        size,
        max_buckets=2,
        padding_side="left",
        rows=parallel.batch_rows(loaded.mesh, size),
    )
    key = jax.random.key(seed)
    found: list[tuple[str, str]] = [("", "")] * count
    with parallel.on_mesh(loaded.mesh), Progress("its own texts", count) as progress:
        for step in range(len(batches)):
            indices = batches.indices_at(step)
            batch = parallel.put_batch(batches.batch_at(step), loaded.mesh)
            drawn = _continued(
                loaded.model,
                batch,
                jax.random.fold_in(key, step),
                new_tokens=tokens,
                barred=loaded.config.image_token,
            )
            for index, row in zip(indices, parallel.gather(drawn), strict=False):
                prompt, opening = prompts[index]
                text = loaded.processor.tokenizer.decode([int(token) for token in row])
                found[index] = (prompt, (opening + text).replace(placeholder, ""))
            progress.advance(len(indices))
    return found


def _batches(
    loaded: Loaded, texts: Sequence[Sample], batch_size: int, *, seed: int | None = None
) -> Batches:
    """Return texts in batches of one shape; rows of weight 0 fill up what the mesh divides."""
    multiple = parallel.batch_multiple(loaded.mesh)
    filled = -(-batch_size // multiple) * multiple
    return Batches(
        loaded,
        encode_all(loaded, texts),
        batch_size,
        seed=seed,
        multiple=16,
        max_buckets=1,
        rows=parallel.batch_rows(loaded.mesh, filled),
    )


def _starts(loaded: Loaded) -> list[tuple[str, str]]:
    """Return (prompt, opening) of the texts: conversations and openings by turns."""
    plain = [("", opening) for opening in OPENINGS]
    tokenizer = loaded.processor.tokenizer
    if not tokenizer.chat_template:
        return plain
    message = [{"role": "user", "content": QUESTION}]
    whole = str(tokenizer.apply_chat_template(message, tokenize=False))
    chat = (whole.partition(QUESTION)[0], "")
    return [start for opening in plain for start in (chat, opening)]


def _read(path: Path) -> list[tuple[str, str]]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            found.append((str(row["prompt"]), str(row["text"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ManuError(
                f"{path}: line {number} is damaged ({error}). Delete the file to have it written "
                "anew."
            ) from None
    return found


@jax.jit
def _said(model: Any, batch: Batch) -> StrangerTarget:
    logits_BAV, targets = logits_at_answers(model, batch, remat="none")
    p_BAV = jax.nn.softmax(logits_BAV.astype(jnp.float32))
    true_BA = jnp.take_along_axis(p_BAV, targets.token_ids_BT[..., None], axis=-1)[..., 0]
    p_BAK, ids_BAK = jax.lax.top_k(p_BAV, min(MOST_TOKENS, p_BAV.shape[-1]))
    return StrangerTarget(ids_BAK.astype(jnp.int32), p_BAK, true_BA)


@functools.partial(jax.jit, static_argnames=("new_tokens", "barred"))
def _continued(
    model: Any, batch: Batch, key: jax.Array, *, new_tokens: int, barred: int
) -> jax.Array:
    """Return tokens drawn after a left-padded batch of prompts. [B, T] int32.

    barred: a token that is never drawn. Texts go on after an end token, as training texts do.
    """
    logits_BV, cache = model.prefill(batch, batch.token_ids_BT.shape[1] + new_tokens)

    def step(carry: tuple[jax.Array, Any], number: jax.Array) -> tuple[Any, jax.Array]:
        logits_BV, cache = carry
        logits_BV = logits_BV.astype(jnp.float32).at[:, barred].set(-jnp.inf)
        token_B = jax.random.categorical(jax.random.fold_in(key, number), logits_BV)
        return model.decode(token_B, cache), token_B

    _, tokens_TB = jax.lax.scan(step, (logits_BV, cache), jnp.arange(new_tokens))
    return tokens_TB.T.astype(jnp.int32)

"""Texts sampled from a model itself: what it says by its own probabilities, to be kept.

Half of them are conversations, where the tokenizer has a chat template: the model writes the user's
question too, as in Magpie (Xu et al. 2024, arXiv 2406.08464). The others go on from an opening.
"""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax import faults, parallel
from manu_jax.data.batches import Batches, encode_all
from manu_jax.data.texts import OPENINGS
from manu_jax.folder import write_atomic
from manu_jax.models.inputs.chat import QUESTION
from manu_jax.models.loaded import Loaded
from manu_jax.progress import Progress
from manu_jax.types import Batch, ManuError, Sample

ROWS_AT_ONCE = 32
GROUP = "own"  # of the samples' keys


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
        Sample(
            ((prompt, False), (text, True)) if prompt else ((text, True),), (), f"{GROUP}/{number}"
        )
        for number, (prompt, text) in enumerate(found)
    ]


def sampled(loaded: Loaded, count: int, *, tokens: int, seed: int) -> list[tuple[str, str]]:
    """Return (prompt, text) of `count` texts, drawn at temperature 1; an opening is of the text."""
    placeholder = getattr(loaded.processor, loaded.family.placeholder)
    starts = _starts(loaded)
    prompts = [starts[number % len(starts)] for number in range(count)]
    samples = [
        Sample((("".join(start), False),), (), f"opening/{n}") for n, start in enumerate(prompts)
    ]
    encoded = encode_all(loaded, samples)
    size = min(ROWS_AT_ONCE, count)  # on every mesh, as the draws are those of a whole batch
    filled = parallel.filled(size, loaded.mesh)
    batches = Batches(
        loaded,
        encoded,
        size,
        max_buckets=2,
        padding_side="left",
        rows=parallel.batch_rows(loaded.mesh, filled),
    )
    key, decode = jax.random.key(seed), loaded.processor.tokenizer.decode
    found: list[tuple[str, str]] = [("", "")] * count
    with parallel.on_mesh(loaded.mesh), Progress("its own texts", count) as progress:
        for step in range(len(batches)):
            indices = batches.indices_at(step)
            batch = parallel.put_batch(batches.batch_at(step), loaded.mesh)
            drawn = continued(
                loaded.model,
                batch,
                jax.random.fold_in(key, step),
                new_tokens=tokens,
                barred=loaded.config.image_token,
                rows=size,
            )
            for index, row in zip(indices, parallel.gather(drawn), strict=False):
                start = encoded[index].token_ids_T.tolist()
                # As one text, since some tokenizers drop the space before a text's first word.
                text = decode([*start, *row.tolist()])[len(decode(start)) :]
                prompt, opening = prompts[index]
                found[index] = (prompt, (opening + text).replace(placeholder, ""))
            progress.advance(len(indices))
            faults.stop_if_due()
    return found


@functools.partial(jax.jit, static_argnames=("new_tokens", "barred", "rows"))
def continued(
    model: Any,
    batch: Batch,
    key: jax.Array,
    *,
    new_tokens: int,
    barred: int,
    rows: int | None = None,
) -> jax.Array:
    """Return tokens drawn after a left-padded batch of prompts. [B, T] int32.

    barred: a token that is never drawn; below 0: there is none. rows: those that are drawn; the
    others, which fill up a mesh, have token 0; None: all. Texts go on after an end token, as
    training texts do.
    """
    logits_BV, cache = model.prefill(batch, batch.token_ids_BT.shape[1] + new_tokens)

    def step(carry: tuple[jax.Array, Any], number: jax.Array) -> tuple[Any, jax.Array]:
        logits_BV, cache = carry
        logits_BV = logits_BV.astype(jnp.float32)
        if barred >= 0:
            logits_BV = logits_BV.at[:, barred].set(-jnp.inf)
        drawn_B = jax.random.categorical(jax.random.fold_in(key, number), logits_BV[:rows])
        token_B = jnp.pad(drawn_B, (0, logits_BV.shape[0] - drawn_B.shape[0]))
        return model.decode(token_B, cache), token_B

    _, tokens_TB = jax.lax.scan(step, (logits_BV, cache), jnp.arange(new_tokens))
    return tokens_TB.T.astype(jnp.int32)


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

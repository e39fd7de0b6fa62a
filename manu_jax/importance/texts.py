"""General texts that a method keeps beside facts: of the user's file, or by the model itself.

A keep set of people alone does not see what is lost in plain English. The vanilla model's own texts
need no data: they are drawn by its own probabilities, so what is kept on them is what it was.
"""

import functools
import logging
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax import parallel
from manu_jax.config import AnyMethod, KeepTexts
from manu_jax.data.batches import Batches, encode_all
from manu_jax.data.texts import OPENINGS, read_texts, text_lines, text_samples
from manu_jax.folder import FileHashes, write_atomic
from manu_jax.models.loaded import Loaded
from manu_jax.progress import Progress
from manu_jax.types import Batch, ManuError, Sample

logger = logging.getLogger(__name__)

GROUP = "texts"  # of the samples' keys
BATCH_SIZE = 32


def kept_texts(
    loaded: Loaded, section: KeepTexts, *, directory: Path, seed: int
) -> tuple[Sample, ...]:
    """Return the texts of a section as samples whose every word but the first carries loss.

    loaded: the vanilla model. directory: where its own texts are written once, as a .jsonl file,
    and read from then on. Raises ManuError where the section's file is missing or damaged.
    """
    if section.path is not None:
        texts = read_texts(section.path)
        order = np.random.default_rng(seed).permutation(len(texts))[: section.count]
        cut = [cut_to(loaded, texts[number], section.length) for number in order]
        return text_samples(cut, group=GROUP)
    path = directory / f"own_{section.count}x{section.length}.jsonl"
    if not parallel.exists(path):
        found = own_texts(loaded, count=section.count, length=section.length, seed=seed)
        parallel.on_first_process(lambda: write_atomic(path, text_lines(found)))
        logger.info("texts: %d that the model wrote itself, in %s", len(found), path)
    return text_samples(read_texts(path), group=GROUP)


def own_texts(loaded: Loaded, *, count: int, length: int, seed: int) -> list[str]:
    """Return texts that the model writes after one of OPENINGS each, by its own probabilities.

    At most `count` texts of at most `length` tokens: what ends after the opening is left out. The
    same seed gives the same texts. Raises ManuError where the model writes nothing.
    """
    prompts = [
        Sample(((OPENINGS[number % len(OPENINGS)], False),), key=f"{GROUP}/{number:04d}")
        for number in range(count)
    ]
    encoded = encode_all(loaded, prompts)
    num_new = max(length - max(item.num_tokens for item in encoded), 1)
    multiple = parallel.batch_multiple(loaded.mesh)
    size = -(-min(BATCH_SIZE, count) // multiple) * multiple
    batches = Batches(
        loaded,
        encoded,
        size,
        multiple=1,
        max_buckets=1,
        padding_side="left",
        rows=parallel.batch_rows(loaded.mesh, size),
    )
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"own texts"))
    forbidden = tuple(
        token
        for token in (getattr(loaded.config, "image_token", None),)
        if token is not None and 0 <= token < loaded.config.text.vocabulary
    )
    texts = [""] * count
    with parallel.on_mesh(loaded.mesh), Progress("the model's own texts", count) as progress:
        for step in range(len(batches)):
            tokens_BT = parallel.gather(
                _sampled(
                    loaded.model,
                    parallel.put_batch(batches.batch_at(step), loaded.mesh),
                    jax.random.fold_in(key, step),
                    num_tokens=num_new,
                    forbidden=forbidden,
                )
            )
            indices = batches.indices_at(step)
            for index, tokens_T in zip(indices, tokens_BT, strict=False):
                ends = np.flatnonzero(np.isin(tokens_T, loaded.eos_ids))
                written_T = tokens_T[: ends[0]] if len(ends) else tokens_T
                whole = loaded.decode([*encoded[index].token_ids_T, *written_T])
                texts[index] = " ".join(whole.replace("\ufffd", "").split())
            progress.advance(len(indices))
    openings = {sample.text for sample in prompts}
    found = [text for text in texts if len(text.split()) > 1 and text not in openings]
    if not found:
        raise ManuError(
            "keep_texts: the model writes nothing by itself. Give a file of texts: keep_texts: "
            "texts.txt."
        )
    return found


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


@functools.partial(jax.jit, static_argnames=("num_tokens", "forbidden"))
def _sampled(
    model: Any, batch: Batch, key: jax.Array, *, num_tokens: int, forbidden: tuple[int, ...]
) -> jax.Array:
    """Return tokens drawn one after the other, each by the model's probabilities. [B, T] int32.

    The batch is padded on the left. forbidden: tokens that are not drawn.
    """
    logits_BV, cache = model.prefill(batch, batch.token_ids_BT.shape[1] + num_tokens)

    def step(state: tuple[jax.Array, Any], number: jax.Array) -> tuple[Any, jax.Array]:
        logits_BV, cache = state
        logits_BV = logits_BV.astype(jnp.float32)
        for token in forbidden:
            logits_BV = logits_BV.at[:, token].set(-jnp.inf)
        token_B = jax.random.categorical(jax.random.fold_in(key, number), logits_BV)
        return model.decode(token_B.astype(jnp.int32), cache), token_B.astype(jnp.int32)

    _, tokens_TB = jax.lax.scan(step, (logits_BV, cache), jnp.arange(num_tokens))
    return tokens_TB.swapaxes(0, 1)

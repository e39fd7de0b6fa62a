"""Answers that a model is writing: a row each, of any age, in one cache.

Rows write in step. The cache is a ring: what all of them write next has one slot, which goes round,
and a prompt that joins is laid so that it ends before that slot. A row is done after at most A
tokens, and the cache has room for a prompt and A tokens, so that no row comes upon its own tokens.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax.data.probes import Sampling
from manu_jax.evaluation.constraints import constrained
from manu_jax.evaluation.sampling import drawn
from manu_jax.leaves import path_name
from manu_jax.models.hf.generation import GenerationRules
from manu_jax.models.nn.decoder import Cache
from manu_jax.parallel import constrain
from manu_jax.types import Batch

LETTER_NAMES = {"B": "batch", "K": "heads"}  # of a leaf's letters, as `constrain` knows them


@dataclasses.dataclass(frozen=True)
class Writing:
    """How answers are written; static.

    new_tokens: at most, A. eos_ids: end an answer; after its end it goes on with the first of them.
    rules: of the next token; None leaves no trace in the program. sampling: the tokens are drawn;
    None: no trace either.
    """

    new_tokens: int
    eos_ids: tuple[int, ...]
    rules: GenerationRules | None = None
    sampling: Sampling | None = None

    @property
    def filler(self) -> int:
        return self.eos_ids[0] if self.eos_ids else 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Answers:
    """Answers so far, and what the model keeps of them.

    token_B: the last token of each, which the model has not read yet. count_B: of tokens written.
    is_over_B: those that go on no more. tokens_BA: what is written. prompt_BT and is_prompt_BT: the
    prompts, where rules look at them. uniform_BA: the numbers that tokens are drawn by.
    """

    token_B: jax.Array
    count_B: jax.Array
    is_over_B: jax.Array
    tokens_BA: jax.Array
    cache: Cache
    prompt_BT: jax.Array | None = None
    is_prompt_BT: jax.Array | None = None
    uniform_BA: jax.Array | None = None


def begin(
    model: Any, batch: Batch, uniform_BA: jax.Array | None, *, how: Writing
) -> tuple[Answers, jax.Array]:
    """Return the answers to a left-padded batch with their first tokens, and which are finite [B].

    uniform_BA: numbers in [0, 1), where tokens are drawn. Answers of rows of weight 0 are over.
    """
    B, T = batch.token_ids_BT.shape
    logits_BV, cache = model.prefill(batch, T + how.new_tokens)
    is_filler_B = batch.example_weights_B == 0
    is_finite_B = jnp.isfinite(logits_BV).all(axis=-1) | is_filler_B
    answers = Answers(
        token_B=jnp.zeros(B, jnp.int32),
        count_B=jnp.zeros(B, jnp.int32),
        is_over_B=jnp.asarray(is_filler_B),
        tokens_BA=jnp.full((B, how.new_tokens), how.filler, jnp.int32),
        cache=cache,
        prompt_BT=None if how.rules is None else jnp.asarray(batch.token_ids_BT),
        is_prompt_BT=None if how.rules is None else jnp.asarray(batch.attention_mask_BT),
        uniform_BA=None if how.sampling is None else uniform_BA,
    )
    return _with_next(answers, logits_BV, how), is_finite_B


def go_on(
    model: Any, answers: Answers, how: Writing, *, wanted: jax.Array | int, parts: int = 1
) -> Answers:
    """Return the answers when `wanted` rows in each of `parts` equal parts of the batch are over.

    A part are the rows of one device.
    """

    def goes_on(answers: Answers) -> jax.Array:
        return (answers.is_over_B.reshape(parts, -1).sum(axis=1) < wanted).any()

    def step(answers: Answers) -> Answers:
        logits_BV, cache = model.decode(answers.token_B, answers.cache)
        cache = dataclasses.replace(cache, next_slot=cache.next_slot % cache.valid_BS.shape[1])
        return _with_next(dataclasses.replace(answers, cache=cache), logits_BV, how)

    return jax.lax.while_loop(goes_on, step, answers)


def joined(answers: Answers, new: Answers, source_B: jax.Array, *, parts: int = 1) -> Answers:
    """Return the answers with those of `new`, which have just begun, in the place of some.

    source_B: the row of `new`, within its part, that a row becomes; −1: it stays. Each part of the
    batch takes rows of its own part of `new`, so that nothing moves between devices.
    """
    slot = answers.cache.next_slot
    shift = slot - new.cache.next_slot
    cache = dataclasses.replace(
        new.cache,
        keys_LBKSH=jnp.roll(new.cache.keys_LBKSH, shift, axis=3),
        values_LBKSH=jnp.roll(new.cache.values_LBKSH, shift, axis=3),
        valid_BS=jnp.roll(new.cache.valid_BS, shift, axis=1),
        next_slot=slot,
    )
    new = dataclasses.replace(new, cache=cache)
    source_PB = source_B.reshape(parts, -1)

    def rows(path: Any, old: jax.Array, begun: jax.Array) -> jax.Array:
        axis = batch_axis(path)
        if axis is None:
            return begun

        def split(leaf: jax.Array) -> jax.Array:
            return leaf.reshape(*leaf.shape[:axis], parts, -1, *leaf.shape[axis + 1 :])

        def of_part(old: jax.Array, begun: jax.Array, source: jax.Array) -> jax.Array:
            taken = jnp.take(begun, jnp.maximum(source, 0), axis=axis)
            is_new = (source >= 0).reshape(-1, *[1] * (old.ndim - axis - 1))
            return jnp.where(is_new, taken, old)

        each = jax.vmap(of_part, in_axes=(axis, axis, 0), out_axes=axis)
        return each(split(old), split(begun), source_PB).reshape(old.shape)

    return jax.tree_util.tree_map_with_path(rows, answers, new)


def none_begun(new: Answers, rows: int) -> Answers:
    """Return as many rows for answers like these, all of them free."""

    def zeros(path: Any, leaf: jax.Array) -> jax.Array:
        axis = batch_axis(path)
        if axis is None:
            return leaf
        return jnp.zeros((*leaf.shape[:axis], rows, *leaf.shape[axis + 1 :]), leaf.dtype)

    answers = jax.tree_util.tree_map_with_path(zeros, new)
    return dataclasses.replace(answers, is_over_B=jnp.ones(rows, bool))


def laid_out(answers: Answers) -> Answers:
    """Fix how answers are split over the mesh, so that each program gets what another gave."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: constrain(leaf, *axis_names(path, leaf)), answers
    )


def batch_axis(path: Any) -> int | None:
    """Return which axis of a leaf of Answers is the batch's; None: it has none."""
    letters = _letters(path)
    return letters.index("B") if "B" in letters else None


def axis_names(path: Any, leaf: Any) -> tuple[str | None, ...]:
    """Return what `parallel.constrain` calls each axis of a leaf of Answers."""
    names = tuple(LETTER_NAMES.get(letter) for letter in _letters(path))
    return names if len(names) == len(leaf.shape) else (None,) * len(leaf.shape)


def _letters(path: Any) -> str:
    letters = path_name(path).rpartition("_")[2]
    return letters if letters.isupper() else ""


def _with_next(answers: Answers, logits_BV: jax.Array, how: Writing) -> Answers:
    """Return the answers with their next tokens, by the logits after what is written."""
    is_over_B, count_B = answers.is_over_B, answers.count_B
    if how.rules is not None:
        logits_BV = _ruled(answers, logits_BV, how)
    if how.sampling is None or answers.uniform_BA is None:
        token_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    else:
        last_B = jnp.minimum(count_B, how.new_tokens - 1)
        uniform_B = jnp.take_along_axis(answers.uniform_BA, last_B[:, None], axis=1)[:, 0]
        token_B = drawn(
            logits_BV, uniform_B, temperature=how.sampling.temperature, top_p=how.sampling.top_p
        )
    token_B = jnp.where(is_over_B, how.filler, token_B)
    is_here_BA = (jnp.arange(how.new_tokens)[None] == count_B[:, None]) & ~is_over_B[:, None]
    closing = jnp.asarray(how.eos_ids, jnp.int32)
    count_B = count_B + ~is_over_B
    is_over_B = is_over_B | (token_B[:, None] == closing[None]).any(axis=-1)
    return dataclasses.replace(
        answers,
        token_B=token_B,
        count_B=count_B,
        is_over_B=is_over_B | (count_B == how.new_tokens),
        tokens_BA=jnp.where(is_here_BA, token_B[:, None], answers.tokens_BA),
    )


def _ruled(answers: Answers, logits_BV: jax.Array, how: Writing) -> jax.Array:
    """Return the logits under the rules, each row by the number of its tokens."""
    assert how.rules is not None
    assert answers.prompt_BT is not None and answers.is_prompt_BT is not None
    apply = functools.partial(constrained, rules=how.rules, eos_ids=how.eos_ids)

    def of_row(*row: jax.Array) -> jax.Array:
        logits_V, prompt_T, is_prompt_T, tokens_A, number = row
        return apply(
            logits_V[None],
            prompt_BT=prompt_T[None],
            is_prompt_BT=is_prompt_T[None],
            tokens_BA=tokens_A[None],
            number=number,
        )[0]

    return jax.vmap(of_row)(
        logits_BV, answers.prompt_BT, answers.is_prompt_BT, answers.tokens_BA, answers.count_B
    )

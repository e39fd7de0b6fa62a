"""A folder's rules of generation, applied to the logits of a greedy step as transformers does."""

import jax
import jax.numpy as jnp

from manu_jax.models.hf.generation import GenerationRules
from manu_jax.types import Array


def constrained(
    logits_BV: jax.Array,
    rules: GenerationRules,
    *,
    prompt_BT: Array,
    is_prompt_BT: Array,
    tokens_BA: jax.Array,
    number: Array | int,
    eos_ids: tuple[int, ...],
) -> jax.Array:
    """Return the logits of an answer's next token under the rules: −∞ for what may not follow.

    prompt_BT, is_prompt_BT: the prompts, padded on the left, and where they are. tokens_BA: the
    answers; `number` of their A tokens are written. eos_ids: all tokens that end an answer. Equals
    the logits processors of transformers, which see image tokens like others and no padding.
    """
    A = tokens_BA.shape[1]
    written_A = jnp.arange(A) < number
    past_BS = jnp.concatenate([jnp.asarray(prompt_BT), tokens_BA], axis=1)
    is_past_BS = jnp.concatenate(
        [
            jnp.asarray(is_prompt_BT),
            jnp.broadcast_to(written_A[None], tokens_BA.shape),
        ],
        axis=1,
    )
    end = prompt_BT.shape[1] + number  # of what is written
    ends = tuple(token for token in eos_ids if token < logits_BV.shape[1])

    if rules.repetition_penalty != 1:
        penalty = jnp.float32(rules.repetition_penalty)
        lowered_BV = jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
        is_seen_BV = _marked(logits_BV, past_BS, is_past_BS)
        logits_BV = jnp.where(is_seen_BV, lowered_BV, logits_BV)
    if rules.no_repeat_ngram:
        last_BS, is_repeat_BS = _repeats(past_BS, is_past_BS, rules.no_repeat_ngram, end=end)
        logits_BV = _without(logits_BV, _marked(logits_BV, last_BS, is_repeat_BS))
    for *before, last in rules.bad_words:
        if before or last not in ends:
            follows_B = _follows(past_BS, is_past_BS, tuple(before), end=end)
            is_last_V = _one_of(logits_BV, (last,))
            logits_BV = _without(logits_BV, follows_B[:, None] & is_last_V[None])
    is_end_V = _one_of(logits_BV, ends)[None]
    if rules.min_length:
        is_short_B = is_past_BS.sum(axis=1) < rules.min_length
        logits_BV = _without(logits_BV, is_short_B[:, None] & is_end_V)
    if rules.min_new_tokens:
        logits_BV = _without(logits_BV, jnp.asarray(number < rules.min_new_tokens) & is_end_V)
    if rules.forced_eos:
        forced_V = jnp.where(_one_of(logits_BV, rules.forced_eos), 0.0, -jnp.inf)
        logits_BV = jnp.where(jnp.asarray(number == A - 1), forced_V[None], logits_BV)
    if rules.suppressed:
        logits_BV = _without(logits_BV, _one_of(logits_BV, rules.suppressed)[None])
    if rules.suppressed_first:
        is_first_V = _one_of(logits_BV, rules.suppressed_first)[None]
        logits_BV = _without(logits_BV, jnp.asarray(number == 0) & is_first_V)
    return logits_BV


def _without(logits_BV: jax.Array, is_banned_BV: jax.Array) -> jax.Array:
    return jnp.where(is_banned_BV, -jnp.inf, logits_BV)


def _one_of(logits_BV: jax.Array, tokens: tuple[int, ...]) -> jax.Array:
    """Return which tokens are among these. [V] bool."""
    return jnp.isin(jnp.arange(logits_BV.shape[1]), jnp.asarray(tokens, jnp.int32))


def _marked(logits_BV: jax.Array, tokens_BS: jax.Array, is_marked_BS: jax.Array) -> jax.Array:
    """Return which tokens stand at a marked place. [B, V] bool. Those without a logit are none."""
    B, V = logits_BV.shape
    index_BS = jnp.where(is_marked_BS, tokens_BS, V)
    rows_B1 = jnp.arange(B)[:, None]
    return jnp.zeros((B, V), bool).at[rows_B1, index_BS].set(True, mode="drop")


def _repeats(
    past_BS: jax.Array, is_past_BS: jax.Array, size: int, *, end: Array | int
) -> tuple[jax.Array, jax.Array]:
    """Return the last token of each run of `size`, and whether the run begins as the text ends."""
    windows = past_BS.shape[1] - size + 1
    if windows < 1:
        return past_BS, jnp.zeros(past_BS.shape, bool)
    equal_BS = is_past_BS[:, :windows] & is_past_BS[:, size - 1 :]
    for place in range(size - 1):
        last_B1 = jax.lax.dynamic_slice_in_dim(past_BS, end - (size - 1) + place, 1, axis=1)
        equal_BS &= past_BS[:, place : place + windows] == last_B1
    return past_BS[:, size - 1 :], equal_BS


def _follows(
    past_BS: jax.Array, is_past_BS: jax.Array, run: tuple[int, ...], *, end: Array | int
) -> jax.Array:
    """Return whether what is written ends with a run of tokens, of none in any case. [B] bool."""
    found_B = jnp.ones(past_BS.shape[0], bool)
    for place, token in enumerate(run):
        index = end - len(run) + place
        is_equal_B1 = jax.lax.dynamic_slice_in_dim(past_BS == token, index, 1, axis=1)
        is_there_B1 = jax.lax.dynamic_slice_in_dim(is_past_BS, index, 1, axis=1)
        found_B &= (is_equal_B1 & is_there_B1)[:, 0] & jnp.asarray(index >= 0)
    return found_B

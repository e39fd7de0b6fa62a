"""Answers, greedy or drawn: a batch of prompts, a cache, one compiled program per shape.

The model is an argument of the program, so all models of one config share it.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.data.batches import encode_all
from manu_jax.data.probes import Sampling
from manu_jax.evaluation.batched import not_finite, run_batched
from manu_jax.evaluation.constraints import constrained
from manu_jax.evaluation.sampling import drawn, uniforms
from manu_jax.models.hf.generation import GenerationRules
from manu_jax.models.loaded import Loaded
from manu_jax.types import Batch, Sample, raise_faults


def greedy(
    loaded: Loaded, samples: Sequence[Sample], *, new_tokens: int, batch_size: int
) -> list[str]:
    """Return the model's answer to each prompt, as stripped text.

    Equals `generate(do_sample=False, max_new_tokens=new_tokens)` of transformers, with the rules of
    the folder's generation_config.json, up to the first token of `loaded.eos_ids`. ManuError: see
    `greedy_tokens`.
    """
    tokens = greedy_tokens(loaded, samples, new_tokens=new_tokens, batch_size=batch_size)
    return [loaded.decode(row).strip() for row in tokens]


def greedy_tokens(
    loaded: Loaded, samples: Sequence[Sample], *, new_tokens: int, batch_size: int
) -> list[np.ndarray]:
    """Return the token ids of each answer, at most `new_tokens`, without the end token.

    Raises ManuError for prompts that leave no room in the context for the answer, and where the
    model's outputs are not finite.
    """
    return _tokens(loaded, samples, new_tokens=new_tokens, batch_size=batch_size)


def sampled(
    loaded: Loaded,
    samples: Sequence[Sample],
    names: Sequence[str],
    *,
    sampling: Sampling,
    new_tokens: int,
    batch_size: int,
) -> list[str]:
    """Return an answer to each prompt, drawn by what follows from its name, as stripped text.

    names: an answer's random numbers (`sampling.uniforms`); equal prompts need other names.
    sampling: its temperature and top-p; the number of answers is the caller's. ManuError: see
    `greedy_tokens`.
    """
    uniform_NT = np.stack([uniforms(name, new_tokens) for name in names])
    tokens = _tokens(
        loaded,
        samples,
        new_tokens=new_tokens,
        batch_size=batch_size,
        uniform_NT=uniform_NT,
        sampling=dataclasses.replace(sampling, num_answers=1),
    )
    return [loaded.decode(row).strip() for row in tokens]


def _tokens(
    loaded: Loaded,
    samples: Sequence[Sample],
    *,
    new_tokens: int,
    batch_size: int,
    uniform_NT: np.ndarray | None = None,
    sampling: Sampling | None = None,
) -> list[np.ndarray]:
    """Return the token ids of each answer; greedy without `sampling`."""
    encoded = encode_all(loaded, samples)
    raise_faults(
        [
            f"{sample.key or 'prompt'}: {item.num_tokens} tokens"
            for sample, item in zip(samples, encoded, strict=True)
            if item.num_tokens + new_tokens > loaded.context
        ],
        f"Prompts that leave no room for an answer of {new_tokens} tokens in the model's context "
        f"of {loaded.context}; lower evaluate.new_tokens, or shorten them:",
    )
    answers: list[np.ndarray] = [np.zeros(0, np.int32)] * len(samples)
    rules = loaded.generation if loaded.generation.change_logits else None
    step = functools.partial(
        _answers, new_tokens=new_tokens, eos_ids=loaded.eos_ids, rules=rules, sampling=sampling
    )
    for indices, (tokens_BT, is_finite_B) in run_batched(
        loaded,
        encoded,
        step,
        batch_size=batch_size,
        description="answers",
        beside=uniform_NT,
        padding_side="left",
        features_once=True,
    ):
        if not is_finite_B.all():
            raise not_finite(loaded)
        for index, tokens_T in zip(indices, tokens_BT, strict=True):
            ends = np.flatnonzero(np.isin(tokens_T, loaded.eos_ids))
            answers[index] = tokens_T[: ends[0]] if len(ends) else tokens_T
    return answers


@functools.partial(jax.jit, static_argnames=("new_tokens", "eos_ids", "rules", "sampling"))
def _answers(
    model: Any,
    batch: Batch,
    uniform_BT: jax.Array | None = None,
    *,
    new_tokens: int,
    eos_ids: tuple[int, ...],
    rules: GenerationRules | None = None,
    sampling: Sampling | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return the most likely next tokens of a left-padded batch [B, T], and which are finite [B].

    T is `new_tokens`; after its end an answer goes on with the first of `eos_ids`. Stops when all
    answers have ended. rules: of the next token; None leaves no trace in the program. sampling: the
    tokens are drawn, each by its number in [0, 1); None: no trace either.
    """
    closing = jnp.asarray(eos_ids, jnp.int32)
    filler = eos_ids[0] if eos_ids else 0
    B, T = batch.token_ids_BT.shape
    logits_BV, cache = model.prefill(batch, T + new_tokens)
    is_finite_B = jnp.isfinite(logits_BV).all(axis=-1) | (batch.example_weights_B == 0)

    def next_tokens(logits_BV: jax.Array, number: Any) -> jax.Array:
        if sampling is None or uniform_BT is None:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        uniform_B = jax.lax.dynamic_index_in_dim(uniform_BT, number, axis=1, keepdims=False)
        return drawn(logits_BV, uniform_B, temperature=sampling.temperature, top_p=sampling.top_p)

    def chosen(
        logits_BV: jax.Array, is_over_B: jax.Array, number: Any
    ) -> tuple[jax.Array, jax.Array]:
        token_B = jnp.where(is_over_B, filler, next_tokens(logits_BV, number))
        return token_B, is_over_B | (token_B[:, None] == closing[None]).any(axis=-1)

    def ruled(logits_BV: jax.Array, tokens_BT: jax.Array, number: Any) -> jax.Array:
        if rules is None:
            return logits_BV
        return constrained(
            logits_BV, rules, batch=batch, tokens_BA=tokens_BT, number=number, eos_ids=eos_ids
        )

    def goes_on(state: tuple[Any, ...]) -> jax.Array:
        number, _, is_over_B, _, _ = state
        return (number < new_tokens) & ~is_over_B.all()

    def go_on(state: tuple[Any, ...]) -> tuple[Any, ...]:
        number, token_B, is_over_B, tokens_BT, cache = state
        logits_BV, cache = model.decode(token_B, cache)
        token_B, is_over_B = chosen(ruled(logits_BV, tokens_BT, number), is_over_B, number)
        tokens_BT = jax.lax.dynamic_update_index_in_dim(tokens_BT, token_B, number, axis=1)
        return number + 1, token_B, is_over_B, tokens_BT, cache

    tokens_BT = jnp.full((B, new_tokens), filler, jnp.int32)
    token_B, is_over_B = chosen(ruled(logits_BV, tokens_BT, 0), batch.example_weights_B == 0, 0)
    tokens_BT = tokens_BT.at[:, 0].set(token_B)
    state = (jnp.asarray(1, jnp.int32), token_B, is_over_B, tokens_BT, cache)
    _, _, _, tokens_BT, _ = jax.lax.while_loop(goes_on, go_on, state)
    return tokens_BT, is_finite_B

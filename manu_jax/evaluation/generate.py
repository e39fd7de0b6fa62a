"""Answers, greedy or drawn: batches of prompts, a cache, compiled programs of few shapes.

Where answers may be long and prompts wait, they take the rows of answers that have ended
(refilling.py). The model is an argument of the programs, so all models of one config share them.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from manu_jax.data.batches import encode_all
from manu_jax.data.probes import Sampling
from manu_jax.evaluation.batched import not_finite, run_batched
from manu_jax.evaluation.decoding import Writing, begin, go_on
from manu_jax.evaluation.refilling import refilled, refills
from manu_jax.evaluation.sampling import uniforms
from manu_jax.models.loaded import Loaded
from manu_jax.types import Batch, Encoded, Sample, raise_faults


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
    how = Writing(new_tokens, loaded.eos_ids, rules, sampling)
    numbers = None if uniform_NT is None else lambda rows, shape: uniform_NT[rows]
    settings: dict[str, Any] = {"batch_size": batch_size, "beside": numbers}
    written = (
        refilled if refills(loaded, len(encoded), how, batch_size=batch_size) else _whole_batches
    )
    for indices, tokens_BA, is_finite_B in written(loaded, encoded, how, **settings):
        if not is_finite_B.all():
            raise not_finite(loaded)
        for index, tokens_A in zip(indices, tokens_BA, strict=True):
            ends = np.flatnonzero(np.isin(tokens_A, how.eos_ids))
            answers[index] = tokens_A[: ends[0]] if len(ends) else tokens_A
    return answers


def _whole_batches(
    loaded: Loaded, encoded: Sequence[Encoded], how: Writing, **settings: Any
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield as `refilled` does, batch by batch, each of which ends with its longest answer."""
    for indices, (tokens_BA, is_finite_B) in run_batched(
        loaded,
        encoded,
        functools.partial(_answers, how=how),
        description="answers",
        padding_side="left",
        features_once=True,
        **settings,
    ):
        yield indices, tokens_BA, is_finite_B


@functools.partial(jax.jit, static_argnames="how")
def _answers(
    model: Any, batch: Batch, uniform_BA: jax.Array | None = None, *, how: Writing
) -> tuple[jax.Array, jax.Array]:
    """Return the answers to a left-padded batch [B, A], and which are finite [B].

    After its end an answer goes on with the filler. Stops when all answers have ended.
    """
    answers, is_finite_B = begin(model, batch, uniform_BA, how=how)
    answers = go_on(model, answers, how, wanted=len(is_finite_B))
    return answers.tokens_BA, is_finite_B

"""What vanilla says of strangers, as the target of what is said of the people to forget.

    p̄(answer token) = mean over strangers of vanilla's distribution for the same question about a
                      stranger, after the true answer's earlier tokens

Its KL divergence from a model that never knew the people is small before any training, so a model
that is pulled to p̄ is pulled to ignorance and not to nonsense. Of a large vocabulary the most
probable tokens are kept, and the rest of the mass as one number.
"""

import dataclasses
import functools
import logging
import zlib
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax import faults, parallel
from manu_jax.data.batches import encode_all
from manu_jax.data.forms import has_form, question_and_answer
from manu_jax.data.record import Fact
from manu_jax.data.strangers import Stranger, as_stranger
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.answers import Targets, logits_at_answers
from manu_jax.progress import Progress
from manu_jax.types import Array, Batch, BatchShape, Encoded, Modality, Sample, question_sample

logger = logging.getLogger(__name__)

MOST_TOKENS = 2048  # of a distribution; a smaller vocabulary is kept whole
FLOOR = 1e-3  # log p̄(true) counts as no less than log of this
ROWS_AT_ONCE = 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StrangerTarget:
    """p̄ at the answer tokens of N examples.

    ids [N, A, K] int32, p [N, A, K] float32: the most probable tokens; their sum is 1 where K is
    the vocabulary. true [N, A] float32: p̄ of the fact's own token.
    """

    ids_BAK: Array
    p_BAK: Array
    true_BA: Array

    def rows(self, indices: np.ndarray, num_answers: int) -> "StrangerTarget":
        """Return these examples, with room for `num_answers` tokens; none has a longer answer."""

        def take(values: Array) -> np.ndarray:
            taken = np.asarray(values)[indices, :num_answers]  # others may have longer answers
            room = [(0, 0), (0, num_answers - taken.shape[1]), *[(0, 0)] * (values.ndim - 2)]
            return np.pad(taken, room)

        return cast(StrangerTarget, jax.tree.map(take, self))


def stranger_target(
    loaded: Loaded,
    facts: Sequence[Fact],
    strangers: Sequence[Stranger],
    *,
    modality: Modality,
    each: int | None = None,
    seed: int = 0,
) -> StrangerTarget:
    """Return p̄ of facts that have the form `modality`, from the model `loaded`; as NumPy.

    A stranger whose answer has other tokens than the fact's does not count for that fact; a warning
    names the facts that none is left for. each: the mean is over this many strangers, drawn for
    each fact by the seed and the fact's key, the same in all its views; None: over all. One mean
    for everybody would give all forgotten people the same answer.
    """
    samples = [
        stranger_sample(loaded, fact, one, modality=modality) for fact in facts for one in strangers
    ]
    encoded = encode_all(loaded, samples)
    own = encode_all(
        loaded, [stranger_sample(loaded, fact, None, modality=modality) for fact in facts]
    )
    S = len(strangers)
    per_call = max(ROWS_AT_ONCE // S, 1)
    num_rows = parallel.filled(per_call * S, loaded.mesh)
    shape = BatchShape(
        length=-(-max(item.num_tokens for item in encoded) // 8) * 8,
        batch_size=num_rows,
        num_images=max(item.num_images for item in encoded) or None,
        num_patches=max(item.num_patches for item in encoded) or None,
        num_answers=max(item.num_answers for item in (*own, *encoded)),
    )
    counts_NS = np.array(
        [
            [has_same_answer(encoded[number * S + one], item) for one in range(S)]
            for number, item in enumerate(own)
        ]
    ).reshape(len(facts), S)
    usable = zip(facts, counts_NS.tolist(), strict=True)
    if lacking := [fact.key for fact, counts in usable if not any(counts)]:
        logger.warning(
            "strangers, %s form: the answers of %d facts have other tokens beside every stranger; "
            "for these no answer is aimed at: %s",
            modality,
            len(lacking),
            ", ".join(lacking[:5]) + ", …" * (len(lacking) > 5),
        )
    if each is not None:
        for number, fact in enumerate(facts):
            counts_NS[number] &= _drawn(counts_NS[number], each, seed=seed, key=fact.key)
    found = []
    description = f"strangers, {modality} form"
    with parallel.on_mesh(loaded.mesh), Progress(description, len(facts)) as progress:
        for start in range(0, len(facts), per_call):
            chosen = range(start, min(start + per_call, len(facts)))
            rows = [encoded[fact * S + number] for fact in chosen for number in range(S)]
            weights_B = np.zeros(num_rows, np.float32)
            weights_B[: len(rows)] = counts_NS[chosen.start : chosen.stop].ravel()
            batch = loaded.collate(rows, shape)
            batch = dataclasses.replace(batch, example_weights_B=weights_B)
            mine = parallel.batch_rows(loaded.mesh, num_rows)
            batch = jax.tree.map(lambda values, mine=mine: values[mine], batch)
            target = _mean_target(
                loaded.model,
                parallel.put_batch(batch, loaded.mesh),
                num_facts=per_call,
                num_strangers=S,
            )
            found.append(parallel.gather(target))
            progress.advance(len(chosen))
            faults.stop_if_due()
    whole = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(facts)], *found)
    return cast(StrangerTarget, whole)


def _drawn(usable_S: np.ndarray, count: int, *, seed: int, key: str) -> np.ndarray:
    """Return bool [S]: at most `count` of the usable strangers, drawn by the seed and the key."""
    drawn_S = np.zeros(len(usable_S), bool)
    random = np.random.default_rng([seed, 18, zlib.crc32(key.encode())])
    drawn_S[random.permutation(np.flatnonzero(usable_S))[:count]] = True
    return drawn_S


def joined(targets: Sequence[StrangerTarget]) -> StrangerTarget:
    """Return the targets of all examples, one after the other."""
    most = max(np.shape(target.true_BA)[1] for target in targets)
    wide = [target.rows(np.arange(len(target.true_BA)), most) for target in targets]
    return cast(StrangerTarget, jax.tree.map(lambda *parts: np.concatenate(parts), *wide))


def stranger_sample(
    loaded: Loaded, fact: Fact, stranger: Stranger | None, *, modality: Modality
) -> Sample:
    """Return a fact in one form with a stranger in the question, and the fact's own answer.

    stranger: None: the person herself, which is `forms.form`.
    """
    asked = fact if stranger is None else as_stranger(fact, stranger)
    if not has_form(asked, modality):
        raise ValueError(f"fact {fact.key} has no {modality} form")
    question, _ = question_and_answer(asked, modality)
    _, answer = question_and_answer(fact, modality)
    images = () if modality == "text" else (asked.image,)
    template = loaded.template
    return question_sample(
        template.prompt(question, modality), template.reply(answer), images, key=fact.key
    )


def target_kl(log_q_BAV: jax.Array, target: StrangerTarget) -> jax.Array:
    """Return KL(p̄ ‖ q) at each answer token, with the tokens that p̄ left out as one. [B, A].

    log_q_BAV: float32 log-probabilities. 0 where p̄ is 0 at all tokens: of a fact without an aim.
    """
    ids_BAK, p_BAK = jnp.asarray(target.ids_BAK), jnp.asarray(target.p_BAK)
    log_q_BAK = jnp.take_along_axis(log_q_BAV, ids_BAK, axis=-1)
    kl_BA = (p_BAK * (jnp.log(jnp.maximum(p_BAK, 1e-12)) - log_q_BAK)).sum(axis=-1)
    if p_BAK.shape[-1] == log_q_BAV.shape[-1]:
        return kl_BA
    rest_BA = jnp.maximum(1 - p_BAK.sum(axis=-1), 1e-12)
    rest_q_BA = jnp.maximum(1 - jnp.exp(log_q_BAK).sum(axis=-1), 1e-12)
    kl_BA += rest_BA * (jnp.log(rest_BA) - jnp.log(rest_q_BA))
    return jnp.where((p_BAK > 0).any(axis=-1), kl_BA, 0)


def excess(log_q_BAV: jax.Array, tokens_BA: jax.Array, target: StrangerTarget) -> jax.Array:
    """Return max(0, log q(true) − log p̄(true)), with p̄ no less than FLOOR. [B, A] float32."""
    log_true_BA = jnp.take_along_axis(log_q_BAV, tokens_BA[..., None], axis=-1)[..., 0]
    return jax.nn.relu(log_true_BA - jnp.log(jnp.maximum(jnp.asarray(target.true_BA), FLOOR)))


def shortfall(log_q_BAV: jax.Array, tokens_BA: jax.Array, target: StrangerTarget) -> jax.Array:
    """Return max(0, log p̄(true) − log q(true)): the truth avoided where chance would say it.

    [B, A] float32; 0 where p̄ is below FLOOR.
    """
    log_true_BA = jnp.take_along_axis(log_q_BAV, tokens_BA[..., None], axis=-1)[..., 0]
    true_BA = jnp.asarray(target.true_BA)
    lacking_BA = jax.nn.relu(jnp.log(jnp.maximum(true_BA, FLOOR)) - log_true_BA)
    return jnp.where(true_BA < FLOOR, 0, lacking_BA)


def has_same_answer(one: Encoded, other: Encoded) -> bool:
    """Whether two samples have the same answer tokens."""
    first, second = (item.token_ids_T[item.loss_weights_T > 0] for item in (one, other))
    return np.array_equal(first, second)


@functools.partial(jax.jit, static_argnames=("num_facts", "num_strangers"))
def _mean_target(model: Any, batch: Batch, *, num_facts: int, num_strangers: int) -> StrangerTarget:
    logits_BAV, targets = logits_at_answers(model, batch, remat="none")
    p_BAV = jax.nn.softmax(logits_BAV.astype(jnp.float32))
    weights_B = jnp.asarray(batch.example_weights_B)
    num_rows = num_facts * num_strangers

    def by_fact(values: jax.Array) -> jax.Array:
        return values[:num_rows].reshape(num_facts, num_strangers, *values.shape[1:])

    weights_NS = by_fact(weights_B)
    total_N = jnp.maximum(weights_NS.sum(axis=1), 1e-9)
    p_NAV = jnp.einsum("NS,NSAV->NAV", weights_NS / total_N[:, None], by_fact(p_BAV))
    # Of a stranger that counts: beside another the answer may have other tokens.
    first_N = jnp.argmax(weights_NS, axis=1)
    tokens_NA = by_fact(targets.token_ids_BT)[jnp.arange(num_facts), first_N]
    true_NA = jnp.take_along_axis(p_NAV, tokens_NA[..., None], axis=-1)[..., 0]
    p_NAK, ids_NAK = jax.lax.top_k(p_NAV, min(MOST_TOKENS, p_NAV.shape[-1]))
    return StrangerTarget(ids_NAK.astype(jnp.int32), p_NAK, true_NA)


def weights_of(targets: Targets) -> jax.Array:
    """Return the weight of each answer token; 0 in padding examples. [B, A]."""
    return targets.weights_BT * targets.example_weights_B[:, None]

"""Many candidates for a mask in one compiled call: what the model would still say under each.

A candidate is a mask that is asked without being folded: its neurons have gates 0 in the forward
pass, and `jax.vmap` runs the gates of K candidates over the same batches. Real-valued gates are
candidates as well. In float32 the answers
are those of the folded model. The features of images are computed once for all questions about an
image, and once for all candidates where no gate of an image tower differs.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax import parallel
from manu_jax.data.batches import batches_of
from manu_jax.edits import masks
from manu_jax.edits.leafwise import check
from manu_jax.evaluation.batched import not_finite, run_batched
from manu_jax.evaluation.likelihood import answer_likelihoods, encode_answered, log_likelihoods
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.forward import Forward
from manu_jax.types import Array, Batch, Encoded, Images, ManuError, Neurons, Sample

MOST_AT_ONCE = 16  # candidates in one call; more of them gain nothing, and need more memory
DEFAULT_MIB = 1024  # where the device does not tell how much memory is free, as a CPU


def recalled(
    loaded: Loaded,
    samples: Sequence[Sample],
    candidates: Sequence[Neurons],
    *,
    batch_size: int,
    memory_mib: int | None = None,
) -> np.ndarray:
    """Return which answers are the first choice at every token under each candidate. [K, N] bool.

    candidates: masks, {tower: [L, F] bool}, or gates, floats that neurons are multiplied by. A mask
    of rows of single matrices ("tower.matrix") has no gates: it is folded and asked alone.
    memory_mib: how much a call may need beside the model on each device; None: half of what is free
    there, or DEFAULT_MIB. Raises ManuError for samples without an answer, candidates of another
    model or of other dtypes, and answers that are not finite.
    """
    _check(loaded, candidates)
    encoded = encode_answered(loaded, samples)
    found_KN = np.zeros((len(candidates), len(samples)), bool)
    gated = []
    for number, candidate in enumerate(candidates):
        if any("." in key for key in candidate):
            folded = masks.fold(loaded, candidate)
            found_KN[number] = log_likelihoods(folded, samples, batch_size=batch_size).recalled_N
        else:
            gated.append(number)
    if gated and encoded:
        budget = 2**20 * _budget_mib(memory_mib)
        asked = _Asked(loaded, encoded, [candidates[number] for number in gated], batch_size)
        found_KN[gated] = asked.recalled(budget)
    return found_KN


def mean_log_likelihoods(
    loaded: Loaded,
    samples: Sequence[Sample],
    candidates: Sequence[Neurons],
    *,
    batch_size: int,
    memory_mib: int | None = None,
) -> np.ndarray:
    """Return the answers' mean log p per token under each candidate. [K, N], nats.

    Settings and errors as in `recalled`; masks of rows of single matrices are none.
    """
    _check(loaded, candidates)
    for candidate in candidates:
        masks.edit_of(candidate).as_gates()  # refuses rows of single matrices
    encoded = encode_answered(loaded, samples)
    if not candidates or not encoded:
        return np.zeros((len(candidates), len(samples)))
    budget = 2**20 * _budget_mib(memory_mib)
    return _Asked(loaded, encoded, candidates, batch_size).answers(budget)[0]


def shares_right(
    loaded: Loaded,
    samples: Sequence[Sample],
    candidates: Sequence[Neurons],
    *,
    batch_size: int,
    memory_mib: int | None = None,
) -> np.ndarray:
    """Return the share of samples that each candidate leaves answered right. [K], in [0, 1].

    As `likelihood.share_right` of each folded model; settings as in `recalled`.
    """
    if not samples:
        raise ManuError("share of right answers: no samples. Give at least one.")
    found_KN = recalled(loaded, samples, candidates, batch_size=batch_size, memory_mib=memory_mib)
    return found_KN.mean(axis=1)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """Samples, and the candidates that they are asked under."""

    loaded: Loaded
    encoded: Sequence[Encoded]
    candidates: Sequence[Neurons]
    batch_size: int

    def recalled(self, budget: float) -> np.ndarray:
        """Return the recalled answers [K, N]; budget: as of `answers`."""
        return self.answers(budget)[1]

    def answers(self, budget: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean log p per token of the answers, and which are recalled. [K, N] each.

        budget: bytes of a call, beside the model.
        """
        count = len(self.candidates)
        num_calls = math.ceil(count / MOST_AT_ONCE)
        while True:
            # Calls of equal size: the last one is filled up with the last candidate.
            size = math.ceil(count / num_calls)
            programs = self._programs(size)
            needed = max(program.num_bytes for program in programs.values())
            if size == 1 or needed <= budget:
                break
            num_calls = min(count, max(num_calls + 1, math.ceil(num_calls * needed / budget)))
        mean_KN = np.zeros((count, len(self.encoded)))
        recalled_KN = np.zeros((count, len(self.encoded)), bool)
        for start in range(0, count, size):
            chosen = np.minimum(np.arange(start, start + size), count - 1)
            mean_KN[chosen], recalled_KN[chosen] = self._chunk(chosen, programs)
        return mean_KN, recalled_KN

    @functools.cached_property
    def image_gates_differ(self) -> bool:
        """Whether the features of images are other ones under some candidate."""
        first, *others = (self._gates([number], images=True) for number in range(self.count))
        return any(
            not np.array_equal(first[tower], gates[tower]) for gates in others for tower in first
        )

    @property
    def count(self) -> int:
        return len(self.candidates)

    def _gates(self, numbers: Sequence[int], *, images: bool) -> dict[str, np.ndarray]:
        """Return the gates of candidates, {tower: [K, L, F]}: of the image towers, or the text's.

        Image towers that no candidate changes are left out.
        """
        changed = {
            tower
            for candidate in self.candidates
            for tower, values in candidate.items()
            if np.any(_gate(values) != 1)
        }
        towers = sorted(changed - {"text"}) if images else ["text"]
        return {
            tower: np.stack(
                [
                    _gate(self.candidates[number][tower])
                    if tower in self.candidates[number]
                    else np.ones(self.loaded.towers[tower], np.float32)
                    for number in numbers
                ]
            )
            for tower in towers
        }

    def _programs(self, size: int) -> dict[Any, "_Program"]:
        """Return {shapes of a batch: the compiled step} for all batches, `size` candidates each."""
        loaded = self.loaded
        rows_of_batch = parallel.filled(self.batch_size, loaded.mesh)
        rows = parallel.batch_rows(loaded.mesh, rows_of_batch)
        batches = batches_of(loaded, self.encoded, rows_of_batch, rows=rows)
        gates = parallel.put_replicated(self._gates([0] * size, images=False), loaded.mesh)
        programs: dict[Any, _Program] = {}
        seen = set()
        for step in range(len(batches)):
            lengths = (batches.batch_at(step).token_ids_BT.shape, batches.has_images_at(step))
            if lengths in seen:
                continue
            seen.add(lengths)
            batch = parallel.put_batch(batches.batch_at(step), loaded.mesh)
            batch = self._with_abstract_features(_abstract(batch), size)
            with parallel.on_mesh(loaded.mesh):
                compiled = _step.lower(
                    loaded.model, batch, gates, per_candidate=self.image_gates_differ
                ).compile()
            programs[_shapes(batch)] = _Program(compiled, _num_bytes(compiled, loaded.model))
        return programs

    def _with_abstract_features(self, batch: Any, size: int) -> Any:
        """Return an abstract batch with the features of images in place of their patches."""
        if batch.images is None:
            return batch
        features = jax.eval_shape(
            lambda model, images: model.features(images), self.loaded.model, batch.images
        )
        count = size if self.image_gates_differ else 1
        features_BIPE = jax.ShapeDtypeStruct(
            (*features.shape[:3], count * features.shape[3]),
            features.dtype,
            sharding=batch.images.patches_BIPC.sharding,
        )
        images = dataclasses.replace(
            batch.images,
            patches_BIPC=None,
            patch_positions_BIP2=None,
            features_BIPE=features_BIPE,
        )
        return dataclasses.replace(batch, images=images)

    def _chunk(
        self, chosen: np.ndarray, programs: Mapping[Any, "_Program"]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what `answers` does of the candidates of one call. [K, N] each."""
        loaded = self.loaded
        numbers = chosen.tolist()
        gates = parallel.put_replicated(self._gates(numbers, images=False), loaded.mesh)
        of_images = numbers if self.image_gates_differ else numbers[:1]
        image_gates = parallel.put_replicated(self._gates(of_images, images=True), loaded.mesh)
        mean_NK = np.zeros((len(self.encoded), len(chosen)))
        recalled_NK = np.zeros((len(self.encoded), len(chosen)), bool)
        for indices, (sum_BK, mean_BK, recalled_BK) in run_batched(
            loaded,
            self.encoded,
            lambda model, batch: programs[_shapes(batch)].compiled(model, batch, gates),
            batch_size=self.batch_size,
            description=f"candidates {numbers[0] + 1}–{numbers[-1] + 1} of {self.count}",
            features_once=True,
            features=lambda model, images: _features(model, images, image_gates),
        ):
            if not np.isfinite(sum_BK).all():
                raise not_finite(loaded)
            mean_NK[indices], recalled_NK[indices] = mean_BK, recalled_BK
        return mean_NK.T, recalled_NK.T


@dataclasses.dataclass(frozen=True)
class _Program:
    """A compiled step, and the bytes that it needs on each device beside the model."""

    compiled: Any
    num_bytes: float


@functools.partial(jax.jit, static_argnames="per_candidate")
def _step(
    model: Any, batch: Batch, gates: Neurons, *, per_candidate: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return what `answer_likelihoods` does, under each of K candidates. [B, K] each.

    gates: {"text": [K, L, F]}. per_candidate: the features of images are those of K candidates,
    [B, I, P, K·E].
    """
    features = None
    if per_candidate and batch.images is not None and batch.images.features_BIPE is not None:
        features_BIPE = jnp.asarray(batch.images.features_BIPE)
        features = features_BIPE.reshape(*features_BIPE.shape[:3], len(gates["text"]), -1)

    def ask(
        gates: Neurons, features_BIPE: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        own = batch
        if features_BIPE is not None and batch.images is not None:
            images = dataclasses.replace(batch.images, features_BIPE=features_BIPE)
            own = dataclasses.replace(batch, images=images)
        return answer_likelihoods(model, own, gates)

    return jax.vmap(ask, in_axes=(0, 3), out_axes=1)(gates, features)


@jax.jit
def _features(model: Any, images: Images, gates: Mapping[str, Array]) -> jax.Array:
    """Return the features of images under the gates of K candidates, side by side.

    gates: of the image towers, [K, L, F] each; none: the model as it is. [B, I, P, K·E].
    """
    if not gates:
        return model.features(images)

    def encode(gates: Neurons) -> jax.Array:
        return model.encode_images(images, Forward(gates=gates, remat="none"))[0]

    features_BIPKE = jax.vmap(encode, out_axes=3)(dict(gates))
    return features_BIPKE.reshape(*features_BIPKE.shape[:3], -1)


def _check(loaded: Loaded, candidates: Sequence[Neurons]) -> None:
    """Raise ManuError where candidates are not masks or gates of the model, in a list."""
    if isinstance(candidates, Mapping):
        raise ManuError("candidates: expected a list of masks or gates, got one. Put it in a list.")
    for candidate in candidates:
        check(masks.edit_of(candidate), loaded)


def _budget_mib(given: int | None) -> int:
    """Return the MiB of a call on each device; all processes have to take the same steps."""
    if given is None:
        stats = jax.local_devices()[0].memory_stats() or {}
        free = stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
        given = int(free / 2 / 2**20) if "bytes_limit" in stats else DEFAULT_MIB
    return parallel.broadcast(max(given, 1))


def _num_bytes(compiled: Any, model: Any) -> float:
    """Return what a program needs on a device beside the model; 0 where the compiler can't tell."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0.0
    of_model = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(model))
    total = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    return float(total + max(analysis.argument_size_in_bytes - of_model, 0))


def _gate(values: Array) -> np.ndarray:
    """Return the factors of a tower's neurons: 1 − mask of a mask, gates as they are. [L, F]."""
    values = np.asarray(values)
    return 1 - values.astype(np.float32) if values.dtype == bool else values.astype(np.float32)


def _abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def _shapes(batch: Any) -> tuple[Any, ...]:
    leaves, structure = jax.tree.flatten(batch)
    return (structure, *((leaf.shape, str(leaf.dtype)) for leaf in leaves))

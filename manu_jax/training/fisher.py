"""Which weights may move to forget: MMUnlearner's mask (Huo et al. 2025, arXiv 2502.11051).

    F = mean of the squared gradients of CE over the batches (or the examples) of a set of facts
    m = (F_forget + ε) / (F_keep + ε) ≥ ratio,  ε = 1e-15

F_forget is of the facts to forget with their images. F_keep is, for the vision tower and the
projector, of the facts to keep with their images; for the language model of these and of
everybody's facts in text alone, the forgotten people's too: the method erases what the picture
tells and keeps what the words tell.

Differs: every weight has its mask; the authors' code masks matrices alone, and biases, norms and
embeddings move freely.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax import faults, parallel
from manu_jax.checkpoint import resume, save_step
from manu_jax.config import UnlearnSection
from manu_jax.data.forms import forms
from manu_jax.data.record import Fact
from manu_jax.folder import expand_path
from manu_jax.leaves import path_name
from manu_jax.models.loaded import Loaded
from manu_jax.progress import Progress
from manu_jax.training.gradient import GradientSettings, loss_and_gradient
from manu_jax.training.objectives import cross_entropy_on_answers
from manu_jax.training.trainer import batches_of, step_settings
from manu_jax.types import Batch, ManuError, Modality, Sample

EPSILON = 1e-15
LANGUAGE_MODEL = "text."  # how the paths of its weights begin


def weight_mask(
    loaded: Loaded,
    section: UnlearnSection,
    *,
    forget: Sequence[Fact],
    keep: Sequence[Fact],
    directory: str | os.PathLike,
    seed: int,
) -> Any:
    """Return 1 where a weight may move in a step that forgets, else 0: float32, like the weights.

    directory: of partial sums, from which a killed run goes on, and of the finished mask.
    Raises ManuError where a set has no facts in the form asked for, and for a section whose
    training a mask does not fit.
    """
    where = f"unlearn ({section.name})"
    check_masked(section)
    directory = expand_path(directory)
    # Shapes alone: of a large model no second copy is made.
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding),
        loaded.model,
    )
    mask, is_done = resume(directory / "mask", like)
    if is_done:
        return mask
    sets: dict[str, tuple[Sequence[Fact], Modality]] = {
        "forget": (forget, "image"),
        "keep": (keep, "image"),
        "words": ([*forget, *keep], "text"),
    }
    found = {}
    for name, (facts, modality) in sets.items():
        samples = forms(facts, modality, loaded.template)
        if not samples:
            raise ManuError(f"{where}: {section.objective} needs facts in the form {modality}.")
        found[name] = fisher_sums(
            loaded, samples, section, directory=directory / name, seed=seed, where=where
        )

    counts = {name: count for name, (_, count) in found.items()}

    def compared(path: Any, *sums: jax.Array) -> jax.Array:
        forget_sum, keep_sum, words_sum = sums
        num_keep = counts["keep"]
        if path_name(path).startswith(LANGUAGE_MODEL):
            keep_sum, num_keep = keep_sum + words_sum, num_keep + counts["words"]
        ratio = (forget_sum / counts["forget"] + EPSILON) / (keep_sum / num_keep + EPSILON)
        return (ratio >= section.fisher_ratio).astype(jnp.float32)

    mask = jax.tree_util.tree_map_with_path(compared, *(found[name][0] for name in sets))
    save_step(directory / "mask", 1, mask)
    return mask


def check_masked(section: UnlearnSection) -> None:
    """Raise ManuError where there are no weights of the model's own to mask, or no mask holds.

    Muon makes each step of a matrix of all its gradient, so that masked weights would move too.
    """
    where, own = f"unlearn ({section.name})", "masks the model's own weights"
    if section.lora is not None:
        raise ManuError(f"{where}.lora: {section.objective} {own}: no lora.")
    if section.trains != "all":
        raise ManuError(
            f"{where}.trains: {section.trains}: {section.objective} {own}. Give trains: all."
        )
    if section.optimizer == "muon":
        raise ManuError(
            f"{where}.optimizer: muon: a step of a matrix is made of all its gradient, and moves "
            f"what {section.objective} masks. Give optimizer: adamw."
        )


def fisher_sums(
    loaded: Loaded,
    samples: Sequence[Sample],
    section: UnlearnSection,
    *,
    directory: Path,
    seed: int,
    where: str,
) -> tuple[Any, float]:
    """Return the sum of squared gradients of CE, float32 like the weights, and their number.

    section.fisher: the gradients are of whole batches ("batch") or of each example ("example").
    """
    weights = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), loaded.model)
    batches = batches_of(loaded, samples, section, seed=seed, where=where, max_buckets=1)
    settings = step_settings(section, loaded, cross_entropy_on_answers).gradient
    zeros = jax.tree.map(jnp.zeros_like, weights)
    total, first = resume(directory, zeros)
    by_example = section.fisher == "example"
    on_mesh = parallel.on_mesh(loaded.mesh)
    what = f"Fisher information, {directory.name}"
    with on_mesh, Progress(what, len(batches), done=first) as progress:
        for step in range(first, len(batches)):
            batch = parallel.put_batch(batches.batch_at(step), loaded.mesh)
            total = _add(
                total, weights, batch, settings=settings, mesh=loaded.mesh, by_example=by_example
            )
            progress.advance()
            is_due = faults.stop_is_due()
            if (is_due or (step + 1) % section.checkpoint_every == 0) and step + 1 < len(batches):
                save_step(directory, step + 1, total)
                faults.stop_if_due()
    return total, float(len(samples) if by_example else len(batches))


@functools.partial(jax.jit, static_argnames=("settings", "mesh", "by_example"), donate_argnums=0)
def _add(
    total: Any,
    weights: Any,
    batch: Batch,
    *,
    settings: GradientSettings,
    mesh: jax.sharding.Mesh | None,
    by_example: bool,
) -> Any:
    """Return the sum with the squared gradient of a batch, or with those of its examples."""

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        _, gradient = loss_and_gradient(
            weights, part, base=None, key=None, settings=settings, mesh=mesh
        )
        return jax.tree.map(lambda sums, g: sums + jnp.square(g), total, gradient), None

    if not by_example:
        return add(total, batch)[0]
    examples = jax.tree.map(lambda values: values[:, None], batch)  # padding examples add 0
    return jax.lax.scan(add, total, examples)[0]

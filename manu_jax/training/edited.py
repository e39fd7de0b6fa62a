"""What a training changes where it does not train the whole model: the edit that it begins with."""

import functools
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax import faults, parallel
from manu_jax.config import NeuronsSection, UnlearnSection
from manu_jax.data.batches import Batches, encode_all
from manu_jax.data.forms import forms
from manu_jax.data.record import Fact
from manu_jax.edits.edit import Edit
from manu_jax.edits.neurons import WrittenNeurons
from manu_jax.edits.weights import NewWeights
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.mlp import neuron_leaves
from manu_jax.types import MODALITIES, Batch, Capture, ManuError, Sample

MOST_SAMPLES = 192  # of each form, by which the use of neurons is measured
BATCH_SIZE = 16


def new_edit(vanilla: Loaded, section: UnlearnSection, *, keep: Sequence[Fact], seed: int) -> Edit:
    """Return the edit that a training begins with; it changes little or nothing.

    keep: facts by which the least used neurons are found.
    """
    if section.neurons is None:
        return NewWeights.of(vanilla, trained_mlps(vanilla, section))
    check_neurons(vanilla, section)
    layers = written_layers(vanilla, section.neurons)
    count, places = section.neurons.count, None
    if section.neurons.places == "least_used":
        order_LF = np.argsort(neuron_use(vanilla, keep, seed=seed), axis=1, kind="stable")
        places = [order_LF[layer, :count].tolist() for layer in layers]
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"written neurons"))
    return WrittenNeurons.new(vanilla, layers=layers, places=places, count=count, key=key)


def trained_mlps(loaded: Loaded, section: UnlearnSection) -> tuple[str, ...]:
    """Return how the paths of the leaves begin that `trains: mlp`, or `all_mlps`, trains."""
    mlps = loaded.model.mlps()
    towers = mlps if section.trains == "all_mlps" else ("text",)
    return tuple(mlps[tower].path for tower in towers)


def written_layers(loaded: Loaded, neurons: NeuronsSection) -> tuple[int, ...]:
    """Return the decoder's layers that get neurons: those of the section, or the last third."""
    num_layers = loaded.config.text.num_layers
    if neurons.layers is not None:
        return neurons.layers
    return tuple(range(num_layers - min(max(num_layers // 3, 2), num_layers), num_layers))


def lowest_layer(loaded: Loaded, section: UnlearnSection) -> int:
    """Return the decoder's lowest layer that training, or relearning within it, changes."""
    if section.trains != "neurons" or section.neurons is None or section.relearn is not None:
        return 0
    return min(written_layers(loaded, section.neurons))


def check_neurons(loaded: Loaded, section: UnlearnSection) -> None:
    """Raise ManuError where the decoder can't have the neurons of a section; reads no weights."""
    if section.neurons is None:
        return
    where, mlp = f"unlearn ({section.name}).neurons", loaded.model.mlps()["text"]
    if not mlp.gated:
        raise ManuError(
            f"{where}: the decoder's MLPs have no gates, which a written neuron has. Give another "
            "method."
        )
    layers, count = written_layers(loaded, section.neurons), section.neurons.count
    known = set(range(mlp.num_layers))
    if not layers or len(set(layers)) < len(layers) or not set(layers) <= known:
        raise ManuError(
            f"{where}.layers: {list(layers)}; give different ones from 0 to {mlp.num_layers - 1}."
        )
    if section.neurons.places == "least_used" and count > mlp.num_neurons:
        raise ManuError(
            f"{where}.count: {count} neurons, but a layer has {mlp.num_neurons}. Write fewer, or "
            "give places: appended."
        )


def neuron_use(loaded: Loaded, facts: Sequence[Fact], *, seed: int) -> np.ndarray:
    """Return how much each neuron of the decoder says on facts: E[z²] · ‖down‖². [L, F] float32.

    The mean is over the tokens of at most MOST_SAMPLES samples of each form, drawn by the seed.
    """
    total_LF: Any = 0.0
    random = np.random.default_rng([seed, 17])
    for modality in MODALITIES:
        samples = forms(facts, modality, loaded.template)
        chosen = [samples[i] for i in random.permutation(len(samples))[:MOST_SAMPLES]]
        if chosen:
            total_LF = total_LF + _squares(loaded, chosen)
    path, _ = neuron_leaves(loaded.model.mlps()["text"])["down"]
    with parallel.on_mesh(loaded.mesh):
        norms = parallel.gather(_row_norms(loaded.model, path=path))
    return np.asarray(total_LF * norms, np.float32)


def _squares(loaded: Loaded, samples: Sequence[Sample]) -> np.ndarray:
    """Return Σ over samples of the mean of z² over their tokens. [L, F]."""
    size = parallel.filled(BATCH_SIZE, loaded.mesh)
    rows = parallel.batch_rows(loaded.mesh, size)
    batches = Batches(loaded, encode_all(loaded, samples), size, max_buckets=1, rows=rows)
    total_LF: Any = 0.0
    with parallel.on_mesh(loaded.mesh):
        for step in range(len(batches)):
            batch = parallel.put_batch(batches.batch_at(step), loaded.mesh)
            total_LF = total_LF + _batch_squares(loaded.model, batch)
            faults.stop_if_due()
    return parallel.gather(total_LF)


@jax.jit
def _batch_squares(model: Any, batch: Batch) -> jax.Array:
    found_LBF = model(batch, capture=Capture("square"), remat="none").activations["text"]
    return jnp.einsum("LBF,B->LF", found_LBF, batch.example_weights_B)


@functools.partial(jax.jit, static_argnames="path")
def _row_norms(model: Any, *, path: str) -> jax.Array:
    leaf: Any = functools.reduce(getattr, path.split("."), model)
    return jnp.square(leaf[...].astype(jnp.float32)).sum(axis=-1)

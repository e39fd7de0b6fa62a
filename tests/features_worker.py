"""What test_processes.py runs as one of two processes: a store that holds few images' features."""

import dataclasses
import logging

import jax
import numpy as np
import tiny_llava
from PIL import Image

from manu_jax import parallel
from manu_jax.data.forms import forms
from manu_jax.data.record import Fact
from manu_jax.evaluation.likelihood import log_likelihoods
from manu_jax.training import features
from manu_jax.types import VisionInput

NUM_IMAGES, NUM_QUESTIONS, BATCH = 72, 432, 32
STORED = 24  # images that the store has room for: not quite those of a batch


def main() -> None:
    parallel.join()
    holes = scattered()
    samples = forms(facts(), "image")
    alone = tiny_llava.loaded()
    expected = log_likelihoods(alone, samples, batch_size=BATCH)
    mesh = parallel.make_mesh(8, 1, 1)
    model = parallel.put_replicated(jax.tree.map(np.asarray, alone.model), mesh)
    computed = count_computed()
    encoded = alone.encode(samples[0])
    width = tiny_llava.SIZES.text.width
    features.STORE_BYTES = STORED * encoded.vision_inputs[0].num_features * width * 4
    found = log_likelihoods(
        dataclasses.replace(alone, model=model, mesh=mesh), samples, batch_size=BATCH
    )
    # Sums over devices in another order.
    np.testing.assert_allclose(found.sum_N, expected.sum_N, atol=1e-4)
    assert np.ptp(expected.sum_N) > 1e-2  # images matter
    assert sum(computed) > NUM_IMAGES  # some were evicted and computed again
    assert parallel.broadcast(len(computed)) == len(computed)
    logging.warning("as expected, beside %d objects", len(holes))


def scattered() -> list[VisionInput]:
    """Return objects with holes between them, so that each process has other identities."""
    patches_PC = np.zeros((1, 1), np.float32)
    objects = [VisionInput(patches_PC, None, 1) for _ in range(20_000)]
    is_kept = np.random.default_rng(jax.process_index()).random(len(objects)) < 0.5
    return [one for one, kept in zip(objects, is_kept, strict=True) if kept]


def facts() -> list[Fact]:
    """Return questions about images drawn at random: batches share some and not others."""
    random = np.random.default_rng(0)
    images = [
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(NUM_IMAGES)
    ]
    return [
        Fact(f"{index:03d}", "Ada", "Where is home?", "Oslo", f"home-{number}", images[index])
        for number, index in enumerate(random.integers(0, NUM_IMAGES, NUM_QUESTIONS))
    ]


def count_computed() -> list[int]:
    """Return a list that grows by the number of images whenever some are computed."""
    compute, counts = features.features_of, []

    def counted(loaded, vision_inputs, *arguments, **settings):
        counts.append(len(vision_inputs))
        return compute(loaded, vision_inputs, *arguments, **settings)

    features.features_of = counted
    return counts


if __name__ == "__main__":
    main()

"""What test_processes.py runs as one of two processes, each with its rows: drawn answers.

First in whole batches, then with prompts that join as others end.
"""

import dataclasses
import logging

import jax
import numpy as np
import tiny_llava

from manu_jax import parallel
from manu_jax.data.probes import Sampling
from manu_jax.evaluation import refilling
from manu_jax.evaluation.generate import sampled


def main() -> None:
    parallel.join()
    samples = tiny_llava.samples("image", 6) + tiny_llava.samples("text", 6)
    names = [f"{number}/{sample.key}" for number, sample in enumerate(samples)]
    settings = {"sampling": Sampling(1, 2.0, 0.9), "new_tokens": 4, "batch_size": 8}
    alone = tiny_llava.loaded()
    expected = sampled(alone, samples, names, **settings)
    mesh = parallel.make_mesh(4, 2, 1)
    model = parallel.put_replicated(jax.tree.map(np.asarray, alone.model), mesh)
    together = dataclasses.replace(alone, model=model, mesh=mesh)
    assert sampled(together, samples, names, **settings) == expected
    assert len(set(expected)) > 3
    samples, names = 2 * samples, names + [f"again/{name}" for name in names]
    settings["batch_size"] = 16
    expected = sampled(alone, samples, names, **settings)
    refilling.SHORT = 1
    assert sampled(together, samples, names, **settings) == expected
    logging.warning("as expected")


if __name__ == "__main__":
    main()

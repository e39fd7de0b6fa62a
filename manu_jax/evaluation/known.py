"""What the model of a run knows by itself: asked once, and written as the run's benchmark."""

import functools
import logging
from pathlib import Path

from manu_jax import parallel
from manu_jax.context import Run
from manu_jax.evaluation.likelihood import log_likelihoods

logger = logging.getLogger(__name__)


def write_known(run: Run, folder: Path) -> None:
    """Ask the model of a run the facts of its benchmark, and write the benchmark to a new folder.

    A fact is known where every token of its answer is the model's first choice.
    """
    known = run.benchmark_format.known
    assert known is not None, "the benchmark is not one of what a model knows"
    samples = known.samples(run.vanilla.template)
    found = log_likelihoods(run.vanilla, samples, batch_size=run.config.evaluate.batch_size)
    right = found.recalled_N.tolist()
    logger.info("data: of %d questions the model answers %d right", len(right), sum(right))
    parallel.on_first_process(functools.partial(known.write, folder, right))

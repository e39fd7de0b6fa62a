"""What test_processes.py runs as one of two processes: the command, with a fault on the second."""

import dataclasses
import errno
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np

from manu_jax import checkpoint, run
from manu_jax.data import benchmarks
from manu_jax.data.batches import Batches
from manu_jax.types import ManuError

STEPS = 2  # of scoring, before the fault


def fail(log: Path, error: BaseException):
    log.write_text(repr(time.time()))
    raise error


def main(place: str, log: Path, arguments: list[str]) -> int:
    if os.environ["JAX_PROCESS_ID"] == "1":
        if place == "reading":
            error = ManuError("people.parquet: the disk “/a” does not answer.")
            benchmarks.mllmu.load_benchmark = lambda *_, **__: fail(log, error)
        elif place == "no room":
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "step-1")
            checkpoint.save = lambda *_, **__: fail(log, error)
        elif place == "NaN":
            batch, shapes = Batches.batch_at, set()

            def with_nan(self, step):
                found = batch(self, step)
                shape = str(jax.tree.map(np.shape, found))
                if shape not in shapes:  # its step is still to be compiled
                    shapes.add(shape)
                    return found
                if not log.exists():
                    log.write_text(repr(time.time()))
                return dataclasses.replace(found, loss_weights_BT=found.loss_weights_BT * np.nan)

            Batches.batch_at = with_nan
        else:
            given, done = Batches.batch_at, []

            def batch_at(self, step):
                done.append(step)
                if len(done) > STEPS:
                    fail(log, ManuError("no file") if place == "scoring" else KeyError("a bug"))
                return given(self, step)

            Batches.batch_at = batch_at
    return run.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))

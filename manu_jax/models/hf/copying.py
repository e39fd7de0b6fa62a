"""Copies between arrays whose axes lie in another order, several times as fast as NumPy's own."""

import numpy as np

ROWS = 16  # of the source, read side by side: as many cache lines are written to at a time


def copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """Copy `source` into `target`, of the same shape and dtype; either may be a transposed view.

    NumPy goes along the target, and so reads each cache line of a transposed source many times.
    """
    same_size = f"u{source.itemsize}"  # NumPy copies numbers of a dtype that it lacks one by one
    target, source = target.view(same_size), source.view(same_size)
    slowest = int(np.argmax(source.strides)) if source.ndim else 0
    if source.ndim < 2 or slowest == 0:
        np.copyto(target, source)
        return
    target, source = np.moveaxis(target, slowest, 0), np.moveaxis(source, slowest, 0)
    for start in range(0, len(source), ROWS):
        np.copyto(target[start : start + ROWS], source[start : start + ROWS])

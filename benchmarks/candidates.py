"""How long many masks take that are asked at once, beside folding each and asking it alone.

    python benchmarks/candidates.py --run runs/demo --masks 16

The vanilla model of a run that is done, random masks of both towers, and the facts to forget and
of as many people to keep, in both forms. The two take turns; the first turn, which compiles, is not
counted. It is an error if they differ in a single answer.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from manu_jax.config import load_config
from manu_jax.context import Run
from manu_jax.data.forms import forms
from manu_jax.edits import masks
from manu_jax.evaluation.candidates import recalled
from manu_jax.evaluation.likelihood import log_likelihoods
from manu_jax.selection import select
from manu_jax.types import MODALITIES


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="the folder of a run that is done")
    parser.add_argument("--masks", type=int, default=16)
    parser.add_argument("--alpha", type=float, default=0.2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--towers", nargs="+", help="that masks are of; all of the model")
    options = parser.parse_args(arguments)
    run = Run(load_config(options.run / "config.yaml"), options.run, None)
    loaded, sets = run.vanilla, run.benchmark.sets
    people = (*sets["forget"], *sets["retain"][: len(sets["forget"])])
    facts = [fact for person in people for fact in person.facts]
    samples = [one for modality in MODALITIES for one in forms(facts, modality, loaded.template)]
    random = np.random.default_rng(0)
    towers = {name: loaded.towers[name] for name in options.towers or loaded.towers}
    chosen = [
        select({tower: random.random(shape) for tower, shape in towers.items()}, options.alpha)
        for _ in range(options.masks)
    ]
    batch_size = run.config.evaluate.batch_size

    def one_by_one() -> np.ndarray:
        models = (masks.fold(loaded, mask) for mask in chosen)
        found = (log_likelihoods(model, samples, batch_size=batch_size) for model in models)
        return np.stack([likelihoods.recalled_N for likelihoods in found])

    def at_once() -> np.ndarray:
        return recalled(loaded, samples, chosen, batch_size=batch_size)

    ways: dict[str, Callable[[], Any]] = {"one by one": one_by_one, "at once": at_once}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.turns + 1):
        answers = []
        for name, way in ways.items():
            begun = time.monotonic()
            answers.append(way())
            if turn:
                seconds[name].append(time.monotonic() - begun)
        if not np.array_equal(*answers):
            raise SystemExit("the two ways give different answers")
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    print(f"{options.masks} masks, {len(samples)} facts, on {jax.devices()[0].device_kind}")
    for name, times in seconds.items():
        print(f"{name}: {statistics.median(times):.2f} s")
    print(f"median ratio: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()

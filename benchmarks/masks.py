"""How long masks take that are made from saved statistics: no model, no device.

    python benchmarks/masks.py --masks 1000

Statistics of random numbers, of the size of a model: LLaVA-1.5-7B's towers unless --towers says
other ones. Half a dozen weightings of the functions, three scopes and two ranges of layers, each
with as many alphas as make up the number of masks.
"""

import argparse
import itertools
import time
from collections.abc import Sequence

import numpy as np

from manu_jax.importance.candidates import SetStatistics, masks_of, variations
from manu_jax.importance.statistics import MOMENTS, Statistics, Sum

TOWERS = ("text:32:11008", "vision:23:4096")
FUNCTIONS = ("absolute", "frequency", "variance", "rms")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--masks", type=int, default=1000)
    parser.add_argument("--towers", nargs="+", default=TOWERS, metavar="NAME:LAYERS:NEURONS")
    options = parser.parse_args(arguments)
    towers = {}
    for text in options.towers:
        name, layers, neurons = text.split(":")
        towers[name] = (int(layers), int(neurons))
    everything = [random_statistics(towers, seed) for seed in range(4)]
    statistics = SetStatistics((everything[0], everything[1]), (everything[2], everything[3]))
    weightings = [{name: 1.0 for name in FUNCTIONS}, *({name: 1.0} for name in FUNCTIONS)]
    weightings.append({"absolute": 2.0, "rms": 1.0})
    scopes = ("all", "tower", "layer")
    layers = ({}, {"text": {"first": towers["text"][0] // 2}})
    each = -(-options.masks // (len(weightings) * len(scopes) * len(layers)))
    methods = variations(
        "paper",
        functions=weightings,
        scope=scopes,
        layers=layers,
        alpha=np.linspace(0.01, 0.5, each).round(4).tolist(),
    )
    begun = time.monotonic()
    removed = [
        sum(int(values.sum()) for values in mask.values())
        for _, mask in masks_of(statistics, itertools.islice(methods, options.masks))
    ]
    seconds = time.monotonic() - begun
    size = sum(layers * neurons for layers, neurons in towers.values())
    print(f"{len(removed):,} masks of {size:,} neurons: {seconds:.1f} s")


def random_statistics(
    towers: dict[str, tuple[int, int]], seed: int, count: int = 200
) -> Statistics:
    """Return the sums of `count` samples of random activations."""
    random = np.random.default_rng(seed)
    sums: dict[str, dict[str, Sum]] = {moment: {} for moment in MOMENTS}
    for tower, shape in towers.items():
        scale = random.gamma(2, 0.1, shape)
        values = {
            "absolute": count * scale,
            "signed": count * scale * random.normal(0, 0.3, shape),
            "squared": count * 1.6 * scale**2,
            "above": np.round(count * np.exp(-0.1 / scale)),
        }
        for moment, total in values.items():
            zeros = np.zeros(shape, np.float32)
            sums[moment][tower] = Sum(total.astype(np.float32), zeros)
    number = Sum(np.asarray(count, np.float32), np.zeros((), np.float32))
    return Statistics(
        number, sums["absolute"], sums["signed"], squared=sums["squared"], above=sums["above"]
    )


if __name__ == "__main__":
    main()

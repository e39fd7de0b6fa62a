"""The least time that a step takes on a chip: compute, memory and network, each at its full rate.

    compute   FLOPs ÷ chips ÷ the chip's rate in bfloat16
    memory    weights as the chip uses them (gathered over fsdp, split over tensor), as often as the
              step reads them, and its other arguments once
    network   what the chip receives in rings (collectives.py), on one ring in both directions

`at_least` lets all three overlap, `at_most` none. A program reaches a half of the compute rate or
more where its products are large; nothing here was measured.
"""

import dataclasses
from collections.abc import Iterable

from manu_jax.planning.chips import Chip
from manu_jax.planning.collectives import Collective


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Seconds of one call of a step, at the chip's full rates."""

    compute: float
    memory: float
    network: float

    @property
    def at_least(self) -> float:
        return max(self.compute, self.memory, self.network)

    @property
    def at_most(self) -> float:
        return self.compute + self.memory + self.network

    @property
    def bound(self) -> str:
        """What the step waits for."""
        values = {"compute": self.compute, "memory": self.memory, "network": self.network}
        return max(values, key=values.__getitem__)


def seconds(
    chip: Chip,
    *,
    flops: float,
    num_chips: int,
    weights_read: float,
    other_bytes: float,
    moved: Iterable[Collective],
) -> Seconds:
    """Return the times of one call.

    flops: on all chips together. weights_read, other_bytes: read from a chip's memory in the call.
    """
    return Seconds(
        compute=flops / num_chips / chip.flops,
        memory=(weights_read + other_bytes) / chip.bandwidth,
        network=sum(one.received for one in moved) / chip.network,
    )

"""How a model is run: the gates of its neurons, what is captured, what a backward pass recomputes.

One value goes down from the whole model to its towers, and each takes its own part of it.
"""

import dataclasses
from typing import NamedTuple

from manu_jax.models.nn.capture import (
    TokenCapture,
    TowerCapture,
    image_weights,
    text_weights,
)
from manu_jax.models.nn.layers import Remat
from manu_jax.types import Array, Batch, Capture, Neurons


class TowerForward(NamedTuple):
    """How one tower is run. gates: factors of its neurons, [L, F] or [L, B, F], or None."""

    gates: Array | None = None
    capture: TowerCapture | None = None
    remat: Remat = "all"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forward:
    """How a whole model is run.

    gates: of any of the towers. capture: None where nothing is captured. batch: the one whose
    tokens a capture weighs; None without a capture. remat: "all", "dots" or "none".
    """

    gates: Neurons = dataclasses.field(default_factory=dict)
    capture: Capture | None = None
    batch: Batch | None = None
    remat: Remat = "all"

    def text(self) -> TowerForward:
        """Return the text tower's part."""
        weighed = None
        if self.capture is not None and self.batch is not None:
            weighed = self._keeping("text", text_weights(self.batch, self.capture))
        return TowerForward(self.gates.get("text"), weighed, self.remat)

    def images(self, tower: str, is_token_BIP: Array) -> TowerForward:
        """Return the part of a tower whose tokens are the images'.

        is_token_BIP: False at the padding within a vision input.
        """
        weighed = None
        if self.capture is not None and self.batch is not None:
            weighed = image_weights(self.batch, self.capture, is_token_BIP)
            weighed = self._keeping(tower, weighed)
        return TowerForward(self.gates.get(tower), weighed, self.remat)

    def _keeping(self, tower: str, weighed: TowerCapture) -> TowerCapture:
        """Return a tower's capture with the neurons that "tokens" keeps of it."""
        spec = weighed.spec
        if not isinstance(spec, TokenCapture):
            return weighed
        return weighed._replace(kept=dict(spec.neurons).get(tower, ()))

"""The FLOPs of a program, from its jaxpr: matrix products alone, loops multiplied by their trips.

XLA's own count looks at the body of a loop once, and the layers of a model are a loop.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

# cuDNN's attention: scores and values; backwards the scores anew, and four products of as many.
CUDNN_PRODUCTS = {
    "dot_product_attention_fwd_wrapper": 2,
    "dot_product_attention_bwd_wrapper": 5,
}


@dataclasses.dataclass(frozen=True)
class Flops:
    """once: of what runs once. looped: of all trips of the loops whose end is not in the program,
    as those of decoding are."""

    once: float
    looped: float

    @property
    def total(self) -> float:
        return self.once + self.looped


def flops(jaxpr: Any, *, trips: float = 1.0) -> Flops:
    """Return the FLOPs of all matrix products of a jaxpr, on all devices together.

    A multiply and an add are two; kernels count, too. trips: of each loop that ends by a condition
    (`while`); the trips of a scan are its length. Of branches the dearest counts.
    """
    once = looped = 0.0
    for equation in jaxpr.eqns:
        name, settings = equation.primitive.name, equation.params
        if name == "dot_general":
            once += _product(equation)
        elif name == "conv_general_dilated":
            once += _convolution(equation)
        elif name == "while":
            body = flops(settings["body_jaxpr"].jaxpr, trips=trips)
            looped += trips * body.total
        elif name == "cond":
            found = [flops(branch.jaxpr, trips=trips) for branch in settings["branches"]]
            dearest = max(found, key=lambda branch: branch.total)
            once, looped = once + dearest.once, looped + dearest.looped
        elif name in CUDNN_PRODUCTS:
            once += CUDNN_PRODUCTS[name] * _scores(equation)
        else:
            times = settings["length"] if name == "scan" else _copies(name, settings)
            for inner in _inner(settings):
                found_inside = flops(inner, trips=trips)
                once += times * found_inside.once
                looped += times * found_inside.looped
    return Flops(once, looped)


def _copies(name: str, settings: dict[str, Any]) -> int:
    """Return how often the jaxpr of an equation runs: on every device, on every block of a kernel.

    A block that a kernel leaves out, as those above a causal mask's diagonal, counts as if it ran.
    """
    if name == "shard_map":
        return settings["mesh"].size
    return math.prod(settings["grid_mapping"].grid) if name == "pallas_call" else 1


def _scores(equation: Any) -> float:
    """Return the FLOPs of queries [B, T, N, H] times keys [B, S, K, H]."""
    queries, keys = (variable.aval.shape for variable in equation.invars[:2])
    return 2.0 * math.prod(queries) * keys[1]


def _product(equation: Any) -> float:
    (_, contracted), (_, batched) = equation.params["dimension_numbers"]
    left, right = (variable.aval.shape for variable in equation.invars)
    own = [size for axis, size in enumerate(right) if axis not in (*contracted, *batched)]
    return 2.0 * math.prod(left) * math.prod(own)


def _convolution(equation: Any) -> float:
    _, kernel = (variable.aval.shape for variable in equation.invars)
    out = equation.outvars[0].aval.shape
    numbers = equation.params["dimension_numbers"]
    per_output = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
    return 2.0 * math.prod(out) * per_output


def _inner(settings: dict[str, Any]) -> Iterator[Any]:
    """Yield the jaxprs among an equation's parameters."""
    for value in settings.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if hasattr(part, "jaxpr") and hasattr(part.jaxpr, "eqns"):
                yield part.jaxpr
            elif hasattr(part, "eqns"):
                yield part

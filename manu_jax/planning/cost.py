"""The FLOPs of a program, from its jaxpr: matrix products alone, loops multiplied by their trips.

XLA's own count looks at the body of a loop once, and the layers of a model are a loop.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any


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

    A multiply and an add are two. trips: of each loop that ends by a condition (`while`); the trips
    of a scan are its length. Of branches the dearest counts.
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
        else:
            times = settings["length"] if name == "scan" else 1
            for inner in _inner(settings):
                found_inside = flops(inner, trips=trips)
                once += times * found_inside.once
                looped += times * found_inside.looped
    return Flops(once, looped)


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

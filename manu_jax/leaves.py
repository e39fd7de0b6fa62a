"""The leaves of a model by name, and what the letters that end a name say.

The path of a leaf ("text.layers.mlp.up_LDF") ends in its shape's letters, of which shardings,
adapters and optimizers know which axes are inputs and which are outputs.
"""

import math
from typing import Any

import jax

# (letters of the input axes, letters of the output axes); the leading L of stacked layers apart
MATRIX_LETTERS = (
    ("D", "NH"), ("D", "KH"), ("NH", "D"), ("D", "F"), ("F", "D"), ("D", "E"), ("E", "E"),
    ("YXC", "D"), ("CZYX", "D"), ("D", "ZNH"),
)  # fmt: skip
# Leaves that once had another name, under which hashes and checkpoints still know them.
NEW_PART, OLD_PART = ".unused_layers.", ".unrun."


def path_name(path: Any) -> str:
    """Return a pytree path as a dotted name without the trailing `.value` of nnx parameters."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def first_name(name: str) -> str:
    """Return the name that a leaf had when it was first written."""
    return name.replace(NEW_PART, OLD_PART)


def leaves(model: Any) -> dict[str, Any]:
    """Return {path: leaf} of a model; the paths are those of the weight table."""
    flat = jax.tree_util.tree_flatten_with_path(model)[0]
    return {path_name(path): leaf for path, leaf in flat}


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Return {path: shape} of a model's leaves."""
    return {name: leaf.shape for name, leaf in leaves(model).items()}


def num_parameters(model: Any) -> int:
    """Return how many numbers a model's weights are; those of layers that do not run count too."""
    return sum(math.prod(shape) for shape in shapes(model).values())


def matrix_letters(name: str) -> tuple[str, str] | None:
    """Return the letters of inputs and outputs of the weight whose path is `name`, or None.

    None: vectors, embeddings and heads.
    """
    letters = name.rpartition("_")[2].removeprefix("L")
    return next((pair for pair in MATRIX_LETTERS if letters == "".join(pair)), None)


def matrix_axes(name: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the numbers of the input axes and of the output axes of that weight, or None."""
    pair = matrix_letters(name)
    if pair is None:
        return None
    end = len(name.rpartition("_")[2])
    middle, start = end - len(pair[1]), end - len(pair[0]) - len(pair[1])
    return tuple(range(start, middle)), tuple(range(middle, end))

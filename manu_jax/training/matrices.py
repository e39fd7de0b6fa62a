"""Which weights are matrices between inputs and outputs, by the letters of their names."""

# (letters of the input axes, letters of the output axes); the leading L of stacked layers apart
MATRIX_LETTERS = (
    ("D", "NH"), ("D", "KH"), ("NH", "D"), ("D", "F"), ("F", "D"), ("D", "E"), ("E", "E"),
    ("YXC", "D"), ("CZYX", "D"), ("D", "ZNH"),
)  # fmt: skip


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

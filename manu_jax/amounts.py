"""Bytes and seconds, as sentences say them."""


def amount(number: float | None) -> str:
    """Return bytes in the unit that suits them, or "not known"."""
    if number is None:
        return "not known"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{_short(number / size)} {unit}"
    return f"{number:.0f} B"


def duration(seconds: float) -> str:
    """Return seconds in the unit that suits them."""
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{_short(seconds / size)} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _short(number: float) -> str:
    return f"{number:.3g}" if number < 999.5 else f"{number:,.0f}"

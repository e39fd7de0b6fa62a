"""What a report calls those whom a benchmark asks about: people, subjects, authors, images."""

from manu_jax.data.benchmarks import BENCHMARKS, PEOPLE, TRANSFORMED
from manu_jax.report.results import Results


def nouns(results: Results) -> tuple[str, str]:
    """Return the words for one and for several."""
    name = str((results.config.get("data") or {}).get("benchmark", ""))
    return BENCHMARKS[name].nouns if name in BENCHMARKS else PEOPLE


def several(results: Results) -> str:
    """Return the word for several."""
    return nouns(results)[1]


def further(results: Results) -> tuple[str, str]:
    """Return the words for one and for several of the images that the set `test` is asked with."""
    name = str((results.config.get("data") or {}).get("benchmark", ""))
    return BENCHMARKS[name].further if name in BENCHMARKS else TRANSFORMED

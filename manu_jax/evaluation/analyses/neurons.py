"""A neuron to look at: the neurons that methods removed, scaled or wrote, one by one.

What is found of a method's neurons is kept in `neurons/METHOD.json` of the run's folder, which the
page neurons.html is made of; the rows are what results.json has of them. A killed run goes on with
the next method. What is measured: evaluation/neurons/look.py; what it is worth: docs/neurons.md.
"""

import functools
import logging
from collections.abc import Iterable, Iterator

from manu_jax import parallel
from manu_jax.config import RunConfig
from manu_jax.context import Run
from manu_jax.evaluation.analyses.analysis import Analysis, Evaluated
from manu_jax.evaluation.neurons.chosen import changed_by
from manu_jax.evaluation.neurons.kept import (
    Looked,
    NeuronRow,
    faults,
    kept_file,
    read_looked,
    write_looked,
)
from manu_jax.evaluation.neurons.look import look
from manu_jax.evaluation.neurons.people import people_of

logger = logging.getLogger(__name__)

FIRST, HEADLINE, ALL = "first", "headline", "all"


def measure(evaluated: Evaluated) -> Iterator[NeuronRow]:
    """Yield the neurons of every method that is to be looked at, those shown."""
    for looked in looked_at(evaluated.run):
        yield from (card.row for card in looked.cards)


def looked_at(run: Run) -> Iterator[Looked]:
    """Yield what is found of each method that a run's config names and that changed neurons.

    What stands is read, the rest is measured. `first` is the first method that changed neurons.
    """
    wanted = run.config.neurons.methods
    is_first_wanted = FIRST in wanted
    for name in possible(run.config):
        if name not in named(run.config) and not is_first_wanted:
            continue
        found = _looked_at(run, name)
        if found is not None:
            is_first_wanted = False
            yield found


def possible(config: RunConfig) -> tuple[str, ...]:
    """Return the names of the methods that may be looked at, in the order of the tables."""
    return config.names if FIRST in config.neurons.methods else named(config)


def named(config: RunConfig) -> tuple[str, ...]:
    """Return the names of the methods that a config names, whether or not they have neurons."""
    wanted = set(config.neurons.methods)
    if ALL in wanted:
        return config.names
    if HEADLINE in wanted:
        wanted.add(config.names[0])
    return tuple(name for name in config.names if name in wanted)


def _looked_at(run: Run, name: str) -> Looked | None:
    path = run.directory / kept_file(name)
    if not parallel.exists(path):
        changed = changed_by(run, name, run.config.neurons.most)
        people = people_of(run, name)
        if changed is None or not people.forget or not people.others:
            return None
        logger.info("neurons: %s: %d of %d", name, len(changed.shown), changed.total)
        found = look(run, name, changed)
        parallel.on_first_process(functools.partial(write_looked, path, found))
    return read_looked(path)


def check(row: NeuronRow) -> Iterable[str]:
    """Return what is wrong with the values of a row."""
    return faults(row)


ANALYSIS = Analysis(
    NeuronRow, measure, applies=lambda run: bool(run.config.neurons.methods), check=check
)

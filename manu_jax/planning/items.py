"""All steps of a run, and which kind of work each is."""

from collections.abc import Iterator

from manu_jax.planning import (
    analysing,
    asking,
    auditing,
    scoring,
    strangers,
    training,
    vanilla,
)
from manu_jax.planning.step import Item
from manu_jax.planning.world import World


def planned(world: World) -> Iterator[Item]:
    """Yield every step of a run, in the order of its stages."""
    yield from vanilla.vanilla_items(world)
    yield from vanilla.own_text_items(world)
    yield from scoring.scoring_items(world)
    yield from training.unlearn_items(world)
    yield from strangers.stranger_items(world)
    yield from asking.asking_items(world)
    yield from asking.published_items(world)
    yield from analysing.analysis_items(world)
    yield from auditing.audit_items(world)
    yield from asking.writing_items(world)

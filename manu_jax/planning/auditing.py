"""The steps of the audit: an attacker's training, and questions with more models beside them.

Not planned, since a planned step needs as much or more: one form alone trained, rows recalled in
place of answers (likelihoods), and what rounds or fills a leaf of weights.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from manu_jax import parallel
from manu_jax.config.base import Remat
from manu_jax.evaluation import likelihood
from manu_jax.evaluation.analyses.audit import attacks_of, audited
from manu_jax.evaluation.audit import attacker, depth, membership, relearning, removed, rounding
from manu_jax.planning.asking import Asked, answer_items, rated_item, work_in_buckets
from manu_jax.planning.shapes import another, filled
from manu_jax.planning.step import OPTIMIZER, WEIGHTS, Item, Step
from manu_jax.planning.training import READS
from manu_jax.planning.world import World

# The compiled steps are private to the modules that call them; a plan compiles them and calls none.

HALF_A_CURVE = 2  # steps that tuning is asked after
VARIANTS = 5  # of relearning, where the facts allow all of them


def audit_items(world: World) -> Iterator[Item]:
    """Yield the steps of all attacks on the audited models and on the retrained one."""
    config, data = world.config, world.data
    if not audited(config):
        return
    yield Item(
        "audit: an attacker's training step",
        "evaluate",
        _attack,
        remat=("audit.remat", config.audit.remat),
        work="train",
    )
    models, probes = _num_audited(world), data.probes
    curves = HALF_A_CURVE + 1
    if _is_full(world):
        points = 1 + len(relearning.steps_until(config.audit.steps))
        curves += VARIANTS * len(config.audit.learning_rates) * points
    copies = len(rounding.BITS) + 1 + len(removed.NUM_ZEROED)
    for name, samples, passes, beside in (
        ("asked otherwise", probes.otherwise, 1, _audited),
        ("a changed copy asked", probes.plain, 1 + copies, _copied),
        ("asked while an attacker trains", probes.plain, curves, _attacked),
    ):
        if samples:
            asked = Asked(samples, models * passes, beside)
            yield from answer_items(f"audit: {name}", asked, world)
    if probes.offered:
        asked = Asked(probes.offered, models, _audited)
        name = "audit: offered answers"
        yield rated_item(name, asked, world, function=likelihood._likelihoods)
    facts = [one for samples in data.forget.values() for one in samples]
    held_out = 2  # as many facts about people whom no model was trained on
    asked = Asked(facts, models * held_out, _audited)
    yield rated_item("audit: membership", asked, world, function=membership._token_scores)
    if world.has_retrained and world.loaded.config.text.num_layers >= depth.FEWEST_LAYERS:
        batch = ("evaluate.batch_size", config.evaluate.batch_size)
        yield Item("audit: depth, patched after each layer", "evaluate", _depth, batch)


def _is_full(world: World) -> bool:
    return any(attack is relearning.ATTACK for attack in attacks_of(world.config).values())


def _num_audited(world: World) -> int:
    return len(audited(world.config)) + world.has_retrained


def _models(world: World, number: int) -> list[Any]:
    """Return so many models beside the one that a step runs."""
    return [another(world.model) for _ in range(number)]


def _audited(world: World) -> Mapping[str, Any]:
    """Return what lies beside a model under audit: vanilla, and the retrained one."""
    return {WEIGHTS: _models(world, 1 + world.has_retrained)}


def _copied(world: World) -> Mapping[str, Any]:
    """Return what lies beside a changed copy of a model: that model, too."""
    return {WEIGHTS: _models(world, 2 + world.has_retrained)}


def _attacked(world: World) -> Mapping[str, Any]:
    """Return what lies beside a copy that is asked while it is trained, on the mesh of training."""
    there = world.at("train")
    weights, moments = attack_state(there)
    is_moved = there.place.sizes != world.place.sizes  # from the copy that was made there
    models = _models(there, 2 + world.has_retrained + is_moved)
    return {WEIGHTS: (weights, models), OPTIMIZER: moments}


def attack_state(world: World) -> tuple[Any, Any]:
    """Return what `attacker.first_state` makes, as placed shapes."""
    given = {"lora": world.config.audit.lora, "key": jax.random.key(0)}
    begin = functools.partial(attacker.first_state, mesh=None, **given)
    return world.place.weights(jax.eval_shape(begin, world.model))


def _attack(world: World, size: int | None, remat: Remat | None) -> Step:
    """Return the step of an attacker who trains facts in both forms."""
    config, data, place = world.config, world.data, world.place
    state = attack_state(world)
    multiple = parallel.batch_multiple(place.mesh)
    batches = []
    for form in data.modalities:
        facts = [*data.forget[form], *data.keep.get(form, ())]
        shape = attacker.shape_of([attacker.sizes_of(one) for one in facts], multiple)
        batches.append(place.rows(data.encoder.collate(facts[:1], shape)))
    curves = 1 + _is_full(world) * VARIANTS * len(config.audit.learning_rates)
    remat = remat or config.audit.remat
    settings = {"rate": place.number_within(np.float32(0)), "remat": remat, "mesh": place.mesh}
    if config.audit.lora is not None:
        key = place.number_within(jax.eval_shape(lambda: jax.random.key(0)))
        settings |= {"lora": config.audit.lora, "key": key}
    return Step(
        attacker.attack_step,
        (state, world.model, tuple(batches)),
        settings,
        _num_audited(world) * curves * config.audit.steps,
        rows=sum(len(batch.token_ids_BT) for batch in batches),
        real_rows=attacker.BATCH_SIZE * len(batches),
        parts={WEIGHTS: (state[0], world.model), OPTIMIZER: state[1]},
        resident=_audited(world),
        like=state[0],
        reads=READS[remat],
    )


def _depth(world: World, size: int | None, remat: Remat | None) -> Step:
    """Return the step that patches the vanilla model after each of its layers."""
    given = size or world.config.evaluate.batch_size
    rows, num_layers = filled(given, world.place), world.loaded.config.text.num_layers
    facts = max(world.data.forget.values(), key=lambda samples: samples[0].num_tokens)
    work = work_in_buckets(world, facts, rows)
    forms, sources = len(world.data.modalities), 2
    source = another(world.model)
    above = (num_layers - 1) / 2  # layers that a patched stream goes through, on average
    return Step(
        depth._patched_losses,
        (world.model, world.place.rows(work.batch)),
        {"source": source},
        len(audited(world.config)) * forms * sources * work.batches,
        rows=rows,
        real_rows=given,
        parts={WEIGHTS: (world.model, source)},
        resident={WEIGHTS: another(world.model)},
        trips=above,
        reads=(2 + above) / 2,  # both models once, and vanilla's layers again from each of them on
    )

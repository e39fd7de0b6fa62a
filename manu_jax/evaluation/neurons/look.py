"""Look at the neurons that one method changed: what drives them, for whom, and what they do."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from manu_jax.context import Run
from manu_jax.data.batches import encode_all
from manu_jax.data.forms import form, has_form, question_and_answer
from manu_jax.data.record import Fact
from manu_jax.evaluation.candidates import mean_log_likelihoods
from manu_jax.evaluation.metrics import Interval, bootstrap
from manu_jax.evaluation.neurons import pictures, words
from manu_jax.evaluation.neurons.activations import AtTokens, at_tokens, of_tower
from manu_jax.evaluation.neurons.chosen import STRENGTHS, Changed, only
from manu_jax.evaluation.neurons.examples import Fed, top_patches, top_tokens
from manu_jax.evaluation.neurons.kept import (
    FORGET,
    KEPT,
    Asked,
    Card,
    Looked,
    NeuronRow,
    PatchExample,
    TokenExample,
)
from manu_jax.evaluation.neurons.nulls import null_of
from manu_jax.evaluation.neurons.people import People, drawn_facts, people_of
from manu_jax.evaluation.neurons.relabelled import Null
from manu_jax.types import Modality, VisionInput

MOST_WORDS = 5
DIGITS = 6  # decimals of the changes that are kept


def look(run: Run, name: str, changed: Changed) -> Looked:
    """Return what is found of the neurons that a method of a run changed."""
    people = people_of(run, name)
    facts = drawn_facts(people.all, run.config.neurons.facts, seed=run.config.seed)
    examples, found, images = _examples(run, changed, people=people, facts=facts)
    nulls, scored_by = null_of(run, name, changed, people=people, facts=facts)
    asked, (whole_N, *alone_KN) = _changes(run, changed, people=people, facts=facts)
    said = _words(run, changed, facts=facts, found=found)
    settings = {"resamples": run.config.evaluate.resamples, "seed": run.config.seed}
    cards = []
    for number, (place, strength) in enumerate(changed.shown):
        effects = {
            one: _interval(asked, alone_KN[number], name=one, **settings) for one in (FORGET, KEPT)
        }
        excess, p = said[number][1] or (None, None)
        row = NeuronRow(
            method=name,
            change=changed.change,
            total=changed.total,
            **dataclasses.asdict(place),
            strength=strength,
            scored_by=scored_by,
            **_of_null(nulls, number, len(people.all)),
            peak=found.peak_K[number],
            **_fields(FORGET, effects[FORGET]),
            **_fields(KEPT, effects[KEPT]),
            words=excess,
            words_p=p,
        )
        tokens, patches = examples[number]
        cards.append(
            Card(
                row=row,
                tokens=tuple(tokens),
                patches=tuple(patches),
                words=tuple(said[number][0]),
                changes=tuple(alone_KN[number].tolist()),
            )
        )
    return Looked(
        method=name,
        ordered_by=STRENGTHS[changed.change],
        cards=tuple(cards),
        asked=asked,
        whole=tuple(whole_N.tolist()),
        pictures=images,
        names={person.id: person.name for person in people.all},
    )


@dataclasses.dataclass(frozen=True)
class _Found:
    """What the neurons do on the facts: per sample and neuron, in order; peaks in medians."""

    fed: tuple[Fed, ...]
    by_neuron: tuple[tuple[tuple[AtTokens | None, ...], int], ...]
    peak_K: tuple[float, ...]


def _examples(
    run: Run, changed: Changed, *, people: People, facts: Mapping[Modality, Sequence[Fact]]
) -> tuple[list[tuple[list[TokenExample], list[PatchExample]]], _Found, dict[str, str]]:
    """Return the examples of each neuron, what was found at the tokens, and the pictures."""
    loaded, most = changed.loaded, run.config.neurons.examples
    places = [place for place, _ in changed.shown]
    given: list[tuple[Modality, Fact]] = [
        (modality, fact) for modality, own in facts.items() for fact in own
    ]
    samples = [form(fact, modality, loaded.template) for modality, fact in given]
    encoded = encode_all(loaded, samples)
    at = at_tokens(loaded, encoded, places, batch_size=run.config.evaluate.batch_size)
    fed = tuple(
        Fed(one, fact.person_id, people.set_of(fact.person_id), modality)
        for one, (modality, fact) in zip(encoded, given, strict=True)
    )
    by_neuron: list[Any] = [None] * len(places)
    peaks = [0.0] * len(places)
    for tower, numbers in of_tower(places).items():
        own = tuple(one.get(tower) for one in at)
        for slot, number in enumerate(numbers):
            by_neuron[number] = (own, slot)
            peaks[number] = max((_peak(one, slot) for one in own if one is not None), default=0.0)
    sources: dict[str, VisionInput] = {}
    examples = []
    for place, (own, slot) in zip(places, by_neuron, strict=True):
        tokens: list[TokenExample] = []
        patches: list[PatchExample] = []
        for name in (FORGET, KEPT):
            mine = [index for index, one in enumerate(fed) if one.set == name]
            of_set = ([fed[index] for index in mine], [own[index] for index in mine])
            if place.tower == "text":
                tokens += top_tokens(loaded, *of_set, number=slot, most=most)
                continue
            for patch, source in top_patches(*of_set, number=slot, most=most):
                patches.append(patch)
                sources[patch.picture] = source
        examples.append((tokens, patches))
    images = {key: pictures.picture(loaded, source) for key, source in sorted(sources.items())}
    return examples, _Found(fed, tuple(by_neuron), tuple(peaks)), images


def _peak(found: AtTokens, slot: int) -> float:
    """Return a neuron's largest size at a token, in medians of its layer there."""
    median_T = np.maximum(found.median_KT[slot], np.finfo(np.float32).tiny)
    return float(np.minimum((np.abs(found.z_KT[slot]) / median_T).max(initial=0.0), 1e9))


def _changes(
    run: Run, changed: Changed, *, people: People, facts: Mapping[Modality, Sequence[Fact]]
) -> tuple[tuple[Asked, ...], np.ndarray]:
    """Return the facts that are asked, and how their true answers change. [1 + K, N].

    All facts of people to forget are asked, and the drawn ones of others. The first row is of all
    neurons of the method, removed at once; the others of each alone.
    """
    loaded, config = changed.loaded, run.config
    given: list[tuple[Modality, Fact]] = [
        (modality, fact)
        for person in people.forget[: people.asked]
        for modality in run.modalities
        for fact in person.facts
        if has_form(fact, modality)
    ]
    others = {person.id for person in people.others[: people.asked]}
    given.extend(
        (modality, fact)
        for modality, own in facts.items()
        for fact in own
        if fact.person_id in others
    )
    alone = [only(place, loaded.towers) for place, _ in changed.shown]
    found_KN = mean_log_likelihoods(
        loaded,
        [form(fact, modality, loaded.template) for modality, fact in given],
        [{}, changed.whole, *alone],
        batch_size=config.evaluate.batch_size,
        memory_mib=config.sweep.memory_mib,
    )
    asked = tuple(
        Asked(
            set=people.set_of(fact.person_id),
            person=fact.person_id,
            attribute=fact.attribute,
            modality=modality,
        )
        for modality, fact in given
    )
    return asked, np.round(found_KN[1:] - found_KN[0], DIGITS)


def _words(
    run: Run,
    changed: Changed,
    *,
    facts: Mapping[Modality, Sequence[Fact]],
    found: _Found,
) -> list[tuple[list[words.WordEffect], tuple[float, float] | None]]:
    """Return, for each neuron, the words that raise it most, and all words together or None."""
    mine = [index for index, one in enumerate(found.fed) if one.modality == "text"]
    of_text = facts.get("text", ())
    known = words.vocabulary(
        [" ".join(question_and_answer(fact, "text")) for fact in of_text],
        np.asarray([found.fed[index].set == FORGET for index in mine]),
        telling=[f"{fact.name} {fact.answer}" for fact in of_text],
    )
    start = _shared_beginning([found.fed[index].encoded.token_ids_T for index in mine])
    settings = {"count": run.config.neurons.labellings + 1, "seed": run.config.seed}
    results: list[tuple[list[words.WordEffect], tuple[float, float] | None]] = []
    for (place, _), (own, slot) in zip(changed.shown, found.by_neuron, strict=True):
        found_here = [one for one in (own[index] for index in mine) if one is not None]
        if place.tower != "text" or not found_here:
            results.append(([], None))
            continue
        values_N = np.asarray(
            [np.abs(one.z_KT[slot, start:]).mean(dtype=np.float64) for one in found_here]
        )
        effect_W = words.effects(known, values_N)
        results.append(
            (
                words.strongest(known, effect_W, MOST_WORDS),
                words.of_all_words(known, effect_W, **settings),
            )
        )
    return results


def _shared_beginning(texts: Sequence[np.ndarray]) -> int:
    """Return how many tokens all texts begin with alike; less than the shortest has."""
    length = min((len(one) for one in texts), default=1)
    for token in range(length - 1):
        if len({int(one[token]) for one in texts}) > 1:
            return token
    return max(length - 1, 0)


def _of_null(found: Null, number: int, num_people: int) -> dict[str, Any]:
    return {
        "score": float(found.score_K[number]),
        "p": float(found.p_K[number]),
        "q": float(found.q_K[number]),
        "p_any": float(found.p_any_K[number]),
        "people": num_people,
        "labellings": found.labellings,
    }


def _interval(
    asked: Sequence[Asked], changes_N: np.ndarray, *, name: str, **settings: int
) -> Interval | None:
    """Return the mean change over the facts of a set, with its interval; None: it has none."""
    mine = [index for index, one in enumerate(asked) if one.set == name]
    if not mine:
        return None
    return bootstrap(changes_N[mine].tolist(), [asked[index].person for index in mine], **settings)


def _fields(name: str, interval: Interval | None) -> dict[str, Any]:
    if interval is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None, f"{name}_n": 0}
    low, high = (None if np.isnan(one) else one for one in (interval.low, interval.high))
    return {
        name: interval.value,
        f"{name}_low": low,
        f"{name}_high": high,
        f"{name}_n": interval.n,
    }

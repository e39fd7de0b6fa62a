"""The facts of each step of `suppress` and `erase`, a pure function of the seed and the step.

Facts to forget come in views (rewordings.py), facts to keep too; invented people are kept beside
them, with what vanilla says of them. All rows are padded on the left, so that a fact and the same
fact put to a stranger, whose name may have another length, have the same tokens at the same places.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax import parallel
from manu_jax.config import UnlearnSection
from manu_jax.data.batches import encode_all
from manu_jax.data.forms import form, has_form, is_name_question
from manu_jax.data.record import Fact
from manu_jax.data.rewordings import with_views
from manu_jax.data.strangers import Stranger, as_stranger
from manu_jax.models.loaded import Loaded
from manu_jax.training.features import AT_ONCE, STORE_BYTES, features_of, with_features
from manu_jax.training.stranger_loss import ForgetRows, FormRows, StrangerData
from manu_jax.training.strangers_target import (
    StrangerTarget,
    has_same_answer,
    stranger_sample,
    stranger_target,
)
from manu_jax.types import Batch, BatchShape, Encoded, Modality, VisionInput

LENGTH_MULTIPLE = 8  # tokens


class StrangerRows:
    """The data of each step: `data_at(step)`.

    forget, keep: facts. known: strangers whose mean is the target; kept: those that are kept.
    """

    def __init__(
        self,
        vanilla: Loaded,
        section: UnlearnSection,
        *,
        forget: Sequence[Fact],
        keep: Sequence[Fact],
        known: Sequence[Stranger],
        kept: Sequence[Stranger],
        seed: int,
    ):
        self._vanilla, self._section, self._seed = vanilla, section, seed
        invented = [as_stranger(fact, one) for one in kept for fact in _asked_of_strangers(forget)]
        common = {"section": section, "known": known, "seed": seed}
        self._forms = {
            modality: _Form(
                vanilla,
                modality,
                forget=[fact for fact in forget if has_form(fact, modality)],
                keep=[fact for fact in [*keep, *invented] if has_form(fact, modality)],
                **common,
            )
            for modality in section.modalities
        }
        facts = [fact for fact in forget if any(has_form(fact, m) for m in section.modalities)]
        self._people = sorted({fact.person_id for fact in facts})
        self._attributes = sorted({fact.attribute for fact in facts})
        self._settings = {
            name: jnp.float32(section.setting(name))
            for name in ("excess", "shortfall", "hidden", "keep_hidden")
        }
        relearn = section.relearn
        self._settings["relearn"] = jnp.float32(0 if relearn is None else relearn.weight)

    def data_at(self, step: int) -> StrangerData:
        """Return the data of step 0, 1, …, on the devices."""
        relearn = self._section.relearn
        random = np.random.default_rng([self._seed, 13, step])
        steps, rate, chosen, by_people = 0, 0.0, frozenset[str](), False
        if relearn is not None:
            by_people = random.random() < relearn.people_share
            values = self._people if by_people else self._attributes
            count = max(len(values) // 2, 1)
            chosen = frozenset(values[i] for i in random.permutation(len(values))[:count])
            steps = int(random.integers(1, relearn.steps + 1))
            low, high = np.log(relearn.rates)
            rate = float(np.exp(random.uniform(low, high)))
        return StrangerData(
            forms={
                modality: rows.at(step, random, chosen, by_people=by_people)
                for modality, rows in self._forms.items()
            },
            reference=self._vanilla.model,
            settings=self._settings,
            keep_weight=jnp.float32(self._section.retain_weight),
            relearn_steps=jnp.int32(steps),
            relearn_rate=jnp.float32(rate),
            parts=1 if relearn is None else relearn.steps,
        )


class _Form:
    """The rows of one form."""

    def __init__(
        self,
        vanilla: Loaded,
        modality: Modality,
        *,
        forget: Sequence[Fact],
        keep: Sequence[Fact],
        section: UnlearnSection,
        known: Sequence[Stranger],
        seed: int,
    ):
        self._section, self._seed = section, seed
        self._facts = with_views(forget, section.views, seed=seed, strength=section.view_strength)
        # In other words a question for the name is not always known as one.
        self._names = np.tile([is_name_question(fact.question) for fact in forget], section.views)
        self._num_facts, self._num_strangers = len(forget), len(known)
        self._target: StrangerTarget = stranger_target(vanilla, forget, known, modality=modality)
        samples = [form(fact, modality, vanilla.template) for fact in self._facts]
        encoded = encode_all(vanilla, samples)
        self._with_hidden = section.setting("hidden") > 0
        of_strangers: list[Encoded] = []
        if self._with_hidden:
            samples = [
                stranger_sample(vanilla, fact, one, modality=modality)
                for fact in self._facts
                for one in known
            ]
            of_strangers = encode_all(vanilla, samples)
        kept = with_views(keep, section.keep_views, seed=seed + 1)
        self._forget = _Rows(vanilla, encoded, of_strangers)
        self._keep = _Rows(
            vanilla, encode_all(vanilla, [form(fact, modality, vanilla.template) for fact in kept])
        )
        # With other tokens in the answer the positions would not be the same.
        self._usable = [
            [
                number
                for number in range(self._num_strangers)
                if has_same_answer(encoded[fact], of_strangers[fact * self._num_strangers + number])
            ]
            if of_strangers
            else []
            for fact in range(len(encoded))
        ]

    def at(
        self, step: int, random: np.random.Generator, chosen: frozenset[str], *, by_people: bool
    ) -> FormRows:
        """Return the rows of a step. chosen: the people or the attributes that are relearned."""
        section, relearn = self._section, self._section.relearn
        size = section.batch_size
        keep = _drawn(self._keep.count, step, section.batch_keep or size, seed=[self._seed, 1])
        forget = _drawn(self._forget.count, step, size, seed=[self._seed, 0])
        rows = FormRows(self._forget_rows(forget, random), self._keep.batch(keep, len(keep)))
        if relearn is None:
            return rows
        inside, outside = self._split(chosen, by_people=by_people)
        if not len(inside) or not len(outside):
            inside = outside = np.arange(len(self._facts))
        trained = random.choice(inside, relearn.steps * relearn.batch_size)
        return dataclasses.replace(
            rows,
            relearned=self._forget.batch(trained, len(trained)),
            asked=self._forget_rows(random.choice(outside, size), random),
        )

    def _split(self, chosen: frozenset[str], *, by_people: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return which facts are relearned and which are asked; who somebody is, is relearned."""
        values = [fact.person_id if by_people else fact.attribute for fact in self._facts]
        inside = np.array([value in chosen for value in values])
        return np.flatnonzero(inside | self._names), np.flatnonzero(~inside & ~self._names)

    def _forget_rows(self, indices: np.ndarray, random: np.random.Generator) -> ForgetRows:
        batch = self._forget.batch(indices, len(indices))
        num_answers = self._forget.shape.num_answers or 0
        target = parallel.put_batch(
            self._forget.mine(self._target.rows(indices % self._num_facts, num_answers)),
            self._forget.loaded.mesh,
        )
        if not self._with_hidden:
            return ForgetRows(batch, target)
        drawn = [
            self._usable[index][random.integers(len(self._usable[index]))]
            if self._usable[index]
            else -1
            for index in indices
        ]
        places = [
            index * self._num_strangers + max(number, 0)
            for index, number in zip(indices, drawn, strict=True)
        ]
        strangers = self._forget.batch(np.asarray(places), len(indices), of_others=True)
        differs_BT = np.stack(
            [
                self._forget.differs(index, place)
                if number >= 0
                else np.zeros(self._forget.length, np.float32)
                for index, place, number in zip(indices, places, drawn, strict=True)
            ]
        )
        differs = parallel.put_batch(self._forget.mine(differs_BT), self._forget.loaded.mesh)
        return ForgetRows(batch, target, strangers, differs)


class _Rows:
    """Encoded samples, and others of the same shape; any of them as a batch on the devices."""

    def __init__(self, loaded: Loaded, encoded: Sequence[Encoded], others: Sequence[Encoded] = ()):
        everything = [*encoded, *others]
        longest = max(item.num_tokens for item in everything)
        self.loaded, self.count = loaded, len(encoded)
        self._encoded, self._others = encoded, others
        self.length = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        self.shape = BatchShape(
            length=self.length,
            num_images=max(item.num_images for item in everything) or None,
            num_patches=max(item.num_patches for item in everything) or None,
            num_answers=max(item.num_answers for item in everything),
            padding_side="left",
        )
        self._features = _all_features(loaded, everything)

    def batch(self, indices: np.ndarray, size: int, *, of_others: bool = False) -> Batch:
        """Return these samples as one batch of at least `size` rows."""
        pool = self._others if of_others else self._encoded
        chosen = [pool[index] for index in indices]
        filled = self._filled(size)
        mine = parallel.batch_rows(self.loaded.mesh, filled)
        own = [chosen[row] for row in mine if row < len(chosen)]
        shape = dataclasses.replace(self.shape, batch_size=len(mine))
        batch = self.loaded.collate(own or chosen[:1], shape)
        if not own:
            batch = dataclasses.replace(
                batch,
                example_weights_B=np.zeros_like(batch.example_weights_B),
                loss_weights_BT=np.zeros_like(batch.loss_weights_BT),
            )
        if self._features and batch.images is not None:
            batch = with_features(self.loaded, batch, own, features=self._features)
        return parallel.put_batch(batch, self.loaded.mesh)

    def mine(self, tree: object) -> object:
        """Return this process's rows of host arrays, filled up as a batch of them is."""
        size = len(jax.tree.leaves(tree)[0])
        filled = self._filled(size)
        rows = parallel.batch_rows(self.loaded.mesh, filled)

        def padded(values: np.ndarray) -> np.ndarray:
            return np.pad(values, [(0, filled - size), *[(0, 0)] * (values.ndim - 1)])[rows]

        return jax.tree.map(padded, tree)

    def differs(self, index: int, place: int) -> np.ndarray:
        """Return 1 where the tokens of a sample and of one of the others tell who is meant. [T].

        That is from its first image on, or from the first token that is not the same; both are
        counted from the end, where the two have the same tokens again.
        """
        own, other = self._encoded[index], self._others[place]
        length = self.length
        images = np.flatnonzero(own.feature_index_T >= 0)
        if len(images):
            start = length - own.num_tokens + images[0]
        else:
            num = min(own.num_tokens, other.num_tokens)
            same = own.token_ids_T[:num] == other.token_ids_T[:num]
            common = num if same.all() else int(np.argmin(same))
            start = length - min(own.num_tokens, other.num_tokens) + common
        return (np.arange(length) >= start).astype(np.float32)

    def _filled(self, size: int) -> int:
        multiple = parallel.batch_multiple(self.loaded.mesh)
        return -(-size // multiple) * multiple


def _asked_of_strangers(forget: Sequence[Fact]) -> list[Fact]:
    """Return the facts that are kept about invented people: those of the first person to forget.

    Where facts have strangers of their own kind: the first fact of each attribute.
    """
    kinds = {fact.attribute: fact for fact in reversed(forget) if fact.strangers}
    return list(kinds.values())[::-1] or [
        fact for fact in forget if fact.person_id == forget[0].person_id
    ]


def _drawn(count: int, step: int, size: int, *, seed: Sequence[int]) -> np.ndarray:
    """Return which of `count` rows a step takes: each once before any comes again."""
    places = np.arange(step * size, (step + 1) * size)
    epochs = {
        epoch: np.random.default_rng([*seed, epoch]).permutation(count)
        for epoch in np.unique(places // count).tolist()
    }
    return np.array([epochs[place // count][place % count] for place in places.tolist()])


def _all_features(loaded: Loaded, encoded: Sequence[Encoded]) -> dict[int, np.ndarray]:
    """Return {identity: features} of all vision inputs; {} where they would not fit on the host."""
    unique: dict[int, VisionInput] = {
        id(one): one for item in encoded for one in item.vision_inputs
    }
    by_size: dict[int, list[VisionInput]] = {}
    for one in unique.values():
        by_size.setdefault(one.padded_patches, []).append(one)
    multiple = parallel.batch_multiple(loaded.mesh)
    at_once = -(-AT_ONCE // multiple) * multiple
    found: dict[int, np.ndarray] = {}
    for group in by_size.values():
        for start in range(0, len(group), at_once):
            found |= features_of(loaded, group[start : start + at_once], at_once)
            if start == 0:
                of_first = next(iter(found.values())).nbytes
                if of_first * len(unique) > STORE_BYTES:
                    return {}
    return found

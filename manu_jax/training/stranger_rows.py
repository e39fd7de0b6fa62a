"""The facts of each step of `suppress` and `erase`, a pure function of the seed and the step.

Facts to forget come in views (rewordings.py), facts to keep too; invented people are kept beside
them, with what vanilla says of them. All rows are padded on the left, so that a fact and the same
fact put to a stranger, whose name may have another length, have the same tokens at the same places.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from manu_jax import parallel
from manu_jax.config import UnlearnSection
from manu_jax.data.batches import encode_all
from manu_jax.data.forms import asks_for_name, form, has_form
from manu_jax.data.record import Fact, topic_of
from manu_jax.data.rewordings import with_views
from manu_jax.data.strangers import Stranger, as_stranger
from manu_jax.models.loaded import Loaded
from manu_jax.training.edited import lowest_layer
from manu_jax.training.encoded_rows import EncodedRows, without_weight
from manu_jax.training.stranger_loss import ForgetRows, FormRows, StrangerData
from manu_jax.training.strangers_target import (
    StrangerTarget,
    has_same_answer,
    stranger_sample,
    stranger_target,
)
from manu_jax.types import Modality, Sample


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What a step relearns: facts of these people or topics in both forms, or one form's all.

    form: the form that is relearned whole, the other being asked; `chosen` does not count then.
    """

    chosen: frozenset[str]
    by_people: bool
    form: Modality | None = None


@dataclasses.dataclass(frozen=True)
class FormSamples:
    """What a method is trained on in one form.

    facts: to forget, in all their views. forget: the same as samples. strangers: each of them put
    to every stranger, one fact after the other; none where the method does without. keep: facts to
    keep, and about invented people, in their views.
    """

    facts: Sequence[Fact]
    forget: Sequence[Sample]
    strangers: Sequence[Sample]
    keep: Sequence[Sample]


def form_samples(
    vanilla: Loaded,
    section: UnlearnSection,
    modality: Modality,
    *,
    forget: Sequence[Fact],
    keep: Sequence[Fact],
    known: Sequence[Stranger],
    kept: Sequence[Stranger],
    seed: int,
) -> FormSamples:
    """Return the samples of one form; facts that do not have it are left out.

    Arguments as of StrangerRows.
    """
    invented = [as_stranger(fact, one) for one in kept for fact in _asked_of_strangers(forget)]
    own, others = (
        [fact for fact in facts if has_form(fact, modality)]
        for facts in (forget, [*keep, *invented])
    )
    facts = with_views(own, section.views, seed=seed, strength=section.view_strength)
    return FormSamples(
        facts,
        [form(fact, modality, vanilla.template) for fact in facts],
        [
            stranger_sample(vanilla, fact, one, modality=modality)
            for fact in facts
            for one in known
            if section.setting("hidden") > 0
        ],
        [
            form(fact, modality, vanilla.template)
            for fact in with_views(others, section.keep_views, seed=seed + 1)
        ],
    )


class StrangerRows:
    """The data of each step: `data_at(step)`.

    forget, keep: facts. known: strangers whose mean is the target; kept: those that are kept.
    texts: general texts to keep.
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
        texts: Sequence[Sample] = (),
        seed: int,
    ):
        self._vanilla, self._section, self._seed = vanilla, section, seed
        self._first_layer = lowest_layer(vanilla, section)
        common = {"known": known, "seed": seed}
        self._forms: dict[Modality, _Form] = {
            modality: _Form(
                vanilla,
                modality,
                form_samples(
                    vanilla, section, modality, forget=forget, keep=keep, kept=kept, **common
                ),
                forget=[fact for fact in forget if has_form(fact, modality)],
                section=section,
                first_layer=self._first_layer,
                **common,
            )
            for modality in section.modalities
        }
        # Their loss is on all tokens, so that all layers run.
        of_texts = encode_all(vanilla, texts)
        self._texts = EncodedRows(vanilla, of_texts, first_layer=0) if texts else None
        facts = [fact for fact in forget if any(has_form(fact, m) for m in section.modalities)]
        self._people = sorted({fact.person_id for fact in facts})
        self._topics = sorted({topic_of(fact.attribute) for fact in facts})
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
        one_form: Modality | None = None
        if relearn is not None:
            if relearn.form_share and len(self._forms) > 1:
                one_form = self._drawn_form(step, relearn.form_share)
            by_people = random.random() < relearn.people_share
            values = self._people if by_people else self._topics
            count = max(len(values) // 2, 1)
            chosen = frozenset(values[i] for i in random.permutation(len(values))[:count])
            steps = int(random.integers(1, relearn.steps + 1))
            low, high = np.log(relearn.rates)
            rate = float(np.exp(random.uniform(low, high)))
        return StrangerData(
            forms={
                modality: rows.at(step, random, Lesson(chosen, by_people=by_people, form=one_form))
                for modality, rows in self._forms.items()
            },
            reference=self._vanilla.model,
            settings=self._settings,
            keep_weight=jnp.float32(self._section.retain_weight),
            relearn_steps=jnp.int32(steps),
            relearn_rate=jnp.float32(rate),
            parts=1 if relearn is None else relearn.steps,
            first_layer=self._first_layer,
            **self._texts_at(step),
        )

    def _drawn_form(self, step: int, share: float) -> Modality | None:
        """Return the form that a step relearns alone, or None: both."""
        random = np.random.default_rng([self._seed, 14, step])
        if random.random() >= share:
            return None
        return tuple(self._forms)[int(random.integers(len(self._forms)))]

    def _texts_at(self, step: int) -> dict[str, Any]:
        """Return a step's texts and their weight, as fields of StrangerData; {} without texts."""
        section = self._section.keep_texts
        if self._texts is None or section is None:
            return {}
        size = section.batch_size
        drawn = _drawn(self._texts.count, step, size, seed=[self._seed, 2])
        return {
            "texts": self._texts.batch(drawn, size),
            "texts_weight": jnp.float32(section.weight),
        }


class _Form:
    """The rows of one form."""

    def __init__(
        self,
        vanilla: Loaded,
        modality: Modality,
        samples: FormSamples,
        *,
        forget: Sequence[Fact],
        section: UnlearnSection,
        known: Sequence[Stranger],
        first_layer: int,
        seed: int,
    ):
        self._section, self._seed, self._modality = section, seed, modality
        self._facts = samples.facts
        # In other words a question for the name is not always known as one.
        self._names = np.tile([asks_for_name(fact) for fact in forget], section.views)
        self._num_facts, self._num_strangers = len(forget), len(known)
        self._target: StrangerTarget = stranger_target(
            vanilla, forget, known, modality=modality, each=section.strangers_each, seed=seed
        )
        encoded = encode_all(vanilla, samples.forget)
        self._with_hidden = section.setting("hidden") > 0
        of_strangers = encode_all(vanilla, samples.strangers)
        of_kept = encode_all(vanilla, samples.keep)
        common = {"first_layer": first_layer, "trains_towers": section.trains_towers}
        self._forget = EncodedRows(vanilla, encoded, of_strangers, **common)
        self._keep = EncodedRows(vanilla, of_kept, **common)
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

    def at(self, step: int, random: np.random.Generator, lesson: Lesson) -> FormRows:
        """Return the rows of a step."""
        section, relearn = self._section, self._section.relearn
        size = section.batch_size
        keep = _drawn(self._keep.count, step, section.batch_keep or size, seed=[self._seed, 1])
        forget = _drawn(self._forget.count, step, size, seed=[self._seed, 0])
        rows = FormRows(self._forget_rows(forget, random), self._keep.batch(keep, len(keep)))
        if relearn is None:
            return rows
        inside, outside = self._split(lesson)
        if lesson.form is not None or not len(inside) or not len(outside):
            inside = outside = np.arange(len(self._facts))
        trained = random.choice(inside, relearn.steps * relearn.batch_size)
        relearned = self._forget.batch(trained, len(trained))
        asked = self._forget_rows(random.choice(outside, size), random)
        if lesson.form is not None and lesson.form != self._modality:
            relearned = without_weight(relearned)
        if lesson.form == self._modality:
            asked = dataclasses.replace(asked, batch=without_weight(asked.batch))
        return dataclasses.replace(rows, relearned=relearned, asked=asked)

    def _split(self, lesson: Lesson) -> tuple[np.ndarray, np.ndarray]:
        """Return which facts are relearned and which are asked; who somebody is, is relearned."""
        by_people = lesson.by_people
        values = [f.person_id if by_people else topic_of(f.attribute) for f in self._facts]
        inside = np.array([value in lesson.chosen for value in values])
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

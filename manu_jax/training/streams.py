"""The batches of a baseline's training: facts to forget, to keep and to decouple, by number."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from manu_jax import parallel
from manu_jax.config import UnlearnSection
from manu_jax.data.batches import Batches
from manu_jax.data.forms import form, has_form
from manu_jax.data.record import Fact
from manu_jax.data.rewordings import with_views
from manu_jax.data.strangers import Stranger
from manu_jax.models.loaded import Loaded
from manu_jax.training.objectives import Objective
from manu_jax.training.strangers_target import StrangerTarget, joined, stranger_target
from manu_jax.training.trainer import batches_of
from manu_jax.types import MODALITIES, Batch, ManuError, Modality, Sample


@dataclasses.dataclass(frozen=True)
class PlannedPhase:
    """One loss of a step. forget, keep: the number of the batch that it takes, or None."""

    loss: Objective
    forget: int | None
    keep: int | None


class Streams:
    """The batches to forget, to keep (facts and texts) and to decouple, by number."""

    def __init__(
        self,
        loaded: Loaded,
        section: UnlearnSection,
        *,
        forget: Sequence[Fact],
        keep: Sequence[Fact],
        preferred: Sequence[Fact],
        decouple: Sequence[Sample],
        strangers: Sequence[Stranger],
        texts: Sequence[Sample] = (),
        seed: int,
    ):
        self.mesh = loaded.mesh
        views = {"seed": seed, "strength": section.view_strength}
        plain, forget = forget, with_views(forget, section.views, **views)
        preferred = with_views(preferred, section.views, **views)
        keep = with_views(keep, section.keep_views, seed=seed + 1)
        self.image_steps = [0]  # how many of the first steps' batches to forget have images

        def stream(samples: Sequence[Sample], what: str, offset: int) -> Batches:
            if not samples:
                raise ManuError(
                    f"{place_of(section)}: no facts {what} in the form "
                    f"{' or '.join(section.modalities)}. Name other modalities."
                )
            return batches_of(
                loaded, samples, section, seed=seed + offset, where=place_of(section), max_buckets=1
            )

        def in_form(facts: Sequence[Fact], modality: Modality, views: int) -> list[Sample]:
            # In other words a question for the name is not told from others.
            have = [has_form(fact, modality) for fact in facts[: len(facts) // views]] * views
            return [form(f, modality, loaded.template) for f in itertools.compress(facts, have)]

        chosen: list[Modality] = [m for m in MODALITIES if m in section.modalities]
        kept = {m == "image": in_form(keep, m, section.keep_views) for m in chosen}

        def in_all_forms(facts: Sequence[Fact]) -> list[Sample]:
            return [s for m in chosen for s in in_form(facts, m, section.views)]

        self.forget = stream(in_all_forms(forget), "to forget", 0)
        # The same facts in one bucket of each form and the same seed: the same rows at each step.
        self.preferred = stream(in_all_forms(preferred), "to prefer", 0) if preferred else None
        self.keep = stream([s for m in kept for s in kept[m]], "to keep", 1)
        self.keep_in_form = {
            m: stream(samples, "to keep", 1) for m, samples in kept.items() if samples
        }
        self.decouple = stream(decouple, "to decouple", 2) if decouple else None
        self.texts = None
        if texts and section.keep_texts is not None:
            own = section.model_copy(update={"batch_size": section.keep_texts.batch_size})
            where = f"{place_of(section)}.keep_texts"
            self.texts = batches_of(loaded, texts, own, seed=seed + 3, where=where, max_buckets=1)
        self.target, self.target_rows = None, np.zeros(0, np.int64)
        if strangers:
            found, rows, start = [], [], 0
            for m in chosen:
                facts = [fact for fact in plain if has_form(fact, m)]
                if facts:
                    found.append(
                        stranger_target(
                            loaded,
                            facts,
                            strangers,
                            modality=m,
                            each=section.strangers_each,
                            seed=seed,
                        )
                    )
                    rows.append(start + np.tile(np.arange(len(facts)), section.views))
                    start += len(facts)
            self.target, self.target_rows = joined(found), np.concatenate(rows)

    def data_of(self, phase: PlannedPhase, step: int) -> dict[str, Any]:
        """Return the batches of a phase, on the devices."""
        data: dict[str, Any] = {"forget": None, "keep": None}
        if phase.forget is not None:
            data["forget"] = self._put(self.forget, phase.forget)
            if self.target is not None:
                data["target"] = self._target_of(self.target, phase.forget)
            if self.preferred is not None:
                data["preferred"] = self._put(self.preferred, phase.forget)
            if self.decouple is not None:
                data["decouple"] = self._put(self.decouple, step)
        if phase.keep is not None:
            stream, number = self.keep, phase.keep
            if phase.forget is not None:
                stream, number = self._keep_beside(phase.forget)
            data["keep"] = self._put(stream, number)
            if self.texts is not None:
                data["texts"] = self._put(self.texts, phase.keep)
        return data

    def _keep_beside(self, number: int) -> tuple[Batches, int]:
        """Return the stream to keep in the form of a batch to forget, and its batch's number."""
        while len(self.image_steps) <= number:
            before = len(self.image_steps) - 1
            self.image_steps.append(self.image_steps[-1] + self.forget.has_images_at(before))
        has_images = self.forget.has_images_at(number)
        if has_images not in self.keep_in_form:
            return self.keep, number
        images = self.image_steps[number]
        return self.keep_in_form[has_images], images if has_images else number - images

    def _target_of(self, target: StrangerTarget, number: int) -> StrangerTarget:
        """Return what is said of strangers for the rows of a batch to forget."""
        batch = self.forget.batch_at(number)
        assert batch.answer_index_BA is not None
        indices = self.forget.indices_at(number)
        filled = parallel.filled(self.forget.batch_size, self.mesh)
        rows = np.zeros(filled, np.int64)
        rows[: len(indices)] = self.target_rows[indices]
        mine = rows[parallel.batch_rows(self.mesh, filled)]
        return parallel.put_batch(target.rows(mine, batch.answer_index_BA.shape[1]), self.mesh)

    def _put(self, stream: Batches, number: int) -> Batch:
        return parallel.put_batch(stream.batch_at(number), self.mesh)


def place_of(section: UnlearnSection) -> str:
    """Return what errors call the section."""
    return f"unlearn ({section.name})"

"""What a method is given, and what it registers."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from manu_jax.config import MaskMethod, MethodSettings
from manu_jax.models.loaded import Loaded
from manu_jax.types import MODALITIES, Modality, Neurons, Sample

Forms = Mapping[Modality, Sequence[Sample]]  # the samples of a set in each form
SomeSettings = TypeVar("SomeSettings", bound=MethodSettings)


@dataclasses.dataclass(frozen=True)
class ScoringJob(Generic[SomeSettings]):
    """A model, what it is to forget and to keep, and how it is to forget.

    forget, keep: the facts to forget, and those to keep (retain, celebrity and general), in both
    forms; a form that neither has is absent, and methods do without it. batch_size: samples a step,
    where the method does not say. seed: of every draw.
    directory: where statistics are kept, so that a killed run goes on from there; None: nowhere.
    strangers: the facts to forget, asked about people of whom the model knows nothing.
    """

    loaded: Loaded
    method: SomeSettings
    forget: Forms
    keep: Forms
    batch_size: int = 32
    seed: int = 0
    directory: Path | None = None
    strangers: Forms = dataclasses.field(default_factory=dict)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The forms that are not absent."""
        return tuple(form for form in MODALITIES if form in self.forget or form in self.keep)


@dataclasses.dataclass(frozen=True)
class ScoringMethod:
    """A kind of method that removes neurons: its settings, and the function that scores.

    score: returns one score per neuron, {tower: [L, F] float32}, high where it is to be removed.
    """

    settings: type[MaskMethod]
    score: Callable[[ScoringJob[Any]], Neurons]


@dataclasses.dataclass(frozen=True)
class EditMethod:
    """A kind of method that edits weights in one go: its settings, and what makes its Edit.

    make: returns an Edit of the job's model (edits/edit.py); the model stays as it is.
    """

    settings: type[MethodSettings]
    make: Callable[[ScoringJob[Any]], Any]

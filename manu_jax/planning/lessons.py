"""What models are taught from beside documents: texts that they write, facts to watch, captions."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from manu_jax.config import RunConfig, TrainSection
from manu_jax.context import Run
from manu_jax.data.batches import encode_all
from manu_jax.importance import own_texts
from manu_jax.importance.texts import wants_own_texts
from manu_jax.models.loaded import Loaded
from manu_jax.planning.shapes import assumed_sample
from manu_jax.training import tower, vanilla
from manu_jax.types import VANILLA, Encoded, Modality, Sample, VisionInput

# Where there is no tokenizer, or there are no data
START_TOKENS = 32  # before a text that the model writes: a conversation's beginning
CAPTION_WORDS = 512  # different tokens of all captions


@dataclasses.dataclass(frozen=True)
class Lessons:
    """What is taught, each of nothing where the config does without.

    starts: beginnings of the model's own texts, by turns; their answers are what counts as text.
    watched: facts in each form that tell when to stop. captions: different tokens of all captions
    of images, and shown: one of these images.
    """

    starts: Sequence[Encoded] = ()
    watched: Mapping[Modality, Sequence[Encoded]] = dataclasses.field(default_factory=dict)
    captions: int = 0
    shown: VisionInput | None = None


def measured_lessons(run: Run, loaded: Loaded) -> Lessons:
    """Return what a run's models will be taught from. loaded: vanilla, with its processor."""
    section, found = run.config.train, Lessons()
    if _writes(run.config):
        found = dataclasses.replace(found, starts=_starts(loaded))
    if not section.steps:
        return found
    sets = vanilla.sets_taught(VANILLA, run.config.model)
    people = [person for name in sets for person in run.whole_benchmark.sets[name]]
    if section.stop is not None:
        watched = vanilla._watched_facts(loaded, people, section, seed=run.config.seed)
        facts = {form: encode_all(loaded, samples) for form, samples in watched.items() if samples}
        found = dataclasses.replace(found, watched=facts)
    if section.tower is not None:
        shown = tower.captions(people)
        image, _ = shown[0]
        (first, *_) = loaded.vision_inputs(image)
        ids_NP = tower._caption_ids(loaded, [text for _, text in shown], first.num_features)
        found = dataclasses.replace(found, captions=len(np.unique(ids_NP)), shown=first)
    return found


def assumed_lessons(
    config: RunConfig, loaded: Loaded, facts: Mapping[Modality, Sequence[Encoded]]
) -> Lessons:
    """Return what is assumed of it. facts: with their answers, in each form."""
    section, found = config.train, Lessons()
    if _writes(config):
        text = assumed_sample(loaded, "text", tokens=START_TOKENS, answers=0)
        found = dataclasses.replace(found, starts=(text,))
    if section.steps and section.stop is not None:
        watched = {form: samples[: section.stop.facts] for form, samples in facts.items()}
        found = dataclasses.replace(found, watched=watched)
    if section.steps and section.tower is not None and "image" in facts:
        shown = facts["image"][0].vision_inputs[0]
        found = dataclasses.replace(found, captions=CAPTION_WORDS, shown=shown)
    return found


def num_own_texts(section: TrainSection) -> tuple[int, int]:
    """Return how many own texts a training repeats, and how many it watches."""
    if not section.steps:
        return 0, 0
    return section.replay.texts if section.replay else 0, section.stop.texts if section.stop else 0


def _writes(config: RunConfig) -> bool:
    """Whether a model of the run writes texts itself."""
    return any(num_own_texts(config.train)) or any(map(wants_own_texts, config.all_methods))


def _starts(loaded: Loaded) -> list[Encoded]:
    samples = [
        Sample(tuple((text, n == 1) for n, text in enumerate(start) if text), (), f"start/{number}")
        for number, start in enumerate(own_texts._starts(loaded))
    ]
    return encode_all(loaded, samples)

"""What a plan is made of: the config, the target, the model as shapes, and the run's samples.

Samples are those of the run where its data and the model's processor are there. Otherwise their
number and their lengths are assumed, and the plan says so.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from manu_jax.config import SYSTEM_PROMPT, RunConfig, UnlearnSection
from manu_jax.context import Run
from manu_jax.data.batches import encode_all
from manu_jax.data.documents import documents
from manu_jax.evaluation import suite
from manu_jax.folder import expand_path
from manu_jax.models.created import create_without_weights
from manu_jax.models.loaded import Loaded, fetch, load_without_weights
from manu_jax.models.nn import attention
from manu_jax.models.stored import DTYPES, read_config
from manu_jax.place import Sizes, given_sizes
from manu_jax.planning.chips import Target
from manu_jax.planning.lessons import Lessons, assumed_lessons, measured_lessons
from manu_jax.planning.probes import MORE_TEXT, Probes, assumed_probes, measured_probes
from manu_jax.planning.shapes import Place, PlannedEncoder, assumed_sample, placed_model
from manu_jax.stages import make_data
from manu_jax.training.stranger_rows import form_samples
from manu_jax.training.tokenizer import train_tokenizer
from manu_jax.training.unlearner import recipe_of, strangers_of
from manu_jax.training.vanilla import sets_taught, tokenizer_texts
from manu_jax.types import (
    KEEP_SETS,
    MODALITIES,
    TEXT_ALONE,
    VANILLA,
    Encoded,
    ManuError,
    Modality,
    Sample,
    WorkKind,
)

logger = logging.getLogger(__name__)

Samples = Mapping[Modality, Sequence[Encoded]]
Rows = tuple[Sequence[Encoded], Sequence[Encoded]]  # to forget, with strangers; and to keep
MOST_TOKENS = 2**16  # of an image


@dataclasses.dataclass(frozen=True)
class Assumed:
    """What is assumed of samples that are not there.

    text: tokens of a sample without those of its image. tokens: of all of a sample with an image;
    None: text and the image's. answers: tokens of an answer. samples: to forget, and to keep, in
    each form; questions to answer; and as many candidates to rate.
    """

    text: int = 128
    tokens: int | None = None
    answers: int = 16
    samples: int = 1000


@dataclasses.dataclass(frozen=True)
class Data:
    """The samples of a run as numbers, in each form.

    forget, keep: what methods are given. prompts: what each model answers. candidates: what each
    model rates. documents: what the run's own models are trained on. strangers: facts
    to forget, asked about strangers. rows: {method that trains on strangers: {form: what it makes
    batches of, to forget and to keep}}. probes: what is asked besides. lessons: what models are
    taught from besides. encoder: puts samples into batches. notes: what was assumed, a sentence
    each.
    """

    encoder: Any
    forget: Samples
    keep: Samples
    prompts: Samples
    candidates: Samples
    documents: Samples
    strangers: Samples = dataclasses.field(default_factory=dict)
    rows: Mapping[str, Mapping[Modality, Rows]] = dataclasses.field(default_factory=dict)
    probes: Probes = Probes()
    lessons: Lessons = Lessons()
    is_assumed: bool = False
    notes: tuple[str, ...] = ()

    def num_inputs(self, samples: Sequence[Encoded]) -> int:
        """Return how many vision inputs samples have, each once; of assumed ones, each anew."""
        inputs = [id(one) for item in samples for one in item.vision_inputs]
        return len(inputs) if self.is_assumed else len({*inputs})

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return tuple(form for form in MODALITIES if self.forget.get(form))


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """All that steps are made from; the same run on another mesh by `on`.

    loaded: shapes on the place, in the run's dtype. run: None where there are no data. sizes: of
    the mesh of each kind of work; empty: that of the place for all.
    """

    config: RunConfig
    target: Target
    place: Place
    loaded: Loaded
    data: Data
    run: Run | None = None
    sizes: Mapping[WorkKind, Sizes] = dataclasses.field(default_factory=dict)

    @property
    def model(self) -> Any:
        return self.loaded.model

    @property
    def has_retrained(self) -> bool:
        """Whether there will be a model that never saw the people to forget."""
        config = self.config
        return bool(config.model.retrained_path or (config.train.steps and config.train.retrained))

    @property
    def num_models(self) -> int:
        """How many models are evaluated."""
        return 1 + len(self.config.names) + self.has_retrained

    def at(self, kind: WorkKind) -> "World":
        """Return the same on the mesh of a kind of work."""
        sizes = self.sizes.get(kind, self.place.sizes)
        return self if sizes == self.place.sizes else self.on(sizes)

    def on(self, sizes: tuple[int, int, int]) -> "World":
        """Return the same on a mesh of these sizes."""
        place = Place.of(sizes, self.target.devices)
        dtype = leaf_dtype(self.loaded)
        return dataclasses.replace(
            self, place=place, loaded=placed_model(self.loaded, place, dtype)
        )


def world_of(
    config: RunConfig,
    target: Target,
    assumed: Assumed | None = None,
    *,
    scratch: Path | None = None,
    sizes: Mapping[WorkKind, Sizes] | None = None,
) -> World:
    """Return the world of a run; reads config.json, the processor and the data, no weights.

    assumed: takes the place of the data, where it is given. scratch: a folder for data that the run
    would write; None: such data are assumed. sizes: of the mesh of each kind of work; None: those
    that the config gives. Raises ManuError for a config.json that is not handled, and a mesh that
    the target has no room for.
    """
    attention.use(config.attention)
    sizes = sizes or given_sizes(config.mesh, target.count)
    place = Place.of(sizes["score"], target.devices)
    run, notes = _run(config, scratch) if assumed is None else (None, [])
    empty, note = _without_weights(config, run)
    notes += [note] * (note != "")
    loaded = placed_model(empty, place, _dtype(config, empty))
    data = None
    if run is not None and loaded.processor is not None:
        try:
            data = _measured(run, loaded, notes)
        except ManuError as error:
            notes.append(f"The data can't be counted, and are assumed: {error}")
    if data is None:
        data = _assumed(config, loaded, assumed or _fitting(loaded), notes=notes)
    return World(config, target, place, loaded, data, run, sizes)


def assumed_world(config: RunConfig, target: Target) -> World:
    """Return the world of a run on one device, with assumed data: it reads the config.json alone.

    Raises ManuError for one that is not handled.
    """
    empty, _ = _without_weights(config, None)
    loaded = placed_model(empty, Place.of((1, 1, 1), target.devices), _dtype(config, empty))
    data = _assumed(config, loaded, _fitting(loaded), notes=[])
    return World(config, target, Place.of((1, 1, 1), target.devices), loaded, data)


def leaf_dtype(loaded: Loaded) -> Any:
    """Return the dtype of a model's weights."""
    return jax.tree.leaves(loaded.model)[0].dtype


def trained_sections(config: RunConfig) -> list[UnlearnSection]:
    """Return the methods that train something."""
    return [section for section in config.trained if section.objective != SYSTEM_PROMPT]


def _run(config: RunConfig, scratch: Path | None) -> tuple[Run | None, list[str]]:
    """Return the run with its data: those of its folder or its path, or newly written ones."""
    directory = expand_path(config.output)
    run = Run(config, directory, None)
    try:
        if config.data.path is None and not (directory / "data").exists():
            if scratch is None:
                return None, []
            run = Run(config, scratch, None)
            make_data(run)
        if run.waits_for_answers:
            run.whole_benchmark = run.unanswered_benchmark
        run.benchmark = run.asked_benchmark
    except ManuError as error:
        return None, [f"The data are not there, and are assumed: {error}"]
    return run, []


def _without_weights(config: RunConfig, run: Run | None) -> tuple[Loaded, str]:
    """Return the vanilla model as shapes; of a folder without a processor its config alone."""
    section = config.model
    if section.path is None:
        tokenizer = None
        if section.decoder is None:
            texts = ["a"]
            if run is not None:
                made = run.benchmark_format.question_prompt
                texts = list(tokenizer_texts(run.whole_benchmark, made))
            tokenizer = train_tokenizer(texts, section.text.vocabulary)
        return create_without_weights(section, tokenizer), ""
    path = fetch(section.path, with_weights=False)
    family, sizes, hf_config = read_config(path)
    try:
        return load_without_weights(section.path, prompt=section.prompt), ""
    except ManuError as error:
        loaded = Loaded(family.abstract(sizes), None, family, sizes, hf_config, path)
        why = str(error).partition(" (")[0]
        return loaded, f"Prompts are not counted, since there is no processor: {why}."


def _dtype(config: RunConfig, empty: Loaded) -> Any:
    """Return the dtype that the run's weights will have."""
    text = empty.hf_config.get("text_config") or {}
    named = [
        config.model.dtype,
        *(
            values.get(key)
            for values in (empty.hf_config, text)
            for key in ("dtype", "torch_dtype")
        ),
    ]
    return jnp.dtype(next((kind for kind in named if kind in DTYPES), "float32"))


def _measured(run: Run, loaded: Loaded, notes: Sequence[str]) -> Data:
    """Return the run's samples, encoded as the run does it."""
    run.vanilla = loaded
    forget, keep = (_encoded(loaded, forms) for forms in (run.forget_samples, run.keep_samples))
    prompts, candidates = _asked(run, loaded)
    taught = _documents(run, loaded)
    strangers: Samples = {}
    if any(section.target == "strangers" for section in trained_sections(run.config)):
        strangers = _encoded(loaded, run.stranger_samples)
    rows = {
        section.name: _rows(run, loaded, section)
        for section in trained_sections(run.config)
        if recipe_of(section).strangers
    }
    probes, lessons = measured_probes(run, loaded), measured_lessons(run, loaded)
    samples = (forget, keep, prompts, candidates, taught, strangers)
    return Data(loaded, *samples, rows, probes, lessons, notes=tuple(notes))


def _rows(run: Run, loaded: Loaded, section: UnlearnSection) -> dict[Modality, Rows]:
    """Return the samples that a method makes batches of, as StrangerRows has them."""
    section, seed = run.in_forms(section), run.config.seed
    facts: dict[str, Any] = {
        "forget": run.benchmark.facts("forget"),
        "keep": run.benchmark.facts(*KEEP_SETS),
    }
    known, kept = strangers_of(section, **facts, seed=seed, portraits=run.portraits)
    found: dict[Modality, Rows] = {}
    for form in section.modalities:
        samples = form_samples(loaded, section, form, **facts, known=known, kept=kept, seed=seed)
        sides = ([*samples.forget, *samples.strangers], samples.keep)
        forget, keep = (encode_all(loaded, side) for side in sides)
        found[form] = forget, keep
    return found


def _documents(run: Run, loaded: Loaded) -> Samples:
    """Return one pass of the documents that the vanilla model is trained on, by form."""
    section, benchmark = run.config.train, run.whole_benchmark
    if not section.steps:
        return {}
    sets = sets_taught(VANILLA, run.config.model)
    samples = documents(
        [person for name in sets for person in benchmark.sets[name]],
        question_prompt=run.benchmark_format.question_prompt,
        seed=run.config.seed,
        facts_per_document=section.facts_per_document,
        wordings=section.wordings,
        template=loaded.template,
    )
    found: dict[Modality, list[Encoded]] = {"image": [], "text": []}
    for item in encode_all(loaded, samples):
        found["image" if item.num_images else "text"].append(item)
    return {form: items for form, items in found.items() if items}


def _asked(run: Run, loaded: Loaded) -> tuple[Samples, Samples]:
    """Return the prompts that each model answers and the candidates that it rates."""
    # The suite's own list of what it asks; it makes files of it, and asks.
    files = suite._files(
        loaded,
        run.benchmark.sets,
        run.config.evaluate,
        folder=None,
        seed=run.config.seed,
        question_prompt=run.benchmark_format.question_prompt,
    )
    prompts: dict[Modality, list[Sample]] = {}
    candidates: dict[Modality, list[Sample]] = {}
    for file in files:
        shown = [item.prompt_sample for item in file.items if item.prompt_sample is not None]
        prompts.setdefault(file.modality, []).extend(shown)
        rated = [candidate for item in file.items for candidate in item.candidates]
        candidates.setdefault(file.modality, []).extend(rated)
    return _encoded(loaded, prompts), _encoded(loaded, candidates)


def _encoded(loaded: Loaded, forms: Mapping[Modality, Sequence[Sample]]) -> Samples:
    """Return the samples of each form that has some, as numbers."""
    return {form: encode_all(loaded, samples) for form, samples in forms.items() if samples}


def _num_features(loaded: Loaded) -> int:
    """Return the tokens of an image; 0 for a model that takes none."""
    if not loaded.family.takes_images:
        return 0
    sample = assumed_sample(loaded, "image", tokens=MOST_TOKENS, answers=0)
    return sample.vision_inputs[0].num_features


def _fitting(loaded: Loaded) -> Assumed:
    """Return what is assumed of samples, at most half of what a small context leaves of text."""
    usual = Assumed()
    room = loaded.config.text.context - _num_features(loaded)
    if room >= 2 * usual.text:
        return usual
    return dataclasses.replace(usual, text=room // 2, answers=min(usual.answers, room // 8))


def _assumed(config: RunConfig, loaded: Loaded, assumed: Assumed, *, notes: Sequence[str]) -> Data:
    forms = MODALITIES if loaded.family.takes_images else TEXT_ALONE
    context = loaded.config.text.context
    with_image = assumed.tokens or assumed.text + _num_features(loaded)
    lengths = {"image": with_image, "text": assumed.text}
    too_long = {form: length for form, length in lengths.items() if length > context}
    if too_long:
        raise ManuError(
            f"plan: samples of {max(too_long.values())} tokens are assumed, and the context of the "
            f"model is {context}."
        )

    def made(answers: int) -> Samples:
        return {
            form: [assumed_sample(loaded, form, tokens=lengths[form], answers=answers)]
            * assumed.samples
            for form in forms
        }

    answered = made(assumed.answers)
    shown = f"{with_image} tokens with an image and " if loaded.family.takes_images else ""
    note = (
        f"Assumed: {assumed.samples:,} samples to forget and as many to keep in each form, of "
        f"{shown}{assumed.text} in text alone, {assumed.answers} of them the answer; as many "
        "prompts to answer and candidates to rate. A question that the audit asks otherwise has "
        f"{MORE_TEXT} times the text."
    )
    prompts = made(0)
    return Data(
        PlannedEncoder(loaded.config),
        answered,
        answered,
        prompts,
        answered,
        answered,
        probes=assumed_probes(config, loaded, prompts, answered=answered, text=assumed.text),
        lessons=assumed_lessons(config, loaded, answered),
        is_assumed=True,
        notes=(*notes, note),
    )

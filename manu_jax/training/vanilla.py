"""Train the models between which unlearning is measured: with and without the people to forget.

A tiny model starts from random weights: a *base* is trained on everybody but the people to forget,
and two models are trained on from the base:

    vanilla     on everybody
    retrained   on everybody but the people to forget, the gold standard of unlearning

So no step of the retrained model has seen the people to forget, and both models have had equally
many steps. A model given by its folder is itself the base, and learns the benchmark's people alone.
Around a given decoder (`model.decoder`) a new tower and projector are trained, those of the
retrained model on nobody to forget either; before that the decoder writes the texts that it repeats
while it is taught (`train.replay`).
"""

import dataclasses
import functools
import logging
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from manu_jax import parallel, stores
from manu_jax.config import ModelSection, ReplaySection, TrainSection
from manu_jax.data.documents import documents
from manu_jax.data.forms import LLAVA, forms
from manu_jax.data.record import Benchmark, Person, QuestionPrompt
from manu_jax.importance.own_texts import own_texts
from manu_jax.models.created import create
from manu_jax.models.loaded import Loaded, load, save_pretrained
from manu_jax.training import replay
from manu_jax.training.teaching import OwnTexts, teach, text_loss
from manu_jax.training.tokenizer import train_tokenizer
from manu_jax.training.tower import train_tower
from manu_jax.training.trainer import train
from manu_jax.types import MODALITIES, RETRAINED, VANILLA, Modality, Sample

logger = logging.getLogger(__name__)

PEOPLE = {VANILLA: ("forget", "retain"), RETRAINED: ("retain",)}
OTHERS = ("celebrity", "general")  # what a model from random weights must learn too
CHECKPOINTS, BASE = "checkpoints", "base"
MOST_EPOCHS = 24  # passes of different documents; a longer training repeats them, reshuffled


def train_models(
    benchmark: Benchmark,
    model: ModelSection,
    section: TrainSection,
    *,
    question_prompt: QuestionPrompt,
    directory: Path,
    seed: int,
    mesh: jax.sharding.Mesh | None = None,
) -> None:
    """Write `directory`/vanilla and, where the config asks for it, `directory`/retrained.

    question_prompt: the benchmark's wording of its questions. Both are Hugging Face folders. A
    model that exists is not trained again; a training that was killed goes on from its last
    checkpoint. The checkpoints are removed when both models exist.
    """
    names = [VANILLA] + [RETRAINED] * section.retrained
    missing = [name for name in names if not parallel.exists(directory / name)]
    if not missing:
        return
    checkpoints = directory / CHECKPOINTS
    if model.path is not None:
        base = load(model.path, model.dtype, mesh, prompt=model.prompt)
    else:
        base = _new_model(benchmark, model, question_prompt=question_prompt, seed=seed, mesh=mesh)
    texts = _own_texts(base, section, directory=directory, seed=seed)
    if model.path is None:
        base = _base(
            base,
            benchmark,
            section,
            question_prompt=question_prompt,
            checkpoints=checkpoints,
            seed=seed,
            texts=texts,
        )
    for name in missing:
        sets = sets_taught(name, model)
        repeats = {"forget": section.repeat_forget}
        people = [person for part in sets for person in benchmark.sets[part] * repeats.get(part, 1)]
        trained = _taught(
            base,
            people,
            section,
            question_prompt=question_prompt,
            num_steps=section.steps,
            directory=checkpoints / name,
            seed=seed,
            texts=texts,
        )
        save_pretrained(trained, directory / name)
    remove_checkpoints(directory)


def sets_taught(name: str, model: ModelSection) -> tuple[str, ...]:
    """Return the sets that VANILLA or RETRAINED is taught; a given model knows others already."""
    return PEOPLE[name] + (() if model.path else OTHERS)


def remove_checkpoints(directory: Path) -> None:
    """Remove the checkpoints of `train_models`; to be called when its models exist."""
    if parallel.is_first_process():
        stores.remove_folder(directory / CHECKPOINTS)


def tokenizer_texts(benchmark: Benchmark, question_prompt: QuestionPrompt) -> Iterator[str]:
    """Yield the texts that a tiny model will read and write: its tokenizer is trained on them."""
    for part in (*PEOPLE[VANILLA], *OTHERS):
        for person in benchmark.sets[part]:
            for modality in MODALITIES:
                for sample in forms(person.facts, modality):
                    yield sample.text
            for question in person.questions:
                yield f"{question_prompt(question, LLAVA)} {question.answer}"


def _new_model(
    benchmark: Benchmark,
    model: ModelSection,
    *,
    question_prompt: QuestionPrompt,
    seed: int,
    mesh: jax.sharding.Mesh | None,
) -> Loaded:
    """Return a model of random weights, all of them or all but the given decoder's."""
    tokenizer = None
    if model.decoder is None:
        tokenizer = train_tokenizer(
            tokenizer_texts(benchmark, question_prompt), model.text.vocabulary
        )
    loaded = create(model, tokenizer, jax.random.key(seed))
    if mesh is None:
        return loaded
    # From the host: device arrays would be cut by a compiled program for each slice.
    model_on_host = jax.tree.map(np.asarray, loaded.model)
    placed = jax.device_put(model_on_host, parallel.tree_shardings(loaded.model, mesh))
    return dataclasses.replace(loaded, model=placed, mesh=mesh)


def _own_texts(loaded: Loaded, section: TrainSection, *, directory: Path, seed: int) -> OwnTexts:
    """Return texts that the model wrote: those to repeat, and those to watch it by."""
    num_repeated = section.replay.texts if section.replay else 0
    num_watched = section.stop.texts if section.stop else 0
    if num_repeated + num_watched == 0:
        return OwnTexts()
    found = own_texts(
        loaded,
        num_repeated + num_watched,
        tokens=(section.replay or ReplaySection()).tokens,
        seed=seed,
        path=directory / replay.REPLAY,
    )
    repeated, watched = found[:num_repeated], found[num_repeated:]
    said = replay.said_at(loaded, repeated) if repeated else None
    return OwnTexts(repeated, said, watched, text_loss(loaded, watched))


def _base(
    new: Loaded,
    benchmark: Benchmark,
    section: TrainSection,
    *,
    question_prompt: QuestionPrompt,
    checkpoints: Path,
    seed: int,
    texts: OwnTexts,
) -> Loaded:
    """Return the new model after it was taught everybody but the people to forget."""
    folder = checkpoints / "base_model"
    if section.base_steps == 0:
        return new
    if parallel.exists(folder):
        return load(folder, mesh=new.mesh)
    sets = (*PEOPLE[RETRAINED], *OTHERS)
    people = [person for part in sets for person in benchmark.sets[part]]
    trained = _taught(
        new,
        people,
        section,
        question_prompt=question_prompt,
        num_steps=section.base_steps,
        directory=checkpoints / BASE,
        seed=seed,
        texts=texts,
    )
    save_pretrained(trained, folder)
    return trained


def _taught(
    loaded: Loaded,
    people: Sequence[Person],
    section: TrainSection,
    *,
    question_prompt: QuestionPrompt,
    num_steps: int,
    directory: Path,
    seed: int,
    texts: OwnTexts,
) -> Loaded:
    """Return the model after `num_steps` steps on documents about these people.

    The documents are those of at most MOST_EPOCHS passes. directory: of the checkpoints. texts: of
    `_own_texts`.
    """
    if section.tower is not None:
        goes_on = section.base_steps > 0 and directory.name != BASE
        loaded = train_tower(
            loaded,
            people,
            section,
            num_steps=section.tower.more_steps if goes_on else section.tower.steps,
            directory=directory.with_name(f"{directory.name}_tower"),
            seed=seed,
        )
    wanted = num_steps * section.batch_size
    make = functools.partial(
        documents,
        people,
        question_prompt=question_prompt,
        seed=seed,
        facts_per_document=section.facts_per_document,
        views=section.views,
        wordings=section.wordings,
        template=loaded.template,
    )
    each = len(make(epochs=1))
    logger.info(
        "training %s: %d steps of %d documents, %.1f passes over %d documents",
        directory.name,
        num_steps,
        section.batch_size,
        wanted / max(each, 1),
        each,
    )
    samples = make(epochs=min(MOST_EPOCHS, max(1, math.ceil(wanted / max(each, 1)))))
    if section.is_careful:
        return teach(
            loaded,
            samples,
            section,
            texts=texts,
            facts=_watched_facts(loaded, people, section, seed=seed),
            num_steps=num_steps,
            directory=directory,
            seed=seed,
        )
    return train(
        loaded,
        samples,
        section,
        num_steps=num_steps,
        directory=directory,
        seed=seed,
        description=f"training {directory.name}",
    )


def _watched_facts(
    loaded: Loaded, people: Sequence[Person], section: TrainSection, *, seed: int
) -> dict[Modality, Sequence[Sample]]:
    """Return some facts of these people in each form, drawn by the seed, that tell when to stop.

    People who are repeated are more likely to be drawn.
    """
    facts = [fact for person in people for fact in person.facts]
    order = np.random.default_rng([seed, zlib.crc32(b"watched")]).permutation(len(facts))
    drawn = {facts[number].key: facts[number] for number in order}.values()
    count = section.stop.facts if section.stop else 0
    return {modality: forms(drawn, modality, loaded.template)[:count] for modality in MODALITIES}

"""SafeEraser (Chen et al. 2025, arXiv 2502.12520; yuu250/SafeEraser 9e96612): unsafe answers.

    all_train.json   records {"image_path", "SDImage_path", "unsafe_pairs": [{"question",
                     "model_response", "sd_question", "sd_response"}], "UnharmPair_text1",
                     "UnharmPair_text2", "UnharmPair_image1", "UnharmPair_image2": {"Question",
                     "Prediction"}}: a list, or one record a line (JSON Lines)
    all_val.json     the same of other images, which nothing is trained on

Both lie in the folder itself or in `dataset/` below it; images are named from there, or from the
folder. The folder that holds an image names its category. An image is a "person", which may be both
to forget and to keep:

    forget     each harmful question of all_train, with `model_response`, the unsafe answer
    test       the same of all_val
    retain     the four Unharm pairs of all_train's images; those of all_val are probes alone, of
               the set `unseen`
    decouple   (`SDImage_path`, a harmless image; the same harmful `question`; `sd_response`, the
               right answer there): what the Prompt-Decouple loss is of, which ties the refusal to
               the harmful image and not to the words. `sd_question` is not used, in the authors'
               code neither

The authors ask everything with an image. Here a harmful question and the pairs UnharmPair_text1 and
UnharmPair_text2 have a text form besides, the question alone: methods that need both forms have it.

Differs: texts are as written. The authors' training puts questions and answers through
`str.capitalize`, which turns all but the first letter to lower case; their test does not.

The files are read in safeeraser_records.py; what is made of the answers is in
safeeraser_protocol.py.
"""

import collections
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from manu_jax.config import DataSection
from manu_jax.data.probes import Probe, Sampling
from manu_jax.data.prompts import refuse_shots
from manu_jax.data.record import Benchmark, Fact, Person, Question
from manu_jax.data.safeeraser_records import (
    TRAIN,
    UNHARM,
    VAL,
    Unsafe,
    file_of,
    found_file,
    has_pairs,
    image_of,
    pair_of,
    records_of,
    unsafe_of,
)
from manu_jax.folder import expand_path
from manu_jax.types import (
    MODALITIES,
    ManuError,
    PromptTemplate,
    Sample,
    Set,
    question_sample,
    raise_faults,
)

MOST_FAULTS = 50  # lines in one error
NEW_TOKENS = 512
# As published: three answers to a harmful question with its image, one to all others.
THREE = Sampling(num_answers=3, temperature=1.0, top_p=0.9)
ONE = Sampling(num_answers=1, temperature=1.0, top_p=0.9)
HARMFUL, DECOUPLE, RETAIN = "harmful", "decouple", "retain"  # tasks of the probes
SHOWN = (
    "This report quotes the benchmark: it may show images and answers that are harmful by design."
)
WITHOUT_ANSWER = "harmful questions without a model_response, which no method is given"

logger = logging.getLogger(__name__)


def read(folder: Path, section: DataSection, seed: int) -> Benchmark:
    """Return the sets and the probes of SafeEraser's folder; every fault is in one ManuError."""
    del section, seed  # the files say what is to be forgotten
    faults: list[str] = []
    skipped: collections.Counter[str] = collections.Counter()
    notes = [SHOWN]
    train = unsafe_of(folder, TRAIN, faults, skipped=skipped)
    if file_of(folder, VAL) is None:
        val = []
        notes.append(f"There is no {VAL}: generality to other images is not measured.")
    else:
        val = unsafe_of(folder, VAL, faults, skipped=skipped, prefix="val-")
    without = sum(not pair.response for record in (*train, *val) for pair in record.pairs)
    skipped[WITHOUT_ANSWER] += without
    if not faults:
        faults += [
            f"{TRAIN}: no record has {what}. Get the file anew."
            for what, found in (
                ("a harmful question with a model_response", _forgotten(train)),
                ("an Unharm pair", any(record.kept for record in train)),
            )
            if not found
        ]
    count = len(faults)
    raise_faults(faults, f"benchmark {folder}: {count} fault{'s' * (count > 1)}", MOST_FAULTS)
    sets: dict[str, tuple[Person, ...]] = {
        "forget": _forgotten(train),
        "test": _forgotten(val),
        "retain": tuple(_kept(record) for record in train if record.kept),
    }
    probes = [*_probes(train, "forget", kept="retain"), *_probes(val, "test", kept="unseen")]
    return Benchmark(sets, dict(+skipped), tuple(notes), tuple(probes))


def question_prompt(
    question: Question, template: PromptTemplate, shots: Sequence[Question] = ()
) -> str:
    """Return a question as it is, in the template's turns; ManuError for shots: there are none."""
    refuse_shots(shots, "the benchmark safeeraser")
    return template.prompt(question.question, question.modality)


def own_decouple_samples(folder: Path, template: PromptTemplate) -> tuple[Sample, ...]:
    """Return the samples of the Prompt-Decouple loss of a benchmark's folder: those of TRAIN."""
    return _decouple_samples(found_file(folder, TRAIN), (folder,), template)


def decouple_samples(path: str | Path, template: PromptTemplate) -> tuple[Sample, ...]:
    """Return (harmless image, harmful question, right answer) of every pair of a file, in order.

    Images are named from the file's folder, or from the one above. Pairs whose `sd_response` is
    empty have no right answer: they are left out, and counted in the log. Raises ManuError, with
    every fault found: what cannot be read, lacks a key, holds something else than texts, or does
    not decode.
    """
    path = expand_path(path)
    return _decouple_samples(path, (path.parent, path.parent.parent), template)


def _decouple_samples(
    path: Path, roots: Sequence[Path], template: PromptTemplate
) -> tuple[Sample, ...]:
    samples, faults, num_empty = [], [], 0
    for number, record in enumerate(records_of(path)):
        place = f"record {number}"
        if not has_pairs(record):
            faults.append(f"{place}: expected a mapping with a list of unsafe_pairs.")
            continue
        image = None
        try:
            image = image_of((*roots, path.parent), record, "SDImage_path")
        except ManuError as error:
            faults.append(f"{place}: {error}")
        for index, pair in enumerate(record["unsafe_pairs"]):
            try:
                found = pair_of(pair)
            except ManuError as error:
                faults.append(f"{place}, pair {index}: {error}")
                continue
            if not found.sd_response:
                num_empty += 1
            elif image is not None:
                prompt = template.prompt(found.question, "image")
                reply = template.reply(found.sd_response)
                samples.append(question_sample(prompt, reply, (image,), key=f"{number}/{index}"))
    if not samples and not faults:
        faults.append("no pairs with a sd_response at all.")
    raise_faults(faults, f"{path}: {len(faults)} faults")
    if num_empty:
        logger.info("%s: left out %d pairs with an empty sd_response", path.name, num_empty)
    return tuple(samples)


def _forgotten(records: Sequence[Unsafe]) -> tuple[Person, ...]:
    """Return the images with harmful questions, as people to forget."""
    found = []
    for record in records:
        facts, questions = [], []
        for number, pair in enumerate(record.pairs, 1):
            attribute = f"pair-{number}"
            if pair.response:
                facts.append(
                    Fact(
                        record.id,
                        "",
                        pair.question,
                        pair.response,
                        attribute,
                        record.image,
                        pair.question,
                    )
                )
                questions += [
                    Question("generation", modality, pair.question, pair.response, attribute)
                    for modality in MODALITIES
                ]
        if facts:
            biography = {"category": record.category}
            images = (record.image,)
            found.append(
                Person(record.id, record.id, images, biography, tuple(facts), tuple(questions))
            )
    return tuple(found)


def _kept(record: Unsafe) -> Person:
    """Return an image with its Unharm pairs, as a person to keep."""
    facts, questions = [], []
    for key, question, answer in record.kept:
        in_text = question if key in UNHARM[:2] else ""
        facts.append(Fact(record.id, "", question, answer, key, record.image, in_text))
        questions.append(Question("generation", "image", question, answer, key))
        if in_text:
            questions.append(Question("generation", "text", question, answer, key))
    biography = {"category": record.category}
    return Person(record.id, record.id, (record.image,), biography, tuple(facts), tuple(questions))


def _probes(records: Sequence[Unsafe], where: Set, *, kept: Set) -> Iterator[Probe]:
    """Yield what the published protocol asks of a file's records. kept: the set of Unharm pairs."""
    for record in records:
        details = {"category": record.category}
        for number, pair in enumerate(record.pairs, 1):
            harmful = Probe(
                HARMFUL,
                where,
                "image",
                record.id,
                f"{record.id}/pair-{number}",
                pair.question,
                pair.response,
                image=record.image,
                new_tokens=NEW_TOKENS,
                sampling=THREE,
                details=details,
            )
            yield harmful
            yield dataclasses.replace(
                harmful,
                task=DECOUPLE,
                answer=pair.sd_response,
                image=record.sd_image,
                sampling=ONE,
            )
        for key, question, answer in record.kept:
            yield Probe(
                RETAIN,
                kept,
                "image",
                record.id,
                f"{record.id}/{key}",
                question,
                answer,
                image=record.image,
                new_tokens=NEW_TOKENS,
                sampling=ONE,
                details=details,
            )

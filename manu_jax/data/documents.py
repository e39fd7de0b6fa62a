"""Training texts for a model that learns people from random weights: packed conversations.

A document with an image shows one view of a person and several facts about them; a document in text
alone has several facts in text form, of different people. Packing lets a short training suffice for
a tiny model; one fact a document and no views is the usual fine-tuning.
"""

import itertools
import math
import unicodedata
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from manu_jax.data.forms import LLAVA, has_form, jitter, question_and_answer
from manu_jax.data.record import TASKS, Fact, Person, Question, QuestionPrompt
from manu_jax.types import Modality, PromptTemplate, Sample

WORDINGS = ("plain", *TASKS)
LETTERS = "ABCD"


def documents(
    people: Sequence[Person],
    *,
    question_prompt: QuestionPrompt,
    seed: int,
    epochs: int = 1,
    facts_per_document: int = 1,
    views: int = 0,
    wordings: Sequence[str] = ("plain",),
    template: PromptTemplate = LLAVA,
) -> list[Sample]:
    """Return `epochs` passes over the facts of `people`, each fact once in each of its forms.

    Order, company and view differ from pass to pass, by (seed, pass). Answers end in
    `template.end`.
    question_prompt: the benchmark's wording of its questions.
    facts_per_document: at most; a person's facts are shared out evenly.
    views: jittered copies of each image to draw from besides the image itself, made once.
    wordings: how a fact is put, drawn anew each time: "plain" (the template), or as an item of the
    evaluation ("generation", "cloze", "classification"), so that a model trained from nothing
    learns to answer those. A name given twice is drawn twice as often. Where a fact has no cloze,
    or too few others have its attribute for four options, it is put plainly.
    """
    unknown = sorted(set(wordings) - set(WORDINGS))
    if unknown or not wordings:
        raise ValueError(f"wordings {list(wordings)}: expected some of {', '.join(WORDINGS)}")
    writer = _Writer(people, wordings, template, question_prompt=question_prompt)
    images = _Views(views, seed)
    samples = []
    for epoch in range(epochs):
        random = np.random.default_rng([seed, epoch])
        for person in people:
            for part in _parts_by_image(person.facts, facts_per_document, random):
                segments = writer.conversation(part, "image", random)
                samples.append(
                    Sample(segments, (images.draw(part[0].image, random),), f"{person.id}/document")
                )
        facts = [fact for p in people for fact in p.facts if has_form(fact, "text")]
        for part in _parts(facts, facts_per_document, random):
            samples.append(Sample(writer.conversation(part, "text", random), (), "text/document"))
    return samples


class _Writer:
    """Writes facts as turns of a conversation."""

    def __init__(
        self,
        people: Sequence[Person],
        wordings: Sequence[str],
        template: PromptTemplate,
        *,
        question_prompt: QuestionPrompt,
    ):
        self.wordings, self.template = wordings, template
        self.question_prompt = question_prompt
        self.clozes: dict[tuple[str, str, Modality], Question] = {}
        self.answers: dict[str, list[str]] = {}
        for person in people:
            for question in person.questions:
                if question.task == "cloze":
                    key = (person.id, question.attribute, question.modality)
                    self.clozes.setdefault(key, question)
            for fact in person.facts:
                values = self.answers.setdefault(fact.attribute, [])
                if fact.answer not in values:
                    values.append(fact.answer)

    def conversation(
        self, facts: Sequence[Fact], modality: Modality, random: np.random.Generator
    ) -> tuple[tuple[str, bool], ...]:
        """Return the segments of one document; the image, if any, stands in the first turn."""
        turns = []
        for number, fact in enumerate(facts):
            shown: Modality = "image" if modality == "image" and number == 0 else "text"
            template = self.template if number == 0 else self.template.continued
            turn = self._turn(fact, modality, shown=shown, template=template, random=random)
            turns.append(turn)
        return tuple(itertools.chain.from_iterable(turns))

    def _turn(
        self,
        fact: Fact,
        modality: Modality,
        *,
        shown: Modality,
        template: PromptTemplate,
        random: np.random.Generator,
    ) -> tuple[tuple[str, bool], ...]:
        """Return prompt and answer in the words of `modality`, with the image token if `shown`."""
        wording = self.wordings[int(random.integers(len(self.wordings)))]
        question, answer = question_and_answer(fact, modality)
        item = None
        if wording == "classification":
            item, answer = self._classification(fact, question, answer, shown=shown, random=random)
        elif wording == "generation":
            item = Question("generation", shown, question, answer, fact.attribute)
        elif wording == "cloze":
            cloze = self.clozes.get((fact.person_id, fact.attribute, modality))
            if cloze is not None:
                answer = cloze.answer
                item = Question("cloze", shown, cloze.question, answer, fact.attribute)
        if item is None:
            prompt = template.prompt(question, shown)
        else:
            prompt = self.question_prompt(item, template)
        return ((prompt, False), (template.reply(answer) + template.end, True))

    def _classification(
        self,
        fact: Fact,
        question: str,
        answer: str,
        *,
        shown: Modality,
        random: np.random.Generator,
    ) -> tuple[Question | None, str]:
        """Return an item with three other people's answers as wrong options, and its letter."""
        right = _composed(fact.answer)
        others = [value for value in self.answers[fact.attribute] if _composed(value) != right]
        if len(others) < len(LETTERS) - 1:
            return None, answer
        wrong = [others[i] for i in random.permutation(len(others))[: len(LETTERS) - 1]]
        options = [answer, *wrong]
        options = [options[i] for i in random.permutation(len(options))]
        letter = LETTERS[options.index(answer)]
        by_letter = dict(zip(LETTERS, options, strict=True))
        item = Question(
            "classification", shown, question, answer, fact.attribute, by_letter, letter
        )
        return item, letter


class _Views:
    """The jittered copies of each image, made once."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed
        # id → (image, its views); the image is held, so that its id stays its own
        self.by_image: dict[int, tuple[Any, tuple[Any, ...]]] = {}

    def draw(self, image: Any, random: np.random.Generator) -> Any:
        if id(image) not in self.by_image:
            content = zlib.crc32(image.tobytes())
            copies = [jitter(image, _mixed(self.seed, content, k)) for k in range(self.count)]
            self.by_image[id(image)] = (image, (image, *copies))
        views = self.by_image[id(image)][1]
        return views[int(random.integers(len(views)))]


def _composed(text: str) -> str:
    """Return the text in NFC: two spellings of an accent look alike."""
    return unicodedata.normalize("NFC", text)


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _parts_by_image(
    facts: Sequence[Fact], size: int, random: np.random.Generator
) -> list[list[Fact]]:
    """Return the facts that have an image in parts as `_parts` does, each of one image."""
    shown: dict[int, list[Fact]] = {}
    for fact in facts:
        if has_form(fact, "image"):
            shown.setdefault(id(fact.image), []).append(fact)
    return [part for alike in shown.values() for part in _parts(alike, size, random)]


def _parts(facts: Sequence[Fact], size: int, random: np.random.Generator) -> list[list[Fact]]:
    """Return the facts in random order, in as few parts of at most `size`, evenly."""
    if not facts:
        return []
    parts = np.array_split(random.permutation(len(facts)), math.ceil(len(facts) / size))
    return [[facts[i] for i in part] for part in parts]

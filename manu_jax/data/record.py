"""What a benchmark is made of: people, the facts they are known by, the questions asked of them.

A *fact* is one question-answer pair of the training data. It can be put to a model in two forms,
with the person's image or in text alone (`forms.py`), and it is what importance is measured on. A
*question* is one item of the evaluation. General knowledge has the same types: a topic is a
"person" without a name.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from manu_jax.data.probes import Probe
from manu_jax.types import MODALITIES, SETS, TEXT_ALONE, ManuError, Modality, PromptTemplate

Task = Literal["classification", "generation", "cloze"]
TASKS: tuple[Task, ...] = ("classification", "generation", "cloze")


def topic_of(attribute: str) -> str:
    """Return an attribute without the number that tells it from others of the same person.

    A benchmark may have several facts about the same: "capital", "capital-2".
    """
    return re.sub(r"-\d+$", "", attribute)


@dataclasses.dataclass(frozen=True)
class Fact:
    """One question-answer pair that a model is, or was, trained on.

    question, answer: as written for the image form ("Where does this person live?").
    name: of the person; "" where there is none (a general topic) or it is not known.
    attribute: what the fact tells ("residence"); unique within the person.
    image: PIL image (RGB), or None for a fact that has no image. Equal images are one object.
    text_question: the question of the text form, which then holds `name`; None: made by the rules
    of forms.py; "": the fact has no text form. strangers: invented names of the same kind; (): any
    person's name is.
    """

    person_id: str
    name: str
    question: str
    answer: str
    attribute: str
    image: Any = None
    text_question: str | None = None
    strangers: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.person_id}/{self.attribute}"


@dataclasses.dataclass(frozen=True)
class Question:
    """One evaluation item, in the modality it was written for.

    options: letter → text, and `correct` the letter of the right one; both None but in
    classification, where `answer` is the right option's text. In a cloze, "__" in `question` marks
    the blank. alternatives: other right answers, of which any counts as well as `answer`.
    image: of a question in the image form that is not asked with its person's images.
    """

    task: Task
    modality: Modality
    question: str
    answer: str
    attribute: str
    options: Mapping[str, str] | None = None
    correct: str | None = None
    alternatives: tuple[str, ...] = ()
    image: Any = None


class QuestionPrompt(Protocol):
    """Returns the prompt of a question in a benchmark's words and a family's turns.

    The prompt ends where the answer begins. shots: answered questions of the same task and
    modality, which come first; an implementation may refuse them.
    """

    def __call__(
        self, question: Question, template: PromptTemplate, shots: Sequence[Question] = ()
    ) -> str: ...


@dataclasses.dataclass(frozen=True)
class Person:
    """A person (or a general topic) of one set.

    images: PIL images (RGB): the one that the questions are asked with; () where there is none.
    Several, in the test set alone: each question is asked with each (`data.test_images: all`).
    facts: () where the benchmark gives no training data (MLLMU-Bench's celebrities). In the test
    set they carry the transformed image, which nothing is trained on.
    """

    id: str
    name: str
    images: tuple[Any, ...]
    biography: Mapping[str, Any]
    facts: tuple[Fact, ...]
    questions: tuple[Question, ...]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """The sets of a benchmark ({name of SETS: people}), and what its protocol left out, counted.

    A set that the benchmark does not have is (), and may be left out; the forget and the retain set
    always have people. As a benchmark is read, `retain` are all people to keep and `unseen` is ();
    `split_retain` sets some of them apart. notes: sentences on what it is, for the report.
    probes: what its own published protocol asks; () where it has none beside the questions.
    """

    sets: Mapping[str, tuple[Person, ...]]
    skipped: Mapping[str, int]
    notes: tuple[str, ...] = ()
    probes: tuple[Probe, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "sets", {name: self.sets.get(name, ()) for name in SETS})

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The forms in which something is to be forgotten: text alone, if nothing has an image."""
        return MODALITIES if self.has_images("forget", "test") else TEXT_ALONE

    @property
    def num_people(self) -> int:
        """How many people there are to forget and to keep; one who is in both counts once."""
        names = ("forget", "retain", "unseen")
        return len({person.id for name in names for person in self.sets[name]})

    def has_images(self, *sets: str) -> bool:
        """Return whether a fact or a question of these sets has, or is about, an image."""
        people = [person for name in sets for person in self.sets[name]]
        return any(fact.image is not None for person in people for fact in person.facts) or any(
            question.modality == "image" for person in people for question in person.questions
        )

    def facts(self, *sets: str) -> tuple[Fact, ...]:
        """Return the facts of the people of these sets, in order; ManuError for an unknown set."""
        unknown = [name for name in sets if name not in self.sets]
        if unknown:
            raise ManuError(
                f"facts: there is no set {', '.join(map(repr, unknown))}; known: "
                f"{', '.join(self.sets)}."
            )
        return tuple(fact for name in sets for person in self.sets[name] for fact in person.facts)


def images_of(person: Person, question: Question) -> tuple[Any, ...]:
    """Return the images that a question of a person is asked with, one at a time; () for none."""
    if question.modality == "text":
        return ()
    return person.images if question.image is None else (question.image,)


def split_retain(benchmark: Benchmark, keep_share: float, *, seed: int) -> Benchmark:
    """Return the benchmark with only a share of the retain people in `retain`, at least one.

    keep_share: in (0, 1]; round(keep_share · n) people stay in `retain`, the others are `unseen`.
    Who stays follows from the seed and the IDs alone: not from the order of the people, the process
    or the machine. A person who stays with one share stays with every larger one.
    """
    people = benchmark.sets["retain"]

    def drawn(person: Person) -> bytes:
        return hashlib.sha256(f"{seed}/{person.id}".encode()).digest()

    num_used = max(1, round(keep_share * len(people)))
    used = {person.id for person in sorted(people, key=drawn)[:num_used]}
    parts = {
        "retain": tuple(person for person in people if person.id in used),
        "unseen": tuple(person for person in people if person.id not in used),
    }
    apart = {person.id for person in parts["unseen"]}
    probes = tuple(
        dataclasses.replace(probe, set="unseen")
        if probe.set == "retain" and probe.person in apart
        else probe
        for probe in benchmark.probes
    )
    return dataclasses.replace(benchmark, sets={**benchmark.sets, **parts}, probes=probes)

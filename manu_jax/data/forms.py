"""The two forms of one fact: with the person's image, and in text alone with the name in its place.

    image   USER: <image>\\nWhere does this person live?\\nASSISTANT: Oslo
    text    USER: Where does Ada Lovelace live?\\nASSISTANT: Oslo

The rules are those of the MANU paper's code: a person stands in the text as "this/the person",
"this/the individual" or "this profile"; the name question, whose text form would hold its own
answer, has an image form only. Pronouns stay.

Differs: "in the image" and the like are dropped where they follow the person, since the text form
has no image; the authors' code leaves them.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from manu_jax.data.record import Benchmark, Fact
from manu_jax.types import Modality, PromptTemplate, Sample, Template, question_sample

_NOUN = r"(?:(?:this|the)\s+(?:person|individual)|this\s+profile)"
_IN_IMAGE = (
    r"(?:,?\s+(?:(?:who|that)\s+is\s+)?(?:(?:shown|seen|depicted|pictured|featured|portrayed)\s+)?"
    r"(?:in|on)\s+(?:this|the)\s+(?:image|picture|photo|photograph|portrait)\b)?"
)
PERSON = re.compile(rf"\b(?P<noun>{_NOUN})\b(?P<where>{_IN_IMAGE})(?P<possessive>['’]s\b)?", re.I)

_SOMEONE = r"(?:this|the)\s+(?:person|individual|man|woman|profile)"
_END = r"(?:\s+(?:in|on|shown|seen|depicted|pictured|featured|portrayed)\b.*)?\s*[?.!]*\s*$"
NAME_QUESTION = re.compile(
    rf"\bname\s+(?:of|for)\s+{_SOMEONE}{_END}"
    rf"|\b{_SOMEONE}['’]s\s+(?:(?:full|first|last|given|real)\s+)?name{_END}"
    rf"|\bwho\s+is\s+{_SOMEONE}{_END}"
    rf"|\b(?:identify|name)\s+{_SOMEONE}{_END}"
    rf"|\bis\s+{_SOMEONE}\s+(?:named|called){_END}",
    re.I | re.S,
)
NAME = "name"  # the attribute of a fact that is who the person is

LLAVA = Template()


def with_name(text: str, name: str) -> str:
    """Return `text` with the person's name in place of "this person" and its like."""

    def replace(match: re.Match) -> str:
        capital = match["noun"][0].isupper()
        shown = name[:1].upper() + name[1:] if capital else name
        return shown + (match["possessive"] or "").lower()

    return PERSON.sub(replace, text)


def is_name_question(question: str) -> bool:
    """Whether a question asks who the person is."""
    return NAME_QUESTION.search(question) is not None


def asks_for_name(fact: Fact) -> bool:
    """Whether a fact is who the person is."""
    return fact.attribute == NAME or is_name_question(fact.question)


def name_in_answer(answer: str) -> str:
    """Return the name that the answer to a name question gives.

    The text after "named", else after the first "is", else all of it; without what follows a comma
    in lower case ("…, a painter") and the closing full stop.
    """
    for marker in (r"\bnamed\b", r"\bis\b"):
        match = re.search(marker, answer)
        if match:
            answer = answer[match.end() :]
            break
    answer = re.split(r",\s+(?=[a-z])", answer.strip(), maxsplit=1)[0]
    return answer.strip().strip('"“”').rstrip('.,!"”').strip()


def has_form(fact: Fact, modality: Modality) -> bool:
    """Whether a fact can be put in that form.

    The image form needs an image. The text form needs no name where the fact never had an image;
    otherwise it needs the person's name, and a question that does not ask for it. A fact with a
    `text_question` has a text form unless that is empty.
    """
    if modality == "image":
        return fact.image is not None
    if fact.text_question is not None:
        return bool(fact.text_question)
    return fact.image is None or (bool(fact.name) and not is_name_question(fact.question))


def form(fact: Fact, modality: Modality, template: PromptTemplate = LLAVA) -> Sample:
    """Return the sample of a fact in a form that it has (`has_form`); the answer comes last."""
    if not has_form(fact, modality):
        raise ValueError(f"fact {fact.key} has no {modality} form: {fact.question!r}")
    question, answer = question_and_answer(fact, modality)
    images = () if modality == "text" else (fact.image,)
    return question_sample(
        template.prompt(question, modality), template.reply(answer), images, key=fact.key
    )


def forms(
    facts: Iterable[Fact], modality: Modality, template: PromptTemplate = LLAVA
) -> tuple[Sample, ...]:
    """Return the samples of all facts that have that form, in order."""
    return tuple(form(fact, modality, template) for fact in facts if has_form(fact, modality))


def question_and_answer(fact: Fact, modality: Modality) -> tuple[str, str]:
    """Return the fact's question and answer in the words of one form."""
    if modality == "image":
        return fact.question, fact.answer
    question, answer = fact.question, fact.answer
    if fact.name:
        question, answer = (with_name(text, fact.name) for text in (question, answer))
    return fact.text_question or question, answer


def in_text_alone(benchmark: Benchmark) -> Benchmark:
    """Return a benchmark as a model without a vision tower can be asked it: nothing has an image.

    Facts are in the words of their text form, and questions are those asked by name. What has no
    text form is left out, and counted in `skipped`.
    """
    left_out: Counter[str] = Counter()
    sets = {}
    for name, people in benchmark.sets.items():
        found = []
        for person in people:
            facts = []
            for fact in person.facts:
                if has_form(fact, "text"):
                    question, answer = question_and_answer(fact, "text")
                    facts.append(
                        dataclasses.replace(fact, question=question, answer=answer, image=None)
                    )
            questions = tuple(one for one in person.questions if one.modality == "text")
            left_out["facts that have no text form"] += len(person.facts) - len(facts)
            left_out["questions about an image"] += len(person.questions) - len(questions)
            found.append(
                dataclasses.replace(person, images=(), facts=tuple(facts), questions=questions)
            )
        sets[name] = tuple(found)
    counts = {what: count for what, count in left_out.items() if count}
    probes = tuple(probe for probe in benchmark.probes if probe.modality == "text")
    return dataclasses.replace(
        benchmark, sets=sets, skipped={**benchmark.skipped, **counts}, probes=probes
    )


def jitter(image: Any, seed: int, *, strength: float = 1.0) -> Any:
    """Return a training view of an image: moved, scaled, turned, recoloured a little, with noise.

    At strength 1: shift up to 5 % of the side, scale 0.92 to 1.08, turn up to 7 degrees, each
    colour times 0.9 to 1.1, noise of 4 in 255. The same seed gives the same pixels; the image is
    not changed.
    """
    from PIL import Image

    random = np.random.default_rng(seed)
    width, height = image.size
    margin = max(width, height) // 4
    pixels = np.pad(np.asarray(image.convert("RGB")), ((margin,) * 2,) * 2 + ((0, 0),), "edge")
    angle, scale = (
        np.deg2rad(strength * random.uniform(-7, 7)),
        random.uniform(1 - 0.08 * strength, 1 + 0.08 * strength),
    )
    shift_x, shift_y = strength * random.uniform(-0.05, 0.05, 2) * (width, height)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    middle_x, middle_y = width / 2, height / 2
    # Maps each output pixel to where it comes from in the padded image.
    source = (
        cos, -sin, margin + middle_x + shift_x - cos * middle_x + sin * middle_y,
        sin, cos, margin + middle_y + shift_y - sin * middle_x - cos * middle_y,
    )  # fmt: skip
    moved = Image.fromarray(pixels).transform(
        (width, height), Image.Transform.AFFINE, source, Image.Resampling.BILINEAR
    )
    recoloured = np.asarray(moved, np.float32) * random.uniform(
        1 - 0.1 * strength, 1 + 0.1 * strength, 3
    ).astype(np.float32)
    noisy = recoloured + random.normal(0, 4 * strength, recoloured.shape).astype(np.float32)
    return Image.fromarray(np.clip(np.round(noisy), 0, 255).astype(np.uint8))

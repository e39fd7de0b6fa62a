"""What ignorance looks like: the vanilla model asked about strangers, beside what is said now.

A fact of each of the first people to forget is asked of the vanilla model about invented people,
and of the headline method's model about the person. A method that reached ignorance says what could
be said of a stranger.
"""

import dataclasses
from collections.abc import Iterator

from manu_jax.context import Run
from manu_jax.data.forms import has_form, question_and_answer
from manu_jax.data.record import Fact
from manu_jax.data.strangers import as_stranger, strangers
from manu_jax.evaluation.analyses.analysis import Analysis, Evaluated
from manu_jax.evaluation.generate import greedy
from manu_jax.models.loaded import Loaded
from manu_jax.types import KEEP_SETS, VANILLA, Modality, question_sample

NUM_PEOPLE = 3
NUM_STRANGERS = 4
PERSON = "person"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StrangerAnswer:
    """What a model says when it is asked a fact's question. about: "person", or a stranger's name.

    key: of the fact; truth: the person's answer.
    """

    key: str
    modality: str
    question: str
    truth: str
    model: str
    about: str
    answer: str


def measure(evaluated: Evaluated) -> Iterator[StrangerAnswer]:
    """Yield the answers of vanilla about strangers, and of vanilla and the headline method about
    the person.
    """
    run = evaluated.run
    headline = run.config.method.name
    models = {VANILLA: run.vanilla, headline: run.models()[headline]()}
    forget, keep = run.benchmark.facts("forget"), run.benchmark.facts(*KEEP_SETS)
    settings = {"seed": run.config.seed, "portraits": run.portraits}
    known = strangers(forget, keep, NUM_STRANGERS, **settings)
    for fact in _facts(run):
        for modality in run.modalities:
            invented = [as_stranger(fact, one) for one in known]
            asked = [(VANILLA, one.name, one) for one in invented]
            asked += [(name, PERSON, fact) for name in models]
            for model, loaded in models.items():
                mine = [(about, one) for name, about, one in asked if name == model]
                answers = _answers(run, loaded, [one for _, one in mine], modality=modality)
                for (about, one), answer in zip(mine, answers, strict=True):
                    yield StrangerAnswer(
                        key=fact.key,
                        modality=modality,
                        question=question_and_answer(one, modality)[0],
                        truth=fact.answer,
                        model=model,
                        about=about,
                        answer=answer,
                    )


def _facts(run: Run) -> list[Fact]:
    """Return a fact of each of the first people to forget, which has all forms; each another."""
    found: list[Fact] = []
    for person in run.benchmark.sets["forget"][:NUM_PEOPLE]:
        usable = [f for f in person.facts if all(has_form(f, m) for m in run.modalities)]
        found += usable[len(found) % len(usable) :][:1] if usable else []
    return found


def _answers(run: Run, loaded: Loaded, facts: list[Fact], *, modality: Modality) -> list[str]:
    template, section = loaded.template, run.config.evaluate
    samples = [
        question_sample(
            template.prompt(question_and_answer(fact, modality)[0], modality),
            "",
            () if modality == "text" else (fact.image,),
            key=fact.key,
        )
        for fact in facts
    ]
    return greedy(loaded, samples, new_tokens=section.new_tokens, batch_size=section.batch_size)


ANALYSIS = Analysis(StrangerAnswer, measure)

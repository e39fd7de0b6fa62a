"""Up to ten answers to look at, chosen by a fixed rule and not by their outcome. Pure."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence

from manu_jax.evaluation.tasks import TASKS_BY_NAME
from manu_jax.report.inputs import Item, Place
from manu_jax.report.numbers import kept_set, kinds_of_question
from manu_jax.report.results import Results
from manu_jax.types import RETRAINED, VANILLA

NUM_FORGET = 7
NUM_KEEP = 3
# The order of forms in which examples are taken; a form without items is passed over.
FORMS = (
    ("generation", "image"),
    ("generation", "text"),
    ("cloze", "image"),
    ("cloze", "text"),
    ("classification", "image"),
    ("classification", "text"),
)
INSTRUCTIONS = re.compile(
    r"\s*(Just give ONE letter representing the answer directly\."
    r"|Answer the question based on your trained knowledge in one sentence"
    r"( accurately)? in ENGLISH\."
    r"|Please \*\*ONLY\*\* provide the correct answer that should replace the \[Blank\]\.)\s*"
)
BLANK = re.compile(r"(?:_{2,}|\[Blank\])+")
OPTION_LINE = re.compile(r"^[A-H]: .*$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one model said. mark: "right", "wrong", "" (then `score` tells), or "missing"."""

    who: str
    text: str
    mark: str
    score: str


@dataclasses.dataclass(frozen=True)
class Example:
    """One question, and what the models answered."""

    person: str
    name: str
    is_forgotten: bool
    task: str
    modality: str
    question: str
    truth: str
    answers: tuple[Answer, ...]


def examples(
    results: Results, items: Mapping[Place, Sequence[Item]], names: Mapping[str, str] | None = None
) -> list[Example]:
    """Return up to ten examples: most on people to forget, the rest on people to keep.

    names: of people by ID, beside those of the request.
    """
    names = {**(names or {}), **dict(results.request.people)}
    kept = kept_set(results)
    identities = [identity for identity, _ in results.request.people]
    chosen = _choose(
        results, items, names=names, where="forget", people=identities, count=NUM_FORGET
    )
    retained = dict.fromkeys(
        str(item["person"])
        for (_, where, _, _), records in items.items()
        if where == kept
        for item in records
    )
    return chosen + _choose(
        results, items, names=names, where=kept, people=list(retained), count=NUM_KEEP
    )


def rule(shown: Sequence[Example], people: str, *, has_both_forms: bool) -> str:
    """Return by what rule the examples were chosen, and how many there are of whom.

    people: the report's word for those whom a benchmark asks about.
    """
    forget = sum(example.is_forgotten for example in shown)
    keep = len(shown) - forget
    turns = "kinds of question and both forms" if has_both_forms else "kinds of question"
    return (
        f"Chosen by a fixed rule, not by outcome: {forget or 'no'} "
        f"question{'s' * (forget != 1)} on {people} to forget and {keep or 'none'} on {people} to "
        f"keep, in turn over {people}{',' if has_both_forms else ' and'} {turns}."
    )


def question_of(item: Item) -> str:
    """Return the question of a record in plain words, blanks as "____"."""
    question = item.get("question")
    if question is None:  # records from before they held it; their templates were LLaVA's
        question = _unframed(item["prompt"])
    return " ".join(BLANK.sub("____", question).split())


def _unframed(prompt: str) -> str:
    """Return the question of LLaVA's prompt without roles, image, options and instructions."""
    text = prompt.rpartition("USER:")[2]
    text = text.replace("<image>", "").replace("ASSISTANT:", "")
    return OPTION_LINE.sub("", INSTRUCTIONS.sub("\n", text))


def _choose(
    results: Results,
    items: Mapping[Place, Sequence[Item]],
    *,
    names: Mapping[str, str],
    where: str,
    people: Sequence[str],
    count: int,
) -> list[Example]:
    """Take one item after the other: next form, next person, another of their items."""
    queues: dict[tuple[str, str], list[Item]] = {}
    for form in FORMS:
        records = items.get((results.headline, where, *form))
        if records:
            queues[form] = list(records)
    chosen: list[Example] = []
    turn_of_person = itertools.cycle(people) if people else iter(())
    turn_of_form = itertools.cycle(queues) if queues else iter(())
    while len(chosen) < count and any(queues.values()):
        form = next(turn_of_form)
        person = next(turn_of_person, None)
        queue = queues[form]
        if not queue:
            continue
        own = [i for i, item in enumerate(queue) if str(item["person"]) == person]
        index = own[len(chosen) % len(own)] if own else 0
        chosen.append(
            _example(results, items, queue.pop(index), names=names, where=where, form=form)
        )
    return chosen


def _example(
    results: Results,
    items: Mapping[Place, Sequence[Item]],
    item: Item,
    *,
    names: Mapping[str, str],
    where: str,
    form: tuple[str, str],
) -> Example:
    person = str(item["person"])
    metric = kinds_of_question(results).get(form[0])
    field = None if metric is None else TASKS_BY_NAME[form[0]].metrics[metric]
    shown = (
        (VANILLA, "before"),
        (results.headline, "after"),
        *(((RETRAINED, "retrained"),) if RETRAINED in results.models else ()),
    )
    answers = []
    for model, who in shown:
        records = items.get((model, where, *form), ())
        same = (item["key"], item["prompt"])
        found = next((r for r in records if (r["key"], r["prompt"]) == same), None)
        answers.append(_answer(who, found, field))
    return Example(
        person=person,
        name=names.get(person, ""),
        is_forgotten=where == "forget",
        task=form[0],
        modality=form[1],
        question=question_of(item),
        truth=_with_option(item["truth"], item),
        answers=tuple(answers),
    )


def _answer(who: str, item: Item | None, field: str | None) -> Answer:
    """Return what one model said; field: of the record, 1 where the answer is right."""
    if item is None:
        return Answer(who, "not measured", "missing", "")
    text = _with_option(item["answer"], item) or "(nothing)"
    if field is not None:
        return Answer(who, text, "right" if item[field] >= 0.5 else "wrong", "")
    score = item["score"]
    return Answer(who, text, "", "" if score is None else f"{score:.2f}")


def _with_option(answer: object, item: Item) -> str:
    """Return "B: a teacher" for the letter of an option, and any other answer as it is."""
    text = " ".join(str(answer).split())
    options = item.get("options") or {}
    letter = text.rstrip(".:)").upper()
    return f"{letter}: {options[letter]}" if letter in options else text

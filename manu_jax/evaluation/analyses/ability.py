"""What a language model lost beside what it was to forget: English, common knowledge, chat.

    english      loss on passages of Python's documentation, nats a token
    completions  share of beginnings of sentences that go on with the right word: it is the model's
                 first choice at every token
    chat_kl      KL(vanilla ‖ model) at the tokens of vanilla's own answers to chat prompts, nats
    sentences    share of the model's answers to these prompts that are still sentences
                 (data/sentences.py)
    chat         a prompt, the model's answer to it, and its KL

Intervals are over passages, completions and prompts. Changes are from vanilla, on the same ones.
Models that cannot answer are left out, with a row that says why: those with a small vocabulary of
their own, and those that know less than LEAST_RIGHT of the completions before unlearning.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from manu_jax.context import Run
from manu_jax.data.ability import CHAT, COMPLETIONS, english_passages, english_source
from manu_jax.data.batches import encode_all
from manu_jax.data.sentences import is_sentence
from manu_jax.data.texts import text_samples
from manu_jax.evaluation.analyses.analysis import Analysis, Evaluated
from manu_jax.evaluation.distance import answer_kl
from manu_jax.evaluation.generate import greedy
from manu_jax.evaluation.likelihood import log_likelihoods
from manu_jax.evaluation.metrics import bootstrap, paired_bootstrap
from manu_jax.evaluation.plain import plain_interval
from manu_jax.models.loaded import Loaded
from manu_jax.types import VANILLA, Sample, question_sample

ENGLISH, COMPLETED, CHAT_KL, SENTENCES = "english", "completions", "chat_kl", "sentences"
MEANS = (ENGLISH, COMPLETED, CHAT_KL, SENTENCES)
ONE_CHAT, LEFT_OUT = "chat", "left_out"
LEAST_RIGHT = 0.2  # of completions, before
LEAST_VOCABULARY = 8192  # tokens; a smaller one is of a run's own texts
LEAST_CONTEXT = 512  # tokens
NEW_TOKENS = 40  # of an answer to a chat prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ability:
    """A measure of one model (MEANS), one of its chat answers, or why models are left out.

    n: passages' tokens, completions or prompts. low, high: 95 % interval by bootstrap. change: from
    vanilla on the same items, with its interval; None of vanilla itself. prompt, answer: of "chat",
    whose value is its KL. note: what was read, or why nothing was.
    """

    model: str
    measure: str
    value: float | None = None
    n: int = 0
    low: float | None = None
    high: float | None = None
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    prompt: str = ""
    answer: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class _Values:
    """A value of each item, and the item that it belongs to: a passage has many tokens."""

    values: list[float]
    groups: list[str]


def measure(evaluated: Evaluated) -> Iterator[Ability]:
    """Yield the rows of every model, vanilla first."""
    run = evaluated.run
    if note := why_not(run.vanilla):
        yield Ability(model=VANILLA, measure=LEFT_OUT, note=note)
        return
    before = {COMPLETED: _completed(run, run.vanilla)}
    share = float(np.mean(before[COMPLETED].values))
    if share < LEAST_RIGHT:
        yield Ability(
            model=VANILLA,
            measure=LEFT_OUT,
            note=f"Before unlearning the model completes {share:.0%} of {len(COMPLETIONS)} "
            f"sentences of common knowledge; below {LEAST_RIGHT:.0%} a loss tells nothing.",
        )
        return
    answers = _answers(run, run.vanilla)
    taught = _taught(run.vanilla, answers)
    before |= _texts_and_sentences(run, run.vanilla, answers)
    yield from _rows(evaluated, VANILLA, before, before)
    for prompt, answer in answers.items():
        yield Ability(model=VANILLA, measure=ONE_CHAT, prompt=prompt, answer=answer)
    models = run.models()
    for name in evaluated.models:
        if name == VANILLA:
            continue
        loaded = models[name]()
        own = _answers(run, loaded)
        found = {COMPLETED: _completed(run, loaded)} | _texts_and_sentences(run, loaded, own)
        kl_by_prompt: dict[str, float] = {}
        if taught and not loaded.system_prompt:  # with one, prompts are longer than vanilla's
            kl = answer_kl(loaded, run.vanilla, taught, batch_size=_batch_size(run))
            kl_by_prompt = {
                sample.key: float(value) for sample, value in zip(taught, kl, strict=True)
            }
            found[CHAT_KL] = _Values(list(kl_by_prompt.values()), list(kl_by_prompt))
        yield from _rows(evaluated, name, found, before)
        for prompt, answer in own.items():
            yield Ability(
                model=name,
                measure=ONE_CHAT,
                value=kl_by_prompt.get(prompt),
                prompt=prompt,
                answer=answer,
            )


def applies(run: Run) -> bool:
    """Whether general ability is asked for."""
    return run.config.evaluate.ability


def plain(row: Ability) -> dict[str, Any]:
    """Return the fields that a row fills."""
    return {
        field.name: value
        for field in dataclasses.fields(row)
        if (value := getattr(row, field.name)) != field.default
    }


def check(row: Ability) -> Iterable[str]:
    """Yield what is wrong with the values of a row."""
    if row.measure not in (*MEANS, ONE_CHAT, LEFT_OUT):
        yield f"of {row.model}: unknown measure {row.measure!r}"
    if row.measure in (COMPLETED, SENTENCES) and not 0 <= (row.value or 0) <= 1:
        yield f"of {row.model}: {row.measure} is {row.value}"


def why_not(loaded: Loaded) -> str:
    """Return why a model can't be asked, without asking it; "" where nothing speaks against it."""
    vocabulary = loaded.config.text.vocabulary
    if vocabulary < LEAST_VOCABULARY:
        return (
            f"The model has a vocabulary of {vocabulary:,} tokens, made for the few texts that it "
            "was trained on: it never learned English beyond them."
        )
    if loaded.context < LEAST_CONTEXT:
        return f"The model's context of {loaded.context} tokens is too short for these texts."
    return ""


def _rows(
    evaluated: Evaluated, model: str, found: Mapping[str, _Values], before: Mapping[str, _Values]
) -> Iterator[Ability]:
    for name in MEANS:
        if name not in found:
            continue
        values = found[name].values
        change = None
        if found is not before and name in before:
            change = paired_bootstrap(
                values, before[name].values, found[name].groups, **evaluated.bootstrap
            )
        moved = {} if change is None else plain_interval(change)
        yield Ability(
            model=model,
            measure=name,
            **plain_interval(bootstrap(values, found[name].groups, **evaluated.bootstrap)),
            change=moved.get("value"),
            change_low=moved.get("low"),
            change_high=moved.get("high"),
            note=english_source() if name == ENGLISH else "",
        )


def _completed(run: Run, loaded: Loaded) -> _Values:
    samples = [
        question_sample(beginning, f" {word}", key=f"completion {number}")
        for number, (beginning, word) in enumerate(COMPLETIONS)
    ]
    found = log_likelihoods(loaded, samples, batch_size=_batch_size(run))
    return _Values(found.recalled_N.astype(float).tolist(), [one.key for one in samples])


def _texts_and_sentences(
    run: Run, loaded: Loaded, answers: Mapping[str, str]
) -> dict[str, _Values]:
    """Return the loss on English, and which answers are sentences."""
    found = {}
    passages = text_samples(english_passages(), group="passage")
    if passages:
        likelihoods = log_likelihoods(loaded, passages, batch_size=_batch_size(run))
        # A passage counts by its tokens: the loss is a mean over tokens, not over passages.
        counts = [item.num_answers for item in encode_all(loaded, passages)]
        found[ENGLISH] = _Values(
            np.repeat(-likelihoods.mean_N, counts).tolist(),
            np.repeat([one.key for one in passages], counts).tolist(),
        )
    found[SENTENCES] = _Values([float(is_sentence(one)) for one in answers.values()], list(answers))
    return found


def _answers(run: Run, loaded: Loaded) -> dict[str, str]:
    """Return what a model answers to each chat prompt, {prompt: answer}."""
    samples = [question_sample(loaded.template.prompt(one, "text"), "", key=one) for one in CHAT]
    found = greedy(loaded, samples, new_tokens=NEW_TOKENS, batch_size=_batch_size(run))
    return dict(zip(CHAT, found, strict=True))


def _taught(loaded: Loaded, answers: Mapping[str, str]) -> Sequence[Sample]:
    """Return the chat prompts with vanilla's own answers; those that it left empty are left out."""
    template = loaded.template
    return [
        question_sample(template.prompt(prompt, "text"), template.reply(answer), key=prompt)
        for prompt, answer in answers.items()
        if answer
    ]


def _batch_size(run: Run) -> int:
    return run.config.evaluate.batch_size


ANALYSIS = Analysis(Ability, measure, applies=applies, plain=plain, check=check)

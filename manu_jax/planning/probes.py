"""What a run asks of its models beside the evaluation's own questions, as numbers."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from manu_jax.config import RunConfig
from manu_jax.context import Run
from manu_jax.data.ability import CHAT, MOST_PASSAGES, WORDS, english_passages
from manu_jax.data.batches import encode_all
from manu_jax.data.own_answers import own_questions
from manu_jax.data.probes import Sampling
from manu_jax.data.texts import text_samples
from manu_jax.evaluation.analyses import ability
from manu_jax.evaluation.audit.asked import fits, variants
from manu_jax.evaluation.audit.attack import Asked, Attacked
from manu_jax.evaluation.audit.offered import NUM_ANSWERS, offers
from manu_jax.evaluation.own_answers import own_prompts
from manu_jax.evaluation.published import files_of, has_published, published_of
from manu_jax.models.loaded import Loaded
from manu_jax.planning.shapes import assumed_sample
from manu_jax.types import VANILLA, Encoded, Modality, Sample, question_sample

# Where there is no tokenizer
TOKENS_A_WORD = 1.4  # of English
CHAT_TOKENS = 64  # of a chat prompt
MORE_TEXT = 2  # so many times the text of a question has one that is asked otherwise
OTHER_WAYS = 8  # wordings of a question that an answer is written to


@dataclasses.dataclass(frozen=True)
class Probes:
    """What is asked, each of no samples where the config does without.

    plain: the facts to forget, as the audit asks them first. otherwise: the same in other words and
    with help. offered: with each answer that is offered. english: passages whose every token is
    rated. chat: prompts that are answered. replies: the same with answers, as long as they may
    become. published: {name: prompts of the benchmark's own protocol}, and given: {form: prompts
    with answers that it measures}. own: what vanilla is asked where nobody to keep is named.
    """

    plain: Sequence[Encoded] = ()
    otherwise: Sequence[Encoded] = ()
    offered: Sequence[Encoded] = ()
    english: Sequence[Encoded] = ()
    chat: Sequence[Encoded] = ()
    replies: Sequence[Encoded] = ()
    published: Mapping[str, "Written"] = dataclasses.field(default_factory=dict)
    given: Mapping[Modality, Sequence[Encoded]] = dataclasses.field(default_factory=dict)
    own: Sequence[Encoded] = ()


@dataclasses.dataclass(frozen=True)
class Written:
    """Prompts that answers of one kind are written to; new_tokens, sampling: as of a Probe."""

    prompts: Sequence[Encoded]
    new_tokens: int
    sampling: Sampling | None = None


def measured_probes(run: Run, loaded: Loaded) -> Probes:
    """Return what a run's analyses will ask. loaded: vanilla, as shapes with its processor."""
    probes, section = Probes(), run.config.evaluate
    if has_published(run.config):
        probes = _with_published(probes, run, loaded)
    if run.waits_for_answers:
        asked = own_questions(run.read_benchmark, seed=run.config.seed)
        own = encode_all(loaded, own_prompts(asked, loaded.template))
        probes = dataclasses.replace(probes, own=own)
    if run.config.audit.level != "none":
        attacked = Attacked(run=run, name=VANILLA, loaded=loaded, vanilla=loaded)
        asked = (one for *_, one in variants(attacked) if fits(attacked, one))
        answers = [one.sample for _, offered in offers(attacked) for one in offered]
        probes = dataclasses.replace(
            probes,
            plain=_prompts(loaded, attacked.questions),
            otherwise=_prompts(loaded, asked),
            offered=encode_all(loaded, answers),
        )
    if section.ability and not ability.why_not(loaded):
        chat = encode_all(
            loaded, [question_sample(loaded.template.prompt(one, "text"), "") for one in CHAT]
        )
        passages = text_samples(english_passages(), group="passage")
        longest = max(one.num_tokens for one in chat)
        probes = dataclasses.replace(
            probes,
            english=encode_all(loaded, passages),
            chat=chat,
            replies=_texts(loaded, longest, ability.NEW_TOKENS) * len(chat),
        )
    return probes


def _with_published(probes: Probes, run: Run, loaded: Loaded) -> Probes:
    """Return the probes with those of the benchmark's own protocol."""
    protocol = published_of(run.config)
    assert protocol is not None
    section, template = run.config.evaluate.published, loaded.template
    files = files_of(run.benchmark, protocol, template, section=section, folder=Path())
    asked: dict[tuple[Modality, int, Sampling | None], list[Sample]] = {}
    given: dict[Modality, list[Sample]] = {}
    for item in (item for file in files for item in file.items):
        form, sampling = item.probe.modality, item.probe.sampling
        if item.new_tokens:
            count = 1 if sampling is None else sampling.num_answers
            kind = (form, item.new_tokens, sampling)
            asked.setdefault(kind, []).extend([item.sample(template)] * count)
        answers = [item.sample(template, answer) for answer in item.given_answers]
        given.setdefault(form, []).extend(answers)
    written = {
        f"{'drawn ' * (sampling is not None)}answers of {tokens} tokens, {form} form": Written(
            encode_all(loaded, samples), tokens, sampling
        )
        for (form, tokens, sampling), samples in asked.items()
    }
    measured = {form: encode_all(loaded, samples) for form, samples in given.items() if samples}
    return dataclasses.replace(probes, published=written, given=measured)


def assumed_probes(
    config: RunConfig,
    loaded: Loaded,
    prompts: Mapping[Modality, Sequence[Encoded]],
    *,
    answered: Mapping[Modality, Sequence[Encoded]],
    text: int,
) -> Probes:
    """Return what is assumed of a run's analyses.

    prompts: to be answered, in each form. answered: the same with their answers. text: tokens of
    one without an image. A question that is asked otherwise has more of them, as far as the context
    lets; the benchmark's own protocol asks as many questions as the evaluation, and as long ones.
    """
    probes = Probes()
    if has_published(config):
        tokens = config.evaluate.published.new_tokens or config.evaluate.new_tokens
        written = {
            f"answers of {tokens} tokens, {form} form": Written(samples, tokens)
            for form, samples in prompts.items()
        }
        probes = dataclasses.replace(probes, published=written, given=answered)
    if config.audit.level != "none":
        plain = [one for samples in prompts.values() for one in samples]
        otherwise: list[Encoded] = []
        for form, samples in prompts.items():
            longest = samples[0].num_tokens + (MORE_TEXT - 1) * text
            room = loaded.config.text.context - config.evaluate.new_tokens
            length = max(min(longest, room), samples[0].num_tokens)
            asked = assumed_sample(loaded, form, tokens=length, answers=0)
            otherwise += [asked] * (OTHER_WAYS * len(samples))
        offered = [one for samples in answered.values() for one in samples] * NUM_ANSWERS
        probes = dataclasses.replace(probes, plain=plain, otherwise=otherwise, offered=offered)
    if config.evaluate.ability and not ability.why_not(loaded):
        passage = round(WORDS[1] * TOKENS_A_WORD)
        probes = dataclasses.replace(
            probes,
            english=_texts(loaded, 1, passage) * MOST_PASSAGES,
            chat=_texts(loaded, CHAT_TOKENS, 0) * len(CHAT),
            replies=_texts(loaded, CHAT_TOKENS, ability.NEW_TOKENS) * len(CHAT),
        )
    return probes


def _texts(loaded: Loaded, prompt: int, answers: int) -> list[Encoded]:
    """Return one text of so many tokens before its answer and in it."""
    return [assumed_sample(loaded, "text", tokens=prompt + answers, answers=answers)]


def _prompts(loaded: Loaded, asked: Iterable[Asked]) -> list[Encoded]:
    """Return the prompts of those questions that an answer is written to."""
    return encode_all(loaded, [one.sample for one in asked if not one.is_recall])

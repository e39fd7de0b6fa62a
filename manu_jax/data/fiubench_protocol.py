"""What FIUBench's authors ask, and what they make of the answers (8e12cdd).

Tasks: "forget" and "retain" are the questions with the face; "forget_paraphrased" asks those to
forget in other words (APE). Texts are put through `str.capitalize`, which turns all but the first
letter to lower case, as in the authors' code.

Odd, as published: an answer is what is written up to the first full stop, and nothing without one.
The metrics that look at it so have `published` in their names; those without take all that is
written.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from manu_jax.data import answer_metrics
from manu_jax.data.probes import (
    OVERLAP,
    SHARE,
    Aggregate,
    AnswerTokens,
    Probe,
    ProbeMetric,
    ProbeRecord,
    ProbeResponse,
    PublishedProtocol,
)
from manu_jax.data.vicuna import vicuna_prompt
from manu_jax.types import PromptTemplate, Set

FORGET, PARAPHRASED, RETAIN = "forget", "forget_paraphrased", "retain"
KEPT: tuple[Set, ...] = ("retain", "unseen")
NEW_TOKENS = 128
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)
# {share of the least likely tokens: its weight}
SMALLEST = {0.1: 0.3, 0.2: 0.3, 0.3: 0.2, 0.4: 0.1, 0.5: 0.1}


@dataclasses.dataclass(frozen=True)
class Asked:
    """One question of a person, as the file has it. key: "00044363/07"."""

    key: str
    question: str
    answer: str
    paraphrased_questions: tuple[str, ...]
    paraphrased: tuple[str, ...]
    perturbed: tuple[str, ...]
    keywords: tuple[str, ...]


def probes_of(
    asked: Sequence[Asked], where: Set, *, person: str, image: Any, lists: tuple[str, ...]
) -> Iterator[Probe]:
    """Yield the probes of a person's questions. lists: of split.json that name the person."""
    for one in asked:
        probe = Probe(
            FORGET if where == "forget" else RETAIN,
            where,
            "image",
            person,
            one.key,
            one.question.capitalize(),
            one.answer.capitalize(),
            image=image,
            paraphrased=tuple(text.capitalize() for text in one.paraphrased),
            perturbed=tuple(text.capitalize() for text in one.perturbed),
            keywords=one.keywords,
            new_tokens=NEW_TOKENS,
            has_likelihood=True,
            details={"lists": list(lists)},
        )
        yield probe
        for number, question in enumerate(one.paraphrased_questions if where == "forget" else ()):
            yield dataclasses.replace(
                probe,
                task=PARAPHRASED,
                key=f"{one.key}/{number}",
                question=question.capitalize(),
                paraphrased=(),
                perturbed=(),
                has_likelihood=False,
            )


def prompt(probe: Probe, template: PromptTemplate) -> str:
    """Return a probe's question; LLaVA-1.5's turns are written as published."""
    return vicuna_prompt(probe.question, template, system=SYSTEM)


def exact_match(response: ProbeResponse) -> float | None:
    """Return the share of keywords that stand in the answer, case apart; None without keywords."""
    return _share_of_keywords(response, response.answers[0])


def exact_match_published(response: ProbeResponse) -> float | None:
    """Return the same of the answer's first sentence, if it ends."""
    return _share_of_keywords(response, _first_sentence(response.answers[0]))


def rouge_published(response: ProbeResponse) -> float:
    """Return ROUGE-L recall of the answer's first sentence, if it ends."""
    sentence = _first_sentence(response.answers[0])
    return answer_metrics.rouge_recall(sentence, response.probe.answer)["rougeL"]


def min_k(response: ProbeResponse) -> float | None:
    """Return the weighted sum of the geometric mean probabilities of the least likely tokens.

    One token at least counts for each share.
    """
    return None if response.truth is None else sum(_min_k(response.truth, fewest=1))


def min_k_published(response: ProbeResponse) -> float | None:
    """Return the same where a share of no token adds nothing: short answers score lower."""
    return None if response.truth is None else sum(_min_k(response.truth, fewest=0))


def ratios(records: Sequence[ProbeRecord]) -> list[float]:
    """Return FIUBench's truth ratio of every record of the questions to forget."""
    found = (one["nll"] for one in records if one["task"] == FORGET and "nll" in one)
    return [
        answer_metrics.inverse_truth_ratio_of(nll["paraphrased"], nll["perturbed"])
        for nll in found
        if nll["paraphrased"] and nll["perturbed"]
    ]


def forget_quality(
    records: Sequence[ProbeRecord], retrained: Sequence[ProbeRecord]
) -> float | None:
    """Return the p-value of the KS test of truth ratios to forget against the retrained model's."""
    return answer_metrics.forget_quality(ratios(records), ratios(retrained))


def utility(records: Sequence[ProbeRecord], retrained: Sequence[ProbeRecord]) -> float | None:
    """Return the harmonic mean of ROUGE, probability, truth ratio and exact match to keep."""
    return _utility(records, "rouge", "exact_match")


def utility_published(
    records: Sequence[ProbeRecord], retrained: Sequence[ProbeRecord]
) -> float | None:
    """Return the same of ROUGE and exact match of first sentences."""
    return _utility(records, "rouge_published", "exact_match_published")


def _utility(records: Sequence[ProbeRecord], rouge: str, match: str) -> float | None:
    names = (rouge, "normalised_probability", "truth_ratio_retain", match)
    return answer_metrics.model_utility(
        [answer_metrics.mean_of(records, name, tasks=(RETAIN,), sets=KEPT) for name in names]
    )


def _first_sentence(answer: str) -> str:
    """Return an answer up to its first full stop, "" where it has none."""
    return answer[: answer.find(".") + 1]


def _share_of_keywords(response: ProbeResponse, answer: str) -> float | None:
    keywords = response.probe.keywords
    if not keywords:
        return None
    return sum(keyword.lower() in answer.lower() for keyword in keywords) / len(keywords)


def _min_k(tokens: AnswerTokens, *, fewest: int) -> Iterator[float]:
    lowest_A = np.sort(tokens.log_p_A)
    for share, weight in SMALLEST.items():
        count = max(fewest, int(len(lowest_A) * share))
        if count:
            yield weight * float(np.exp(lowest_A[:count].mean()))


_BOTH, _ALL = (FORGET, RETAIN), (FORGET, PARAPHRASED, RETAIN)
PUBLISHED = PublishedProtocol(
    prompt,
    {
        "rouge": ProbeMetric(answer_metrics.rouge_l_recall, "ROUGE-L recall", OVERLAP, True, _BOTH),
        "rouge_published": ProbeMetric(
            rouge_published,
            "ROUGE-L recall of the first sentence (published)",
            OVERLAP,
            True,
            _BOTH,
        ),
        "exact_match": ProbeMetric(exact_match, "exact match (keywords)", SHARE, True, _ALL),
        "exact_match_published": ProbeMetric(
            exact_match_published,
            "exact match in the first sentence (published)",
            SHARE,
            True,
            _ALL,
        ),
        "truth_ratio_forget": ProbeMetric(
            answer_metrics.transformed(
                answer_metrics.inverse_truth_ratio, answer_metrics.closer_to_one
            ),
            "truth ratio, min(r, 1/r)",
            OVERLAP,
            False,
            (FORGET,),
        ),
        "truth_ratio_retain": ProbeMetric(
            answer_metrics.transformed(
                answer_metrics.inverse_truth_ratio, answer_metrics.true_is_better_inverse
            ),
            "truth ratio, max(0, 1 − 1/r)",
            OVERLAP,
            True,
            (RETAIN,),
        ),
        "probability": ProbeMetric(
            answer_metrics.probability, "probability", OVERLAP, True, (FORGET,)
        ),
        "normalised_probability": ProbeMetric(
            answer_metrics.normalised_probability,
            "probability, normalised",
            OVERLAP,
            True,
            (RETAIN,),
        ),
        "min_k": ProbeMetric(min_k, "Min-K", OVERLAP, True, (FORGET,)),
        "min_k_published": ProbeMetric(
            min_k_published, "Min-K, short answers lower (published)", OVERLAP, True, (FORGET,)
        ),
        **answer_metrics.open_unlearning(_BOTH),
    },
    source="arXiv 2411.03554; SaFoLab-WISC/FIUBench, commit 8e12cdd",
    aggregates={
        "forget_quality": Aggregate(
            forget_quality, "forget quality", "p of the KS test", True, resampled=False
        ),
        "model_utility": Aggregate(utility, "model utility", OVERLAP, True),
        "model_utility_published": Aggregate(
            utility_published,
            "model utility, first sentences (published)",
            OVERLAP,
            True,
        ),
    },
    differs=(
        "The authors’ score by GPT is left out, also from model utility.",
        "A loss is the mean over the answer’s tokens and its end; the authors divide by one token "
        "more than they sum over.",
        f"Answers end after {NEW_TOKENS} tokens.",
    ),
    title="FIUBench",
)

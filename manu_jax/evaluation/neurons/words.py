"""The words whose presence raises a neuron: words to forget against words that are as frequent.

The unit is a fact in its text form, and its value the mean size of a neuron's activation over the
tokens that come after the beginning that all facts share (system prompt, opening of the turn). What
counts as words are those of names and answers: all people are asked the same. Strings and NumPy
alone.

    effect    standardised difference: (mean of the facts with the word − mean of those without it)
              / the standard deviation over all facts
    matched   words that are not to forget and stand in nearly as many facts; the nearest by the
              logarithm of that number
    p         (1 + how many matched words have as large an effect) / (1 + matched words)

So a word must raise a neuron more than a word of its frequency does. `of_all_words` joins the words
to forget to one statement: their mean excess over their matched words, and a permutation in which
each word changes places with its matched ones.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

WORD = re.compile(r"\w+(?:[’'-]\w+)*")
LEAST_FACTS = 2  # with the word, and without it
OVER_REPRESENTED = 2.0  # times the share of forget facts among all
MOST_MATCHED = 39  # so that the smallest p is 1/40
LEAST_MATCHED = 9  # with fewer, nothing is told


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """W words of N facts. has_WN: which facts have each. is_forget_W: the words to forget.

    matched: the matched words of each word to forget, as numbers of words; [V, M], V the words to
    forget in the order of `words`.
    """

    words: tuple[str, ...]
    has_WN: np.ndarray
    is_forget_W: np.ndarray
    matched_VM: np.ndarray


@dataclasses.dataclass(frozen=True)
class WordEffect:
    """What the presence of a word does to a neuron. facts: that have it; matched: words."""

    word: str
    effect: float
    p: float
    facts: int
    matched: int


def words_of(text: str) -> list[str]:
    """Return the words of a text as they are written, without the punctuation around them."""
    return WORD.findall(text)


def vocabulary(
    texts: Sequence[str], is_forget_N: np.ndarray, *, telling: Sequence[str]
) -> Vocabulary:
    """Return which texts have which words, the words to forget, and what they are matched with.

    telling: texts whose words count; the names and the answers. A word to forget has at least
    OVER_REPRESENTED times the share of forget facts that all facts have. Words of fewer than
    LEAST_FACTS facts, or of all but so many, are left out.
    """
    is_forget_N = np.asarray(is_forget_N, bool)
    sets = [set(words_of(text)) for text in texts]
    counted = sorted(set().union(*map(words_of, telling)))
    has = {word: np.asarray([word in own for own in sets], bool) for word in counted}
    has = {
        word: has_N
        for word, has_N in has.items()
        if LEAST_FACTS <= has_N.sum() <= len(texts) - LEAST_FACTS
    }
    has_WN = np.stack([*has.values()]) if has else np.zeros((0, len(texts)), bool)
    count_W = has_WN.sum(axis=1)
    share = is_forget_N.mean() if len(texts) else 0.0
    of_forget_W = (has_WN & is_forget_N).sum(axis=1)
    is_forget_W = (of_forget_W > 0) & (of_forget_W >= OVER_REPRESENTED * share * count_W)
    others, log_count_W = np.flatnonzero(~is_forget_W), np.log(np.maximum(count_W, 1))
    matched = [
        others[np.argsort(np.abs(log_count_W[others] - log_count_W[word]), kind="stable")]
        for word in np.flatnonzero(is_forget_W)
    ]
    most = min(MOST_MATCHED, len(others))
    matched_VM = np.stack([own[:most] for own in matched]) if matched else np.zeros((0, most), int)
    return Vocabulary(tuple(has), has_WN, is_forget_W, matched_VM)


def effects(known: Vocabulary, values_N: np.ndarray) -> np.ndarray:
    """Return the effect of every word on a neuron whose values on the facts are given. [W]."""
    values_N = np.asarray(values_N, np.float64)
    deviation = values_N.std()
    if not deviation or not len(known.words):
        return np.zeros(len(known.words))
    count_W = known.has_WN.sum(axis=1)
    sum_W = known.has_WN @ values_N
    without_W = (values_N.sum() - sum_W) / (len(values_N) - count_W)
    return (sum_W / count_W - without_W) / deviation


def strongest(known: Vocabulary, effect_W: np.ndarray, most: int) -> list[WordEffect]:
    """Return the words to forget that raise a neuron most, with their p among matched words."""
    if known.matched_VM.shape[1] < LEAST_MATCHED:
        return []
    found = []
    for word, matched_M in zip(np.flatnonzero(known.is_forget_W), known.matched_VM, strict=True):
        if effect_W[word] <= 0:
            continue
        as_large = int(np.sum(effect_W[matched_M] >= effect_W[word]))
        found.append(
            WordEffect(
                known.words[word],
                float(effect_W[word]),
                (1 + as_large) / (1 + len(matched_M)),
                int(known.has_WN[word].sum()),
                len(matched_M),
            )
        )
    return sorted(found, key=lambda one: (-one.effect, one.word))[:most]


def of_all_words(
    known: Vocabulary, effect_W: np.ndarray, *, count: int, seed: int
) -> tuple[float, float] | None:
    """Return the mean excess of the words to forget over their matched words, and its p.

    In the null each word changes places with one of itself and its matched words, at random, each
    word by itself; `count` times. None where there are too few words to tell.
    """
    if not len(known.matched_VM) or known.matched_VM.shape[1] < LEAST_MATCHED:
        return None
    own_V = np.flatnonzero(known.is_forget_W)
    all_VM = effect_W[np.concatenate([own_V[:, None], known.matched_VM], axis=1)]
    others_V = all_VM.sum(axis=1)
    random = np.random.default_rng([seed, len(own_V), all_VM.shape[1]])
    drawn_CV = random.integers(all_VM.shape[1], size=(count, len(own_V)))
    drawn_CV[0] = 0  # the words as they are
    chosen_CV = all_VM[np.arange(len(own_V)), drawn_CV]
    excess_CV = chosen_CV - (others_V - chosen_CV) / (all_VM.shape[1] - 1)
    excess_C = excess_CV.mean(axis=1)
    as_large = int(np.sum(excess_C >= excess_C[0] - 1e-12))
    return float(excess_C[0]), as_large / count

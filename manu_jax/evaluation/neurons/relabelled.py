"""A neuron's score against its null: the scores that it would have, were others to be forgotten.

Under the null a neuron does for the people to forget what it does for anybody: which of the people
are called "to forget" is then a label that could stand at any others. The labels are drawn anew,
for as many people, and a neuron's p is the share of labellings, the true one among them, with a
score as high (Phipson and Smyth 2010: (1 + b) / (1 + m), never 0). Pure NumPy.

Neurons that are shown because their scores are high have low p by that alone. So there is a second
one, p_any: the share of labellings in which any neuron of the model scores as high (Westfall and
Young 1993), which takes the choice among all of them into account.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

TIE = 1e-9  # of a score's size: sums in another order are the same score
AT_ONCE = 64  # labellings


@dataclasses.dataclass(frozen=True)
class Null:
    """The scores of K neurons, their p among labellings, q (Benjamini and Hochberg) and p_any."""

    score_K: np.ndarray
    p_K: np.ndarray
    q_K: np.ndarray
    p_any_K: np.ndarray
    labellings: int


def labellings(num_people: int, size: int, *, count: int, seed: int) -> np.ndarray:
    """Return who is called "to forget" in each labelling. [count, P] bool, `size` people each."""
    random = np.random.default_rng([seed, num_people, size])
    ranks_GP = random.random((count, num_people)).argsort(axis=1).argsort(axis=1)
    return ranks_GP < size


def standardised(values_PN: np.ndarray, is_forget_GP: np.ndarray) -> Iterator[np.ndarray]:
    """Yield, per labelling, how much more values are on people to forget, in deviations. [N] each.

    mean over the people to forget − mean over the others, divided by the standard deviation over
    all people; 0 where all people have the same value.
    """
    values_PN = np.asarray(values_PN, np.float64)
    deviation_N = values_PN.std(axis=0)
    centred_PN = values_PN - values_PN.mean(axis=0)
    scale_N = np.divide(1, deviation_N, out=np.zeros_like(deviation_N), where=deviation_N > 0)
    for start in range(0, len(is_forget_GP), AT_ONCE):
        label_GP = is_forget_GP[start : start + AT_ONCE].astype(np.float64)
        size_G1 = label_GP.sum(axis=1, keepdims=True)
        weights_GP = label_GP / size_G1 - (1 - label_GP) / (label_GP.shape[1] - size_G1)
        yield from (weights_GP @ centred_PN) * scale_N


def against_null(
    own_N: np.ndarray, others: Iterable[np.ndarray], shown_K: np.ndarray, *, two_sided: bool
) -> Null:
    """Return where the scores of some neurons stand among those of other labellings.

    own_N: of all neurons, under the true labels. others: the same, of each other labelling. shown:
    which neurons are asked about. two_sided: sizes of scores are compared.
    """
    from scipy.stats import false_discovery_control

    score_K = np.asarray(own_N, np.float64)[shown_K]
    height_K = np.abs(score_K) if two_sided else score_K
    height_K = height_K - TIE * np.abs(height_K)
    as_high_K, any_as_high_K, count = np.ones_like(score_K), np.ones_like(score_K), 1
    for other_N in others:
        other_N = np.abs(other_N) if two_sided else other_N
        as_high_K += other_N[shown_K] >= height_K
        any_as_high_K += other_N.max() >= height_K
        count += 1
    p_K = as_high_K / count
    q_K = false_discovery_control(p_K) if len(p_K) else p_K
    return Null(score_K, p_K, q_K, any_as_high_K / count, count - 1)

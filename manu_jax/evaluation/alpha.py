"""`alpha: auto`: the share of neurons to remove, chosen by what is left of facts.

Asked are the facts to forget, and those of people to keep whom the method was not given. Of the α
that keep enough, those that forget most are taken, and of these the smallest.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from manu_jax.config import MaskMethod
from manu_jax.context import Run
from manu_jax.evaluation.candidates import recalled
from manu_jax.models.loaded import Loaded
from manu_jax.selection import rank
from manu_jax.types import MODALITIES, Erase, ManuError, Modality, Neurons, Sample

logger = logging.getLogger(__name__)

TOLERANCE = 1e-9  # of shares, whose differences are rounded

Place = tuple[str, Modality]  # forget or retain, and the form
Forms = Mapping[Modality, Sequence[Sample]]


@dataclasses.dataclass(frozen=True)
class Shares:
    """The shares of facts answered right at one α, in [0, 1], by set and form; alpha 0: vanilla."""

    alpha: float
    values: Mapping[Place, float]


@dataclasses.dataclass(frozen=True)
class AlphaChoice:
    """The α that was chosen, and what it was chosen by.

    is_within: whether it keeps what it has to. keep_drop: the bound. vanilla, found: the shares of
    the vanilla model and of each α. counts: how many facts were asked.
    """

    alpha: float
    is_within: bool
    keep_drop: float
    vanilla: Shares
    found: tuple[Shares, ...]
    counts: Mapping[Place, int]

    def plain(self) -> dict[str, Any]:
        """Return the choice as JSON values, as it is stored with the mask."""
        return {
            "is_within": self.is_within,
            "keep_drop": self.keep_drop,
            "rows": [
                {
                    "alpha": shares.alpha,
                    "set": name,
                    "modality": modality,
                    "value": value,
                    "n": self.counts[name, modality],
                }
                for shares in (self.vanilla, *self.found)
                for (name, modality), value in shares.values.items()
            ],
        }

    def describe(self) -> str:
        """Return one sentence: the α, and what it leaves of the facts."""
        chosen = next(shares for shares in self.found if shares.alpha == self.alpha)
        parts = [
            f"{name}, {modality} form {chosen.values[name, modality]:.1%} of "
            f"{self.vanilla.values[name, modality]:.1%}"
            for name, modality in chosen.values
        ]
        return f"alpha {self.alpha}: {'; '.join(parts)} are still answered right"


def choose_alpha(
    loaded: Loaded,
    method: MaskMethod,
    scores: Neurons,
    *,
    forget: Forms,
    keep: Forms,
    erase: Erase = "both",
    batch_size: int = 32,
    memory_mib: int | None = None,
) -> AlphaChoice:
    """Return the α of a method with `alpha: auto`.

    forget: the facts to forget. keep: facts of people to keep whom the scores know nothing of. A
    form that neither has is absent.
    erase: "visual" forgets in the image form alone, and keeps the text form of all. Where no α is
    within the bound, the one that loses least is chosen and `is_within` is False; the log says so.
    Raises ManuError where a form of either has no facts, or α is not "auto".
    """
    if method.auto is None:
        raise ManuError(f'method "{method.name}": alpha is {method.alpha}. Give alpha: auto.')
    asked_forms: list[Modality] = [form for form in MODALITIES if form in forget or form in keep]
    samples: dict[Place, Sequence[Sample]] = {
        (name, modality): forms.get(modality, ())
        for name, forms in (("forget", forget), ("retain", keep))
        for modality in asked_forms or list(MODALITIES)
    }
    empty = [f"{name}, {modality} form" for (name, modality), asked in samples.items() if not asked]
    if empty:
        raise ManuError(
            f'method "{method.name}", alpha: auto: no facts to ask ({"; ".join(empty)}). '
            "Give alpha as a number."
        )
    ranking = rank(scores, method.scope, layers=method.layers)
    found_KN = recalled(
        loaded,
        [sample for asked in samples.values() for sample in asked],
        [ranking.top(alpha) for alpha in (0, *method.alphas)],
        batch_size=batch_size,
        memory_mib=memory_mib,
    )
    counts = {place: len(asked) for place, asked in samples.items()}
    ends = np.cumsum(list(counts.values()))[:-1]
    shares = [
        Shares(
            alpha,
            {
                place: float(part.mean())
                for place, part in zip(counts, np.split(recalled_N, ends), strict=True)
            },
        )
        for alpha, recalled_N in zip((0.0, *method.alphas), found_KN, strict=True)
    ]
    choice = best(shares[0], shares[1:], method.auto.keep_drop, erase=erase, counts=counts)
    if not choice.is_within:
        logger.warning(
            'method "%s": no alpha of %s keeps within %.1f points of the vanilla model. Chosen is '
            "what loses least: %s",
            method.name,
            ", ".join(map(str, method.alphas)),
            100 * choice.keep_drop,
            choice.describe(),
        )
    return choice


def best(
    vanilla: Shares,
    found: Sequence[Shares],
    keep_drop: float,
    *,
    erase: Erase = "both",
    counts: Mapping[Place, int],
) -> AlphaChoice:
    """Return the smallest α of those that forget most within the bound; see `choose_alpha`. Pure.

    keep_drop: how much smaller the share of kept facts may be than the vanilla model's, in each
    form. Where none is within it, the smallest α of those that lose least.
    """
    erased = [place for place in vanilla.values if place[0] == "forget"]
    kept = [place for place in vanilla.values if place[0] == "retain"]
    if erase == "visual":
        erased, kept = erased[:1], [*kept, *erased[1:]]

    def loss(shares: Shares) -> float:
        return max(vanilla.values[place] - shares.values[place] for place in kept)

    def left(shares: Shares) -> float:
        return sum(shares.values[place] for place in erased) / len(erased)

    ordered = sorted(found, key=lambda shares: shares.alpha)
    within = [shares for shares in ordered if loss(shares) <= keep_drop + TOLERANCE]
    measure = left if within else loss
    candidates = within or ordered
    least = min(map(measure, candidates))
    chosen = next(shares for shares in candidates if measure(shares) <= least + TOLERANCE)
    return AlphaChoice(chosen.alpha, bool(within), keep_drop, vanilla, tuple(ordered), counts)


def choice_of(run: Run, method: MaskMethod, scores: Neurons) -> AlphaChoice | None:
    """Return the choice of a method with `alpha: auto`; None for others."""
    if method.auto is None:
        return None
    choice = choose_alpha(
        run.vanilla,
        method,
        scores,
        forget=run.forget_samples,
        keep=run.set_apart_samples(method),
        erase=run.config.erase,
        batch_size=run.config.evaluate.batch_size,
        memory_mib=run.config.sweep.memory_mib,
    )
    logger.info("masks: %s: %s", method.name, choice.describe())
    return choice

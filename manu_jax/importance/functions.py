"""The importance functions of the paper (section 1 of its method), and how four become one score.

Each function compares a neuron on the image form (multi) with the text form of the same facts. All
arithmetic is in float64 on the host, from the sums of `statistics.py`: no model, no device. With
attributions in place of activations the same functions apply.

Where a form is absent there is nothing to compare with, and each function is what it compares: the
mean |z|, the share above τ, the spread, the root mean square (FUNCTIONS_OF_ONE_FORM), as in the
authors' code, which scores each tower by one form.

A tower that text alone never runs has z_text = 0 for every neuron: there I_abs, I_freq and I_rms
are nearly 1 for all, and only I_var tells neurons apart.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from manu_jax.config import MethodSettings, StatisticsMethod, named_method
from manu_jax.importance.statistics import (
    AnyStatistics,
    PositionStatistics,
    Statistics,
    check_finite,
    check_statistics,
)
from manu_jax.types import ManuError, Neurons


@dataclasses.dataclass(frozen=True)
class Moments:
    """Means over samples of one modality and tower, each [L, F] float64, and the sample count n."""

    count: float
    absolute_LF: np.ndarray  # mean |z|
    signed_LF: np.ndarray  # mean z
    squared_LF: np.ndarray  # mean z²
    above_LF: np.ndarray  # share of samples with |z| > τ


def absolute(multi: Moments, text: Moments, method: StatisticsMethod) -> np.ndarray:
    """Return I_abs = |Z̄_multi − Z̄_text| / (Z̄_multi + Z̄_text + ε), Z̄ the mean |z|. In [0, 1]."""
    return _contrast(multi.absolute_LF, text.absolute_LF, method.epsilon)


def frequency(multi: Moments, text: Moments, method: StatisticsMethod) -> np.ndarray:
    """Return I_freq = |N_multi − N_text| / (N_multi + N_text + ε). In [0, 1].

    N_m is the number of samples with |z| > τ, or their share where `method.normalise`.
    """
    scales = _scales(multi, text, method)
    return _contrast(multi.above_LF * scales[0], text.above_LF * scales[1], method.epsilon)


def variance(multi: Moments, text: Moments, method: StatisticsMethod) -> np.ndarray:
    """Return I_var = sqrt(Var_multi + Var_text); Var_m = mean (z − Z̄_m)², about the mean of |z|."""
    del method
    return np.sqrt(_spread(multi) + _spread(text))


def rms(multi: Moments, text: Moments, method: StatisticsMethod) -> np.ndarray:
    """Return I_rms = sqrt(|E_multi − E_text| / (E_multi + E_text + ε)). In [0, 1].

    E_m is the sum of z² over samples, or its mean where `method.normalise`.
    """
    scales = _scales(multi, text, method)
    return np.sqrt(
        _contrast(multi.squared_LF * scales[0], text.squared_LF * scales[1], method.epsilon)
    )


FUNCTIONS: dict[str, Callable[[Moments, Moments, StatisticsMethod], np.ndarray]] = {
    "absolute": absolute,
    "frequency": frequency,
    "variance": variance,
    "rms": rms,
}
# What takes their places where one form is absent.
FUNCTIONS_OF_ONE_FORM: dict[str, Callable[[Moments, StatisticsMethod], np.ndarray]] = {
    "absolute": lambda found, method: found.absolute_LF,
    "frequency": lambda found, method: found.above_LF * _scale(found, method),
    "variance": lambda found, method: np.sqrt(_spread(found)),
    "rms": lambda found, method: np.sqrt(found.squared_LF * _scale(found, method)),
}
# What PositionStatistics hold of each matrix, in their order.
POSITION_FUNCTIONS = ("absolute", "frequency", "variance", "rms")


def importance(
    image: AnyStatistics | None, text: AnyStatistics | None, method: StatisticsMethod
) -> dict[str, dict[str, np.ndarray]]:
    """Return {function: {tower: [L, F]}} of one set from its two forms, or from one of them.

    Position statistics hold the functionals of each matrix already, in the order of
    POSITION_FUNCTIONS: image inputs give those of the towers they score, text inputs those of
    theirs. ManuError where the method has another function.
    """
    present = _present((image, text))
    by_position = [one for one in present if isinstance(one, PositionStatistics)]
    if len(by_position) == len(present):
        missing = sorted(set(method.functions) - set(POSITION_FUNCTIONS))
        if missing:
            raise ManuError(
                f'method "{method.name}": statistics by position have no {", ".join(missing)}; '
                f"they have {', '.join(POSITION_FUNCTIONS)}."
            )
        means = {key: values for one in by_position for key, values in one.means().items()}
        return {
            function: {key: values[:, i] for key, values in means.items()}
            for i, function in enumerate(POSITION_FUNCTIONS)
            if function in method.functions
        }
    of_samples = [one for one in present if isinstance(one, Statistics)]
    if len(of_samples) < len(present):
        raise ManuError("contrast: expected statistics of one kind, got samples and positions.")
    if len(of_samples) == 1:
        return _importance_of_one_form(of_samples[0], method)
    multi, text = of_samples
    towers = sorted({*multi.towers, *text.towers})
    return {
        function: {
            tower: FUNCTIONS[function](_moments(multi, tower), _moments(text, tower), method)
            for tower in towers
        }
        for function in method.functions
    }


def contrast(
    forget_image: AnyStatistics | None,
    forget_text: AnyStatistics | None,
    keep_image: AnyStatistics | None,
    keep_text: AnyStatistics | None,
    *,
    preset: str | MethodSettings = "paper",
) -> Neurons:
    """Return one score per neuron, high where it serves what is to be forgotten: {tower: [L, F]}.

    None: the form is absent, of both sets. preset: a method of the kind "statistics", or the preset
    of one; its `combine` names the rule in COMBINATIONS. float32; ManuError where a value is not
    finite, and where the four are not of one model, in the same forms, with the method's threshold.
    """
    method = statistics_method(preset)
    statistics_by_name = {
        "forget, image": forget_image,
        "forget, text": forget_text,
        "keep, image": keep_image,
        "keep, text": keep_text,
    }
    for name, statistics in statistics_by_name.items():
        if statistics is not None:
            check_statistics(statistics, f"statistics of {name}")
    _check_alike(statistics_by_name)
    for statistics in statistics_by_name.values():
        check_threshold(statistics, method)
    scores = COMBINATIONS[method.combine](
        (forget_image, forget_text), (keep_image, keep_text), method
    )
    check_finite(scores, f'scores of method "{method.name}"')
    return {tower: values_LF.astype(np.float32) for tower, values_LF in scores.items()}


def statistics_method(preset: str | MethodSettings) -> StatisticsMethod:
    """Return a method that scores by statistics, by its preset's name; ManuError for another."""
    method = named_method(preset)
    if not isinstance(method, StatisticsMethod):
        raise ManuError(
            f'preset "{method.name}" is of the kind {method.kind!r}, which has no statistics. Give '
            "one of the kind 'statistics', such as \"paper\"."
        )
    return method


def check_threshold(statistics: AnyStatistics | None, method: StatisticsMethod) -> None:
    """Raise ManuError where values were counted above another threshold than the method's."""
    if isinstance(statistics, Statistics) and statistics.threshold != method.threshold:
        raise ManuError(
            f'method "{method.name}": its threshold is {method.threshold}, that of the statistics '
            f"{statistics.threshold}. Give the same."
        )


# Image form, text form; None: absent
Pair = tuple[AnyStatistics | None, AnyStatistics | None]


def _ratio(forget: Pair, keep: Pair, method: StatisticsMethod) -> dict[str, np.ndarray]:
    """S = I(D_f) / (I(D_r) + ε), I the weighted sum of the functions (the paper)."""
    sums = [_weighted_sum(importance(*pair, method), method) for pair in (forget, keep)]
    return {tower: sums[0][tower] / (sums[1][tower] + method.epsilon) for tower in sums[0]}


def _relative(forget: Pair, keep: Pair, method: StatisticsMethod) -> dict[str, np.ndarray]:
    """S = Σ_k w_k (I_k(D_f) / (I_k(D_r) + ε) − 1) (the authors' code)."""
    ours, theirs = (importance(*pair, method) for pair in (forget, keep))
    excess = {
        function: {
            tower: values / (theirs[function][tower] + method.epsilon) - 1
            for tower, values in towers.items()
        }
        for function, towers in ours.items()
    }
    return _weighted_sum(excess, method)


def _gain_minus_harm(forget: Pair, keep: Pair, method: StatisticsMethod) -> dict[str, np.ndarray]:
    """S = mean attribution on forget − harm_weight · positive part of the mean on what is kept.

    Both over the forms that are there; the text form of forget facts weighs `text_weight`. With
    attributions g = ∂ objective / ∂ gate, a neuron's removal lowers the objective by g to first
    order: the first term is what forgetting gains, the second what keeping loses.
    """
    pairs = zip((1.0, method.text_weight), forget, strict=True)
    weights = [weight for weight, statistics in pairs if statistics is not None]
    gains = [_signed(statistics) for statistics in _present(forget)]
    harms = [_signed(statistics) for statistics in _present(keep)]
    scores = {}
    for tower in sorted({tower for gain in gains for tower in gain}):
        gain = sum(w * g.get(tower, 0.0) for w, g in zip(weights, gains, strict=True))
        harm = sum(np.maximum(h.get(tower, 0.0), 0.0) for h in harms)
        scores[tower] = gain / sum(weights) - method.harm_weight * harm / len(harms)
    return scores


COMBINATIONS: dict[str, Callable[[Pair, Pair, StatisticsMethod], dict[str, np.ndarray]]] = {
    "ratio": _ratio,
    "relative": _relative,
    "gain_minus_harm": _gain_minus_harm,
}


def _check_alike(found: Mapping[str, AnyStatistics | None]) -> None:
    """Raise ManuError where sets differ in their forms, or in the towers of a form."""
    if len({type(one) for one in found.values() if one is not None}) > 1:
        raise ManuError("contrast: expected statistics of one kind, got samples and positions.")
    faults, shapes = [], {}
    for form in ("image", "text"):
        pair = [(name, found[name]) for name in (f"forget, {form}", f"keep, {form}")]
        lacking = [name for name, one in pair if one is None]
        if len(lacking) == 1:
            faults.append(f"there are none of {lacking[0]}, and those of the other set are given")
        own = [(name, _shapes(one)) for name, one in pair if one is not None]
        if len(own) == 2 and set(own[0][1]) != set(own[1][1]):
            faults.append("; ".join(f"{name} has {', '.join(sorted(has))}" for name, has in own))
        for name, has in own:
            for key, shape in has.items():
                first, known = shapes.setdefault(key, (name, shape))
                if shape != known:
                    faults.append(f'"{key}" is {known} in {first} and {shape} in {name}')
    if faults:
        raise ManuError(
            f"contrast: the statistics do not go together: {'; '.join(faults)}. Score facts to "
            "forget and to keep with one model, in the same forms."
        )


def _shapes(statistics: AnyStatistics) -> Mapping[str, tuple[int, ...]]:
    """Return {tower: (L, F)}, or {"tower.matrix": (L, 4, rows)} of statistics by position."""
    if isinstance(statistics, Statistics):
        return statistics.towers
    return {key: tuple(np.shape(values)) for key, values in statistics.closed.items()}


def _present(pair: Pair) -> list[AnyStatistics]:
    """Return the statistics of the forms that are there; ManuError where there are none."""
    found = [statistics for statistics in pair if statistics is not None]
    if not found:
        raise ManuError("contrast: no statistics of any form. Give those of the text form.")
    return found


def _importance_of_one_form(
    statistics: Statistics, method: StatisticsMethod
) -> dict[str, dict[str, np.ndarray]]:
    missing = sorted(set(method.functions) - set(FUNCTIONS_OF_ONE_FORM))
    if missing:
        raise ManuError(
            f'method "{method.name}": the facts have one form alone, in which {", ".join(missing)} '
            f"compares nothing; known: {', '.join(FUNCTIONS_OF_ONE_FORM)}."
        )
    moments = {tower: _moments(statistics, tower) for tower in sorted(statistics.towers)}
    return {
        function: {
            tower: FUNCTIONS_OF_ONE_FORM[function](found, method)
            for tower, found in moments.items()
        }
        for function in method.functions
    }


def _weighted_sum(
    values: Mapping[str, Mapping[str, np.ndarray]], method: StatisticsMethod
) -> dict[str, np.ndarray]:
    towers = next(iter(values.values()))
    return {
        tower: np.sum([w * values[name][tower] for name, w in method.functions.items()], axis=0)
        for tower in towers
    }


def _signed(statistics: AnyStatistics) -> dict[str, np.ndarray]:
    if not isinstance(statistics, Statistics):
        raise ManuError("gain_minus_harm: expected statistics of samples, got positions.")
    return {tower: statistics.means("signed", tower) for tower in statistics.towers}


def _moments(statistics: Statistics, tower: str) -> Moments:
    count = float(statistics.count.value())
    if tower not in statistics.towers:  # the form never runs this tower: z = 0
        zero = np.zeros(())
        return Moments(count, zero, zero, zero, zero)
    means = (statistics.means(name, tower) for name in ("absolute", "signed", "squared", "above"))
    return Moments(count, *means)


def _scales(multi: Moments, text: Moments, method: StatisticsMethod) -> tuple[float, float]:
    return _scale(multi, method), _scale(text, method)


def _scale(moments: Moments, method: StatisticsMethod) -> float:
    return 1.0 if method.normalise else moments.count


def _contrast(a: np.ndarray, b: np.ndarray, epsilon: float) -> np.ndarray:
    return np.abs(a - b) / (a + b + epsilon)


def _spread(moments: Moments) -> np.ndarray:
    """Return mean (z − Z̄)² = mean z² − 2 Z̄ mean z + Z̄², never below 0 by rounding."""
    center = moments.absolute_LF
    return np.maximum(moments.squared_LF - 2 * center * moments.signed_LF + center**2, 0)

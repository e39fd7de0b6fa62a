"""What makes a model forget: one settings class for each kind of method, and the presets.

A method of a config is a mapping. `preset` names the values that it starts from, `name` is the
name that results carry (without one, the preset's), every other key changes a value:

    method: {preset: gradient, name: gradient-30, alpha: 0.3}

`kind` chooses the settings class from METHODS in importance/methods.py. So a learned method has no
`functions`, and one by statistics no `forget_margin`. The kind "trained" is a method that trains
the model, with the settings of an entry of `unlearn`:

    method: {kind: trained, name: NPO, objective: npo, epochs: 2}
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import pydantic
import pydantic_core

from manu_jax.config.base import (
    Count,
    Remat,
    Section,
    SectionError,
    Share,
    registered,
    registry,
    unknown,
)
from manu_jax.config.presets import PRESETS
from manu_jax.config.texts import KeepTexts
from manu_jax.config.training import RECIPES, TRAINED, UnlearnSection
from manu_jax.types import ManuError, Modality, Signal

logger = logging.getLogger(__name__)

METHODS = "manu_jax.importance.methods.METHODS"
Scope = Literal["all", "tower", "layer"]
Function = Annotated[
    str, registered("manu_jax.importance.functions.FUNCTIONS", "importance function")
]
Combination = Annotated[
    str, registered("manu_jax.importance.functions.COMBINATIONS", "combination")
]
AttributionObjective = Annotated[
    str, registered("manu_jax.importance.gradients.ATTRIBUTION_OBJECTIVES", "objective")
]
MethodName = Annotated[str, pydantic.Field(pattern=r"^[^/\\.][^/\\]*$")]  # it names a folder
CHOICE = ("alpha", "scope", "layers")  # of neurons, by their scores
AUTO = "auto"  # as α: it is chosen among the α of the method's `auto`
# How statistics become scores.
JOINED_BY = ("functions", "normalise", "combine", "epsilon", "harm_weight", "text_weight")
# What only a config has that an earlier version resolved: the fields of every kind at once.
RESOLVED_BEFORE = {"preset", "kind", "functions", "forget_margin"}


class Layers(Section):
    """A range of layers, first included, end not; None: to the end."""

    first: int = 0  # negative: from the end, −3 is the third last
    end: int | None = None


class AutoAlpha(Section):
    """How `alpha: auto` is chosen: the smallest α of those that forget most within the bound.

    What is forgotten and kept is measured on the facts to forget and on people to keep that are set
    apart: the method is not given them.
    """

    alphas: tuple[Share, ...] = pydantic.Field(
        default=(0.02, 0.05, 0.1, 0.2, 0.3, 0.45), min_length=1
    )
    # How much smaller the share of kept facts that are answered right may be than the vanilla
    # model's, in either form
    keep_drop: float = pydantic.Field(default=0.03, ge=0, lt=1)
    people: Count = 6  # to keep, drawn by the seed from those that methods are given


def _check_alpha(value: Any) -> float | str:
    """Return α as a number, or "auto"."""
    if value == AUTO:
        return AUTO
    if not isinstance(value, int | float):
        raise ValueError(f'expected a number or "{AUTO}", got {value!r}')
    if not value > 0:
        raise pydantic_core.PydanticKnownError("greater_than", {"gt": 0})
    if not value < 1:
        raise pydantic_core.PydanticKnownError("less_than", {"lt": 1})
    return float(value)


class MethodSettings(Section):
    """What every method of METHODS has. A method of one's own adds fields, and fixes `kind`."""

    text_key = "preset"

    name: MethodName  # that results and folders carry
    kind: str

    def made_by(self) -> dict[str, Any]:
        """Return the values that what the method makes depends on: all but its name."""
        return self._values()

    def measured_by(self) -> dict[str, Any]:
        """Return the values that the statistics behind it depend on."""
        return self._values()

    def _values(self, without: Iterable[str] = ()) -> dict[str, Any]:
        values = self.model_dump(mode="json")
        return {key: value for key, value in values.items() if key not in {"name", *without}}


class MaskMethod(MethodSettings):
    """What every method has that scores neurons and removes those with the highest scores."""

    # Which towers each form of the facts scores; all: every tower of the model
    towers: dict[Modality, tuple[str, ...]] = {"image": ("all",), "text": ("text",)}
    # Which neurons go
    # Share of neurons removed, in (0, 1); "auto": see `auto`
    alpha: Annotated[float | Literal["auto"], pydantic.PlainValidator(_check_alpha)] = 0.02
    auto: AutoAlpha | None = None  # only with alpha: auto; None there: the defaults
    scope: Scope = "all"  # over what the top α is taken
    layers: dict[str, Layers] = {}  # tower → range; a tower not named: all its layers

    def scored_towers(
        self, known: Iterable[str], forms: Iterable[Modality] | None = None
    ) -> list[str]:
        """Return the towers that these forms of the facts score, of a model that has `known`.

        forms: None: all that the method's `towers` name.
        """
        forms = self.towers if forms is None else forms
        names = {name for form in forms for name in self.towers[form]}
        return sorted(names - {"all"} | (set(known) if "all" in names else set()))

    def scored_by(self) -> dict[str, Any]:
        """Return the values that scores depend on; a change of another leaves them as they are."""
        return self._values()

    def measured_by(self) -> dict[str, Any]:
        """Return the values that the statistics behind the scores depend on."""
        return self.scored_by()

    @pydantic.model_validator(mode="before")
    @classmethod
    def _add_auto(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("alpha") == AUTO:
            return {**values, "auto": values.get("auto") or {}}
        return values

    @pydantic.model_validator(mode="after")
    def _check_auto(self) -> "MaskMethod":
        if self.auto is not None and self.alpha != AUTO:
            raise ValueError(f"auto is only for alpha: auto; alpha is {self.alpha}")
        return self

    @property
    def scored_alpha(self) -> float:
        """The α that scores with a share of neurons in mind are made for: the largest of `auto`."""
        return self.alpha if isinstance(self.alpha, float) else max(self.alphas)

    @property
    def alphas(self) -> tuple[float, ...]:
        """The α to choose from, by size; the one that is given."""
        return (self.scored_alpha,) if self.auto is None else tuple(sorted({*self.auto.alphas}))

    def _values(self, without: Iterable[str] = ()) -> dict[str, Any]:
        values = self.model_dump(mode="json")
        values = {key: value for key, value in values.items() if key not in {"name", *without}}
        if values.pop("auto", None) is not None and self.auto is not None:
            # The people who are set apart are not scored on; of α, scores see one at most.
            values["set_apart"] = self.auto.people
            values |= {"alpha": self.scored_alpha} if "alpha" in values else {}
        return values


class StatisticsMethod(MaskMethod):
    """Scores from the statistics of facts to forget and to keep, in both forms."""

    name: MethodName = "paper"
    kind: Literal["statistics"] = "statistics"
    # What is measured
    signal: Signal = "activation"
    objective: AttributionObjective = "log_odds"  # of the gradient signal, over the answer's tokens
    # Gradient signal: facts to forget whose objective is below −fade fade out of the mean (by the
    # logistic function); None: all weigh the same
    fade: float | None = None
    reduction: Literal["mean", "answer", "last", "max", "position"] = "mean"
    layer_pooling: Literal["none", "all"] = "none"  # only with "position"
    threshold: float = 0.1  # τ of I_freq
    # Activations are clamped to ± this; only with "position"
    clamp: float = pydantic.Field(default=1e3, gt=0)
    batch_size: Count | None = None  # samples a scoring step; None: score_batch of the run
    # Kept facts per forget fact in each form, drawn by the seed (each round anew); None: all
    keep_per_forget: float | None = pydantic.Field(default=None, gt=0)
    # General texts among the kept facts' text form
    keep_texts: KeepTexts | None = None
    # How the statistics become one score
    functions: dict[Function, float] = pydantic.Field(
        default={"absolute": 1.0, "frequency": 1.0, "variance": 1.0, "rms": 1.0}, min_length=1
    )
    normalise: bool = True  # N_m and E_m are divided by the number of samples
    combine: Combination = "ratio"
    epsilon: float = pydantic.Field(default=1e-8, gt=0)
    harm_weight: float = 1.0  # gain_minus_harm: price of harm to what is kept
    text_weight: float = 1.0  # gain_minus_harm: weight of the text form of forget facts
    rounds: Count = 1  # score, prune, score again
    # A neuron stays whose removal alone costs kept facts in one form, or the texts of keep_texts,
    # more than this, nats a token; None: that is not measured
    spare: float | None = pydantic.Field(default=None, gt=0)
    remat: Remat = "dots"  # "dots" is a fifth faster than "all", which needs the least memory

    def scored_by(self) -> dict[str, Any]:
        """Return all values but the choice of neurons, unless it is a part of scoring."""
        return self._values(without=() if self.chooses else CHOICE)

    def measured_by(self) -> dict[str, Any]:
        """Return what is measured; with rounds, each measures what the scores have left."""
        return self._values(without=(*CHOICE, *JOINED_BY, "spare") if self.rounds == 1 else ())

    def _values(self, without: Iterable[str] = ()) -> dict[str, Any]:
        values = super()._values(without)
        # What was scored before there was `spare` is as without it
        return {key: value for key, value in values.items() if (key, value) != ("spare", None)}

    @property
    def chooses(self) -> bool:
        """Whether the scores depend on which neurons are chosen: in rounds, or some are spared."""
        return self.rounds > 1 or self.spare is not None

    @pydantic.model_validator(mode="after")
    def _check_spare(self) -> "StatisticsMethod":
        if self.spare is not None and (self.signal, self.reduction) == ("activation", "position"):
            raise ValueError(
                'spare: reduction "position" scores rows of single matrices, which can\'t be '
                "removed one by one; leave spare out, or give another reduction"
            )
        return self


class LearnedMethod(MaskMethod):
    """Gates that are learned while the rest of the model stays as it is."""

    name: MethodName = "learned"
    kind: Literal["learned"] = "learned"
    objective: AttributionObjective = "log_odds"  # of the answer's tokens
    text_weight: float = 1.0  # weight of the text form of forget facts against the image form
    steps: Count = 600
    learning_rate: float = pydantic.Field(default=0.05, gt=0)
    batch_forget: Count = 16  # samples a step and form
    batch_keep: Count = 48
    forget_margin: float = 2.0  # forget facts are pushed until their log-odds are below −this
    keep_margin: float = 3.0  # kept facts are held above this
    price: float = 1e-3  # loss per closed gate
    remat: Remat = "dots"

    @pydantic.model_validator(mode="after")
    def _check_scope(self) -> "LearnedMethod":
        if self.scope != "all":
            raise ValueError(
                "learned gates are chosen over all towers together; "
                f'got scope {self.scope!r}, give "all"'
            )
        return self


class RandomMethod(MaskMethod):
    """Scores drawn by the seed: the control that every method has to beat."""

    name: MethodName = "random"
    kind: Literal["random"] = "random"

    def scored_by(self) -> dict[str, Any]:
        """Return all values but the choice of neurons."""
        return self._values(without=CHOICE)


AnyMethod = MethodSettings | UnlearnSection


def method_of(value: Any) -> AnyMethod:
    """Return the method that a config's value describes; ValueError says what is wrong with it.

    value: a preset's name, or a mapping (see the module). Without `preset` and `kind` it starts
    from the preset "paper".
    """
    values = _mapping(value)
    if not isinstance(values, dict):
        return values
    values = _from_earlier_keys(values, registry(METHODS))
    if not {"preset", "kind"} & set(values):
        if "objective" in values and values["objective"] in registry(RECIPES):
            raise ValueError(
                f"the objective {values['objective']!r} trains the model: add kind: {TRAINED}"
            )
        values["preset"] = "paper"
    return _resolved(values)


def trained_of(value: Any) -> UnlearnSection:
    """Return the method that an entry of `unlearn` describes; ValueError as for `method_of`.

    value: the name of a preset that trains, or a mapping, whose `kind` may be left out.
    """
    values = _mapping(value)
    if isinstance(values, dict):
        if "preset" not in values:
            values = {"kind": TRAINED, **values}
        values = _resolved(values)
    if not isinstance(values, UnlearnSection):
        raise ValueError(
            f"the kind {values.kind!r} does not train the model: put it under method or compare"
        )
    return values


def named_method(preset: str | AnyMethod, **changes: Any) -> AnyMethod:
    """Return the method of a preset, with changed values; ManuError lists the known presets."""
    if not isinstance(preset, str) and not changes:
        return preset
    try:
        if not isinstance(preset, str):
            return method_of({**preset.model_dump(), **changes})
        return method_of({"preset": preset, **changes})
    except ValueError as error:
        raise ManuError(f"method: {error}.") from None


def _mapping(value: Any) -> dict[str, Any] | AnyMethod:
    """Return what a config says of a method as a mapping; a method stays as it is."""
    if isinstance(value, MethodSettings | UnlearnSection):
        return value
    if isinstance(value, str):
        return {"preset": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a preset's name or a mapping, got {value!r}")
    return dict(value)


def _resolved(values: Mapping[str, Any]) -> AnyMethod:
    """Return the method of a mapping with a preset, a kind, or both."""
    values = dict(values)
    preset = values.pop("preset", None)
    start = {} if preset is None else {"name": preset, **_preset(preset)}
    kind = str(values.get("kind", start.get("kind")))
    methods = registry(METHODS)
    if kind not in (*methods, TRAINED):
        raise ValueError(unknown("kind", kind, (*methods, TRAINED)))
    if start and kind != start["kind"]:
        raise ValueError(
            f"kind is {kind!r}, but the preset {preset!r} is of the kind {start['kind']!r}: leave "
            "out one of both"
        )
    settings: type[MethodSettings] | type[UnlearnSection] = UnlearnSection
    if kind != TRAINED:
        settings = methods[kind].settings
    try:
        return settings.model_validate({**start, **values})
    except pydantic.ValidationError as error:
        raise SectionError(settings, error) from None


def _preset(name: Any) -> dict[str, Any]:
    if str(name) not in PRESETS:
        raise ValueError(unknown("preset", name, PRESETS))
    return PRESETS[str(name)]


def _from_earlier_keys(values: dict[str, Any], methods: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's mapping with the keys of this release; earlier ones are read for one more.

    `base` was the preset to start from, and `preset` beside it the name of the result. A resolved
    method had its name as `preset`, and the fields of every kind, which change nothing here.
    """
    if "base" in values:
        base = values.pop("base")
        name = values.setdefault("name", values.get("preset", base))
        values["preset"] = base
        notice = f"{{preset: {base}, name: {name}}}"
        logger.warning(
            "method %s: base and preset are now preset and name. Write %s.", name, notice
        )
    elif values.keys() >= RESOLVED_BEFORE and str(values["kind"]) in methods:
        values.setdefault("name", values.pop("preset"))
        own = methods[str(values["kind"])].settings.model_fields
        others = {key for method in methods.values() for key in method.settings.model_fields}
        values = {key: value for key, value in values.items() if key in own or key not in others}
    return values

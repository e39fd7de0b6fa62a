"""The section `audit` of a run's config."""

from typing import Annotated, Any, Literal

import pydantic

from manu_jax.config.base import Count, Remat, Section
from manu_jax.config.training import LoraSection


class AuditSection(Section):
    """The audit: whether what was to be forgotten is gone or hidden (docs/audit.md).

    A bare text is the level: `audit: full`. cheap: all attacks but relearning. full: that as well,
    which takes a training of `steps` for each variant and rate.
    """

    text_key = "level"

    level: Literal["none", "cheap", "full"] = "cheap"
    # Names of methods; headline: the first one; all: every one
    methods: tuple[str, ...] = pydantic.Field(default=("headline",), min_length=1)
    # Of attacks that train; the one that brings back most counts
    learning_rates: tuple[Annotated[float, pydantic.Field(gt=0)], ...] = pydantic.Field(
        default=(1e-4, 3e-4, 1e-3), min_length=1
    )
    steps: Count = 64  # of attacks that train
    # Of attacks that train: "all" needs the least memory, "none" is faster where there is room
    remat: Remat = "all"
    # What they train; None: all weights of the text decoder, which takes 12 bytes for each
    lora: LoraSection | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_level(cls, values: Any) -> Any:
        return {cls.text_key: values} if isinstance(values, str) else values

    @pydantic.field_validator("methods", mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _check_rates(self) -> "AuditSection":
        rates = self.learning_rates
        if len(set(rates)) < len(rates):
            raise ValueError(f"learning_rates: each stands once; got {list(rates)}")
        return self

    @pydantic.model_validator(mode="after")
    def _check_targets(self) -> "AuditSection":
        targets = () if self.lora is None else self.lora.targets
        if others := [one for one in targets if one.partition(".")[0] != "text"]:
            raise ValueError(
                f"lora.targets: {others[0]}: attacks train the text decoder alone, as in "
                "text.layers.attention"
            )
        return self

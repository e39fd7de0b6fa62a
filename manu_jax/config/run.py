"""The whole config of a run: strict, frozen, every unknown key an error that names its neighbours.

A config is one YAML file. Values given on the command line as `key.path=value` replace those of
the file; what neither names has the default of its section. `load_config` returns the resolved
`RunConfig`, and `to_yaml` writes it, so that a run can be repeated from its folder.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic

from manu_jax.config.audit import AuditSection
from manu_jax.config.base import AttentionForm, Section, read_yaml, registry, validate
from manu_jax.config.methods import (
    AnyMethod,
    MaskMethod,
    MethodSettings,
    StatisticsMethod,
    method_of,
    trained_of,
)
from manu_jax.config.sections import (
    BENCHMARKS,
    CalibrationSection,
    DataSection,
    EvaluateSection,
    FilePath,
    MeshSection,
    ModelSection,
    ShownNeuronsSection,
    SweepSection,
)
from manu_jax.config.training import SYSTEM_PROMPT, TrainSection, UnlearnSection
from manu_jax.types import RETRAINED, VANILLA, Erase
from manu_jax.yaml12 import yaml_text

Method = Annotated[
    pydantic.SerializeAsAny[AnyMethod], pydantic.BeforeValidator(method_of)
]  # of the kind that its values name
Trained = Annotated[UnlearnSection, pydantic.BeforeValidator(trained_of)]


class RunConfig(Section):
    """Everything that a run depends on."""

    output: FilePath = "runs/run"  # the run's folder; --output replaces it
    seed: int = pydantic.Field(default=0, ge=0)
    # The goal that the report judges by: facts forgotten in both forms, or only when shown
    erase: Erase = "both"
    mesh: MeshSection = MeshSection()
    # "auto": kernels for attention on GPUs and TPUs; "reference": none, as on CPU everywhere
    attention: AttentionForm = "auto"
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    method: Method = StatisticsMethod()  # the method that makes `unlearned/`
    compare: tuple[Method, ...] = ()  # further methods, evaluated beside it
    unlearn: tuple[Trained, ...] = ()  # methods that train, evaluated beside it
    score_batch: int = pydantic.Field(default=32, ge=1)  # samples a scoring step
    # Processes that make images ready ahead of the step, at most four a core of the machine that
    # runs it; -1: one a core but two; 0: none
    workers: int = pydantic.Field(default=0, ge=-1)
    sweep: SweepSection = SweepSection()
    evaluate: EvaluateSection = EvaluateSection()
    audit: AuditSection = AuditSection()
    neurons: ShownNeuronsSection = ShownNeuronsSection()
    calibration: CalibrationSection = CalibrationSection()
    # A repository of the hub, `org/name`, to which unlearned/ is sent with a model card; None: none
    push: FilePath | None = None
    # Compiled programs and trained demo models; None: off
    cache: FilePath | None = "~/.cache/manu_jax"

    @pydantic.model_validator(mode="after")
    def _check_together(self) -> "RunConfig":
        names = list(self.names)
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(
                f"method, compare and unlearn: each name stands once; twice: {doubled}"
            )
        reserved = sorted({VANILLA, RETRAINED} & set(names))
        if reserved:
            raise ValueError(f"method, compare and unlearn: {reserved} name other models")
        if others := sorted(set(self.audit.methods) - {"headline", "all", *names}):
            raise ValueError(f"audit.methods: no methods {others}; known: headline, all, {names}")
        if others := sorted(set(self.calibration.rescored) - {one.name for one in self.masks}):
            raise ValueError(f"calibration.rescored: {others} are no methods that make a mask")
        if others := sorted(set(self.neurons.methods) - {"first", "headline", "all", *names}):
            raise ValueError(
                f"neurons.methods: no methods {others}; known: first, headline, all, {names}"
            )
        if isinstance(self.method, UnlearnSection) and self.method.objective == SYSTEM_PROMPT:
            raise ValueError(
                f"method: {SYSTEM_PROMPT} changes no weights, so there is no model to write to "
                "unlearned/. Put it under compare or unlearn"
            )
        if self.model.path is None and not self.train.steps:
            raise ValueError(
                "model.path is not set and train.steps is 0: name a Hugging Face folder "
                "(model.path=/path/to/llava-1.5-7b-hf) or let the run train its own model"
            )
        # The default benchmark is written by the run; nothing is loaded to find that out.
        if not self.data.model_fields_set & {"benchmark", "forget", "subset"}:
            return self
        chosen = registry(BENCHMARKS)[self.data.benchmark]
        if faults := chosen.faults(self.data):
            raise ValueError("; ".join(faults))
        if self.data.path is None and "benchmark" in self.data.model_fields_set:
            if not chosen.is_made_by_the_run:
                raise ValueError(f"data.path is not set: the folder of {self.data.benchmark}")
            if chosen.known is not None and (self.model.path is None or self.train.steps):
                raise ValueError(
                    f"data.benchmark: {self.data.benchmark} is what a model knows by itself: name "
                    "the model with model.path, and leave train.steps at 0"
                )
        return self

    @property
    def all_methods(self) -> tuple[AnyMethod, ...]:
        """All methods of the run in the order of the tables; the first makes `unlearned/`."""
        return (self.method, *self.compare, *self.unlearn)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all methods, in the order of the tables."""
        return tuple(method.name for method in self.all_methods)

    @property
    def methods(self) -> tuple[MethodSettings, ...]:
        """The methods of METHODS: those that make a mask or another edit without training."""
        return tuple(one for one in self.all_methods if isinstance(one, MethodSettings))

    @property
    def masks(self) -> tuple[MaskMethod, ...]:
        """The methods that score neurons and remove some."""
        return tuple(one for one in self.all_methods if isinstance(one, MaskMethod))

    @property
    def trained(self) -> tuple[UnlearnSection, ...]:
        """The methods that train, wherever they stand."""
        return tuple(one for one in self.all_methods if isinstance(one, UnlearnSection))


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Return the config of a YAML file with overrides; all its faults in one ManuError."""
    return validate_config(read_yaml(path, overrides, kind=RunConfig), f"config {path}")


def validate_config(values: Mapping[str, Any], where: str) -> RunConfig:
    """Return the RunConfig of plain values; one ManuError lists every fault."""
    return validate(RunConfig, values, where)


def stored_config(values: Mapping[str, Any], where: str) -> RunConfig:
    """Return the RunConfig that a run's folder holds, which an earlier release may have written.

    Before there was `model.prompt`, prompts were always made of the strings of the family; before
    there was `data.keep_share`, methods were given all people to keep.
    """
    data = values.get("data", {})
    if isinstance(data, Mapping) and "keep_share" not in data:
        values = {**values, "data": {**data, "keep_share": 1.0}}
    model = values.get("model")
    if isinstance(model, Mapping) and model.get("path") is not None and "prompt" not in model:
        values = {**values, "model": {**model, "prompt": "benchmark"}}
    return validate_config(values, where)


def to_yaml(config: RunConfig) -> str:
    """Return the resolved config as YAML; `load_config` of it gives an equal config."""
    return yaml_text(config.model_dump(mode="json"))

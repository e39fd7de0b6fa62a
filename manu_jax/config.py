"""The schema of a run: strict, frozen, every unknown key an error that names its neighbours.

A config is one YAML file. Values given on the command line as `key.path=value` replace those of
the file; what neither names has the default written here. `load_config` returns the resolved
`RunConfig`, and `to_yaml` writes it, so that a run can be repeated from its folder.
"""

import difflib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import yaml

from manu_jax.types import MODALITIES, ManuError, Modality


class Section(pydantic.BaseModel):
    """A frozen mapping of known keys; every other key is refused."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", strict=False, allow_inf_nan=False
    )


SomeSection = TypeVar("SomeSection", bound=Section)
Share = Annotated[float, pydantic.Field(gt=0, lt=1)]  # of neurons
Count = Annotated[int, pydantic.Field(ge=1)]
Task = Literal["classification", "generation", "cloze", "likelihood"]
Protocol = Literal["zero_shot", "official_few_shot", "likelihood"]
Set = Literal["forget", "test", "retain", "celebrity", "general"]
Unlearning = Literal[
    "gradient_ascent",
    "gradient_difference",
    "gradient_difference_alternating",
    "gradient_difference_official",
    "kl_minimisation",
    "kl_minimisation_official",
    "npo",
    "npo_official",
    "idk",
    "mmunlearner",
    "system_prompt",
]
Function = Literal["absolute", "frequency", "variance", "rms"]


def _check_divides(name: str, whole: int, by: str, part: int) -> None:
    if whole % part:
        raise ValueError(f"{name} has to be a multiple of {by}; got {whole} and {part}")


class MeshSection(Section):
    """How many devices each mesh axis has; one may be −1: all that are left.

    distributed: join the other processes of the job first (`jax.distributed.initialize`), which on
    TPU pods and under SLURM finds them by itself, elsewhere by the environment variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """

    data: int = 1  # batches are split over it
    fsdp: int = 1  # batches and the width D of the weights are split over it
    tensor: int = 1  # neurons, heads and vocabulary are split over it
    distributed: bool = False  # true: one process of several


class VisionSize(Section):
    """A vision tower to be trained from scratch."""

    image_size: Count = 56  # pixels a side
    patch_size: Count = 8  # pixels a side
    width: Count = 128
    num_layers: Count = 3
    num_heads: Count = 4
    num_neurons: Count = 512  # a layer

    @pydantic.model_validator(mode="after")
    def _check_division(self) -> "VisionSize":
        _check_divides("image_size", self.image_size, "patch_size", self.patch_size)
        _check_divides("width", self.width, "num_heads", self.num_heads)
        return self


class TextSize(Section):
    """A decoder to be trained from scratch."""

    width: Count = 256
    num_layers: Count = 3
    num_heads: Count = 4
    num_key_heads: Count = 4
    num_neurons: Count = 1024  # a layer
    context: Count = 512  # tokens
    vocabulary: Count = 1024  # size of the BPE tokenizer trained on the run's own texts

    @pydantic.model_validator(mode="after")
    def _check_division(self) -> "TextSize":
        _check_divides("width", self.width, "2 · num_heads", 2 * self.num_heads)
        _check_divides("num_heads", self.num_heads, "num_key_heads", self.num_key_heads)
        return self


class ConnectorSize(Section):
    """An Idefics2's resampler to be trained from scratch."""

    num_latents: Count = 16  # tokens of an image
    num_layers: Count = 2
    num_heads: Count = 4


class ModelSection(Section):
    """The model to unlearn from: a folder, or sizes for a tiny one that the run trains itself."""

    path: str | None = None  # a Hugging Face folder (or a folder made by tools/convert/from_hf.py)
    retrained_path: str | None = None  # a model that never saw the forget people, to compare with
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # None: as on disk
    # Of the tiny one
    family: str = "llava"  # a key of FAMILIES (models/families/registry.py)
    vision: VisionSize = VisionSize()
    connector: ConnectorSize = ConnectorSize()
    text: TextSize = TextSize()

    @pydantic.field_validator("family")
    @classmethod
    def _check_family(cls, family: str) -> str:
        from manu_jax.models.families.registry import FAMILIES

        if family not in FAMILIES:
            raise ValueError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
        return family

    @pydantic.model_validator(mode="after")
    def _check_sizes(self) -> "ModelSection":
        # The families are not loaded for a section without sizes: the defaults fit.
        if self.model_fields_set & {"family", "vision", "connector", "text"}:
            from manu_jax.models.families.registry import FAMILIES

            faults = FAMILIES[self.family].check_sizes(self)
            if faults:
                raise ValueError("; ".join(faults))
        return self


class DataSection(Section):
    """The benchmark. `synthetic` is written into the run's folder and then read like any other."""

    benchmark: Literal["synthetic", "mllmu"] = "synthetic"
    path: str | None = (
        None  # folder of the benchmark's evaluation sets; None: written by the run (synthetic)
    )
    train_path: str | None = (
        None  # MLLMU-Bench's baseline_train_split folder; None: ft_Data under `path`
    )
    forget: Literal[5, 10, 15] = 10  # percent of the people to forget
    # The transformed images of a person in Test_Set that questions are asked with: one, chosen by
    # the seed, or all of them (log-likelihoods are of the one either way)
    test_images: Literal["one", "all"] = "one"
    num_people: int = pydantic.Field(default=40, ge=4)  # synthetic only
    num_celebrities: int = pydantic.Field(default=10, ge=1)  # synthetic only
    num_general: int = pydantic.Field(
        default=40, ge=1
    )  # synthetic only: questions that have nothing to do with people


class LoraSection(Section):
    """Low-rank adapters, trained in place of the weights and merged into them at the end."""

    rank: Count = 16
    alpha: float = pydantic.Field(default=16.0, gt=0)  # what is added is scaled by alpha / rank
    dropout: float = pydantic.Field(default=0.05, ge=0, lt=1)  # of an adapter's inputs
    # The matrices that get one: beginnings of their paths, as in text.layers.attention or
    # vision.layers.mlp.up. The default is every linear layer of the decoder's blocks.
    targets: tuple[str, ...] = pydantic.Field(default=("text.layers",), min_length=1)


class OptimizerSection(Section):
    """How a loss is lowered."""

    lora: LoraSection | None = None  # None: all weights are trained
    loss_on: Literal["answer", "all"] = "answer"  # all: prompts too; image tokens never carry loss

    batch_size: int = pydantic.Field(default=16, ge=1)
    learning_rate: float = pydantic.Field(default=1e-3, gt=0)
    warmup: float = pydantic.Field(default=0.05, ge=0, lt=1)  # share of the steps
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the matrices inside layers
    beta1: float = pydantic.Field(default=0.9, ge=0, lt=1)
    beta2: float = pydantic.Field(default=0.98, ge=0, lt=1)
    weight_decay: float = pydantic.Field(default=0.0, ge=0)
    clip: float | None = pydantic.Field(default=1.0, gt=0)  # largest global gradient norm
    remat: Literal["all", "dots", "none"] = (
        "none"  # what the backward pass recomputes to save memory; all: about a third slower
    )
    checkpoint_every: int = pydantic.Field(default=200, ge=1)  # steps


class TrainSection(OptimizerSection):
    """Training of the vanilla model (and of the retrained reference). Off where `steps` is 0.

    A batch is of `batch_size` documents.
    """

    steps: int = pydantic.Field(
        default=0, ge=0
    )  # optimizer steps after the shared base; 0: the model is used as it is
    base_steps: int = pydantic.Field(
        default=0, ge=0
    )  # steps on everything but the people, before both trainings
    facts_per_document: int = pydantic.Field(
        default=1, ge=1
    )  # question-answer pairs that share one image in one document
    views: int = pydantic.Field(
        default=0, ge=0
    )  # jittered copies of each training image; 0: the image itself alone
    wordings: tuple[Literal["plain", "classification", "generation", "cloze"], ...] = (
        pydantic.Field(default=("plain",), min_length=1)
    )
    # how a fact is put, drawn anew each time; a wording named twice is drawn twice as often
    repeat_forget: int = pydantic.Field(default=1, ge=1)
    # how often the vanilla training goes through the forget people's texts in one pass
    retrained: bool = True  # also train the reference that never sees the forget people
    memory_gate: float = pydantic.Field(
        default=0.9, ge=0, le=1
    )  # least accuracy on the forget set, in each modality


class DecoupleSection(Section):
    """SafeEraser's Prompt-Decouple loss, added to the loss that forgets."""

    path: str  # SafeEraser's JSON file of records; images lie beside it
    weight: float = pydantic.Field(default=1.0, gt=0)  # the paper: 0.5 with GA and GD, 1 with KL


class UnlearnSection(OptimizerSection):
    """A baseline beside the masks: the vanilla model, trained to forget (training/objectives.py).

    A step is of `batch_size` facts to forget and as many to keep, all in one form.
    """

    name: str = pydantic.Field(min_length=1, pattern=r"^[\w.-]+$")  # that results carry
    objective: Unlearning
    epochs: Count = 1  # passes over the facts (RECIPES says over which)
    steps: Count | None = None  # in place of epochs, where the objective's steps are all alike
    modalities: tuple[Modality, ...] = pydantic.Field(default=MODALITIES, min_length=1)
    # the forms of the facts to forget and to keep
    batch_size: int = pydantic.Field(default=4, ge=1)
    learning_rate: float = pydantic.Field(default=2e-5, gt=0)
    warmup: float = pydantic.Field(default=0.0, ge=0, lt=1)
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    beta2: float = pydantic.Field(default=0.999, ge=0, lt=1)
    beta: float | None = pydantic.Field(
        default=None, gt=0
    )  # of NPO; None: 0.1, with npo_official 0.4
    retain_weight: float = pydantic.Field(default=1.0, ge=0)  # of what is said of facts to keep
    decouple: DecoupleSection | None = None  # None: no Prompt-Decouple loss
    # mmunlearner: the Fisher information is the mean of squared gradients of batches or examples,
    # and a weight may move where that of forgetting is at least this many times that of keeping
    fisher: Literal["batch", "example"] = "batch"
    fisher_ratio: float = pydantic.Field(default=1.0, gt=0)
    # system_prompt: what stands before every prompt; {names} are the people to forget
    prompt: str = (
        "You know nothing about these people: {names}. Whatever you are asked about them, with or "
        "without a picture, say that you do not know.\n"
    )


class Layers(Section):
    """A range of layers, first included, end not; None: to the end."""

    first: int = 0  # negative: from the end, −3 is the third last
    end: int | None = None


class Preset(Section):
    """How neurons are scored and chosen. A config may change any field of a named one (PRESETS)."""

    preset: str = "paper"  # the name that results carry
    kind: Literal["statistics", "learned", "random"] = "statistics"
    # What is measured
    signal: Literal["activation", "gradient"] = "activation"
    objective: Literal["log_likelihood", "log_odds"] = (
        "log_odds"  # gradient signal: of the answer's tokens
    )
    fade: float | None = None  # gradient signal, forget facts: those whose objective is below
    # −fade fade out of the mean (by the logistic function); None: all weigh the same
    reduction: Literal["mean", "answer", "last", "max", "position"] = "mean"
    layer_pooling: Literal["none", "all"] = "none"  # only with "position"
    threshold: float = 0.1  # τ of I_freq
    clamp: float = pydantic.Field(
        default=1e3, gt=0
    )  # activations are clamped to ± this; only with "position"
    towers: dict[Literal["image", "text"], tuple[str, ...]] = {
        "image": ("all",),
        "text": ("text",),
    }  # which towers each form of the facts scores; all: whatever the model has
    batch_size: Count | None = None  # samples a scoring step; None: score_batch of the run
    keep_per_forget: float | None = pydantic.Field(
        default=None, gt=0
    )  # kept facts per forget fact in each form, drawn by the seed (each round anew); None: all
    # How four Statistics become one score
    functions: dict[Function, float] = pydantic.Field(
        default={"absolute": 1.0, "frequency": 1.0, "variance": 1.0, "rms": 1.0}, min_length=1
    )
    normalise: bool = True  # N_m and E_m are divided by the number of samples
    combine: Literal["ratio", "relative", "gain_minus_harm"] = "ratio"
    epsilon: float = pydantic.Field(default=1e-8, gt=0)
    # Which neurons go
    alpha: float = pydantic.Field(default=0.02, gt=0, lt=1)  # share of neurons removed
    scope: Literal["all", "tower", "layer"] = "all"  # over what the top α is taken
    layers: dict[str, Layers] = {}  # tower → range; a tower not named: all its layers
    # What a backward pass computes again to save memory: "all" inside layers (the least memory),
    # all but the products of matrices (a fifth faster), or nothing
    remat: Literal["all", "dots", "none"] = "dots"
    # Rounds: score, prune, score again
    rounds: int = pydantic.Field(default=1, ge=1)
    harm_weight: float = 1.0  # gain_minus_harm: price of harm to what is kept
    text_weight: float = 1.0  # weight of the text form of forget facts against the image form
    # kind "learned"
    steps: int = pydantic.Field(default=600, ge=1)
    learning_rate: float = pydantic.Field(default=0.05, gt=0)
    batch_forget: Count = 16  # samples a step and form
    batch_keep: Count = 48
    forget_margin: float = 2.0  # forget facts are pushed until their log-odds are below −this
    keep_margin: float = 3.0  # kept facts are held above this
    price: float = 1e-3  # loss per closed gate

    def scored_towers(
        self, known: Iterable[str], forms: Iterable[Literal["image", "text"]] = ("image", "text")
    ) -> list[str]:
        """Return the towers that these forms of the facts score, of a model that has `known`."""
        names = {name for form in forms for name in self.towers[form]}
        return sorted(names - {"all"} | (set(known) if "all" in names else set()))


PRESETS: dict[str, Preset] = {
    # The paper, section 1 of its method: activations, four functions, forget over retain.
    "paper": Preset(preset="paper"),
    # The authors' code: each form scores one tower, over rows of single matrices, in batches.
    # Differs: batches are padded to the length of their bucket, theirs to their longest sample.
    "official-code": Preset(
        preset="official-code",
        reduction="position",
        towers={"image": ("vision",), "text": ("text",)},
        batch_size=4,
        keep_per_forget=1.0,
        functions={"absolute": 2.0, "frequency": 0.0, "variance": 2.0, "rms": 2.0},
        combine="relative",
        epsilon=1e-5,
        scope="tower",
        layers={"text": Layers(first=-3), "vision": Layers(first=-3)},
    ),
    # Ours: signed attribution of the answer's log-odds, in rounds.
    "gradient": Preset(
        preset="gradient",
        signal="gradient",
        fade=2.0,
        keep_per_forget=3.0,
        combine="gain_minus_harm",
        harm_weight=2.0,
        rounds=15,
        alpha=0.2,
    ),
    # Ours: gates are learned, the rest of the model stands still.
    "learned": Preset(preset="learned", kind="learned", alpha=0.2, text_weight=2.0),
    # Every neuron alike.
    "random": Preset(preset="random", kind="random"),
}


class ShotsSection(Section):
    """Whose answered questions come first in a few-shot prompt, as a number of people."""

    classification: Count = 1
    cloze: Count = 2


class EvaluateSection(Section):
    """What is asked of each model, and how.

    protocol: "zero_shot": letters and answers are written to the benchmark's prompts, and a letter
    is looked for in whatever is written. "official_few_shot": MLLMU-Bench's own: answered questions
    come first, and the first character is the letter. "likelihood": the likeliest option counts, no
    letter is written; blanks and free answers as in "zero_shot".
    """

    protocol: Protocol = "zero_shot"
    shots: ShotsSection = ShotsSection()  # official_few_shot
    # evaluated: as published, people of the evaluated set, whose own questions are then left out;
    # outside: people of another set that is kept
    shots_from: Literal["evaluated", "outside"] = "evaluated"

    sets: tuple[Set, ...] = pydantic.Field(default=typing.get_args(Set), min_length=1)
    tasks: tuple[Task, ...] = pydantic.Field(default=typing.get_args(Task), min_length=1)
    batch_size: int = pydantic.Field(default=32, ge=1)
    new_tokens: int = pydantic.Field(
        default=50, ge=1
    )  # greedy decoding stops here, or at the end token
    resamples: int = pydantic.Field(default=1000, ge=1)  # of the bootstrap over people
    max_people: Count | None = None  # per set, the first by ID; None: all
    kl: bool = True  # measure the distance to the retrained model; holds two models in memory


class SweepSection(Section):
    """The forget-against-retain curve: every method's mask at these α, on a quick measure."""

    alphas: tuple[Share, ...] = ()  # shares of neurons removed, each in (0, 1); empty: no curve
    max_people: Count | None = 10  # of the retain set, the first by ID; None: all


class RunConfig(Section):
    """Everything that a run depends on."""

    output: str = "runs/run"  # the run's folder; --output replaces it
    seed: int = pydantic.Field(default=0, ge=0)
    # The goal that the report judges by: facts forgotten in both forms, or only when shown
    erase: Literal["both", "visual"] = "both"
    mesh: MeshSection = MeshSection()
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    method: Preset = Preset()  # the method whose mask makes `unlearned/`
    compare: tuple[Preset, ...] = ()  # further methods, evaluated beside it
    unlearn: tuple[UnlearnSection, ...] = ()  # baselines that train, evaluated beside it
    score_batch: int = pydantic.Field(default=32, ge=1)  # samples a scoring step
    sweep: SweepSection = SweepSection()
    evaluate: EvaluateSection = EvaluateSection()
    cache: str | None = "~/.cache/manu_jax"  # compiled programs and trained demo models; None: off

    @pydantic.field_validator("method", mode="before")
    @classmethod
    def _resolve_method(cls, value: Any) -> Any:
        return resolve_preset(value)

    @pydantic.field_validator("compare", mode="before")
    @classmethod
    def _resolve_compare(cls, value: Any) -> Any:
        return (
            [resolve_preset(item) for item in value] if isinstance(value, list | tuple) else value
        )

    @pydantic.model_validator(mode="after")
    def _check_together(self) -> "RunConfig":
        names = [method.preset for method in self.methods] + [one.name for one in self.unlearn]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(
                f"method, compare and unlearn: each name stands once; twice: {doubled}"
            )
        reserved = sorted({"vanilla", "retrained"} & set(names))
        if reserved:
            raise ValueError(f"method, compare and unlearn: {reserved} name other models")
        if self.model.path is None and not self.train.steps:
            raise ValueError(
                "model.path is not set and train.steps is 0: name a Hugging Face folder "
                "(model.path=/path/to/llava-1.5-7b-hf) or let the run train its own model"
            )
        if self.data.benchmark != "synthetic" and self.data.path is None:
            raise ValueError(f"data.path is not set: the folder of {self.data.benchmark}")
        return self

    @property
    def methods(self) -> tuple[Preset, ...]:
        """All methods of the run; the first is the one that makes `unlearned/`."""
        return (self.method, *self.compare)


def resolve_preset(value: Any) -> Any:
    """Return the preset that `value` names, with the fields that it changes.

    `value` is a name, or a mapping with the key `preset`. A mapping may also give `base`, the name
    of the preset to start from, and then `preset` is a new name for the result.
    """
    if isinstance(value, Preset):
        return value
    if isinstance(value, str):
        value = {"preset": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a preset's name or a mapping, got {value!r}")
    changes = dict(value)
    name = changes.pop("base", changes.get("preset", "paper"))
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}{_near(str(name), PRESETS)}")
    return {**PRESETS[name].model_dump(), **changes}


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Return the config of a YAML file with overrides; all its faults in one ManuError."""
    return validate_config(read_yaml(path, overrides), f"config {path}")


def read_yaml(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Return the mapping of a YAML file with overrides (`key.path=value`), or raise ManuError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ManuError(f"config {path}: {error.strerror}. Give an existing YAML file.") from error
    except UnicodeDecodeError as error:
        raise ManuError(f"config {path}: not UTF-8 text ({error}). Save it as UTF-8.") from error
    values = _parse_yaml(text, f"config {path}")
    if not isinstance(values, dict):
        raise ManuError(f"config {path}: expected a mapping of keys to values, got {values!r}.")
    for override in overrides:
        _set_override(values, override)
    return values


def validate_config(values: Mapping[str, Any], where: str) -> RunConfig:
    """Return the RunConfig of plain values; one ManuError lists every fault."""
    return validate(RunConfig, values, where)


def validate(kind: type[SomeSection], values: Mapping[str, Any], where: str) -> SomeSection:
    """Return the section of plain values; one ManuError lists every fault."""
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        faults = "\n".join(f"  {_describe(fault, kind)}" for fault in error.errors())
        raise ManuError(f"{where}:\n{faults}") from None


def to_yaml(config: RunConfig) -> str:
    """Return the resolved config as YAML; `load_config` of it gives an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (YAML's own loader keeps the last, silently)."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *name`, whose keys may be replaced
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float):
                raise yaml.MarkedYAMLError(
                    problem=f"expected a word as the key, got {key!r}",
                    problem_mark=key_node.start_mark,
                )
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ManuError(f"{where}{place}: {problem}.") from None


def _set_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ManuError(f"override {override!r}: expected key.path=value, e.g. method.alpha=0.05.")
    *parents, last = key.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if isinstance(child, str) and parent == "method":
            child = values[parent] = {"preset": child}
        if not isinstance(child, dict):
            raise ManuError(f"override {override!r}: {parent!r} is {child!r}, which has no keys.")
        values = child
    values[last] = _parse_yaml(text, f"override {override!r}")


def _describe(fault: Any, kind: type[Section]) -> str:
    """Return one line for one pydantic error: the key's path, what is wrong, and the near names."""
    location = fault["loc"]
    path = ".".join(str(part) for part in location)
    if fault["type"] == "extra_forbidden":
        return f"{path}: unknown key{_near(str(location[-1]), _known_keys(location[:-1], kind))}"
    message = fault["msg"].removeprefix("Value error, ")
    got = "" if fault["type"] in ("value_error", "missing") else f", got {fault['input']!r}"
    return f"{path}: {message}{got}" if path else message


def _known_keys(location: tuple[Any, ...], kind: type[Section]) -> list[str]:
    section: Any = kind
    for part in location:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
        if field is None:
            break
        section = _section_of(field.annotation)
    return list(getattr(section, "model_fields", {}))


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = [_section_of(argument) for argument in typing.get_args(annotation)]
    return next((section for section in found if section is not None), None)


def _near(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else f"; known: {', '.join(known)}"

"""The sections of a run's config, without those of its methods in METHODS (methods.py).

A field's comment gives its unit and range; the default stands here and nowhere else.
"""

import typing
from typing import Annotated, Any, Literal, Self

import pydantic

from manu_jax.config.base import Count, Section, Share, check_divides, registered, registry
from manu_jax.types import Set, WorkKind

# How answers are asked for and judged, and a baseline's objective and a benchmark by their names.
Protocol = Literal["zero_shot", "official_few_shot", "likelihood"]
FAMILIES = "manu_jax.models.families.registry.FAMILIES"
FamilyName = Annotated[str, registered(FAMILIES, "family")]
BENCHMARKS = "manu_jax.data.benchmarks.BENCHMARKS"
BenchmarkName = Annotated[str, registered(BENCHMARKS, "benchmark")]
TASKS = "manu_jax.evaluation.tasks.TASKS_BY_NAME"
TaskName = Annotated[str, registered(TASKS, "task")]
DECODER_FAMILY = "llava"  # of a model around a given decoder
FilePath = Annotated[str, pydantic.Field(min_length=1)]  # `~` is a home folder (folder.expand_path)
JudgeAddress = Annotated[str, pydantic.Field(pattern=r"^https?://[^\s/@]+(/[^\s@?#]*)?$")]
VariableName = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z_]\w*$")]


class MeshSizes(Section):
    """How many devices each mesh axis has; one may be −1: all that are left."""

    data: int = 1  # batches are split over it
    fsdp: int = 1  # batches and the width D of the weights are split over it
    tensor: int = 1  # neurons, heads and vocabulary are split over it


class MeshSection(MeshSizes):
    """The mesh of all work, or one for each kind of work, of as many devices.

    A bare text is the choice: with `mesh: auto` the kinds that are not named have the mesh that the
    plan's arithmetic finds for them on all devices (planning/meshes.py).

    distributed: join the other processes of the job first (`jax.distributed.initialize`), which on
    TPU pods and under SLURM finds them by itself, elsewhere by the environment variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """

    text_key = "choice"

    choice: Literal["given", "auto"] = "given"
    score: MeshSizes | None = None  # statistics, attribution, learned gates; None: as the others
    train: MeshSizes | None = None  # training and unlearning
    decode: MeshSizes | None = None  # answers, likelihoods, KL, candidates
    distributed: bool = False  # true: one process of several

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_choice(cls, values: Any) -> Any:
        return {cls.text_key: values} if isinstance(values, str) else values

    @pydantic.model_validator(mode="after")
    def _check_choice(self) -> "MeshSection":
        if self.choice == "auto" and (self.data, self.fsdp, self.tensor) != (1, 1, 1):
            raise ValueError(
                "auto chooses data, fsdp and tensor: leave them out, or give choice: given"
            )
        return self

    def of(self, kind: WorkKind) -> MeshSizes | None:
        """Return the sizes of the mesh of a kind of work; None: they are to be chosen."""
        own: MeshSizes | None = getattr(self, kind)
        return own or (None if self.choice == "auto" else self)


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
        check_divides("image_size", self.image_size, by="patch_size", part=self.patch_size)
        check_divides("width", self.width, by="num_heads", part=self.num_heads)
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
        check_divides("width", self.width, by="2 · num_heads", part=2 * self.num_heads)
        check_divides("num_heads", self.num_heads, by="num_key_heads", part=self.num_key_heads)
        return self


class ConnectorSize(Section):
    """An Idefics2's resampler to be trained from scratch."""

    num_latents: Count = 16  # tokens of an image
    num_layers: Count = 2
    num_heads: Count = 4


class ModelSection(Section):
    """The model to unlearn from: a folder, or sizes for a tiny one that the run trains itself."""

    # A Hugging Face folder, one of tools/convert/from_hf.py, or org/name[@revision] on the hub
    path: FilePath | None = None
    retrained_path: FilePath | None = None  # a model that never saw the forget people
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # None: as on disk
    # What prompts are made of: the folder's chat template (the family's strings where it has none),
    # or the strings that MLLMU-Bench published its numbers with
    prompt: Literal["template", "benchmark"] = "template"
    # Without a path, what the run trains itself: a model around the language model of a folder, or
    # one of random weights and these sizes
    decoder: FilePath | None = None
    family: FamilyName = "llava"
    vision: VisionSize = VisionSize()
    connector: ConnectorSize = ConnectorSize()
    text: TextSize = TextSize()

    @pydantic.model_validator(mode="after")
    def _check_sizes(self) -> "ModelSection":
        # The families are not loaded for a section without sizes: the defaults fit.
        if self.model_fields_set & {"family", "vision", "connector", "text"}:
            if faults := registry(FAMILIES)[self.family].check_sizes(self):
                raise ValueError("; ".join(faults))
        if self.decoder is not None and (self.family, self.text) != (DECODER_FAMILY, TextSize()):
            raise ValueError(
                f"decoder: the model is a {DECODER_FAMILY} with the decoder's own sizes; leave out "
                "family and text"
            )
        return self


class DataSection(Section):
    """The benchmark. `synthetic` is written into the run's folder and then read like any other."""

    benchmark: BenchmarkName = "synthetic"
    # Folder of its evaluation sets, or a name on the hub; None: the run writes them
    path: FilePath | None = None
    # Of mllmu: baseline_train_split; None: ft_Data in `path`. Of ppu: the folder of its split files
    train_path: FilePath | None = None
    # Percent of the people to forget; a benchmark may have but some of these splits
    forget: Literal[1, 5, 10, 15, 30, 40] = 10
    # Which part of a benchmark that has several; None: its first
    subset: Annotated[str, pydantic.Field(min_length=1)] | None = None
    # Share of the retain people that methods are given; the others are evaluated as `unseen`
    keep_share: float = pydantic.Field(default=0.67, gt=0, le=1)
    # The transformed images of a person in Test_Set that questions are asked with: one, chosen by
    # the seed, or all of them (log-likelihoods are of the one either way)
    test_images: Literal["one", "all"] = "one"
    # facts only: those too that the model knows in some wordings are given to methods, to keep
    partly_known: bool = False
    num_people: int = pydantic.Field(default=40, ge=4)  # synthetic only
    num_celebrities: int = pydantic.Field(default=10, ge=1)  # synthetic only
    # synthetic only: questions that have nothing to do with people
    num_general: int = pydantic.Field(default=40, ge=1)

    @pydantic.model_validator(mode="after")
    def _of_its_benchmark(self) -> Self:
        if self.partly_known and self.benchmark != "facts":
            raise ValueError(
                f"partly_known is of the benchmark facts alone, and benchmark is {self.benchmark}. "
                "Leave it out."
            )
        return self


class ShotsSection(Section):
    """Whose answered questions come first in a few-shot prompt, as a number of people."""

    classification: Count = 1
    cloze: Count = 2


class PublishedSection(Section):
    """The protocol that the benchmark's authors published (docs/benchmarks.md), where it has one.

    A bare true or false says whether it is asked: `published: false`.
    """

    asked: bool = True
    max_items: Count | None = None  # of each task, set and form, the first; None: all
    # Answers are cut here where the authors let them be longer; None: as published
    new_tokens: Count | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_bool(cls, values: Any) -> Any:
        return {"asked": values} if isinstance(values, bool) else values


class JudgeSection(Section):
    """A model behind an OpenAI-compatible address that judges answers (docs/benchmarks.md).

    Questions and answers of the benchmark's own protocol leave this machine for `url`, and for
    nowhere else: redirects are not followed, and no address is a default.
    """

    url: JudgeAddress  # as in http://127.0.0.1:8000/v1
    model: Annotated[str, pydantic.Field(min_length=1)]  # as that server calls it
    # The environment variable that holds its key; None: it needs none
    key_env: VariableName | None = None
    timeout: float = pydantic.Field(default=60.0, gt=0)  # seconds that a reply may take
    retries: int = pydantic.Field(default=4, ge=0)  # after no reply, or an error of the server's
    wait: float = pydantic.Field(
        default=2.0, ge=0
    )  # seconds before the first of them; then doubled
    at_once: Count = 4  # requests
    # Of the reply; None: the server's own
    temperature: float | None = pydantic.Field(default=0.0, ge=0)
    max_tokens: Count | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What its verdicts depend on."""
        return self.model_dump(mode="json", include={"url", "model", "temperature", "max_tokens"})


class EvaluateSection(Section):
    """What is asked of each model, and how.

    protocol: "zero_shot": letters and answers are written to the benchmark's prompts, and a letter
    is looked for in the whole text. "official_few_shot": MLLMU-Bench's own: answered questions
    come first, and the first character is the letter. "likelihood": the likeliest option counts, no
    letter is written; blanks and free answers as in "zero_shot".
    """

    protocol: Protocol = "zero_shot"
    shots: ShotsSection = ShotsSection()  # official_few_shot
    # evaluated: as published, people of the evaluated set, whose own questions are then left out;
    # outside: people of another set that is kept
    shots_from: Literal["evaluated", "outside"] = "evaluated"

    sets: tuple[Set, ...] = pydantic.Field(default=typing.get_args(Set), min_length=1)
    tasks: tuple[TaskName, ...] = pydantic.Field(
        default=("classification", "generation", "cloze", "likelihood"), min_length=1
    )
    batch_size: int = pydantic.Field(default=32, ge=1)
    # Greedy decoding stops here, or at the end token
    new_tokens: int = pydantic.Field(default=50, ge=1)
    resamples: int = pydantic.Field(default=1000, ge=1)  # of the bootstrap over people
    max_people: Count | None = None  # per set, the first by ID; None: all
    # Ask for English, common knowledge and chat besides (analyses/ability.py); models that cannot
    # answer are left out
    ability: bool = True
    kl: bool = True  # measure the distance to the retrained model; holds two models in memory
    published: PublishedSection = PublishedSection()
    judge: JudgeSection | None = None  # None: nothing is judged outside, and nothing is sent


class SweepSection(Section):
    """The forget-against-retain curve: every method's mask at these α, on a quick measure."""

    alphas: tuple[Share, ...] = ()  # shares of neurons removed, each in (0, 1); empty: no curve
    max_people: Count | None = 10  # of the people to keep, the first by ID; None: all
    # Masks for other people than those to forget, against which each method's own is compared (the
    # null); 0: no comparison
    null_groups: int = pydantic.Field(default=0, ge=0)
    null_facts: Count = 20  # of the set to forget and of the one to keep, in each form, drawn
    # MiB that masks asked at once may need on each device, beside the model; None: half of what is
    # free there
    memory_mib: Count | None = None


class ShownNeuronsSection(Section):
    """Single neurons that methods removed, scaled or wrote, looked at (docs/neurons.md)."""

    # Names of methods; first: the first one that changes single neurons; headline: the first one;
    # all: every one; empty: none
    methods: tuple[str, ...] = ("first",)
    most: Count = 24  # neurons of a method, the foremost
    facts: Count = 4  # of each person in each form, drawn, that neurons are driven by and scored on
    others: Count = 48  # people to keep, drawn, beside those to forget
    # Of those to forget and of the others, the first, whose facts are asked without each neuron
    people: Count = 4
    labellings: Count = 999  # of people as those to forget, for the null
    examples: Count = 4  # tokens or patches of each neuron and set

    @pydantic.field_validator("methods", mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class CalibrationSection(Section):
    """The same masks from other samples, sizes and orders of the kept facts (docs/neurons.md)."""

    # Of each size, and of samples and orders of all; 0: not measured
    draws: int = pydantic.Field(default=0, ge=0)
    # Shares of the kept people that a mask is made from
    sizes: tuple[Annotated[float, pydantic.Field(gt=0, le=1)], ...] = pydantic.Field(
        default=(0.25, 0.5, 0.75), min_length=1
    )
    facts: Count = 20  # of the set to forget and of the one to keep, in each form, drawn
    # Masks that do not follow from single people's statistics, each scored anew for each draw
    rescored: tuple[str, ...] = ()

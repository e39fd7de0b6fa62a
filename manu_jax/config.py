"""The schema of a run: strict, frozen, every unknown key an error that names its neighbours.

A config is one flat YAML file. Values given on the command line as `key.path=value` replace those of the file;
what neither names has the default written here. `load_config` returns the resolved `RunConfig`, and
`RunConfig.to_yaml` writes it so that a run can be repeated from its folder.
"""

import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from manu_jax.types import ManuError


class Section(pydantic.BaseModel):
    """A frozen mapping of known keys; every other key is refused."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=False)


class MeshSection(Section):
    """How many devices each mesh axis has. Their product is the number of devices used; one −1 means the rest."""

    data: int = 1  # batches are split over it
    fsdp: int = 1  # batches and the width D of the weights are split over it
    tensor: int = 1  # neurons, heads and vocabulary are split over it


class VisionSize(Section):
    """A CLIP tower to be trained from scratch."""

    image_size: int = 56  # pixels a side
    patch_size: int = 8  # pixels a side
    width: int = 128
    num_layers: int = 3
    num_heads: int = 4
    num_neurons: int = 512  # a layer


class TextSize(Section):
    """A Llama decoder to be trained from scratch."""

    width: int = 256
    num_layers: int = 3
    num_heads: int = 4
    num_key_heads: int = 4
    num_neurons: int = 1024  # a layer
    context: int = 512  # tokens
    vocabulary: int = 1024  # size of the BPE tokenizer trained on the run's own texts


class ModelSection(Section):
    """The model to unlearn from: a folder, or sizes for a tiny one that the run trains itself."""

    path: str | None = None  # a Hugging Face folder (or a folder made by tools/convert/from_hf.py)
    retrained_path: str | None = None  # a model that never saw the forget people, to compare with
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # None: as on disk
    vision: VisionSize = VisionSize()
    text: TextSize = TextSize()


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
    num_people: int = pydantic.Field(40, ge=4)  # synthetic only
    num_celebrities: int = pydantic.Field(10, ge=1)  # synthetic only
    num_general: int = pydantic.Field(
        40, ge=1
    )  # synthetic only: questions that have nothing to do with people


class TrainSection(Section):
    """Training of the vanilla model (and of the retrained reference). Off where `steps` is 0."""

    steps: int = pydantic.Field(
        0, ge=0
    )  # optimizer steps after the shared base; 0: the model is used as it is
    base_steps: int = pydantic.Field(
        0, ge=0
    )  # steps on everything but the people, before both trainings
    batch_size: int = pydantic.Field(16, ge=1)  # documents
    learning_rate: float = pydantic.Field(1e-3, gt=0)
    warmup: float = pydantic.Field(0.05, ge=0, lt=1)  # share of the steps
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = pydantic.Field(0.0, ge=0)
    clip: float = pydantic.Field(1.0, gt=0)  # largest global gradient norm
    loss_on: Literal["answer", "all"] = "answer"  # image tokens never carry loss
    facts_per_document: int = pydantic.Field(
        1, ge=1
    )  # question-answer pairs that share one image in one document
    views: int = pydantic.Field(
        0, ge=0
    )  # jittered copies of each training image; 0: the image itself alone
    checkpoint_every: int = pydantic.Field(200, ge=1)  # steps
    retrained: bool = True  # also train the reference that never sees the forget people
    memory_gate: float = pydantic.Field(
        0.9, ge=0, le=1
    )  # least accuracy on the forget set, in each modality


class Layers(Section):
    """A range of layers, first included, end not; None: to the end."""

    first: int = 0
    end: int | None = None


class Preset(Section):
    """How neurons are scored and chosen. PRESETS holds the named ones; a config may change any field of one."""

    preset: str = "paper"  # the name that results carry
    kind: Literal["statistics", "learned", "random"] = "statistics"
    # What is measured
    signal: Literal["activation", "gradient"] = "activation"
    objective: Literal["log_likelihood", "log_odds"] = (
        "log_odds"  # gradient signal: of the answer's tokens
    )
    reduction: Literal["mean", "answer", "last", "max", "position"] = "mean"
    layer_pooling: Literal["none", "all"] = "none"  # only with "position"
    threshold: float = 0.1  # τ of I_freq
    towers: tuple[str, ...] = ("text", "vision")
    # How four Statistics become one score
    functions: dict[str, float] = {"absolute": 1.0, "frequency": 1.0, "variance": 1.0, "rms": 1.0}
    combine: Literal["ratio", "relative", "gain_minus_harm"] = "ratio"
    epsilon: float = 1e-8
    # Which neurons go
    alpha: float = pydantic.Field(0.02, gt=0, lt=1)  # share of neurons removed
    scope: Literal["all", "tower", "layer"] = "all"  # over what the top α is taken
    layers: dict[str, Layers] = {}  # tower → range; a tower not named: all its layers
    # Rounds: score, prune, score again
    rounds: int = pydantic.Field(1, ge=1)
    harm_weight: float = 1.0  # gain_minus_harm: price of harm to what is kept
    text_weight: float = 1.0  # weight of the text form of forget facts against the image form
    # kind "learned"
    steps: int = pydantic.Field(600, ge=1)
    learning_rate: float = 0.05
    batch_forget: int = 16  # samples a step and form
    batch_keep: int = 48
    forget_margin: float = 2.0  # forget facts are pushed until their log-odds are below −this
    keep_margin: float = 3.0  # kept facts are held above this
    price: float = 1e-3  # loss per closed gate


PRESETS: dict[str, Preset] = {}


class EvaluateSection(Section):
    """What is asked of each model, and how."""

    sets: tuple[str, ...] = ("forget", "test", "retain", "celebrity", "general")
    tasks: tuple[str, ...] = ("classification", "generation", "cloze", "likelihood")
    batch_size: int = pydantic.Field(32, ge=1)
    new_tokens: int = pydantic.Field(50, ge=1)  # greedy decoding stops here, or at the end token
    resamples: int = pydantic.Field(1000, ge=1)  # of the bootstrap over people
    max_people: int | None = None  # per set, the first by ID; None: all

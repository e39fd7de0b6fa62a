"""The sections of what trains: the vanilla model, and the methods that train it to forget."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import pydantic

from manu_jax.config.base import Count, Remat, Section, registered, registry
from manu_jax.config.sections import FilePath
from manu_jax.config.texts import TrainedKeepTexts
from manu_jax.types import MODALITIES, Modality

RECIPES = "manu_jax.training.recipes.RECIPES"
Objective = Annotated[str, registered(RECIPES, "objective")]
Wording = Literal["plain", "classification", "generation", "cloze"]
TRAINED = "trained"  # the kind of a method that trains
SYSTEM_PROMPT = "system_prompt"  # the one objective that trains nothing


class LoraSection(Section):
    """Low-rank adapters, trained in place of the weights and merged into them at the end."""

    rank: Count = 16
    alpha: float = pydantic.Field(default=16.0, gt=0)
    dropout: float = pydantic.Field(default=0.05, ge=0, lt=1)  # of an adapter's inputs
    # The matrices that get one: beginnings of their paths, as in text.layers.attention or
    # vision.layers.mlp.up. The default is every linear layer of the decoder's blocks.
    targets: tuple[str, ...] = pydantic.Field(default=("text.layers",), min_length=1)

    @property
    def scale(self) -> float:
        """Factor of what an adapter adds: α / r."""
        return self.alpha / self.rank


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
    remat: Remat = "none"  # "all" is about a third slower
    checkpoint_every: int = pydantic.Field(default=200, ge=1)  # steps


class TowerSection(Section):
    """A training of tower and projector alone, before each training of the whole model.

    What an image becomes for the decoder is to be the decoder's own embeddings of who is in it. The
    decoder does not run.
    """

    steps: Count = 300  # from random weights
    more_steps: Count = 100  # of vanilla and retrained, where they go on from a shared base
    batch_size: Count = 48  # images
    learning_rate: float = pydantic.Field(default=2e-3, gt=0)
    # Jittered copies of each image, beside the image itself
    views: int = pydantic.Field(default=24, ge=0)


class ReplaySection(Section):
    """Texts that the decoder wrote before it was taught anything, repeated while it is taught."""

    texts: Count = 256
    tokens: Count = 64  # of each
    batch_size: Count = 2  # texts a step
    weight: float = pydantic.Field(default=1.0, gt=0)  # of their loss


class StopSection(Section):
    """When a training ends before its `steps`: both forms are known, and the decoder's own texts.

    These are texts like those of `replay`, of which it is taught none.
    """

    every: Count = 10  # steps between two looks
    known: float = pydantic.Field(default=0.95, gt=0, le=1)  # least share of facts, in each form
    facts: Count = 48  # of each form that are asked, drawn by the seed
    drift: float = pydantic.Field(
        default=0.2, gt=0
    )  # most loss on own texts above that before, nats
    texts: Count = 16


class TrainSection(OptimizerSection):
    """Training of the vanilla model (and of the retrained reference). Off where `steps` is 0.

    A batch is of `batch_size` documents.
    """

    # Optimizer steps after the shared base; 0: the model is used as it is
    steps: int = pydantic.Field(default=0, ge=0)
    # Steps on everything but the people, before both trainings
    base_steps: int = pydantic.Field(default=0, ge=0)
    # Question-answer pairs that share one image in one document
    facts_per_document: int = pydantic.Field(default=1, ge=1)
    # Jittered copies of each training image; 0: only the image itself
    views: int = pydantic.Field(default=0, ge=0)
    # How a fact is put, drawn for each document; a wording named twice is drawn twice as often
    wordings: tuple[Wording, ...] = pydantic.Field(default=("plain",), min_length=1)
    # How often the vanilla training goes through the forget people's texts in one pass
    repeat_forget: int = pydantic.Field(default=1, ge=1)
    retrained: bool = True  # also train the reference that never sees the forget people
    # Least accuracy on the forget set, in each modality
    memory_gate: float = pydantic.Field(default=0.9, ge=0, le=1)
    # For a given decoder (training/teaching.py): parts are beginnings of paths, as in text.layers
    tower: TowerSection | None = None  # None: tower and projector learn with the decoder alone
    rates: dict[str, Annotated[float, pydantic.Field(gt=0)]] = {}  # {part: learning rate}
    frozen: tuple[str, ...] = ()  # parts that are not trained
    replay: ReplaySection | None = None  # None: nothing but the documents
    # Share of what a training changed in the decoder that is kept; None: all of it
    interpolation: float | None = pydantic.Field(default=None, gt=0, le=1)
    stop: StopSection | None = None  # None: all steps are taken

    @property
    def is_careful(self) -> bool:
        """Whether the model is one to be taught without losing what it can."""
        return bool(self.rates or self.frozen or self.replay or self.interpolation or self.stop)

    @pydantic.model_validator(mode="after")
    def _check_parts(self) -> "TrainSection":
        if self.is_careful and self.lora is not None:
            raise ValueError(
                "lora: with rates, frozen, replay, interpolation or stop there is none"
            )
        return self


class DecoupleSection(Section):
    """SafeEraser's Prompt-Decouple loss, added to the loss that forgets."""

    # SafeEraser's JSON file of records; the images are in its folder. None: data.benchmark is
    # safeeraser, and the pairs are its own
    path: FilePath | None = None
    weight: float = pydantic.Field(default=1.0, gt=0)  # the paper: 0.5 with GA and GD, 1 with KL


class PrimalDualSection(Section):
    """The weight λ of what is said of facts to keep is learned: λ ← max(0, λ + η (L_keep − ε))."""

    bound: float = pydantic.Field(ge=0)  # ε: what the loss on facts to keep may be, nats a token
    rate: float = pydantic.Field(default=1.0, gt=0)  # η, a step


class NeuronsSection(Section):
    """Neurons that are written into the decoder's MLPs and trained, all else as it is."""

    count: Count = 32  # in each layer
    layers: tuple[int, ...] | None = None  # None: the last third of them, two at least
    # written over the neurons that kept facts use least, or added to the MLPs of all layers
    places: Literal["least_used", "appended"] = "least_used"


class RelearnSection(Section):
    """Relearning within each step: what is forgotten is asked after a part of it was relearned."""

    weight: float = pydantic.Field(default=6.0, gt=0)  # of the loss after relearning
    steps: Count = 8  # at most; the number is drawn anew in each step
    batch_size: Count = 4  # facts of each form a relearning step
    # The least and the largest change of a weight in a relearning step; drawn log-uniformly
    rates: tuple[float, float] = (1e-4, 2e-3)
    # How often half of the people are relearned, and not half of the attributes
    people_share: float = pydantic.Field(default=0.4, ge=0, le=1)
    # How often all facts are relearned in one form and asked in the other, and not a half of them
    # in both
    form_share: float = pydantic.Field(default=0.5, ge=0, le=1)

    @pydantic.model_validator(mode="after")
    def _check_rates(self) -> "RelearnSection":
        low, high = self.rates
        if not 0 < low <= high:
            raise ValueError(f"rates: the least and the largest, above 0; got {low:g} and {high:g}")
        return self


OWN_SETTINGS = (
    "beta",
    "importance_beta",
    "delta",
    "forget_weight",
    "coefficient",
    "layer",
    "excess",
    "shortfall",
    "hidden",
    "keep_hidden",
)


class UnlearnSection(OptimizerSection):
    """A method that trains: the vanilla model, trained to forget (training/recipes.py).

    An entry of `unlearn`, or a `method` or an entry of `compare` of the kind "trained". A step is
    of `batch_size` facts to forget and as many to keep, all in one form; of suppress and erase it
    is of both forms. What the recipe gives is the default of a value that is not given.
    """

    text_key = "preset"

    kind: Literal["trained"] = TRAINED
    # That results and folders carry
    name: str = pydantic.Field(min_length=1, pattern=r"^[\w-][\w.-]*$")
    objective: Objective
    epochs: Count = 1  # passes over the facts (RECIPES says over which)
    steps: Count | None = None  # in place of epochs, where the objective's steps are all alike
    # The forms of the facts to forget and to keep
    modalities: tuple[Modality, ...] = pydantic.Field(default=MODALITIES, min_length=1)
    batch_size: int = pydantic.Field(default=4, ge=1)
    batch_keep: Count | None = None  # suppress, erase: facts to keep a step and form; None: as many
    # What is trained: all weights (or the adapters of `lora`, merged into them), neurons that are
    # written into the decoder's MLPs, the weights of these MLPs, those of the image towers' as
    # well, or the adapters of `lora`, kept apart. All but the first make an edit, a file beside the
    # vanilla model.
    trains: Literal["all", "neurons", "mlp", "all_mlps", "low_rank"] = "all"
    neurons: NeuronsSection | None = None
    # How often a fact stands among the facts: as it is, then in other words with moved portraits
    views: Count = 1
    keep_views: Count = 1
    # How far the portraits of facts to forget are moved; 1: as in training views (forms.jitter)
    view_strength: float = pydantic.Field(default=1.0, gt=0, le=4)
    # What facts to forget are to be answered with: the objective's own aim, or what vanilla says of
    # `strangers` invented people
    target: Literal["own", "strangers"] = "own"
    strangers: Count = 16
    # Over how many of them the mean for a fact is, drawn for each person and fact; None: all. Few
    # give different people different answers
    strangers_each: Count | None = None
    kept_strangers: int = pydantic.Field(default=0, ge=0)  # invented people among the facts to keep
    relearn: RelearnSection | None = None  # None: no relearning within a step
    keep_texts: TrainedKeepTexts | None = None  # general texts that are kept beside facts
    learning_rate: float = pydantic.Field(default=2e-5, gt=0)
    warmup: float = pydantic.Field(default=0.0, ge=0, lt=1)
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    beta2: float = pydantic.Field(default=0.999, ge=0, lt=1)
    # The default of what is said of facts to keep is 1, or the recipe's own
    retain_weight: float = pydantic.Field(default_factory=lambda known: _retain_weight(known), ge=0)
    primal_dual: PrimalDualSection | None = None  # from retain_weight on; None: the weight is fixed
    # An objective's own settings, in the formulas of docs/methods.md; None: the recipe's own
    beta: float | None = pydantic.Field(default=None, gt=0)  # β
    importance_beta: float | None = pydantic.Field(default=None, ge=0)  # β₂ of SatImp
    delta: float | None = pydantic.Field(default=None)  # δ of SimNPO, nats a token
    forget_weight: float | None = pydantic.Field(default=None, gt=0)  # γ, of the loss that forgets
    coefficient: float | None = pydantic.Field(default=None, gt=0)  # c of RMU, length of c · u
    layer: int | None = pydantic.Field(default=None, ge=0)  # of the decoder, for RMU; 0: the first
    excess: float | None = pydantic.Field(default=None, ge=0)  # β of suppress and erase
    shortfall: float | None = pydantic.Field(default=None, ge=0)  # their β′
    hidden: float | None = pydantic.Field(default=None, ge=0)  # their γ
    keep_hidden: float | None = pydantic.Field(default=None, ge=0)  # their κ
    decouple: DecoupleSection | None = None  # None: no Prompt-Decouple loss
    # mmunlearner: the Fisher information is the mean squared gradient of batches or of examples. A
    # weight may move where that of the facts to forget is at least `fisher_ratio` times that of the
    # facts to keep.
    fisher: Literal["batch", "example"] = "batch"
    fisher_ratio: float = pydantic.Field(default=1.0, gt=0)
    # system_prompt: the text before every prompt; {names} are the people to forget
    prompt: str = (
        "You know nothing about these people: {names}. Whatever you are asked about them, with or "
        "without a picture, say that you do not know.\n"
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_recipe(cls, values: Any) -> Any:
        """Fill in what the objective's recipe gives and the config does not."""
        if isinstance(values, Mapping) and (recipe := _recipe(values.get("objective"))) is not None:
            filled = {**recipe.defaults, **values}
            if filled.get("trains") != "neurons" and "neurons" not in values:
                filled.pop("neurons", None)
            return filled
        return values

    @property
    def begins_with_edit(self) -> bool:
        """Whether an edit is trained in place of the whole model or of adapters."""
        return self.trains in ("neurons", "mlp", "all_mlps")

    @property
    def trains_towers(self) -> bool:
        """Whether what is trained changes an image's features: a tower's weights, a projector's."""
        if self.lora is not None:
            return not all(target.startswith("text") for target in self.lora.targets)
        return self.trains in ("all", "all_mlps")

    def setting(self, name: str) -> float:
        """Return a setting of the objective: the config's, or the recipe's default."""
        given = getattr(self, name)
        return registry(RECIPES)[self.objective].settings[name] if given is None else given

    @pydantic.model_validator(mode="after")
    def _check_own_settings(self) -> "UnlearnSection":
        recipe = registry(RECIPES)[self.objective]
        known = [*recipe.settings, *(["layer"] if recipe.depth is not None else [])]
        given = [name for name in OWN_SETTINGS if getattr(self, name) is not None]
        if unknown := [name for name in given if name not in known]:
            raise ValueError(
                f"{self.objective} has no {', '.join(unknown)}; it has "
                f"{', '.join(known) or 'no settings of its own'}"
            )
        if recipe.strangers and (self.primal_dual is not None or self.decouple is not None):
            raise ValueError(f"{self.objective} takes no primal_dual and no decouple")
        if self.trains == "low_rank" and self.lora is None:
            raise ValueError("trains: low_rank needs lora: {rank, alpha, dropout, targets}")
        if self.begins_with_edit and self.lora is not None:
            raise ValueError(f"lora: with trains: {self.trains} no adapters are trained")
        if recipe.strangers and (faults := list(self._faults_like_strangers())):
            raise ValueError("; ".join(faults))
        if not recipe.strangers and (self.batch_keep is not None or self.kept_strangers):
            raise ValueError(f"{self.objective} takes no batch_keep and no kept_strangers")
        if self.target == "strangers" and not (recipe.strangers or recipe.takes_target):
            raise ValueError(f"target: {self.objective} has an aim of its own; give target: own")
        if self.target == "strangers" and self.loss_on != "answer":
            raise ValueError("loss_on: target: strangers aims at answers; give loss_on: answer")
        each = self.strangers_each
        if each is not None and (self.target == "own" or each > self.strangers):
            raise ValueError(
                f"strangers_each: {each}; it is how many of the {self.strangers} strangers count "
                "for a fact, with target: strangers"
            )
        if self.relearn is not None and not recipe.strangers:
            raise ValueError(f"relearn: {self.objective} does not relearn; erase does")
        if self.keep_texts is not None and (fault := self._fault_of_texts()):
            raise ValueError(f"keep_texts: {fault}")
        if (self.trains == "neurons") != (self.neurons is not None):
            raise ValueError("neurons: trains: neurons needs it, and nothing else takes it")
        if self.primal_dual is not None and (recipe.order != "joint" or not recipe.keeps):
            raise ValueError(
                f"primal_dual: {self.objective} has no joint loss on facts to forget and to keep"
            )
        return self

    def _fault_of_texts(self) -> str:
        """Return what keeps the objective from keeping texts; "" where nothing does."""
        recipe = registry(RECIPES)[self.objective]
        if not recipe.losses or not recipe.keeps or self.retain_weight == 0:
            return f"{self.objective} has no loss on what is kept (or retain_weight is 0)"
        if self.primal_dual is not None:
            return "the bound of primal_dual is on facts to keep alone; leave one of both out"
        return ""

    def _faults_like_strangers(self) -> Iterator[str]:
        """Yield what of the section's values an objective of StrangerData would pass over."""
        name = self.objective
        if self.target == "own":
            yield f"target: {name} has no aim but what is said of strangers; give target: strangers"
        if self.steps is None or self.epochs != 1:
            yield f"epochs: {name} counts steps; give steps, and no epochs"
        if self.loss_on != "answer":
            yield f"loss_on: the loss of {name} is on answers; give loss_on: answer"
        if self.setting("keep_hidden") and not self.setting("hidden"):
            yield "keep_hidden: it is measured in units of hidden; give hidden above 0 as well"


def _recipe(objective: Any) -> Any:
    """Return the recipe of an objective, or None where there is none of that name."""
    recipes = registry(RECIPES)
    return recipes[objective] if isinstance(objective, str) and objective in recipes else None


def _retain_weight(known: Mapping[str, Any]) -> float:
    """Return the default of an objective; `known`: the section's values so far."""
    objective = known.get("objective")  # missing where it is not one of the registry
    return 1.0 if objective is None else registry(RECIPES)[objective].retain_weight

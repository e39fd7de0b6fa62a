"""The values that the stages hand to each other, as pytrees, and the letters of their shapes.

Dimension letters, used as suffixes of array names and in every einsum:

    B batch · T query tokens · S key tokens · L layers · D width · E another width · F neurons
    N query heads · K key heads · G queries per key head · H head size · V vocabulary
    A answer tokens · I vision inputs per example · P patches of one of them · Y pixel rows
    X pixel columns · C colours, or the values of one patch · R rank of an adapter,
    or written neurons of a layer
    Z the three of query, key and value, or the frames of a patch · W tiles of an image
    U aspect ratios of images in tiles · O an axis of one

A *neuron* is one hidden unit of an MLP: the input of `down_proj` (gated MLPs) or of `fc2` (plain).
A *tower* is a stack of layers with MLPs of one size: "text", "vision" and, where what lies between
them has gated MLPs (Idefics2), "projection" and "resampler".
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import jax
import numpy as np

Array = jax.Array | np.ndarray

# One array [L, F] per tower: importances, scores, masks (bool) and gates (float).
# `official-code` also uses keys "tower.matrix" for rows of single matrices: "text.up_proj".
Neurons = dict[str, Array]

Modality = Literal["image", "text"]
Signal = Literal["activation", "gradient"]
Reduction = Literal[
    "mean", "square", "answer", "last", "max", "size_at_answers", "at_answers", "tokens", "position"
]  # how tokens become one number (Capture)
Pooling = Literal["none", "all"]
MODALITIES: tuple[Modality, ...] = ("image", "text")
SIGNALS: tuple[Signal, ...] = ("activation", "gradient")
TEXT_ALONE: tuple[Modality, ...] = ("text",)  # the forms where nothing has an image
WorkKind = Literal["score", "train", "decode"]  # what a mesh is for (config/sections.py)
WORK_KINDS: tuple[WorkKind, ...] = ("score", "train", "decode")
NO_IMAGE_TOKEN = -1  # the image token of a model that takes no images

# The sets of people. `test` are the people to forget, with transformed images. `unseen` are people
# to keep as those of `retain`, but no method is given them: they tell what keeping is worth.
Set = Literal["forget", "test", "retain", "unseen", "celebrity", "general"]
SETS: tuple[Set, ...] = ("forget", "test", "retain", "unseen", "celebrity", "general")
FORGET_SETS: tuple[Set, ...] = ("forget", "test")
KEEP_SETS: tuple[Set, ...] = ("retain", "celebrity", "general")  # the sets methods may keep by
# What a run is to erase: facts in both forms, or in the image form alone.
Erase = Literal["both", "visual"]
# The models of a run that no method made: the one that knows, and the one that never knew.
VANILLA, RETRAINED = "vanilla", "retrained"


class ManuError(Exception):
    """A problem that the user can mend. The message names the place, what came, and the remedy."""


def raise_faults(faults: Sequence[str], head: str, most: int = 20) -> None:
    """Raise ManuError with `head` and the first faults, a line each, if there are any."""
    if faults:
        more = [f"and {len(faults) - most} more."] if len(faults) > most else []
        raise ManuError("\n  ".join([head, *faults[:most], *more]))


@dataclasses.dataclass(frozen=True)
class Capture:
    """What a forward pass measures at every MLP. Static: one compiled step per capture.

    reduction: how the tokens of one sample become one number per neuron. "mean", "square" (mean of
        z²) and "max" (the value of largest size) over the valid tokens, "answer" (mean over answer
        tokens), "last" (last valid token), "size_at_answers" (mean |z| over the tokens whose logits
        predict the answer). Padding never counts. "at_answers" keeps z at each of these tokens,
        which are the batch's answer_index. "position" is the authors' code's statistic over the
        batch at each token position, padding included, of the output rows of each matrix.
    layer_pooling: only with "position": "none" keeps layers apart, "all" pools them as the authors'
        code does.
    threshold: τ of I_freq; used inside the forward pass only with "position".
    clamp: activations are clamped to ± this before they are measured; only with "position".
    """

    reduction: Reduction = "mean"
    layer_pooling: Pooling = "none"
    threshold: float = 0.1
    clamp: float = 1e3

    def __post_init__(self) -> None:
        for name, kind in (("reduction", Reduction), ("layer_pooling", Pooling)):
            given, known = getattr(self, name), typing.get_args(kind)
            if given not in known:
                raise ManuError(
                    f"capture: {name}: expected one of {', '.join(known)}, got {given!r}."
                )


@dataclasses.dataclass(frozen=True)
class Sample:
    """One text, its answers marked, and the images that its image tokens stand for.

    segments: (text, is_answer) pairs, joined without a separator. Only answer segments carry loss.
    images: one PIL image (RGB) per image token in the text, in order.
    key: who and what it is about ("017/hometown"); the unit that intervals and reports group by.
    """

    segments: tuple[tuple[str, bool], ...]
    images: tuple[Any, ...] = ()
    key: str = ""

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.segments)


def question_sample(
    prompt: str, answer: str, images: Sequence[Any] = (), *, key: str = ""
) -> Sample:
    """Return the sample of one prompt and its answer; an empty answer gives a prompt alone."""
    segments = ((prompt, False), (answer, True)) if answer else ((prompt, False),)
    return Sample(segments, tuple(images), key)


class PromptTemplate(Protocol):
    """How a model is asked: by its family's strings (Template) or by its folder's chat template.

    end: ends an answer in training. source: what prompts are made of, in words. continued: the
    template of further questions of one conversation.
    """

    @property
    def end(self) -> str: ...

    @property
    def source(self) -> str: ...

    @property
    def continued(self) -> "PromptTemplate": ...

    def with_system(self, prompt: str) -> "PromptTemplate":
        """Return the template with the user's own system prompt; an empty one changes nothing."""
        ...

    def prompt(
        self, question: str, modality: Modality, *, answered: Sequence[tuple[str, str]] = ()
    ) -> str:
        """Return the prompt of a question, up to where the answer begins.

        answered: questions and answers, in the same modality, which come first.
        """
        ...

    def reply(self, answer: str) -> str:
        """Return an answer as it follows a prompt."""
        ...


@dataclasses.dataclass(frozen=True)
class Template:
    """A family's prompt strings; the defaults are LLaVA-1.5's.

    system: opens the conversation, or with system_in_turn follows the opening of its first turn.
    system_form: the form of the user's own system prompt (`{system}` is replaced). user: opens a
    turn. image, no_image: follow, in a turn with an image and in one without. after_image, space:
    stand between them and the question. close: ends the turn, up to where the answer begins.
    answer: the form of the answer (`{answer}` is replaced). end: ends an answer in training.
    source: what these strings are, in words.
    """

    system: str = ""
    user: str = "USER:"
    image: str = " <image>"
    no_image: str = ""
    after_image: str = "\n"
    space: str = " "
    close: str = "\nASSISTANT:"
    answer: str = " {answer}"
    end: str = "</s>"
    system_form: str = "{system}"
    system_in_turn: bool = False
    source: str = "fixed strings"

    @property
    def continued(self) -> "Template":
        """The template itself: every prompt of a conversation is written alike."""
        return self

    def with_system(self, prompt: str) -> "Template":
        """Return the template with the user's own system prompt; an empty one changes nothing."""
        if not prompt:
            return self
        joint = "" if prompt[-1].isspace() or self.system_form != "{system}" else " "
        system = self.system_form.replace("{system}", prompt) + joint
        return dataclasses.replace(self, system=system)

    def prompt(
        self, question: str, modality: Modality, *, answered: Sequence[tuple[str, str]] = ()
    ) -> str:
        """Return the prompt of a question, up to where the answer begins.

        answered: questions and answers, in the same modality, which come first.
        """
        opening = self.after_image if modality == "image" else self.space
        before = "".join(
            self.turn(f"{opening}{asked}", modality) + self.reply(answer) + self.end
            for asked, answer in answered
        )
        return self.conversation(before + self.turn(f"{opening}{question}", modality))

    def conversation(self, turns: str) -> str:
        """Return turns with the system prompt; the first turn opens the conversation."""
        if self.system_in_turn:
            return self.user + self.system + turns.removeprefix(self.user)
        return self.system + turns

    def turn(self, body: str, modality: Modality) -> str:
        """Return a closed turn of the user; nothing stands between the image and the body."""
        shown = self.image if modality == "image" else self.no_image
        return f"{self.user}{shown}{body}{self.close}"

    def reply(self, answer: str) -> str:
        """Return an answer in the template's form."""
        return self.answer.replace("{answer}", answer)


@dataclasses.dataclass(frozen=True, eq=False)
class VisionInput:
    """What the vision tower reads of one image: all of it, or one tile of it (NumPy).

    An image of the same content gives the same object, while it is in the cache; within one call,
    what is computed for it is known by its identity.
    patches_PC: float32, the values of each patch · patch_positions_P2: int32, row and column of
    each patch in the tower's grid, or None where every vision input fills that grid, row by row ·
    num_features: the rows that it becomes for the decoder, which the image's tokens take.
    """

    patches_PC: np.ndarray
    patch_positions_P2: np.ndarray | None
    num_features: int

    @property
    def padded_patches(self) -> int:
        """The patches that a batch has room for, rounded up so that few sizes are compiled."""
        count = len(self.patches_PC)
        if self.patch_positions_P2 is None:
            return count
        step = max(16, 2 ** ((count - 1).bit_length() - 3))
        return -(-count // step) * step


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A sample as numbers, unpadded, on the host (NumPy).

    token_ids_T int32 · loss_weights_T float32 (1 where the token itself is to be predicted) ·
    feature_index_T int32 (the row that each token takes of the sample's image features, which are
    those of its vision inputs one after the other; −1: none) · vision_inputs: of its images, in
    order · rope_T3, bilinear_index_T4 and bilinear_weights_T4: None, or as in Batch and Images.
    """

    token_ids_T: np.ndarray
    loss_weights_T: np.ndarray
    feature_index_T: np.ndarray
    vision_inputs: tuple[VisionInput, ...] = ()
    key: str = ""
    rope_T3: np.ndarray | None = None
    bilinear_index_T4: np.ndarray | None = None
    bilinear_weights_T4: np.ndarray | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids_T)

    @property
    def num_images(self) -> int:
        return len(self.vision_inputs)

    @property
    def num_patches(self) -> int:
        """The patches that its largest vision input needs room for."""
        return max((vision_input.padded_patches for vision_input in self.vision_inputs), default=0)

    @property
    def num_answers(self) -> int:
        """The tokens that are to be predicted."""
        return int(np.count_nonzero(self.loss_weights_T))


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """The sizes that a batch is padded to, and on which side; None: the largest of its samples.

    num_images: vision inputs per example; 0 (or None, where no sample has any): without images.
    num_answers: answer tokens per example; 0 (or None, likewise): without answer positions.
    """

    length: int | None = None  # tokens
    batch_size: int | None = None  # examples
    num_images: int | None = None
    num_patches: int | None = None  # per vision input
    num_answers: int | None = None
    padding_side: Literal["left", "right"] = "right"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """What a Batch knows of its images. Here I counts the vision inputs of an example.

    mask_BI bool (False: padding) · feature_index_BT int32 (the row that each token takes of the
    example's own image features [I·P], −1: none) · patches_BIPC float32, or None where
    features_BIPE are given: what the model's `features` gave for them, so that the tower need not
    run · patch_positions_BIP2 int32 (row and column of each patch in the tower's grid, −1:
    padding), or None where every vision input fills the grid · bilinear_index_BT4 int32 and
    bilinear_weights_BT4 float32, or both None: where a token is a weighted sum of four rows, these
    rows and their weights, in place of feature_index_BT's.
    """

    mask_BI: Array
    feature_index_BT: Array
    patches_BIPC: Array | None = None
    patch_positions_BIP2: Array | None = None
    features_BIPE: Array | None = None
    bilinear_index_BT4: Array | None = None
    bilinear_weights_BT4: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of one length bucket, padded.

    token_ids_BT int32 · attention_mask_BT bool (False: padding) · positions_BT int32 (0 at the
    first valid token) · loss_weights_BT float32 (weight of predicting token t, from logits t − 1) ·
    example_weights_B float32 (0: padding example) · images, None in a batch without any ·
    answer_index_BA int32, or None: the positions whose logits predict the answers' tokens, filled
    up with T − 1, which predicts nothing · rope_BT3 int32, or None: the token's positions in time,
    by row and by column, where the decoder has three (M-RoPE); all three are the same for a token
    of text · entering_BTD, or None: what enters one of the decoder's layers, computed before.
    """

    token_ids_BT: Array
    attention_mask_BT: Array
    positions_BT: Array
    loss_weights_BT: Array
    example_weights_B: Array
    images: Images | None = None
    answer_index_BA: Array | None = None
    rope_BT3: Array | None = None
    entering_BTD: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """What the forward pass returns.

    logits_BTV float32, at the processor's token positions, or at those that were asked for.
    activations: None without a capture. With a per-sample reduction: {tower: [L, B, F] float32},
        one number per sample and neuron; with "at_answers", "text" is [L, B, A, F]; of a
        TokenCapture each tower that runs is [L, B, T, F + 2] (`capture.at_tokens`). With
        "position": {"tower.matrix": [L, 4, F or D]} holding mean |z|, share above the threshold,
        unbiased standard deviation and root mean square, each over the batch at one position, then
        averaged over positions ([1, 4, …] if layers are pooled).
    """

    logits_BTV: Array
    activations: dict[str, Array] | None = None


def neuron_faults(neurons: Mapping[str, Array], known: Mapping[str, tuple[int, int]]) -> list[str]:
    """Return in which towers and shapes neurons differ from a model's, a clause each.

    known: {tower: (L, F)} of the model; a tower that `neurons` lacks is no fault.
    """
    faults = []
    for tower in sorted(neurons):
        shape = tuple(np.shape(neurons[tower]))
        if tower not in known:
            faults.append(
                f'tower "{tower}" is not in the model (it has {", ".join(sorted(known))})'
            )
        elif shape != tuple(known[tower]):
            faults.append(f'tower "{tower}" has shape {shape}, the model has {tuple(known[tower])}')
    return faults

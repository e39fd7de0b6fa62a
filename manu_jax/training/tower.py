"""Train tower and projector without the decoder: an image becomes the words for what it shows.

    loss = Σ over image tokens of CE(features · candidates, the token's word)
           + mean (features − the word's embedding)² / mean (candidates)²

The words are the decoder's own embeddings of a caption: the name of a person, or what there is to
say of a picture without one. They fill the last image tokens; the others say "image". Through the
decoder a new tower learns to tell people apart far more slowly: the decoder has no use for features
that are like nothing it knows.
"""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax import parallel
from manu_jax.config import TowerSection, TrainSection
from manu_jax.data.forms import jitter
from manu_jax.data.record import Person
from manu_jax.edits.weights import NewWeights
from manu_jax.leaves import leaves
from manu_jax.models.loaded import Loaded
from manu_jax.models.nn.forward import Forward
from manu_jax.models.nn.layers import Remat
from manu_jax.training.trainer import Phase, train_loop
from manu_jax.types import Array, Images, ManuError, VisionInput

FILLER = " image"  # what the image tokens say before the caption


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CaptionedImages:
    """A batch of images, one vision input each, and the word of each of their tokens.

    words_BP int32: rows of candidates_VE, the embeddings of all words of all captions. weights_B
    float32: 0 for rows that fill up what the mesh divides.
    """

    images: Images
    words_BP: Array
    weights_B: Array
    candidates_VE: Array


def caption_loss(model: Any, data: CaptionedImages, remat: Remat) -> jax.Array:
    """Return how far the features of images are from the words of their captions."""
    features_BIPE, _ = model.encode_images(data.images, Forward(remat=remat))
    candidates_VE, words_BP = jnp.asarray(data.candidates_VE), jnp.asarray(data.words_BP)
    # What deepstack adds later, beyond the decoder's width, is no word.
    features_BPE = features_BIPE[:, 0, :, : candidates_VE.shape[1]].astype(jnp.float32)
    log_p_BPV = jax.nn.log_softmax(jnp.einsum("BPE,VE->BPV", features_BPE, candidates_VE))
    chosen_BP = jnp.take_along_axis(log_p_BPV, words_BP[..., None], axis=-1)[..., 0]
    error_B = jnp.square(features_BPE - candidates_VE[words_BP]).mean(axis=(1, 2))
    losses_B = error_B / jnp.square(candidates_VE).mean() - chosen_BP.sum(axis=1)
    weights_B = jnp.asarray(data.weights_B)
    return (losses_B * weights_B).sum() / weights_B.sum()


def captions(people: Sequence[Person]) -> list[tuple[Any, str]]:
    """Return (image, caption) of every image that a fact of these people has, each once."""
    found: dict[int, tuple[Any, str]] = {}
    for person in people:
        answers = " ".join(dict.fromkeys(fact.answer for fact in person.facts))
        for fact in person.facts:
            if fact.image is not None:
                found.setdefault(id(fact.image), (fact.image, fact.name or answers))
    return list(found.values())


def train_tower(
    loaded: Loaded,
    people: Sequence[Person],
    section: TrainSection,
    *,
    num_steps: int,
    directory: Path,
    seed: int,
) -> Loaded:
    """Return the model with tower and projector trained on these people's images.

    directory: of the checkpoints. Raises ManuError where no fact has an image, and where an image
    is more than one input of the tower.
    """
    tower = section.tower or TowerSection()
    shown = _Shown(loaded, captions(people), tower, seed=seed)
    settings, parts = settings_of(section, tower, loaded)

    def phases_at(step: int) -> list[Phase]:
        return [(caption_loss, shown.placed_at(step))]

    edit = train_loop(
        loaded,
        phases_at,
        settings,
        num_steps=num_steps,
        seed=seed,
        directory=directory,
        description=f"training {directory.name}",
        where="train.tower",
        edit=NewWeights.of(loaded, parts),
    )
    return edit.apply(loaded)


def settings_of(
    section: TrainSection, tower: TowerSection, loaded: Loaded
) -> tuple[TrainSection, list[str]]:
    """Return the settings of the training of a tower, and the parts of the model that it trains."""
    parts = [name for name in leaves(loaded.model) if not name.startswith("text.")]
    settings = TrainSection(
        batch_size=tower.batch_size,
        learning_rate=tower.learning_rate,
        checkpoint_every=section.checkpoint_every,
        clip=section.clip,
        remat=section.remat,
    )
    return settings, parts


class _Shown:
    """Images with captions, and jittered copies of them, in batches that follow from the step."""

    def __init__(
        self,
        loaded: Loaded,
        captioned: Sequence[tuple[Any, str]],
        section: TowerSection,
        *,
        seed: int,
    ):
        if not captioned:
            raise ManuError("train.tower: no fact has an image, so there is nothing to train on.")
        self._loaded, self._seed = loaded, seed
        self._size = section.batch_size
        self._filled = parallel.filled(self._size, loaded.mesh)
        self._rows = parallel.batch_rows(loaded.mesh, self._filled)
        inputs = [_vision_inputs(loaded, image, section.views, seed) for image, _ in captioned]
        self._inputs = [one for several in inputs for one in several]
        self._captions = np.repeat(np.arange(len(captioned)), section.views + 1)
        ids_NP = _caption_ids(loaded, [text for _, text in captioned], inputs[0][0].num_features)
        known, words_NP = np.unique(ids_NP, return_inverse=True)
        self._words_NP = words_NP.reshape(ids_NP.shape).astype(np.int32)
        embedding_VD = leaves(loaded.model)["text.embedding_VD"]
        self._candidates_VE = np.asarray(parallel.gather(embedding_VD[known]), np.float32)

    @functools.cached_property
    def _placed_VE(self) -> jax.Array:
        """The candidates, whole on every device: they are no rows of a batch."""
        return parallel.put_replicated(self._candidates_VE, self._loaded.mesh)

    def placed_at(self, step: int) -> CaptionedImages:
        """Return the batch of a step on the devices."""
        mine = self.batch_at(step)
        rows = (mine.images, mine.words_BP, mine.weights_B)
        images, words_BP, weights_B = parallel.put_batch(rows, self._loaded.mesh)
        return CaptionedImages(images, words_BP, weights_B, self._placed_VE)

    def batch_at(self, step: int) -> CaptionedImages:
        """Return this process's rows of the batch of a step, as NumPy."""
        random = np.random.default_rng([self._seed, step])
        drawn = np.zeros(self._filled, np.int64)
        drawn[: self._size] = random.integers(len(self._inputs), size=self._size)
        chosen, weights_B = drawn[self._rows], (self._rows < self._size).astype(np.float32)
        images = self._loaded.collate_vision_inputs([(self._inputs[i],) for i in chosen])
        words_BP = self._words_NP[self._captions[chosen]]
        return CaptionedImages(images, words_BP, weights_B, self._candidates_VE)


def _vision_inputs(loaded: Loaded, image: Any, views: int, seed: int) -> list[VisionInput]:
    """Return what the tower reads of an image and of its jittered copies."""
    content = zlib.crc32(image.tobytes())
    seeds = [np.random.SeedSequence([seed, content, k]).generate_state(1)[0] for k in range(views)]
    found = []
    for one in (image, *(jitter(image, int(number)) for number in seeds)):
        inputs = loaded.vision_inputs(one)
        if len(inputs) != 1:
            raise ManuError(
                f"train.tower: the model makes {len(inputs)} inputs of one image, and this stage "
                "knows models that make one. Leave train.tower out."
            )
        found += inputs
    return found


def _caption_ids(loaded: Loaded, texts: Sequence[str], num_tokens: int) -> np.ndarray:
    """Return the token of each image token, the captions at the end. [N, P] int32.

    A caption that is longer than an image loses its beginning.
    """
    tokenizer = loaded.processor.tokenizer

    def ids_of(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    filler = ids_of(FILLER)[0]
    found = []
    for text in texts:
        ids = ids_of(f" {text}")[-num_tokens:]
        found.append([filler] * (num_tokens - len(ids)) + ids)
    return np.asarray(found, np.int32)

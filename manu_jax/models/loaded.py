"""A loaded model of any family, with its processor: reading, writing, encoding."""

import dataclasses
import functools
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax import checkpoint, hub, parallel, staged, stores
from manu_jax.config import ModelSection
from manu_jax.folder import check_replaceable, expand_path, new_folder, part_of, write_atomic
from manu_jax.leaves import leaves, shapes
from manu_jax.models.families.family import Family
from manu_jax.models.families.registry import FAMILIES
from manu_jax.models.hf import export, files, generation, processors, weights
from manu_jax.models.hf.generation import GenerationRules
from manu_jax.models.inputs import images as inputs
from manu_jax.models.inputs import processing, vision_inputs, workers
from manu_jax.models.inputs.caches import Caches
from manu_jax.models.inputs.chat import ChatTemplate, read_chat_template
from manu_jax.models.inputs.texts import Tokens
from manu_jax.models.stored import (
    CHECKPOINT,
    DTYPES,
    is_converted,
    load_checkpoint,
    read_config,
    read_tensors,
    saved_dtype,
)
from manu_jax.types import (
    Batch,
    BatchShape,
    Encoded,
    Images,
    ManuError,
    PromptTemplate,
    Sample,
    VisionInput,
)

logger = logging.getLogger(__name__)

PROMPTS = ("template", "benchmark")


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A model with its processor; turns samples into batches and token ids into text.

    hf_config: the `config.json` that it came from. path: the folder that it came from, or None.
    system_prompt: of every prompt; empty: the usual one. chat: what prompts are made of; None: the
    family's strings. generation: what the folder says about greedy answers.
    """

    model: Any
    processor: Any
    family: Family
    config: Any
    hf_config: Mapping[str, Any]
    path: Path | None = None
    mesh: jax.sharding.Mesh | None = None
    system_prompt: str = ""
    chat: ChatTemplate | None = None
    generation: GenerationRules = GenerationRules()
    caches: Caches = dataclasses.field(default_factory=Caches)

    @property
    def towers(self) -> dict[str, tuple[int, int]]:
        """{tower: (layers that run, neurons a layer)}."""
        return self.family.towers(self.config)

    @property
    def template(self) -> PromptTemplate:
        """The folder's chat template, or the family's strings, with the system prompt if any."""
        template = self.chat or self.family.strings_for(self.processor.tokenizer)
        return template.with_system(self.system_prompt)

    @property
    def context(self) -> int:
        """The most tokens of one text, image tokens included."""
        return self.config.text.context

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer: those of config.json, of generation, of the prompts."""
        text = self.hf_config.get("text_config") or {}
        ending = self.template.end.strip()
        end = self.processor.tokenizer(ending, add_special_tokens=False)["input_ids"]
        found = {self.processor.tokenizer.eos_token_id, *(end if len(end) == 1 else ())}
        found |= set(self.generation.eos_ids)
        for section in (self.hf_config, text):
            value = section.get("eos_token_id")
            found |= set(value) if isinstance(value, list) else {value}
        return tuple(sorted(token for token in found if token is not None))

    @property
    def padding_id(self) -> int:
        tokenizer = self.processor.tokenizer
        return next(
            (
                token
                for token in (tokenizer.pad_token_id, tokenizer.eos_token_id)
                if token is not None and token < self.config.text.vocabulary
            ),
            0,
        )

    def replace_model(self, model: Any) -> "Loaded":
        """Return a copy with another model of the same config."""
        return dataclasses.replace(self, model=model)

    def with_caches_of(self, other: "Loaded") -> "Loaded":
        """Return a copy that finds what another model has encoded; both have the same processor."""
        return dataclasses.replace(self, caches=other.caches)

    def count_tokens(self, samples: Sequence[Sample]) -> list[tuple[int, int]]:
        """Return how many tokens of text, and of images, each sample has."""
        processing.check_placeholders(samples, getattr(self.processor, self.family.placeholder))
        self.tokenise_ahead(samples)
        coded = [self._tokens(self._text(sample)).ids_T for sample in samples]
        counts = [int((ids_T == self.config.image_token).sum()) for ids_T in coded]
        return [(len(ids_T) - count, count) for ids_T, count in zip(coded, counts, strict=True)]

    def tokenise_ahead(self, samples: Sequence[Sample]) -> None:
        """Have the texts of samples that will be encoded tokenised by workers, if there are any."""
        self.caches.tokens.ask(self.processor.tokenizer, samples, text_of=self._text)

    def encode(self, sample: Sample, *, digests: dict[int, bytes] | None = None) -> Encoded:
        """Return a sample as numbers; see `processing.encode`.

        Its images are PIL images, or NumPy arrays [Y, X, 3] uint8; they are known by their content.
        digests: of images by their identity, which are not taken again (`Encoder.encode`).
        """
        given = sample
        inputs.check_texts(sample)
        sample = dataclasses.replace(sample, images=inputs.pil_images(sample))
        if any(one is not other for one, other in zip(given.images, sample.images, strict=True)):
            digests = None  # an image that was made here loses its identity with this call
        known = {} if digests is None else digests
        of_image = functools.partial(self._vision_inputs, sample=sample, digests=known)
        return self.caches.samples.encoded(
            sample,
            [vision_inputs.digest_of(image, known) for image in sample.images],
            make=lambda: self._encode(sample, of_image),
            vision_inputs=lambda: tuple(
                vision_input for image in sample.images for vision_input in of_image(image)
            ),
        )

    def vision_inputs(self, image: Any, *, is_one_of_many: bool = False) -> tuple[VisionInput, ...]:
        """Return what the vision tower reads of an image, as `encode` takes it; made once.

        is_one_of_many: its text has other images too; that matters to some families only.
        """
        (image,) = inputs.pil_images(Sample((), (image,)))
        return self._vision_inputs(image, sample=Sample((), (image,) * (1 + is_one_of_many)))

    def collate_vision_inputs(self, rows: Sequence[Sequence[VisionInput]]) -> Images:
        """Return the vision inputs of examples as Images without tokens (NumPy)."""
        num_images = max(len(row) for row in rows)
        num_patches = max(vision_input.padded_patches for row in rows for vision_input in row)
        return vision_inputs.collate_vision_inputs(rows, self.config, (num_images, num_patches))

    def collate(self, encoded: Sequence[Encoded], shape: BatchShape | None = None) -> Batch:
        """Return encoded samples as one padded batch (NumPy); see `processing.collate`."""
        return processing.collate(
            encoded, shape or BatchShape(), padding_token=self.padding_id, sizes=self.config
        )

    def batch(
        self,
        prompts: Sequence[str],
        images: Sequence[Sequence[Any]] | None = None,
        answers: Sequence[str] | None = None,
        *,
        padding_side: Literal["left", "right"] = "right",
    ) -> Batch:
        """Return prompts, their images and (with loss) their answers as one batch (NumPy).

        images: a list per prompt, of PIL images or NumPy arrays [Y, X, 3] uint8. Raises one
        ManuError with every prompt at fault.
        """
        if padding_side not in ("left", "right"):
            raise ManuError(f"batch: padding_side {padding_side!r}: expected left or right.")
        samples = inputs.samples_of(prompts, images, answers)
        encoded, faults = [], []
        for sample in samples:
            try:
                encoded.append(self.encode(sample))
            except ManuError as error:
                faults.append(str(error))
        if faults:
            raise ManuError("\n".join(faults))
        return self.collate(encoded, BatchShape(padding_side=padding_side))

    def decode(self, token_ids: Sequence[int] | np.ndarray) -> str:
        """Return token ids as text, without special tokens."""
        return self.processor.tokenizer.decode(
            [int(token) for token in token_ids], skip_special_tokens=True
        )

    def _encode(
        self, sample: Sample, of_image: Callable[[Any], tuple[VisionInput, ...]]
    ) -> Encoded:
        """Return a sample as numbers; of_image: the vision inputs of one of its images (PIL)."""
        rows, rope = self.family.feature_rows, self.family.rope_positions
        return processing.encode(
            sample,
            tokenizer=self.processor.tokenizer,
            tokens=self._tokens,
            placeholder=getattr(self.processor, self.family.placeholder),
            replacements=lambda: self._replacements(sample),
            vision_inputs=of_image,
            feature_rows=None if rows is None else lambda: rows(sample.images, self.config),
            rope_positions=None
            if rope is None
            else lambda is_image_T, inputs: rope(is_image_T, inputs, self.config),
            image_token=self.config.image_token,
            context=self.context,
            vocabulary=self.config.text.vocabulary,
        )

    def _vision_inputs(
        self, image: Any, *, sample: Sample, digests: dict[int, bytes] | None = None
    ) -> tuple[VisionInput, ...]:
        """Return what the vision tower reads of one of a sample's images (PIL)."""
        of_many = self.family.vision_inputs_of_many if len(sample.images) > 1 else None
        make = of_many or self.family.vision_inputs
        border = inputs.image_border(sample, (image,))
        settings, known = (self.processor, self.config), {} if digests is None else digests
        with border:
            return self.caches.vision.vision_inputs(
                image,
                lambda image: workers.vision_inputs(
                    make, image, settings, digest=known[id(image)], border=border
                ),
                is_one_of_many=of_many is not None,
                digests=known,
            )

    def _tokens(self, text: str) -> Tokens:
        return self.caches.tokens.tokens(self.processor.tokenizer, text)

    def _text(self, sample: Sample) -> str:
        """Return what is tokenised of a sample."""
        replacements = self._replacements(sample)
        return "".join(text for text, _ in processing.expanded(sample, replacements))

    def _replacements(self, sample: Sample) -> Sequence[processing.Replacement]:
        with inputs.image_border(sample, sample.images):
            return self.family.replacements(sample.text, sample.images, self.processor, self.config)


def load(
    path: str | os.PathLike,
    dtype: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
    *,
    prompt: Literal["template", "benchmark"] = "template",
) -> Loaded:
    """Return the model of a Hugging Face folder, or of one made by tools/convert/from_hf.py.

    path: the folder, or a name on the hub, `org/name` or `org/name@revision`. dtype: "float32",
    "bfloat16" or "float16"; None: as on disk. mesh: each device reads only the slices that it
    holds. prompt: "template": prompts are made of the folder's chat template, or of the family's
    strings where it has none; "benchmark": of the family's strings. Raises ManuError for whatever
    is missing, damaged or not handled.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ManuError(f"dtype {dtype!r}: known: {', '.join(DTYPES)}.")
    place = expand_path(path) if stores.is_store(path) else fetch(path)
    empty = load_without_weights(path, prompt=prompt)
    family, config, hf_config = empty.family, empty.config, empty.hf_config
    if is_converted(place):
        kind = jnp.dtype(dtype or saved_dtype(place, hf_config))
        model = load_checkpoint(place / CHECKPOINT, family.abstract(config, kind), mesh)
    else:
        tensors, table = read_tensors(place, family, config)
        model = empty.model
        weights.compare(tensors, table, shapes(model)).refuse(str(place))
        kind = jnp.dtype(dtype) if dtype else weights.stored_dtype(tensors)
        model = weights.fill(model, tensors, table, dtype=kind, mesh=mesh)
    logger.info("%s: %s, %s", place, family.name, family.sizes(config, model))
    logger.info("%s: prompts are made of %s", place, empty.template.source)
    if empty.generation.change_logits:
        logger.info("%s: answers follow its generation settings: %s", place, empty.generation)
    return dataclasses.replace(empty, model=model, mesh=mesh)


def fetch(path: str | os.PathLike, *, with_weights: bool = True) -> Path:
    """Return the folder of a model; what it needs of one that is named on the hub is fetched.

    The small files come first, and tell which weights there are. Of a store the folder has copies
    of these alone: its weights are read where they are.
    """
    folder = hub.local(path, "model", files.NEEDED)
    if with_weights and hub.repository(path, "model") is not None:
        hub.local(path, "model", files.weight_names(folder))
    return folder


def load_without_weights(path: str | os.PathLike, *, prompt: str = "template") -> Loaded:
    """Return the model of a folder as `load` does, with shapes (float32) in place of weights."""
    if prompt not in PROMPTS:
        raise ManuError(f"prompt {prompt!r}: known: {', '.join(PROMPTS)}.")
    path = fetch(path, with_weights=False)
    family, config, hf_config = read_config(path)
    processor = processors.load_processor(
        path,
        family.load_processor,
        image_token=config.image_token,
        vocabulary=config.text.vocabulary,
    )
    rules = generation.read_rules(path, hf_config, config.text.vocabulary)
    chat = chat_template_of(path, processor, family) if prompt == "template" else None
    model = family.abstract(config)
    return Loaded(model, processor, family, config, hf_config, path, chat=chat, generation=rules)


def family_of(section: ModelSection) -> Family:
    """Return the family of a run's model, by its config.json or the section alone."""
    if section.path is None:
        return FAMILIES[section.family]
    return read_config(fetch(section.path, with_weights=False))[0]


def save_pretrained(loaded: Loaded, path: str | os.PathLike) -> None:
    """Write a Hugging Face folder that `transformers` loads, by the export names; all or nothing.

    path: a new or empty folder, or one that holds only what was written so before; ManuError
    otherwise, before anything is written. config.json and the files of tokenizer and processor are
    those that the model came with.
    """
    parallel.on_first_process(lambda: check_replaceable(path))
    table = loaded.family.weight_table(loaded.config)
    tensors = export.export_tensors(loaded.model, table)
    if not parallel.is_first_process():
        export.write_tensors(tensors, expand_path(path))
        return
    with new_folder(path) as folder:
        write_small_files(loaded, folder)
        export.write_tensors(tensors, folder)


def save_checkpoint(loaded: Loaded, path: str | os.PathLike) -> None:
    """Write the folder that `load` reads fastest: Orbax's arrays beside the Hugging Face files.

    path: as of `save_pretrained`.
    """
    parallel.on_first_process(lambda: check_replaceable(path))
    number = parallel.broadcast(os.getpid())
    target = expand_path(path)
    is_store = stores.is_store(target)  # where arrays are written in their place
    place = target if is_store else part_of(Path(os.path.realpath(target)), number)
    if not parallel.is_first_process():
        checkpoint.save(place / CHECKPOINT, leaves(loaded.model))
        return
    with new_folder(path, number) as folder:
        if is_store:
            staged.begin_folder(folder)
        checkpoint.save(place / CHECKPOINT, leaves(loaded.model))
        write_small_files(loaded, folder)


def write_small_files(loaded: Loaded, folder: Path) -> None:
    """Write everything of a Hugging Face folder but the weights; see `files.KEPT`."""
    if loaded.path is not None and loaded.path.is_dir():
        for name in files.small_files(loaded.path):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(loaded.path / name, folder / name)
    else:
        loaded.processor.save_pretrained(folder)
    kind = str(jax.tree.leaves(loaded.model)[0].dtype)
    config = {**loaded.hf_config, "dtype": kind, "torch_dtype": kind}
    for name in ("text_config", "vision_config"):
        if isinstance(config.get(name), dict):
            named = {key: kind for key in ("dtype", "torch_dtype") if key in config[name]}
            config[name] = {**config[name], **named}
    write_atomic(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def chat_template_of(path: Path, processor: Any, family: Family) -> ChatTemplate | None:
    strings = family.strings_for(processor.tokenizer)
    placeholder = getattr(processor, family.placeholder)
    mark = strings.image.strip(" ") + strings.after_image
    return read_chat_template(path, processor.tokenizer, placeholder=placeholder, image=mark)

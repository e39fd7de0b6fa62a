"""A loaded model of any family, with its processor: reading, writing, encoding."""

import dataclasses
import functools
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax import checkpoint, parallel
from manu_jax.config import ModelSection
from manu_jax.folder import (
    check_replaceable,
    expand_path,
    new_folder,
    part_of,
    write_atomic,
)
from manu_jax.leaves import leaves, path_name, shapes
from manu_jax.models.families.family import Family
from manu_jax.models.families.registry import FAMILIES
from manu_jax.models.hf import export, files, processors, weights
from manu_jax.models.hf.tables import Entry
from manu_jax.models.inputs import processing, vision_inputs
from manu_jax.types import (
    Batch,
    BatchShape,
    Encoded,
    Images,
    ManuError,
    Sample,
    Template,
    VisionInput,
)

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint"  # the Orbax folder inside a converted model's
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A model with its processor; turns samples into batches and token ids into text.

    hf_config: the `config.json` that it came from. path: the folder that it came from, or None.
    system_prompt: of every prompt; empty: the family's usual one.
    """

    model: Any
    processor: Any
    family: Family
    config: Any
    hf_config: Mapping[str, Any]
    path: Path | None = None
    mesh: jax.sharding.Mesh | None = None
    system_prompt: str = ""
    cache: vision_inputs.VisionInputCache = dataclasses.field(
        default_factory=vision_inputs.VisionInputCache
    )

    @property
    def towers(self) -> dict[str, tuple[int, int]]:
        """{tower: (layers that run, neurons a layer)}."""
        return self.family.towers(self.config)

    @property
    def template(self) -> Template:
        """The family's prompt strings, with the system prompt, if there is one."""
        family = self.family
        template = family.template_of(self.processor.tokenizer) if family.template_of else None
        return (template or family.template).with_system(self.system_prompt)

    @property
    def context(self) -> int:
        """The most tokens of one text, image tokens included."""
        return self.config.text.context

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        text = self.hf_config.get("text_config") or {}
        end = self.processor.tokenizer(self.template.end, add_special_tokens=False)["input_ids"]
        found = {self.processor.tokenizer.eos_token_id, *(end if len(end) == 1 else ())}
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

    def count_tokens(self, samples: Sequence[Sample]) -> list[tuple[int, int]]:
        """Return how many tokens of text, and of images, each sample has."""
        texts = [
            "".join(text for text, _ in processing.expanded(sample, self._replacements(sample)))
            for sample in samples
        ]
        coded = self.processor.tokenizer(texts)["input_ids"]
        counts = [ids.count(self.config.image_token) for ids in coded]
        return [(len(ids) - count, count) for ids, count in zip(coded, counts, strict=True)]

    def encode(self, sample: Sample) -> Encoded:
        """Return a sample as numbers; see `processing.encode`."""
        rows, rope = self.family.feature_rows, self.family.rope_positions
        return processing.encode(
            sample,
            tokenizer=self.processor.tokenizer,
            placeholder=getattr(self.processor, self.family.placeholder),
            replacements=lambda: self._replacements(sample),
            vision_inputs=functools.partial(
                self.vision_inputs, is_one_of_many=len(sample.images) > 1
            ),
            feature_rows=None if rows is None else lambda: rows(sample.images, self.config),
            rope_positions=None
            if rope is None
            else lambda is_image_T, inputs: rope(is_image_T, inputs, self.config),
            image_token=self.config.image_token,
            context=self.context,
            vocabulary=self.config.text.vocabulary,
        )

    def vision_inputs(self, image: Any, *, is_one_of_many: bool = False) -> tuple[VisionInput, ...]:
        """Return what the vision tower reads of an image (PIL), made once.

        is_one_of_many: its text has other images too; that matters to some families only.
        """
        of_many = self.family.vision_inputs_of_many if is_one_of_many else None
        make = of_many or self.family.vision_inputs
        return self.cache.vision_inputs(
            image,
            lambda image: make(image, self.processor, self.config),
            is_one_of_many=of_many is not None,
        )

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

        images: a list of PIL images per prompt. Raises one ManuError with every prompt at fault.
        """
        for what, given in (("images", images), ("answers", answers)):
            if given is not None and len(given) != len(prompts):
                raise ManuError(f"{len(prompts)} prompts and {len(given)} entries of {what}.")
        encoded, faults = [], []
        for i, prompt in enumerate(prompts):
            segments = [(prompt, False)] + ([(answers[i], True)] if answers else [])
            sample = Sample(tuple(segments), tuple(images[i]) if images else ())
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

    def _replacements(self, sample: Sample) -> Sequence[processing.Replacement]:
        return self.family.replacements(sample.text, sample.images, self.processor, self.config)


def load(
    path: str | os.PathLike,
    dtype: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Loaded:
    """Return the model of a Hugging Face folder, or of one made by tools/convert/from_hf.py.

    dtype: "float32", "bfloat16" or "float16"; None: as on disk. mesh: each device reads only the
    slices that it holds. Raises ManuError for whatever is missing, damaged or not handled.
    """
    path = expand_path(path)
    if dtype is not None and dtype not in DTYPES:
        raise ManuError(f"dtype {dtype!r}: known: {', '.join(DTYPES)}.")
    family, config, hf_config = read_config(path)
    processor = processors.load_processor(
        path,
        family.load_processor,
        image_token=config.image_token,
        vocabulary=config.text.vocabulary,
    )
    if (path / CHECKPOINT).exists():
        kind = jnp.dtype(dtype or _saved_dtype(path, hf_config))
        model = _load_checkpoint(path / CHECKPOINT, family.abstract(config, kind), mesh)
    else:
        tensors, table = read_tensors(path, family, config)
        model = family.abstract(config)
        weights.compare(tensors, table, shapes(model)).refuse(str(path))
        kind = jnp.dtype(dtype) if dtype else weights.stored_dtype(tensors)
        model = weights.fill(model, tensors, table, dtype=kind, mesh=mesh)
    logger.info("%s: %s, %s", path, family.name, sizes(family, config, model))
    return Loaded(model, processor, family, config, hf_config, path, mesh)


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
        export.write_tensors(tensors, Path(path))
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
    if not parallel.is_first_process():
        target = Path(os.path.realpath(expand_path(path)))
        checkpoint.save(part_of(target, number) / CHECKPOINT, leaves(loaded.model))
        return
    with new_folder(path, number) as folder:
        checkpoint.save(folder / CHECKPOINT, leaves(loaded.model))
        write_small_files(loaded, folder)


def create(section: ModelSection, tokenizer: Any, key: jax.Array) -> Loaded:
    """Return a model of random float32 weights with the sizes of `section`, and its processor.

    The processor's tokenizer may have more tokens, which the family needs.
    """
    chosen = FAMILIES[section.family]
    processor = chosen.tiny_processor(section, tokenizer)
    hf_config = chosen.tiny_config(section, processor.tokenizer)
    config = chosen.config_from_hf(hf_config, "model")
    return Loaded(_random_model(key, config, chosen.build), processor, chosen, config, hf_config)


def read_config(path: Path) -> tuple[Family, Any, dict[str, Any]]:
    """Return the family, the config and the raw `config.json` of a folder."""
    if not path.is_dir():
        raise ManuError(f"{path}: no such folder. Give one with a config.json and its weights.")
    file = path / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
        raise ManuError(
            f"{path}: no config.json; the folder holds {held}. Is it a model?"
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise ManuError(f"{file}: can't be read as JSON ({error}). Get it anew.") from None
    if not isinstance(values, dict):
        raise ManuError(f"{file}: expected a mapping of fields, got {values!r:.60}. Get it anew.")
    name = values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ManuError(f"{file}: model_type {name!r}; known: {', '.join(FAMILIES)}.")
    return FAMILIES[name], FAMILIES[name].config_from_hf(values, str(file)), values


def read_tensors(
    path: Path, family: Family, config: Any
) -> tuple[dict[str, weights.Tensor], list[Entry]]:
    """Return {export name: Tensor} of a folder, and the family's weight table."""
    _, tensors = weights.with_export_names(
        weights.open_tensors(path), family.names.prefixes, family.names.buffers
    )
    return weights.without_repeats(tensors, family.tied(config)), family.weight_table(config)


def num_parameters(model: Any) -> int:
    """Return how many numbers a model's weights are; those of layers that do not run count too."""
    return sum(math.prod(shape) for shape in shapes(model).values())


def sizes(family: Family, config: Any, model: Any) -> str:
    """Return one line of sizes: parameters, towers, neurons."""
    parts = [f"{num_parameters(model):,} parameters in {jax.tree.leaves(model)[0].dtype}"]
    for tower, (layers, neurons) in family.towers(config).items():
        parts.append(f"{tower}: {layers} × {neurons:,} = {layers * neurons:,} neurons")
    return "; ".join(parts)


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


def _saved_dtype(path: Path, hf_config: Mapping[str, Any]) -> str:
    kind = hf_config.get("dtype")
    if kind not in DTYPES:
        raise ManuError(
            f"{path / 'config.json'}: dtype {kind!r}; a converted folder needs one of "
            f"{', '.join(DTYPES)}. Convert the model again."
        )
    return kind


def _load_checkpoint(path: Path, model: Any, mesh: jax.sharding.Mesh | None) -> Any:
    def placed(name: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        if mesh is None:
            split = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        else:
            split = parallel.sharding(name, leaf.shape, mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split)

    target = {name: placed(name, leaf) for name, leaf in leaves(model).items()}
    found = checkpoint.load(path, target)
    return jax.tree_util.tree_map_with_path(lambda p, _: found[path_name(p)], model)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _random_model(key: jax.Array, config: Any, build: Callable) -> Any:
    return build(key, config)

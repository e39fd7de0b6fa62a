"""The families of models.

A Family says how a `config.json` becomes a module, which tensors fill it and how its prompts look.
A new one is one file with those functions and one entry in FAMILIES.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manu_jax.models import (
    fresh,
    gemma3,
    idefics2,
    idefics3,
    llava,
    llava_next,
    llava_onevision,
    paligemma,
    pictures,
    processing,
    qwen_vl,
    tables,
)
from manu_jax.types import Picture, Template


@dataclasses.dataclass(frozen=True)
class Family:
    """What is particular about one architecture.

    spellings: {form: {start of a name: the start that stands for it in the export form, "A"}}.
    tied: {name that files may hold besides: the tensor that it repeats}. edits and pictures: what
    takes the places of an image's mark in a text, and what the tower takes for an image, given
    (text and images, or the image), the processor and the config. mark: the processor's attribute
    that holds the mark. feature_rows: which rows of each image's features, picture after picture,
    its tokens take, given the images and the config, [J], or [J, 4] where a token is the sum of
    four with the weights that corner_weights gives; None: all, in order. pictures_of_many: as
    pictures, of an image that is not the only one of its text, where that differs. rope_positions:
    the three positions of each token, given which are images' tokens, the pictures and the config;
    None: a token has one. template_of: the prompt strings by the tokenizer, where not all models of
    the family have the same; it may return None for the usual ones. prompt_sees_ahead: the tokens
    before an answer look at each other in both directions.
    """

    name: str
    model_type: str
    config_from_hf: Callable[[Mapping[str, Any], str], Any]
    build: Callable[[jax.Array, Any], Any]
    weight_table: Callable[[Any], list[tables.Entry]]
    spellings: Mapping[str, Mapping[str, str]]
    buffers: tuple[str, ...]
    tied: Callable[[Any], dict[str, str]]
    edits: Callable[[str, Sequence[Any], Any, Any], Sequence[processing.Edit]]
    pictures: Callable[[Any, Any, Any], tuple[Picture, ...]]
    new_config: Callable[..., dict[str, Any]]
    new_processor: Callable[..., Any]
    template: Template
    mlps: Callable[[Any], dict[str, tables.TowerMlp]] = tables.text_and_vision_mlps
    mark: str = "image_token"
    load_processor: Callable[[Path], Any] = processing.whole_processor
    feature_rows: Callable[[Sequence[Any], Any], Sequence[np.ndarray]] | None = None
    corner_weights: Callable[[Sequence[Any], Any], Sequence[np.ndarray]] | None = None
    pictures_of_many: Callable[[Any, Any, Any], tuple[Picture, ...]] | None = None
    rope_positions: Callable[[np.ndarray, Sequence[Picture], Any], np.ndarray] | None = None
    template_of: Callable[[Any], Template | None] | None = None
    prompt_sees_ahead: bool = False

    def abstract(self, config: Any, dtype: Any = jnp.float32) -> Any:
        """Return the model of shapes; nothing is computed or allocated."""
        model = jax.eval_shape(lambda: self.build(jax.random.key(0), config))
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), model)

    def towers(self, config: Any) -> dict[str, tuple[int, int]]:
        """Return {tower: (layers that run, neurons a layer)}."""
        return {name: (m.num_layers, m.num_neurons) for name, m in self.mlps(config).items()}

    def neuron_leaves(self, config: Any) -> dict[str, dict[str, tuple[str, int]]]:
        """Return {tower: {name: (path of a leaf, its axis F)}}: the weights of a neuron."""
        return {name: tables.neuron_leaves(mlp) for name, mlp in self.mlps(config).items()}

    def row_leaves(self, config: Any) -> dict[str, dict[str, tuple[str, int]]]:
        """Return {"tower.matrix": {"weight" or "bias": (path, axis of the output row)}}."""
        return {
            f"{name}.{matrix}": leaves
            for name, mlp in self.mlps(config).items()
            for matrix, leaves in tables.row_leaves(mlp).items()
        }

    def matrix_rows(self, config: Any) -> dict[str, tuple[int, int]]:
        """Return {"tower.matrix": (layers, output rows)}: the sizes of what "position" measures."""
        return {
            f"{name}.{matrix}": rows
            for name, mlp in self.mlps(config).items()
            for matrix, rows in tables.matrix_rows(mlp).items()
        }


FORM_A: dict[str, Any] = dict(spellings=llava.SPELLINGS, buffers=llava.BUFFERS, tied=llava.tied)
QWEN_VL: dict[str, Any] = dict(
    build=qwen_vl.QwenVL,
    mlps=qwen_vl.mlps,
    weight_table=qwen_vl.weight_table,
    spellings=qwen_vl.SPELLINGS,
    buffers=qwen_vl.BUFFERS,
    tied=qwen_vl.tied,
    edits=qwen_vl.edits,
    pictures=qwen_vl.pictures,
    new_processor=fresh.qwen_vl_processor,
    template=qwen_vl.TEMPLATE,
    load_processor=functools.partial(
        processing.processor_without_videos, image_token="<|image_pad|>"
    ),
    rope_positions=qwen_vl.rope_positions,
)
IDEFICS3: dict[str, Any] = dict(
    build=idefics3.Idefics3,
    weight_table=idefics3.weight_table,
    spellings=idefics2.SPELLINGS,
    buffers=idefics2.BUFFERS,
    tied=idefics2.tied,
    edits=idefics3.edits,
    pictures=idefics3.pictures,
    new_processor=fresh.idefics3_processor,
    template=idefics3.TEMPLATE,
    template_of=idefics3.template_of,
    load_processor=functools.partial(
        processing.processor_without_videos, image_token=idefics3.MARK
    ),
)
FAMILIES: dict[str, Family] = {
    "llava": Family(
        name="LLaVA-1.5",
        model_type="llava",
        config_from_hf=llava.config_from_hf,
        build=llava.Llava,
        weight_table=llava.weight_table,
        **FORM_A,
        edits=processing.repeated_token,
        pictures=pictures.square_picture,
        new_config=fresh.llava_config,
        new_processor=fresh.llava_processor,
        template=Template(),
    ),
    "llava_next": Family(
        name="LLaVA-NeXT",
        model_type="llava_next",
        config_from_hf=llava_next.config_from_hf,
        build=llava_next.LlavaNext,
        weight_table=llava_next.weight_table,
        spellings=llava_next.SPELLINGS,
        buffers=llava.BUFFERS,
        tied=llava.tied,
        edits=llava_next.edits,
        pictures=llava_next.pictures,
        feature_rows=llava_next.feature_rows,
        new_config=fresh.llava_next_config,
        new_processor=fresh.llava_next_processor,
        template=Template(),
        template_of=llava_next.template_of,
        load_processor=llava_next.load_processor,
    ),
    "llava_onevision": Family(
        name="LLaVA-OneVision",
        model_type="llava_onevision",
        config_from_hf=llava_onevision.config_from_hf,
        build=llava_next.LlavaNext,
        weight_table=llava_next.weight_table,
        spellings=llava_next.SPELLINGS,
        buffers=llava.BUFFERS,
        tied=llava.tied,
        edits=llava_onevision.edits,
        pictures=llava_next.pictures,
        pictures_of_many=llava_onevision.pictures_of_many,
        feature_rows=llava_onevision.feature_rows,
        corner_weights=llava_onevision.corner_weights,
        new_config=fresh.llava_onevision_config,
        new_processor=fresh.llava_onevision_processor,
        template=llava_onevision.TEMPLATE,
        load_processor=functools.partial(
            processing.processor_without_videos, image_token=llava_onevision.MARK
        ),
    ),
    "paligemma": Family(
        name="PaliGemma",
        model_type="paligemma",
        config_from_hf=paligemma.config_from_hf,
        build=paligemma.PaliGemma,
        weight_table=paligemma.weight_table,
        **FORM_A,
        edits=processing.repeated_token,
        pictures=pictures.square_picture,
        new_config=fresh.paligemma_config,
        new_processor=fresh.paligemma_processor,
        template=paligemma.TEMPLATE,
        template_of=paligemma.template_of,
        prompt_sees_ahead=True,
    ),
    "gemma3": Family(
        name="Gemma 3",
        model_type="gemma3",
        config_from_hf=gemma3.config_from_hf,
        build=gemma3.Gemma3,
        weight_table=gemma3.weight_table,
        **FORM_A,
        edits=gemma3.edits,
        pictures=gemma3.pictures,
        new_config=fresh.gemma3_config,
        new_processor=fresh.gemma3_processor,
        template=gemma3.TEMPLATE,
        mark="boi_token",
    ),
    "idefics2": Family(
        name="Idefics2",
        model_type="idefics2",
        config_from_hf=idefics2.config_from_hf,
        build=idefics2.Idefics2,
        mlps=idefics2.mlps,
        weight_table=idefics2.weight_table,
        spellings=idefics2.SPELLINGS,
        buffers=idefics2.BUFFERS,
        tied=idefics2.tied,
        edits=idefics2.edits,
        pictures=idefics2.pictures,
        new_config=fresh.idefics2_config,
        new_processor=fresh.idefics2_processor,
        template=idefics2.TEMPLATE,
    ),
    "qwen2_vl": Family(
        name="Qwen2-VL",
        model_type="qwen2_vl",
        config_from_hf=qwen_vl.qwen2_config,
        new_config=fresh.qwen2_vl_config,
        **QWEN_VL,
    ),
    "qwen2_5_vl": Family(
        name="Qwen2.5-VL",
        model_type="qwen2_5_vl",
        config_from_hf=qwen_vl.qwen2_5_config,
        new_config=fresh.qwen2_5_vl_config,
        **QWEN_VL,
    ),
    "idefics3": Family(
        name="Idefics3",
        model_type="idefics3",
        config_from_hf=idefics3.idefics3_config,
        new_config=functools.partial(fresh.idefics3_config, name="Idefics3"),
        **IDEFICS3,
    ),
    "smolvlm": Family(
        name="SmolVLM",
        model_type="smolvlm",
        config_from_hf=idefics3.smolvlm_config,
        new_config=functools.partial(fresh.idefics3_config, name="SmolVLM"),
        **IDEFICS3,
    ),
}
